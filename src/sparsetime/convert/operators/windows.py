"""Poolings, sums over axes, maxima and resizing; and operations of one dimension, as those of two."""

from __future__ import annotations

import operator
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from sparsetime.convert.forms import GROUPS, MAP, TOKENS, form_of
from sparsetime.convert.lowering import (
    HANDLERS,
    Arguments,
    Array,
    Handler,
    Lowering,
    Moved,
    Stream,
    Wire,
    handles,
    one_row,
    output_shape,
    pair,
    reshaped,
)
from sparsetime.convert.operators.weights import by_pixel, convolution
from sparsetime.convert.tables import adaptive_windows, pool_windows, resize_taps
from sparsetime.engine.shapes import is_map


def _pool(at: Lowering, x: Stream, rows: Array, columns: Array, divisor: Array) -> Wire:
    value = at.value(x)
    shape = (1, at.draft.shapes[value][1], len(rows), len(columns))
    tensors = {"rows": rows, "columns": columns, "divisor": divisor.astype(np.float32)}
    return at.emit("avg_pool2d", [value], shape, {}, tensors)


@handles("avg_pool2d")
def _avg_pool2d(at: Lowering, a: Arguments) -> Wire | None:
    shape = at.shape(a["self"])
    if not is_map(shape):
        return None
    kernel, padding = pair(a["kernel_size"]), pair(a["padding"])
    stride = pair(a["stride"]) if a["stride"] else kernel
    axes = [pool_windows(shape[2 + k], kernel[k], stride[k], padding[k], 1, a["ceil_mode"]) for k in (0, 1)]
    (rows, row_places), (columns, column_places) = axes
    if a.get("divisor_override"):
        divisor = np.full((len(rows), len(columns)), a["divisor_override"])
    elif a["count_include_pad"]:
        divisor = row_places[:, None] * column_places
    else:
        divisor = (rows[:, 1] - rows[:, 0])[:, None] * (columns[:, 1] - columns[:, 0])
    return _pool(at, a["self"], rows, columns, divisor)


@handles("adaptive_avg_pool2d", "_adaptive_avg_pool2d")
def _adaptive_avg_pool2d(at: Lowering, a: Arguments) -> Wire | None:
    shape = at.shape(a["self"])
    if not is_map(shape):
        return None
    rows, columns = (adaptive_windows(shape[2 + k], output_shape(at)[2 + k]) for k in (0, 1))
    return _pool(at, a["self"], rows, columns, (rows[:, 1] - rows[:, 0])[:, None] * (columns[:, 1] - columns[:, 0]))


@handles("mean", "sum")
def _mean(at: Lowering, a: Arguments) -> Any:
    x = a["self"]
    shape = at.shape(x)
    axes = a.get("dim")
    axes = {int(k) % len(shape) for k in (axes if axes else range(len(shape)))}
    if a.get("dtype") not in (None, torch.float32):
        return None
    mean, index = "mean" in str(at.node.target), at.numbers(x)
    if shape and shape[0] != 1:
        index, axes = index[None], {k + 1 for k in axes}
    form = form_of(index, at.draft.shapes[x.value]) if isinstance(x, Moved) else None
    if form is None and isinstance(x, Moved) and index.dim() > 3 and axes == {index.dim() - 1}:
        index, axes = index.reshape(1, -1, index.shape[-1]), {2}
    shape = tuple(index.shape)
    axes = {k for k in axes if shape[k] > 1}
    if not axes:
        return reshaped(at, x, output_shape(at))
    form = form or {2: MAP, 3: TOKENS, 4: MAP}.get(len(shape), GROUPS)
    groups, places = form.split(shape, axes)
    summed: Stream = Moved(x.value, form.there(index, shape))
    if places:
        summed = _sum_of_places(at, summed, places, mean)
    if groups.shape[1] > 1:
        summed = _sum_of_channels(at, summed, groups, mean)
    kept = tuple(1 if k in axes else n for k, n in enumerate(shape))
    return Moved(summed.value, form.back(at.numbers(summed), kept).reshape(output_shape(at)))


def _whole(shape: tuple[int, ...], axes: set[int]) -> list[Array]:
    """Windows of rows and of columns of a map: the whole axis, or each place of those that stay."""
    return [
        np.asarray([[0, shape[k]]] if k in axes else [[i, i + 1] for i in range(shape[k])], np.int32) for k in (2, 3)
    ]


def _sum_of_places(at: Lowering, x: Stream, axes: set[int], mean: bool) -> Wire:
    """Over rows, columns or both of a map."""
    rows, columns = _whole(at.shape(x), axes)
    area = prod(at.shape(x)[k] for k in axes)
    return _pool(at, x, rows, columns, np.full((len(rows), len(columns)), area if mean else 1))


_FEW = 8
"""Terms that are added one by one: a convolution has weights, in front of which codecs stand."""


def _sum_of_channels(at: Lowering, x: Stream, groups: Tensor, mean: bool) -> Stream:
    """Over each group of the channels of a map, (groups, channels of each)."""
    count, size = groups.shape
    numbers, entry = at.numbers(x), 1 / size if mean else 1.0
    if prod(numbers.shape[2:]) == 1:
        row = Moved(x.value, numbers[:, groups.ravel()].reshape(1, count, size, 1))
        return _sum_of_places(at, row, {2}, mean)
    if count > 1 and size <= _FEW:
        terms = [at.value(Moved(x.value, numbers[:, channels])) for channels in groups.T]
        total = terms[0]
        for k, term in enumerate(terms[1:]):
            pair = {"coefficients": [1.0 if k else entry, entry]}
            total = at.emit("add", [total, term], at.draft.shapes[total], pair).value
        return Wire(total)
    tensors = {"weight": np.full((count, size), entry, np.float32)}
    return by_pixel(at, Moved(x.value, numbers[:, groups.ravel()]), tensors, groups=count)


