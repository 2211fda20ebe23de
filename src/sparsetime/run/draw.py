"""What was recomputed, drawn over the frames of a video.

The colour at a place is the share of the network's multiply-accumulates that its changes asked for in this frame:

    density(p) = sum over convolutions of the operations of events at p / sum of those of all elements at p

with p a cell of a grid over the input; the events of a layer with a coarser map spread over the cells that they cover.
The bar at the bottom is the operation density of the whole frame, which counts a layer in full where so much changed
that it was computed densely.
"""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsetime.engine.plan import Plan
from sparsetime.engine.stream import Stream
from sparsetime.fanout import position_fanout
from sparsetime.files import part_of, ready, settle
from sparsetime.video.reader import Frames, VideoError, import_av, iter_frames

__all__ = ["OutputError", "VideoSink", "Work", "overlay"]

Array = NDArray[Any]
_FORMATS = {".mp4": "mp4", ".mkv": "matroska", ".avi": "avi", ".mov": "mov"}
_CELLS = 64  # along the longer side of the grid
_COLOUR = np.asarray([255, 96, 0], np.float32)  # orange: rare in pictures, seen by the colour-blind
_FULL = 0.5  # density that is drawn in full colour
_BAR = 6  # pixels
_UNIT = Fraction(1, 60000)  # s; whole numbers of it are frames at 24, 25, 30000/1001, 30, 50 and 60 a second


def _shares(cells: int, extent: int) -> NDArray[np.float32]:
    """(cells, extent): the share of each of `extent` positions that lies in each cell. Columns add up to 1."""
    edges = np.arange(cells + 1) / cells * extent
    place = np.arange(extent)
    low, high = np.maximum(edges[:-1, None], place), np.minimum(edges[1:, None], place + 1)
    return np.asarray((high - low).clip(min=0), np.float32)


class Work:
    """Follows a stream and says where in the picture it computed.

    Args:
        plan: of the stream; frames are (1, C, H, W).
    """

    def __init__(self, plan: Plan) -> None:
        height, width = plan.input_shape[2:]
        scale = _CELLS / max(height, width)
        self.grid = max(1, min(height, round(height * scale))), max(1, min(width, round(width * scale)))
        self._layers: list[tuple[int, Array, Array, Array]] = []
        self._all = np.zeros(self.grid, np.float32)
        for op in plan.ops:
            linear = plan.linear_op(op)
            if linear is None or linear.kind == "linear":
                continue
            x = plan.values[op.inputs[0]]
            fanout = position_fanout(linear, x[1:]).astype(np.float32)
            rows, columns = _shares(self.grid[0], x[2]), _shares(self.grid[1], x[3])
            self._layers.append((op.inputs[0], fanout, rows, columns))
            self._all += rows @ (fanout * x[1]) @ columns.T
        self._before: dict[int, Array] = {}

    def __call__(self, stream: Stream) -> NDArray[np.float32]:
        """Density of the operations of the last frame by place, `grid` cells, 0..1; all 1 after a flush, such as
        a stream's first frame.

        Copies the inputs of the convolutions, each once.
        """
        values = {number: stream.value(number) for number, *_ in self._layers}
        done = np.zeros(self.grid, np.float32)
        for number, fanout, rows, columns in self._layers:
            x = values[number]
            events = np.full(x.shape[2:], x.shape[1], np.float32)
            if self._before and not stream.flushed:
                events = (x != self._before[number])[0].sum(axis=0, dtype=np.float32)
            done += rows @ (events * fanout) @ columns.T
        self._before = values
        return np.asarray(done / np.maximum(self._all, np.finfo(np.float32).tiny), np.float32)


def overlay(frame: Frames, work: NDArray[np.float32], density: float) -> Frames:
    """A frame with what was recomputed drawn over it: still places grey, the others in colour and tinted.

    Args:
        frame: (H, W, 3) uint8 RGB.
        work: density of operations by place, (h, w), 0..1.
        density: of the whole frame.

    Returns:
        (H, W, 3), even numbers of rows and columns, as video codecs want them; a single row or column comes twice.
    """
    for axis in (0, 1):
        frame = frame.repeat(2, axis) if frame.shape[axis] == 1 else frame
    height, width = frame.shape[0] // 2 * 2, frame.shape[1] // 2 * 2
    rows, columns = np.arange(height) * work.shape[0] // height, np.arange(width) * work.shape[1] // width
    local = work[rows][:, columns, None].clip(0, 1)
    picture = frame[:height, :width].astype(np.float32)
    grey = picture.mean(axis=2, keepdims=True) * 0.7
    seen = (local / _FULL).clip(max=1)
    drawn = grey + seen * (0.6 * picture + 0.4 * _COLOUR - grey)
    drawn[height - _BAR :] = 32
    drawn[height - _BAR :, : round(width * min(density, 1.0))] = _COLOUR
    return np.asarray(drawn, np.uint8)


