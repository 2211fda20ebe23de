"""Believe nothing: every shape, number and reference of a plan is checked here before anything runs.

Each kind of operation has one function that takes the shapes of its inputs and gives the shape that its output must
have.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsetime.engine.ops import PRECISIONS, Coding, Op, PlanError
from sparsetime.engine.shapes import Shape, channel_axis, is_map
from sparsetime.engine.structure import entry_of, rebuilt

if TYPE_CHECKING:
    from sparsetime.engine.plan import Plan

__all__ = ["MAX_ELEMENTS", "MAX_RANK", "MOST_CHANNELS", "check_plan"]

MAX_ELEMENTS = 2**28
MAX_RANK = 8
_LARGEST = 1e30  # in magnitude: a factor beyond that only overflows float32
CONSTANTS = ("float32", "int32", "int64", "bool")
"""Data types of arrays that a network returns as they are."""

LEAST_STEP = float(np.float32(1e-12))  # values over smaller ones overflow float32, in which the least itself is exact
LARGEST_STEP = 1e12  # of codes and of weights of int8: products with sums are normal numbers, down to the least
CODES = 255  # the largest code
MOST_CHANNELS = (2**31 - 1) // CODES**2  # whose squares of codes add up within 32 bits
_MAX_EXTENT = 2**16  # of strides, paddings and dilations
_TARGET = re.compile(r"aten\.[a-z_0-9]+\.[A-Za-z_0-9]+")
_TYPES = ("float32", "int64", "bool")


def _fail(message: str) -> Any:
    raise PlanError(message)


def _is_int(x: Any, low: int, high: int) -> bool:
    return type(x) is int and low <= x <= high


def _is_number(x: Any) -> bool:
    return type(x) in (int, float) and abs(x) <= _LARGEST


def _is_constant(x: Any) -> bool:
    """What stands in a header as it is."""
    return x is None or type(x) in (bool, int, str) or (type(x) is float and math.isfinite(x))


class _Context:
    """One operation under inspection: reads its entries, and names it in every complaint."""

    def __init__(self, plan: Plan, number: int, op: Op, codings: Mapping[int, Coding]) -> None:
        self.plan, self.op = plan, op
        self.where = f"op {number} '{op.name}' ({op.origin})"
        self.seen: set[str] = set()
        self.codings = codings

    def fail(self, message: str) -> Any:
        return _fail(f"{self.where}: {message}")

    def expect(self, condition: bool, message: str) -> None:
        if not condition:
            self.fail(message)

    def shape(self, k: int) -> Shape:
        return self.plan.values[self.op.inputs[k]]

    def inputs(self, low: int, high: int) -> None:
        n = len(self.op.inputs)
        self.expect(low <= n <= high, f"expected {low} to {high} inputs, got {n}")

    def a_map(self, k: int) -> Shape:
        """Shape of input k, which must be (1, C, H, W)."""
        shape = self.shape(k)
        self.expect(is_map(shape), f"expected an input (1, C, H, W), got {shape}")
        return shape

    def attribute(self, key: str) -> Any:
        self.seen.add(key)
        if key not in self.op.attributes:
            self.fail(f"attribute '{key}' is missing")
        return self.op.attributes[key]

    def integers(self, key: str, n: int, low: int, high: int = _MAX_EXTENT) -> list[int]:
        x = self.attribute(key)
        ok = isinstance(x, list | tuple) and len(x) == n and all(_is_int(i, low, high) for i in x)
        self.expect(ok, f"attribute '{key}' must be {n} integers from {low} to {high}, got {_short(x)}")
        return list(x)

    def integer(self, key: str, low: int, high: int = _MAX_EXTENT) -> int:
        x = self.attribute(key)
        self.expect(
            _is_int(x, low, high), f"attribute '{key}' must be an integer from {low} to {high}, got {_short(x)}"
        )
        return int(x)

    def number(self, key: str) -> float:
        x = self.attribute(key)
        self.expect(_is_number(x), f"attribute '{key}' must be a finite number, got {_short(x)}")
        return float(x)

    def tensor(self, role: str, dtype: str, shape: Sequence[int | None] | None = None) -> Any:
        """The tensor of a role, after a look at its type and shape (None: any extent)."""
        self.seen.add(f"tensors.{role}")
        if role not in self.op.tensors:
            self.fail(f"tensor '{role}' is missing")
        name = self.op.tensors[role]
        return self.named(name, dtype, shape, role)

    def named(self, name: Any, dtype: str | None, shape: Sequence[int | None] | None, role: str) -> Any:
        if not isinstance(name, str) or name not in self.plan.tensors:
            self.fail(f"'{role}' names a tensor {_short(name)} that the file does not hold")
        tensor = self.plan.tensors[name]
        if dtype is not None:
            self.expect(tensor.dtype == dtype, f"tensor '{role}' must be {dtype}, got {tensor.dtype}")
            if dtype == "float32":
                self.expect(_finite(tensor), f"tensor '{role}' holds values that are not finite")
        if shape is not None:
            fits = len(shape) == tensor.ndim and all(
                a is None or a == b for a, b in zip(shape, tensor.shape, strict=True)
            )
            wanted = tuple("any" if a is None else a for a in shape)
            self.expect(fits, f"tensor '{role}' must have shape {wanted}, got {tensor.shape}")
        return tensor

    def optional(self, role: str, shape: Sequence[int | None]) -> None:
        if role in self.op.tensors:
            self.tensor(role, "float32", shape)

    def per_channel(self, name: Any, shape: Shape, role: str) -> Any:
        """A float32 tensor [1], [C] or one entry per element of a value."""
        tensor = self.named(name, "float32", None, role)
        allowed: list[Shape] = [(1,)]
        if len(shape) >= 2:
            allowed.append((shape[channel_axis(shape)],))
        if len(shape) >= 1 and shape[0] == 1:
            allowed.append(shape[1:])
        self.expect(
            tensor.shape in allowed, f"tensor '{role}' must have one of the shapes {allowed}, got {tensor.shape}"
        )
        return tensor

    def weight(self, shape: Sequence[int | None], outputs: Callable[[Any], int]) -> Any:
        """The weight of an operation; in an int8 plan with its steps, and sums that cannot overflow.

        Args:
            shape: as it must be, None for any extent.
            outputs: number of output channels of such a weight.
        """
        if self.op.precision == "float32":
            return self.tensor("weight", "float32", shape)
        weight = self.tensor("weight", "int8", shape)
        self.expect(
            self.op.inputs[0] in self.codings,
            f"weights of int8 need an input of codes, and value {self.op.inputs[0]} has no codec",
        )
        n = outputs(weight)
        step = self.tensor("weight_step", "float32", (n,))
        self.expect(
            bool(((step >= LEAST_STEP) & (step <= LARGEST_STEP)).all()),
            f"tensor 'weight_step' must hold numbers from {LEAST_STEP:g} to {LARGEST_STEP:g}",
        )
        return weight

    def no_overflow(self, weight: Any, terms: tuple[int, ...]) -> None:
        """Refuse weights of int8 if an output channel's sum, |w| * 255 over the axes `terms`, could leave int32."""
        if self.op.precision == "float32":
            return
        magnitudes = np.abs(weight.astype(np.int16)).sum(axis=terms, dtype=np.int64).reshape(-1)
        worst = int(magnitudes.max())
        self.expect(
            worst * CODES < 2**31,
            f"output channel {int(magnitudes.argmax())} has weights of {worst} in all: times codes of {CODES} that is "
            f"{worst * CODES}, and sums of 32 bits end at {2**31 - 1}. Scale its weights down, or split the layer",
        )

    def bias(self, outputs: int) -> None:
        """The optional bias of `outputs` channels."""
        if "bias" in self.op.tensors:
            bias = self.tensor("bias", "float32", (outputs,))
            if self.op.precision != "float32":
                self.expect(bool((np.abs(bias) <= _LARGEST).all()), f"tensor 'bias' must not leave +-{_LARGEST:g}")

    def same(self) -> Shape:
        """Shape of all inputs, which must be one."""
        first = self.shape(0)
        for k in range(1, len(self.op.inputs)):
            self.expect(self.shape(k) == first, f"inputs must have one shape, got {first} and {self.shape(k)}")
        return first

    def done(self) -> None:
        """Complain about entries that nobody asked for."""
        extra = set(self.op.attributes) - self.seen
        extra |= {f"tensors.{role}" for role in self.op.tensors} - self.seen
        self.expect(not extra, f"unknown entries {sorted(extra)}")


