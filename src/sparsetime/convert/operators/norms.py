"""What divides by a sum over a place or a map: norms, softmax, attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sparsetime.convert.lowering import (
    Arguments,
    Lowering,
    Moved,
    Stream,
    array_of,
    handles,
    one_row,
    reshaped,
)
from sparsetime.engine.check import LEAST_STEP
from sparsetime.engine.shapes import is_map

__all__ = ["NEVER"]

NEVER = -1e30
"""Stands for -inf where it is less than all else: the score of a key behind a mask, the border of a maximum."""


@handles("batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm", "cudnn_batch_norm")
def _batch_norm(at: Lowering, a: Arguments) -> Any:
    mean, variance = a["running_mean"], a["running_var"]
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor) or a.get("training"):
        return None
    x = a["input"]
    scale = (variance.double() + a["eps"]).rsqrt()
    if a["weight"] is not None:
        scale = scale * a["weight"].double()
    shift = -mean.double() * scale
    if a["bias"] is not None:
        shift = shift + a["bias"].double()
    shape = at.shape(x)
    along = (-1, *(1,) * (len(shape) - 2))
    factor, offset = at.constant(scale.reshape(along), shape), at.constant(shift.reshape(along), shape)
    if factor is None or offset is None:
        return None
    wire = at.affine(x, factor, offset)
    several = isinstance(at.node.meta["val"], tuple | list)
    return [wire] if several else wire


@handles("layer_norm")
def _layer_norm(at: Lowering, a: Arguments) -> Stream | None:
    x, vectors = a["input"], {"scale": a["weight"], "shift": a["bias"]}
    shape = at.shape(x)
    if is_map(shape) and len(a["normalized_shape"]) == 3 and not any(isinstance(v, Stream) for v in vectors.values()):
        scale, shift = (v if v is None else at.constant(v[None], shape) for v in vectors.values())
        made = _grouped_norm(at, x, 1, None, None, a["eps"])
        return made if made is None or (scale is None and shift is None) else at.affine(made, scale, shift)
    if (
        len(a["normalized_shape"]) > 1
        or len(shape) < 2
        or a["eps"] < LEAST_STEP
        or any(isinstance(v, Stream) for v in vectors.values())
    ):
        return None
    tensors = {role: at.array(v) for role, v in vectors.items() if v is not None}
    attributes = {"eps": float(a["eps"])}
    if not is_map(shape):
        return at.emit("layer_norm", [at.value(x)], shape, attributes, tensors)
    # The channels of a map are its second axis.
    value = at.value(Moved(x.value, at.numbers(x).movedim(-1, 1)))
    wire = at.emit("layer_norm", [value], at.draft.shapes[value], attributes, tensors)
    return Moved(wire.value, at.numbers(wire).movedim(1, -1))


@handles("softmax", "_softmax")
def _softmax(at: Lowering, a: Arguments) -> Stream | None:
    """Over the channels of a map, or the last axis of rows."""
    x = a["self"]
    shape = at.shape(x)
    axis = int(a["dim"]) % max(1, len(shape))
    if axis == 0 or a.get("dtype") not in (None, torch.float32) or a.get("half_to_float"):
        return None
    if at.draft.producer(x.value).kind == "island":
        return None  # which may give -inf where a mask is: between islands no new start follows from it
    to = 1 if is_map(shape) else -1
    index = at.numbers(x).movedim(axis, to)
    made_of = index if is_map(shape) else index.reshape(1, -1, shape[axis])
    value = at.value(Moved(x.value, made_of))
    wire = at.emit("softmax", [value], at.draft.shapes[value])
    return Moved(wire.value, at.numbers(wire).reshape(index.shape).movedim(to, axis))


@handles("scaled_dot_product_attention")
def _attention(at: Lowering, a: Arguments) -> Stream | None:
    """Heads stand on the channels, windows on the places."""
    streams = [a[key] for key in ("query", "key", "value")]
    if not all(isinstance(x, Stream) for x in streams) or a["dropout_p"] or a["enable_gqa"]:
        return None
    shapes = [at.shape(x) for x in streams]
    outer, (queries, depth) = shapes[0][:-2], shapes[0][-2:]
    keys, width = shapes[2][-2:]
    if len(outer) not in (1, 2) or any(shape[:-2] != outer for shape in shapes):
        return None
    windows, heads = (1, *outer)[-2:]
    scale = depth**-0.5 if a["scale"] is None else a["scale"]
    attributes = {"windows": windows, "heads": heads, "scale": float(scale)}
    tensors, mask = {}, a["attn_mask"]
    if a["is_causal"]:
        mask = torch.ones(queries, keys, dtype=torch.bool).tril()
    if isinstance(mask, Stream):
        return None
    if mask is not None:
        bias = torch.where(mask, 0.0, -math.inf) if mask.dtype == torch.bool else mask.detach().float()
        bias = bias.reshape(*(1,) * (4 - bias.dim()), *bias.shape)
        bias = bias.expand(*bias.shape[:3], keys)
        never = bias == -math.inf
        if (bias.isinf() & ~never).any() or bias.isnan().any() or never.all(3).any():
            return None
        tensors["bias"] = array_of(bias.masked_fill(never, NEVER))

    def rows(x: Stream) -> int:
        parts = at.numbers(x).reshape(windows, heads, *at.shape(x)[-2:]).transpose(1, 2)
        return at.value(Moved(x.value, parts.reshape(1, parts.shape[1] * windows, -1)))

    inputs = [rows(x) for x in streams]
    wire = at.emit("attention", inputs, (1, windows * queries, heads * width), attributes, tensors)
    back = at.numbers(wire).reshape(windows, queries, heads, width).transpose(1, 2)
    return Moved(wire.value, back.reshape(*outer, queries, width))


def _grouped_norm(at: Lowering, x: Any, groups: int, scale: Any, shift: Any, eps: float) -> Stream | None:
    """Over each of the groups of a map's channels, all of its places."""
    vectors = {role: v for role, v in (("scale", scale), ("shift", shift)) if v is not None}
    if not isinstance(x, Stream) or any(not isinstance(v, Tensor) for v in vectors.values()) or eps < LEAST_STEP:
        return None
    shape = at.shape(x)
    if len(shape) == 3 and shape[0] == 1:
        row = _grouped_norm(at, reshaped(at, x, one_row(shape)), groups, scale, shift, eps)
        return None if row is None else reshaped(at, row, shape)
    if not is_map(shape):
        return None
    attributes = {"groups": int(groups), "eps": float(eps)}
    tensors = {role: at.array(v) for role, v in vectors.items()}
    return at.emit("group_norm", [at.value(x)], shape, attributes, tensors)


@handles("group_norm", "native_group_norm")
def _group_norm(at: Lowering, a: Arguments) -> Any:
    groups = a["num_groups"] if "num_groups" in a else a["group"]
    made = _grouped_norm(at, a["input"], groups, a["weight"], a["bias"], a["eps"])
    several = isinstance(at.node.meta["val"], tuple | list)
    return [made] if several and made is not None else made


@handles("instance_norm")
def _instance_norm(at: Lowering, a: Arguments) -> Any:
    if not a["use_input_stats"]:
        return _batch_norm(at, a)
    return _grouped_norm(at, a["input"], at.shape(a["input"])[1], a["weight"], a["bias"], a["eps"])
