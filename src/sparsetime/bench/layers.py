"""What one layer costs on deltas, against the fastest dense convolution.

The layer (convolution, ReLU, `hold` codec) is the second operation of a plan that a stream runs: the plan's input sends
exactly the change that a pattern says, and a further layer reads the result, so that events are built in the form that
it wants. Counted is what the stream says that the layer took: finding what is touched, choosing a path, sums,
accumulators, ReLU, codec, values and the events for the next layer. Its threshold is such that as much is sent as came
in. A stem's events come from a camera frame, so there the search of the frame for changes is counted too.

Dense opponents only convolve, and the time that the same runtime takes for a convolution of a single number is taken
off theirs: a call from Python costs as much as a small layer, and the stream's figure has none of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import cycle
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sparsetime.bench.patterns import Pattern, there_and_back
from sparsetime.bench.timing import Clock, Step, fastest, quartiles, ratio, take_turns
from sparsetime.bench.verify import verify
from sparsetime.engine import Op, Plan
from sparsetime.run.runtimes import Network, Opponent, Precision, check, prepacked

__all__ = ["DENSITIES", "LAYERS", "PATTERNS", "TARGETS", "Shape", "layer_plan", "line", "measure", "summary", "table"]

Array = NDArray[Any]


class Shape(NamedTuple):
    """A convolution: its input, channels out, kernel, stride and groups; padded by half the kernel."""

    height: int
    width: int
    channels: int
    out: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1

    @property
    def frame(self) -> tuple[int, int, int, int]:
        return 1, self.channels, self.height, self.width

    @property
    def map(self) -> tuple[int, int, int, int]:
        """Shape of the output."""
        rows, columns = ((n + 2 * (self.kernel // 2) - self.kernel) // self.stride + 1 for n in self.frame[2:])
        return 1, self.out, rows, columns

    @property
    def group(self) -> str:
        """`stem`, `depthwise` or `full`."""
        return "stem" if self.channels <= 4 else "depthwise" if self.groups > 1 else "full"


LAYERS = {
    "3x3 64@112": Shape(112, 112, 64, 64),
    "3x3 64@56": Shape(56, 56, 64, 64),
    "3x3 128@56": Shape(56, 56, 128, 128),
    "3x3 128@28": Shape(28, 28, 128, 128),
    "3x3 256@28": Shape(28, 28, 256, 256),
    "3x3 256@14": Shape(14, 14, 256, 256),
    "3x3 512@14": Shape(14, 14, 512, 512),
    "3x3 512@7": Shape(7, 7, 512, 512),
    "1x1 64-256@56": Shape(56, 56, 64, 256, 1),
    "1x1 256-64@56": Shape(56, 56, 256, 64, 1),
    "1x1 1024-256@14": Shape(14, 14, 1024, 256, 1),
    "depthwise 96@112": Shape(112, 112, 96, 96, 3, 1, 96),
    "depthwise 144@56": Shape(56, 56, 144, 144, 3, 1, 144),
    "depthwise 384@14": Shape(14, 14, 384, 384, 3, 1, 384),
    "stem 3-64@224": Shape(224, 224, 3, 64, 7, 2),
    "stem 3-64@1080p": Shape(1080, 1920, 3, 64, 7, 2),
}

PATTERNS: tuple[Pattern, ...] = ("clustered", "pixels", "elements")
DENSITIES = (1.0, 0.25, 0.1, 0.05, 0.02)

TARGETS = {1.0: (0.95, 0.95, 0.90), 0.25: (2.2, 1.8, 1.2), 0.1: (5, 5, 3), 0.05: (9, 9, 5), 0.02: (16, 16, 8)}
"""By density: geometric mean of clustered pixels, geometric mean of scattered elements, no layer of these below."""

OURS = "sparsetime"
_EMPTY = ", empty call"


def layer_plan(shape: Shape, conv: nn.Conv2d, threshold: float) -> Plan:
    """input -> the layer -> a reader of its result -> global mean (so that little is copied out)."""
    after = shape.channels if shape.group == "full" else max(16, shape.out // 6)
    kernel = shape.kernel if shape.group == "full" else 1
    _, _, rows, columns = shape.map
    reader = np.random.default_rng(0).standard_normal((after, shape.out, kernel, kernel)).astype(np.float32)
    assert conv.bias is not None

    def window(stride: int, k: int, groups: int) -> dict[str, Any]:
        return {"stride": [stride] * 2, "padding": [k // 2] * 4, "dilation": [1, 1], "groups": groups}

    ops = (
        Op("input", "input", (), (0,)),
        Op(
            "conv2d",
            "layer",
            (0,),
            (1,),
            window(shape.stride, shape.kernel, shape.groups),
            {"weight": "weight", "bias": "bias"},
            {"kind": "relu"},
            {"kind": "hold", "tensor": "threshold"},
        ),
        Op("conv2d", "reader", (1,), (2,), window(1, kernel, 1), {"weight": "reader"}),
        Op("avg_pool2d", "mean", (2,), (3,), {}, {"rows": "rows", "columns": "columns", "divisor": "area"}),
    )
    tensors = {
        "weight": conv.weight.detach().numpy().copy(),
        "bias": conv.bias.detach().numpy().copy(),
        "threshold": np.asarray([threshold], np.float32),
        "reader": reader,
        "rows": np.asarray([[0, rows]], np.int32),
        "columns": np.asarray([[0, columns]], np.int32),
        "area": np.asarray([[rows * columns]], np.float32),
    }
    values = (shape.frame, shape.map, (1, after, rows, columns), (1, after, 1, 1))
    return Plan("layer", values, ops, (3,), {"output": 0}, tensors)


def _threshold(conv: nn.Conv2d, frames: Sequence[Array], share: float) -> float:
    """The change that a share of the outputs exceeds."""
    if share >= 1:
        return 0.0
    with torch.inference_mode():
        maps = [conv(torch.from_numpy(frame)).relu() for frame in frames[:2]]
        return float(np.quantile((maps[1] - maps[0]).abs().numpy(), 1 - share))


def _step(plan: Plan, frames: Sequence[Array], threads: int, stem: bool) -> tuple[Step, Any]:
    """A step that runs a frame and gives the layer's seconds; and the stream."""
    stream = plan.stream(threads=threads)
    turns = cycle(frames)
    for _ in range(len(frames) + 1):
        stream(next(turns))

    def step() -> float:
        stream(next(turns))
        stats = stream.stats
        return 1e-9 * (stats["layer"].time_ns + (stats["input"].time_ns if stem else 0))

    return step, stream


