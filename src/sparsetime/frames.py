"""Frames of a clip with the change maps of some layers: how a run hands pictures to the report."""

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsetime.files import write_whole

_MAP = "map/"


class Frames(NamedTuple):
    """Frames of one clip, uint8 RGB (T, H, W, 3), and per layer the share of channels sent, float16 (T, h, w)."""

    frames: NDArray[np.uint8]
    maps: dict[str, NDArray[np.float16]]


def change_maps(before: NDArray[Any]) -> NDArray[np.float16]:
    """Share of the channels that change, for each frame and position.

        m(t, y, x) = mean over c of [n(t, c, y, x) != n(t-1, c, y, x)],   n(-1) = 0

    The first frame is what a stream sends at its flush: the share of channels that are not zero.

    Args:
        before: codes or quantized values of one layer and one clip, (T, C, h, w), finite.

    Returns:
        Shares in [0, 1], (T, h, w).

    Raises:
        ValueError: another number of axes, no frame or no channel, or a value that is not finite.
    """
    if before.ndim != 4 or before.shape[0] == 0 or before.shape[1] == 0:
        raise ValueError(
            f"change_maps: expected (T, C, h, w) with T, C >= 1, got {before.shape}. Pass one clip, batch axis off"
        )
    if not np.isfinite(before).all():
        raise ValueError("change_maps: expected finite values, got NaN or infinity")
    changed = before != np.concatenate([np.zeros_like(before[:1]), before[:-1]])
    shares: NDArray[np.float16] = changed.mean(axis=1, dtype=np.float32).astype(np.float16)
    return shares


def save_frames(path: Path, frames: NDArray[np.uint8], maps: Mapping[str, NDArray[Any]]) -> None:
    """Write frames and change maps as ``frames-<split>.npz``, in one step.

    Args:
        path: the file, ending in ``.npz``.
        frames: uint8 RGB, (T, H, W, 3).
        maps: layer name to shares in [0, 1], (T, h, w).

    Raises:
        ValueError: a wrong shape or dtype, or a share outside [0, 1]; names the array.
    """
    checked = _check(frames, maps, "save_frames")
    arrays: dict[str, NDArray[Any]] = {_MAP + name: value for name, value in checked.maps.items()}
    content = io.BytesIO()
    np.savez_compressed(content, frames=checked.frames, **arrays)  # type: ignore[arg-type]
    write_whole(path, content.getvalue())


def load_frames(path: Path) -> Frames:
    """Read what ``save_frames`` wrote. Nothing in the file is executed.

    Raises:
        ValueError: the file is absent, no npz archive, or its arrays are not as ``save_frames`` describes them.
    """
    try:
        with Path(path).open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise ValueError("it is a single array")
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"load_frames: {path} is not readable as an npz archive: {error}") from error
    if "frames" not in arrays:
        raise ValueError(f"load_frames: {path} holds no array 'frames', got {sorted(arrays)}")
    maps = {name.removeprefix(_MAP): value for name, value in arrays.items() if name.startswith(_MAP)}
    return _check(arrays["frames"], maps, f"load_frames: {path}")


def _check(frames: NDArray[Any], maps: Mapping[str, NDArray[Any]], where: str) -> Frames:
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise ValueError(f"{where}: frames are uint8 (T, H, W, 3), got {frames.dtype} {frames.shape}")
    checked = {}
    for name, value in maps.items():
        if value.ndim != 3 or value.shape[0] != frames.shape[0] or 0 in value.shape or value.dtype.kind != "f":
            raise ValueError(
                f"{where}: the map of layer {name!r} is floating point (T, h, w) with T = {frames.shape[0]}, "
                f"got {value.dtype} {value.shape}"
            )
        if not ((value >= 0) & (value <= 1)).all():
            raise ValueError(f"{where}: the map of layer {name!r} holds shares in [0, 1], got others")
        checked[name] = value.astype(np.float16)
    return Frames(frames, checked)
