"""Fan-out: how many multiply-accumulates one input element of a linear operation causes.

For a convolution, an input element at position p of channel c meets weight k of output position o where
o * stride - padding + k * dilation = p. Borders, strides and groups therefore decide the count, not the kernel's size
alone:

    F[c, h, w] = sum_{kh, kw} A_h[kh, h] A_w[kw, w] M[c, kh, kw]

with A[k, p] = 1 where some output position meets p through k, else 0, and M[c, k] the number of output channels that
weight (c, k) leads to. The sum of F over a frame is the operation's dense MACs, zeros of the padding not counted; the
sum over the elements that are not zero is its effective MACs. Where all weights count, M is one number m, all channels
have the same fan-out, and

    F[h, w] = m (sum_k A_h[k, h]) (sum_k A_w[k, w])

No PyTorch in here: the engine counts with it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LinearOp", "dense_macs", "fanout", "position_fanout"]


@dataclass(frozen=True)
class LinearOp:
    """A linear operation with weights, as far as counting needs it.

    Attributes:
        kind: "conv", "conv_transpose" or "linear".
        weight_shape: as PyTorch has it; (O, I/groups, ...), (I, O/groups, ...) or (O, I).
        stride, padding, dilation: per spatial dimension; padding before, in conv_transpose cut off.
        output_shape: spatial shape of the output, () for linear.
        groups: of a convolution.
    """

    kind: str
    weight_shape: tuple[int, ...]
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()
    groups: int = 1

    @property
    def channels(self) -> int:
        """Input channels (or features)."""
        if self.kind == "conv_transpose":
            return self.weight_shape[0]
        return self.weight_shape[1] * self.groups

    @property
    def outputs_per_weight(self) -> int:
        """m of the module docstring."""
        return self.weight_shape[1] if self.kind == "conv_transpose" else self.weight_shape[0] // self.groups


def _meets(op: LinearOp, dim: int, size: int) -> NDArray[np.bool_]:
    """A[k, p] of the module docstring for one spatial dimension, (kernel, size)."""
    out = op.output_shape[dim]
    # What a conv does from output to input, a conv_transpose does from input to output.
    near, far = (out, size) if op.kind == "conv" else (size, out)
    taps = np.arange(op.weight_shape[2 + dim])[:, None] * op.dilation[dim]
    position = np.arange(near) * op.stride[dim] - op.padding[dim] + taps
    inside: NDArray[np.bool_] = (position >= 0) & (position < far)
    if op.kind == "conv_transpose":
        return inside
    meets = np.zeros((len(taps), size), np.bool_)
    rows, outputs = inside.nonzero()
    meets[rows, position[rows, outputs]] = True
    return meets


def _outputs_per_weight(op: LinearOp, alive: NDArray[Any] | None) -> NDArray[np.float64]:
    """M[c, k...]: output channels reached through each weight position of each input channel."""
    if alive is None:
        return np.full((op.channels, *op.weight_shape[2:]), op.outputs_per_weight, np.float64)
    if op.kind == "conv_transpose":
        return np.asarray(alive.sum(axis=1), np.float64)
    # (groups, O/groups, I/groups, k...) -> (groups * I/groups, k...)
    by_group = alive.reshape(op.groups, -1, *alive.shape[1:]).sum(axis=1)
    return np.asarray(by_group.reshape(-1, *alive.shape[2:]), np.float64)


def fanout(op: LinearOp, input_shape: tuple[int, ...], alive: NDArray[Any] | None = None) -> NDArray[np.float64]:
    """F of the module docstring, by channel and position.

    Args:
        op: the operation.
        input_shape: one frame, (C, *spatial) or (..., F) for linear.
        alive: which weights count, booleans of the weight's shape; None counts all.

    Returns:
        Shape (C, *spatial), or (F,) for linear.
    """
    result = _outputs_per_weight(op, alive)
    for dim, size in enumerate(() if op.kind == "linear" else input_shape[1:]):
        # contracts the kernel axis at position 1 and appends the spatial axis at the end
        result = np.tensordot(result, _meets(op, dim, size).astype(np.float64), axes=([1], [0]))
    return result


def position_fanout(op: LinearOp, input_shape: tuple[int, ...]) -> NDArray[np.int64]:
    """F of the module docstring with all weights, by position: (*spatial), or () for linear."""
    sizes = () if op.kind == "linear" else input_shape[1:]
    along = [_meets(op, dim, size).sum(axis=0, dtype=np.int64) for dim, size in enumerate(sizes)]
    return np.asarray(op.outputs_per_weight * reduce(np.multiply.outer, along, np.int64(1)), np.int64)


def dense_macs(op: LinearOp, input_shape: tuple[int, ...]) -> int:
    """Multiply-accumulates when every input element counts. Of linear, leading dimensions of the input are frames."""
    if op.kind == "linear":
        return prod(input_shape) * op.weight_shape[0]
    return int(position_fanout(op, input_shape).sum()) * op.channels
