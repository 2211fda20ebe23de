"""What whole networks cost on deltas, against the fastest dense runtime.

Four questions, decoding excluded in all: networks at a controlled density of operations, scattered and clustered
(`controlled`); cost against the changed area (`growth`); a still frame of 1080p (`still`); a given plan on given clips
(`clips`).

The built-in networks of the first three have random weights, and batch norm as on noise: what is timed is their
shape. How a density is brought about: `patterns.there_and_back` says what changes at the input,
`density.with_density` what each layer sends. Both sides are given normalised float32 frames; what a stream takes to
search them is counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import sparsetime
from sparsetime import networks
from sparsetime.bench.density import op_density, run_clip, with_density
from sparsetime.bench.patterns import Pattern, there_and_back
from sparsetime.bench.timing import Clock, Step, fastest, quartiles, ratio, take_turns
from sparsetime.bench.verify import verify
from sparsetime.convert.steps import DEFAULT_CODEC
from sparsetime.engine import OpStats, Plan, Stream
from sparsetime.run.runtimes import LIMITS, RANDOM_LIMITS, Network, Opponent, Precision

__all__ = ["AREAS", "CASES", "DENSITIES", "PATTERNS", "Case", "clips", "controlled", "growth", "made", "still", "table"]

Array = NDArray[Any]
Tell = Callable[[str], None]

OURS = "sparsetime"
FIRST = "sparsetime first frame"
"""Of a stream, which nothing of an earlier one can help: what a flush or a cut costs."""

PATTERNS: tuple[Pattern, ...] = ("elements", "clustered")
DENSITIES = (1.0, 0.1, 0.05, 0.02)
AREAS = (0.0, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.14, 0.16, 0.18, 0.2)
FULL_HD = (1080, 1920)
_BLOB = 1.5  # area of the moving square over the wanted density: in a changed place not every element changes enough


class Case(NamedTuple):
    """A network: its name, the size of its input, and the speed-ups to reach by density, in float32 and in int8."""

    network: str
    size: tuple[int, int]
    targets: Mapping[float, float]
    int8_targets: Mapping[float, float] = {}


CASES = (
    Case("resnet50", (224, 224), {0.1: 4, 0.05: 6}, {0.05: 3}),
    Case("mobilenet_v2", (224, 224), {0.1: 2.5, 0.05: 4, 0.02: 6}, {0.05: 1.5}),
    Case("fastestdet", (352, 352), {0.1: 3, 0.05: 5}, {0.05: 2}),
    Case("deeplabv3_mobilenet_v2", (513, 513), {0.1: 3, 0.05: 5}, {0.05: 2}),
)


class Settings(NamedTuple):
    """What all parts share; see `take_turns` for rounds, repeats and clock. The codec is that of the plans."""

    threads: Sequence[int] = (1, 2)
    precisions: Sequence[Precision] = ("float32",)
    compiled: bool = True
    rounds: int = 12
    repeats: int = 4
    clock: Clock = "wall"
    codec: str = DEFAULT_CODEC


DEFAULTS = Settings()


def made(name: str, size: tuple[int, int]) -> nn.Module:
    """A built-in network with random weights, its batch norm set by noise so that activations keep their scale."""
    torch.manual_seed(0)
    network = networks.create(name)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # means over all calls, of which there is one
    with torch.no_grad():
        network.train()(torch.randn(2, 3, *network.spec.input_size))
    if size != network.spec.input_size:
        state = network.state_dict()
        network = networks.create(name, input_size=size)
        network.load_state_dict(state)
    return network.eval()


def _plain(module: nn.Module) -> nn.Module:
    """A network without the delta layers of `sparsify`."""
    from sparsetime.convert.network import SparseNetwork

    return sparsetime.unsparsify(module) if isinstance(module, SparseNetwork) else module


class _Arena:
    """One network: its stream's opponents, by number of threads, made once."""

    def __init__(
        self,
        module: nn.Module,
        frames: Sequence[Array],
        settings: Settings,
        limits: Mapping[str, float] = RANDOM_LIMITS,
    ) -> None:
        self.settings = settings
        self.network = Network(module, frames, limits)
        self._opponents: dict[int, dict[str, Opponent]] = {}

    def opponents(self, threads: int) -> dict[str, Opponent]:
        if threads not in self._opponents:
            s = self.settings
            found = self.network.opponents(threads, s.precisions, compiled=s.compiled)
            self._opponents[threads] = {opponent.full_name: opponent for opponent in found}
        return self._opponents[threads]

    def race(self, plan: Plan, frames: Sequence[Array], threads: int) -> dict[str, Any]:
        """A stream of the plan, which has seen the frames once, and all opponents over the frames, again and again.

        The speed-up is over the fastest opponent of the plan's own precision.
        """
        s = self.settings
        opponents = self.opponents(threads)
        torch.set_num_threads(threads)
        stream = plan.stream(threads=threads)
        run_clip(stream, frames)
        steps: dict[str, Step] = {OURS: _cycle(stream, frames, s.clock)}
        steps[FIRST] = _turns(_fresh(plan.stream(threads=threads)), frames[:4])
        for name, opponent in opponents.items():
            steps[name] = _turns(opponent.run, [opponent.prepare(frame) for frame in frames[:4]])
        pause = 0.02 if threads > 1 else 0.0
        times = take_turns(steps, rounds=s.rounds, repeats=s.repeats, clock=s.clock, pause=pause)
        best = fastest(times, [name for name, o in opponents.items() if o.precision == plan.precision])
        clip = run_clip(stream, frames)
        return {
            "threads": threads,
            "precision": plan.precision,
            "distance": verify(stream, frames[0]),
            "op_density": op_density(plan, clip),
            "op_density_done": float(np.mean([sum(e.macs for e in frame.values()) for frame in clip]))
            / plan.dense_macs,
            "time_ms": {name: quartiles([1e3 * t for t in x]) for name, x in times.items()},
            "fastest": best,
            "speedup": ratio(times, best, OURS),
            "speedup_first_frame": ratio(times, best, FIRST),
            "profile": _profile(plan, clip),
        }


