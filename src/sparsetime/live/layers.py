"""The layers of a plan that multiply, and where in the picture the chosen one had to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsetime.engine import OpStats, Plan, Stream
from sparsetime.engine.ops import Op

__all__ = ["Changes", "Layer", "layers_of"]


class Layer(NamedTuple):
    """An operation that multiplies.

    source: number of the value that it multiplies, where that has places in the picture; else None.
    """

    op: Op
    macs: int
    source: int | None

    def density(self, stats: Mapping[str, OpStats]) -> float:
        """Multiply-accumulates of the last frame over those of a dense one."""
        return stats[self.op.name].macs / self.macs


def layers_of(plan: Plan) -> list[Layer]:
    """The layers of a plan that multiply, in its order."""
    found = []
    for op in plan.ops:
        macs = plan.op_macs(op)
        if macs:
            shape = plan.values[op.inputs[0]]
            placed = len(shape) == 4 and shape[2] * shape[3] > 1
            found.append(Layer(op, macs, op.inputs[0] if placed else None))
    return found


class Changes:
    """Where the input of a layer changed in the last frame, which is where the layer had to be computed.

        map(p) = channels at p whose value changed / all channels at p

    Args:
        stream: to follow; `update` is called after each of its frames.
        layer: one with a `source`.
    """

    def __init__(self, stream: Stream, layer: Layer) -> None:
        assert layer.source is not None
        self._stream, self._source = stream, layer.source
        self._before = stream.value(layer.source)[0] if stream.has_values else None

    def update(self) -> NDArray[np.uint8]:
        """(h, w): 0 where nothing changed, 255 where all channels did; all 255 after a flush, as a first frame is."""
        value = self._stream.value(self._source)[0]
        whole = self._before is None or self._stream.flushed
        changed = np.ones(value.shape, bool) if whole else value != self._before
        self._before = value
        # Rounded up: a single change is seen.
        return np.asarray(np.ceil(255 * np.mean(changed, axis=0, dtype=np.float32)), np.uint8)
