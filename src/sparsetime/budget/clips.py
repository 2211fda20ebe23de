"""Clips to tune on and clips to check on, with what the dense network says about each frame."""

from __future__ import annotations

import csv
import hashlib
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsetime.budget.errors import BudgetError
from sparsetime.budget.judge import Judge
from sparsetime.run.dense import Dense
from sparsetime.run.quality import Answer
from sparsetime.run.sources import Source, SourceError
from sparsetime.video.reader import VIDEO_SUFFIXES, image_files

__all__ = [
    "SHORTEST",
    "Clip",
    "answered",
    "clip_places",
    "digest",
    "divided",
    "read_clips",
    "read_labels",
    "video_files",
]

Array = NDArray[Any]
Frames = NDArray[np.uint8]

SHORTEST = 4
"""Frames of a clip at least: fewer say nothing about what changes."""


@dataclass(eq=False)
class Clip:
    """Consecutive frames of one video.

    Attributes:
        video: its file or folder.
        start: number of the first frame in the video.
        frames: (T, H, W, 3) uint8 RGB.
        label: number of the class, or None.
        dense: answer and signature of the dense network for every frame; empty until `answered`.
        dense_ns: median time of the dense network on a frame.
    """

    video: str
    start: int
    frames: Frames
    label: int | None
    dense: list[tuple[Answer, Array]]
    dense_ns: int = 0

    @property
    def name(self) -> str:
        """Video and frames."""
        return f"{self.video} frames {self.start}-{self.start + len(self.frames) - 1}"


def video_files(videos: Iterable[str]) -> list[str]:
    """The videos by name; a folder that holds video files and no pictures stands for these.

    Raises:
        BudgetError: none, or one that is given twice.
    """
    found: list[str] = []
    for video in videos:
        folder = Path(video)
        if folder.is_dir() and not image_files(folder):
            found += sorted(str(file) for file in folder.iterdir() if file.suffix.lower() in VIDEO_SUFFIXES)
        else:
            found.append(video)
    if not found:
        raise BudgetError("there is no video to tune on; give --video FILE, more than once if there are more")
    twice = sorted({video for video in found if found.count(video) > 1})
    if twice:
        raise BudgetError(f"{', '.join(twice)}: given twice; a video that is tuned on cannot be checked on")
    return found


def read_labels(file: Path, videos: list[str], classes: tuple[str, ...], count: int) -> dict[str, int]:
    """Classes of the videos from a CSV file with the columns `file` and `label`.

    `file` is the video as it was given, or its name without folders. `label` is the name of a class, where the run
    directory says them, or its number.

    Raises:
        BudgetError: a video without a label, or a label that is no class.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BudgetError(f"--labels {file}: {error}") from error
    if not rows or not {"file", "label"} <= set(rows[0]):
        raise BudgetError(f"--labels {file}: expected a CSV file with the columns file and label")
    given = {str(row["file"]): str(row["label"]).strip() for row in rows}
    labels: dict[str, int] = {}
    for video in videos:
        label = given.get(video) or given.get(Path(video).name)
        if label is None:
            raise BudgetError(f"--labels {file}: no row for {video}")
        if label in classes:
            labels[video] = classes.index(label)
        elif label.isdecimal() and int(label) < count:
            labels[video] = int(label)
        else:
            known = (
                ", ".join(classes) or f"numbers from 0 to {count - 1}; names need the run directory in place of a plan"
            )
            raise BudgetError(f"--labels {file}: {video} has the label {label!r}; the network's classes are {known}")
    return labels


def divided(videos: list[str]) -> tuple[list[str], list[str]]:
    """Videos to tune on and videos to hold back: every third, the last among them. One alone is divided by its frames.

    >>> divided(["a", "b", "c", "d"])
    (['a', 'b', 'd'], ['c'])
    """
    held = [video for number, video in enumerate(videos) if number % 3 == 2] or videos[1:]
    return [video for video in videos if video not in held], held


def clip_places(
    video: str, size: tuple[int, int], length: int | None, most: int, part: tuple[float, float] = (0.0, 1.0)
) -> list[range]:
    """Numbers of the frames of up to `most` clips, spread over a part of a video, which is decoded to know its length.

    Args:
        video: file, or folder of pictures.
        size: (H, W) of the frames.
        length: of a clip; None for one clip of all the frames.
        most: clips to give.
        part: from where to where, as shares of the video.

    Raises:
        BudgetError: the source has no end, or is too short.
        SourceError: it does not decode in full.
    """
    source = Source(video, size)
    if source.live:
        raise BudgetError(f"{source.name}: expected a video file or a folder of pictures, something with an end")
    total = sum(1 for _ in source)
    if source.damage:
        raise SourceError(f"{source.name}: {'; '.join(source.damage)}")
    first, last = (round(share * total) for share in part)
    wanted = min(length or total, last - first)
    if wanted < SHORTEST:
        raise BudgetError(f"{video}: {wanted} frames to tune or check on; expected {SHORTEST} or more")
    count = min(most, (last - first) // wanted)
    room = (last - first - count * wanted) / count
    starts = [first + round(k * (wanted + room)) for k in range(count)]
    return [range(start, start + wanted) for start in starts]


def read_clips(video: str, size: tuple[int, int], places: list[range]) -> list[Clip]:
    """The clips of a video at the places that `clip_places` gave."""
    kept: list[list[Frames]] = [[] for _ in places]
    for number, shot in enumerate(Source(video, size)):
        for place, frames in zip(places, kept, strict=True):
            if number in place:
                frames.append(shot.picture)
    return [Clip(video, place.start, np.stack(frames), None, []) for place, frames in zip(places, kept, strict=True)]


def answered(clips: list[Clip], dense: Dense, judge: Judge, said: Callable[[], None]) -> None:
    """Let the dense network answer every frame of the clips.

    Args:
        clips: what to fill.
        dense: the network.
        judge: who keeps its answers.
        said: called after every clip.
    """
    for clip in clips:
        times = []
        for frame in clip.frames:
            start = time.perf_counter_ns()
            outputs = dense.run(frame)
            times.append(time.perf_counter_ns() - start)
            clip.dense.append(judge(outputs))
        clip.dense_ns = round(statistics.median(times))
        said()


def digest(clips: Iterable[Clip]) -> str:
    """Identity of the frames of clips."""
    found = hashlib.sha256()
    for clip in clips:
        found.update(f"{clip.name} {clip.label}".encode())
        found.update(clip.frames.data)
    return found.hexdigest()
