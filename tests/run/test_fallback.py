"""When the stream is left for the dense network, and what comes out then."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from sparsetime.cli import app
from sparsetime.engine import Plan
from sparsetime.run import run_file
from sparsetime.run.dense import Dense, native_dense, pytorch_dense
from sparsetime.run.fallback import DEBT, LONGEST, PAUSE, FallbackStream, Schedule

from .conftest import moving_square


def played(schedule: Schedule, sparse: list[float], dense: float = 1.0) -> list[bool]:
    """Which frames were dense; sparse[k] is what a stream would take for frame k."""
    ways = []
    for time in sparse:
        ways.append(schedule.dense)
        schedule.took(dense if schedule.dense else time)
    return ways


def test_a_stream_that_is_faster_is_never_left() -> None:
    assert played(Schedule(1.0), [0.99] * 1000) == [False] * 1000


def test_one_slow_frame_changes_nothing() -> None:
    """A scene cut is one frame, whatever it takes: it counts as two dense ones at most."""
    assert not any(played(Schedule(1.0), [0.4] * 5 + [50.0] + [0.4] * 5))


def test_a_slow_stream_is_left_and_tried_again_ever_more_seldom() -> None:
    ways = played(Schedule(1.0), [1.5] * 700)
    tries = [k for k, dense in enumerate(ways) if not dense]
    # 0.5 a frame: three frames make 1.5. Pauses of 32, 64, 128, 256, 256.
    expected, at = [], 0
    for pause in (32, 64, 128, 256, 256):
        expected += [at, at + 1, at + 2]
        at += 3 + pause
    assert tries == [k for k in expected if k < 700]


def test_after_a_try_that_paid_the_next_comes_soon() -> None:
    schedule = Schedule(1.0)
    ways = played(schedule, [0.5] * 20 + [1.5] * 400)
    first = ways.index(True)
    pause = ways[first:].index(False)
    assert (first, pause) == (23, PAUSE)


@given(st.lists(st.floats(0.01, 20), min_size=1, max_size=400))
def test_the_loss_is_bounded_whatever_frames_take(sparse: list[float]) -> None:
    ways = played(Schedule(1.0), sparse)
    clipped = [1.0 if dense else min(time, 2.0) for dense, time in zip(ways, sparse, strict=True)]
    tries = 1 + sum(a and not b for a, b in itertools.pairwise(ways))
    # A try is left at a debt of DEBT, which the last frame overshoots by 1 at most.
    assert sum(clipped) <= len(sparse) + (DEBT + 1) * tries + 1e-6
    assert (tries - 1) * PAUSE <= len(sparse)
    assert (DEBT + 1) / LONGEST < 0.01


class Fixed(Schedule):
    """Dense where it is said to be."""

    def __init__(self, ways: list[bool]) -> None:
        super().__init__(1.0)
        self._ways = iter(ways)
        self._now = next(self._ways)

    @property
    def dense(self) -> bool:
        return self._now

    def took(self, time: float) -> None:
        assert time > 0
        self._now = next(self._ways, False)


def test_outputs_are_those_of_the_way_taken(small_plan: Path) -> None:
    plan = Plan.load(small_plan)
    frames = moving_square(7, 24, 32)
    ways = [False, False, True, True, False, False, False]
    stream = FallbackStream(plan, frames[0], dense=native_dense(plan, 1), schedule=Fixed(ways))
    plain = plan.stream()
    dense = native_dense(plan, 1)
    for k, frame in enumerate(frames):
        if k == 4:
            plain.reset()  # the state is from before the dense frames
        outputs = stream(frame)
        expected = dense.run(frame)[0] if ways[k] else plain(frame)
        np.testing.assert_array_equal(outputs, expected)
        assert stream.dense_frames == sum(ways[: k + 1])
        macs = sum(entry.macs for entry in stream.stats.values())
        assert (macs == plan.dense_macs) == (ways[k] or k in (0, 4)), k


@pytest.mark.parametrize("network", [native_dense, pytorch_dense])
def test_a_tensor_gives_tensors_whichever_way_is_taken(small_plan: Path, network: Callable[[Plan, int], Dense]) -> None:
    plan = Plan.load(small_plan)
    frames = moving_square(4, 24, 32)
    streams = [
        FallbackStream(plan, frames[0], dense=network(plan, 1), schedule=Fixed([False, True, True, False]))
        for _ in range(2)
    ]
    for frame in frames:
        got, expected = (stream(x) for stream, x in zip(streams, (torch.from_numpy(frame), frame), strict=True))
        assert isinstance(got, torch.Tensor)
        assert isinstance(expected, np.ndarray)
        np.testing.assert_array_equal(got.numpy(), expected)


def test_weights_are_packed_once_for_all_streams_of_a_plan(small_plan: Path) -> None:
    from sparsetime.engine.cpu import _programs

    plan, frame = Plan.load(small_plan), moving_square(1, 24, 32)[0]
    dense = native_dense(plan, 1)
    before = set(_programs)
    streams = [FallbackStream(plan, frame, dense=dense, schedule=Fixed([False])) for _ in range(3)]
    streams.append(plan.stream())
    assert len(set(_programs) - before) == 1
    flat = [plan.flat().stream() for _ in range(3)]
    assert len(set(_programs) - before) == 2
    for stream in streams:
        np.testing.assert_array_equal(stream(frame), flat[0].plan.stream()(frame)[0])


def test_a_frame_of_another_shape_leaves_all_as_it_was(small_plan: Path) -> None:
    plan = Plan.load(small_plan)
    frame = moving_square(1, 24, 32)[0]
    stream = FallbackStream(plan, frame, dense=native_dense(plan, 1), schedule=Fixed([False] * 9))
    before = stream(frame)
    with pytest.raises(ValueError, match="shape"):
        stream(frame[:5])
    np.testing.assert_array_equal(stream(frame), before)
    assert not any(entry.macs for entry in stream.stats.values())  # the same frame again, and no flush


def test_a_run_says_how_many_frames_were_dense(small_plan: Path, square: Path, tmp_path: Path) -> None:
    result = run_file(small_plan, str(square), fallback=True, compare=True)
    assert result["frames"] == 10
    assert 0 <= result["dense_frames"] < 10
    assert result["quality"]["relative_error"] < result["quality_frozen"]["relative_error"]
    assert run_file(small_plan, str(square))["dense_frames"] == 0
    command = ["run", str(small_plan), str(square), "--fallback", "--json", str(tmp_path / "figures.json")]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert json.loads((tmp_path / "figures.json").read_text())["quality"] is None


def test_state_files_and_drawings_need_a_stream_alone(small_plan: Path, square: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave out --fallback, or --save-state"):
        run_file(small_plan, str(square), fallback=True, save_state=tmp_path / "a.state")
