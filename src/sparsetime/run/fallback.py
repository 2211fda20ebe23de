"""A stream that is left for the dense network while that is the faster way.

Where the camera moves, everything changes, and a stream costs more than the dense network does: it computes as much and
keeps books besides. What a frame will cost is seen when it has been computed, so the way is chosen by what the frames
before took:

    debt' = max(0, debt + min(t, 2 d) - d)      t: time of a frame of the stream, d: of the dense network

When the debt reaches 1.5 d the dense network runs for some frames, then the stream is tried again, with a flush. A try
that did not pay doubles the pause, up to 256 frames. So a try costs at most 2.5 d more than the dense network, one slow
frame by itself (a scene cut, another process) changes nothing, and in the long run at most 1 % is lost.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from typing import Any

import numpy as np

from sparsetime.engine import OpStats, Plan
from sparsetime.engine.frames import is_tensor
from sparsetime.engine.stream import nested
from sparsetime.run.dense import Dense, dense_network

__all__ = ["FallbackStream", "Schedule"]

DEBT = 1.5  # dense frames that a try may lose before it is given up
PAUSE, LONGEST = 16, 256  # dense frames until the next try
_RECENT = 9  # dense frames of which the median is d


class Schedule:
    """Which way the next frame takes. Times may be in any unit; the equation is in this file's docstring.

    Args:
        dense: time of a dense frame.
    """

    def __init__(self, dense: float) -> None:
        self._recent = deque([dense], maxlen=_RECENT)
        self._debt = self._balance = 0.0
        self._pause = PAUSE
        self._left = 0  # frames of the pause

    @property
    def dense(self) -> bool:
        """Whether the next frame is computed by the dense network."""
        return self._left > 0

    def took(self, time: float) -> None:
        """What that frame took."""
        if self._left:
            self._recent.append(time)
            self._left -= 1
            return
        d = statistics.median(self._recent)
        lost = min(time, 2 * d) - d
        self._debt = max(0.0, self._debt + lost)
        self._balance += lost
        if self._debt < DEBT * d:
            return
        self._pause = PAUSE if self._balance < 0 else min(2 * self._pause, LONGEST)
        self._left = self._pause
        self._debt = self._balance = 0.0


def _like(frame: Any, outputs: list[Any]) -> list[Any]:
    """Outputs as tensors where the frame was one."""
    if not is_tensor(frame):
        return outputs
    import torch

    return [torch.as_tensor(output) for output in outputs]


class FallbackStream:
    """A stream of a plan, and the fastest dense runtime at hand for when everything changes.

    Frames that the dense network computes have its outputs: with `exact` the same up to quantisation, with `hold`
    nearer to the truth. Which frames these are depends on times, so two runs may differ; where every bit must be the
    same again, use `plan.stream()`.

    Args:
        plan: what to run.
        example: a frame as the stream takes it, to find the fastest runtime on.
        threads: of the stream, which takes no more than there are cores, and of the dense network.
        flush: see `Stream`.
        dense: the dense network, if it is there already.
        schedule: if another one than by measured times is wanted.

    Attributes:
        plan: what it runs.
        runtime: the dense network; `runtime.name` says what runs it, with its version.
        dense_frames: how many frames it has computed so far.
    """

    def __init__(
        self,
        plan: Plan,
        example: Any,
        *,
        threads: int = 1,
        flush: float = 0.0,
        dense: Dense | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        self.plan = plan
        self.runtime = dense or dense_network(plan, example, threads)
        self.dense_frames = 0
        self._stream = plan.stream(threads=threads, flush=flush)
        self._schedule = schedule or Schedule(self._time_of(example))
        self._was_dense = False

    def _time_of(self, frame: Any) -> float:
        """Seconds of a dense frame, warm."""
        times = []
        for _ in range(4):
            start = time.perf_counter()
            self.runtime.run(frame)
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])

    def __call__(self, frame: Any) -> Any:
        """One frame; see `Stream`: tensors for a tensor whichever way is taken. Its errors leave all as it was."""
        dense = self._schedule.dense
        start = time.perf_counter()
        if dense:
            found: Any = self.runtime.run(frame)
        else:
            if self._was_dense:
                self._stream.reset()
            found = self._stream(frame)
        self._schedule.took(time.perf_counter() - start)
        self.dense_frames += dense
        self._was_dense = dense
        return nested(self.plan.structure, _like(frame, found)) if dense else found

    @property
    def state_bytes(self) -> int:
        """Bytes of the stream's state."""
        return self._stream.state_bytes

    @property
    def memory_bytes(self) -> int:
        """Bytes that the stream has allocated, see `Stream`; the dense network's are not counted."""
        return self._stream.memory_bytes

    @property
    def stats(self) -> dict[str, OpStats]:
        """What each operation did in the last frame; of a dense one, all that there is to do."""
        if not self._was_dense:
            return self._stream.stats
        size = {value: int(np.prod(shape)) for value, shape in enumerate(self.plan.values)}
        return {
            op.name: OpStats(sum(size[v] for v in op.inputs), sum(size[v] for v in op.outputs), macs, macs, 0, "dense")
            for op in self.plan.ops
            for macs in (self.plan.op_macs(op),)
        }