def measure(
    shape: Shape,
    *,
    patterns: Sequence[Pattern] = PATTERNS,
    densities: Sequence[float] = DENSITIES,
    threads: int = 1,
    rounds: int = 15,
    clock: Clock = "wall",
    precisions: Sequence[Precision] = ("float32",),
    tell: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
    """One row per pattern and density: times in ms by method, and the speed-up over the fastest float32 opponent.

    Args:
        shape: the layer.
        patterns, densities: of the input's change.
        threads: of everybody.
        rounds: see `take_turns`.
        clock: of the opponents; the layer's time is the stream's own, which is wall time.
        precisions: of the opponents; only float32 counts for the speed-up.
        tell: called with every row when it is there.

    Raises:
        DisagreementError: an opponent or the layer is wrong.
    """
    torch.manual_seed(0)
    conv = nn.Conv2d(
        shape.channels, shape.out, shape.kernel, shape.stride, shape.kernel // 2, groups=shape.groups
    ).requires_grad_(False)
    example = there_and_back(shape.frame, "elements", 1.0)
    opponents = _opponents(conv, example, threads, tuple(precisions))
    dense: dict[str, Step] = {name: _call(opponent, example[0]) for name, opponent in opponents.items()}
    dense |= {f"{name}{_EMPTY}": step for name, step in _empty_calls(threads, tuple(precisions)).items()}
    rivals = [name for name, opponent in opponents.items() if opponent.precision == "float32"]
    torch.set_num_threads(threads)

    rows = []
    for pattern in patterns:
        for density in densities:
            frames = there_and_back(shape.frame, pattern, density)
            plan = layer_plan(shape, conv, _threshold(conv, frames, density))
            step, stream = _step(plan, frames, threads, shape.group == "stem")
            times = take_turns({OURS: step, **dense}, rounds=rounds, clock=clock, pause=0.005 if threads > 1 else 0.0)
            times, calls = _without_calls(times)
            best = fastest(times, rivals)
            stats = stream.stats
            row = {
                "pattern": pattern,
                "density": density,
                "threads": threads,
                "input_density": stats["input"].events / math.prod(shape.frame),
                "output_density": stats["layer"].events / math.prod(shape.map),
                "path": stats["layer"].path,
                "distance": verify(stream, frames[0]),
                "time_ms": {name: quartiles([1e3 * t for t in x]) for name, x in times.items()},
                "call_ms": {name: 1e3 * seconds for name, seconds in calls.items()},
                "fastest": best,
                "speedup": ratio(times, best, OURS),
            }
            if shape.group == "stem":
                row["search_ms"] = 1e-6 * stats["input"].time_ns
            rows.append(row)
            tell(row)
    return rows


def line(row: Mapping[str, Any]) -> str:
    """A row in words."""
    ours, dense = row["time_ms"][OURS]["median"], row["time_ms"][row["fastest"]]["median"]
    return (
        f"{row['pattern']} {row['density']:.0%}, {row['threads']} threads: {ours:.3f} ms ({row['path']}), "
        f"{row['fastest']} {dense:.3f} ms, {row['speedup']['median']:.2f}x"
    )


def _opponents(
    conv: nn.Conv2d, frames: Sequence[Array], threads: int, precisions: tuple[Precision, ...]
) -> dict[str, Opponent]:
    """All runtimes of one convolution, checked, by name."""
    network = Network(conv, frames)
    found = network.opponents(threads, precisions, compiled=False)
    found += [prepacked(conv, frames[0], p) for p in precisions if p != "int8"]
    for opponent in found:
        check(opponent, frames[0], network.expected)
    return {opponent.full_name: opponent for opponent in found}


@lru_cache
def _empty_calls(threads: int, precisions: tuple[Precision, ...]) -> dict[str, Step]:
    """What the same runtimes take when there is nothing to do: one channel, one pixel."""
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 1, 1).requires_grad_(False)
    frames = there_and_back((1, 1, 1, 1), "elements", 1.0)
    return {n: _call(o, frames[0]) for n, o in _opponents(conv, frames, threads, precisions).items()}


