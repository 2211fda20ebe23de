"""What was recomputed, where it was, and the file that shows it."""

import errno
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import nn

import sparsetime
from sparsetime.engine import Plan, Stream
from sparsetime.files import TargetError
from sparsetime.report.image import png
from sparsetime.run import run_file
from sparsetime.run.draw import OutputError, VideoSink, Work, _shares, overlay
from sparsetime.run.sources import Source
from sparsetime.video import read_frames, salvage_frames

from .conftest import moving_square

SUFFIXES = (".mp4", ".mkv", ".avi", ".mov")


@pytest.mark.parametrize(("cells", "extent"), [(4, 4), (4, 8), (8, 4), (3, 7), (7, 3), (1, 5), (5, 1)])
def test_shares_lose_nothing(cells: int, extent: int) -> None:
    shares = _shares(cells, extent)
    np.testing.assert_allclose(shares.sum(axis=0), 1, rtol=1e-6)
    assert shares.shape == (cells, extent)


def test_shares_by_hand() -> None:
    np.testing.assert_allclose(_shares(2, 3), [[1, 0.5, 0], [0, 0.5, 1]])
    np.testing.assert_allclose(_shares(4, 2), [[0.5, 0], [0.5, 0], [0, 0.5], [0, 0.5]])


def test_work_is_where_the_change_is() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)).eval()
    plan = sparsetime.compile(network, torch.zeros(1, 3, 16, 24), steps=0.0, codec="hold")
    stream, work = plan.stream(), Work(plan)
    frame = np.random.default_rng(0).standard_normal((1, 3, 16, 24)).astype(np.float32)
    stream(frame)
    assert (work(stream) > 0.999).all()
    stream(frame)
    assert not work(stream).any()
    frame = frame.copy()
    frame[0, :, 2:4, 3:5] += 9
    stream(frame)
    found = work(stream)
    assert found.shape == work.grid == (16, 24)
    assert (found[2:4, 3:5] > 0.4).all()  # all of the first layer's, and what a rectifier lets through to the second
    assert found[1, 2:6].any()
    assert not found[5:].any()
    assert not found[:, 6:].any()
    # Weighted with the operations of each place it is the density of the frame, where nothing took the dense path.
    if all(s.path == "sparse" for s in stream.stats.values() if s.macs):
        weights = work._all / work._all.sum()
        assert (found * weights).sum() == pytest.approx(stream.op_density, rel=1e-4)


def test_all_is_work_after_a_flush() -> None:
    plan = sparsetime.compile(nn.Conv2d(3, 4, 3).eval(), torch.zeros(1, 3, 8, 8), steps=0.5, codec="hold")
    stream, work = plan.stream(flush=0.01), Work(plan)
    frame = np.zeros((1, 3, 8, 8), np.float32)
    for change, expected in ((0, 1), (9, 1 / 64), (0, 1), (0, 0)):  # the change asks for more than 0.01: a flush
        frame[0, :, 4, 4] += change
        stream(frame)
        found = work(stream)
        assert stream.flushed == (expected == 1)
        assert found.mean() == pytest.approx(expected, rel=1e-5)


def test_drawing_leaves_the_stream_alone(
    small_plan: Path, square: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Stream) -> None:
        raise AssertionError("a snapshot copies the whole state, and how sums are rounded changes with it")

    monkeypatch.setattr(Stream, "snapshot", refuse)
    result = run_file(small_plan, str(square), out_video=tmp_path / "out.mkv")
    assert result["frames"] == 10


def test_overlay() -> None:
    frame = np.zeros((21, 31, 3), np.uint8)
    frame[..., 2] = 200
    work = np.asarray([[0.0, 1.0]], np.float32)
    drawn = overlay(frame, work, 0.5)
    assert (drawn.shape, drawn.dtype) == ((20, 30, 3), np.uint8)
    left, right = drawn[0, 0].tolist(), drawn[0, -1].tolist()
    assert left[0] == left[1] == left[2]  # grey where nothing was done
    assert right[0] > 90 > right[1]  # orange over what is there
    assert right[2] == 120
    assert drawn[-1, 7].tolist() == [255, 96, 0]  # the bar reaches to half of the width
    assert drawn[-1, 22].tolist() == [32, 32, 32]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (3, 1), (2, 3)])
