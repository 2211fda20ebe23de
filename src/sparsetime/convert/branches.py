"""Parallel branches of a network, as they are trained for a better optimum, are one convolution.

    conv(x, W) + conv(x, W') = conv(x, W + W')          W' set into zeros of W's size, where their paddings meet
    x * scale + shift = conv(x, diag(scale)) + shift     a batch norm beside convolutions

RepVGG (arXiv 2101.03697), MobileOne (arXiv 2206.04040).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsetime.convert.draft import Draft, DraftOp

__all__ = ["branches_into_one"]


def branches_into_one(draft: Draft, op: DraftOp) -> bool:
    """A convolution that adds another one's output, of the same input, becomes both; see `sparsetime.convert.fold`."""
    if op.kind != "conv2d" or len(op.inputs) != 2:
        return False
    branch = draft.producer(op.inputs[1])
    if branch.inputs[:1] != op.inputs[:1] or not branch.bare or draft.only_consumer(branch.output) is not op:
        return False
    other = _as_convolution(branch, draft.shapes[op.output][1], op.attributes["groups"])
    if other is None or any(other.attributes[key] != op.attributes[key] for key in ("stride", "dilation", "groups")):
        return False
    tensors = _sum(op, other)
    if tensors is None:
        return False
    large = max((op, other), key=lambda conv: conv.tensors["weight"].size)
    op.attributes, op.tensors = large.attributes, tensors
    op.inputs = [op.inputs[0], *other.inputs[1:]]
    draft.ops.remove(branch)
    return True


def _as_convolution(op: DraftOp, channels: int, groups: int) -> DraftOp | None:
    """A convolution itself; of single pixels where the operation scales and shifts channels; else None."""
    if op.kind == "conv2d":
        return op
    if op.kind != "affine" or any(array.shape not in ((1,), (channels,)) for array in op.tensors.values()):
        return None
    weight = np.zeros((channels, channels // groups, 1, 1), np.float32)
    place = np.arange(channels)
    weight[place, place % (channels // groups), 0, 0] = op.tensors.get("scale", 1.0)
    tensors = {"weight": weight}
    if "shift" in op.tensors:
        tensors["bias"] = np.broadcast_to(op.tensors["shift"], (channels,))
    attributes = {"stride": [1, 1], "padding": [0] * 4, "dilation": [1, 1], "groups": groups}
    return DraftOp("conv2d", op.name, op.inputs, op.outputs, attributes, tensors)


def _sum(a: DraftOp, b: DraftOp) -> dict[str, NDArray[np.float32]] | None:
    """The tensors of a convolution that is the sum of two; None where neither's taps are among the other's."""
    small, large = sorted((a, b), key=lambda conv: conv.tensors["weight"].size)
    if a.attributes["dilation"] != [1, 1] and small.tensors["weight"].shape != large.tensors["weight"].shape:
        return None
    first = [large.attributes["padding"][k] - small.attributes["padding"][k] for k in (0, 2)]
    weight = large.tensors["weight"].astype(np.float64)
    end = [start + extent for start, extent in zip(first, small.tensors["weight"].shape[2:], strict=True)]
    if min(first) < 0 or end[0] > weight.shape[2] or end[1] > weight.shape[3]:
        return None
    weight[:, :, first[0] : end[0], first[1] : end[1]] += small.tensors["weight"]
    sums = {"weight": weight}
    biases = [conv.tensors["bias"].astype(np.float64) for conv in (a, b) if "bias" in conv.tensors]
    if biases:
        sums["bias"] = np.sum(biases, axis=0)
    return {role: np.ascontiguousarray(array, np.float32) for role, array in sums.items()}