@handles("max_pool2d", "max_pool2d_with_indices")
def _max_pool2d(at: Lowering, a: Arguments) -> Any:
    shape = at.shape(a["self"])
    several = isinstance(at.node.meta["val"], tuple | list)
    if not is_map(shape) or (several and _uses_indices(at.node)):
        return None
    kernel, padding, dilation = pair(a["kernel_size"]), pair(a["padding"]), pair(a["dilation"])
    stride = pair(a["stride"]) if a["stride"] else kernel
    rows, columns = (
        pool_windows(shape[2 + k], kernel[k], stride[k], padding[k], dilation[k], a["ceil_mode"])[0] for k in (0, 1)
    )
    value = at.value(a["self"])
    out = (1, shape[1], len(rows), len(columns))
    wire = at.emit("max_pool2d", [value], out, {"dilation": dilation}, {"rows": rows, "columns": columns})
    return [wire, None] if several else wire


@handles("adaptive_max_pool2d")
def _adaptive_max_pool2d(at: Lowering, a: Arguments) -> Any:
    shape = at.shape(a["self"])
    if not is_map(shape) or _uses_indices(at.node):
        return None
    out = output_shape(at)
    rows, columns = (adaptive_windows(shape[2 + k], out[2 + k]) for k in (0, 1))
    wire = at.emit("max_pool2d", [at.value(a["self"])], out, {"dilation": [1, 1]}, {"rows": rows, "columns": columns})
    return [wire, None]


@handles("amax")
def _amax(at: Lowering, a: Arguments) -> Stream | None:
    """Over rows, columns or both of a map."""
    x = a["self"]
    shape = at.shape(x)
    axes = {int(k) % len(shape) for k in a["dim"]}
    if not is_map(shape) or not axes or axes - {2, 3}:
        return None
    rows, columns = _whole(shape, axes)
    out = (*shape[:2], len(rows), len(columns))
    wire = at.emit("max_pool2d", [at.value(x)], out, {"dilation": [1, 1]}, {"rows": rows, "columns": columns})
    return reshaped(at, wire, output_shape(at))


def _uses_indices(node: fx.Node) -> bool:
    """Whether anything reads the second output of a max pooling, the places of the maxima."""
    return any(user.args[1] != 0 and user.users for user in node.users if user.target is operator.getitem)


def _resized(name: str, size: list[int], corners: list[bool], scale: float | None, x: Tensor) -> Tensor:
    """Resize the third axis of x with PyTorch's own operation."""
    resized: Tensor = getattr(torch.ops.aten, name).default(x, size, *corners, scale, None)
    return resized


@handles("upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_bilinear2d", "upsample_bicubic2d")
def _resize(at: Lowering, a: Arguments) -> Wire | None:
    x = next(iter(a.values()))
    shape = at.shape(x)
    if not is_map(shape):
        return None
    out = output_shape(at)
    factors = a.get("scale_factors") or [a.get("scales_h"), a.get("scales_w")]
    name = str(at.node.target).split(".")[1].replace("linear1d", "bilinear2d").replace("1d", "2d")
    corners = [a["align_corners"]] if "align_corners" in a else []
    tensors = {}
    for k, (places, weights) in enumerate((("rows", "row_weights"), ("columns", "column_weights"))):
        along = partial(_resized, name, [out[2 + k], 1], corners, factors[k])
        tensors[places], tensors[weights] = resize_taps(along, shape[2 + k])
    return at.emit("resize2d", [at.value(x)], out, {}, tensors)


_IN_A_ROW = {"kernel_size": 1, "stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "output_size": 1}
"""Arguments of one dimension, and what they are in the other one of a map of one row."""


def _in_a_row(at: Lowering, a: Arguments, handler: Handler) -> Any:
    """An operation of one dimension, as the one of two on a map of one row."""
    name, x = next(iter(a.items()))
    if not isinstance(x, Stream) or len(at.shape(x)) != 3 or at.shape(x)[0] != 1:
        return None
    row = {**a, name: reshaped(at, x, one_row(at.shape(x)))}
    for key in _IN_A_ROW.keys() & a.keys():
        if a[key] and not isinstance(a[key], str):
            row[key] = [_IN_A_ROW[key], pair(a[key])[1]]
    if isinstance(a.get("weight"), Tensor):
        row["weight"] = a["weight"].unsqueeze(2)
    if a.get("scale_factors"):
        row["scale_factors"] = [1.0, *a["scale_factors"]]
    row["scales_w"] = a.get("scales")
    at.in_a_row = True
    made = handler(at, row)
    at.in_a_row = False
    if isinstance(made, list):
        return [reshaped(at, made[0], output_shape(at)), *made[1:]]
    return None if made is None else reshaped(at, made, output_shape(at))


for _kind, _as_in_two in {
    **dict.fromkeys(("conv1d", "conv_transpose1d"), convolution),
    "avg_pool1d": _avg_pool2d,
    "adaptive_avg_pool1d": _adaptive_avg_pool2d,
    **dict.fromkeys(("max_pool1d", "max_pool1d_with_indices"), _max_pool2d),
    "adaptive_max_pool1d": _adaptive_max_pool2d,
    **dict.fromkeys(("upsample_nearest1d", "_upsample_nearest_exact1d", "upsample_linear1d"), _resize),
}.items():
    HANDLERS[_kind] = partial(_in_a_row, handler=_as_in_two)
