"""Fan-out: how many multiply-accumulates one event costs. True counts, borders and strides included.

A convolution's fan-out at input position (i, j) is rows(i) * columns(j) * O / groups, rows(i) being the number of pairs
(output row, kernel row) that read input row i; the same for columns.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sparsetime.engine.plan import Op, Plan

__all__ = ["caused", "dense_macs", "position_fanout"]


def _reached(inputs: int, outputs: int, kernel: int, stride: int, before: int, dilation: int) -> NDArray[np.int64]:
    """Pairs (output, kernel tap) that read each input index, along one axis."""
    read = np.arange(outputs)[:, None] * stride - before + np.arange(kernel)[None, :] * dilation
    return np.bincount(read[(read >= 0) & (read < inputs)], minlength=inputs)


def _landed(inputs: int, outputs: int, kernel: int, stride: int, before: int, dilation: int) -> NDArray[np.int64]:
    """Kernel taps that carry each input index to an output of a transposed convolution, along one axis."""
    written = np.arange(inputs)[:, None] * stride + np.arange(kernel)[None, :] * dilation - before
    return np.asarray(((written >= 0) & (written < outputs)).sum(axis=1), dtype=np.int64)


def position_fanout(op: Op, x: tuple[int, ...], y: tuple[int, ...], weight: tuple[int, ...]) -> NDArray[np.int64]:
    """Multiply-accumulates of one event at each position: (H, W) for convolutions, (1, 1) for `linear`.

    Args:
        op: an operation of kind `conv2d`, `conv_transpose2d` or `linear`.
        x: shape of its input.
        y: shape of its output.
        weight: shape of its weight.
    """
    if op.kind == "linear":
        return np.full((1, 1), weight[0], dtype=np.int64)
    count = _reached if op.kind == "conv2d" else _landed
    a = op.attributes
    top, left = a["padding"][0], a["padding"][2]
    rows = count(x[2], y[2], weight[2], a["stride"][0], top, a["dilation"][0])
    columns = count(x[3], y[3], weight[3], a["stride"][1], left, a["dilation"][1])
    per_pair = weight[0] // a["groups"] if op.kind == "conv2d" else weight[1]
    return rows[:, None] * columns[None, :] * per_pair


def dense_macs(op: Op, x: tuple[int, ...], y: tuple[int, ...], weight: tuple[int, ...]) -> int:
    """Multiply-accumulates when every input element is an event."""
    if op.kind == "linear":
        return prod(x) * weight[0]
    return int(position_fanout(op, x, y, weight).sum()) * x[1]


def caused(plan: Plan) -> NDArray[np.float64]:
    """Multiply-accumulates that an event of each operation causes in those that read it, on average: (L,)."""
    places = {value: place for place, op in enumerate(plan.ops) for value in op.outputs}
    sizes = [sum(prod(plan.values[value]) for value in op.outputs) for op in plan.ops]
    found = np.zeros(len(plan.ops))
    for op in plan.ops:
        macs = plan.op_macs(op)
        if macs:
            maker = places[op.inputs[0]]
            found[maker] += macs / sizes[maker]
    return found
