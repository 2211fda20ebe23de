"""Where frames come from: a video file, a folder of pictures, a camera or an RTSP address.

What does not decode is left out and named; the frames before and behind it are given.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from sparsetime.engine import Plan, PlanError
from sparsetime.video.reader import (
    Frames,
    PacketDecoder,
    VideoError,
    decode_file,
    decode_folder,
    import_av,
    rgb_picture,
)

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

__all__ = ["FALLBACK_RATE", "Shot", "Source", "SourceError", "picture_plan"]

FALLBACK_RATE = 25.0
"""Frames a second of a video that states none."""

_CAMERAS = {"Linux": ("v4l2", "/dev/video{}"), "Darwin": ("avfoundation", "{}")}
_PATIENCE_S = 10.0  # with an address that does not answer


class SourceError(RuntimeError):
    """No frame can be had from a source: its name and why."""


def picture_plan(plan_file: Path | str) -> tuple[Plan, tuple[int, int]]:
    """Read a plan that takes pictures, and their (H, W).

    Raises:
        PlanError: the plan cannot be read, or takes no pictures of three channels.
    """
    plan = Plan.load(plan_file)
    shape = plan.input_shape
    if len(shape) != 4 or shape[1] != 3:
        raise PlanError(f"{plan_file}: the network takes frames of shape {shape}; videos have three channels")
    return plan, (shape[2], shape[3])


class Shot(NamedTuple):
    """One frame.

    picture: (H, W, 3) uint8 RGB at the size asked for.
    shown: (H', W', 3) uint8 RGB as the source shows it, or None where it was not asked for.
    time_s: when it is shown, as the source has it, or None where it does not say.
    """

    picture: Frames
    shown: Frames | None
    time_s: float | None = None


class Source:
    """Frames of a video, resized as `sparsetime.video.iter_frames` does (the whole picture, stretched).

    Args:
        video: a file, a folder of `.jpg`, `.jpeg` or `.png` pictures in natural order, the number of a camera, or an
            address that begins with `rtsp://` or `rtsps://`. A file or folder whose name is a number comes first.
        size: (H, W) of the pictures.
        show: give the frames as they are too.

    Attributes:
        name: for messages: `video`, without the user name and password of an address.
        live: whether the frames come at their own pace and have no end.
        rate: frames a second that the source states, or None; known once the first frame was given.
        damage: what could not be decoded so far, in words; complete when the frames are at their end.

    Raises:
        SourceError: there is no such source.
        ImportError: PyAV is not installed.
    """

    def __init__(self, video: str, size: tuple[int, int], *, show: bool = False) -> None:
        self._path: Path | None = None
        self._address, self._form = "", ""
        self._options: dict[str, Any] = {}
        self.name = video
        self.rate: float | None = None
        self._av = import_av()
        self._size, self._show = size, show
        self._lost: list[int] = []
        self._ends: list[str] = []  # what else went wrong
        self._complaints = 0  # of FFmpeg, and the first of them
        self._complaint = ""
        if video.startswith(("rtsp://", "rtsps://")):
            self._address = video
            self.name = _without_login(video)
            self._options = {"options": {"rtsp_transport": "tcp"}, "timeout": _PATIENCE_S}
        elif Path(video).exists():
            self._path = Path(video)
        elif video.isdecimal():
            system = platform.system()
            if system not in _CAMERAS:
                raise SourceError(f"camera {video}: cameras by number are read on Linux and macOS, this is {system}")
            self._form, device = _CAMERAS[system]
            self._address = device.format(video)
            self.name = f"camera {video} ({self._address})"
        else:
            raise SourceError(
                f"{self.name}: there is no such file or folder; expected a video file, a folder of pictures, the "
                "number of a camera or an rtsp:// address"
            )

    @property
    def live(self) -> bool:
        """Whether the frames come at their own pace and have no end."""
        return self._path is None

    @property
    def damage(self) -> list[str]:
        """What could not be decoded, in words."""
        number = len(self._lost)
        lost = f"{number} frame{'s' if number > 1 else ''} that cannot be decoded, number {_ranges(self._lost)}"
        damage = ([lost] if number else []) + self._ends
        if self._complaints and not damage:
            damage = [f"{self._complaint} ({self._complaints} complaints of the decoder in all)"]
        return damage

    def __iter__(self) -> Iterator[Shot]:
        """The frames that decode, in order.

        Raises:
            SourceError: there is none.
        """
        make = self._av.video.reformatter.VideoReformatter
        small, whole = make(), make()
        given = 0
        try:
            for number, frame in enumerate(self._decoded()):
                if frame is None:
                    self._lost.append(number)
                    continue
                shown = rgb_picture(frame, None, whole) if self._show else None
                yield Shot(rgb_picture(frame, self._size, small), shown, frame.time)
                given += 1
        except VideoError as error:
            if not given:
                raise SourceError(str(error)) from error
            self._ends.append(error.reason)
        except self._av.error.FFmpegError as error:  # live sources; VideoError has what happens in files
            if not given:
                raise SourceError(f"{self.name}: {error.strerror}") from error
            self._ends.append(f"reading stopped: {error.strerror}")
        if not given:
            raise SourceError(f"{self.name}: no frame of it decodes. {'; '.join(self.damage)}".rstrip())

    def _decoded(self) -> Iterator[VideoFrame | None]:
        if self._path is None:
            return self._decode_live()
        return self._decode_pictures(self._path) if self._path.is_dir() else self._decode_video(self._path)

    def _decode_video(self, path: Path) -> Iterator[VideoFrame | None]:
        # What is wrong with the file is said by what decodes it.
        with self._unheard(), suppress(self._av.error.FFmpegError), self._av.open(f"file:{path}") as container:
            self.rate = _rate(container)
        frames = decode_file(path, self._av)
        # Of damage between packets only FFmpeg's log tells: it goes on at the next sound place without an error.
        for number in count():
            with _LOG.listening(self._av.logging) as heard:
                taken = list(islice(frames, 1))
            if heard and not self._complaints:
                self._complaint = f"damage at about frame {number}: {' '.join(heard[0][2].split())}"
            self._complaints += len(heard)
            if not taken:
                return
            yield taken[0]

    def _decode_pictures(self, folder: Path) -> Iterator[VideoFrame]:
        pictures = decode_folder(folder, self._av)
        while True:
            with _LOG.talking():
                name, frame = next(pictures, ("", ""))
            if not name:
                return
            if isinstance(frame, str):
                self._ends.append(f"{name}: {frame}")
            else:
                yield frame

    def _decode_live(self) -> Iterator[VideoFrame | None]:
        # Between frames a network complains at any time: that is no damage of a file that another thread decodes.
        with self._unheard():
            container = self._av.open(self._address, format=self._form or None, **self._options)
        try:
            if not container.streams.video:
                raise SourceError(f"{self.name}: holds no video stream")
            self.rate = _rate(container)
            packets = container.demux(container.streams.video[0])
            decode = PacketDecoder(self._av)
            while True:
                with self._unheard():
                    packet = next(packets, None)
                if packet is None:
                    return
                with _LOG.talking():  # decoders have threads of their own
                    frames = decode(packet)
                yield from frames
        finally:
            with self._unheard():
                container.close()

    def _unheard(self) -> Any:
        """What this thread logs while it is open goes to nobody who listens."""
        return self._av.logging.Capture(local=True)


class _Log:
    """FFmpeg's log. The process has one, and no line of it says which file it is about."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = self._entered = 0

    @contextmanager
    def talking(self) -> Iterator[None]:
        """What is logged while this is open counts for nobody who listens."""
        with self._lock:
            self._inside += 1
            self._entered += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1

    @contextmanager
    def listening(self, log: Any) -> Iterator[list[tuple[int, str, str]]]:
        """What is logged as an error, by any thread, while this is open: (level, part of FFmpeg, message).

        Known when it is closed. Nothing where another, or `talking`, was open at any time meanwhile: it may be about
        that one.
        """
        heard: list[tuple[int, str, str]] = []
        with self._lock:
            alone = not self._inside
            self._inside += 1
            self._entered += 1
            turn = self._entered
            if alone:  # captures are a stack, which two threads would mix up
                level, skips = log.get_level(), log.get_skip_repeated()
                log.set_level(log.ERROR)
                log.set_skip_repeated(False)
                capture = log.Capture(local=False)
                lines = capture.__enter__()
        try:
            yield heard
        finally:
            with self._lock:
                self._inside -= 1
                if alone:
                    capture.__exit__(None, None, None)
                    log.set_level(level)
                    log.set_skip_repeated(skips)
                    if self._entered == turn:
                        heard += lines


_LOG = _Log()


def _rate(container: Any) -> float | None:
    streams = container.streams.video
    rate = streams[0].average_rate if streams else None
    return float(rate) if rate else None


def _without_login(address: str) -> str:
    """An address without the user name and password that may stand in it."""
    host = urlsplit(address).netloc.rpartition("@")[2]
    return urlsplit(address)._replace(netloc=host).geturl()


def _ranges(numbers: list[int]) -> str:
    """Rising numbers in words.

    >>> _ranges([3, 4, 5, 9])
    '3-5, 9'
    """
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
