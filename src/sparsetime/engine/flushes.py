"""When a stream starts again, by what its events ask for: the same on every backend and machine.

    flushed at t:  asked_t = 0,                  cut_t = cut_{t-1}
    else:          asked_t = asked_{t-1} + a_t,  cut_t = min(CUT, BUSY * s_t / a_t)

    a_t = sum over operations of events * operations of an event / operations of a dense frame
    s_t = events of the input / its elements

A frame is a flush, the first of a new stream,

1. once asked >= `flush`: what codecs have kept back goes away, and flushes ask for at most as much as the changes do;
2. if it sends more than `cut` of the input's elements (the executor sees that while it takes the frame): a scene cut,
   or a frame that would ask for more than `BUSY`, if its events ask for as much each as those of the last frame that
   was no flush;
3. behind several of the second kind in a row, as of a camera that moves: one frame behind two, three behind the next,
   and so on up to `LONGEST` in a row; a frame that is no flush starts again from none.

2 and 3 are off where `flush` is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsetime.engine.plan import Plan

__all__ = ["BUSY", "CUT", "LONGEST", "Flushes", "Pace"]

CUT = 0.3
"""Share of the input's elements above which a flush costs about what the changes do (docs/experiments.md)."""

BUSY = 0.35
"""Share of a dense frame's operations above which a flush costs no more than the changes that ask for them (there)."""

LONGEST = 8
"""Flushes in a row without a look at how much moves, at most; a frame that looks costs little."""


class Pace(NamedTuple):
    """State of `Flushes`.

    Attributes:
        asked: operations that events asked for since the last flush, in dense frames (0 in a stream without flushes).
        left: flushes in a row that are still to come.
        next: how many flushes the next cut begins.
        cut: share of the input's elements above which the next frame is a cut.
    """

    asked: float = 0.0
    left: int = 0
    next: int = 1
    cut: float = CUT


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
        self._elements = math.prod(plan.input_shape)

    @property
    def cut(self) -> float:
        """Share of the input's elements above which the next frame is a flush."""
        return self.pace.cut if self._flush else math.inf

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
        asked, left, following, cut = self.pace
        if self.due:
            self.pace = Pace(0.0, max(0, left - 1), following, cut)
        elif flushed:
            self.pace = Pace(0.0, following - 1, min(2 * following, LONGEST), cut)
        else:
            sent = events()
            new = float(self._caused @ sent)
            share = float(sent[0]) / self._elements
            self.pace = Pace(asked + new, cut=min(CUT, BUSY * share / new) if new and share else cut)
