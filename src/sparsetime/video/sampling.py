"""Which frames of a video make a clip."""

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def train_window(frames: int, length: int, stride: int = 1, rng: np.random.Generator | None = None) -> Indices:
    """Numbers of the frames of one clip of fixed length: start, start + stride, ...

    A video too short for the clip is played forth and back (0 1 2 1 0 1 ...): unlike a repeated last frame, which
    would add frames in which nothing changes, and unlike a jump to the start, every change in the clip is then one
    that the video has.

    Args:
        frames: number of frames of the video, more than `stride` (a clip needs two frames).
        rng: where the window lies; None: in the middle.

    Returns:
        (length,) int64, each in [0, frames).

    Raises:
        ValueError: the video has fewer than two frames at this stride, or length < 2.
    """
    _check(frames, length, stride)
    available = min(length, (frames - 1) // stride + 1)
    room = frames - ((available - 1) * stride + 1)
    start = room // 2 if rng is None else int(rng.integers(room + 1))
    period = 2 * (available - 1)
    steps = np.arange(length) % period
    return start + stride * np.minimum(steps, period - steps)


def eval_windows(frames: int, length: int | None = None, *, stride: int = 1, overlap: int = 0) -> list[Indices]:
    """Consecutive clips that cover a video (its frames 0, stride, 2 stride, ...), every frame a true one.

    Each clip starts `overlap` frames before the end of the one before. The last may be shorter; where a single frame
    would be left over, it starts one frame earlier, because a clip needs two.

    Args:
        length: frames in a clip; None: the whole video is one clip.

    Returns:
        The frame numbers of each clip, (t,) int64 with 2 <= t <= length.

    Raises:
        ValueError: as `train_window`, or the overlap is not in [0, length).
    """
    _check(frames, 2 if length is None else length, stride)
    sampled = np.arange(0, frames, stride)
    if length is None:
        return [sampled]
    if not 0 <= overlap < length:
        raise ValueError(f"overlap: expected 0 <= overlap < length={length}, got {overlap}")
    windows = []
    start = 0
    while True:
        windows.append(sampled[start : start + length])
        end = start + length
        if end >= len(sampled):
            return windows
        start = min(end - overlap, len(sampled) - 2)


def _check(frames: int, length: int, stride: int) -> None:
    if length < 2 or stride < 1:
        raise ValueError(f"expected length >= 2 and stride >= 1, got length={length}, stride={stride}")
    if frames <= stride:
        raise ValueError(f"expected a video of at least {stride + 1} frames (two at stride {stride}), got {frames}")
