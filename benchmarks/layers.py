"""What one layer step costs on deltas, against the fastest dense convolution: the table of docs/results.md.

    python benchmarks/layers.py --json layers.json [--layers 3x3] [--patterns clustered elements] [--rounds 15]

A step is everything between two lists of events: the input's events arrive as the layer before left them; sums,
accumulators, ReLU, `hold` codec, value and the output's events are inside the time. Thresholds are set so that the
output is as dense as the input. What is left for the next layer is what it would take on the same path: events, rows of
deltas, or on the dense path the value. Dense opponents are convolutions alone. Methods take turns within a round; a
ratio is taken within its round, and the median over rounds is printed, with the best times beside it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from sparsetime import _native


class Shape(NamedTuple):
    """A convolution: input size, channels, kernel and stride."""

    height: int
    width: int
    channels: int
    out: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1


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
PATTERNS = ("clustered", "pixels", "elements")
DENSITIES = (1.0, 0.25, 0.1, 0.05, 0.02)


def delta(shape: Shape, pattern: str, density: float, rng: np.random.Generator) -> np.ndarray:
    """(H, W, C): `clustered` is one square of pixels, `pixels` single ones, `elements` single values."""
    h, w, c = shape.height, shape.width, shape.channels
    d = rng.uniform(0.5, 1.0, (h, w, c)).astype(np.float32) * rng.choice(np.float32([-1, 1]), (h, w, c))
    if pattern == "elements":
        return d * (rng.random((h, w, c)) < density)
    if pattern == "pixels":
        return d * (rng.random((h, w, 1)) < density)
    side_y, side_x = max(1, round(h * density**0.5)), max(1, round(w * density**0.5))
    y, x = (h - side_y) // 3, (w - side_x) // 2
    block = np.zeros((h, w, 1), np.float32)
    block[y : y + side_y, x : x + side_x] = 1
    return d * block


def opponents(shape: Shape, weight: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Dense convolutions by name."""
    x = torch.randn(1, shape.channels, shape.height, shape.width).to(memory_format=torch.channels_last)
    w = torch.from_numpy(weight).to(memory_format=torch.channels_last)
    padding, stride = [shape.kernel // 2] * 2, [shape.stride] * 2
    calls: dict[str, Callable[[], Any]] = {
        "torch channels-last": lambda: F.conv2d(x, w, None, stride, padding, 1, shape.groups)
    }
    if torch.backends.mkldnn.is_available():
        packed = torch._C._nn.mkldnn_reorder_conv2d_weight(
            w.to_mkldnn(), padding, stride, [1, 1], shape.groups, list(x.shape)
        )
        calls["torch prepacked"] = lambda: torch.ops.mkldnn._convolution_pointwise(
            x, packed, None, padding, stride, [1, 1], shape.groups, "none", [], ""
        )
    return calls


def layer(shape: Shape, weight: np.ndarray, bias: np.ndarray, **codec: Any) -> _native.Layer:
    """The layer on deltas, with ReLU."""
    return _native.Layer(
        (shape.height, shape.width),
        weight,
        bias,
        stride=(shape.stride,) * 2,
        padding=(shape.kernel // 2,) * 4,
        groups=shape.groups,
        activation="clamp",
        a=0.0,
        b=float("inf"),
        **codec,
    )


def measure(shape: Shape, pattern: str, density: float, rounds: int) -> dict[str, Any]:
    """Median times in ms by method, and of each path's ratio to the fastest opponent of its round."""
    rng = np.random.default_rng(1)
    fan_in = shape.kernel**2 * shape.channels // shape.groups
    weight = (
        rng.normal(size=(shape.out, shape.channels // shape.groups, shape.kernel, shape.kernel)) / fan_in**0.5
    ).astype(np.float32)
    bias = rng.normal(size=shape.out).astype(np.float32) * 0.1
    base = rng.random((shape.height, shape.width, shape.channels)).astype(np.float32)
    change = delta(shape, pattern, density, rng)

    probe = layer(shape, weight, bias, codec="change")
    for d in (base, change):
        probe.set_input(d)
        probe.run("dense")
    moved = np.abs(probe.delta())
    threshold = float(np.quantile(moved, 1 - density))
    tested = layer(shape, weight, bias, codec="hold", step=np.full(shape.out, threshold, np.float32))
    tested.set_input(base)
    tested.run("dense")

    depthwise = shape.groups > 1
    paths = ["dense", "pixels"] + ([] if depthwise else ["elements"])
    dense = opponents(shape, weight)
    times: dict[str, list[float]] = {name: [] for name in (*dense, *paths)}
    sign = 1.0
    for _ in range(rounds):
        for name, call in dense.items():
            call()
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
        for path in paths:
            for repeat in range(2):  # the first warms the caches, as the opponents' first call does
                tested.set_input(change * np.float32(sign))
                sign = -sign
                start = time.perf_counter()
                tested.run(path, rows=path == "pixels", events=path == "elements")
                if repeat:
                    times[path].append(time.perf_counter() - start)
    tested.set_input(change * np.float32(sign))
    tested.run("dense")
    output_density = float((tested.delta() != 0).mean())
    best = [min(times[name][r] for name in dense) for r in range(rounds)]
    ratios = {path: statistics.median(b / t for b, t in zip(best, times[path], strict=True)) for path in paths}
    return {
        "pattern": pattern,
        "density": density,
        "output_density": output_density,
        "macs_share": tested.macs / tested.dense_macs,
        "time_ms": {name: 1e3 * statistics.median(t) for name, t in times.items()},
        "best_ms": {name: 1e3 * min(t) for name, t in times.items()},
        "ratio": ratios,
        "speedup": max(ratios.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--layers", nargs="*", default=[], help="parts of names")
    parser.add_argument("--patterns", nargs="*", default=list(PATTERNS))
    parser.add_argument("--densities", nargs="*", type=float, default=list(DENSITIES))
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    table: dict[str, Any] = {}
    for name, shape in LAYERS.items():
        if options.layers and not any(part in name for part in options.layers):
            continue
        for pattern in options.patterns:
            for density in options.densities:
                row = measure(shape, pattern, density, options.rounds)
                table.setdefault(name, []).append(row)
                dense_ms = min(v for k, v in row["best_ms"].items() if k.startswith("torch"))
                paths = " ".join(f"{p} {r:.2f}x {row['best_ms'][p]:.3f}" for p, r in row["ratio"].items())
                print(f"{name:18s} {pattern:10s} {density:5.0%} dense {dense_ms:.3f} ms | {paths}", flush=True)
    if options.json:
        machine = {"machine": platform.machine(), "torch": torch.__version__, "isa": _native.isa()}
        options.json.write_text(json.dumps({"machine": machine, "layers": table}, indent=1))


if __name__ == "__main__":
    main()
