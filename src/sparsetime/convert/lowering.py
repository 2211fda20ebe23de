"""The walk over an exported graph: what each node becomes, and what the handlers of operators use.

Moves of elements (reshape, permute, slice, split, expand, flip, reflection padding ...) are not translated one by one.
The same ATen operator is applied to the numbers of the elements, and the outcome says which element went where; only
when another operation reads the result does a `reshape`, `channels` or `gather` come of it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, TensorArgument
from torch.utils import _pytree as pytree

from sparsetime.convert.draft import CompileError, Draft, DraftCodec, DraftOp
from sparsetime.convert.forms import MAP, TOKENS, Form, form_of
from sparsetime.convert.nodes import bound
from sparsetime.convert.poles import read_at_poles
from sparsetime.engine.check import CONSTANTS
from sparsetime.engine.plan import Plan
from sparsetime.engine.shapes import channel_axis, is_map

__all__ = [
    "HANDLERS",
    "Arguments",
    "Array",
    "Handler",
    "Lowering",
    "Moved",
    "Stream",
    "Wire",
    "array_of",
    "handles",
    "one_row",
    "output_shape",
    "pair",
    "reshaped",
]

Array = NDArray[Any]


@dataclass(frozen=True)
class Wire:
    """A value of the draft."""

    value: int


@dataclass(frozen=True)
class Moved:
    """Elements of a value in other places: `index` holds their numbers, float64, in the shape of the result."""

    value: int
    index: Tensor


Stream = Wire | Moved

_MOVES = frozenset(
    (
        *("view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as"),
        *("permute", "transpose", "t", "movedim", "swapaxes", "swapdims"),
        *("numpy_T", "mT", "mH", "adjoint", "matrix_H"),
        *("slice", "select", "narrow", "split", "split_with_sizes", "chunk", "unbind", "tensor_split", "index_select"),
        *("expand", "expand_as", "repeat", "tile", "flip", "roll", "rot90", "broadcast_to"),
        *("channel_shuffle", "native_channel_shuffle", "pixel_shuffle", "pixel_unshuffle"),
        *("clone", "contiguous", "alias", "detach", "lift_fresh", "lift_fresh_copy", "dropout", "feature_dropout"),
        *("reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d"),
    )
)

_LIKE = frozenset(("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"))
"""Constants that take only their shape or type from what they are given."""

_IGNORED = frozenset(("_assert_tensor_metadata", "_assert_scalar", "_assert_async"))

_STORED = {torch.float32: np.float32, torch.int64: np.int64, torch.bool: np.bool_}
"""Types of the constants of islands."""


def _storable(arguments: Mapping[str, Any]) -> bool:
    """Whether an island can hold the constants among an operator's arguments."""
    return all(x.dtype in _STORED for x in pytree.tree_leaves(arguments) if isinstance(x, Tensor))


def array_of(x: Tensor) -> Array:
    # A copy: the module may be trained further, its plan stays what it is.
    return x.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format).numpy()


def pair(x: Any) -> list[int]:
    if isinstance(x, int):
        return [x, x]
    return [int(x[0]), int(x[-1])]


def _source(node: fx.Node) -> str | None:
    """File and line of the module's code that made a node: the innermost place that is not PyTorch's own."""
    found = None
    for line in (node.meta.get("stack_trace") or "").splitlines():
        line = line.strip()
        if line.startswith('File "') and "/torch/" not in line:
            path, _, rest = line[6:].partition('", line ')
            found = f"{path.rsplit('/', 1)[-1]}:{rest.split(',')[0]}"
    return found


