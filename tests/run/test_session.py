"""Figures of a run, and the two controls beside them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_plan import tiny
from torch import nn
from typer.testing import CliRunner

import sparsetime
from sparsetime.cli import app
from sparsetime.engine import OpStats, Plan, PlanError
from sparsetime.networks import create
from sparsetime.run import run_file
from sparsetime.run.session import Skipping, Tally

from .conftest import moving_square, small_network


def stats(macs: int, *, dense: bool = False) -> dict[str, OpStats]:
    """Of `tiny`'s input and convolution."""
    conv = (40, 18, macs, macs // 2, 5_000_000, "dense") if dense else (4, 3, macs, macs // 2, 1_000_000, "sparse")
    return {"input": OpStats(40, 4, 0, 0, 2_000_000, "sparse"), "conv": OpStats(*conv)}


def test_figures_leave_the_first_frame_out() -> None:
    plan = tiny()
    full = plan.dense_macs
    half = full // 2
    tally = Tally(plan)
    tally.add(stats(full, dense=True), 9_000_000, 8_000_000, flushed=True)
    tally.add(stats(full // 2), 2_000_000, 8_000_000, flushed=False)
    tally.add(stats(0), 4_000_000, 16_000_000, flushed=False)
    tally.add(stats(full, dense=True), 6_000_000, 6_000_000, flushed=False)
    figures = tally.summary()
    assert figures["frames"] == 4
    assert figures["fps"] == pytest.approx(3 / 0.012)
    assert figures["fps_dense"] == pytest.approx(3 / 0.030)
    assert figures["speedup"] == pytest.approx(2.5)
    assert figures["speedup_median"] == 4
    assert figures["time_ms"] == {"first": 9, "median": 4, "p95": pytest.approx(5.8)}
    assert figures["op_density"] == pytest.approx(1.5 / 3)
    assert figures["op_density_with_first_frame"] == pytest.approx(2.5 / 4)
    assert figures["effective_density"] == pytest.approx((half // 2 + half) / (3 * full))
    conv = tally.layers()[1]
    assert conv["name"] == "conv"
    assert (conv["macs"], conv["effective_macs"]) == (pytest.approx(full / 2), pytest.approx((half // 2 + half) / 3))
    assert (conv["op_density"], conv["effective_density"]) == (
        pytest.approx(0.5),
        pytest.approx((half // 2 + half) / (3 * full)),
    )
    assert conv["events_in"] == pytest.approx(48 / 3)
    assert conv["delta_density"] == pytest.approx(24 / 3 / 18)
    assert conv["time_ms"] == pytest.approx(7 / 3)
    assert conv["dense_path"] == pytest.approx(1 / 3)
    assert tally.last_density == 1


def test_figures_of_nothing_and_of_one_frame() -> None:
    tally = Tally(tiny())
    nothing = tally.summary()
    assert (nothing["frames"], nothing["fps"], nothing["op_density"], nothing["time_ms"]) == (0, None, None, None)
    tally.add(stats(tiny().dense_macs, dense=True), 5_000_000, 0, flushed=True)
    one = tally.summary()
    assert (one["fps"], one["fps_dense"], one["op_density"]) == (200, None, None)
    assert one["op_density_with_first_frame"] == 1
    json.dumps([nothing, one, tally.layers()], allow_nan=False)
    means = ("effective_macs", "op_density", "events_in", "events", "delta_density", "time_ms", "dense_path")
    assert {layer[key] for layer in tally.layers() for key in means} == {None}


def test_a_first_frame_that_was_no_flush_counts() -> None:
    full = tiny().dense_macs
    tally = Tally(tiny())
    tally.add(stats(full // 2), 2_000_000, 8_000_000, flushed=False)
    tally.add(stats(full, dense=True), 6_000_000, 8_000_000, flushed=True)
    figures = tally.summary()
    assert figures["op_density"] == figures["op_density_with_first_frame"] == pytest.approx(0.75)
    assert figures["fps"] == pytest.approx(2 / 0.008)
    assert figures["speedup_median"] == pytest.approx((4 + 8 / 6) / 2)
    assert figures["time_ms"] == {"first": 2, "median": 4, "p95": pytest.approx(5.8)}
    assert tally.layers()[1]["op_density"] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("time_ns", "dense_ns", "computed"),
    [
        (1, 4, [3, 7, 11]),  # every fourth
        (2, 4, [1, 3, 5, 7, 9, 11]),
        (3, 2, list(range(12))),  # a stream slower than dense: every frame
        (0, 4, []),
    ],
)
def test_frame_skipping_takes_the_time_of_the_stream(time_ns: int, dense_ns: int, computed: list[int]) -> None:
    skipping = Skipping()
    assert [t for t in range(12) if skipping.computes(time_ns, dense_ns)] == computed
    assert skipping.every == (12 / len(computed) if computed else None)


def test_frame_skipping_between_whole_numbers() -> None:
    skipping = Skipping()
    for _ in range(1000):
        skipping.computes(10, 25)
    assert skipping.every == pytest.approx(2.5)
    assert skipping.time_share == pytest.approx(1)


def test_a_run(small_plan: Path, square: Path) -> None:
    seen: list[tuple[int, int, float]] = []
    result = run_file(small_plan, str(square), compare=True, progress=lambda *frame: seen.append(frame))
    json.dumps(result, allow_nan=False)
    assert (result["frames"], result["stopped"], result["damage"]) == (10, False, [])
    assert result["input_size"] == [24, 32]
    assert result["codecs"] == ["hold"]
    assert 0 < result["op_density"] < result["op_density_with_first_frame"] < 1
    assert result["state_bytes"] == Plan.load(small_plan).state_bytes
    assert result["task"] == "classification"
    for key in ("quality", "quality_frozen", "quality_frame_skipping"):
        assert result[key]["frames"] == 9
        assert {"argmax_agreement", "total_variation", "relative_error"} <= set(result[key])
    assert result["quality"]["relative_error"] < result["quality_frozen"]["relative_error"]
    assert [layer["name"] for layer in result["layers"]] == [op.name for op in Plan.load(small_plan).ops]
    for macs, density in (("macs", "op_density"), ("effective_macs", "effective_density")):
        total = sum(layer[macs] for layer in result["layers"])
        assert total == pytest.approx(result[density] * result["dense_macs"])
    assert len(seen) == 10
    assert all(time_ns > 0 and dense_ns > 0 for time_ns, dense_ns, _ in seen)
    assert np.mean([density for *_, density in seen[1:]]) == pytest.approx(result["op_density"])


def test_answers_that_are_not_finite_are_counted(tmp_path: Path, square: Path) -> None:
    class Root(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (200 - x[:, :1, 8:9, 20:21]).sqrt()  # three times the square, which is brighter, is there

    path, file = tmp_path / "root.plan", tmp_path / "run.json"
    frame = torch.from_numpy(moving_square(1)).permute(0, 3, 1, 2).float()
    sparsetime.compile(Root(), frame, codec="hold", steps=0.0).save(path)
    said = CliRunner().invoke(app, ["run", str(path), str(square), "--compare", "dense", "--json", str(file)])
    result = json.loads(file.read_text())
    assert (said.exit_code, result["frames"], result["frames_not_finite"]) == (0, 10, 3)
    assert result["quality"]["relative_error"] is None
    assert "warning: the answers to 3 of 10 frames hold NaN or infinity" in said.stderr


def test_without_a_comparison_its_keys_are_there(small_plan: Path, square: Path) -> None:
    result = run_file(small_plan, str(square), frames=3)
    assert result["frames"] == 3
    for key in ("fps_dense", "dense_runtime", "quality", "quality_frozen", "quality_frame_skipping"):
        assert result[key] is None


def test_no_threshold_no_distance(tmp_path: Path, square: Path) -> None:
    frame = torch.zeros(1, 3, 24, 32)
    sparsetime.compile(small_network(), frame, steps=0.0, codec="hold").save(tmp_path / "p.plan")
    quality = run_file(tmp_path / "p.plan", str(square), compare=True)["quality"]
    assert quality["argmax_agreement"] == 1
    assert quality["relative_error"] < 1e-5


def test_a_flush_at_every_change_is_the_dense_network(small_plan: Path, square: Path) -> None:
    never, always = (run_file(small_plan, str(square), compare=True, flush=x) for x in (0, 1e-9))
    assert always["quality"]["relative_error"] < never["quality"]["relative_error"]
    assert always["op_density"] > never["op_density"]
    assert run_file(small_plan, str(square), frames=2)["flush"] == 1  # where nothing is said


def test_a_codec_that_keeps_nothing_back_is_not_flushed(tmp_path: Path, square: Path) -> None:
    sparsetime.compile(small_network(), torch.zeros(1, 3, 24, 32), steps=0.5, codec="exact").save(tmp_path / "p.plan")
    assert run_file(tmp_path / "p.plan", str(square), frames=2)["flush"] == 0


def test_it_ends_when_told(small_plan: Path, square: Path) -> None:
    done: list[float] = []
    result = run_file(
        small_plan, str(square), compare=True, progress=lambda *frame: done.append(1), stop=lambda: len(done) >= 4
    )
    assert (result["frames"], result["stopped"], result["quality"]["frames"]) == (4, True, 3)


def test_a_video_that_came_to_its_end_was_not_stopped(small_plan: Path, square: Path) -> None:
    done: list[float] = []
    result = run_file(small_plan, str(square), progress=lambda *_: done.append(1), stop=lambda: len(done) == 10)
    assert (result["frames"], result["stopped"]) == (10, False)


def test_a_plan_that_takes_no_pictures(tmp_path: Path, square: Path) -> None:
    tiny().save(tmp_path / "p.plan")
    with pytest.raises(PlanError, match=r"takes frames of shape \(1, 2, 4, 5\); videos have three channels"):
        run_file(tmp_path / "p.plan", str(square))


@pytest.mark.data
def test_a_pretrained_network_on_real_video(shared_data: Path, tmp_path: Path) -> None:
    """People on a still square: fewer operations, nearer to dense than the first answer for ever."""
    weights = shared_data / "weights/imagenet/mobilenet_v1_0.25_128_quant.npz"
    network = create("mobilenet_v1_025", weights=weights).eval()
    video = shared_data / "static_videos/pedestrians_vtest.avi"
    from sparsetime.video import read_frames

    frames = torch.from_numpy(read_frames(video, size=(128, 128), stop=4)).permute(0, 3, 1, 2)
    plan = sparsetime.compile(network, network.spec.normalise(frames[:1]), steps=frames, codec="hold")
    plan.save(tmp_path / "p.plan")
    result = run_file(tmp_path / "p.plan", str(video), compare=True, frames=12)
    assert result["frames"] == 12
    assert result["op_density"] < 0.7
    assert 0 < result["quality"]["relative_error"] < result["quality_frozen"]["relative_error"]
    assert result["network"] == "mobilenet_v1_025"