def _short(x: Any) -> str:
    text = repr(x)
    return text if len(text) <= 60 else text[:57] + "..."


def _finite(tensor: Any) -> bool:
    # One pass without a mask: a sum is finite only if every term is, save for overflow, which is looked at again.
    with np.errstate(over="ignore", invalid="ignore"):
        total = tensor.sum(dtype=np.float64)
    return bool(np.isfinite(total)) or bool(np.isfinite(tensor).all())


def _input(c: _Context) -> Shape:
    c.inputs(0, 0)
    c.expect(c.op.activation is None, "an input has no activation")
    shape = c.plan.values[c.op.output]
    c.expect(len(shape) >= 2 and shape[0] == 1, f"a frame must be (1, C, H, W) or (1, ...), got {shape}")
    spec = c.plan.input
    if spec is not None:
        # Of these, axis 1 is the channels in every reader's eyes.
        c.expect(len(shape) in (2, 4), f"with 'input' a frame must be (1, C, H, W) or (1, C), got {shape}")
        for name, numbers in (("mean", spec.mean), ("std", spec.std)):
            ok = len(numbers) == shape[1] and all(_is_number(x) for x in numbers)
            c.expect(ok, f"input '{name}' must be {shape[1]} numbers, got {_short(numbers)}")
        with np.errstate(all="ignore"):
            mean, std = (np.asarray(numbers, np.float32) for numbers in (spec.mean, spec.std))
            ends = (np.asarray([[0], [255]], np.float32) - mean) / std
        ok = bool((std > 0).all() and np.isfinite(ends).all())
        c.expect(ok, f"input 'std' must be > 0, and bytes stay finite in float32, got {_short(spec.std)}")
        c.expect(spec.color in ("rgb", "bgr"), f"input 'color' must be 'rgb' or 'bgr', got {_short(spec.color)}")
    return shape