def _call(opponent: Opponent, frame: Array) -> Step:
    prepared = opponent.prepare(frame)

    def step() -> None:
        opponent.run(prepared)

    return step


def _without_calls(times: Mapping[str, Sequence[float]]) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Times less the empty calls of the same method, by name; and the medians of these."""
    calls = {name: median(times[name + _EMPTY]) for name in times if name + _EMPTY in times}
    kept = [name for name in times if not name.endswith(_EMPTY)]
    # Half of a time is left at least: where a call is nearly all of it, the difference is noise.
    return {name: [max(t - calls.get(name, 0.0), t / 2) for t in times[name]] for name in kept}, calls


def _mean(x: Sequence[float]) -> float:
    """Geometric mean."""
    return math.exp(sum(map(math.log, x)) / len(x))


def summary(layers: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """By threads, density and pattern: geometric mean and slowest layer, depthwise layers apart."""
    cells: dict[tuple[int, float, str], dict[str, dict[str, float]]] = {}
    for name, rows in layers.items():
        kind = "depthwise" if LAYERS[name].group == "depthwise" else "others"
        for row in rows:
            cell = cells.setdefault((row["threads"], row["density"], row["pattern"]), {})
            cell.setdefault(kind, {})[name] = row["speedup"]["median"]
    result = []
    for (threads, density, pattern), kinds in cells.items():
        entry: dict[str, Any] = {"threads": threads, "density": density, "pattern": pattern}
        for kind, found in kinds.items():
            slowest = min(found, key=found.__getitem__)
            entry[kind] = {"mean": _mean(list(found.values())), "slowest": slowest, "least": found[slowest]}
        result.append(entry)
    return sorted(result, key=lambda e: (e["threads"], e["pattern"], -e["density"]))


def table(summaries: Sequence[dict[str, Any]]) -> str:
    """The summary as a Markdown table; a figure below its target is followed by the target."""
    lines = [
        "| threads | pattern | density | mean | slowest layer | depthwise, mean | slowest |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for entry in summaries:
        wanted = TARGETS.get(entry["density"])
        mean_target = least_target = 0.0
        if wanted and entry["pattern"] != "pixels":
            mean_target = wanted[0] if entry["pattern"] == "clustered" else wanted[1]
            least_target = wanted[2] if entry["pattern"] == "elements" else 0.0
        cells = [str(entry["threads"]), entry["pattern"], f"{entry['density']:.0%}"]
        for kind in ("others", "depthwise"):
            found = entry.get(kind)
            if found is None:
                cells += ["", ""]
                continue
            targets = (mean_target, least_target) if kind == "others" else (0.0, 0.0)
            cells.append(_against(found["mean"], targets[0]))
            cells.append(f"{_against(found['least'], targets[1])} ({found['slowest']})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _against(figure: float, target: float) -> str:
    return f"{figure:.2f}x" if figure >= target else f"{figure:.2f}x (of {target:g}x)"
