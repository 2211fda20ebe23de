"""Frames of one video: a file, or a folder of JPEG or PNG pictures, decoded by PyAV.

Counts are counted, never read from headers; rotation metadata is honoured; damage is an error that names the file.
"""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sparsetime.video.truncation import is_cut_jpeg, missing_bytes

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter

Frames = npt.NDArray[np.uint8]

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})
IMAGE_DECODERS = {".jpg": "mjpeg", ".jpeg": "mjpeg", ".png": "png"}


class VideoError(RuntimeError):
    """A video cannot be read, or not in full. One line: the file and what was wrong with it."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def iter_frames(
    path: str | Path,
    *,
    start: int = 0,
    stop: int | None = None,
    stride: int = 1,
    size: tuple[int, int] | None = None,
) -> Iterator[Frames]:
    """The frames of a video one after the other, as RGB pictures; memory does not grow with the length.

    Frames ``start, start + stride, ...`` below `stop` (None: the end) count decoded frames, as a slice would.
    Decoding always begins at frame 0, so that a number means the same frame in every container.

    Args:
        path: a video file, or a folder of ``.jpg``, ``.jpeg`` or ``.png`` files, which are taken in natural order (2
            before 10).
        size: (H, W) of the result, to which the whole picture is stretched; None: as the video is shown, that is with
            its rotation applied.

    Yields:
        (H, W, 3) uint8, C-contiguous.

    Raises:
        VideoError: the file is absent, empty or no video, or a frame is damaged, or the file was cut off. Where frames
            decode, the error comes after the last of them; an error behind `stop` is not seen.
        ImportError: PyAV is not installed.
    """
    if start < 0 or stride < 1 or (stop is not None and stop < start):
        raise ValueError(
            f"expected 0 <= start <= stop and stride >= 1, got start={start}, stop={stop}, stride={stride}"
        )
    if size is not None and min(size) < 1:
        raise ValueError(f"size: expected a positive height and width, got {size}")
    av = import_av()
    path = Path(path)
    frames = _whole_pictures(path, av) if path.is_dir() else decode_file(path, av)
    reformatter = av.video.reformatter.VideoReformatter()
    damaged = []
    for number, frame in enumerate(islice(frames, stop)):
        if frame is None:
            damaged.append(number)
        elif number >= start and (number - start) % stride == 0:
            yield rgb_picture(frame, size, reformatter)
    if damaged:
        raise VideoError(path, f"{len(damaged)} damaged frames, the first is {damaged[0]}")


def read_frames(
    path: str | Path,
    *,
    start: int = 0,
    stop: int | None = None,
    stride: int = 1,
    size: tuple[int, int] | None = None,
) -> Frames:
    """All frames of a video (or of a slice of it) as one array; the arguments are those of `iter_frames`.

    Returns:
        (T, H, W, 3) uint8 RGB, T >= 1.

    Raises:
        VideoError: as `iter_frames`; also where no frame lies in the slice, and where the frame size changes midway
            and no `size` is given.
    """
    frames, damage = salvage_frames(path, start=start, stop=stop, stride=stride, size=size)
    if damage is not None:
        raise VideoError(Path(path), damage)
    return frames


def salvage_frames(
    path: str | Path,
    *,
    start: int = 0,
    stop: int | None = None,
    stride: int = 1,
    size: tuple[int, int] | None = None,
) -> tuple[Frames, str | None]:
    """As `read_frames`, but a damaged video gives the frames that decode, and the damage in words (None: there is
    none).

    Frames that the decoder itself marks as damaged are left out.

    Raises:
        VideoError: no frame at all decodes, or `read_frames` would complain about something other than damage.
    """
    path = Path(path)
    pictures: list[Frames] = []
    damage = None
    try:
        pictures.extend(iter_frames(path, start=start, stop=stop, stride=stride, size=size))
    except VideoError as error:
        if not pictures:
            raise
        damage = error.reason
    if not pictures:
        raise VideoError(path, f"no frame lies in {start}:{'' if stop is None else stop}")
    shapes = {picture.shape[:2] for picture in pictures}
    if len(shapes) > 1:
        raise VideoError(path, f"the frame size changes midway ({sorted(shapes)}); pass size=(height, width)")
    return np.stack(pictures), damage


def image_files(folder: Path) -> list[Path]:
    """The pictures of a folder in natural order: numbers in names count as numbers, so 2 comes before 10."""

    def natural(file: Path) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", file.name)]

    return sorted((file for file in folder.iterdir() if file.suffix.lower() in IMAGE_DECODERS), key=natural)


def import_av() -> Any:
    """The module ``av``, imported on first use; an ImportError names the extra that brings it."""
    try:
        import av
    except ImportError as error:
        raise ImportError("reading video needs PyAV: pip install 'sparsetime[video]'") from error
    return av


def decode_file(path: Path, av: Any) -> Iterator["VideoFrame | None"]:
    """Frames in order of display; None stands for a damaged one, so that the others keep their numbers."""
    if not path.is_file():
        raise VideoError(path, "there is no such file")
    if path.stat().st_size == 0:
        raise VideoError(path, "the file is empty")
    good = 0
    stopped = None
    decode = PacketDecoder(av)
    try:
        # "file:" keeps FFmpeg from reading a protocol into the name.
        with av.open(f"file:{path}") as container:
            if not container.streams.video:
                raise VideoError(path, "holds no video stream")
            for packet in container.demux(container.streams.video[0]):
                for frame in decode(packet):
                    good += frame is not None
                    yield frame
    except av.error.FFmpegError as error:
        stopped = error.strerror
    try:
        cut = missing_bytes(path)
    except OSError as error:
        raise VideoError(path, f"cannot be read: {error.strerror}") from error
    if cut:
        raise VideoError(path, f"the file is cut off: {cut} bytes are missing at the end, {good} frames decode")
    if stopped:
        raise VideoError(path, f"reading stopped after {good} frames: {stopped}" if good else f"no video: {stopped}")
    if not good:
        raise VideoError(path, "holds no frame that decodes")


class PacketDecoder:
    """Decodes the packets of one video one after the other, and leaves out what a container marks as damaged.

    Frames that are shown in another order come with packets after their own; presentation times say whose they are.
    """

    def __init__(self, av: Any) -> None:
        self._av = av
        self._damaged: set[int] = set()  # presentation times
        self._marked = False

    def __call__(self, packet: Any) -> list["VideoFrame | None"]:
        """What a packet completes, in order of display; None stands for a damaged frame."""
        # Where FFmpeg has to search for the ends of frames (MPEG-TS), it gives a packet's mark to the one before.
        damaged = packet.is_corrupt or self._marked
        self._marked = packet.is_corrupt
        if damaged and packet.pts is not None:
            self._damaged.add(packet.pts)
        unknown = damaged and packet.pts is None and packet.size > 0
        try:
            frames = packet.decode()
        except self._av.error.InvalidDataError:
            return [None]
        return [None if unknown or frame.is_corrupt or frame.pts in self._damaged else frame for frame in frames]


def decode_folder(folder: Path, av: Any) -> Iterator[tuple[str, "VideoFrame | str"]]:
    """The pictures of a folder in natural order: the name of each, and its frame or what is wrong with it."""
    files = image_files(folder)
    if not files:
        raise VideoError(folder, f"the folder holds no picture ({', '.join(sorted(IMAGE_DECODERS))})")
    for file in files:
        kind = IMAGE_DECODERS[file.suffix.lower()]
        try:
            data = file.read_bytes()
            # A decoder of its own for each: FFmpeg's for PNG may build on the picture before.
            decoder = av.CodecContext.create(kind, "r")
            decoder.options = {"err_detect": "crccheck+explode"}  # else what is damaged is only logged, and drawn grey
            frames = decoder.decode(av.Packet(data))
        except (av.error.FFmpegError, OSError, ValueError) as error:
            yield file.name, f"no {kind} picture: {getattr(error, 'strerror', None) or error}"
            continue
        if kind == "mjpeg" and is_cut_jpeg(data):
            yield file.name, "the picture is cut off: its end is missing"
        else:
            yield file.name, "empty or damaged" if len(frames) != 1 or frames[0].is_corrupt else frames[0]


def _whole_pictures(folder: Path, av: Any) -> Iterator["VideoFrame"]:
    for name, frame in decode_folder(folder, av):
        if isinstance(frame, str):
            raise VideoError(folder, f"{name}: {frame}")
        yield frame


def rgb_picture(frame: "VideoFrame", size: tuple[int, int] | None, reformatter: "VideoReformatter") -> Frames:
    """Convert to RGB, scale and turn one decoded frame, in this order: scaling the planes is cheapest."""
    quarter_turns = round(frame.rotation / 90) % 4  # counterclockwise
    height, width = size or (frame.height, frame.width)
    if size is not None and quarter_turns % 2:
        height, width = width, height
    rgb = reformatter.reformat(frame, width=width, height=height, format="rgb24", interpolation="BILINEAR")
    return np.ascontiguousarray(np.rot90(rgb.to_ndarray(), quarter_turns))