def _cycle(stream: Callable[[Any], Any], frames: Sequence[Any], clock: Clock) -> Step:
    """All frames once: seconds of one, on average. A stream's time depends on the frame, and on what the frames before
    have left in the caches: a camera's frames come one after another."""
    now = time.process_time if clock == "cpu" else time.perf_counter

    def step() -> float:
        start = now()
        for frame in frames:
            stream(frame)
        return (now() - start) / len(frames)

    return step


def _fresh(stream: Stream) -> Callable[[Array], None]:
    """Every frame as the first of the stream."""

    def call(frame: Array) -> None:
        stream.reset()
        stream(frame)

    return call


def _turns(call: Callable[[Any], Any], frames: Sequence[Any]) -> Step:
    turns = cycle(frames)

    def step() -> None:
        call(next(turns))

    return step


def _profile(plan: Plan, clip: Sequence[Mapping[str, OpStats]]) -> dict[str, float]:
    """Mean milliseconds a frame by kind of operation, by the stream's own clock; copying outputs is not in it."""
    spent: dict[str, float] = {}
    for op in plan.ops:
        kind = op.kind
        if kind == "conv2d":
            weight = plan.need(op, "weight").shape
            groups = op.attributes["groups"]
            kind = "depthwise" if groups == weight[0] > 1 else f"conv {weight[2]}x{weight[3]}"
        spent[kind] = spent.get(kind, 0.0) + float(np.mean([stats[op.name].time_ns for stats in clip])) * 1e-6
    return dict(sorted(spent.items(), key=lambda item: -item[1]))


