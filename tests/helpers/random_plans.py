"""Random plans for property tests: every kind of operation, odd sizes, one-pixel maps, every codec.

With `dyadic=True` all weights, steps and frames are small multiples of powers of two and nothing is rounded in float32,
whatever the order of the sums: two executors must then agree to the bit, at ties too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparsetime.convert.draft import Draft, DraftCodec, DraftOp
from sparsetime.convert.integers import quantised_plan
from sparsetime.convert.tables import adaptive_windows, pool_windows
from sparsetime.engine import Plan
from sparsetime.engine.shapes import channel_axis

Array = NDArray[Any]

EXACT_ACTIVATIONS: list[dict[str, Any] | None] = [
    None,
    {"kind": "relu"},
    {"kind": "clamp", "min": 0.0, "max": 6.0},
    {"kind": "clamp", "min": None, "max": 2.0},
    {"kind": "leaky_relu", "slope": 0.25},
]
ACTIVATIONS: list[dict[str, Any] | None] = [
    *EXACT_ACTIVATIONS,
    {"kind": "hardswish"},
    {"kind": "hardsigmoid"},
    {"kind": "silu"},
    {"kind": "elu", "alpha": 0.75},
    {"kind": "mish"},
    {"kind": "gelu", "approximate": "none"},
    {"kind": "gelu", "approximate": "tanh"},
    {"kind": "sigmoid"},
    {"kind": "tanh"},
]
ORDERED_ACTIVATIONS: list[dict[str, Any] | None] = [
    *EXACT_ACTIVATIONS,
    {"kind": "hardswish"},
    {"kind": "hardsigmoid"},
]
"""Those that are a stated order of operations of float32, and so the same bits everywhere."""
MAP_KINDS = [
    *("conv2d", "conv2d", "conv2d", "depthwise", "conv_transpose2d", "affine", "add", "cat", "channels", "gather"),
    *("pad", "avg_pool2d", "adaptive", "resize2d", "nearest", "identity", "mul", "gate", "max_pool2d", "residual"),
]

ROUNDED_KINDS = [*MAP_KINDS, "layer_norm"]
"""Besides, those that float32 rounds whatever the numbers are."""

FLOAT_KINDS = [*ROUNDED_KINDS, "group_norm", "softmax", "attention"]
"""Besides, those that are made of functions which every library rounds in its own way."""


@dataclass
class Maker:
    """Draws the parts of one plan."""

    draw: st.DrawFn
    draft: Draft
    rng: np.random.Generator
    dyadic: bool
    codecs: tuple[str | None, ...]
    activations: list[dict[str, Any] | None]

    def pick(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def floats(self, *shape: int) -> Array:
        if self.dyadic:
            return (self.rng.integers(-2, 3, shape) / 2).astype(np.float32)
        return self.rng.standard_normal(shape).astype(np.float32)

    def weights(self, *shape: int) -> Array:
        w = self.floats(*shape)
        return w if self.dyadic else w / np.float32(max(np.prod(shape[1:]), 1) ** 0.5)

    def codec(self, shape: tuple[int, ...], must: bool) -> DraftCodec | None:
        kind = "exact" if must else self.pick(*self.codecs)
        if kind is None:
            return None
        channels = (shape[1],) if len(shape) in (2, 4) else (shape[-1],)
        form = self.pick((1,), channels, shape[1:])
        step = self.rng.choice([0.125, 0.25, 0.5], form) if self.dyadic else self.rng.uniform(0.05, 0.3, form)
        if kind == "exact" and self.pick(True, False, False, False):
            return DraftCodec(kind, step.astype(np.float32), -5, 9)
        return DraftCodec(kind, step.astype(np.float32))

    def emit(
        self, kind: str, inputs: list[int], shape: tuple[int, ...], attributes: Any = None, **tensors: Array
    ) -> int:
        """Append an operation, with an activation and a codec by chance."""
        heavy = kind in ("conv2d", "conv_transpose2d", "linear", "mul")
        activation = self.draw(st.sampled_from(self.activations))
        codec = self.codec(shape, must=self.dyadic and heavy)
        if self.dyadic and heavy:  # keep numbers small enough to stay exact
            activation = {"kind": "clamp", "min": -8.0, "max": 8.0}
        if kind == "identity" and activation is None and codec is None:
            activation = {"kind": "relu"}
        if kind == "input":
            activation = None
        number = self.draft.value(shape)
        self.draft.add(
            DraftOp(kind, kind, inputs, [number], attributes or {}, dict(tensors), activation, codec, "test.py:1")
        )
        return number


def _extent(size: int, kernel: int, stride: int, before: int, after: int, dilation: int) -> int:
    return (size + before + after - dilation * (kernel - 1) - 1) // stride + 1


def _convolution(m: Maker, x: int, residual: bool = False, depthwise: bool = False) -> int:
    _, c, h, w = m.draft.shapes[x]
    kh, kw = m.number(1, 4), m.number(1, 4)
    if depthwise and (side := m.pick(None, 5, 7)):
        kh = kw = side
    dilation = [m.pick(1, 1, 2), m.pick(1, 1, 2)]
    stride = [m.pick(1, 1, 2, 3), m.pick(1, 1, 2, 3)]
    padding = [m.number(0, 3) for _ in range(4)]
    if residual:
        kh, kw, stride, padding, dilation = 3, 3, [1, 1], [1, 1, 1, 1], [1, 1]
    groups = c if depthwise else m.pick(*[g for g in (1, 1, 2, 3) if c % g == 0])
    out = c * m.pick(1, 1, 2) if depthwise else groups * m.number(1, 4)
    if residual:
        groups, out = 1, c
    shape = (
        1,
        out,
        _extent(h, kh, stride[0], padding[0], padding[1], dilation[0]),
        _extent(w, kw, stride[1], padding[2], padding[3], dilation[1]),
    )
    if min(shape) < 1:
        kh = kw = 1
        shape = (1, out, _extent(h, 1, stride[0], *padding[:2], 1), _extent(w, 1, stride[1], *padding[2:], 1))
    attributes = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    tensors = {"weight": m.weights(out, c // groups, kh, kw)}
    if m.pick(True, False):
        tensors["bias"] = m.floats(out)
    return m.emit("conv2d", [x, x] if residual else [x], shape, attributes, **tensors)


def _transposed(m: Maker, x: int) -> int:
    _, c, h, w = m.draft.shapes[x]
    groups = m.pick(*[g for g in (1, 2) if c % g == 0])
    out, k = m.number(1, 3), m.number(1, 4)
    stride, dilation = [m.number(1, 3), m.number(1, 3)], [m.pick(1, 2), 1]
    extra = [m.number(0, stride[0] - 1), m.number(0, stride[1] - 1)]
    reach = [dilation[0] * (k - 1), dilation[1] * (k - 1)]
    padding = [m.number(0, reach[0] // 2), m.number(0, reach[0] // 2), m.number(0, reach[1] // 2), 0]
    shape = (
        1,
        out * groups,
        (h - 1) * stride[0] - padding[0] - padding[1] + reach[0] + extra[0] + 1,
        (w - 1) * stride[1] - padding[2] - padding[3] + reach[1] + extra[1] + 1,
    )
    attributes = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "output_padding": extra}
    return m.emit(
        "conv_transpose2d", [x], shape, attributes, weight=m.weights(c, out, k, k), bias=m.floats(out * groups)
    )


def _affine(m: Maker, x: int) -> int:
    shape = m.draft.shapes[x]
    form = m.pick((1,), (shape[1],), shape[1:])
    tensors = {role: m.floats(*form) for role in m.pick(("scale",), ("shift",), ("scale", "shift"))}
    return m.emit("affine", [x], shape, **tensors)


def _pooling(m: Maker, x: int, kind: str) -> int:
    _, c, h, w = m.draft.shapes[x]
    if kind == "adaptive":
        rows, columns = adaptive_windows(h, m.number(1, 3)), adaptive_windows(w, m.number(1, 3))
        dilation = [1, 1]
    else:
        k, s = m.number(1, 3), m.number(1, 3)
        p, ceil = m.number(0, k // 2), m.pick(True, False)
        dilation = [m.pick(1, 1, 2) if kind == "max_pool2d" else 1] * 2
        if dilation[0] * (k - 1) + 1 > min(h, w):
            k, p, dilation = 1, 0, [1, 1]
        rows, columns = (pool_windows(n, k, s, p, dilation[0], ceil)[0] for n in (h, w))
    shape = (1, c, len(rows), len(columns))
    if kind == "max_pool2d":
        return m.emit(kind, [x], shape, {"dilation": dilation}, rows=rows, columns=columns)
    divisor = (rows[:, 1] - rows[:, 0])[:, None] * (columns[:, 1] - columns[:, 0])
    divisor = np.full_like(divisor, 4) if m.dyadic else np.maximum(divisor, 1)
    return m.emit("avg_pool2d", [x], shape, rows=rows, columns=columns, divisor=divisor.astype(np.float32))


def _resized(m: Maker, x: int, taps: int) -> int:
    _, c, h, w = m.draft.shapes[x]
    tensors = {}
    out = [m.number(1, 12), m.number(1, 12)]
    for (role, weights), size, n in zip(
        (("rows", "row_weights"), ("columns", "column_weights")), (h, w), out, strict=True
    ):
        tensors[role] = np.sort(m.rng.integers(0, size, (n, taps)), axis=0).astype(np.int32)
        share = m.rng.integers(0, 5, (n, 1)) / 4
        tensors[weights] = np.concatenate([share, 1 - share][:taps], 1).astype(np.float32)
    return m.emit("resize2d", [x], (1, c, *out), **tensors)


def _map_operation(m: Maker, x: int, kind: str) -> int:
    shape = m.draft.shapes[x]
    _, c, h, w = shape
    alike = [v for v, s in m.draft.shapes.items() if s == shape]
    match kind:
        case "conv2d":
            return _convolution(m, x)
        case "depthwise":
            return _convolution(m, x, depthwise=True)
        case "residual":
            return _convolution(m, x, residual=True)
        case "conv_transpose2d":
            return _transposed(m, x)
        case "affine":
            return _affine(m, x)
        case "add":
            return m.emit("add", [x, m.pick(*alike)], shape, {"coefficients": [m.pick(1.0, -1.0, 0.5), 1.0]})
        case "cat":
            others = [v for v, s in m.draft.shapes.items() if len(s) == 4 and s[2:] == (h, w)]
            parts = [x, m.pick(*others)]
            total = sum(m.draft.shapes[v][1] for v in parts)
            return m.emit("cat", parts, (1, total, h, w), {"axis": 1})
        case "channels":
            index = m.rng.integers(-1, c, m.number(1, 6)).astype(np.int32)
            return m.emit("channels", [x], (1, len(index), h, w), index=index)
        case "gather":
            out = (1, m.number(1, 4), m.number(1, 5), m.number(1, 5))
            return m.emit("gather", [x], out, index=m.rng.integers(-1, c * h * w, np.prod(out)).astype(np.int32))
        case "pad":
            p = [m.number(0, 2) for _ in range(4)]
            return m.emit(
                "pad", [x], (1, c, h + p[0] + p[1], w + p[2] + p[3]), {"padding": p, "value": m.pick(0.0, 1.5)}
            )
        case "resize2d":
            return _resized(m, x, 2)
        case "nearest":
            return _resized(m, x, 1)
        case "identity":
            return m.emit("identity", [x], shape)
        case "mul":
            return m.emit("mul", [x, m.pick(*alike)], shape)
        case "layer_norm":
            vectors = {role: m.floats(c) for role in ("scale", "shift") if m.pick(True, False)}
            return m.emit("layer_norm", [x], shape, {"eps": 0.1}, **vectors)  # an eps that bounds what it magnifies
        case "group_norm":
            vectors = {role: m.floats(c) for role in ("scale", "shift") if m.pick(True, False)}
            groups = m.pick(*(n for n in range(1, c + 1) if c % n == 0))
            return m.emit("group_norm", [x], shape, {"groups": groups, "eps": 0.1}, **vectors)
        case "softmax":
            return m.emit("softmax", [x], shape)
        case "attention":
            return _attention(m, x)
        case "gate":
            gate = _pooled_to_one(m, x)
            return m.emit("mul", [x, gate], shape)
        case _:
            return _pooling(m, x, kind)


def _attention(m: Maker, x: int) -> int:
    """Rows of a map as queries, those of it or of another one as keys and values."""
    _, c, h, w = m.draft.shapes[x]
    rows = m.emit("reshape", [x], (1, h * w, c))
    like = [v for v, s in m.draft.shapes.items() if len(s) == 3 and s[2] == c]
    heads = m.pick(*(n for n in range(1, c + 1) if c % n == 0))
    other = m.pick(*like)
    keys = m.draft.shapes[other][1]
    windows = m.pick(*(n for n in (1, 2, 5, 7) if h * w % n == 0 and keys % n == 0))
    attributes = {"windows": windows, "heads": heads, "scale": m.pick(1.0, 0.3, -0.5)}
    bias = {}
    if m.pick(True, False):
        extents = windows, heads, h * w // windows
        bias["bias"] = m.floats(*(m.pick(1, n) for n in extents), keys // windows)
    z = m.emit("attention", [rows, other, other], (1, h * w, c), attributes, **bias)
    return m.emit("reshape", [z], (1, c, h, w))


def _pooled_to_one(m: Maker, x: int) -> int:
    _, c, h, w = m.draft.shapes[x]
    full = [np.asarray([[0, n]], np.int32) for n in (h, w)]
    divisor = np.full((1, 1), 16 if m.dyadic else h * w, np.float32)
    return m.emit("avg_pool2d", [x], (1, c, 1, 1), rows=full[0], columns=full[1], divisor=divisor)


def examples(n: int) -> settings:
    """So many plans, the same in every run."""
    return settings(max_examples=n, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@st.composite
def plans(
    draw: st.DrawFn,
    dyadic: bool = False,
    kinds: tuple[str, ...] | None = None,
    codecs: tuple[str | None, ...] = ("exact", "exact", "hold", "pixel", "residual", None),
    operations: int = 7,
    activations: list[dict[str, Any] | None] | None = None,
) -> Plan:
    """A random plan of up to `operations` operations behind its input."""
    seed = draw(st.integers(0, 2**32 - 1))
    activations = activations or (EXACT_ACTIVATIONS if dyadic else ACTIVATIONS)
    kinds = kinds or tuple(MAP_KINDS if dyadic else FLOAT_KINDS)
    m = Maker(draw, Draft("random"), np.random.default_rng(seed), dyadic, codecs, activations)
    sides = st.sampled_from([1, 2, 5, 7, 8, 13])
    x = m.emit("input", [], (1, draw(st.integers(1, 6)), draw(sides), draw(sides)))
    for _ in range(draw(st.integers(1, operations))):
        maps = [v for v, s in m.draft.shapes.items() if len(s) == 4 and np.prod(s) < 20_000]
        source = x if x in maps and draw(st.booleans()) else m.pick(*maps)
        x = _map_operation(m, source, draw(st.sampled_from(kinds)))
    m.draft.outputs = [x]
    if draw(st.booleans()):
        _, c, h, w = m.draft.shapes[x]
        flat = m.emit("reshape", [x], (1, c * h * w))
        out = m.number(1, 5)
        m.draft.outputs.append(m.emit("linear", [flat], (1, out), weight=m.weights(out, c * h * w), bias=m.floats(out)))
    m.draft.structure = {"tuple": [{"output": k} for k in range(len(m.draft.outputs))]}
    m.draft.remove_dead()
    return m.draft.plan(None, "test")


@st.composite
def int8_plans(
    draw: st.DrawFn,
    kinds: tuple[str, ...] | None = None,
    codecs: tuple[str | None, ...] = ("exact", "hold", "pixel", None),
    operations: int = 7,
) -> Plan:
    """A random plan of precision int8, of thresholds from 0 to some, by layer and by channel."""
    kinds = kinds or tuple(ROUNDED_KINDS)
    plan = draw(plans(kinds=kinds, codecs=codecs, operations=operations, activations=ORDERED_ACTIVATIONS))
    coded = quantised_plan(plan, frames(plan, 2, draw(st.integers(0, 99))))
    tensors = dict(coded.tensors)
    for op in coded.ops:
        # Thresholds of the float32 plan are many steps; a threshold of 0 or 1 is what comes nearest to the edges.
        if op.codec is not None and draw(st.booleans()):
            seed = draw(st.integers(0, 99))
            if op.codec.get("pixel"):
                tensors[op.codec["threshold"]] = np.random.default_rng(seed).integers(0, 9, 1).astype(np.int32)
                continue
            shape = draw(st.sampled_from([(1,), (coded.values[op.output][channel_axis(coded.values[op.output])],)]))
            tensors[op.codec["threshold"]] = np.random.default_rng(seed).integers(0, 3, shape).astype(np.int32)
    return replace(coded, tensors=tensors)


def frames(plan: Plan, count: int, seed: int, dyadic: bool = False) -> list[Array]:
    """Frames of which each changes another share of the one before: all, nothing, single elements, pixels, a block."""
    rng = np.random.default_rng(seed)
    shape = plan.input_shape

    def noise() -> Array:
        return (rng.integers(-8, 9, shape) / 4 if dyadic else rng.standard_normal(shape)).astype(np.float32)

    frame, result = noise(), []
    for k in range(count):
        result.append(frame)
        density = (0.0, 0.02, 0.1, 0.5, 1.0)[k % 5]
        mask = rng.random(shape) < density
        if k % 3 == 1:
            mask = np.broadcast_to(rng.random(shape[2:]) < density, shape)
        if k % 3 == 2:
            mask = np.zeros(shape, bool)
            mask[..., : max(int(shape[-1] * density), 1)] = density > 0
        frame = np.where(mask, noise(), frame)
    return result
