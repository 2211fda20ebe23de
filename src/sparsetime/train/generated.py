"""A small data set of generated clips, as video files with their list, made when it is first asked for."""

import os
import tempfile
from pathlib import Path

from sparsetime.video import GeneratedClips, write_clips

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

    Every clip is a video of its own, in a lossless codec, so that the noise is what was drawn. The folder is there
    whole or not at all, whatever stops the writing.
    """
    if (folder / "clips.csv").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as made:
        part = Path(made) / folder.name
        for split, (count, seed) in SPLITS.items():
            write_clips(GeneratedClips(count, seed=seed, size=SIZE, length=LENGTH), part, split)
        try:
            part.rename(folder)
        except OSError:  # another process was faster
            if not (folder / "clips.csv").is_file():
                raise
    return folder
