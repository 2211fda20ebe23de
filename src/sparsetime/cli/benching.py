"""Commands that measure: bench layers, bench network."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sparsetime.cli.common import DebugOption, JsonOption, check_targets, finish, guarded, parse_size, say

BENCH_HELP = """
Measure what streams cost against the fastest dense runtimes: PyTorch, ONNX Runtime and OpenVINO.

They come with `pip install 'sparsetime[bench]'`. Figures mean something on a machine that does nothing else.
"""

LAYERS_EXAMPLES = """
Time single layers at all densities and patterns of change.

**Examples**

    sparsetime bench layers --json layers.json

    sparsetime bench layers --only 3x3 --density 0.1 --pattern elements --threads 1
"""

NETWORK_EXAMPLES = """
Time whole networks: at a controlled density of operations, against the changed area, and on a still frame of 1080p; or
a plan on given videos.

**Examples**

    sparsetime bench network --json network.json

    sparsetime bench network --only mobilenet_v2 --part controlled --density 0.05

    sparsetime bench network --model mypackage.networks:detector --size 256x320 --density 0.05

    sparsetime bench network --plan delta.plan --model runs/delta --video street.mp4 --json street.json
"""


class Pattern(StrEnum):
    """See `sparsetime.bench.patterns`. (Options that are repeated take no `Literal`.)"""

    CLUSTERED = "clustered"
    PIXELS = "pixels"
    ELEMENTS = "elements"


class Precision(StrEnum):
    """See `sparsetime.run.runtimes`."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"


class Part(StrEnum):
    """See `sparsetime.bench.network`."""

    CONTROLLED = "controlled"
    GROWTH = "growth"
    STILL = "still"
    START = "start"


OnlyOption = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="Those with TEXT in their name alone.")]
PatternOption = Annotated[list[Pattern] | None, typer.Option(help="What changes; may be repeated.  [default: all]")]
DensityOption = Annotated[
    list[float] | None, typer.Option(min=0.0, max=1.0, metavar="SHARE", help="Share that changes; may be repeated.")
]
ThreadsOption = Annotated[list[int], typer.Option(min=1, metavar="N", help="Threads of everybody; may be repeated.")]
RoundsOption = Annotated[int, typer.Option(min=1, metavar="N", help="Rounds in which the methods take turns.")]
PrecisionOption = Annotated[
    list[Precision],
    typer.Option(
        help="Of the dense runtimes; of whole networks streams run in float32 and int8 too, each against the fastest "
        "of its own. May be repeated."
    ),
]
ClockOption = Annotated[
    Literal["wall", "cpu"], typer.Option(help="cpu: the time of the process, for one thread on a busy machine.")
]
ALL_PRECISIONS = list(Precision)


