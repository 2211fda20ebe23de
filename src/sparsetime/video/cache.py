"""Decode once: the frames of whole videos at the size in which they are needed, kept within a bound of bytes.

An entry belongs to one video file in one state (path, size and time of change) at one picture size, so a file that was
replaced is decoded anew. The entry used longest ago goes first when room is needed.
"""

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from sparsetime.video.reader import Frames, VideoError, image_files, read_frames

logger = logging.getLogger("sparsetime.video")

_LAYOUT = 1  # changes when decoded pixels or the layout of an entry change


class FrameCache:
    """Frames on disk, one ``.npy`` file a video, mapped into memory when used; shared by any number of processes.

    Args:
        folder: where the entries are; None: ``sparsetime/frames`` in ``$XDG_CACHE_HOME`` (``~/.cache``).
        max_bytes: bound on the sum of the entries. It holds at any moment, whichever processes write; a video that is
            larger by itself is decoded each time. A data set larger than the bound, read in order, gains nothing from
            the cache.
    """

    def __init__(self, folder: str | Path | None = None, *, max_bytes: int = 8 * 2**30) -> None:
        if folder is None:
            folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparsetime" / "frames"
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self._told_full = False

    def frames(self, path: str | Path, size: tuple[int, int]) -> Frames:
        """All frames of a video at `size`: read-only (T, H, W, 3) uint8.

        Raises:
            VideoError: the video is damaged (nothing is kept of it), or is gone.
        """
        path = Path(path)
        entry = self.folder / f"{_key(path, size)}.npy"
        frames = _load(entry, size)
        if frames is None:
            frames = read_frames(path, size=size)
            frames.flags.writeable = False
            try:
                self._store(entry, frames)
            except OSError as error:
                if not self._told_full:
                    logger.warning("frame cache %s: %s; videos are decoded again each time", self.folder, error)
                    self._told_full = True
        return frames

    def size_bytes(self) -> int:
        """Sum of the entries."""
        return sum(size for _, size, _ in self._entries())

    def clear(self) -> None:
        """Remove all entries."""
        with self._lock():
            for _, _, entry in self._entries():
                entry.unlink(missing_ok=True)

    def _store(self, entry: Path, frames: Frames) -> None:
        size = frames.nbytes + 4096  # an .npy header takes less
        if size > self.max_bytes:
            return
        unfinished = self.folder / "unfinished"
        with self._lock():
            entries = sorted(self._entries())
            total = sum(entry_size for _, entry_size, _ in entries)
            for _, entry_size, oldest in entries:
                if total + size <= self.max_bytes:
                    break
                oldest.unlink(missing_ok=True)  # a process that has it mapped keeps it
                total -= entry_size
            try:
                with unfinished.open("wb") as file:
                    np.save(file, frames, allow_pickle=False)
                _mark_used(unfinished)
                unfinished.replace(entry)
            except OSError:
                unfinished.unlink(missing_ok=True)
                raise

    def _entries(self) -> list[tuple[int, int, Path]]:
        """Time of last use, bytes and path of each."""
        entries = []
        for entry in self.folder.glob("*.npy"):
            try:
                stat = entry.stat()
            except FileNotFoundError:  # another process made room
                continue
            entries.append((stat.st_mtime_ns, stat.st_size, entry))
        return entries

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file closes, also by a killed process
            yield


def _key(path: Path, size: tuple[int, int]) -> str:
    try:
        files = image_files(path) if path.is_dir() else [path]
        state = [(file.name, stat.st_size, stat.st_mtime_ns) for file in files for stat in [file.stat()]]
    except FileNotFoundError as error:
        raise VideoError(path, "there is no such file") from error
    return hashlib.sha256(repr((_LAYOUT, str(path.absolute()), state, tuple(size))).encode()).hexdigest()[:32]


def _mark_used(entry: Path) -> None:
    now = time.time_ns()  # the file system's own clock is too coarse to order uses by
    os.utime(entry, ns=(now, now))


def _load(entry: Path, size: tuple[int, int]) -> Frames | None:
    """An entry as a memory map, marked as used; None where there is none, or none that can be trusted."""
    try:
        frames: Frames = np.load(entry, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError):
        return None  # a torn entry is written anew
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (*size, 3) or not len(frames):
        return None
    with suppress(OSError):  # somebody else's cache, or just removed: the frames are good all the same
        _mark_used(entry)
    return frames
