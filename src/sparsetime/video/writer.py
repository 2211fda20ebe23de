"""Write generated clips as files, so that they go the same way as anybody's videos."""

import csv
from fractions import Fraction
from pathlib import Path

from sparsetime.video.generate import GeneratedClips
from sparsetime.video.reader import Frames, import_av


def write_video(path: str | Path, frames: Frames, *, rate: float = 25.0) -> None:
    """Write frames to a Matroska file without loss (FFV1): `read_frames` gives the same bytes back.

    Args:
        path: the file, with the suffix ``.mkv``.
        frames: (T, H, W, 3) uint8 RGB.
        rate: frames a second.

    Raises:
        ValueError: shape, type or suffix is another.
    """
    path = Path(path)
    if path.suffix != ".mkv" or frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != "uint8":
        raise ValueError(f"expected a .mkv file and uint8 (T, H, W, 3), got {path.name}, {frames.dtype} {frames.shape}")
    av = import_av()
    with av.open(f"file:{path}", "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=Fraction(rate).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_clips(clips: GeneratedClips, root: str | Path, split: str) -> None:
    """Write generated clips to ``root/split`` and add them to ``root/clips.csv``, each as a group of its own.

    Raises:
        FileExistsError: the folder of the split is there already.
    """
    root = Path(root)
    (root / split).mkdir(parents=True)
    table = root / "clips.csv"
    new = not table.exists()
    with table.open("a", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        if new:
            rows.writerow(["file", "label", "group", "split"])
        for index in range(len(clips)):
            item = clips[index]
            name = f"{split}/{index:05d}.mkv"
            write_video(root / name, item["clip"].permute(0, 2, 3, 1).contiguous().numpy())
            rows.writerow([name, clips.classes[item["label"]], f"{split}-{index:05d}", split])
