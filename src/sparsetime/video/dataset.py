"""Clips of real videos as torch data sets: one random clip a video an epoch for training, all clips for evaluation."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sparsetime.video.augment import Augment
from sparsetime.video.cache import FrameCache
from sparsetime.video.lists import Clip, ListError
from sparsetime.video.reader import Frames, VideoError
from sparsetime.video.sampling import Indices, eval_windows, train_window

logger = logging.getLogger("sparsetime.video")

_CANVAS = (
    1.15  # frames are cached this much larger than the network's input, so that random crops need not be scaled up
)

Size = tuple[int, int]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Broken:
    """A video that was left out, and why."""

    clip: Clip
    reason: str


class _Videos(Dataset[dict[str, Any]]):
    """What both data sets share: videos that were all decoded once, the broken ones left out.

    Attributes:
        clips: the videos in use.
        lengths: frames of each.
        broken: the videos left out.
        classes: names of the labels 0, 1, ...
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        classes: Sequence[str],
        *,
        canvas: Size,
        stride: int,
        cache: FrameCache | None,
        workers: int,
        progress: Progress | None,
    ) -> None:
        if unknown := sorted({clip.label for clip in clips} - set(classes)):
            raise ListError(
                f"classes: expected all labels of the clips among {', '.join(classes)}; not there: {', '.join(unknown)}"
            )
        self.classes = tuple(classes)
        self._labels = {name: number for number, name in enumerate(classes)}
        self._canvas = canvas
        self._cache = FrameCache() if cache is None else cache
        good: list[tuple[Clip, int]] = []
        broken: list[Broken] = []
        for clip, found in zip(clips, self._scan(clips, workers, progress), strict=True):
            if isinstance(found, int) and found <= stride:
                found = f"has {found} frames; a clip at stride {stride} needs at least {stride + 1}"
            if isinstance(found, int):
                good.append((clip, found))
            else:
                broken.append(Broken(clip, found))
                logger.warning("left out %s: %s", clip.path, found)
        if not good:
            raise ListError(
                f"none of the {len(clips)} videos can be used"
                + (f"; the first: {broken[0].clip.path}: {broken[0].reason}" if broken else "")
            )
        self.clips = tuple(clip for clip, _ in good)
        self.lengths = tuple(frames for _, frames in good)
        self.broken = tuple(broken)

    def _scan(self, clips: Sequence[Clip], workers: int, progress: Progress | None) -> list[int | str]:
        """Decode every video into the cache: how many frames it has, or what is wrong with it."""
        results = []
        generator = torch.Generator()  # a loader draws a seed: not from the generator that training uses
        scan = _Scan(clips, self._cache, self._canvas)
        for result in DataLoader(
            scan, batch_size=None, num_workers=workers, collate_fn=_unchanged, generator=generator
        ):
            results.append(result)
            if progress is not None:
                progress(len(results), len(clips))
        return results

    def summary(self) -> str:
        """How many videos are in use and which were left out, in one line a fact."""
        lines = [
            f"{len(self.clips)} videos of {len({clip.label for clip in self.clips})} classes, "
            f"{len(self.broken)} left out"
        ]
        lines += [f"  {broken.clip.path}: {broken.reason}" for broken in self.broken]
        return "\n".join(lines)

    def _frames(self, index: int, numbers: Indices) -> Tensor:
        """Chosen frames of a video, uint8 (T, 3, H, W) at the canvas size."""
        frames = self._cache.frames(self.clips[index].path, self._canvas)
        return torch.from_numpy(frames[numbers]).permute(0, 3, 1, 2)

    def _label(self, index: int) -> int:
        return self._labels[self.clips[index].label]


