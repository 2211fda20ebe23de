"""The layer benchmark on a tiny layer: what it counts, and what it refuses."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from sparsetime.bench import layers
from sparsetime.bench.layers import Shape
from sparsetime.bench.patterns import there_and_back


def test_the_table_is_complete() -> None:
    assert len(layers.LAYERS) == 16
    for name, shape in layers.LAYERS.items():
        assert shape.group == ("stem" if "stem" in name else "depthwise" if "depthwise" in name else "full")
        size = name.rsplit("@", 1)[1]
        assert shape.height == int(size.rstrip("p"))
        assert shape.map[2:] == (
            (shape.height, shape.width) if shape.stride == 1 else (shape.height // 2, shape.width // 2)
        )
    assert set(layers.TARGETS) == set(layers.DENSITIES)


@pytest.mark.parametrize("shape", [Shape(12, 12, 16, 16, 3, 1, 16), Shape(20, 24, 3, 16, 7, 2)])
def test_measure(shape: Shape) -> None:
    for package in ("onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package, reason="needs the extra bench")
    told: list[object] = []
    rows = layers.measure(shape, densities=(0.1,), rounds=1, tell=told.append)
    assert told == rows
    assert [(r["pattern"], r["density"]) for r in rows] == [(p, d) for p in layers.PATTERNS for d in (0.1,)]
    for row in rows:
        assert row["input_density"] == pytest.approx(row["density"], rel=0.3)
        assert row["output_density"] <= row["density"] * 1.3
        assert row["fastest"] in row["time_ms"]
        assert row["fastest"] != "sparsetime"
        assert row["speedup"]["low"] <= row["speedup"]["median"] <= row["speedup"]["high"]
        assert all(0 < q["median"] < 1000 for q in row["time_ms"].values())
        assert ("search_ms" in row) == (shape.group == "stem")
    json.dumps(rows, allow_nan=False)


def test_the_reader_is_not_counted_and_the_layer_is() -> None:
    shape = Shape(12, 12, 16, 32)
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 32, 3, 1, 1).requires_grad_(False)
    frames = there_and_back(shape.frame, "elements", 0.1)
    plan = layers.layer_plan(shape, conv, 0.0)
    step, stream = layers._step(plan, frames, 1, False)
    seconds = step()
    assert seconds == pytest.approx(1e-9 * stream.stats["layer"].time_ns)


def test_empty_calls_are_taken_off() -> None:
    times = {"sparsetime": [1.0, 2.0], "dense": [5.0, 3.0, 1.5], "dense, empty call": [1.0, 1.0, 9.0]}
    left, calls = layers._without_calls(times)
    assert left == {"sparsetime": [1.0, 2.0], "dense": [4.0, 2.0, 0.75]}
    assert calls == {"dense": 1.0}


def test_threshold_lets_the_share_through() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 32, 3, 1, 1).requires_grad_(False)
    frames = there_and_back((1, 16, 12, 12), "elements", 0.2)
    threshold = layers._threshold(conv, frames, 0.2)
    maps = [conv(torch.from_numpy(f)).relu().numpy() for f in frames[:2]]
    assert (np.abs(maps[1] - maps[0]) > threshold).mean() == pytest.approx(0.2, abs=0.001)


def _rows(density: float, pattern: str, speedup: float) -> list[dict[str, object]]:
    return [{"threads": 1, "density": density, "pattern": pattern, "speedup": {"median": speedup}}]


def test_summary_and_table() -> None:
    found = {
        "3x3 64@112": _rows(0.1, "elements", 2.0),
        "3x3 64@56": _rows(0.1, "elements", 8.0),
        "depthwise 384@14": _rows(0.1, "elements", 0.5),
    }
    (entry,) = layers.summary(found)
    assert entry["others"] == {"mean": pytest.approx(math.sqrt(2 * 8)), "slowest": "3x3 64@112", "least": 2.0}
    assert entry["depthwise"]["mean"] == pytest.approx(0.5)
    last = layers.table([entry]).splitlines()[-1]
    assert last == (
        "| 1 | elements | 10% | 4.00x (of 5x) | 2.00x (of 3x) (3x3 64@112) | 0.50x | 0.50x (depthwise 384@14) |"
    )