class OutputError(ValueError):
    """A video cannot be written."""


class VideoSink:
    """A video file that frames are added to. Use as a context manager.

    It is begun with the first frame, beside its place, and put there at the end, in one step; until then an older file
    is as it was. Whatever ends the drawing, what was drawn so far is kept.

    Args:
        path: file to write, `.mp4`, `.mkv`, `.avi` or `.mov`.

    Raises:
        OutputError: another suffix.
        TargetError: no file can be written there.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix.lower() not in _FORMATS:
            raise OutputError(f"{path}: expected a video file to write, one of {', '.join(_FORMATS)}")
        self._path = ready(path)
        self._part = part_of(path)
        self._av = import_av()
        self._container: Any = None
        self._stream: Any = None
        self._begun_s: float | None = None
        self._unit = _UNIT  # of the file's clock, s; and in it what lies between frames, and when the last one is shown
        self._period = self._last = 0

    def __enter__(self) -> VideoSink:
        return self

    def __exit__(self, kind: object, raised: BaseException | None, trace: object) -> None:
        """Write what the codec still holds, close the file whatever comes of that, and put it in its place.

        A file without its end, where the disk was full, is put there too if it can be played; else it is removed.

        Raises:
            OutputError: the file cannot be written; not where another error is on its way, which says more.
        """
        if self._container is None:
            return
        try:
            try:
                self._container.mux(self._stream.encode(None))
            finally:
                self._container.close()
            settle(self._part, self._path)
        except (self._av.error.FFmpegError, OSError) as error:
            self._rescue()
            if raised is None:
                raise self._refused(error) from error

    def _rescue(self) -> None:
        """Keep what was written if it can be played."""
        with suppress(OSError):
            try:
                next(iter_frames(self._part))
                self._part.replace(self._path)
            except VideoError:
                self._part.unlink()

    def _refused(self, error: Any) -> OutputError:
        return OutputError(f"{self._path}: cannot be written: {error.strerror}")

    def add(self, frame: Frames, rate: float, time_s: float | None = None) -> None:
        """Append a frame.

        Args:
            frame: (H, W, 3) uint8 RGB; scaled to the size of the first one.
            rate: frames a second; the first frame's counts.
            time_s: when it is shown; the first frame's is the start of the file. Where it is None, or not later than
                the frame before, the frame follows at the rate. AVI files have the rate as their clock.

        Raises:
            OutputError: the file cannot be written.
        """
        image = self._av.VideoFrame.from_ndarray(frame, format="rgb24")
        try:
            if self._container is None:
                self._open(image.height, image.width, rate)
            image = image.reformat(self._stream.width, self._stream.height)
            image.pts = self._last = self._due(time_s)
            image.time_base = self._unit
            self._container.mux(self._stream.encode(image))
        except self._av.error.FFmpegError as error:
            raise self._refused(error) from error

    def _due(self, time_s: float | None) -> int:
        following = self._last + self._period
        if time_s is None:
            return following
        if self._begun_s is None:
            self._begun_s = time_s - float(following * self._unit)
        due = round((time_s - self._begun_s) / self._unit)
        return due if due > self._last else following

    def _open(self, height: int, width: int, rate: float) -> None:
        container = self._av.open(f"file:{self._part}", "w", format=_FORMATS[self._path.suffix.lower()])
        codec = "libx264" if "libx264" in self._av.codecs_available else "mpeg4"
        stated = Fraction(rate).limit_denominator(1001)
        self._stream = container.add_stream(codec, rate=stated)
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "yuv420p"
        self._stream.codec_context.max_b_frames = 0  # in another order, AVI loses the times and MP4 some of the length
        self._unit = 1 / stated if self._path.suffix.lower() == ".avi" else _UNIT
        self._stream.codec_context.time_base = self._unit
        self._period = max(1, round(1 / (stated * self._unit)))
        self._last = -self._period
        self._container = container