class ClipDataset(_Videos):
    """One clip of fixed length of every video: another one in each epoch for training, the middle one for validation.

    The constructor decodes every video once into the cache. A broken, empty or truncated one is named in one line of
    the log ``sparsetime.video``, counted in `broken`, and left out, so the set is fixed before the first epoch.

    What item i is depends on (seed, epoch, i) alone: not on the number of workers, nor on what was read before.

    Args:
        clips: the videos; their labels must be among `classes`.
        size: (H, W) of the clips given.
        length: frames of a clip; videos that are shorter are played forth and back, see `train_window`.
        stride: take every stride-th frame.
        train: False: the middle window, no augmentation.
        augment: None: none.
        cache: where decoded frames are kept; None: a `FrameCache` in its usual folder.
        workers: processes that decode in the constructor.
        progress: called with (videos done, videos in all) while decoding.

    Items are ``{"clip": uint8 (length, 3, H, W), "label": int, "index": int}``.

    Raises:
        ListError: no video can be used, or a label is not among the classes.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        classes: Sequence[str],
        *,
        size: Size,
        length: int,
        stride: int = 1,
        train: bool = True,
        seed: int = 0,
        augment: Augment | None = Augment(),  # noqa: B008 -- frozen
        cache: FrameCache | None = None,
        workers: int = 0,
        progress: Progress | None = None,
    ) -> None:
        if length < 2 or stride < 1:
            raise ValueError(f"expected length >= 2 and stride >= 1, got length={length}, stride={stride}")
        self.size = size
        self.length = length
        self.stride = stride
        self.train = train
        self.seed = seed
        self.augment = augment if train else None
        # Shared memory: workers that outlive an epoch see the next one's number.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        canvas = size if self.augment is None else (round(size[0] * _CANVAS), round(size[1] * _CANVAS))
        super().__init__(clips, classes, canvas=canvas, stride=stride, cache=cache, workers=workers, progress=progress)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose clips are given from now on; also seen by workers that run already."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, int(self._epoch), index)) if self.train else None
        clip = self._frames(index, train_window(self.lengths[index], self.length, self.stride, rng))
        if self.augment is not None and rng is not None:
            clip = self.augment(clip, self.size, rng)
        return {"clip": clip.contiguous(), "label": self._label(index), "index": index}


class EvalDataset(_Videos):
    """All clips that cover every video, in order, without augmentation; see `eval_windows` for how they lie.

    Broken videos are treated as in `ClipDataset`. The last clip of a video may be shorter, so batches are made by
    `batches`.

    Args:
        length: frames of a clip; None: the whole video is one clip.
        overlap: frames that consecutive clips share.
        Others: as in `ClipDataset`.

    Items are ``{"clip": uint8 (t, 3, H, W), "label": int, "index": int, "video": int, "start": int}``: `video` counts
    in `clips`, `start` is the number of the clip's first frame, 2 <= t <= length.

    Raises:
        ListError: as `ClipDataset`.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        classes: Sequence[str],
        *,
        size: Size,
        length: int | None = None,
        stride: int = 1,
        overlap: int = 0,
        cache: FrameCache | None = None,
        workers: int = 0,
        progress: Progress | None = None,
    ) -> None:
        eval_windows(stride + 1, length, stride=stride, overlap=overlap)  # complain before everything is decoded
        super().__init__(clips, classes, canvas=size, stride=stride, cache=cache, workers=workers, progress=progress)
        self.windows = tuple(
            (video, window)
            for video, frames in enumerate(self.lengths)
            for window in eval_windows(frames, length, stride=stride, overlap=overlap)
        )

    def by_length(self) -> dict[int, list[int]]:
        """Item numbers, by the number of frames of their clips."""
        groups: dict[int, list[int]] = {}
        for index, (_, window) in enumerate(self.windows):
            groups.setdefault(len(window), []).append(index)
        return groups

    def batches(self, batch_size: int) -> list[list[int]]:
        """Item numbers in batches of equal clip length: ``DataLoader(dataset, batch_sampler=dataset.batches(8))``."""
        return [
            indices[first : first + batch_size]
            for _, indices in sorted(self.by_length().items(), reverse=True)
            for first in range(0, len(indices), batch_size)
        ]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        video, window = self.windows[index]
        clip = self._frames(video, window).contiguous()
        return {"clip": clip, "label": self._label(video), "index": index, "video": video, "start": int(window[0])}


class _Scan(Dataset[int | str]):
    def __init__(self, clips: Sequence[Clip], cache: FrameCache, canvas: Size) -> None:
        self.clips, self.cache, self.canvas = clips, cache, canvas

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> int | str:
        try:
            frames: Frames = self.cache.frames(self.clips[index].path, self.canvas)
        except VideoError as error:
            return error.reason
        return len(frames)


def _unchanged(item: Any) -> Any:
    return item
