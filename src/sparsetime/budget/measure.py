"""A plan over clips: how much it drops, and what it costs."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsetime.budget.clips import Clip
from sparsetime.budget.cost import CostModel, Counted, Layout
from sparsetime.budget.judge import Judge, drop_of
from sparsetime.engine import OpStats, Plan
from sparsetime.run.quality import Answer, Distance
from sparsetime.run.session import Skipping

__all__ = ["Answered", "Control", "Measured", "accuracy_drop", "frozen", "guess", "measure", "measured", "skipping"]

Array = NDArray[Any]


class Answered(NamedTuple):
    """How well a plan answers.

    drops: of each clip; with labels one figure for all clips. NaN where a clip has nothing to compare.
    right: with labels, whether each clip's class is right.
    error: see `sparsetime.budget.judge`.
    wall_ns: of a frame by the clock, medians of flushes and of other frames in the shares that they have.
    """

    drops: list[float]
    right: list[bool]
    error: float
    wall_ns: float


@dataclass(frozen=True)
class Judged:
    """How well something answers; `drops` and `right` are those of `Answered`."""

    drops: list[float]
    right: list[bool]

    @property
    def drop(self) -> float:
        """Of the worst clip that has something to compare, NaN where none has."""
        return max(self._known, default=math.nan)

    @property
    def mean_drop(self) -> float:
        """Over the clips that have something to compare, NaN where none has."""
        return statistics.fmean(self._known or [math.nan])

    @property
    def _known(self) -> list[float]:
        return [drop for drop in self.drops if not math.isnan(drop)]


@dataclass(frozen=True)
class Measured(Judged):
    """What a setting does on clips, first frames left out.

    Attributes:
        drops, right, error, wall_ns: see `Answered`.
        time_ns: of a mean frame, by the cost model.
        op_density, event_density: see `sparsetime.budget.cost.Layout`.
    """

    error: float
    time_ns: float
    wall_ns: float
    op_density: float
    event_density: float

    def to_json(self) -> dict[str, Any]:
        """JSON-able; `Measured.from_json` reads it."""
        drops = [None if math.isnan(drop) else drop for drop in self.drops]
        return dataclasses.asdict(self) | {"drops": drops}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Measured:
        """What `to_json` wrote."""
        return cls(**{**entry, "drops": [math.nan if drop is None else drop for drop in entry["drops"]]})


def measure(
    plan: Plan, clips: list[Clip], judge: Judge, *, threads: int = 1, flush: float = 0.0
) -> tuple[Answered, Counted]:
    """Run a plan over clips, each as a stream of its own.

    Args:
        plan: what to run; its outputs are a list.
        clips: answered by the dense network.
        judge: reads the answers.
        threads: of the stream.
        flush: of the stream, see `Stream`.
    """
    stream = plan.stream(threads=threads, flush=flush)
    answers: list[list[Answer]] = []
    walls: list[int] = []
    flushed: list[bool] = []
    frames: list[Mapping[str, OpStats]] = []
    wrong = size = 0.0
    for clip in clips:
        stream.reset()
        answers.append([])
        for number, (frame, (_, signature)) in enumerate(zip(clip.frames, clip.dense, strict=True)):
            start = time.perf_counter_ns()
            outputs = stream(frame)
            wall = time.perf_counter_ns() - start
            answer, own = judge(outputs)
            answers[-1].append(answer)
            if number:
                walls.append(wall)
                flushed.append(stream.flushed)
                frames.append(stream.stats)
                wrong += float(np.square(own - signature, dtype=np.float64).sum())
                size += float(np.square(signature, dtype=np.float64).sum())
    drops, right = _judged(judge, clips, answers)
    answered = Answered(drops, right, wrong / size if size else 0.0, _usual(walls, flushed))
    return answered, Counted.of(frames, flushed)


def _usual(walls: list[int], flushed: list[bool]) -> float:
    """Mean time of a frame, each counted as the median of its kind: one at which the machine paused moves little."""
    kinds = [[wall for wall, was in zip(walls, flushed, strict=True) if was == kind] for kind in (False, True)]
    return sum(len(kind) * statistics.median(kind) for kind in kinds if kind) / len(walls)


def measured(answered: Answered, counted: Counted, layout: Layout, cost: CostModel) -> Measured:
    """One figure each."""
    return Measured(
        answered.drops,
        answered.right,
        answered.error,
        float(cost(counted).sum()),
        answered.wall_ns,
        layout.op_density(counted),
        layout.event_density(counted),
    )


def _judged(judge: Judge, clips: list[Clip], answers: list[list[Answer]]) -> tuple[list[float], list[bool]]:
    """Drops of the clips, or with labels of all of them together, and which clips are right."""
    if all(clip.label is not None for clip in clips):
        right = [guess(own) == clip.label for clip, own in zip(clips, answers, strict=True)]
        dense = [guess([answer for answer, _ in clip.dense]) == clip.label for clip in clips]
        return [accuracy_drop(right, dense)], right
    drops = []
    for clip, own in zip(clips, answers, strict=True):
        distance = Distance(judge.task)
        for answer, (expected, _) in zip(own[1:], clip.dense[1:], strict=True):
            distance.add(answer, expected)
        drop = drop_of(judge.task, distance.summary())
        drops.append(math.nan if drop is None else drop)
    return drops, []


def accuracy_drop(right: list[bool], dense: list[bool]) -> float:
    """Accuracy of the dense network less that of the stream; below 0 where the stream is better."""
    return (sum(dense) - sum(right)) / len(right)


def guess(answers: list[Answer]) -> int:
    """Class of a clip: the arg-max of the mean of the probabilities over its frames."""
    return int(np.mean([answer.meaning for answer in answers], axis=0).argmax())


@dataclass(frozen=True)
class Control(Judged):
    """What costs no network at all, or a whole one now and then.

    Attributes:
        every: frames from one that is computed to the next, or None where none is but the first.
    """

    every: float | None = None


def frozen(judge: Judge, clips: list[Clip]) -> Control:
    """The dense answer to the first frame of a clip for all of it."""
    return Control(*_judged(judge, clips, [[clip.dense[0][0]] * len(clip.dense) for clip in clips]))


def skipping(judge: Judge, clips: list[Clip], time_ns: float) -> Control:
    """The dense network on every k-th frame, k such that it takes the stream's time, its answer held in between.

    Args:
        judge: who compares.
        clips: answered by the dense network.
        time_ns: of the stream on a frame.
    """
    answers = []
    frames = computed = 0
    for clip in clips:
        schedule = Skipping()
        own = [clip.dense[0][0]]
        for answer, _ in clip.dense[1:]:
            own.append(answer if schedule.computes(round(time_ns), clip.dense_ns) else own[-1])
        answers.append(own)
        frames += schedule.frames
        computed += schedule.computed
    return Control(*_judged(judge, clips, answers), every=frames / computed if computed else None)
