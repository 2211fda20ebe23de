"""What one stream of many did, in memory that does not grow with its length."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from sparsetime.engine.plan import Plan

__all__ = ["Figures"]

_RECENT = 1000  # frames whose times are kept for medians


class Figures:
    """Times and operations of a stream, frame by frame. The first frame, which is dense by nature, counts apart.

    Args:
        plan: of the stream.
    """

    def __init__(self, plan: Plan) -> None:
        self._dense_macs = max(plan.dense_macs, 1)
        self._macs = self._first_macs = 0
        self._times_ms: deque[float] = deque(maxlen=_RECENT)
        self._waits_ms: deque[float] = deque(maxlen=_RECENT)
        self._first_ms: float | None = None
        self.frames = 0

    def add(self, macs: int, time_ms: float, wait_ms: float) -> None:
        """Count one frame.

        Args:
            macs: multiply-accumulates done.
            time_ms: of the network.
            wait_ms: from when the frame was read until the network began with it.
        """
        if self.frames:
            self._macs += macs
            self._times_ms.append(time_ms)
            self._waits_ms.append(wait_ms)
        else:
            self._first_macs, self._first_ms = macs, time_ms
        self.frames += 1

    def summary(self) -> dict[str, Any]:
        """`op_density` leaves the first frame out; medians and percentiles are of the last thousand others."""
        rest = self.frames - 1
        return {
            "frames": self.frames,
            "op_density": self._macs / (rest * self._dense_macs) if rest > 0 else None,
            "op_density_with_first_frame": (
                (self._macs + self._first_macs) / (self.frames * self._dense_macs) if self.frames else None
            ),
            "time_ms": {"first": self._first_ms, **_middle(self._times_ms)},
            "wait_ms": _middle(self._waits_ms),
        }


def _middle(values: deque[float]) -> dict[str, float | None]:
    if not values:
        return {"median": None, "p95": None}
    middle, high = np.percentile(values, [50, 95])
    return {"median": float(middle), "p95": float(high)}
