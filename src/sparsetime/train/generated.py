"""A small data set of generated clips, as video files with their list, made when it is first asked for."""

import csv
import os
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from sparsetime.video import GeneratedClips

#: Clips of each split, and the first part of their seed: no clip is in both.
SPLITS = {"train": (192, 1), "test": (64, 2)}
LENGTH = 24
SIZE = (64, 64)


def generated_folder() -> Path:
    """Where ``--data generated`` keeps its clips."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "sparsetime" / f"generated-{SIZE[0]}-{LENGTH}-{'-'.join(str(n) for n, _ in SPLITS.values())}"


def write_generated(folder: Path) -> Path:
    """Write the clips and their ``clips.csv``; does nothing where they are already.

    Every clip is a video of its own, in a lossless codec, so that the noise is what was drawn.
    """
    if (folder / "clips.csv").is_file():
        return folder
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    rows = []
    for split, (count, seed) in SPLITS.items():
        clips = GeneratedClips(count, seed=seed, size=SIZE, length=LENGTH)
        for i in range(count):
            item = clips[i]
            name = f"{split}-{i:03d}.avi"
            write_video(part / name, item["clip"].permute(0, 2, 3, 1).numpy())
            label = clips.classes[item["label"]]
            rows.append({"file": name, "label": label, "group": Path(name).stem, "split": split})
    with (part / "clips.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["file", "label", "group", "split"])
        writer.writeheader()
        writer.writerows(rows)
    try:
        part.rename(folder)
    except OSError:  # another process was faster
        if not (folder / "clips.csv").is_file():
            raise
        shutil.rmtree(part)
    return folder


def write_video(path: Path, frames: NDArray[np.uint8]) -> None:
    """Write RGB frames (T, H, W, 3) as an FFV1 video, which loses nothing."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(30))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
