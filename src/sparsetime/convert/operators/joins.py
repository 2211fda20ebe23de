"""What puts streams and constants together: concatenation, stacks, parts written into, padding."""

from __future__ import annotations

import math
from math import prod
from typing import Any

import torch
from torch import Tensor

from sparsetime.convert.forms import GROUPS
from sparsetime.convert.lowering import (
    Arguments,
    Array,
    Lowering,
    Moved,
    Stream,
    Wire,
    handles,
    output_shape,
    reshaped,
)
from sparsetime.convert.operators.norms import NEVER
from sparsetime.engine.shapes import is_map


@handles("cat", "concat", "concatenate")
def _cat(at: Lowering, a: Arguments) -> Stream | None:
    parts, shape = [x for x in a["tensors"] if isinstance(x, Stream) or x.numel()], output_shape(at)
    axis = int(a["dim"]) % len(shape)
    if axis < 1:
        return None
    if not all(isinstance(x, Stream) for x in parts):
        return _cat_with_constants(at, parts, shape, axis)
    return _joined(at, parts, shape, axis)


def _joined(at: Lowering, parts: list[Stream], shape: tuple[int, ...], axis: int) -> Stream:
    if len(parts) == 1:
        return parts[0]
    form = at.common_form(parts)
    if form is None or form == GROUPS:
        return at.emit("cat", [at.value(x) for x in parts], shape, {"axis": axis})
    there = [Moved(x.value, form.there(at.numbers(x), at.shape(x))) for x in parts]
    out = tuple(form.there(torch.empty(shape), shape).shape)
    wire = at.emit("cat", [at.value(x) for x in there], out, {"axis": form.axes[axis]})
    return Moved(wire.value, form.back(at.numbers(wire), shape))


def _cat_with_constants(at: Lowering, parts: list[Any], shape: tuple[int, ...], axis: int) -> Stream | None:
    """Streams with zeros where constants stand, to which these are added."""
    streams = [x for x in parts if isinstance(x, Stream)]
    constants = [torch.zeros(at.shape(x)) if isinstance(x, Stream) else x for x in parts]
    if shape[0] != 1 or any(x.dtype != torch.float32 for x in constants):
        return None
    shift = at.constant(torch.cat(constants, axis), shape)
    if shift is None:
        return None
    extent = sum(at.shape(x)[axis] for x in streams)
    joined = _joined(at, streams, (*shape[:axis], extent, *shape[axis + 1 :]), axis)
    pieces = iter(at.numbers(joined).split([at.shape(x)[axis] for x in streams], axis))
    index = [next(pieces) if isinstance(x, Stream) else torch.full_like(x, -1, dtype=torch.float64) for x in parts]
    return at.affine(Moved(joined.value, torch.cat(index, axis)), None, shift)


@handles("stack")
def _stack(at: Lowering, a: Arguments) -> Moved | None:
    """Joined along axis 1, which leaves maps what they are, and then in order."""
    parts, axis = list(a["tensors"]), int(a["dim"]) % len(output_shape(at))
    if not all(isinstance(x, Stream) for x in parts):
        return None
    if len(parts) == 1:
        return Moved(parts[0].value, at.numbers(parts[0]).unsqueeze(axis))
    shape, form = at.shape(parts[0]), at.common_form(parts)
    if form is not None:
        parts = [Moved(x.value, form.there(at.numbers(x), shape)) for x in parts]
    elif len(shape) < 2 or shape[0] != 1:
        parts = [reshaped(at, x, (1, prod(shape[:1]), *shape[1:])) for x in parts]
    _, channels, *places = at.shape(parts[0])
    wire = at.emit("cat", [at.value(x) for x in parts], (1, len(parts) * channels, *places), {"axis": 1})
    pieces = at.numbers(wire).chunk(len(parts), 1)
    order = [piece.reshape(shape) if form is None else form.back(piece, shape) for piece in pieces]
    return Moved(wire.value, torch.stack(order, axis))


@handles("copy")
def _copy(at: Lowering, a: Arguments) -> Any:
    x = a["src"]
    if at.node.meta["val"].dtype != torch.float32:
        return None
    return Wire(at.broadcast(x, output_shape(at))) if isinstance(x, Stream) else x.float().expand(output_shape(at))


