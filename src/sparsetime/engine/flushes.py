"""When a stream starts again, by what its events ask for: the same on every backend and machine.

    flushed at t:  asked_t = 0
    else:          a_t = sum over operations of events * operations of an event / operations of a dense frame
                   asked_t = asked_{t-1} + a_t

A frame is a flush, the first of a new stream,

1. once asked >= `flush`: what codecs have kept back goes away, and flushes ask for at most as much as the changes do;
2. if it sends more than `CUT` of the input's elements (the executor sees that while it takes the frame): a cut;
3. for some frames after one with a > `BUSY`. Where much moves in one frame much moves in the next, and such a frame
   takes longer than a flush, whose answer is the dense one besides. One frame, then, if the frame behind it is as busy,
   two, four, and so on up to `LONGEST`; a frame that is neither busy nor a cut starts again from one. A cut counts as
   the first of these flushes, so that one alone is followed by none.

2 and 3 are off where `flush` is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsetime.engine.plan import Plan

__all__ = ["BUSY", "CUT", "LONGEST", "Flushes", "Pace"]

CUT = 0.3
"""Share of the input's elements above which a flush costs about what the changes do (docs/experiments.md)."""

BUSY = 0.4
"""Share of a dense frame's operations above which a flush costs no more than the changes that ask for them (there)."""

LONGEST = 8
"""Flushes in a row after a busy frame, at most: a frame that looks whether it is still busy then costs little."""


class Pace(NamedTuple):
    """State of `Flushes`.

    Attributes:
        asked: operations that events asked for since the last flush, in dense frames (0 in a stream without flushes).
        left: flushes in a row that are still to come.
        next: how many come after the next busy frame.
    """

    asked: float = 0.0
    left: int = 0
    next: int = 1


class Flushes:
    """Says whether the next frame is a flush.

    Args:
        plan: what the stream runs.
        flush: 0, never, or dense frames' operations from one flush to the next.
    """

    def __init__(self, plan: Plan, flush: float) -> None:
        self.pace = Pace()
        self._flush = flush
        self._caused = plan.macs_per_event() / max(plan.dense_macs, 1) if flush else np.zeros(len(plan.ops))

    @property
    def due(self) -> bool:
        """Whether the next frame is a flush, whatever is in it."""
        return self.pace.left > 0 or 0 < self._flush <= self.pace.asked

    @property
    def again(self) -> bool:
        """Whether the frame behind the next one is a flush, too."""
        return self.pace.left > 1

    def after(self, flushed: bool, events: Callable[[], NDArray[np.int64]]) -> None:
        """The last frame was a flush, or sent so many events by operation, which are counted if it matters."""
        if not self._flush:
            return
        asked, left, following = self.pace
        more = min(2 * following, LONGEST)
        if self.due:
            self.pace = Pace(0.0, max(0, left - 1), following)
        elif flushed:
            self.pace = Pace(0.0, following - 1, more)
        else:
            new = float(self._caused @ events())
            busy = new > BUSY
            self.pace = Pace(asked + new, following if busy else 0, more if busy else 1)