class Lowering:
    """Walks the graph once; `env` holds what each node became."""

    def __init__(self, program: ExportedProgram, draft: Draft, handlers: Mapping[str, Handler], strict: bool) -> None:
        self.program, self.draft, self.handlers, self.strict = program, draft, handlers, strict
        self.env: dict[fx.Node, Any] = {}
        self.node: fx.Node = next(iter(program.graph.nodes))
        self.in_a_row = False  # whether the current node, of one dimension, is computed as one of two
        self._made: dict[tuple[int, bytes, tuple[int, ...]], int] = {}
        self._arrays: dict[int, tuple[Tensor, Array]] = {}
        self._at_poles = set() if strict else read_at_poles(program, _MOVES)

    # -- what the handlers use ---------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """A name for the operation of the current node: its module's, and its own where that says too little."""
        stack = self.node.meta.get("nn_module_stack") or {}
        path, kind = list(stack.values())[-1] if stack else ("", "")
        path = str(path)
        # Containers and the user's own modules hold many operations, layers of torch one.
        leaf = str(kind).startswith("torch.nn.modules") and "container" not in str(kind)
        if leaf and path:
            return path
        return f"{path}.{self.node.name}" if path else self.node.name

    def fail(self, message: str) -> Any:
        raise CompileError(f"{self.name} ({self.node.target}, {_source(self.node) or 'source unknown'}): {message}")

    def shape(self, x: Stream) -> tuple[int, ...]:
        return self.draft.shapes[x.value] if isinstance(x, Wire) else tuple(x.index.shape)

    def emit(
        self,
        kind: str,
        inputs: list[int],
        shape: tuple[int, ...],
        attributes: dict[str, Any] | None = None,
        tensors: dict[str, Array] | None = None,
        activation: Mapping[str, Any] | None = None,
        codec: DraftCodec | None = None,
        suffix: str = "",
    ) -> Wire:
        """Append an operation with one output."""
        output = self.draft.value(shape)
        op = DraftOp(
            kind=kind,
            name=self.name + suffix,
            inputs=inputs,
            outputs=[output],
            attributes=attributes or {},
            tensors=tensors or {},
            activation=activation,
            codec=codec,
            source=_source(self.node),
        )
        return Wire(self.draft.add(op))

    def numbers(self, x: Stream) -> Tensor:
        """The numbers of a stream's elements in the value that it is made of, in the shape of the stream."""
        if isinstance(x, Moved):
            return x.index
        shape = self.draft.shapes[x.value]
        return torch.arange(prod(shape), dtype=torch.float64).reshape(shape)

    def value(self, x: Any) -> int:
        """The number of a value that holds x, after the moves that are due."""
        if isinstance(x, Wire):
            return x.value
        if not isinstance(x, Moved):
            self.fail(f"expected a stream, got {type(x).__name__}")
        x = self._part(x)
        index = x.index.to(torch.int64).contiguous().numpy().astype(np.int32)
        key = (x.value, index.tobytes(), index.shape)
        if key not in self._made:
            self._made[key] = self._move(x.value, index)
        return self._made[key]

    def _part(self, x: Moved) -> Moved:
        """x as made of one part of a concatenation, where it is: what joins and splits again moves nothing."""
        op = self.draft.producer(x.value)
        if op.kind != "cat" or op.attributes["axis"] != 1 or self.draft.shapes[x.value][0] != 1:
            return x
        first, last = (int(n) for n in x.index.aminmax())
        start = 0
        for value in op.inputs:
            end = start + prod(self.draft.shapes[value])
            if start <= first and last < end:
                return self._part(Moved(value, x.index - start))
            start = end
        return x

    def _move(self, value: int, index: Array) -> int:
        before, after = self.draft.shapes[value], index.shape
        if index.size == prod(before) and np.array_equal(index.ravel(), np.arange(index.size)):
            return value if before == after else self.emit("reshape", [value], after, suffix=".reshape").value
        if is_map(before) and is_map(after) and before[2:] == after[2:]:
            area = before[2] * before[3]
            channels = index[0, :, 0, 0] // area  # -1, a zero, stays -1
            place = np.where(channels[:, None, None] < 0, -1, np.arange(area).reshape(before[2:]))
            if np.array_equal(index[0], np.maximum(channels, 0)[:, None, None] * area + place):
                tensors = {"index": channels.astype(np.int32)}
                return self.emit("channels", [value], after, {}, tensors, suffix=".channels").value
        return self.emit("gather", [value], after, {}, {"index": index.ravel()}, suffix=".gather").value

    def array(self, x: Tensor) -> Array:
        """A constant as an array; one array for one tensor, so that what the module shares the plan shares."""
        if id(x) not in self._arrays:
            self._arrays[id(x)] = (x, array_of(x))
        return self._arrays[id(x)][1]

    def constant(self, x: Any, shape: tuple[int, ...]) -> Array | None:
        """A constant that meets a value of `shape`, as `[1]`, `[C]` or one per element; None if it cannot be one."""
        if isinstance(x, int | float) and not isinstance(x, bool):
            return np.asarray([x], np.float32) if math.isfinite(x) else None
        if not isinstance(x, Tensor) or (not x.dtype.is_floating_point and x.dtype not in (torch.int64, torch.int32)):
            return None
        if not torch.isfinite(x).all():
            return None
        array = array_of(x)
        if array.size == 1:
            return array.reshape(1)
        if np.broadcast_shapes(array.shape, shape) != shape or len(shape) < 2:
            return None
        axis = channel_axis(shape)
        full = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
        if full.shape == tuple(n if k == axis else 1 for k, n in enumerate(shape)):
            return full.reshape(-1)
        if shape[0] != 1:
            return None
        return np.ascontiguousarray(np.broadcast_to(full, shape)[0])

    def elementwise(
        self,
        kind: str,
        x: Stream,
        tensors: dict[str, Array] | None = None,
        activation: Mapping[str, Any] | None = None,
    ) -> Stream:
        """An operation on each element by itself; constants as `constant` gives them.

        Where x is all of a value in another order, it is computed on the value and ordered then: a convolution whose
        output is permuted has its activation and its scale behind it, and permuting back costs nothing.
        """
        tensors = tensors or {}
        form = self.form(x)
        if isinstance(x, Moved) and form is not None and not self._reordered(x):
            made = Wire(self.value(Moved(x.value, form.there(x.index, self.shape(x)))))
            x = Moved(made.value, form.back(self.numbers(made), self.shape(x)))
        if isinstance(x, Moved) and self._reordered(x):
            there = {role: self._constant_there(array, x) for role, array in tensors.items()}
            wire = self.emit(kind, [x.value], self.draft.shapes[x.value], {}, there, activation)
            return Moved(wire.value, x.index)
        value = self.value(x)
        return self.emit(kind, [value], self.draft.shapes[value], {}, tensors, activation)

    def _reordered(self, x: Moved) -> bool:
        """Whether x is all elements of a value, each once, in another order."""
        shape, count = self.draft.shapes[x.value], x.index.numel()
        if shape[0] != 1 or count != prod(shape):
            return False
        return bool((x.index.ravel().sort().values == torch.arange(count)).all())

    def form(self, x: Stream) -> Form | None:
        """The form in which x is a map, where its channels stand elsewhere than a plan expects them."""
        form = form_of(x.index, self.draft.shapes[x.value]) if isinstance(x, Moved) else None
        return None if form in (MAP, TOKENS) else form

    def common_form(self, streams: list[Stream]) -> Form | None:
        """The form in which streams of one rank are maps, if they agree; values (1, C, H, W) are as they are."""
        forms = set()
        for x in streams:
            shape = self.draft.shapes[x.value]
            forms.add(form_of(x.index, shape) if isinstance(x, Moved) else MAP if is_map(shape) else None)
        forms -= {None}
        form = forms.pop() if len(forms) == 1 else None
        return None if form in (MAP, TOKENS) else form

    def together(self, x: Stream, y: Stream, emit: Callable[[Stream, Stream, tuple[int, ...]], Wire]) -> Stream:
        """What `emit` makes of two streams, computed on maps where that is what they are, and handed on in order."""
        shape = output_shape(self)
        if isinstance(x, Moved) and isinstance(y, Moved) and torch.equal(x.index, y.index) and self._reordered(x):
            made_of = self.draft.shapes[x.value]
            if made_of == self.draft.shapes[y.value]:
                return Moved(emit(Wire(x.value), Wire(y.value), made_of).value, x.index)
        form = self.common_form([s for s in (x, y) if self.shape(s) == shape])
        if form is None:
            return emit(x, y, shape)
        first, second = (Moved(s.value, form.there(self.numbers(s), shape)) for s in (x, y))
        wire = emit(first, second, tuple(form.there(torch.empty(shape), shape).shape))
        return Moved(wire.value, form.back(self.numbers(wire), shape))

    def _constant_there(self, array: Array, x: Moved) -> Array:
        """A constant that meets x, for the value that x is made of."""
        shape = self.draft.shapes[x.value]
        if array.size == 1:
            return array
        there = np.empty(prod(shape), np.float32)
        full = np.broadcast_to(Plan.expand(array, tuple(x.index.shape)), x.index.shape)
        there[x.index.to(torch.int64).numpy().ravel()] = full.ravel()
        channels = np.moveaxis(there.reshape(shape), channel_axis(shape), -1).reshape(-1, shape[channel_axis(shape)])
        return channels[0].copy() if (channels == channels[0]).all() else there.reshape(shape[1:])

    def affine(self, x: Stream, scale: Array | None, shift: Array | None) -> Stream:
        return self.elementwise("affine", x, {r: a for r, a in (("scale", scale), ("shift", shift)) if a is not None})

    def broadcast(self, x: Stream, shape: tuple[int, ...]) -> int:
        """x in a larger shape: its elements repeated."""
        if self.shape(x) == shape:
            return self.value(x)
        whole = Wire(self.value(x))
        return self.value(Moved(whole.value, self.numbers(whole).expand(shape)))

    # -- the walk ----------------------------------------------------------------------------------------------------

    def inputs(self) -> None:
        """Parameters, buffers and constants as tensors; the frame as the first value."""
        signature = self.program.graph_signature
        if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
            raise CompileError(
                f"{self.draft.name} changes its own buffers or its input "
                f"({sorted(signature.buffers_to_mutate.values())}), which a plan cannot"
            )
        nodes = {node.name: node for node in self.program.graph.nodes if node.op == "placeholder"}
        frames = 0
        for spec in signature.input_specs:
            if isinstance(spec.arg, ConstantArgument):
                self.env[nodes[spec.arg.name]] = spec.arg.value
                continue
            if not isinstance(spec.arg, TensorArgument):
                raise CompileError(f"{self.draft.name} holds {spec.arg.name}, which is no tensor, so no plan can")
            node = nodes[spec.arg.name]
            if spec.kind == InputKind.USER_INPUT:
                frames += 1
                self.node = node
                shape, dtype = tuple(node.meta["val"].shape), node.meta["val"].dtype
                if frames > 1 or dtype != torch.float32 or len(shape) < 2 or shape[0] != 1:
                    raise CompileError(
                        f"{self.draft.name} must take one float32 frame (1, C, H, W), got input {frames}: {shape} "
                        f"{dtype}"
                    )
                value = self.draft.value(shape)
                self.draft.add(DraftOp("input", "input", [], [value]))
                self.env[node] = Wire(value)
            elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
                target = str(spec.target)
                found = self.program.state_dict.get(target)
                self.env[node] = self.program.constants[target] if found is None else found
            else:
                self.env[node] = self.program.constants[str(spec.target)]

    def run(self) -> None:
        self.inputs()
        for node in self.program.graph.nodes:
            self.node = node
            if node.op == "call_function":
                results = [x for x in pytree.tree_leaves(node.meta.get("val")) if isinstance(x, Tensor)]
                if not all(isinstance(n, int) for x in results for n in x.shape):
                    self.fail(
                        "the size of its result depends on the values of the frame, and that of a plan's values must "
                        "not. Compute on all elements, as torch.where does."
                    )
                self.env[node] = self.call(node)
            elif node.op == "output":
                self.outputs(node)
            elif node.op != "placeholder":
                self.fail(f"cannot lower a node of kind {node.op}")

    def resolved(self, x: Any) -> Any:
        return fx.node.map_arg(x, lambda node: self.env[node])

    def call(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            made, place = node.args[:2]
            assert isinstance(made, fx.Node)
            return self.env[made][place]
        target: Any = node.target
        if not isinstance(target, torch._ops.OpOverload):
            read = pytree.tree_leaves(self.resolved((node.args, node.kwargs)))
            if isinstance(target, torch._ops.HigherOrderOperator) or any(isinstance(x, Stream) for x in read):
                return self.fail("control flow and higher-order operations cannot be compiled")
            return self.constant_value(target, node)
        space, name = target._schema.name.split("::")
        if name in _IGNORED:
            return None
        arguments = {key: self.resolved(x) for key, x in bound(node).items()}
        if not any(isinstance(x, Stream) for x in pytree.tree_leaves(arguments)):
            self.refuse_chance(target, arguments)
            return self.constant_value(target, node)
        made = node.meta["val"]
        if isinstance(made, Tensor) and made.numel() == 0:
            return torch.empty(made.shape, dtype=made.dtype)  # what has no elements depends on nothing
        if space == "aten" and name in _LIKE:
            like = node.args[0].meta["val"]  # type: ignore[union-attr]
            given = self.resolved((node.args[1:], node.kwargs))
            return target(torch.empty(like.shape, dtype=like.dtype), *given[0], **given[1])
        if space == "sparsetime":
            return self.handlers["codec"](self, arguments)
        result = None
        if space == "aten" and self.in_float32(node):
            if name in _MOVES and not (name in ("dropout", "feature_dropout") and arguments["train"]):
                return self.move(arguments)
            handler = self.handlers.get(name)
            if handler is not None and not (node in self._at_poles and _storable(arguments)):
                result = handler(self, arguments)
        return self.island(arguments) if result is None else result

    def in_float32(self, node: fx.Node) -> bool:
        """Whether every stream that a node reads is float32; integers and booleans stay between islands."""
        streams = [n for n in node.all_input_nodes if isinstance(self.env[n], Stream)]
        return all(n.meta["val"].dtype == torch.float32 for n in streams)

    def refuse_chance(self, target: torch._ops.OpOverload, arguments: Mapping[str, Any]) -> None:
        """Refuse an operator that draws random numbers, unless its arguments say that it draws none here."""
        off = any(arguments.get(key) is False for key in ("train", "training"))
        never = any(arguments.get(key) == 0 for key in ("p", "dropout_p"))
        if torch.Tag.nondeterministic_seeded in target.tags and not off and not never:
            self.fail(
                "draws random numbers, which a plan cannot. A functional dropout needs training=self.training to end "
                "with the training"
            )

    def constant_value(self, target: Callable[..., Any], node: fx.Node) -> Any:
        with torch.no_grad():
            return target(*self.resolved(node.args), **self.resolved(node.kwargs))

    def move(self, arguments: dict[str, Any]) -> Any:
        """Apply a move to the numbers of the elements."""
        found: list[Stream] = []

        def numbered(x: Any) -> Any:
            if not isinstance(x, Stream):
                return x
            found.append(x)
            return self.numbers(x)

        target: Any = self.node.target
        if target in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default):
            target = torch.ops.aten.reshape.default  # numbers may lie otherwise than what they number
        args = fx.node.map_arg(self.node.args, lambda node: numbered(self.env[node]))
        kwargs = fx.node.map_arg(self.node.kwargs, lambda node: numbered(self.env[node]))
        value = found[0].value  # view_as and the like read a second stream for its shape alone
        result = target(*args, **kwargs)
        if isinstance(result, Tensor):
            return Moved(value, result)
        return [Moved(value, item) for item in result]

    def island(self, arguments: dict[str, Any]) -> Any:
        """Keep an operator as it is, computed by PyTorch on whole values."""
        node, target = self.node, self.node.target
        assert isinstance(target, torch._ops.OpOverload)
        where = f"{target} at {_source(node) or 'unknown source'}"
        self.refuse_chance(target, arguments)
        if self.strict:
            self.fail(f"{where} cannot run on deltas; without strict=True it would become a dense island")
        if not str(target).startswith("aten."):
            self.fail(f"{where} is no operator of PyTorch itself, so it cannot stand in a plan")
        tensors: dict[str, Array] = {}
        inputs: list[int] = []

        def encode(x: Any) -> Any:
            if isinstance(x, Stream):
                inputs.append(self.value(x))
                return {"value": inputs[-1]}
            if isinstance(x, Tensor):
                if x.dtype not in _STORED:
                    self.fail(f"{where} takes a constant of {x.dtype}; a plan holds float32, int64 and bool")
                role = f"constant{len(tensors)}"
                tensors[role] = x.detach().clone(memory_format=torch.contiguous_format).numpy()
                return {"tensor": role}
            if isinstance(x, list | tuple):
                return [encode(item) for item in x]
            if isinstance(x, torch.dtype):
                name = str(x).removeprefix("torch.")
                if name not in ("float32", "int64", "bool"):
                    self.fail(f"{where} works in {name}; a plan has float32, int64 and bool")
                return {"dtype": name}
            if isinstance(x, float) and not math.isfinite(x):
                return {"float": "nan" if x != x else ("inf" if x > 0 else "-inf")}
            if x is None or isinstance(x, bool | int | float | str):
                return x
            return self.fail(f"{where} takes {x!r}, which a plan cannot hold")

        placed = ("device", "layout", "pin_memory", "memory_format")
        positional, keywords = [], {}
        for argument in target._schema.arguments:
            if argument.name in placed:
                continue
            entry = encode(arguments[argument.name])
            if argument.kwarg_only:
                if entry is not None:
                    keywords[argument.name] = entry
            else:
                positional.append(entry)
        results = node.meta["val"]
        several = isinstance(results, tuple | list)
        outputs, types = [], []
        for result in results if several else [results]:
            name = str(getattr(result, "dtype", "")).removeprefix("torch.")
            if name not in ("float32", "int64", "bool"):
                self.fail(f"{where} gives {name or type(result).__name__}; a plan has float32, int64 and bool")
            outputs.append(self.draft.value(tuple(result.shape)))
            types.append(name)
        attributes = {"target": str(target), "arguments": positional, "keywords": keywords, "types": types}
        unique = list(dict.fromkeys(inputs))
        self.draft.add(DraftOp("island", self.name, unique, outputs, attributes, tensors, source=_source(node)))
        wires = [Wire(value) for value in outputs]
        return wires if several else wires[0]

    def origin(self, node: fx.Node) -> str:
        """Where a constant comes from: the line that made it, or its name in the module."""
        names = {spec.arg.name: spec.target for spec in self.program.graph_signature.input_specs}
        return _source(node) or f"'{names.get(node.name) or node.name}'"

    def outputs(self, node: fx.Node) -> None:
        """Flat outputs, and how the module nested them."""
        flat = self.resolved(node.args[0])
        spec = self.program.call_spec.out_spec
        paths = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(pytree.tree_unflatten(flat, spec))[0]]
        entries: list[Any] = []
        for x, made, path in zip(flat, node.args[0], paths, strict=True):  # type: ignore[arg-type]
            if isinstance(x, Stream):
                self.draft.outputs.append(self.value(x))
                entries.append({"output": len(self.draft.outputs) - 1})
            elif x is None or isinstance(x, bool | int | str) or (isinstance(x, float) and math.isfinite(x)):
                entries.append({"constant": x})
            elif isinstance(x, Tensor) and str(x.dtype).removeprefix("torch.") in CONSTANTS:
                array = x.detach().clone(memory_format=torch.contiguous_format).numpy()
                entries.append({"array": array})
            else:
                where = self.origin(made) if isinstance(made, fx.Node) else repr(made)
                raise CompileError(
                    f"{self.draft.name} returns a constant as output{path}, {where}: a {type(x).__name__}"
                    f"{f' of {x.dtype}' if isinstance(x, Tensor) else ''}, which a plan cannot give; it knows finite "
                    f"numbers, strings and tensors of {', '.join(CONSTANTS)}"
                )
        if not self.draft.outputs:
            raise CompileError(f"{self.draft.name} returns nothing that depends on its input")
        tree = pytree.tree_unflatten([_Leaf(entry) for entry in entries], spec)
        self.draft.structure = _structure(tree)


