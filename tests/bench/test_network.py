"""Whole networks: densities are what they are said to be, and the table says so."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import sparsetime
from sparsetime.bench import network
from sparsetime.bench.density import op_density, run_clip, with_density, with_thresholds
from sparsetime.bench.patterns import Pattern, there_and_back
from sparsetime.engine import Plan
from sparsetime.video.writer import write_video

SIZE = (32, 32)
SHAPE = (1, 3, *SIZE)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return sparsetime.compile(network.made("small_cnn", SIZE), torch.zeros(SHAPE), codec="hold", steps=1.0)


@pytest.fixture(scope="module")
def clip() -> torch.Tensor:
    return torch.from_numpy(np.concatenate(there_and_back(SHAPE, "elements", 1.0)[:4]))


@pytest.mark.parametrize("pattern", ["elements", "clustered"])
@pytest.mark.parametrize("wanted", [0.2, 0.05])
def test_density_is_brought_about_and_stays(plan: Plan, pattern: Pattern, wanted: float) -> None:
    frames = there_and_back(SHAPE, pattern, wanted * 1.5 if pattern == "clustered" else wanted)
    prepared = with_density(plan, frames, wanted)
    stream = prepared.stream()
    run_clip(stream, frames)
    for _ in range(10):
        assert op_density(prepared, run_clip(stream, frames)) == pytest.approx(wanted, rel=0.15)


def test_pixels_of_int8_plans_come_in_the_wanted_density(clip: torch.Tensor) -> None:
    module = network.made("small_cnn", SIZE)
    plan = sparsetime.compile(module, clip[:1], codec="pixel", steps=clip, precision="int8")
    frames = there_and_back(SHAPE, "elements", 0.2)
    prepared = with_density(plan, frames, 0.2)
    stream = prepared.stream()
    run_clip(stream, frames)
    # Thresholds are whole numbers of squares of codes, and the last layers have few pixels.
    assert op_density(prepared, run_clip(stream, frames)) == pytest.approx(0.2, rel=0.3)


def test_thresholds_of_int8_pixels_by_hand(clip: torch.Tensor) -> None:
    plan = sparsetime.compile(network.made("small_cnn", SIZE), clip[:1], codec="pixel", steps=clip, precision="int8")
    first = plan.ops[0]
    assert first.codec is not None
    changed = with_thresholds(plan, {first.name: 1.5})
    assert changed.tensors[first.codec["threshold"]].tolist() == [round(3 * 1.5**2)]  # three channels
    huge = with_thresholds(plan, {first.name: 1e9})
    assert huge.tensors[first.codec["threshold"]].tolist() == [3 * 255**2]


def test_density_one_holds_nothing_back(plan: Plan) -> None:
    prepared = with_density(plan, there_and_back(SHAPE, "elements", 1.0), 1.0)
    assert all(float(prepared.step(op).max()) == 0 for op in prepared.ops if op.codec is not None)  # type: ignore[union-attr]


def test_op_density_by_hand(plan: Plan) -> None:
    """All inputs of one layer changed, all others' not: its share of the operations."""
    coded = [op.name for op in plan.ops if op.codec is not None]
    closed = with_thresholds(plan, dict.fromkeys(coded[1:], 1e6) | {coded[0]: 0.0})
    frames = there_and_back(SHAPE, "elements", 1.0)
    stream = closed.stream()
    stream(frames[0])
    first = next(op for op in closed.ops if closed.op_macs(op))
    assert op_density(closed, run_clip(stream, frames[1:])) == pytest.approx(closed.op_macs(first) / closed.dense_macs)
    assert op_density(closed, run_clip(stream, [frames[-1]])) == 0


def test_controlled() -> None:
    for package in ("onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package, reason="needs the extra bench")
    case = network.Case("small_cnn", SIZE, {0.1: 1e6})
    settings = network.Settings((1,), compiled=False, rounds=2, repeats=1)
    told: list[str] = []
    rows = network.controlled(case, densities=(0.1,), settings=settings, tell=told.append)
    assert [row["pattern"] for row in rows] == ["elements", "clustered"]
    for row in rows:
        assert row["op_density"] == pytest.approx(0.1, rel=0.2)
        assert {name.split()[0] for name in row["time_ms"]} == {"sparsetime", "PyTorch", "ONNX", "OpenVINO"}
        assert "input" in row["profile"]
    assert len(told) == 2
    json.dumps(rows, allow_nan=False)
    assert "of 1e+06x" in network.table(rows)


def test_controlled_in_int8() -> None:
    """A stream of int8 against runtimes of int8, at a density that thresholds of whole codes give."""
    for package in ("onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package, reason="needs the extra bench")
    case = network.Case("small_cnn", SIZE, {}, {0.1: 1e6})
    settings = network.Settings((1,), ("int8",), compiled=False, rounds=2, repeats=1)
    (row,) = network.controlled(case, patterns=("elements",), densities=(0.1,), settings=settings)
    assert row["precision"] == "int8"
    assert row["op_density"] == pytest.approx(0.1, rel=0.2)
    assert {name.split()[0] for name in row["time_ms"]} == {"sparsetime", "ONNX", "OpenVINO"}
    assert row["fastest"].endswith("int8")
    assert row["distance"] == 0
    assert "| int8 | 1 |" in network.table([row])


def test_still_and_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package, reason="needs the extra bench")
    settings = network.Settings((1,), compiled=False, rounds=1, repeats=1)
    (row,) = network.still("small_cnn", SIZE, settings=settings)
    assert row["op_density"] == 0
    assert row["share_of_dense"] > 0
    monkeypatch.setattr(network, "AREAS", (0.0, 0.1, 0.2))
    found = network.growth(network.Case("small_cnn", SIZE, {}), settings=settings)
    assert [row["area"] for row in found["rows"]] == [0.0, 0.1, 0.2]
    assert found["rows"][0]["op_density"] == 0 < found["rows"][1]["op_density"] < found["rows"][2]["op_density"]
    assert set(found["lines"]["1"]) == {"ms_at_0", "ms_per_percent", "correlation"}


def test_clips(plan: Plan, tmp_path: Path) -> None:
    for package in ("av", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package, reason="needs the extras bench and video")
    frames = np.random.default_rng(0).integers(0, 255, (6, 40, 40, 3), dtype=np.uint8)
    write_video(tmp_path / "noise.mkv", frames)
    settings = network.Settings((1,), compiled=False, rounds=1, repeats=1)
    (row,) = network.clips(plan, network.made("small_cnn", SIZE), [tmp_path / "noise.mkv"], frames=4, settings=settings)
    assert (row["clip"], row["frames"]) == ("noise.mkv", 5)
    assert "| small_cnn | noise.mkv | float32 | 1 |" in network.table([row])
