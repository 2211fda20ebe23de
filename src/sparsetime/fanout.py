"""Fan-out: how many multiply-accumulates one input element of a linear operation causes.

For a convolution, an input element at position p of channel c meets weight k of output position o where
o * stride - padding + k * dilation = p. Borders, strides and groups therefore decide the count, not the kernel's size
alone:

    F[c, h, w] = sum_{kh, kw} A_h[kh, h] A_w[kw, w] M[c, kh, kw]

with A[k, p] = 1 where some output position meets p through k, else 0, and M[c, k] the number of output channels that
weight
(c, k) leads to. The sum of F over a frame is the operation's dense MACs, zeros of the padding not counted; the sum
over the elements that are not zero is its effective MACs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LinearOp", "fanout"]


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


def _meets(op: LinearOp, dim: int, size: int) -> Tensor:
    """A[k, p] of the module docstring for one spatial dimension, (kernel, size), float64."""
    out = op.output_shape[dim]
    # What a conv does from output to input, a conv_transpose does from input to output.
    near, far = (out, size) if op.kind == "conv" else (size, out)
    k = torch.arange(op.weight_shape[2 + dim]).unsqueeze(1)
    position = torch.arange(near) * op.stride[dim] - op.padding[dim] + k * op.dilation[dim]
    inside = (position >= 0) & (position < far)
    if op.kind == "conv_transpose":
        return inside.double()
    meets = torch.zeros(len(k), size, dtype=torch.float64)
    rows, outputs = inside.nonzero(as_tuple=True)
    meets[rows, position[rows, outputs]] = 1
    return meets


def _outputs_per_weight(op: LinearOp, weight: Tensor | None) -> Tensor:
    """M[c, k...]: output channels reached through each weight position of each input channel, float64."""
    kernel = op.weight_shape[2:]
    if weight is None:
        per_group = op.weight_shape[1] if op.kind == "conv_transpose" else op.weight_shape[0] // op.groups
        return torch.full((op.channels, *kernel), float(per_group), dtype=torch.float64)
    alive = (weight.detach() != 0).double().cpu()
    if op.kind == "conv_transpose":
        return alive.sum(1)
    # (groups, O/groups, I/groups, k...) -> (groups * I/groups, k...)
    return alive.unflatten(0, (op.groups, -1)).sum(1).flatten(0, 1)


def fanout(op: LinearOp, input_shape: tuple[int, ...], weight: Tensor | None = None) -> Tensor:
    """F of the module docstring.

    Args:
        op: the operation.
        input_shape: one frame, (C, *spatial) or (..., F) for linear.
        weight: count only weights that are not zero; None counts all.

    Returns:
        float64, shape (C, *spatial), or (F,) for linear.
    """
    if op.kind == "linear":
        return _outputs_per_weight(op, weight)
    result: Tensor = _outputs_per_weight(op, weight)
    for dim, size in enumerate(input_shape[1:]):
        # contracts the kernel axis at position 1 and appends the spatial axis at the end
        spread: Tensor = torch.tensordot(result, _meets(op, dim, size), dims=([1], [0]))
        result = spread
    return result