def _sum_input(c: _Context, shape: Shape) -> Shape:
    if len(c.op.inputs) == 2:
        c.expect(c.shape(1) == shape, f"the second input must have the output's shape {shape}, got {c.shape(1)}")
    return shape


def _conv2d(c: _Context) -> Shape:
    c.inputs(1, 2)
    _, channels, height, width = c.a_map(0)
    stride, dilation = c.integers("stride", 2, 1), c.integers("dilation", 2, 1)
    top, bottom, left, right = c.integers("padding", 4, 0)
    groups = c.integer("groups", 1)
    weight = c.weight((None,) * 4, lambda w: w.shape[0])
    out, per_group, kh, kw = weight.shape
    c.expect(
        min(weight.shape) >= 1 and per_group * groups == channels and out % groups == 0,
        f"weight {weight.shape} does not fit {channels} channels in {groups} groups",
    )
    c.no_overflow(weight, (1, 2, 3))
    c.bias(out)
    rows = (height + top + bottom - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    columns = (width + left + right - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    return _sum_input(c, (1, out, rows, columns))


def _conv_transpose2d(c: _Context) -> Shape:
    c.inputs(1, 1)
    _, channels, height, width = c.a_map(0)
    stride, dilation = c.integers("stride", 2, 1), c.integers("dilation", 2, 1)
    top, bottom, left, right = c.integers("padding", 4, 0)
    extra = c.integers("output_padding", 2, 0)
    groups = c.integer("groups", 1)
    weight = c.weight((None,) * 4, lambda w: w.shape[1] * groups)
    taken, per_group, kh, kw = weight.shape
    c.expect(
        min(weight.shape) >= 1 and taken == channels and channels % groups == 0,
        f"weight {weight.shape} does not fit {channels} channels in {groups} groups",
    )
    c.no_overflow(weight.reshape(groups, -1, per_group, kh, kw), (1, 3, 4))
    c.bias(per_group * groups)
    rows = (height - 1) * stride[0] - top - bottom + dilation[0] * (kh - 1) + extra[0] + 1
    columns = (width - 1) * stride[1] - left - right + dilation[1] * (kw - 1) + extra[1] + 1
    return 1, per_group * groups, rows, columns


def _linear(c: _Context) -> Shape:
    c.inputs(1, 2)
    shape = c.shape(0)
    c.expect(len(shape) >= 2, f"expected an input of rank 2 or more, got {shape}")
    c.expect(not is_map(shape), f"{shape} is a map, whose last axis a 1x1 conv2d multiplies")
    weight = c.weight((None, shape[-1]), lambda w: w.shape[0])
    c.expect(min(weight.shape) >= 1, f"weight {weight.shape} has no outputs")
    c.no_overflow(weight, (1,))
    c.bias(weight.shape[0])
    return _sum_input(c, (*shape[:-1], weight.shape[0]))


def _affine(c: _Context) -> Shape:
    c.inputs(1, 1)
    shape = c.shape(0)
    c.expect(bool(c.op.tensors), "an affine operation needs a scale or a shift")
    for role in ("scale", "shift"):
        if role in c.op.tensors:
            c.seen.add(f"tensors.{role}")
            c.per_channel(c.op.tensors[role], shape, role)
    return shape


def _add(c: _Context) -> Shape:
    c.inputs(2, 2)
    pair = c.attribute("coefficients")
    ok = isinstance(pair, list | tuple) and len(pair) == 2 and all(_is_number(x) for x in pair)
    c.expect(ok, f"attribute 'coefficients' must be two numbers, got {_short(pair)}")
    return c.same()


def _cat(c: _Context) -> Shape:
    c.inputs(2, 2**16)
    first = c.shape(0)
    axis = c.integer("axis", 1, MAX_RANK)
    c.expect(axis < len(first), f"axis {axis} is outside of shape {first}")
    total = 0
    for k in range(len(c.op.inputs)):
        shape = c.shape(k)
        same = len(shape) == len(first) and shape[:axis] == first[:axis] and shape[axis + 1 :] == first[axis + 1 :]
        c.expect(same, f"cannot join {first} and {shape} along axis {axis}")
        total += shape[axis]
    return (*first[:axis], total, *first[axis + 1 :])


def _index(c: _Context, role: str, limit: int, shape: Sequence[int | None], low: int = -1) -> Any:
    index = c.tensor(role, "int32", shape)
    c.expect(index.size > 0, f"tensor '{role}' is empty")
    c.expect(
        int(index.min()) >= low and int(index.max()) < limit,
        f"tensor '{role}' must hold indices from {low} to {limit - 1}, got {int(index.min())} to {int(index.max())}",
    )
    return index


def _channels(c: _Context) -> Shape:
    c.inputs(1, 1)
    _, channels, height, width = c.a_map(0)
    return 1, _index(c, "index", channels, (None,)).size, height, width


def _gather(c: _Context) -> Shape:
    c.inputs(1, 1)
    shape = c.plan.values[c.op.output]
    _index(c, "index", prod(c.shape(0)), (prod(shape),))
    return shape


def _reshape(c: _Context) -> Shape:
    c.inputs(1, 1)
    shape = c.plan.values[c.op.output]
    c.expect(prod(shape) == prod(c.shape(0)), f"cannot reshape {c.shape(0)} to {shape}")
    return shape


def _pad(c: _Context) -> Shape:
    c.inputs(1, 1)
    _, channels, height, width = c.a_map(0)
    top, bottom, left, right = c.integers("padding", 4, 0)
    c.number("value")
    return 1, channels, height + top + bottom, width + left + right


def _windows(c: _Context, role: str, extent: int) -> int:
    """Rows or columns of a pooling: (n, 2) of [start, end) inside the map, none empty. Returns n."""
    table = c.tensor(role, "int32", (None, 2))
    ok = table.size > 0 and (table[:, 0] >= 0).all() and (table[:, 1] <= extent).all()
    ok = ok and (table[:, 0] < table[:, 1]).all()
    c.expect(bool(ok), f"tensor '{role}' must hold windows [start, end) inside 0 to {extent}")
    return int(table.shape[0])


def _avg_pool2d(c: _Context) -> Shape:
    c.inputs(1, 1)
    _, channels, height, width = c.a_map(0)
    rows, columns = _windows(c, "rows", height), _windows(c, "columns", width)
    divisor = c.tensor("divisor", "float32", (rows, columns))
    c.expect(bool((divisor != 0).all()), "tensor 'divisor' holds zeros")
    return 1, channels, rows, columns


def _norm(c: _Context, channels: int) -> None:
    """What norms have in common."""
    eps = c.number("eps")
    c.expect(eps >= LEAST_STEP, f"attribute 'eps' must be at least {LEAST_STEP:g}, got {eps:g}")
    for role in ("scale", "shift"):
        c.optional(role, (channels,))


def _layer_norm(c: _Context) -> Shape:
    c.inputs(1, 1)
    shape = c.shape(0)
    _needs_channels(c, shape, "layer_norm")
    _norm(c, shape[channel_axis(shape)])
    return shape


def _group_norm(c: _Context) -> Shape:
    c.inputs(1, 1)
    shape = c.a_map(0)
    groups = c.integer("groups", 1, MAX_ELEMENTS)
    c.expect(shape[1] % groups == 0, f"{shape[1]} channels are no {groups} groups of one size")
    _norm(c, shape[1])
    return shape


def _softmax(c: _Context) -> Shape:
    c.inputs(1, 1)
    shape = c.shape(0)
    _needs_channels(c, shape, "softmax")
    return shape


def _attention(c: _Context) -> Shape:
    c.inputs(3, 3)
    windows, heads = c.integer("windows", 1, MAX_ELEMENTS), c.integer("heads", 1, MAX_ELEMENTS)
    shapes = [c.shape(k) for k in range(3)]
    for shape in shapes:
        ok = len(shape) == 3 and shape[0] == 1 and shape[1] % windows == 0 and shape[2] % heads == 0
        c.expect(ok, f"expected inputs (1, L, F) for {windows} windows and {heads} heads, got {shape}")
    (_, queries, depth), keys, (_, _, width) = shapes
    c.expect(keys == (1, shapes[2][1], depth), f"keys {keys} do not fit queries {shapes[0]} and values {shapes[2]}")
    c.number("scale")
    if "bias" in c.op.tensors:
        bias = c.tensor("bias", "float32", (None,) * 4)
        fit = (1, windows), (1, heads), (1, queries // windows), (keys[1] // windows,)
        ok = all(n in allowed for n, allowed in zip(bias.shape, fit, strict=True))
        c.expect(ok, f"tensor 'bias' {bias.shape} does not fit {tuple(max(allowed) for allowed in fit)}")
    return 1, queries, width


def _max_pool2d(c: _Context) -> Shape:
    c.inputs(1, 1)
    _, channels, height, width = c.a_map(0)
    c.integers("dilation", 2, 1)
    return 1, channels, _windows(c, "rows", height), _windows(c, "columns", width)


def _resize2d(c: _Context) -> Shape:
    c.inputs(1, 1)
    _, channels, height, width = c.a_map(0)
    out = []
    for role, weights, extent in (("rows", "row_weights", height), ("columns", "column_weights", width)):
        index = _index(c, role, extent, (None, None), 0)
        c.tensor(weights, "float32", index.shape)
        out.append(index.shape[0])
    return 1, channels, out[0], out[1]


def _identity(c: _Context) -> Shape:
    c.inputs(1, 1)
    c.expect(
        c.op.activation is not None or c.op.codec is not None, "an identity without activation or codec has no use"
    )
    return c.shape(0)


def _mul(c: _Context) -> Shape:
    c.inputs(2, 2)
    a, b = c.shape(0), c.shape(1)
    gate = is_map(a) and b == (1, a[1], 1, 1)
    c.expect(a == b or gate, f"cannot multiply {a} by {b}: expected one shape, or (1, C, H, W) by (1, C, 1, 1)")
    return a


_KINDS: dict[str, Callable[[_Context], Shape]] = {
    "input": _input,
    "conv2d": _conv2d,
    "conv_transpose2d": _conv_transpose2d,
    "linear": _linear,
    "affine": _affine,
    "add": _add,
    "cat": _cat,
    "channels": _channels,
    "gather": _gather,
    "reshape": _reshape,
    "pad": _pad,
    "avg_pool2d": _avg_pool2d,
    "resize2d": _resize2d,
    "identity": _identity,
    "mul": _mul,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "softmax": _softmax,
    "attention": _attention,
    "max_pool2d": _max_pool2d,
}


def _check_island(c: _Context) -> None:
    """Look at everything about an island that can be known without PyTorch."""
    c.expect(c.op.activation is None, "an island has no activation")
    target = c.attribute("target")
    c.expect(
        isinstance(target, str) and _TARGET.fullmatch(target) is not None,
        f"target must be an operator of the aten namespace, got {_short(target)}",
    )
    arguments, keywords = c.attribute("arguments"), c.attribute("keywords")
    c.expect(isinstance(arguments, list), "'arguments' must be a list")
    c.expect(isinstance(keywords, dict), "'keywords' must be an object")
    types = c.attribute("types")
    ok = isinstance(types, list) and len(types) == len(c.op.outputs) and all(t in _TYPES for t in types)
    c.expect(ok, f"'types' must name one of {_TYPES} for each output, got {_short(types)}")
    c.expect(c.op.codec is None or types[0] == "float32", "a codec needs float32")
    used: list[int] = []

    def walk(x: Any) -> None:
        if _is_constant(x):
            return
        if isinstance(x, list):
            for item in x:
                walk(item)
            return
        if isinstance(x, dict) and len(x) == 1:
            ((key, entry),) = x.items()
            if key == "value" and type(entry) is int:
                used.append(entry)
                return
            if key == "tensor":
                c.named(entry, None, None, "argument")
                c.expect(entry in c.op.tensors.values(), f"takes the tensor '{entry}', which is not among its own")
                c.seen.add(f"tensors.{entry}")
                return
            if (key == "dtype" and entry in _TYPES) or (key == "float" and entry in ("inf", "-inf", "nan")):
                return
        c.fail(f"an argument must be a value, a tensor, a dtype, a number, a string or a list, got {_short(x)}")

    walk(arguments)
    walk(list(keywords.values()))
    wanted = list(dict.fromkeys(used))
    c.expect(list(c.op.inputs) == wanted, f"inputs {list(c.op.inputs)} are not the values of the arguments, {wanted}")
    c.expect(bool(wanted), "an island must take a value")


_ACTIVATIONS: dict[str, frozenset[str]] = {
    "relu": frozenset(),
    "clamp": frozenset(["min", "max"]),
    "leaky_relu": frozenset(["slope"]),
    "hardswish": frozenset(),
    "hardsigmoid": frozenset(),
    "silu": frozenset(),
    "elu": frozenset(["alpha"]),
    "mish": frozenset(),
    "gelu": frozenset(["approximate"]),
    "sigmoid": frozenset(),
    "tanh": frozenset(),
}


def _check_activation(c: _Context) -> None:
    a = c.op.activation
    if a is None:
        return
    kind = a.get("kind")
    if not isinstance(kind, str) or kind not in _ACTIVATIONS:
        c.fail(f"unknown activation {_short(kind)}")
    wanted = _ACTIVATIONS[str(kind)] | {"kind"}
    c.expect(set(a) == wanted, f"activation '{kind}' has entries {sorted(map(str, a))}, expected {sorted(wanted)}")
    if kind == "clamp":
        bounds = (a["min"], a["max"])
        ok = all(x is None or _is_number(x) for x in bounds) and bounds != (None, None)
        ok = ok and (None in bounds or bounds[0] <= bounds[1])
        c.expect(ok, f"clamp needs min <= max, numbers or null, got {_short(bounds)}")
    if kind == "leaky_relu":
        c.expect(_is_number(a["slope"]), f"leaky_relu needs a finite slope, got {_short(a['slope'])}")
    if kind == "elu":
        c.expect(_is_number(a["alpha"]), f"elu needs a finite alpha, got {_short(a['alpha'])}")
    if kind == "gelu":
        c.expect(
            a["approximate"] in ("none", "tanh"), f"gelu: approximate is 'none' or 'tanh', got {a['approximate']!r}"
        )


def _needs_channels(c: _Context, shape: Shape, what: str) -> None:
    c.expect(len(shape) >= 1, f"{what} needs a value with channels, and this one is a single number")


def _check_codec(c: _Context, shape: Shape) -> None:
    codec = c.op.codec
    if codec is None:
        return
    kind = codec.get("kind")
    if c.op.precision != "float32":
        c.expect(kind == "code", f"unknown codec {_short(kind)}: in an int8 plan all codecs are 'code'")
        _check_code(c, codec, shape)
        return
    c.expect(kind in ("exact", "hold", "pixel", "residual"), f"unknown codec {_short(kind)}")
    allowed = {"kind", "tensor"} | ({"low", "high"} if kind == "exact" else set())
    extra = set(codec) - allowed
    c.expect(not extra and "tensor" in codec, f"codec '{kind}' has entries {sorted(map(str, codec))}")
    if kind == "pixel":
        _needs_channels(c, shape, "'pixel'")
    step = c.per_channel(codec["tensor"], shape, "codec")
    least = float(step.min())
    if kind in ("hold", "pixel"):
        c.expect(least >= 0, f"thresholds must be >= 0, got {least}")
    else:
        c.expect(least >= LEAST_STEP, f"steps must be at least {LEAST_STEP:g}, got {least:g}")
    if "low" in codec or "high" in codec:
        low, high = codec.get("low"), codec.get("high")
        ok = _is_int(low, -(2**24), 2**24) and _is_int(high, -(2**24), 2**24) and low < high  # type: ignore[operator]
        c.expect(ok, f"codes need integers low < high, got {_short(low)} and {_short(high)}")


def _check_code(c: _Context, codec: Mapping[str, Any], shape: Shape) -> None:
    wanted = {"kind", "tensor", "zero", "threshold"}
    pixel = codec.get("pixel", False)
    c.expect(isinstance(pixel, bool), f"'pixel' must be true or false, got {_short(pixel)}")
    entries = sorted(map(str, codec))
    c.expect(set(codec) - {"pixel"} == wanted, f"codec 'code' has entries {entries}, expected {sorted(wanted)}")
    step = c.named(codec["tensor"], "float32", (1,), "codec")
    c.expect(
        LEAST_STEP <= float(step[0]) <= LARGEST_STEP,
        f"the step of codes must be from {LEAST_STEP:g} to {LARGEST_STEP:g}, got {float(step[0])}",
    )
    c.expect(
        _is_int(codec["zero"], 0, CODES), f"'zero' must be an integer from 0 to {CODES}, got {_short(codec['zero'])}"
    )
    threshold = c.named(codec["threshold"], "int32", None, "threshold")
    allowed = [(1,), (shape[channel_axis(shape)],)] if len(shape) >= 2 else [(1,)]
    c.expect(
        threshold.shape in allowed,
        f"tensor 'threshold' must have one of the shapes {allowed}, got {threshold.shape}",
    )
    if pixel:
        _needs_channels(c, shape, "'pixel'")
        channels = shape[channel_axis(shape)]
        c.expect(threshold.shape == (1,), f"a threshold by pixel is one for all channels, got {threshold.shape}")
        # So many channels' squares fit 32 bits.
        c.expect(
            channels <= MOST_CHANNELS,
            f"'pixel' bears {MOST_CHANNELS} channels, got {channels}; the codec 'hold' bears any number",
        )
        c.expect(int(threshold[0]) >= 0, f"a threshold must be >= 0, got {int(threshold[0])}")
        return
    c.expect(
        int(threshold.min()) >= 0 and int(threshold.max()) <= CODES,
        f"thresholds must be from 0 to {CODES}, got {int(threshold.min())} to {int(threshold.max())}",
    )


def _coding(c: _Context) -> Coding | None:
    """How the first value of a checked operation is coded, or None: by its codec, or kept by a bare move."""
    if c.op.precision == "float32":
        return None
    if c.op.codec is not None:
        return Coding(float(c.plan.tensors[c.op.codec["tensor"]][0]), c.op.codec["zero"])
    if not c.op.passes_codes:
        return None
    first = c.codings.get(c.op.inputs[0])
    return first if all(c.codings.get(value) == first for value in c.op.inputs) else None


def _check_values(plan: Plan) -> None:
    if not plan.values:
        _fail("a plan needs at least one value")
    for number, shape in enumerate(plan.values):
        ok = len(shape) <= MAX_RANK and all(_is_int(n, 1, MAX_ELEMENTS) for n in shape)
        if not ok or prod(shape) > MAX_ELEMENTS:
            _fail(
                f"value {number}: expected up to {MAX_RANK} dimensions of at least 1 and up to {MAX_ELEMENTS} "
                f"elements, got {_short(shape)}"
            )


def _check_structure(plan: Plan) -> None:
    """What `structure` may hold; see docs/plan.md."""

    def check(leaf: Any) -> None:
        key, entry = entry_of(leaf)
        fits = (
            (key == "output" and _is_int(entry, 0, len(plan.outputs) - 1))
            or (key == "array" and isinstance(entry, np.ndarray) and entry.dtype.name in CONSTANTS)
            or (key == "constant" and _is_constant(entry))
        )
        if not fits:
            _fail(f"structure: expected an output, tuple, dict, list, array or constant, got {_short(leaf)}")

    rebuilt(plan.structure, check)


def check_plan(plan: Plan) -> dict[int, Coding]:
    """Check that everything in a plan fits together.

    Returns:
        how the values that are kept as codes are coded, by number.

    Raises:
        PlanError: naming the operation and the entry, what was expected and what is there.
    """
    if plan.precision not in PRECISIONS:
        _fail(f"precision: expected one of {PRECISIONS}, got {_short(plan.precision)}")
    _check_values(plan)
    codings: dict[int, Coding] = {}
    if not plan.ops or plan.ops[0].kind != "input":
        _fail("the first operation must be the input")
    types: dict[int, str] = {}
    names: set[str] = set()
    for number, op in enumerate(plan.ops):
        c = _Context(plan, number, op, codings)
        c.expect(op.precision == plan.precision, f"is of precision {op.precision}, its plan of {plan.precision}")
        c.expect(number == 0 or op.kind != "input", "only the first operation may be an input")
        c.expect(op.name not in names, "the name is taken by an operation before it")
        names.add(op.name)
        for value in op.inputs:
            c.expect(value in types, f"reads value {_short(value)}, which nothing before it makes")
            c.expect(op.kind == "island" or types[value] == "float32", f"cannot read value {value} of {types[value]}")
        c.expect(len(op.outputs) >= 1, "makes no value")
        for value in op.outputs:
            c.expect(_is_int(value, 0, len(plan.values) - 1), f"makes value {_short(value)}, which has no shape")
            c.expect(value not in types, f"makes value {value} a second time")
            types[value] = "float32"
        if op.crossover is not None:
            c.expect(_is_number(op.crossover) and 0 <= op.crossover <= 1, "crossover must be a density from 0 to 1")
        if op.kind == "island":
            _check_island(c)
        elif op.kind in _KINDS:
            c.expect(len(op.outputs) == 1, f"makes {len(op.outputs)} values, expected one")
            shape = _KINDS[op.kind](c)
            stated = plan.values[op.output]
            c.expect(shape == stated, f"value {op.output} must have shape {shape}, the plan says {stated}")
        else:
            c.fail(f"unknown kind {_short(op.kind)}")
        c.done()
        _check_activation(c)
        _check_codec(c, plan.values[op.output])
        types.update({v: str(t) for v, t in zip(op.outputs, op.attributes.get("types", ["float32"]), strict=False)})
        coding = _coding(c)
        if coding is not None:
            codings[op.output] = coding
    missing = set(range(len(plan.values))) - set(types)
    if missing:
        _fail(f"nothing makes the values {_short(sorted(missing))}")
    if not plan.outputs or not all(_is_int(v, 0, len(plan.values) - 1) for v in plan.outputs):
        _fail(f"outputs must name values, got {_short(plan.outputs)}")
    _check_structure(plan)
    _check_tensors(plan)
    return codings


def _check_tensors(plan: Plan) -> None:
    used: set[str] = set()
    for op in plan.ops:
        used.update(op.tensors.values())
        if op.codec is not None:
            used.update(op.codec[key] for key in ("tensor", "threshold") if key in op.codec)
    unused = set(plan.tensors) - used
    if unused:
        _fail(f"no operation uses the tensors {_short(sorted(unused))}")