def controlled(
    case: Case,
    module: nn.Module | None = None,
    *,
    patterns: Sequence[Pattern] = PATTERNS,
    densities: Sequence[float] = DENSITIES,
    settings: Settings = DEFAULTS,
    tell: Tell = lambda line: None,
) -> list[dict[str, Any]]:
    """One row per precision, pattern, density and number of threads: times in ms by method, speed-up over the fastest.

    Streams run in float32 and in int8, as far as the settings name them.

    Args:
        case: what is timed.
        module: the network, in evaluation mode; None takes the built-in one of the case's name, as `made` makes it.
        patterns: what changes.
        densities: shares of the operations.
        settings: see `Settings`.
        tell: called with a line per row.

    Raises:
        DisagreementError: an opponent or the stream computes something else.
    """
    module = made(case.network, case.size) if module is None else _plain(module)
    shape = (1, 3, *case.size)
    noise = there_and_back(shape, "elements", 1.0)
    arena = _Arena(module, noise, settings)
    rows: list[dict[str, Any]] = []
    for precision in [p for p in settings.precisions if p != "bfloat16"]:
        plan = _with_codecs(module, noise, precision, settings.codec)
        for pattern in patterns:
            for density in densities:
                area = min(1.0, density * _BLOB) if pattern == "clustered" else density
                frames = there_and_back(shape, pattern, area)
                prepared = with_density(plan, frames, density)
                for threads in settings.threads:
                    row = {"network": case.network, "size": list(case.size), "pattern": pattern, "density": density}
                    row["codec"] = settings.codec
                    row["target"] = (case.targets if precision == "float32" else case.int8_targets).get(density)
                    row |= arena.race(prepared, frames, threads)
                    row["weight_bytes"] = prepared.weight_bytes
                    rows.append(row)
                    tell(_line(row))
    return rows


def _with_codecs(module: nn.Module, frames: Sequence[Array], precision: Precision, codec: str) -> Plan:
    """A plan with thresholds still to be found; of int8, with the ranges of some frames."""
    steps = 1.0 if precision == "float32" else [torch.from_numpy(frame) for frame in frames[:4]]
    return sparsetime.compile(module, torch.from_numpy(frames[0]), codec=codec, steps=steps, precision=precision)


def growth(
    case: Case,
    *,
    settings: Settings = DEFAULTS,
    tell: Tell = lambda line: None,
) -> dict[str, Any]:
    """Milliseconds against the changed area of the frame: a moving square of noise, thresholds of one fixed plan.

    The thresholds are those at which a square of 10 % of the frame makes 10 % of the operations.
    """
    module = made(case.network, case.size)
    shape = (1, 3, *case.size)
    plan = sparsetime.compile(module, torch.zeros(shape), codec=settings.codec, steps=1.0)
    plan = with_density(plan, there_and_back(shape, "clustered", 0.1), 0.1)
    arena = _Arena(module, there_and_back(shape, "elements", 1.0), settings)
    rows: list[dict[str, Any]] = []
    for threads in settings.threads:
        for area in AREAS:
            row: dict[str, Any] = {"network": case.network, "area": area} | arena.race(
                plan, there_and_back(shape, "clustered", area), threads
            )
            rows.append(row)
            tell(f"{case.network}, {threads} threads, area {area:.0%}: {row['time_ms'][OURS]['median']:.3f} ms")
    lines = {}
    for threads in settings.threads:
        x = [row["area"] for row in rows if row["threads"] == threads]
        y = [row["time_ms"][OURS]["median"] for row in rows if row["threads"] == threads]
        slope, start = np.polyfit(x, y, 1)
        lines[str(threads)] = {
            "ms_at_0": float(start),
            "ms_per_percent": float(slope) / 100,
            "correlation": float(np.corrcoef(x, y)[0, 1]),
        }
    return {"rows": rows, "lines": lines}


def still(
    network: str = "mobilenet_v2",
    size: tuple[int, int] = FULL_HD,
    *,
    settings: Settings = DEFAULTS,
    tell: Tell = lambda line: None,
) -> list[dict[str, Any]]:
    """A still frame, again and again: what is left of the cost when nothing changes."""
    module = made(network, size)
    shape = (1, 3, *size)
    plan = sparsetime.compile(module, torch.zeros(shape), codec=settings.codec, steps=1e-3)
    frames = there_and_back(shape, "elements", 0.0)
    arena = _Arena(module, frames, settings)
    rows: list[dict[str, Any]] = []
    for threads in settings.threads:
        row: dict[str, Any] = {"network": network, "size": list(size), "state_bytes": plan.state_bytes}
        row |= arena.race(plan, frames, threads)
        row["share_of_dense"] = row["time_ms"][OURS]["median"] / row["time_ms"][row["fastest"]]["median"]
        rows.append(row)
        tell(f"{network} at {size[0]}x{size[1]}, still, {threads} threads: {row['share_of_dense']:.2%} of dense")
    return rows


