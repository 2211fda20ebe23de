"""What an operation costs, as a function of the work it has: measured once, then time without noise.

    time of an operation in a frame = a + b * work        one line for each way; a, b >= 0

The ways: sparse, dense, and a flush, which computes densely but compares with nothing.

work: multiply-accumulates done, or events at the inputs of operations that have none. The search compares settings
whose times differ by a per cent; a clock on a busy machine does not. Work is a count, the same at every run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsetime.engine import OpStats, Plan

__all__ = ["DENSE", "FLUSH", "SPARSE", "CostModel", "Counted", "Layout"]

Array = NDArray[Any]
SPARSE, DENSE, FLUSH = range(3)
"""Ways of an operation through a frame."""

_LIKE = ((SPARSE, DENSE, FLUSH), (DENSE, SPARSE, FLUSH), (FLUSH, DENSE, SPARSE))
"""For each way, whose frames its line is fitted to: of the first that occurs."""

_PARTS = 6  # of the work, a median each: one frame in which the machine did something else moves no median


class Counted(NamedTuple):
    """What each of L operations did in F frames; arrays (F, L). way: SPARSE, DENSE or FLUSH."""

    events: Array
    macs: Array
    work: Array
    way: Array
    time_ns: Array

    @classmethod
    def of(cls, frames: list[Mapping[str, OpStats]], flushed: list[bool]) -> Counted:
        """From the statistics of frames, and which of them were flushes."""
        rows = np.asarray(
            [
                [
                    (s.events, s.macs, s.macs or s.events_in, FLUSH if flush else int(s.path == "dense"), s.time_ns)
                    for s in stats.values()
                ]
                for stats, flush in zip(frames, flushed, strict=True)
            ],
            np.int64,
        )
        return cls(*np.moveaxis(rows, 2, 0))


class Layout:
    """What of a plan its densities are counted with.

    Args:
        plan: see above; which steps its codecs have does not matter.

    Attributes:
        caused: (L,), multiply-accumulates that an event of each operation causes in those that read it, on average.
        dense_macs: of a frame.
    """

    def __init__(self, plan: Plan) -> None:
        self.dense_macs = max(plan.dense_macs, 1)
        self.caused = plan.macs_per_event()

    def op_density(self, counted: Counted) -> float:
        """Multiply-accumulates done / dense ones."""
        return float(counted.macs.sum(axis=1).mean() / self.dense_macs)

    def event_density(self, counted: Counted) -> float:
        """Multiply-accumulates that the events ask for / dense ones. The engine does more where that is quicker."""
        return float((counted.events @ self.caused).mean() / self.dense_macs)


class CostModel:
    """Time of frames from what their operations had to do.

    Args:
        lines: (L, 3, 2): a in ns and b in ns per unit of work, for each way.
    """

    def __init__(self, lines: Any) -> None:
        self.lines = np.asarray(lines, np.float64)
        if self.lines.ndim != 3 or self.lines.shape[1:] != (3, 2):
            raise ValueError(f"cost model: expected lines of the shape (L, 3, 2), got {self.lines.shape}")

    @classmethod
    def fit(cls, counted: Counted) -> CostModel:
        """Fit to frames at several densities, first frames of streams left out."""
        lines = np.zeros((counted.work.shape[1], 3, 2))
        for place in range(len(lines)):
            taken = [counted.way[:, place] == way for way in (SPARSE, DENSE, FLUSH)]
            for way, others in enumerate(_LIKE):
                # A way that does not occur costs as another one.
                rows = next(taken[other] for other in others if taken[other].any())
                lines[place, way] = _line(counted.work[rows, place], counted.time_ns[rows, place])
        return cls(lines)

    def __call__(self, counted: Counted) -> Array:
        """Time of each operation in a mean frame, ns: (L,)."""
        lines = self.lines[np.arange(len(self.lines)), counted.way]  # (F, L, 2)
        return np.asarray((lines[..., 0] + lines[..., 1] * counted.work).mean(axis=0))


def _line(work: Array, time: Array) -> tuple[float, float]:
    """(a, b) of the line through the medians of parts of the work; through 0 or flat where a or b would be below 0."""
    order = np.argsort(work, kind="stable")
    parts = np.array_split(order, min(_PARTS, len(order)))
    x = np.asarray([np.median(work[part]) for part in parts])
    y = np.maximum([np.median(time[part]) for part in parts], 1.0)
    # Relative errors count: a + b x against y, both over y.
    columns = np.stack([1 / y, x / y], axis=1)
    if np.ptp(x) > 0:
        a, b = np.linalg.lstsq(columns, np.ones_like(y), rcond=None)[0]
        if a < 0:
            a, b = 0.0, columns[:, 1].sum() / (columns[:, 1] @ columns[:, 1])
        if b >= 0:
            return float(a), float(b)
    return float(np.median(y)), 0.0
