"""Plans as NIR graphs (Neuromorphic Intermediate Representation, doi 10.1038/s41467-024-52259-9), as far as NIR goes.

One unit of NIR's time is one frame. NIR has no delta, no ReLU and no rounding, but it has steps, sums, delays and
linear maps. A layer that accumulates deltas, rounds, and sends what changed (the codec `exact`) is a graph of its own:

    sigma(t) = sigma(t-1) + input(t)                             I, R = 1
    value(t) = S (sum_{k = 1..high} H(sigma >= t_k) - sum_{k = low+1..0} H(sigma < t_k))   Threshold, Scale
    output(t) = value(t) - value(t-1)                            Delay of 1, Scale by -1

with t_k the smallest number whose code is k or more, so that rounding, ties and any activation that never falls are in
the thresholds, and the bias is too. Convolutions and dense layers stand between these graphs and have no bias: it
enters once. Several edges into one node add up, as in NIR's recurrent networks; everything is 0 before the first frame.
The graph is complete without the metadata, which only says where things came from.

What NIR cannot say, and what `build` therefore refuses by name:

    codes without bounds         a ReLU needs infinitely many steps; a ReLU6 or the rule `lsq` has finitely many
                                 (the input's have the bounds of uint8 frames, where the plan says how to prepare these)
    activations that fall        hardswish, SiLU, GELU: a code is no longer one step up at a time
    activations without codec    NIR has no ReLU
    other codecs than exact      what they send depends on a product of signals, or on the frame being the first
    products, max pooling        no product or maximum of signals
    conv_transpose2d, resize2d,  no such maps, or none of a size that could be stored
    gather, pooling with borders
    islands                      PyTorch computes them

Groups, borders on one side, joins and channel moves become plain convolutions with zeros in them, since NIR (1.0.8)
cannot read back grouped convolutions or kernels that are not square. Where rows and columns differ by an odd number,
zeros do not help, and the convolution is refused.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsetime.engine import Op, Plan
from sparsetime.engine.ops import LINEAR
from sparsetime.engine.reference import Reference, activate
from sparsetime.files import ready, write_whole
from sparsetime.neighbours.errors import ExportError, need_float32

try:
    import nir
except ImportError as error:
    raise ImportError("exporting to NIR needs nir: pip install 'sparsetime[nir]'") from error

__all__ = ["build", "export"]

Array = NDArray[Any]

_RISING = ("relu", "clamp", "leaky_relu", "hardsigmoid", "sigmoid", "tanh")
_MOST_CODES = 4096
"""More steps than that in one layer are taken for no bound at all."""


def export(plan: Plan, path: str | Path, max_code: int | None = None) -> None:
    """Write a plan as a NIR file; a file of that name is replaced when the new one is whole. See `build`."""
    ready(path)
    content = io.BytesIO()
    nir.write(content, build(plan, max_code))
    write_whole(path, content.getvalue())


def build(plan: Plan, max_code: int | None = None) -> nir.NIRGraph:
    """The NIR graph of a plan; see this module's docstring.

    Args:
        plan: a network with the codec `exact`.
        max_code: codes beyond this, up or down, stay at it. The graph is then another network wherever they do;
            without it, codes that have no bound are refused.

    Raises:
        ExportError: NIR cannot say an operation; names it.
        ValueError: max_code is out of range.
    """
    if max_code is not None and not 1 <= max_code <= _MOST_CODES // 2:
        raise ValueError(f"max_code must be from 1 to {_MOST_CODES // 2}, got {max_code}")
    need_float32(plan, "NIR")
    writer = _Writer(plan, max_code)
    for number, op in enumerate(plan.ops):
        writer.operation(number, op)
    for place, value in enumerate(plan.outputs):
        writer.output(f"output_{place}" if place else "output", value)
    return nir.NIRGraph(writer.nodes, writer.edges, metadata={"producer": plan.producer, "name": plan.name})


class _Writer:
    """The graph as it grows.

    Every value of the plan is a sum of what some nodes have sent, and a constant: what it is while nothing was sent.
    """

    def __init__(self, plan: Plan, max_code: int | None) -> None:
        self.plan = plan
        self.max_code = max_code
        self.meaning = Reference(plan)
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.sent: dict[int, list[str]] = {}
        self.constants: dict[int, Array] = {}

    def node(self, name: str, node: Any, sources: list[str]) -> str:
        """Add a node that reads the sum of its sources."""
        self.nodes[name] = node
        for place, source in enumerate(sources):
            if source in sources[:place]:  # two edges between the same nodes are one
                source = self.node(f"{name}_again_{place}", nir.Scale(np.ones(_shape(node), np.float32)), [source])
            self.edges.append((source, name))
        return name

    def operation(self, number: int, op: Op) -> None:
        name = f"{number}_{op.name.replace('.', '_').replace('/', '_')}"
        shape = self.plan.values[op.output]
        if op.kind == "input":
            self.node("input", nir.Input(np.asarray(shape[1:])), [])
            self.constants[op.output] = np.zeros(shape, np.float32)
            sources = ["input"]
        elif op.kind in LINEAR or op.kind == "identity":
            sources = self._linear(number, op, name)
            before = [torch.from_numpy(self.constants[v]) for v in op.inputs]
            constant = before[0] if op.kind == "identity" else self.meaning.linear(op, before, constants=True)
            self.constants[op.output] = constant.numpy()
        else:
            raise self._refused(number, op, "NIR has no such operation on signals")
        if op.codec is None and op.activation is not None:
            raise self._refused(number, op, f"its {op.activation['kind']} has no codec, and NIR no such function")
        if op.codec is None and op.kind != "input":
            self.sent[op.output] = sources
            return
        layer = self._layer(number, op)
        self.sent[op.output] = [self.node(f"{name}_delta", layer, sources)]
        self.constants[op.output] = np.zeros(shape, np.float32)

    def output(self, name: str, value: int) -> None:
        """Add up what was sent, and the constant: an output is a value."""
        shape, constant = self.plan.values[value][1:], self.constants[value][0]
        terms = [self.node(f"{name}_sigma", nir.I(np.ones(shape, np.float32)), self.sent[value])]
        if constant.any():  # NIR has no constants: zero is above -1
            zero = self.node(f"{name}_zero", nir.Scale(np.zeros(shape, np.float32)), terms)
            one = self.node(f"{name}_one", nir.Threshold(np.full(shape, -1, np.float32)), [zero])
            terms.append(self.node(f"{name}_constant", nir.Scale(constant), [one]))
        self.node(name, nir.Output(np.asarray(shape)), terms)

    def _refused(self, number: int, op: Op, why: str) -> ExportError:
        return ExportError(f"nir: operation {number} '{op.name}' ({op.origin}): {why}")

    def _linear(self, number: int, op: Op, name: str) -> list[str]:
        """Nodes whose sum is L of what the inputs send."""
        a, plan = op.attributes, self.plan
        sources, shapes = [self.sent[v] for v in op.inputs], [plan.values[v] for v in op.inputs]
        maps = all(len(shape) == 4 for shape in shapes)
        vectors = all(len(shape) == 2 for shape in shapes)
        match op.kind:
            case "identity":
                return sources[0]
            case "conv2d":
                weight = _ungrouped(plan.need(op, "weight"), a["groups"])
                node = self._conv(number, op, weight, a["stride"], a["padding"], a["dilation"])
                return [self.node(name, node, sources[0]), *(sources[1] if len(sources) == 2 else [])]
            case "linear" if vectors:
                node = nir.Linear(plan.need(op, "weight").copy())
                return [self.node(name, node, sources[0]), *(sources[1] if len(sources) == 2 else [])]
            case "affine":
                scale = plan.tensor(op, "scale")
                if scale is None:
                    return sources[0]
                return [self.node(name, nir.Scale(_filled(plan.expand(scale, shapes[0]), shapes[0])), sources[0])]
            case "add":
                terms = []
                for place, (source, factor) in enumerate(zip(sources, a["coefficients"], strict=True)):
                    scale = nir.Scale(np.full(shapes[0][1:], factor, np.float32))
                    terms += source if factor == 1 else [self.node(f"{name}_{place}", scale, source)]
                return terms
            case "reshape" if len(plan.values[op.output]) == 2:
                return [self.node(name, nir.Flatten(np.asarray(shapes[0][1:]), 0, -1), sources[0])]
            case "pad" if maps:
                unit = np.eye(shapes[0][1], dtype=np.float32)[:, :, None, None]
                return [self.node(name, self._conv(number, op, unit, [1, 1], a["padding"], [1, 1]), sources[0])]
            case "channels":
                index = plan.need(op, "index")
                moved = (index[:, None] == np.arange(shapes[0][1])).astype(np.float32)[:, :, None, None]
                return [self.node(name, self._conv(number, op, moved), sources[0])]
            case "cat" if a["axis"] == 1 and (maps or vectors):
                return self._joined(number, op, name, sources)
            case "avg_pool2d":
                return [self.node(name, self._pooling(number, op), sources[0])]
            case _:
                raise self._refused(number, op, "NIR has no such linear map")

    def _joined(self, number: int, op: Op, name: str, sources: list[list[str]]) -> list[str]:
        """Every part goes to its place, and the sum of all is the whole."""
        shapes, result, start = [self.plan.values[v] for v in op.inputs], [], 0
        whole = np.eye(self.plan.values[op.output][1], dtype=np.float32)
        for place, (source, shape) in enumerate(zip(sources, shapes, strict=True)):
            matrix = whole[:, start : start + shape[1]]
            is_map = len(shape) == 4
            node = self._conv(number, op, matrix[:, :, None, None], k=place) if is_map else nir.Linear(matrix.copy())
            result.append(self.node(f"{name}_{place}", node, source))
            start += shape[1]
        return result

    def _conv(
        self,
        number: int,
        op: Op,
        weight: Array,
        stride: Any = (1, 1),
        padding: Any = (0, 0, 0, 0),
        dilation: Any = (1, 1),
        k: int = 0,
    ) -> Any:
        """A convolution of the k-th input, with the same border on both sides and a square kernel."""
        kernels = [
            _kernel(size, tuple(padding[2 * axis : 2 * axis + 2]), dilation[axis])
            for axis, size in enumerate(weight.shape[2:])
        ]
        fitting = [(rows, columns) for rows in kernels[0] for columns in kernels[1] if rows[0] == columns[0]]
        if not fitting:
            raise self._refused(
                number,
                op,
                "NIR takes square kernels and the same border on both sides, which a kernel of "
                f"{weight.shape[2:]} with the border {list(padding)} cannot be made",
            )
        rows, columns = fitting[0]
        square = np.zeros((*weight.shape[:2], rows[0], columns[0]), np.float32)
        square[:, :, rows[1] : rows[1] + weight.shape[2], columns[1] : columns[1] + weight.shape[3]] = weight
        return nir.Conv2d(
            tuple(self.plan.values[op.inputs[k]][2:]),
            square,
            tuple(stride),
            (rows[2], columns[2]),
            tuple(dilation),
            1,
            np.zeros(len(weight), np.float32),
        )

    def _pooling(self, number: int, op: Op) -> Any:
        """Average pooling in equal windows inside the map."""
        kernel, stride = [], []
        for role, extent in (("rows", 2), ("columns", 3)):
            table = self.plan.need(op, role).astype(np.int64)
            size = int(table[0, 1] - table[0, 0])
            step = int(table[1, 0] - table[0, 0]) if len(table) > 1 else size
            starts = np.arange(len(table)) * step
            whole = (self.plan.values[op.inputs[0]][extent] - size) // max(step, 1) + 1
            if step < 1 or len(table) != whole or (table != np.stack([starts, starts + size], 1)).any():
                raise self._refused(number, op, "NIR's average pooling has equal windows inside the map")
            kernel.append(size)
            stride.append(step)
        if (self.plan.need(op, "divisor") != kernel[0] * kernel[1]).any():
            raise self._refused(number, op, "NIR's average pooling divides by the size of its windows")
        return nir.AvgPool2d(np.asarray(kernel), np.asarray(stride), np.zeros(2, np.int64))

    def _layer(self, number: int, op: Op) -> Any:
        """Accumulator, activation, codec and difference as a graph; equations in the module's docstring."""
        shape = self.plan.values[op.output]
        part = _Writer(self.plan, self.max_code)
        metadata = {"name": op.name, "codec": "none" if op.codec is None else str(op.codec["kind"])}
        if op.activation is not None:
            metadata["activation"] = str(op.activation["kind"])
        value = [part.node("input", nir.Input(np.asarray(shape[1:])), [])]
        if op.kind != "input":
            value = [part.node("sigma", nir.I(np.ones(shape[1:], np.float32)), value)]
        if op.codec is not None:
            value = self._stairs(number, op, part, value)
        last = part.node("last", nir.Delay(np.ones(shape[1:], np.float32)), value)
        minus = part.node("minus", nir.Scale(np.full(shape[1:], -1, np.float32)), [last])
        part.node("output", nir.Output(np.asarray(shape[1:])), [*value, minus])
        return nir.NIRGraph(part.nodes, part.edges, metadata=metadata)

    def _stairs(self, number: int, op: Op, part: _Writer, z: list[str]) -> list[str]:
        """Nodes of `part` whose sum is the encoded value."""
        shape, step = self.plan.values[op.output], self.plan.step(op)
        assert op.codec is not None
        assert step is not None
        if op.codec["kind"] != "exact":
            raise self._refused(
                number, op, f"NIR can say the codec 'exact', not '{op.codec['kind']}': compile it with --codec exact"
            )
        if op.activation is not None and (op.activation["kind"] not in _RISING or op.activation.get("slope", 0) < 0):
            raise self._refused(number, op, f"{op.activation['kind']} rises and falls: its codes are no staircase")
        lowest, highest = self._range(op)
        low = int(_codes(op, lowest, step, self.max_code).min())
        high = int(_codes(op, highest, step, self.max_code).max())
        if high - low > _MOST_CODES:
            raise self._refused(
                number,
                op,
                "its codes have no bound, and NIR has no rounding, only single steps. An activation with bounds "
                "(ReLU6) or the rule 'lsq' has one; max_code= stops at a code of your choice "
                f"(up to {_MOST_CODES // 2})",
            )
        result = []
        size = _filled(step, shape)
        for sign, ks in ((1, range(1, high + 1)), (-1, range(low + 1, 1))):
            if not ks:
                continue
            word = "up" if sign == 1 else "down"
            source = z if sign == 1 else [part.node("negative", nir.Scale(np.full(shape[1:], -1, np.float32)), z)]
            steps = []
            for k in ks:
                first = _first(op, k, step, self.max_code).astype(np.float64) - self.constants[op.output]
                limit = sign * _filled(_upwards(first), shape)
                if sign == 1:  # NIR's threshold is passed above it, a code reached at it
                    limit = np.nextafter(limit, np.float32(-np.inf))
                steps.append(part.node(f"{word}_{abs(k)}", nir.Threshold(limit), source))
            result.append(part.node(f"value_{word}", nir.Scale(sign * size), steps))
        return result or [part.node("value_zero", nir.Scale(np.zeros(shape[1:], np.float32)), z)]

    def _range(self, op: Op) -> tuple[Array, Array]:
        """What z can be: any float32, or what a uint8 frame becomes."""
        spec = self.plan.input
        if op.kind != "input" or spec is None:
            return np.asarray(-_LARGEST, np.float32), np.asarray(_LARGEST, np.float32)
        channels = (1, -1) + (1,) * (len(self.plan.input_shape) - 2)
        mean, std = np.asarray(spec.mean, np.float32), np.asarray(spec.std, np.float32)
        return ((0 - mean) / std).reshape(channels), ((255 - mean) / std).reshape(channels)