def start(network: str = "mobilenet_v2") -> dict[str, float]:
    """Seconds to compile a network to a plan, and to load the plan."""
    import tempfile

    module = networks.create(network).eval()
    frame = torch.randn(1, 3, *module.spec.input_size)
    begin = time.perf_counter()
    plan = sparsetime.compile(module, frame, codec=DEFAULTS.codec)
    compiled = time.perf_counter() - begin
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.plan"
        plan.save(file)
        begin = time.perf_counter()
        Plan.load(file)
        return {"compile_s": compiled, "load_s": time.perf_counter() - begin}


def clips(
    plan: Plan,
    module: nn.Module,
    videos: Sequence[Path],
    *,
    frames: int = 64,
    settings: Settings = DEFAULTS,
    tell: Tell = lambda line: None,
) -> list[dict[str, Any]]:
    """A given plan on real clips, one row per clip and number of threads. Decoded beforehand.

    The clip is shown forwards and backwards, so that it has no cut.

    Args:
        plan: the network on deltas.
        module: the same network, dense; a sparse one from `sparsify` gives its plain self.
        videos: files.
        frames: of each clip, at most, after the first.
        settings: see `Settings`.
        tell: called with a line per row.
    """
    from sparsetime.engine.frames import FrameReader
    from sparsetime.video import iter_frames

    module = _plain(module)
    height, width = plan.input_shape[2:]
    read = FrameReader(plan)  # normalises
    rows: list[dict[str, Any]] = []
    arena: _Arena | None = None
    for video in videos:
        shots = [
            read(shot) for shot, _ in zip(iter_frames(video, size=(height, width)), range(frames + 1), strict=False)
        ]
        there_and_back = shots + shots[-2:0:-1]
        arena = arena or _Arena(module, shots[:8], settings, LIMITS)
        for threads in settings.threads:
            row = {"network": plan.name, "clip": video.name, "frames": len(shots)}
            row |= arena.race(plan, there_and_back, threads)
            rows.append(row)
            tell(_line(row))
    return rows


def _line(row: Mapping[str, Any]) -> str:
    ours, dense = row["time_ms"][OURS]["median"], row["time_ms"][row["fastest"]]["median"]
    what = row.get("clip") or f"{row['codec']}, {row['pattern']} {row['density']:.0%}"
    return (
        f"{row['network']}, {what}, {row['precision']}, {row['threads']} threads: {ours:.2f} ms, "
        f"{row['fastest']} {dense:.2f} ms, {row['speedup']['median']:.2f}x "
        f"at an operation density of {row['op_density']:.3f}"
    )


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of `controlled` or `clips` as a Markdown table; a figure below its target is followed by the target."""
    lines = [
        "| network | input | precision | threads | operations | time, ms | fastest dense | time, ms | "
        "speed-up (quartiles) | first frame |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        speedup, target = row["speedup"], row.get("target") or 0.0
        what = row.get("clip") or f"{row['codec']}, {row['pattern']}, {row['density']:.0%}"
        figure = f"{speedup['median']:.2f}x" + (f" (of {target:g}x)" if speedup["median"] < target else "")
        cells = [
            row["network"],
            what,
            row["precision"],
            row["threads"],
            f"{row['op_density']:.3f}",
            f"{row['time_ms'][OURS]['median']:.2f}",
            row["fastest"],
            f"{row['time_ms'][row['fastest']]['median']:.2f}",
            f"{figure} ({speedup['low']:.2f}-{speedup['high']:.2f})",
            f"{row['speedup_first_frame']['median']:.2f}x",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)