def test_a_video_of_a_single_row_or_column(small_plan: Path, tmp_path: Path, height: int, width: int) -> None:
    (tmp_path / "small").mkdir()
    for number in range(3):
        (tmp_path / "small" / f"{number}.png").write_bytes(png(np.full((height, width, 3), 80 * number, np.uint8)))
    assert run_file(small_plan, str(tmp_path / "small"), out_video=tmp_path / "o.mp4")["frames"] == 3
    with av.open(str(tmp_path / "o.mp4")) as container:
        shapes = [(frame.height, frame.width) for frame in container.decode(video=0)]
    assert shapes == [(2, max(2, width // 2 * 2))] * 3


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_video_is_written(small_plan: Path, square: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    result = run_file(small_plan, str(square), out_video=path)
    with av.open(str(path)) as container:
        pictures = [f.to_ndarray(format="rgb24").astype(int) for f in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 20
    assert len(pictures) == result["frames"] == 10
    assert pictures[0].shape == (48, 64, 3)
    # The first frame is drawn in full colour, later ones are grey far from the square.
    still = pictures[9][30:40, 2:8]
    assert np.abs(still.max(axis=-1) - still.min(axis=-1)).mean() < 12
    first = pictures[0][30:40, 2:8]
    assert (first.max(axis=-1) - first.min(axis=-1)).mean() > 40


def test_drawing_changes_no_figure(small_plan: Path, square: Path, tmp_path: Path) -> None:
    plain, drawn = run_file(small_plan, str(square)), run_file(small_plan, str(square), out_video=tmp_path / "o.mkv")
    assert plain["op_density"] == drawn["op_density"]


@pytest.mark.parametrize(
    ("name", "message"), [("o.txt", "expected a video file"), ("folder.mp4", "is a folder; expected the file to write")]
)
def test_a_target_that_cannot_be_is_found_before_the_run(
    small_plan: Path, square: Path, tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises((OutputError, TargetError), match=message):
        run_file(small_plan, str(square), out_video=tmp_path / name, progress=lambda *_: pytest.fail("too late"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_older_video_stays_until_the_new_one_is_whole(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"o{suffix}"
    path.write_bytes(b"old")
    with VideoSink(path) as sink:
        for frame in moving_square(80):  # more than the codec keeps to itself
            sink.add(frame, 25)
        assert path.read_bytes() == b"old"
    assert len(read_frames(path)) == 80
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("stop", [KeyboardInterrupt, ZeroDivisionError])
def test_what_was_drawn_before_a_stop_can_be_played(
    small_plan: Path, square: Path, tmp_path: Path, suffix: str, stop: type[BaseException]
) -> None:
    done: list[object] = []

    def progress(*_: object) -> None:
        done.append(1)
        if len(done) == 4:
            raise stop

    path = tmp_path / f"o{suffix}"
    path.write_bytes(b"old")
    with pytest.raises(stop):
        run_file(small_plan, str(square), out_video=path, progress=progress)
    assert len(read_frames(path)) == 4
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("room", [0, 30_000])  # the codec keeps frames for a while: both are told at the end
def test_a_full_disk_leaves_what_can_be_played(tmp_path: Path, suffix: str, room: int) -> None:
    path = tmp_path / f"o{suffix}"
    path.write_bytes(b"old")
    program = (
        "import resource, sys; from pathlib import Path; import numpy as np\n"
        "from sparsetime.run.draw import OutputError, VideoSink\n"
        "noise = np.random.default_rng(0).integers(0, 255, (20, 120, 160, 3), dtype=np.uint8)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))\n"  # as a full disk does
        "try:\n"
        "    with VideoSink(Path(sys.argv[1])) as sink:\n"
        "        for frame in noise: sink.add(frame, 25)\n"
        "except OutputError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True)
    assert done.stdout == f"{path}: cannot be written: File too large\n", done.stderr
    if room and suffix in (".mkv", ".avi"):  # the others cannot be played without their end
        assert 0 < len(salvage_frames(path)[0]) < 20
    else:
        assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_full_disk_leaves_no_file_open_and_hides_no_error(tmp_path: Path) -> None:
    class Full:
        closed = 0

        def mux(self, packets: object) -> None:
            raise av.error.FFmpegError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            self.closed += 1

    sink = VideoSink(tmp_path / "o.mkv")
    sink.add(moving_square(1, 48, 64)[0], 25)
    sink._container = full = Full()
    with pytest.raises(OutputError, match="No space left"):
        sink.__exit__(None, None, None)
    assert full.closed == 1
    assert list(tmp_path.iterdir()) == []
    sink.__exit__(KeyError, KeyError("first"), None)
    assert full.closed == 2


def test_frames_of_several_sizes(tmp_path: Path) -> None:
    with VideoSink(tmp_path / "o.mkv") as sink:
        sink.add(moving_square(1, 48, 64)[0], 25)
        sink.add(moving_square(1, 24, 32)[0], 25)
    with av.open(str(tmp_path / "o.mkv")) as container:
        assert [(f.height, f.width) for f in container.decode(video=0)] == [(48, 64)] * 2


TIMES_S = [0, 0.5, 1, 1.04, 1.08, 4, 4.04, 7, 9, 12, 15, 16]


def save_at(path: Path, times_s: list[float]) -> Path:
    """A video whose frames are shown at these times, of greys that rise."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "bgr0"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, time_s in enumerate(times_s):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(time_s * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def times_of(path: Path) -> tuple[list[float], list[int]]:
    """When the frames of a video are shown, and their greys."""
    with av.open(str(path)) as container:
        frames = [(frame.time, frame.to_ndarray(format="gray").mean()) for frame in container.decode(video=0)]
        assert container.duration is not None
        assert container.duration / 1e6 == pytest.approx(frames[-1][0] + 0.04, abs=0.05)
    return [time_s for time_s, _ in frames], [round(grey / 10) for _, grey in frames]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_frames_are_shown_when_the_source_shows_them(tmp_path: Path, suffix: str) -> None:
    source = Source(str(save_at(tmp_path / "varying.mkv", TIMES_S)), (8, 8), show=True)
    with VideoSink(tmp_path / f"o{suffix}") as sink:
        for shot in source:
            assert shot.shown is not None
            sink.add(shot.shown, 25, shot.time_s)
    times, greys = times_of(tmp_path / f"o{suffix}")
    np.testing.assert_allclose(times, TIMES_S, atol=0.002)
    assert greys == list(range(12))


def test_times_that_do_not_rise_or_are_not_known_follow_at_the_rate(tmp_path: Path) -> None:
    with VideoSink(tmp_path / "o.mp4") as sink:
        for number, time_s in enumerate([None, 103.0, 103.5, None, 103.2, 104.0]):
            sink.add(np.full((48, 64, 3), 10 * number, np.uint8), 20, time_s)
    times, greys = times_of(tmp_path / "o.mp4")
    np.testing.assert_allclose(times, [0, 0.05, 0.55, 0.6, 0.65, 1.05], atol=1e-4)
    assert greys == list(range(6))


def test_an_avi_file_has_its_rate_as_clock(tmp_path: Path) -> None:
    with VideoSink(tmp_path / "o.avi") as sink:
        for number, time_s in enumerate([5, 5.01, 5.02, 6, 9]):
            sink.add(np.full((48, 64, 3), 10 * number, np.uint8), 25, time_s)
    with av.open(str(tmp_path / "o.avi")) as container:
        times = [float(p.dts * p.time_base) for p in container.demux(video=0) if p.size and p.dts is not None]
    np.testing.assert_allclose(times, [0, 0.04, 0.08, 1, 4], atol=1e-6)


def test_layers_of_islands_have_a_place_too(tmp_path: Path, square: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, 2), nn.Conv2d(2, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.topk(self.a(x), 2, dim=1).values)

    plan = sparsetime.compile(Net().eval(), torch.zeros(1, 3, 24, 32), steps=0.5)
    assert plan.islands
    plan.save(tmp_path / "p.plan")
    run_file(tmp_path / "p.plan", str(square), frames=3, out_video=tmp_path / "o.mp4")
    assert Plan.load(tmp_path / "p.plan").name == "Net"
