"""A run that goes on in another process."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsetime.engine import Plan, StreamError
from sparsetime.engine.statefile import load_state, save_state
from sparsetime.run import run_file
from sparsetime.run.sources import Source, SourceError
from sparsetime.video import read_frames, write_video

from .conftest import moving_square


def command(*arguments: object, room: int | None = None) -> subprocess.CompletedProcess[str]:
    """`sparsetime run` in a process of its own, whose files cannot get larger than `room` bytes, as on a full disk."""
    program = "from sparsetime.cli import main; main()"
    if room is not None:
        program = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))\n{program}"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", program, "run", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, env=environment)


def run(plan: Path, video: Path, folder: Path, *more: object) -> dict[str, Any]:
    """The figures of `sparsetime run` in a process of its own."""
    done = command(plan, video, "--json", folder / "out.json", *more)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "out.json").read_text())


def same_bits(plan_file: Path, video: Path, folder: Path, cut: int, frames: int) -> None:
    """Run up to `cut`, go on in another process, and compare with a stream that did both."""
    plan, state = Plan.load(plan_file), folder / "a.state"
    first = run(plan_file, video, folder, "--frames", cut, "--save-state", state)
    assert (first["frames"], first["first_frame"]) == (cut, 0)
    after_cut = state.read_bytes()
    rest = run(plan_file, video, folder, "--frames", frames - cut, "--resume-state", state, "--save-state", state)
    assert (rest["frames"], rest["first_frame"]) == (frames - cut, cut)

    stream = plan.stream(flush=1.0)  # as runs have it
    shots = [shot.picture for shot in itertools.islice(Source(str(video), plan.input_shape[2:]), frames)]
    for picture in shots[:cut]:
        stream(picture)
    save_state(stream, folder / "here.state")
    assert (folder / "here.state").read_bytes() == after_cut
    macs = 0
    for picture in shots[cut:]:
        stream(picture)
        macs += sum(entry.macs for entry in stream.stats.values())
    assert rest["op_density_with_first_frame"] == pytest.approx(macs / ((frames - cut) * plan.dense_macs))
    assert rest["op_density"] == rest["op_density_with_first_frame"]  # a frame of deltas as all others
    resumed = plan.stream()
    load_state(resumed, state)
    assert resumed.frames == frames
    expected, got = stream.snapshot(), resumed.snapshot()
    assert all(expected[name].tobytes() == got[name].tobytes() for name in expected)


def test_a_run_goes_on_in_another_process(small_plan: Path, square: Path, tmp_path: Path) -> None:
    same_bits(small_plan, square, tmp_path, cut=4, frames=9)


@pytest.mark.data
def test_a_run_goes_on_in_a_real_video(small_plan: Path, shared_data: Path, tmp_path: Path) -> None:
    same_bits(small_plan, shared_data / "static_videos" / "corridor_shop.avi", tmp_path, cut=17, frames=40)


def test_ctrl_c_leaves_a_state_of_what_was_run(small_plan: Path, square: Path, tmp_path: Path) -> None:
    asked = iter([False] * 6 + [True] * 9)
    result = run_file(small_plan, str(square), save_state=tmp_path / "a.state", stop=lambda: next(asked))
    assert (result["frames"], result["stopped"]) == (6, True)
    rest = run_file(small_plan, str(square), resume_state=tmp_path / "a.state")
    assert (rest["frames"], rest["first_frame"]) == (4, 6)
    assert rest["op_density"] < 1


def test_what_cannot_be_drawn_loses_no_state(small_plan: Path, tmp_path: Path) -> None:
    video, drawn, state = tmp_path / "noise.mkv", tmp_path / "a.mp4", tmp_path / "a.state"
    write_video(video, np.random.default_rng(0).integers(0, 255, (10, 240, 320, 3), dtype=np.uint8))
    files = ("--out-video", drawn, "--save-state", state)
    done = command(small_plan, video, "--frames", 6, *files, room=60_000)  # more than the state, less than the video
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"sparsetime: error: {drawn}: cannot be written: File too large"
    assert not drawn.exists()
    rest = run_file(small_plan, str(video), resume_state=state)
    assert (rest["frames"], rest["first_frame"]) == (4, 6)


def test_without_room_for_the_state_the_figures_are_told(small_plan: Path, square: Path, tmp_path: Path) -> None:
    state, figures = tmp_path / "a.state", tmp_path / "a.json"
    state.write_bytes(b"old")
    done = command(small_plan, square, "--save-state", state, "--json", figures, room=20_000)
    assert done.returncode == 1
    assert done.stdout.startswith("frames              10\n")
    expected = f"{state}: the state cannot be written: File too large"
    assert (
        done.stderr.splitlines()[-1]
        == f"sparsetime: error: {expected}. The figures are whole; name another --save-state"
    )
    written = json.loads(figures.read_text())
    assert (written["frames"], written["state_error"]) == (10, expected)
    assert state.read_bytes() == b"old"
    assert run_file(small_plan, str(square), save_state=state)["state_error"] is None


def test_without_room_for_any_file_the_figures_are_told(small_plan: Path, square: Path, tmp_path: Path) -> None:
    done = command(small_plan, square, "--json", tmp_path / "a.json", room=0)
    assert done.returncode == 1
    assert done.stdout.startswith("frames              10\n")
    assert "File too large" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_read_leaves_the_state_before(small_plan: Path, square: Path, tmp_path: Path) -> None:
    state = tmp_path / "a.state"
    run_file(small_plan, str(square), frames=6, save_state=state)
    before = state.read_bytes()
    (tmp_path / "none.mkv").write_bytes(b"none")
    with pytest.raises(SourceError):
        run_file(small_plan, str(tmp_path / "none.mkv"), save_state=state)
    assert state.read_bytes() == before


def test_at_the_end_of_the_video_nothing_is_left(small_plan: Path, square: Path, tmp_path: Path) -> None:
    run_file(small_plan, str(square), save_state=tmp_path / "a.state")
    rest = run_file(small_plan, str(square), resume_state=tmp_path / "a.state")
    assert (rest["frames"], rest["first_frame"], rest["fps"]) == (0, 10, None)
    said = command(small_plan, square, "--resume-state", tmp_path / "a.state")
    assert said.returncode == 0
    assert re.fullmatch(r".*a.state has seen 10 frames, and .* has no more: nothing was run\n", said.stderr)


def test_what_is_drawn_goes_on_too(small_plan: Path, square: Path, tmp_path: Path) -> None:
    run_file(small_plan, str(square), frames=5, save_state=tmp_path / "a.state")
    drawn = tmp_path / "a.mkv"
    run_file(small_plan, str(square), frames=1, resume_state=tmp_path / "a.state", out_video=drawn)
    frame = read_frames(drawn)[0].astype(int)
    far = frame[24:40, :24]  # below the square: grey, as nothing changed there
    assert np.abs(far[..., 0] - far[..., 2]).mean() < 8
    assert frame.shape == moving_square(1)[0].shape


def test_what_is_drawn_goes_on_between_two_flushes(small_plan: Path, tmp_path: Path) -> None:
    """There is no state then: the next frame is a first one again, and all of it is computed."""
    plan, video, state = Plan.load(small_plan), tmp_path / "noise.mkv", tmp_path / "a.state"
    frames = np.random.default_rng(0).integers(0, 255, (8, 24, 32, 3), dtype=np.uint8)
    write_video(video, frames)
    stream, cut = plan.stream(flush=1.0), 0
    while not cut or len(stream.snapshot()):
        stream(frames[cut])
        cut += 1
    assert cut < 8
    run_file(small_plan, str(video), frames=cut, save_state=state)
    drawn = {}
    for name, options in (("whole", {}), ("rest", {"resume_state": state})):
        run_file(small_plan, str(video), out_video=tmp_path / f"{name}.mkv", **options)
        drawn[name] = read_frames(tmp_path / f"{name}.mkv").astype(int)
    assert len(drawn["rest"]) == 8 - cut
    assert np.abs(drawn["rest"] - drawn["whole"][cut:]).mean() < 8  # the codec's losses alone


def test_a_state_of_another_plan_is_refused(small_plan: Path, square: Path, tmp_path: Path) -> None:
    from tiny_plan import tiny

    save_state(tiny().stream(), tmp_path / "a.state")
    with pytest.raises(StreamError, match="another plan"):
        run_file(small_plan, str(square), resume_state=tmp_path / "a.state")
