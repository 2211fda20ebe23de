"""Clips for a training run: which videos, in which batches, in which order."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch.utils.data import DataLoader, Sampler

from sparsetime.train.errors import TrainingError
from sparsetime.train.generated import generated_folder, write_generated
from sparsetime.train.recipe import Recipe, Span
from sparsetime.video import Augment, Broken, Clip, ClipDataset, ClipList, EvalDataset
from sparsetime.video.lists import Allowance, ListError

Progress = Callable[[int, int], None]
Size = tuple[int, int]

#: Stands for a folder.
GENERATED = "generated"

#: Frames in one window of the held-out part and of `evaluate`, as in arXiv 2107.07305.
WINDOW = 32


def open_clips(
    data: str, *, missing: Literal["error", "skip"] = "error", allow: Collection[Allowance] = ()
) -> ClipList:
    """The videos of a data set by its folder, or of the one that is made by rule (``generated``).

    Raises:
        TrainingError: no such folder.
        ListError: a list that cannot be used; the message says why.
    """
    root = write_generated(generated_folder()) if data == GENERATED else Path(data)
    if not root.is_dir():
        raise TrainingError(f"data: no folder {data}; expected one with clips.csv or with one folder a class")
    return ClipList.open(root, missing=missing, allow=allow)


def hold_out(clips: Sequence[Clip], share: float, seed: int) -> tuple[list[Clip], list[Clip]]:
    """Divide clips into those to train on and those to watch, whole groups at a time.

    Raises:
        TrainingError: too few groups to divide, or nothing of a class is left to train on.
    """
    if not share:
        return list(clips), []
    groups = sorted({clip.group for clip in clips})
    count = max(1, round(share * len(groups)))
    if count >= len(groups):
        raise TrainingError(f"validate: {len(groups)} groups cannot be divided with a share of {share} held out")
    chosen = {groups[i] for i in np.random.default_rng(seed).permutation(len(groups))[:count]}
    train, held_out = [c for c in clips if c.group not in chosen], [c for c in clips if c.group in chosen]
    if unseen := {c.label for c in held_out} - {c.label for c in train}:
        raise TrainingError(
            f"validate: with seed {seed} every video of {', '.join(sorted(unseen))} is held out, so that none is left "
            f"to train on; give another seed, or a smaller share than {share}"
        )
    return train, held_out


class EpochBatches(Sampler[list[int]]):
    """Batches in an order that follows from (seed, epoch) alone, so that a resumed run sees what the first would have.

    Every process takes its share of each batch. The last batch, where it is not full, is left out: another order in
    the next epoch brings its clips.

    Args:
        count: number of clips.
        batch_size: over all processes.
        seed: of the run.
        rank, world_size: of the process.
    """

    def __init__(self, count: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.size = min(batch_size, count)
        if self.size < world_size:
            raise TrainingError(f"a batch of {self.size} clips cannot be divided among {world_size} processes")
        self.count, self.seed, self.rank, self.world_size = count, seed, rank, world_size
        self.epoch = 0

    def __len__(self) -> int:
        return self.count // self.size

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.count).tolist()
        for start in range(0, len(self) * self.size, self.size):
            yield order[start : start + self.size][self.rank :: self.world_size]


@dataclass
class TrainingData:
    """The videos of a run, decoded once, as loaders for each phase.

    Attributes:
        clips: to train on, those that could be read.
        watched: windows of the videos held out; None where nothing is.
        broken: could not be read.
        classes: sorted names.
    """

    clips: list[Clip]
    watched: EvalDataset | None
    broken: list[Broken]
    classes: tuple[str, ...]
    recipe: Recipe
    size: Size

    @property
    def held_out(self) -> tuple[Clip, ...]:
        """The videos to watch, those that could be read."""
        return () if self.watched is None else self.watched.clips

    @classmethod
    def decode(
        cls, clips: ClipList, recipe: Recipe, size: Size, *, workers: int = 0, progress: Progress | None = None
    ) -> "TrainingData":
        """Read every video of the split ``train`` once, into the cache on disk.

        Raises:
            ListError: no video to train on can be read.
            TrainingError: videos are held out, and none of them can be read; or clips would be longer than every video
                played forth and back.
        """
        if "train" not in clips.splits:
            raise ListError(f"the data has no split 'train', only {', '.join(clips.splits)}")
        train, held_out = hold_out(clips.split("train"), recipe.validate, recipe.seed)
        shared: dict[str, Any] = {"size": size, "stride": recipe.stride, "workers": workers, "progress": progress}
        augment = Augment() if recipe.augment else None
        trained = ClipDataset(train, clips.classes, length=2, augment=augment, **shared)
        try:
            watched = EvalDataset(held_out, clips.classes, length=WINDOW, **shared) if held_out else None
        except ListError as error:
            raise TrainingError(
                f"validate: of the videos held out {error}. Repair them, or give another seed or validate = 0"
            ) from error
        available = (max(trained.lengths) - 1) // recipe.stride + 1
        length = round(recipe.clip_length * max([1.0, *(phase.clip_length for phase in recipe.phases)]))
        if length > 2 * available:
            raise TrainingError(
                f"clip_length: clips of {length} frames would repeat what they show: the longest video has {available} "
                f"frames at stride {recipe.stride}. Give a --clip-length of at most {available}"
            )
        broken = [*trained.broken, *(watched.broken if watched else ())]
        return cls(list(trained.clips), watched, broken, tuple(clips.classes), recipe, size)

    def sample(self, count: int, length: int) -> ClipDataset:
        """The middle of a few training videos, always the same ones, without augmentation."""
        order = np.random.default_rng(self.recipe.seed).permutation(len(self.clips))[:count]
        return ClipDataset(
            [self.clips[i] for i in order],
            self.classes,
            size=self.size,
            length=length,
            stride=self.recipe.stride,
            train=False,
        )

    def dataset(self, length: int) -> ClipDataset:
        """Training clips of `length` frames: so many of each video that `frames_per_video` frames of it are seen."""
        windows = max(1, round(self.recipe.frames_per_video / length))
        return ClipDataset(
            self.clips * windows,
            self.classes,
            size=self.size,
            length=length,
            stride=self.recipe.stride,
            seed=self.recipe.seed,
            augment=Augment() if self.recipe.augment else None,
        )

    def loader(self, span: Span, *, workers: int, rank: int = 0, world_size: int = 1) -> "PhaseLoader":
        """Batches of one phase."""
        dataset = self.dataset(span.clip_length)
        batches = EpochBatches(len(dataset), span.batch_size, self.recipe.seed, rank, world_size)
        return PhaseLoader(dataset, batches, workers)

    def windows(self, rank: int = 0, world_size: int = 1) -> "DataLoader[Any]":
        """All windows of the held-out videos, whose `video` counts in `held_out`; every process takes its share."""
        assert self.watched is not None, "asked for where nothing is held out"
        return DataLoader(self.watched, batch_sampler=self.watched.batches(4)[rank::world_size])


class PhaseLoader:
    """A DataLoader whose processes live for the whole phase, and which is told the epoch."""

    def __init__(self, dataset: ClipDataset, batches: EpochBatches, workers: int) -> None:
        self.dataset, self.batches = dataset, batches
        self.loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
        )

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int) -> Iterator[dict[str, Any]]:
        """The batches of one epoch: {"clip": uint8 (N, T, 3, H, W), "label": int64 (N,), "index": int64 (N,)}."""
        self.dataset.set_epoch(epoch)
        self.batches.epoch = epoch
        return iter(self.loader)