@dataclass(frozen=True)
class _Leaf:
    entry: dict[str, Any]


def _structure(tree: Any) -> Any:
    if isinstance(tree, _Leaf):
        return tree.entry
    if isinstance(tree, dict):
        if odd := [key for key in tree if not isinstance(key, str)]:
            raise CompileError(
                f"the network returns a dictionary with the key {odd[0]!r}; those of a plan's answers are strings: "
                "return {str(key): value, ...}"
            )
        return {"dict": {key: _structure(item) for key, item in tree.items()}}
    if isinstance(tree, tuple):
        return {"tuple": [_structure(item) for item in tree]}
    if isinstance(tree, list):
        return [_structure(item) for item in tree]
    raise CompileError(f"the network returns {type(tree).__name__}; a plan nests tuples, lists and dictionaries")


Arguments = dict[str, Any]

Handler = Callable[[Lowering, Arguments], Any]
"""Takes the arguments of a node by their names; gives None where no operation of a plan does what the node does."""

HANDLERS: dict[str, Handler] = {}
"""By name of the ATen operator, and `codec` for quantisers."""


def handles(*names: str) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


def output_shape(at: Lowering) -> tuple[int, ...]:
    """Of the first output, as a map of one row where it is computed as one."""
    found = at.node.meta["val"]
    shape = tuple((found[0] if isinstance(found, tuple | list) else found).shape)
    return one_row(shape) if at.in_a_row else shape


def one_row(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-1], 1, shape[-1])


def reshaped(at: Lowering, x: Stream, shape: tuple[int, ...]) -> Moved:
    return Moved(x.value, at.numbers(x).reshape(shape))