def _shape(node: Any) -> tuple[int, ...]:
    """What goes into a node."""
    (shape,) = node.input_type.values()
    return tuple(int(n) for n in shape)


def _filled(array: Array, shape: tuple[int, ...]) -> Array:
    """Broadcast to a frame's value, without its first 1."""
    return np.array(np.broadcast_to(array, shape)[0], np.float32, order="C")


def _ungrouped(weight: Array, groups: int) -> Array:
    """(O, C / groups, kh, kw) as (O, C, kh, kw), with zeros where groups do not meet."""
    out, per_group = weight.shape[:2]
    full = np.zeros((out, per_group * groups, *weight.shape[2:]), np.float32)
    for g in range(groups):
        rows = slice(g * out // groups, (g + 1) * out // groups)
        full[rows, g * per_group : (g + 1) * per_group] = weight[rows]
    return full


def _kernel(size: int, padding: tuple[int, int], dilation: int) -> list[tuple[int, int, int]]:
    """Ways to give a kernel the same border on both sides, by zeros around it: (size, zeros before, border)."""
    ways = []
    for border in range(max(padding), max(padding) + dilation * (size + 16)):
        before, after = border - padding[0], border - padding[1]
        if before % dilation == 0 and after % dilation == 0:
            ways.append((size + (before + after) // dilation, before // dilation, border))
    return ways


_LARGEST = 1e30  # in magnitude, of what accumulators hold


def _codes(op: Op, z: Array, step: Array, max_code: int | None) -> Any:
    """Codes of accumulators z, as the reference computes them."""
    assert op.codec is not None
    with np.errstate(over="ignore"):
        code = activate(torch.from_numpy(z), op.activation).numpy() / step
    if "low" in op.codec:
        code = np.clip(code, op.codec["low"], op.codec["high"])
    bound = _LARGEST if max_code is None else max_code
    return np.rint(np.clip(code, -bound, bound))


def _first(op: Op, k: int, step: Array, max_code: int | None) -> Array:
    """The smallest float32 whose code is k or more, for every step: a search through all of them in order."""
    below, reached = np.full(step.shape, _order(-_LARGEST)), np.full(step.shape, _order(_LARGEST))
    while (reached - below > 1).any():
        middle = (below + reached) // 2
        enough = _codes(op, _number(middle), step, max_code) >= k
        below, reached = np.where(enough, below, middle), np.where(enough, middle, reached)
    return _number(reached)


def _upwards(x: Array) -> Array:
    """float64 to the next float32 that is not below: a float32 reaches the one exactly if it reaches the other."""
    near = x.astype(np.float32)
    return np.where(near < x, np.nextafter(near, np.float32(np.inf)), near)


def _order(x: Any) -> int:
    """The place of a float32 among all of them."""
    bits = int(np.float32(x).view(np.int32))
    return bits if bits >= 0 else -(bits & 0x7FFFFFFF)


def _number(order: Array) -> Array:
    """The float32 at a place; `_order` backwards."""
    bits = np.where(order >= 0, order, -order | 0x80000000).astype(np.uint32)
    return bits.view(np.float32)
