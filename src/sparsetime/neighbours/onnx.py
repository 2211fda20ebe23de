"""Plans as ONNX graphs: one graph is one frame, and the state goes in and comes out.

    frame, started, k.value, k.accumulator  ->  output.i, started.next, k.value.next, k.accumulator.next

with k the number of an operation: the names of docs/plan.md, so that a stream's snapshot is a state of this graph.
The first frame needs no graph of its own. Where all state is zero, the sums of docs/plan.md are the flush,

    z(0) = 0 + L(v(0) - 0) + (1 - started) bias        z(t) = z(t-1) + L(v(t) - v(t-1))

once bias, shifts and borders are multiplied by 1 - started, and `hold` and `residual` send everything while started
is 0. So a new stream starts with zeros, and nothing but a runtime for ONNX is needed:

    session = onnxruntime.InferenceSession("plan.onnx")
    names = [output.name for output in session.get_outputs()]
    state = {i.name: np.zeros(i.shape, np.float32) for i in session.get_inputs() if i.name != "frame"}
    for frame in frames:                                    # float32 (1, C, H, W), normalised
        results = dict(zip(names, session.run(None, {"frame": frame, **state})))
        state = {name: results[f"{name}.next"] for name in state}
        answer = results["output.0"]

The metadata entries `sparsetime.input` (mean, std, colour order of uint8 frames, or null) and `sparsetime.structure`
(how outputs nest) are those of the plan's header; arrays that the network returns as they are follow its outputs.
Runtimes compute this graph densely: it says what delta inference means, and saves no time by itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsetime.codec import LEAST_THRESHOLD
from sparsetime.engine import Op, Plan
from sparsetime.engine.ops import LINEAR
from sparsetime.engine.planfile import header_and_returned
from sparsetime.engine.shapes import channel_axis
from sparsetime.files import ready, write_whole
from sparsetime.neighbours.errors import ExportError, need_float32

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError as error:
    raise ImportError("exporting to ONNX needs onnx: pip install 'sparsetime[onnx]'") from error

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["OPSET", "build", "export", "initial_state", "step"]

Array = NDArray[Any]

OPSET = 20
"""The first with an operator for both forms of GELU."""
_IR_VERSION = 9  # that came with the opset; newer ones are refused by runtimes that know the opset


def initial_state(session: onnxruntime.InferenceSession) -> dict[str, Array]:
    """The state of a stream that starts: zeros."""
    return {i.name: np.zeros(i.shape, np.float32) for i in session.get_inputs() if i.name != "frame"}


def step(
    session: onnxruntime.InferenceSession, frame: Array, state: Mapping[str, Array]
) -> tuple[list[Array], dict[str, Array]]:
    """One frame in ONNX Runtime: a pure function of the frame and the state before it.

    Args:
        session: on a file that `export` wrote.
        frame: float32, (1, C, H, W), as the network wants it.
        state: from `initial_state` or the last call; or a stream's snapshot with {"started": np.ones(1, np.float32)}.

    Returns:
        the plan's outputs in order, and the state after the frame.
    """
    names = [output.name for output in session.get_outputs()]
    results = dict(zip(names, session.run(names, {"frame": frame, **state}), strict=True))
    return [results[name] for name in names if name.startswith("output.")], {k: results[f"{k}.next"] for k in state}


def export(plan: Plan, path: str | Path) -> None:
    """Write a plan as an ONNX file; a file of that name is replaced when the new one is whole.

    Raises:
        ExportError: ONNX cannot say an operation; names it.
        TargetError: no file can be written there.
    """
    ready(path)
    write_whole(path, build(plan).SerializeToString())


def build(plan: Plan) -> onnx.ModelProto:
    """The ONNX model of a plan; see this module's docstring.

    Raises:
        ExportError: ONNX cannot say an operation; names it.
    """
    header, returned = header_and_returned(plan)
    need_float32(plan, "ONNX")
    writer = _Writer(plan)
    for number, op in enumerate(plan.ops):
        writer.operation(number, op)
    writer.node("Max", ["started", writer.one], "started.next")
    for place, value in enumerate(plan.outputs):
        writer.node("Identity", [writer.values[value]], f"output.{place}")
    answers = [
        helper.make_tensor_value_info(f"output.{k}", TensorProto.FLOAT, plan.values[value])
        for k, value in enumerate(plan.outputs)
    ]
    metadata = {key: json.dumps(header[key]) for key in ("input", "structure")}
    for name, array in returned.items():  # what does not depend on the frame is an output like the others
        place = len(answers)
        writer.node("Identity", [writer.constant(array)], f"output.{place}")
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        answers.append(helper.make_tensor_value_info(f"output.{place}", kind, array.shape))
        entry, instead = json.dumps({"tensor": name}), json.dumps({"output": place})
        metadata["structure"] = metadata["structure"].replace(entry, instead)
    frame = helper.make_tensor_value_info("frame", TensorProto.FLOAT, plan.input_shape)
    state = {"started": (1,)} | writer.state
    graph = helper.make_graph(
        writer.nodes,
        plan.name,
        [frame] + [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in state.items()],
        answers + [helper.make_tensor_value_info(f"{n}.next", TensorProto.FLOAT, shape) for n, shape in state.items()],
        writer.constants,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="sparsetime",
        producer_version=plan.producer.removeprefix("sparsetime "),
    )
    helper.set_model_props(model, {f"sparsetime.{key}": text for key, text in metadata.items()})
    return model


class _Writer:
    """Nodes and constants of the graph as they are written, operation by operation."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.state: dict[str, tuple[int, ...]] = {}
        self.values: dict[int, str] = {}  # of the plan: the name of the value after this frame
        self.deltas: dict[int, str] = {}  # and of its change
        self._known: dict[str, str] = {}
        self._prefix = "stream"
        self.one = self.constant(np.ones(1, np.float32))
        self.gate = self.node("Sub", [self.one, "started"])  # 1 in the first frame, then 0
        self.first = self.node("Cast", [self.gate], to=TensorProto.BOOL)

    def node(self, kind: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        """Write a node; gives the name of its output."""
        output = output or f"{self._prefix}:{kind}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, array: Array, name: str | None = None) -> str:
        """Write a constant; gives its name. One with a name is written once."""
        if name in self._known:
            return self._known[name]
        text = f"constant:{len(self.constants)}" if name is None else f"tensor:{name}"
        self.constants.append(numpy_helper.from_array(np.array(array, order="C"), text))
        if name is not None:
            self._known[name] = text
        return text

    def tensor(self, op: Op, role: str) -> str:
        """A tensor of the plan, as it is."""
        name = op.tensors[role]
        return self.constant(self.plan.tensors[name], name)

    def state_input(self, name: str, shape: tuple[int, ...]) -> str:
        self.state[name] = shape
        return name

    def operation(self, number: int, op: Op) -> None:
        """z, activation, codec and delta of one operation, and its new state."""
        self._prefix = str(number)
        if op.kind == "island":
            raise ExportError(
                f"onnx: operation {number} '{op.name}' ({op.attributes['target']}, {op.source}) is an island, which "
                "PyTorch computes: ONNX cannot say it. Compile the part of the network before it, or write it so that "
                "sparsetime.compile(..., strict=True) takes it."
            )
        shape = self.plan.values[op.output]
        old = self.state_input(f"{number}.value", shape)
        new = f"{number}.value.next"
        self.values[op.output] = new
        if op.kind not in LINEAR:
            z = "frame" if op.kind == "input" else self._recomputed(op, [self.values[v] for v in op.inputs])
        else:
            change = self._linear(number, op, [self.deltas[v] for v in op.inputs])
            if not op.has_accumulator:
                self.node("Add", [old, change], new)
                self.deltas[op.output] = change
                return
            accumulator = self.state_input(f"{number}.accumulator", shape)
            z = self.node("Add", [accumulator, change], f"{accumulator}.next")
        self._encode(number, op, self._activate(number, op, z), old, new)
        self.deltas[op.output] = self.node("Sub", [new, old])

    def _refuse(self, number: int, op: Op, what: str) -> ExportError:
        return ExportError(f"onnx: operation {number} '{op.name}' ({op.origin}): {what} has no form here")

    def _once(self, z: str, constant: str) -> str:
        """z plus a constant that enters in the first frame alone."""
        return self.node("Add", [z, self.node("Mul", [self.gate, constant])])

    def _linear(self, number: int, op: Op, x: list[str]) -> str:
        """L(x), plus what enters once."""
        a, constant = op.attributes, self.constant
        match op.kind:
            case "conv2d" | "conv_transpose2d":
                top, bottom, left, right = a["padding"]
                inputs = [x[0], self.tensor(op, "weight")]
                if "bias" in op.tensors:
                    inputs.append(self.node("Mul", [self.gate, self.tensor(op, "bias")]))
                extra = {} if op.kind == "conv2d" else {"output_padding": a["output_padding"]}
                z = self.node(
                    "Conv" if op.kind == "conv2d" else "ConvTranspose",
                    inputs,
                    strides=a["stride"],
                    pads=[top, left, bottom, right],
                    dilations=a["dilation"],
                    group=a["groups"],
                    **extra,
                )
                return self.node("Add", [z, x[1]]) if len(x) == 2 else z
            case "linear":
                z = self.node("MatMul", [x[0], constant(self.plan.need(op, "weight").T)])
                if "bias" in op.tensors:
                    z = self._once(z, self.tensor(op, "bias"))
                return self.node("Add", [z, x[1]]) if len(x) == 2 else z
            case "affine":
                shape = self.plan.values[op.output]
                scale, shift = self.plan.tensor(op, "scale"), self.plan.tensor(op, "shift")
                z = x[0] if scale is None else self.node("Mul", [x[0], constant(self.plan.expand(scale, shape))])
                return z if shift is None else self._once(z, constant(self.plan.expand(shift, shape)))
            case "add":
                factors = [np.asarray([c], np.float32) for c in a["coefficients"]]
                terms = [t if c == 1 else self.node("Mul", [t, constant(c)]) for t, c in zip(x, factors, strict=True)]
                return self.node("Add", terms)
            case "cat":
                return self.node("Concat", x, axis=a["axis"])
            case "channels":
                return self._picked(x[0], self.plan.values[op.inputs[0]], 1, self.plan.need(op, "index"))
            case "gather":
                flat = self._reshaped(x[0], (-1,))
                size = (int(np.prod(self.plan.values[op.inputs[0]])),)
                picked = self._picked(flat, size, 0, self.plan.need(op, "index"))
                return self._reshaped(picked, self.plan.values[op.output])
            case "reshape":
                return self._reshaped(x[0], self.plan.values[op.output])
            case "pad":
                top, bottom, left, right = a["padding"]
                amounts = constant(np.asarray([0, 0, top, left, 0, 0, bottom, right], np.int64))
                value = self.node("Mul", [self.gate, constant(np.asarray([a["value"]], np.float32))])
                return self.node("Pad", [x[0], amounts, self._reshaped(value, ())])
            case "avg_pool2d":
                _, _, height, width = self.plan.values[op.inputs[0]]
                rows, columns = (
                    _windows(self.plan.need(op, "rows"), height),
                    _windows(self.plan.need(op, "columns"), width),
                )
                return self.node("Div", [self._separable(x[0], rows, columns), self.tensor(op, "divisor")])
            case "resize2d":
                _, _, height, width = self.plan.values[op.inputs[0]]
                rows = _taps(self.plan.need(op, "rows"), self.plan.need(op, "row_weights"), height)
                columns = _taps(self.plan.need(op, "columns"), self.plan.need(op, "column_weights"), width)
                return self._separable(x[0], rows, columns)
            case _:
                raise self._refuse(number, op, "this kind")

    def _reshaped(self, x: str, shape: tuple[int, ...]) -> str:
        return self.node("Reshape", [x, self.constant(np.asarray(shape, np.int64))])

    def _separable(self, x: str, rows: Array, columns: Array) -> str:
        """rows @ x @ columns^T, of maps."""
        return self.node("MatMul", [self.node("MatMul", [self.constant(rows), x]), self.constant(columns.T)])

    def _picked(self, x: str, shape: tuple[int, ...], axis: int, index: Array) -> str:
        """Entries of an axis by their numbers, zeros where the number is -1."""
        index = index.astype(np.int64)
        if (index < 0).any():
            amounts = np.zeros((2, len(shape)), np.int64)
            amounts[1, axis] = 1
            x = self.node("Pad", [x, self.constant(amounts.reshape(-1))])
            index = np.where(index < 0, shape[axis], index)
        return self.node("Gather", [x, self.constant(index)], axis=axis)

    def _recomputed(self, op: Op, x: list[str]) -> str:
        """z from the values of the inputs."""
        match op.kind:
            case "identity":
                return x[0]
            case "mul":
                return self.node("Mul", x)
            case "layer_norm":
                return self._layer_norm(op, x[0])
            case "group_norm":
                return self._group_norm(op, x[0])
            case "softmax":
                return self.node("Softmax", x, axis=channel_axis(self.plan.values[op.output]))
            case "attention":
                return self._attention(op, *x)
        z = x[0]
        for role, axis, dilation in zip(("rows", "columns"), (2, 3), op.attributes["dilation"], strict=True):
            taps = self.node("Gather", [z, self.constant(_places(self.plan.need(op, role), dilation))], axis=axis)
            last = self.constant(np.asarray([axis + 1], np.int64))
            z = self.node("ReduceMax", [taps, last], keepdims=0)
        return z

    def _layer_norm(self, op: Op, x: str) -> str:
        """Over the channels, which ONNX's own takes last alone."""
        axis = channel_axis(self.plan.values[op.output])
        return self._scaled(op, self._centred(op, x, axis))

    def _group_norm(self, op: Op, x: str) -> str:
        """Over all places of the channels of a group."""
        shape = self.plan.values[op.output]
        y = self._centred(op, self._reshaped(x, (1, op.attributes["groups"], -1)), 2)
        return self._scaled(op, self._reshaped(y, shape))

    def _centred(self, op: Op, x: str, axis: int) -> str:
        """(x - mean) / sqrt(variance + eps) along an axis."""
        axes = self.constant(np.asarray([axis], np.int64))
        apart = self.node("Sub", [x, self.node("ReduceMean", [x, axes], keepdims=1)])
        variance = self.node("ReduceMean", [self.node("Mul", [apart, apart]), axes], keepdims=1)
        eps = self.constant(np.asarray([op.attributes["eps"]], np.float32))
        return self.node("Div", [apart, self.node("Sqrt", [self.node("Add", [variance, eps])])])

    def _scaled(self, op: Op, y: str) -> str:
        """Times `scale` and plus `shift` by channel, where there are any."""
        shape = self.plan.values[op.output]
        along = [-1 if k == channel_axis(shape) else 1 for k in range(len(shape))]
        for role, kind in (("scale", "Mul"), ("shift", "Add")):
            if role in op.tensors:
                y = self.node(kind, [y, self.constant(self.plan.need(op, role).reshape(along))])
        return y

    def _attention(self, op: Op, q: str, k: str, v: str) -> str:
        """Softmax of products, in windows and heads."""
        windows, heads = op.attributes["windows"], op.attributes["heads"]

        def split(x: str, value: int, order: list[int]) -> str:
            _, rows, channels = self.plan.values[value]
            parts = self._reshaped(x, (windows, rows // windows, heads, channels // heads))
            return self.node("Transpose", [parts], perm=order)

        rows, columns = [0, 2, 1, 3], [0, 2, 3, 1]
        products = self.node("MatMul", [split(q, op.inputs[0], rows), split(k, op.inputs[1], columns)])
        scores = self.node("Mul", [products, self.constant(np.asarray(op.attributes["scale"], np.float32))])
        if "bias" in op.tensors:
            scores = self.node("Add", [scores, self.tensor(op, "bias")])
        z = self.node("MatMul", [self.node("Softmax", [scores], axis=-1), split(v, op.inputs[2], rows)])
        return self._reshaped(self.node("Transpose", [z], perm=rows), self.plan.values[op.output])

    def _activate(self, number: int, op: Op, z: str) -> str:
        """y = activation(z)."""
        a = op.activation
        if a is None:
            return z
        match a["kind"]:
            case "relu":
                return self.node("Relu", [z])
            case "clamp":
                bounds = ["" if a[k] is None else self.constant(np.asarray(a[k], np.float32)) for k in ("min", "max")]
                return self.node("Clip", [z, *bounds] if bounds[1] else [z, bounds[0]])
            case "leaky_relu":
                return self.node("LeakyRelu", [z], alpha=a["slope"])
            case "hardswish":
                return self.node("HardSwish", [z])
            case "hardsigmoid":
                return self.node("HardSigmoid", [z], alpha=1 / 6, beta=0.5)
            case "silu":
                return self.node("Mul", [z, self.node("Sigmoid", [z])])
            case "elu":
                return self.node("Elu", [z], alpha=a["alpha"])
            case "mish":
                return self.node("Mish", [z])
            case "gelu":
                return self.node("Gelu", [z], approximate=a["approximate"])
            case "sigmoid":
                return self.node("Sigmoid", [z])
            case "tanh":
                return self.node("Tanh", [z])
            case kind:
                raise self._refuse(number, op, f"activation '{kind}'")

    def _encode(self, number: int, op: Op, y: str, old: str, new: str) -> None:
        """The new value that consumers see, given y and the last value."""
        codec, array = op.codec, self.plan.step(op)
        if codec is None or array is None:
            self.node("Identity", [y], new)
            return
        if codec["kind"] == "pixel":  # which has no use for the thresholds themselves
            array = (1 / np.maximum(array, np.float32(LEAST_THRESHOLD))).astype(np.float32)
        size = self.constant(array)
        match codec["kind"]:
            case "exact":
                code = self.node("Div", [y, size])
                if "low" in codec:
                    bounds = [self.constant(np.asarray(codec[k], np.float32)) for k in ("low", "high")]
                    code = self.node("Clip", [code, *bounds])
                self.node("Mul", [size, self.node("Round", [code])], new)
            case "hold":
                far = self.node("Greater", [self.node("Abs", [self.node("Sub", [y, old])]), size])
                self.node("Where", [self.node("Or", [far, self.first]), y, old], new)
            case "pixel":
                scaled = self.node("Mul", [self.node("Sub", [y, old]), size])
                axis = channel_axis(self.plan.values[op.output])
                axes = self.constant(np.asarray([axis], np.int64))
                total = self.node("ReduceSum", [self.node("Mul", [scaled, scaled]), axes], keepdims=1)
                channels = self.constant(np.asarray(self.plan.values[op.output][axis], np.float32))
                far = self.node("Greater", [total, channels])
                self.node("Where", [self.node("Or", [far, self.first]), y, old], new)
            case "residual":
                steps = self.node("Div", [self.node("Sub", [y, old]), size])
                whole = self.node("Mul", [self.node("Sign", [steps]), self.node("Floor", [self.node("Abs", [steps])])])
                moved = self.node("Add", [old, self.node("Mul", [size, whole])])
                self.node("Where", [self.first, y, moved], new)
            case kind:
                raise self._refuse(number, op, f"codec '{kind}'")


def _windows(table: Array, extent: int) -> Array:
    """(n, 2) of [start, end) as a matrix (n, extent) of ones where the window is."""
    place = np.arange(extent)
    return ((place >= table[:, :1]) & (place < table[:, 1:])).astype(np.float32)


def _taps(index: Array, weights: Array, extent: int) -> Array:
    """(n, K) places and weights as a matrix (n, extent)."""
    matrix = np.zeros((len(index), extent), np.float32)
    np.add.at(matrix, (np.arange(len(index))[:, None], index), weights)
    return matrix


def _places(table: Array, dilation: int) -> Array:
    """(n, 2) of [start, end) as (n, K) places inside; those beyond a window's end repeat its start."""
    start, end = table[:, :1].astype(np.int64), table[:, 1:]
    place = start + np.arange(0, int((end - start).max()), dilation)
    return np.where(place < end, place, start)
