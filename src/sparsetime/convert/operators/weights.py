"""Convolutions and products with matrices of weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sparsetime.convert.lowering import (
    Arguments,
    Array,
    Lowering,
    Moved,
    Stream,
    Wire,
    array_of,
    handles,
    output_shape,
    pair,
)
from sparsetime.engine.shapes import is_map

__all__ = ["by_pixel", "convolution"]


def _weights(at: Lowering, weight: Any, bias: Any) -> dict[str, Array] | None:
    if not isinstance(weight, Tensor) or not (bias is None or isinstance(bias, Tensor)):
        return None
    tensors = {"weight": at.array(weight)}
    if bias is not None:
        tensors["bias"] = at.array(bias)
    return tensors


@handles("conv2d", "convolution", "conv_transpose2d")
def convolution(at: Lowering, a: Arguments) -> Wire | None:
    if not isinstance(a["input"], Stream) or not is_map(at.shape(a["input"])):
        return None
    tensors = _weights(at, a["weight"], a["bias"])
    if tensors is None:
        return None
    stride, dilation = pair(a["stride"]), pair(a["dilation"])
    transposed = bool(a.get("transposed", "output_padding" in a))
    if isinstance(a["padding"], str):
        kernel = tensors["weight"].shape[2:]
        total = [dilation[k] * (kernel[k] - 1) if a["padding"] == "same" else 0 for k in (0, 1)]
        padding = [total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2]
    else:
        rows, columns = pair(a["padding"])
        padding = [rows, rows, columns, columns]
    attributes = {"stride": stride, "padding": padding, "dilation": dilation, "groups": int(a["groups"])}
    if transposed:
        attributes["output_padding"] = pair(a["output_padding"])
    kind = "conv_transpose2d" if transposed else "conv2d"
    return at.emit(kind, [at.value(a["input"])], output_shape(at), attributes, tensors)


@handles("linear")
def _linear(at: Lowering, a: Arguments) -> Stream | None:
    tensors = _weights(at, a["weight"], a["bias"])
    if tensors is None or tensors["weight"].ndim != 2:
        return None
    if not isinstance(a["input"], Stream) or len(at.shape(a["input"])) < 2:
        return None
    return _product(at, a["input"], tensors)


def _product(at: Lowering, x: Stream, tensors: dict[str, Array]) -> Stream:
    """The last axis times a weight (O, F); of (1, H, W, F), which is a map to a plan, by a convolution of pixels."""
    shape = output_shape(at)
    if not is_map(shape):
        return at.emit("linear", [at.value(x)], shape, {}, tensors)
    wire = by_pixel(at, Moved(x.value, at.numbers(x).movedim(-1, 1)), tensors)
    return Moved(wire.value, at.numbers(wire).movedim(1, -1))


def by_pixel(at: Lowering, x: Stream, tensors: dict[str, Array], groups: int = 1) -> Wire:
    """A convolution of single pixels of a map, with a weight (O, C / groups)."""
    weight = tensors["weight"]
    attributes = {"stride": [1, 1], "padding": [0] * 4, "dilation": [1, 1], "groups": groups}
    tensors = {**tensors, "weight": weight[:, :, None, None]}
    return at.emit("conv2d", [at.value(x)], (1, len(weight), *at.shape(x)[2:]), attributes, tensors)


@handles("addmm")
def _addmm(at: Lowering, a: Arguments) -> Wire | None:
    weight, bias = a["mat2"], a["self"]
    if (
        not isinstance(weight, Tensor)
        or not isinstance(bias, Tensor)
        or bias.dim() != 1
        or (a["alpha"], a["beta"]) != (1, 1)
    ):
        return None
    return at.emit(
        "linear", [at.value(a["mat1"])], output_shape(at), {}, {"weight": array_of(weight.T), "bias": array_of(bias)}
    )


@handles("mm", "matmul")
def _matmul(at: Lowering, a: Arguments) -> Stream | None:
    x, weight = list(a.values())[:2]
    if not isinstance(x, Stream) or not isinstance(weight, Tensor) or weight.dim() != 2 or len(at.shape(x)) < 2:
        return None
    return _product(at, x, {"weight": array_of(weight.T)})
