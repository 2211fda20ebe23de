"""Videos made on the spot, so that every frame is known."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from sparsetime.video import write_video


def gradient_frames(count: int, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """(T, H, W, 3) uint8: smooth, different in every frame, and no two corners alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    offset = rng.uniform(0, 40)
    frames = [np.stack([200 * x + 40, 200 * y + 40, 100 * x * y + offset + 3 * t], axis=-1) for t in range(count)]
    return np.stack(frames).clip(0, 255).astype(np.uint8)


def encode(
    path: Path, frames: np.ndarray, codec: str, pix_fmt: str = "yuv420p", options: dict[str, str] | None = None
) -> Path:
    """A file as cameras and data sets have them: lossy, by the container of its suffix."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def save_picture(path: Path, picture: np.ndarray) -> None:
    """One (H, W, 3) picture as PNG or JPEG, by the suffix."""
    codec, pix_fmt = ("png", "rgb24") if path.suffix == ".png" else ("mjpeg", "yuvj444p")
    encoder = av.CodecContext.create(codec, "w")
    encoder.height, encoder.width, encoder.pix_fmt = *picture.shape[:2], pix_fmt
    encoder.time_base = Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)
    path.write_bytes(b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode()]))


@pytest.fixture
def make_set(tmp_path: Path) -> Callable[..., Path]:
    """Write lossless videos and their clips.csv: ``make_set({"a": 20, "b": 12})`` has classes x and y in turn."""

    def make(lengths: dict[str, int], splits: tuple[str, ...] = ("train",)) -> Path:
        lines = ["file,label,group,split"]
        for number, (name, length) in enumerate(lengths.items()):
            write_video(tmp_path / f"{name}.mkv", gradient_frames(length, 24, 32, seed=number))
            lines.append(f"{name}.mkv,{'xy'[number % 2]},g{number},{splits[number // 2 % len(splits)]}")
        (tmp_path / "clips.csv").write_text("\n".join(lines) + "\n")
        return tmp_path

    return make