def layers_command(
    only: OnlyOption = None,
    pattern: PatternOption = None,
    density: DensityOption = None,
    threads: ThreadsOption = [1, 2],  # noqa: B006 - typer takes lists
    precision: PrecisionOption = ALL_PRECISIONS,
    rounds: RoundsOption = 15,
    clock: ClockOption = "wall",
    json_file: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    from sparsetime.bench import layers
    from sparsetime.bench.machine import machine

    chosen = _chosen(list(layers.LAYERS), only)
    found: dict[str, list[dict[str, Any]]] = {}
    result: dict[str, Any] = {"machine": machine(), "rounds": rounds, "clock": clock, "layers": found}
    for name in chosen:
        found[name] = []
        for number in threads:
            found[name] += layers.measure(
                layers.LAYERS[name],
                patterns=_values(pattern) or layers.PATTERNS,
                densities=density or layers.DENSITIES,
                threads=number,
                rounds=rounds,
                clock=clock,
                precisions=_values(precision),
                tell=lambda row, name=name: say(f"{name}, {layers.line(row)}"),  # type: ignore[misc]
            )
        result["summary"] = layers.summary(found)
        finish(result, json_file)  # so far: a run takes long
    print(layers.table(result["summary"]))


def network_command(
    only: OnlyOption = None,
    part: Annotated[list[Part] | None, typer.Option(help="What to measure; may be repeated.  [default: all]")] = None,
    pattern: PatternOption = None,
    density: DensityOption = None,
    threads: ThreadsOption = [1, 2],  # noqa: B006
    precision: PrecisionOption = ALL_PRECISIONS,
    codec: Annotated[Literal["hold", "pixel"] | None, typer.Option(help="Of the streams.  [default: pixel]")] = None,
    compiled: Annotated[bool, typer.Option(help="PyTorch compiled too: needs a C++ compiler, and minutes.")] = True,
    rounds: RoundsOption = 12,
    clock: ClockOption = "wall",
    plan: Annotated[Path | None, typer.Option(metavar="FILE", help="Time this plan instead, on --video.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="As `compile` takes it: timed at controlled densities instead of the built-in networks; with --plan "
            "what the plan was compiled from, for the dense runtimes.",
        ),
    ] = None,
    weights: Annotated[Path | None, typer.Option(metavar="FILE", help="Weights of a built-in --model.")] = None,
    size: Annotated[str | None, typer.Option(metavar="HxW", help="Size of --model's input.")] = None,
    video: Annotated[list[Path] | None, typer.Option(metavar="VIDEO", help="Clips; may be repeated.")] = None,
    frames: Annotated[int, typer.Option(min=2, metavar="N", help="Frames of each clip, at most.")] = 64,
    json_file: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    from sparsetime.bench import network
    from sparsetime.bench.machine import machine
    from sparsetime.run.models import load_model

    run = model if model and Path(model).is_dir() else None
    check_targets({"--json": json_file}, plan, run, weights, *(video or ()))
    settings = network.Settings(
        threads, _values(precision), compiled, rounds, clock=clock, codec=codec or network.DEFAULTS.codec
    )
    result: dict[str, Any] = {"machine": machine(), "rounds": rounds, "clock": clock}
    if plan is not None:
        if model is None or not video:
            raise typer.BadParameter("--plan also needs --model MODEL, for the dense runtimes, and --video VIDEO")
        if size is not None:
            raise typer.BadParameter("--size is of a --model without --plan: the plan says how large its input is")
        result["clips"] = _clips(plan, model, weights, video, frames, settings)
        finish(result, json_file)
        print(network.table(result["clips"]))
        return
    if size is not None and model is None:
        raise typer.BadParameter("--size is of a --model: built-in networks have sizes of their own")
    module = None
    if model is not None:
        if only or part not in (None, [Part.CONTROLLED]):
            raise typer.BadParameter("--model is timed at controlled densities: leave out --only and --part")
        own = load_model(model, weights=weights, size=parse_size(size))
        cases, module, parts = [network.Case(model, own.size, {})], own.module, [Part.CONTROLLED]
    else:
        chosen = _chosen([case.network for case in network.CASES], only)
        cases, parts = [case for case in network.CASES if case.network in chosen], part or list(Part)
    mobilenet = [case for case in cases if case.network == "mobilenet_v2"]
    if Part.CONTROLLED in parts:
        result["controlled"] = []
        for case in cases:
            result["controlled"] += network.controlled(
                case,
                module,
                patterns=_values(pattern) or network.PATTERNS,
                densities=density or network.DENSITIES,
                settings=settings,
                tell=say,
            )
            finish(result, json_file)  # so far
    if mobilenet:
        if Part.GROWTH in parts:
            result["growth"] = network.growth(mobilenet[0], settings=settings, tell=say)
            finish(result, json_file)  # so far
        if Part.STILL in parts:
            result["still"] = network.still(settings=settings, tell=say)
            finish(result, json_file)
        if Part.START in parts:
            result["start"] = network.start()
    finish(result, json_file)
    print(network.table(result.get("controlled", [])))


def _chosen(names: Sequence[str], only: Sequence[str] | None) -> list[str]:
    """The names that were asked for: in full, or else by a part of them."""
    if not only:
        return list(names)
    found = [name for name in names if any(text == name or (text not in names and text in name) for text in only)]
    if not found:
        raise typer.BadParameter(f"--only {' '.join(only)} leaves none of: {', '.join(names)}")
    return found


def _values(chosen: Sequence[StrEnum] | None) -> list[Any]:
    """Plain words, as the benchmarks take them."""
    return [word.value for word in chosen or ()]


def _clips(
    plan: Path, model: str, weights: Path | None, videos: Sequence[Path], frames: int, settings: Any
) -> list[dict[str, Any]]:
    from sparsetime.bench import network
    from sparsetime.engine import Plan
    from sparsetime.run.models import load_model

    loaded = Plan.load(plan)
    height, width = loaded.input_shape[2:]
    module = load_model(model, weights=weights, size=(height, width)).module
    return network.clips(loaded, module, videos, frames=frames, settings=settings, tell=say)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    bench = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help=BENCH_HELP)
    bench.command("layers", help=LAYERS_EXAMPLES)(guarded(layers_command))
    bench.command("network", help=NETWORK_EXAMPLES)(guarded(network_command))
    app.add_typer(bench, name="bench")
