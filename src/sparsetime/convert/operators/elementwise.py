"""Sums, products and activations of elements, and quantisers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsetime.convert.draft import DraftCodec
from sparsetime.convert.lowering import (
    HANDLERS,
    Arguments,
    Lowering,
    Moved,
    Stream,
    Wire,
    handles,
    output_shape,
)
from sparsetime.engine.shapes import is_map


def _sum(at: Lowering, x: Any, y: Any, first: float, second: float) -> Stream | None:
    """first x + second y, where either may be a constant."""
    if isinstance(x, Stream) and isinstance(y, Stream):
        pair = {"coefficients": [float(first), float(second)]}
        return at.together(
            x, y, lambda x, y, shape: at.emit("add", [at.broadcast(x, shape), at.broadcast(y, shape)], shape, pair)
        )
    if not isinstance(x, Stream):
        x, y, first, second = y, x, second, first
    if at.shape(x) != output_shape(at):
        x = Wire(at.broadcast(x, output_shape(at)))
    shift = at.constant(y, at.shape(x))
    if shift is None:
        return None
    scale = None if first == 1 else np.asarray([first], np.float32)
    return at.affine(x, scale, (shift * np.float32(second)).astype(np.float32))


@handles("add")
def _add(at: Lowering, a: Arguments) -> Stream | None:
    return _sum(at, a["self"], a["other"], 1, a.get("alpha", 1))


@handles("sub")
def _sub(at: Lowering, a: Arguments) -> Stream | None:
    return _sum(at, a["self"], a["other"], 1, -a.get("alpha", 1))


@handles("rsub")
def _rsub(at: Lowering, a: Arguments) -> Stream | None:
    return _sum(at, a["self"], a["other"], -a.get("alpha", 1), 1)


@handles("neg")
def _neg(at: Lowering, a: Arguments) -> Stream | None:
    return at.affine(a["self"], np.asarray([-1], np.float32), None)


@handles("mul")
def _mul(at: Lowering, a: Arguments) -> Stream | None:
    x, y, shape = a["self"], a["other"], output_shape(at)
    if isinstance(x, Stream) and isinstance(y, Stream):
        return at.together(x, y, partial(_product_of, at))
    if not isinstance(x, Stream):
        x, y = y, x
    if at.shape(x) != shape:
        x = Wire(at.broadcast(x, shape))
    scale = at.constant(y, shape)
    return None if scale is None else at.affine(x, scale, None)


def _product_of(at: Lowering, x: Stream, y: Stream, shape: tuple[int, ...]) -> Wire:
    """x y, of which one may be a gate: a number for each channel."""
    gate = (1, shape[1], 1, 1) if is_map(shape) else shape
    if at.shape(x) == gate and at.shape(y) == shape:
        x, y = y, x
    second = at.value(y) if at.shape(x) == shape and at.shape(y) == gate else at.broadcast(y, shape)
    return at.emit("mul", [at.broadcast(x, shape), second], shape)


@handles("pow", "square")
def _power(at: Lowering, a: Arguments) -> Stream | None:
    x = a["self"]
    if a.get("exponent", 2) != 2 or not isinstance(x, Stream):
        return None
    return at.together(x, x, partial(_product_of, at))


@handles("glu")
def _glu(at: Lowering, a: Arguments) -> Stream:
    x, gate = (Moved(a["self"].value, half) for half in at.numbers(a["self"]).chunk(2, a["dim"]))
    return at.together(x, _activation(at, gate, {"kind": "sigmoid"}), partial(_product_of, at))


@handles("div")
def _div(at: Lowering, a: Arguments) -> Stream | None:
    x, y = a["self"], a["other"]
    if not isinstance(x, Stream) or isinstance(y, Stream) or a.get("rounding_mode") is not None:
        return None
    if at.shape(x) != output_shape(at):
        x = Wire(at.broadcast(x, output_shape(at)))
    scale = at.constant(y, at.shape(x))
    if scale is None or (scale == 0).any():
        return None
    return at.affine(x, (1 / scale.astype(np.float64)).astype(np.float32), None)


def _activation(at: Lowering, x: Any, activation: Mapping[str, Any]) -> Stream:
    return at.elementwise("identity", x, activation=activation)


for _plain in ("relu", "hardswish", "hardsigmoid", "silu", "mish", "sigmoid", "tanh"):
    HANDLERS[_plain] = lambda at, a, kind=_plain: _activation(at, a["self"], {"kind": kind})  # type: ignore[misc]


@handles("gelu")
def _gelu(at: Lowering, a: Arguments) -> Stream:
    return _activation(at, a["self"], {"kind": "gelu", "approximate": a["approximate"]})


@handles("elu", "selu", "celu")
def _elu(at: Lowering, a: Arguments) -> Stream | None:
    """scale (x > 0 ? x : alpha (e^(steepness x) - 1)) as scale / steepness elu(steepness x) of alpha steepness."""
    x, name = a["self"], str(at.node.target).split(".")[1]
    alpha, scale = (1.6732632423543772, 1.0507009873554805) if name == "selu" else (a["alpha"], a.get("scale", 1))
    steepness = 1 / alpha if name == "celu" else a.get("input_scale", 1)
    if not 0 < steepness < math.inf or not math.isfinite(alpha * steepness) or not math.isfinite(scale / steepness):
        return None
    if steepness != 1:
        x = at.affine(x, np.asarray([steepness], np.float32), None)
    y = _activation(at, x, {"kind": "elu", "alpha": float(alpha * steepness)})
    return y if scale == steepness else at.affine(y, np.asarray([scale / steepness], np.float32), None)


@handles("leaky_relu")
def _leaky_relu(at: Lowering, a: Arguments) -> Stream:
    return _activation(at, a["self"], {"kind": "leaky_relu", "slope": float(a["negative_slope"])})


@handles("abs")
def _abs(at: Lowering, a: Arguments) -> Stream:
    return _activation(at, a["self"], {"kind": "leaky_relu", "slope": -1.0})


@handles("prelu")
def _prelu(at: Lowering, a: Arguments) -> Stream | None:
    x = a["self"]
    if not isinstance(x, Stream) or not isinstance(a["weight"], Tensor):
        return None
    slopes = a["weight"].detach()
    if (slopes == slopes.flatten()[0]).all():
        return _activation(at, x, {"kind": "leaky_relu", "slope": float(slopes.flatten()[0])})
    shape = at.shape(x)
    scale = at.constant(slopes.reshape(-1, *(1,) * (len(shape) - 2)), shape)
    if scale is None:
        return None
    negative = _activation(at, x, {"kind": "clamp", "min": None, "max": 0.0})
    return _sum(at, _activation(at, x, {"kind": "relu"}), at.affine(negative, scale, None), 1, 1)


@handles("relu6")
def _relu6(at: Lowering, a: Arguments) -> Stream:
    return _activation(at, a["self"], {"kind": "clamp", "min": 0.0, "max": 6.0})


@handles("clamp", "hardtanh", "clamp_min", "clamp_max")
def _clamp(at: Lowering, a: Arguments) -> Stream | None:
    bounds = {}
    for key in ("min", "max"):
        x = a.get(key, a.get(f"{key}_val"))
        if not (x is None or isinstance(x, int | float)):
            return None
        bounds[key] = None if x is None or math.isinf(x) else float(x)
    if bounds["min"] is None and bounds["max"] is None:
        return None
    return _activation(at, a["self"], {"kind": "clamp", **bounds})


@handles("codec")
def _quantiser(at: Lowering, a: Arguments) -> Wire:
    """The mark that stands for a codec with learned steps."""
    value = at.value(a["x"])
    shape = at.draft.shapes[value]
    step = at.constant(a["step"], shape)
    if step is None:
        at.fail(f"steps {tuple(a['step'].shape)} do not fit a value {shape}")
    bounded = a["low"] < a["high"]
    codec = DraftCodec(a["kind"], step, a["low"] if bounded else None, a["high"] if bounded else None)
    return at.emit("identity", [value], shape, codec=codec)


@handles("to", "_to_copy", "type_as")
def _convert(at: Lowering, a: Arguments) -> Any:
    return a["self"] if at.node.meta["val"].dtype == torch.float32 else None