@handles("slice_scatter", "select_scatter")
def _scatter(at: Lowering, a: Arguments) -> Stream | None:
    """A part of x replaced: what stands in front of it, the new part, and what stands behind it."""
    x, new, shape = a["self"], a["src"], output_shape(at)
    axis = int(a["dim"]) % len(shape)
    extent = shape[axis]
    if "index" in a:
        start, end, step = a["index"] % extent, a["index"] % extent + 1, 1
        new = Moved(new.value, at.numbers(new).unsqueeze(axis)) if isinstance(new, Stream) else new.unsqueeze(axis)
    else:
        start, end, step = slice(a["start"], a["end"], a["step"]).indices(extent)
    if start >= end and isinstance(x, Stream):
        return x
    if end - start == extent and step == 1 and isinstance(new, Stream):
        return Wire(at.value(new))
    if step != 1:
        if axis < 1 or not isinstance(x, Stream) or not isinstance(new, Stream):
            return None
        size = at.shape(new)[axis]
        joined = _joined(at, [x, new], (*shape[:axis], extent + size, *shape[axis + 1 :]), axis)
        old, fresh = at.numbers(joined).split([extent, size], axis)
        return Moved(joined.value, torch.slice_scatter(old, fresh, axis, start, end, step))

    def part(low: int, high: int) -> Any:
        if isinstance(x, Stream):
            return Moved(x.value, at.numbers(x).narrow(axis, low, high - low))
        return x.narrow(axis, low, high - low)

    parts = [part(0, start), new, part(end, extent)]
    parts = [x for x in parts if (at.shape(x) if isinstance(x, Stream) else x.shape)[axis]]
    made: Stream | None = _cat(at, {"tensors": parts, "dim": axis})
    return made


@handles("where", "masked_fill")
def _where(at: Lowering, a: Arguments) -> Stream | None:
    """One of two by a constant mask: x (1 - mask) + y mask, of which one may be constant."""
    if "mask" in a:
        mask, x, y = a["mask"], a["self"], a["value"]
    else:
        mask, x, y = a["condition"], a["other"], a["self"]
    if not isinstance(mask, Tensor) or at.node.meta["val"].dtype != torch.float32:
        return None
    if any(at.draft.producer(part.value).kind == "island" for part in (x, y) if isinstance(part, Stream)):
        return None  # which may give infinity where the mask takes it away
    shape = output_shape(at)
    if all(str(user.target).startswith("aten.softmax") for user in at.node.users) and _is_constant(y, -math.inf):
        y = NEVER  # weighs nothing
    shift = torch.zeros(shape)
    parts: list[tuple[int, Array]] = []
    for part, here in ((x, ~mask), (y, mask)):
        if not isinstance(part, Stream):
            shift = shift.where(~here, torch.as_tensor(part, dtype=torch.float32))
        elif (scale := at.constant(here.float(), shape)) is None:
            return None
        else:
            parts.append((at.broadcast(part, shape), scale))
    chosen = [at.affine(Wire(value), scale, None) for value, scale in parts]
    if len(chosen) == 2:
        return at.emit("add", [at.value(x) for x in chosen], shape, {"coefficients": [1.0, 1.0]})
    constant = at.constant(shift, shape)
    return None if constant is None else at.affine(chosen[0], None, constant)


def _is_constant(x: Any, value: float) -> bool:
    return not isinstance(x, Stream) and bool((torch.as_tensor(x) == value).all())


@handles("index")
def _index(at: Lowering, a: Arguments) -> Any:
    return None if any(isinstance(x, Stream) for x in a["indices"]) else at.move(a)


@handles("pad", "constant_pad_nd")
def _pad(at: Lowering, a: Arguments) -> Any:
    mode = a.get("mode", "constant")
    if mode != "constant":
        return at.move(a)
    pads = [int(n) for n in a["pad"]]
    x, shape = a["self"], at.shape(a["self"])
    value = 0.0 if a["value"] is None else float(a["value"])
    left, right, top, bottom, *further = (*pads, 0, 0, 0, 0)[: max(len(pads), 4)]
    if value == -math.inf and all(str(user.target).startswith("aten.max_pool2d") for user in at.node.users):
        value = NEVER  # is no maximum
    if not math.isfinite(value):
        return None
    if is_map(shape) and not any(further) and min(pads) >= 0:
        attributes = {"padding": [top, bottom, left, right], "value": value}
        return at.emit("pad", [at.value(x)], output_shape(at), attributes) if any(pads) else x
    if value != 0:
        return None
    # Zeros in other places, or a crop: a move, in which -1 is the number of a zero.
    return Moved(x.value, torch.constant_pad_nd(at.numbers(x), pads, -1))
