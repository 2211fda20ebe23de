"""From an exported ATen graph to a draft: each operator becomes operations of the plan, or a dense island.

Moves of elements (reshape, permute, slice, split, expand, flip, reflection padding ...) are not translated one by one.
The same ATen operator is applied to the numbers of the elements, and the outcome says which element went where; only
when another operation reads the result does a `reshape`, `channels` or `gather` come of it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, TensorArgument
from torch.utils import _pytree as pytree

from sparsetime.convert.attention import join_attention
from sparsetime.convert.draft import CompileError, Draft, DraftCodec, DraftOp
from sparsetime.convert.einsum import products_of_sums
from sparsetime.convert.forms import GROUPS, MAP, TOKENS, Form, form_of
from sparsetime.convert.norms import affine_into_norms, join_norms
from sparsetime.convert.poles import read_at_poles
from sparsetime.convert.tables import adaptive_windows, pool_windows, resize_taps
from sparsetime.engine.check import CONSTANTS, LEAST_STEP
from sparsetime.engine.plan import Plan
from sparsetime.engine.shapes import channel_axis, is_map

__all__ = ["lower"]

Array = NDArray[Any]


@dataclass(frozen=True)
class _Wire:
    """A value of the draft."""

    value: int


@dataclass(frozen=True)
class _Moved:
    """Elements of a value in other places: `index` holds their numbers, float64, in the shape of the result."""

    value: int
    index: Tensor


_Stream = _Wire | _Moved

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


_NEVER = -1e30
"""Stands for -inf where it is less than all else: the score of a key behind a mask, the border of a maximum."""

_STORED = {torch.float32: np.float32, torch.int64: np.int64, torch.bool: np.bool_}
"""Types of the constants of islands."""


def _storable(arguments: Mapping[str, Any]) -> bool:
    """Whether an island can hold the constants among an operator's arguments."""
    return all(x.dtype in _STORED for x in pytree.tree_leaves(arguments) if isinstance(x, Tensor))


def _array(x: Tensor) -> Array:
    # A copy: the module may be trained further, its plan stays what it is.
    return x.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format).numpy()


def _pair(x: Any) -> list[int]:
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


def _bound(node: fx.Node) -> dict[str, Any]:
    """Arguments of a node by the names of its operator's schema, defaults filled in."""
    assert isinstance(node.target, torch._ops.OpOverload)
    bound = {}
    for position, argument in enumerate(node.target._schema.arguments):
        if position < len(node.args):
            bound[argument.name] = node.args[position]
        else:
            bound[argument.name] = node.kwargs.get(argument.name, argument.default_value)
    return bound


class _Lowering:
    """Walks the graph once; `env` holds what each node became."""

    def __init__(self, program: ExportedProgram, draft: Draft, strict: bool) -> None:
        self.program, self.draft, self.strict = program, draft, strict
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

    def shape(self, x: _Stream) -> tuple[int, ...]:
        return self.draft.shapes[x.value] if isinstance(x, _Wire) else tuple(x.index.shape)

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
    ) -> _Wire:
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
        return _Wire(self.draft.add(op))

    def numbers(self, x: _Stream) -> Tensor:
        """The numbers of a stream's elements in the value that it is made of, in the shape of the stream."""
        if isinstance(x, _Moved):
            return x.index
        shape = self.draft.shapes[x.value]
        return torch.arange(prod(shape), dtype=torch.float64).reshape(shape)

    def value(self, x: Any) -> int:
        """The number of a value that holds x, after the moves that are due."""
        if isinstance(x, _Wire):
            return x.value
        if not isinstance(x, _Moved):
            self.fail(f"expected a stream, got {type(x).__name__}")
        x = self._part(x)
        index = x.index.to(torch.int64).contiguous().numpy().astype(np.int32)
        key = (x.value, index.tobytes(), index.shape)
        if key not in self._made:
            self._made[key] = self._move(x.value, index)
        return self._made[key]

    def _part(self, x: _Moved) -> _Moved:
        """x as made of one part of a concatenation, where it is: what joins and splits again moves nothing."""
        op = self.draft.producer(x.value)
        if op.kind != "cat" or op.attributes["axis"] != 1 or self.draft.shapes[x.value][0] != 1:
            return x
        first, last = (int(n) for n in x.index.aminmax())
        start = 0
        for value in op.inputs:
            end = start + prod(self.draft.shapes[value])
            if start <= first and last < end:
                return self._part(_Moved(value, x.index - start))
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
            self._arrays[id(x)] = (x, _array(x))
        return self._arrays[id(x)][1]

    def constant(self, x: Any, shape: tuple[int, ...]) -> Array | None:
        """A constant that meets a value of `shape`, as `[1]`, `[C]` or one per element; None if it cannot be one."""
        if isinstance(x, int | float) and not isinstance(x, bool):
            return np.asarray([x], np.float32) if math.isfinite(x) else None
        if not isinstance(x, Tensor) or (not x.dtype.is_floating_point and x.dtype not in (torch.int64, torch.int32)):
            return None
        if not torch.isfinite(x).all():
            return None
        array = _array(x)
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
        x: _Stream,
        tensors: dict[str, Array] | None = None,
        activation: Mapping[str, Any] | None = None,
    ) -> _Stream:
        """An operation on each element by itself; constants as `constant` gives them.

        Where x is all of a value in another order, it is computed on the value and ordered then: a convolution whose
        output is permuted has its activation and its scale behind it, and permuting back costs nothing.
        """
        tensors = tensors or {}
        form = self.form(x)
        if isinstance(x, _Moved) and form is not None and not self._reordered(x):
            made = _Wire(self.value(_Moved(x.value, form.there(x.index, self.shape(x)))))
            x = _Moved(made.value, form.back(self.numbers(made), self.shape(x)))
        if isinstance(x, _Moved) and self._reordered(x):
            there = {role: self._constant_there(array, x) for role, array in tensors.items()}
            wire = self.emit(kind, [x.value], self.draft.shapes[x.value], {}, there, activation)
            return _Moved(wire.value, x.index)
        value = self.value(x)
        return self.emit(kind, [value], self.draft.shapes[value], {}, tensors, activation)

    def _reordered(self, x: _Moved) -> bool:
        """Whether x is all elements of a value, each once, in another order."""
        shape, count = self.draft.shapes[x.value], x.index.numel()
        if shape[0] != 1 or count != prod(shape):
            return False
        return bool((x.index.ravel().sort().values == torch.arange(count)).all())

    def form(self, x: _Stream) -> Form | None:
        """The form in which x is a map, where its channels stand elsewhere than a plan expects them."""
        form = form_of(x.index, self.draft.shapes[x.value]) if isinstance(x, _Moved) else None
        return None if form in (MAP, TOKENS) else form

    def common_form(self, streams: list[_Stream]) -> Form | None:
        """The form in which streams of one rank are maps, if they agree; values (1, C, H, W) are as they are."""
        forms = set()
        for x in streams:
            shape = self.draft.shapes[x.value]
            forms.add(form_of(x.index, shape) if isinstance(x, _Moved) else MAP if is_map(shape) else None)
        forms -= {None}
        form = forms.pop() if len(forms) == 1 else None
        return None if form in (MAP, TOKENS) else form

    def together(self, x: _Stream, y: _Stream, emit: Callable[[_Stream, _Stream, tuple[int, ...]], _Wire]) -> _Stream:
        """What `emit` makes of two streams, computed on maps where that is what they are, and handed on in order."""
        shape = _output_shape(self)
        if isinstance(x, _Moved) and isinstance(y, _Moved) and torch.equal(x.index, y.index) and self._reordered(x):
            made_of = self.draft.shapes[x.value]
            if made_of == self.draft.shapes[y.value]:
                return _Moved(emit(_Wire(x.value), _Wire(y.value), made_of).value, x.index)
        form = self.common_form([s for s in (x, y) if self.shape(s) == shape])
        if form is None:
            return emit(x, y, shape)
        first, second = (_Moved(s.value, form.there(self.numbers(s), shape)) for s in (x, y))
        wire = emit(first, second, tuple(form.there(torch.empty(shape), shape).shape))
        return _Moved(wire.value, form.back(self.numbers(wire), shape))

    def _constant_there(self, array: Array, x: _Moved) -> Array:
        """A constant that meets x, for the value that x is made of."""
        shape = self.draft.shapes[x.value]
        if array.size == 1:
            return array
        there = np.empty(prod(shape), np.float32)
        full = np.broadcast_to(Plan.expand(array, tuple(x.index.shape)), x.index.shape)
        there[x.index.to(torch.int64).numpy().ravel()] = full.ravel()
        channels = np.moveaxis(there.reshape(shape), channel_axis(shape), -1).reshape(-1, shape[channel_axis(shape)])
        return channels[0].copy() if (channels == channels[0]).all() else there.reshape(shape[1:])

    def affine(self, x: _Stream, scale: Array | None, shift: Array | None) -> _Stream:
        return self.elementwise("affine", x, {r: a for r, a in (("scale", scale), ("shift", shift)) if a is not None})

    def broadcast(self, x: _Stream, shape: tuple[int, ...]) -> int:
        """x in a larger shape: its elements repeated."""
        if self.shape(x) == shape:
            return self.value(x)
        whole = _Wire(self.value(x))
        return self.value(_Moved(whole.value, self.numbers(whole).expand(shape)))

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
                self.env[node] = _Wire(value)
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
            if isinstance(target, torch._ops.HigherOrderOperator) or any(isinstance(x, _Stream) for x in read):
                return self.fail("control flow and higher-order operations cannot be compiled")
            return self.constant_value(target, node)
        space, name = target._schema.name.split("::")
        if name in _IGNORED:
            return None
        arguments = {key: self.resolved(x) for key, x in _bound(node).items()}
        if not any(isinstance(x, _Stream) for x in pytree.tree_leaves(arguments)):
            self.refuse_chance(target, arguments)
            return self.constant_value(target, node)
        if space == "aten" and name in _LIKE:
            like = node.args[0].meta["val"]  # type: ignore[union-attr]
            given = self.resolved((node.args[1:], node.kwargs))
            return target(torch.empty(like.shape, dtype=like.dtype), *given[0], **given[1])
        if space == "sparsetime":
            return _quantiser(self, arguments)
        result = None
        if space == "aten" and self.in_float32(node):
            if name in _MOVES and not (name in ("dropout", "feature_dropout") and arguments["train"]):
                return self.move(arguments)
            handler = _HANDLERS.get(name)
            if handler is not None and not (node in self._at_poles and _storable(arguments)):
                result = handler(self, arguments)
        return self.island(arguments) if result is None else result

    def in_float32(self, node: fx.Node) -> bool:
        """Whether every stream that a node reads is float32; integers and booleans stay between islands."""
        streams = [n for n in node.all_input_nodes if isinstance(self.env[n], _Stream)]
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
        found: list[_Stream] = []

        def numbered(x: Any) -> Any:
            if not isinstance(x, _Stream):
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
            return _Moved(value, result)
        return [_Moved(value, item) for item in result]

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
            if isinstance(x, _Stream):
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
        wires = [_Wire(value) for value in outputs]
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
            if isinstance(x, _Stream):
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


# -- handlers: None from one of these means that this use of the operator is no operation of the plan -----------------

_Arguments = dict[str, Any]
_Handler = Callable[[_Lowering, _Arguments], Any]
_HANDLERS: dict[str, _Handler] = {}


def _handles(*names: str) -> Callable[[_Handler], _Handler]:
    def register(handler: _Handler) -> _Handler:
        _HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


def _weights(at: _Lowering, weight: Any, bias: Any) -> dict[str, Array] | None:
    if not isinstance(weight, Tensor) or not (bias is None or isinstance(bias, Tensor)):
        return None
    tensors = {"weight": at.array(weight)}
    if bias is not None:
        tensors["bias"] = at.array(bias)
    return tensors


def _output_shape(at: _Lowering) -> tuple[int, ...]:
    """Of the first output, as a map of one row where it is computed as one."""
    found = at.node.meta["val"]
    shape = tuple((found[0] if isinstance(found, tuple | list) else found).shape)
    return _one_row(shape) if at.in_a_row else shape


@_handles("conv2d", "convolution", "conv_transpose2d")
def _convolution(at: _Lowering, a: _Arguments) -> _Wire | None:
    if not isinstance(a["input"], _Stream) or not is_map(at.shape(a["input"])):
        return None
    tensors = _weights(at, a["weight"], a["bias"])
    if tensors is None:
        return None
    stride, dilation = _pair(a["stride"]), _pair(a["dilation"])
    transposed = bool(a.get("transposed", "output_padding" in a))
    if isinstance(a["padding"], str):
        kernel = tensors["weight"].shape[2:]
        total = [dilation[k] * (kernel[k] - 1) if a["padding"] == "same" else 0 for k in (0, 1)]
        padding = [total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2]
    else:
        rows, columns = _pair(a["padding"])
        padding = [rows, rows, columns, columns]
    attributes = {"stride": stride, "padding": padding, "dilation": dilation, "groups": int(a["groups"])}
    if transposed:
        attributes["output_padding"] = _pair(a["output_padding"])
    kind = "conv_transpose2d" if transposed else "conv2d"
    return at.emit(kind, [at.value(a["input"])], _output_shape(at), attributes, tensors)


def _one_row(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-1], 1, shape[-1])


@_handles("linear")
def _linear(at: _Lowering, a: _Arguments) -> _Stream | None:
    tensors = _weights(at, a["weight"], a["bias"])
    if (
        tensors is None
        or not isinstance(a["input"], _Stream)
        or len(at.shape(a["input"])) < 2
        or a["weight"].dim() != 2
    ):
        return None
    return _product(at, a["input"], tensors)


def _product(at: _Lowering, x: _Stream, tensors: dict[str, Array]) -> _Stream:
    """The last axis times a weight (O, F); of (1, H, W, F), which is a map to a plan, by a convolution of pixels."""
    shape = _output_shape(at)
    if not is_map(shape):
        return at.emit("linear", [at.value(x)], shape, {}, tensors)
    wire = _by_pixel(at, _Moved(x.value, at.numbers(x).movedim(-1, 1)), tensors)
    return _Moved(wire.value, at.numbers(wire).movedim(1, -1))


def _by_pixel(at: _Lowering, x: _Stream, tensors: dict[str, Array], groups: int = 1) -> _Wire:
    """A convolution of single pixels of a map, with a weight (O, C / groups)."""
    weight = tensors["weight"]
    attributes = {"stride": [1, 1], "padding": [0] * 4, "dilation": [1, 1], "groups": groups}
    tensors = {**tensors, "weight": weight[:, :, None, None]}
    return at.emit("conv2d", [at.value(x)], (1, len(weight), *at.shape(x)[2:]), attributes, tensors)


@_handles("addmm")
def _addmm(at: _Lowering, a: _Arguments) -> _Wire | None:
    weight, bias = a["mat2"], a["self"]
    if (
        not isinstance(weight, Tensor)
        or not isinstance(bias, Tensor)
        or bias.dim() != 1
        or (a["alpha"], a["beta"]) != (1, 1)
    ):
        return None
    return at.emit(
        "linear", [at.value(a["mat1"])], _output_shape(at), {}, {"weight": _array(weight.T), "bias": _array(bias)}
    )


@_handles("mm", "matmul")
def _matmul(at: _Lowering, a: _Arguments) -> _Stream | None:
    x, weight = list(a.values())[:2]
    if not isinstance(x, _Stream) or not isinstance(weight, Tensor) or weight.dim() != 2 or len(at.shape(x)) < 2:
        return None
    return _product(at, x, {"weight": _array(weight.T)})


@_handles("batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm", "cudnn_batch_norm")
def _batch_norm(at: _Lowering, a: _Arguments) -> Any:
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


@_handles("layer_norm")
def _layer_norm(at: _Lowering, a: _Arguments) -> _Stream | None:
    x, vectors = a["input"], {"scale": a["weight"], "shift": a["bias"]}
    shape = at.shape(x)
    if is_map(shape) and len(a["normalized_shape"]) == 3 and not any(isinstance(v, _Stream) for v in vectors.values()):
        scale, shift = (v if v is None else at.constant(v[None], shape) for v in vectors.values())
        made = _grouped_norm(at, x, 1, None, None, a["eps"])
        return made if made is None or (scale is None and shift is None) else at.affine(made, scale, shift)
    if (
        len(a["normalized_shape"]) > 1
        or len(shape) < 2
        or a["eps"] < LEAST_STEP
        or any(isinstance(v, _Stream) for v in vectors.values())
    ):
        return None
    tensors = {role: at.array(v) for role, v in vectors.items() if v is not None}
    attributes = {"eps": float(a["eps"])}
    if not is_map(shape):
        return at.emit("layer_norm", [at.value(x)], shape, attributes, tensors)
    # The channels of a map are its second axis.
    value = at.value(_Moved(x.value, at.numbers(x).movedim(-1, 1)))
    wire = at.emit("layer_norm", [value], at.draft.shapes[value], attributes, tensors)
    return _Moved(wire.value, at.numbers(wire).movedim(1, -1))


@_handles("softmax", "_softmax")
def _softmax(at: _Lowering, a: _Arguments) -> _Stream | None:
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
    value = at.value(_Moved(x.value, made_of))
    wire = at.emit("softmax", [value], at.draft.shapes[value])
    return _Moved(wire.value, at.numbers(wire).reshape(index.shape).movedim(to, axis))


@_handles("scaled_dot_product_attention")
def _attention(at: _Lowering, a: _Arguments) -> _Stream | None:
    """Heads stand on the channels, windows on the places."""
    streams = [a[key] for key in ("query", "key", "value")]
    if not all(isinstance(x, _Stream) for x in streams) or a["dropout_p"] or a["enable_gqa"]:
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
    if isinstance(mask, _Stream):
        return None
    if mask is not None:
        bias = torch.where(mask, 0.0, -math.inf) if mask.dtype == torch.bool else mask.detach().float()
        bias = bias.reshape(*(1,) * (4 - bias.dim()), *bias.shape)
        bias = bias.expand(*bias.shape[:3], keys)
        never = bias == -math.inf
        if (bias.isinf() & ~never).any() or bias.isnan().any() or never.all(3).any():
            return None
        tensors["bias"] = _array(bias.masked_fill(never, _NEVER))

    def rows(x: _Stream) -> int:
        parts = at.numbers(x).reshape(windows, heads, *at.shape(x)[-2:]).transpose(1, 2)
        return at.value(_Moved(x.value, parts.reshape(1, parts.shape[1] * windows, -1)))

    inputs = [rows(x) for x in streams]
    wire = at.emit("attention", inputs, (1, windows * queries, heads * width), attributes, tensors)
    back = at.numbers(wire).reshape(windows, queries, heads, width).transpose(1, 2)
    return _Moved(wire.value, back.reshape(*outer, queries, width))


def _grouped_norm(at: _Lowering, x: Any, groups: int, scale: Any, shift: Any, eps: float) -> _Stream | None:
    """Over each of the groups of a map's channels, all of its places."""
    vectors = {role: v for role, v in (("scale", scale), ("shift", shift)) if v is not None}
    if not isinstance(x, _Stream) or any(not isinstance(v, Tensor) for v in vectors.values()) or eps < LEAST_STEP:
        return None
    shape = at.shape(x)
    if len(shape) == 3 and shape[0] == 1:
        row = _grouped_norm(at, _reshaped(at, x, _one_row(shape)), groups, scale, shift, eps)
        return None if row is None else _reshaped(at, row, shape)
    if not is_map(shape):
        return None
    attributes = {"groups": int(groups), "eps": float(eps)}
    tensors = {role: at.array(v) for role, v in vectors.items()}
    return at.emit("group_norm", [at.value(x)], shape, attributes, tensors)


@_handles("group_norm", "native_group_norm")
def _group_norm(at: _Lowering, a: _Arguments) -> Any:
    groups = a["num_groups"] if "num_groups" in a else a["group"]
    made = _grouped_norm(at, a["input"], groups, a["weight"], a["bias"], a["eps"])
    several = isinstance(at.node.meta["val"], tuple | list)
    return [made] if several and made is not None else made


@_handles("instance_norm")
def _instance_norm(at: _Lowering, a: _Arguments) -> Any:
    if not a["use_input_stats"]:
        return _batch_norm(at, a)
    return _grouped_norm(at, a["input"], at.shape(a["input"])[1], a["weight"], a["bias"], a["eps"])


def _sum(at: _Lowering, x: Any, y: Any, first: float, second: float) -> _Stream | None:
    """first x + second y, where either may be a constant."""
    if isinstance(x, _Stream) and isinstance(y, _Stream):
        pair = {"coefficients": [float(first), float(second)]}
        return at.together(
            x, y, lambda x, y, shape: at.emit("add", [at.broadcast(x, shape), at.broadcast(y, shape)], shape, pair)
        )
    if not isinstance(x, _Stream):
        x, y, first, second = y, x, second, first
    if at.shape(x) != _output_shape(at):
        x = _Wire(at.broadcast(x, _output_shape(at)))
    shift = at.constant(y, at.shape(x))
    if shift is None:
        return None
    scale = None if first == 1 else np.asarray([first], np.float32)
    return at.affine(x, scale, (shift * np.float32(second)).astype(np.float32))


@_handles("add")
def _add(at: _Lowering, a: _Arguments) -> _Stream | None:
    return _sum(at, a["self"], a["other"], 1, a.get("alpha", 1))


@_handles("sub")
def _sub(at: _Lowering, a: _Arguments) -> _Stream | None:
    return _sum(at, a["self"], a["other"], 1, -a.get("alpha", 1))


@_handles("rsub")
def _rsub(at: _Lowering, a: _Arguments) -> _Stream | None:
    return _sum(at, a["self"], a["other"], -a.get("alpha", 1), 1)


@_handles("neg")
def _neg(at: _Lowering, a: _Arguments) -> _Stream | None:
    return at.affine(a["self"], np.asarray([-1], np.float32), None)


@_handles("mul")
def _mul(at: _Lowering, a: _Arguments) -> _Stream | None:
    x, y, shape = a["self"], a["other"], _output_shape(at)
    if isinstance(x, _Stream) and isinstance(y, _Stream):
        return at.together(x, y, partial(_product_of, at))
    if not isinstance(x, _Stream):
        x, y = y, x
    if at.shape(x) != shape:
        x = _Wire(at.broadcast(x, shape))
    scale = at.constant(y, shape)
    return None if scale is None else at.affine(x, scale, None)


def _product_of(at: _Lowering, x: _Stream, y: _Stream, shape: tuple[int, ...]) -> _Wire:
    """x y, of which one may be a gate: a number for each channel."""
    gate = (1, shape[1], 1, 1) if is_map(shape) else shape
    if at.shape(x) == gate and at.shape(y) == shape:
        x, y = y, x
    second = at.value(y) if at.shape(x) == shape and at.shape(y) == gate else at.broadcast(y, shape)
    return at.emit("mul", [at.broadcast(x, shape), second], shape)


@_handles("pow", "square")
def _power(at: _Lowering, a: _Arguments) -> _Stream | None:
    x = a["self"]
    if a.get("exponent", 2) != 2 or not isinstance(x, _Stream):
        return None
    return at.together(x, x, partial(_product_of, at))


@_handles("glu")
def _glu(at: _Lowering, a: _Arguments) -> _Stream:
    x, gate = (_Moved(a["self"].value, half) for half in at.numbers(a["self"]).chunk(2, a["dim"]))
    return at.together(x, _activation(at, gate, {"kind": "sigmoid"}), partial(_product_of, at))


@_handles("div")
def _div(at: _Lowering, a: _Arguments) -> _Stream | None:
    x, y = a["self"], a["other"]
    if not isinstance(x, _Stream) or isinstance(y, _Stream) or a.get("rounding_mode") is not None:
        return None
    if at.shape(x) != _output_shape(at):
        x = _Wire(at.broadcast(x, _output_shape(at)))
    scale = at.constant(y, at.shape(x))
    if scale is None or (scale == 0).any():
        return None
    return at.affine(x, (1 / scale.astype(np.float64)).astype(np.float32), None)


def _activation(at: _Lowering, x: Any, activation: Mapping[str, Any]) -> _Stream:
    return at.elementwise("identity", x, activation=activation)


for _plain in ("relu", "hardswish", "hardsigmoid", "silu", "mish", "sigmoid", "tanh"):
    _HANDLERS[_plain] = lambda at, a, kind=_plain: _activation(at, a["self"], {"kind": kind})  # type: ignore[misc]


@_handles("gelu")
def _gelu(at: _Lowering, a: _Arguments) -> _Stream:
    return _activation(at, a["self"], {"kind": "gelu", "approximate": a["approximate"]})


@_handles("elu", "selu", "celu")
def _elu(at: _Lowering, a: _Arguments) -> _Stream | None:
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


@_handles("leaky_relu")
def _leaky_relu(at: _Lowering, a: _Arguments) -> _Stream:
    return _activation(at, a["self"], {"kind": "leaky_relu", "slope": float(a["negative_slope"])})


@_handles("abs")
def _abs(at: _Lowering, a: _Arguments) -> _Stream:
    return _activation(at, a["self"], {"kind": "leaky_relu", "slope": -1.0})


@_handles("prelu")
def _prelu(at: _Lowering, a: _Arguments) -> _Stream | None:
    x = a["self"]
    if not isinstance(x, _Stream) or not isinstance(a["weight"], Tensor):
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


@_handles("relu6")
def _relu6(at: _Lowering, a: _Arguments) -> _Stream:
    return _activation(at, a["self"], {"kind": "clamp", "min": 0.0, "max": 6.0})


@_handles("clamp", "hardtanh", "clamp_min", "clamp_max")
def _clamp(at: _Lowering, a: _Arguments) -> _Stream | None:
    bounds = {}
    for key in ("min", "max"):
        x = a.get(key, a.get(f"{key}_val"))
        if not (x is None or isinstance(x, int | float)):
            return None
        bounds[key] = None if x is None or math.isinf(x) else float(x)
    if bounds["min"] is None and bounds["max"] is None:
        return None
    return _activation(at, a["self"], {"kind": "clamp", **bounds})


def _quantiser(at: _Lowering, a: _Arguments) -> _Wire:
    """The mark that stands for a codec with learned steps."""
    value = at.value(a["x"])
    shape = at.draft.shapes[value]
    step = at.constant(a["step"], shape)
    if step is None:
        at.fail(f"steps {tuple(a['step'].shape)} do not fit a value {shape}")
    bounded = a["low"] < a["high"]
    codec = DraftCodec(a["kind"], step, a["low"] if bounded else None, a["high"] if bounded else None)
    return at.emit("identity", [value], shape, codec=codec)


@_handles("cat", "concat", "concatenate")
def _cat(at: _Lowering, a: _Arguments) -> _Stream | None:
    parts, shape = list(a["tensors"]), _output_shape(at)
    axis = int(a["dim"]) % len(shape)
    if axis < 1:
        return None
    if not all(isinstance(x, _Stream) for x in parts):
        return _cat_with_constants(at, parts, shape, axis)
    return _joined(at, parts, shape, axis)


def _joined(at: _Lowering, parts: list[_Stream], shape: tuple[int, ...], axis: int) -> _Stream:
    if len(parts) == 1:
        return parts[0]
    form = at.common_form(parts)
    if form is None or form == GROUPS:
        return at.emit("cat", [at.value(x) for x in parts], shape, {"axis": axis})
    there = [_Moved(x.value, form.there(at.numbers(x), at.shape(x))) for x in parts]
    out = tuple(form.there(torch.empty(shape), shape).shape)
    wire = at.emit("cat", [at.value(x) for x in there], out, {"axis": form.axes[axis]})
    return _Moved(wire.value, form.back(at.numbers(wire), shape))


def _cat_with_constants(at: _Lowering, parts: list[Any], shape: tuple[int, ...], axis: int) -> _Stream | None:
    """Streams with zeros where constants stand, to which these are added."""
    streams = [x for x in parts if isinstance(x, _Stream)]
    constants = [torch.zeros(at.shape(x)) if isinstance(x, _Stream) else x for x in parts]
    if shape[0] != 1 or any(x.dtype != torch.float32 for x in constants):
        return None
    shift = at.constant(torch.cat(constants, axis), shape)
    if shift is None:
        return None
    extent = sum(at.shape(x)[axis] for x in streams)
    joined = _joined(at, streams, (*shape[:axis], extent, *shape[axis + 1 :]), axis)
    pieces = iter(at.numbers(joined).split([at.shape(x)[axis] for x in streams], axis))
    index = [next(pieces) if isinstance(x, _Stream) else torch.full_like(x, -1, dtype=torch.float64) for x in parts]
    return at.affine(_Moved(joined.value, torch.cat(index, axis)), None, shift)


@_handles("stack")
def _stack(at: _Lowering, a: _Arguments) -> _Moved | None:
    """Joined along axis 1, which leaves maps what they are, and then in order."""
    parts, axis = list(a["tensors"]), int(a["dim"]) % len(_output_shape(at))
    if not all(isinstance(x, _Stream) for x in parts):
        return None
    if len(parts) == 1:
        return _Moved(parts[0].value, at.numbers(parts[0]).unsqueeze(axis))
    shape, form = at.shape(parts[0]), at.common_form(parts)
    if form is not None:
        parts = [_Moved(x.value, form.there(at.numbers(x), shape)) for x in parts]
    elif len(shape) < 2 or shape[0] != 1:
        parts = [_reshaped(at, x, (1, prod(shape[:1]), *shape[1:])) for x in parts]
    _, channels, *places = at.shape(parts[0])
    wire = at.emit("cat", [at.value(x) for x in parts], (1, len(parts) * channels, *places), {"axis": 1})
    pieces = at.numbers(wire).chunk(len(parts), 1)
    order = [piece.reshape(shape) if form is None else form.back(piece, shape) for piece in pieces]
    return _Moved(wire.value, torch.stack(order, axis))


@_handles("copy")
def _copy(at: _Lowering, a: _Arguments) -> Any:
    x = a["src"]
    if at.node.meta["val"].dtype != torch.float32:
        return None
    return _Wire(at.broadcast(x, _output_shape(at))) if isinstance(x, _Stream) else x.float().expand(_output_shape(at))


@_handles("slice_scatter", "select_scatter")
def _scatter(at: _Lowering, a: _Arguments) -> _Stream | None:
    """A part of x replaced: what stands in front of it, the new part, and what stands behind it."""
    shape = _output_shape(at)
    axis = int(a["dim"]) % len(shape)
    new, extent = a["src"], shape[axis]
    if "index" in a:
        start, end, step = a["index"] % extent, a["index"] % extent + 1, 1
        new = _Moved(new.value, at.numbers(new).unsqueeze(axis)) if isinstance(new, _Stream) else new.unsqueeze(axis)
    else:
        start, end, step = slice(a["start"], a["end"], a["step"]).indices(extent)
    if step != 1:
        return None
    if end - start == extent and isinstance(new, _Stream):
        return _Wire(at.value(new))

    def part(low: int, high: int) -> Any:
        x = a["self"]
        if isinstance(x, _Stream):
            return _Moved(x.value, at.numbers(x).narrow(axis, low, high - low))
        return x.narrow(axis, low, high - low)

    parts = [part(0, start), new, part(end, extent)]
    parts = [x for x in parts if (at.shape(x) if isinstance(x, _Stream) else x.shape)[axis]]
    made: _Stream | None = _cat(at, {"tensors": parts, "dim": axis})
    return made


@_handles("index")
def _index(at: _Lowering, a: _Arguments) -> Any:
    return None if any(isinstance(x, _Stream) for x in a["indices"]) else at.move(a)


def _reshaped(at: _Lowering, x: _Stream, shape: tuple[int, ...]) -> _Moved:
    return _Moved(x.value, at.numbers(x).reshape(shape))


@_handles("pad", "constant_pad_nd")
def _pad(at: _Lowering, a: _Arguments) -> Any:
    mode = a.get("mode", "constant")
    if mode != "constant":
        return at.move(a)
    pads = [int(n) for n in a["pad"]]
    x, shape = a["self"], at.shape(a["self"])
    value = 0.0 if a["value"] is None else float(a["value"])
    left, right, top, bottom, *further = (*pads, 0, 0, 0, 0)[: max(len(pads), 4)]
    if value == -math.inf and all(str(user.target).startswith("aten.max_pool2d") for user in at.node.users):
        value = _NEVER  # is no maximum
    if not math.isfinite(value):
        return None
    if is_map(shape) and not any(further) and min(pads) >= 0:
        attributes = {"padding": [top, bottom, left, right], "value": value}
        return at.emit("pad", [at.value(x)], _output_shape(at), attributes) if any(pads) else x
    if value != 0:
        return None
    # Zeros in other places, or a crop: a move, in which -1 is the number of a zero.
    return _Moved(x.value, torch.constant_pad_nd(at.numbers(x), pads, -1))


def _pool(at: _Lowering, x: _Stream, rows: Array, columns: Array, divisor: Array) -> _Wire:
    value = at.value(x)
    shape = (1, at.draft.shapes[value][1], len(rows), len(columns))
    tensors = {"rows": rows, "columns": columns, "divisor": divisor.astype(np.float32)}
    return at.emit("avg_pool2d", [value], shape, {}, tensors)


@_handles("avg_pool2d")
def _avg_pool2d(at: _Lowering, a: _Arguments) -> _Wire | None:
    shape = at.shape(a["self"])
    if not is_map(shape):
        return None
    kernel, padding = _pair(a["kernel_size"]), _pair(a["padding"])
    stride = _pair(a["stride"]) if a["stride"] else kernel
    axes = [pool_windows(shape[2 + k], kernel[k], stride[k], padding[k], 1, a["ceil_mode"]) for k in (0, 1)]
    (rows, row_places), (columns, column_places) = axes
    if a.get("divisor_override"):
        divisor = np.full((len(rows), len(columns)), a["divisor_override"])
    elif a["count_include_pad"]:
        divisor = row_places[:, None] * column_places
    else:
        divisor = (rows[:, 1] - rows[:, 0])[:, None] * (columns[:, 1] - columns[:, 0])
    return _pool(at, a["self"], rows, columns, divisor)


@_handles("adaptive_avg_pool2d", "_adaptive_avg_pool2d")
def _adaptive_avg_pool2d(at: _Lowering, a: _Arguments) -> _Wire | None:
    shape = at.shape(a["self"])
    if not is_map(shape):
        return None
    rows, columns = (adaptive_windows(shape[2 + k], _output_shape(at)[2 + k]) for k in (0, 1))
    return _pool(at, a["self"], rows, columns, (rows[:, 1] - rows[:, 0])[:, None] * (columns[:, 1] - columns[:, 0]))


@_handles("mean", "sum")
def _mean(at: _Lowering, a: _Arguments) -> Any:
    x = a["self"]
    shape = at.shape(x)
    axes = a.get("dim")
    axes = {int(k) % len(shape) for k in (axes if axes else range(len(shape)))}
    if a.get("dtype") not in (None, torch.float32):
        return None
    mean, index = "mean" in str(at.node.target), at.numbers(x)
    if shape and shape[0] != 1:
        index, axes = index[None], {k + 1 for k in axes}
    form = form_of(index, at.draft.shapes[x.value]) if isinstance(x, _Moved) else None
    if form is None and isinstance(x, _Moved) and index.dim() > 3 and axes == {index.dim() - 1}:
        index, axes = index.reshape(1, -1, index.shape[-1]), {2}
    shape = tuple(index.shape)
    axes = {k for k in axes if shape[k] > 1}
    if not axes:
        return _reshaped(at, x, _output_shape(at))
    form = form or {2: MAP, 3: TOKENS, 4: MAP}.get(len(shape), GROUPS)
    groups, places = form.split(shape, axes)
    summed: _Stream = _Moved(x.value, form.there(index, shape))
    if places:
        summed = _sum_of_places(at, summed, places, mean)
    if groups.shape[1] > 1:
        summed = _sum_of_channels(at, summed, groups, mean)
    kept = tuple(1 if k in axes else n for k, n in enumerate(shape))
    return _Moved(summed.value, form.back(at.numbers(summed), kept).reshape(_output_shape(at)))


def _sum_of_places(at: _Lowering, x: _Stream, axes: set[int], mean: bool) -> _Wire:
    """Over rows, columns or both of a map."""
    extents = at.shape(x)[2:]
    rows, columns = (
        np.asarray([[0, n]] if k in axes else [[i, i + 1] for i in range(n)], np.int32)
        for k, n in zip((2, 3), extents, strict=True)
    )
    area = prod(n for k, n in zip((2, 3), extents, strict=True) if k in axes)
    return _pool(at, x, rows, columns, np.full((len(rows), len(columns)), area if mean else 1))


_FEW = 8
"""Terms that are added one by one: a convolution has weights, in front of which codecs stand."""


def _sum_of_channels(at: _Lowering, x: _Stream, groups: Tensor, mean: bool) -> _Stream:
    """Over each group of the channels of a map, (groups, channels of each)."""
    count, size = groups.shape
    numbers, entry = at.numbers(x), 1 / size if mean else 1.0
    if prod(numbers.shape[2:]) == 1:
        row = _Moved(x.value, numbers[:, groups.ravel()].reshape(1, count, size, 1))
        return _sum_of_places(at, row, {2}, mean)
    if count > 1 and size <= _FEW:
        terms = [at.value(_Moved(x.value, numbers[:, channels])) for channels in groups.T]
        total = terms[0]
        for k, term in enumerate(terms[1:]):
            pair = {"coefficients": [1.0 if k else entry, entry]}
            total = at.emit("add", [total, term], at.draft.shapes[total], pair).value
        return _Wire(total)
    tensors = {"weight": np.full((count, size), entry, np.float32)}
    return _by_pixel(at, _Moved(x.value, numbers[:, groups.ravel()]), tensors, groups=count)


@_handles("max_pool2d", "max_pool2d_with_indices")
def _max_pool2d(at: _Lowering, a: _Arguments) -> Any:
    shape = at.shape(a["self"])
    several = isinstance(at.node.meta["val"], tuple | list)
    if not is_map(shape) or (several and _uses_indices(at.node)):
        return None
    kernel, padding, dilation = _pair(a["kernel_size"]), _pair(a["padding"]), _pair(a["dilation"])
    stride = _pair(a["stride"]) if a["stride"] else kernel
    rows, columns = (
        pool_windows(shape[2 + k], kernel[k], stride[k], padding[k], dilation[k], a["ceil_mode"])[0] for k in (0, 1)
    )
    value = at.value(a["self"])
    out = (1, shape[1], len(rows), len(columns))
    wire = at.emit("max_pool2d", [value], out, {"dilation": dilation}, {"rows": rows, "columns": columns})
    return [wire, None] if several else wire


@_handles("adaptive_max_pool2d")
def _adaptive_max_pool2d(at: _Lowering, a: _Arguments) -> Any:
    shape = at.shape(a["self"])
    if not is_map(shape) or _uses_indices(at.node):
        return None
    out = _output_shape(at)
    rows, columns = (adaptive_windows(shape[2 + k], out[2 + k]) for k in (0, 1))
    wire = at.emit("max_pool2d", [at.value(a["self"])], out, {"dilation": [1, 1]}, {"rows": rows, "columns": columns})
    return [wire, None]


@_handles("amax")
def _amax(at: _Lowering, a: _Arguments) -> _Stream | None:
    """Over rows, columns or both of a map."""
    x = a["self"]
    shape = at.shape(x)
    axes = {int(k) % len(shape) for k in a["dim"]}
    if not is_map(shape) or not axes or axes - {2, 3}:
        return None
    tables = {
        role: np.asarray([[0, n]] if k in axes else [[i, i + 1] for i in range(n)], np.int32)
        for role, k, n in (("rows", 2, shape[2]), ("columns", 3, shape[3]))
    }
    out = (*shape[:2], *(len(table) for table in tables.values()))
    wire = at.emit("max_pool2d", [at.value(x)], out, {"dilation": [1, 1]}, tables)
    return _reshaped(at, wire, _output_shape(at))


def _uses_indices(node: fx.Node) -> bool:
    """Whether anything reads the second output of a max pooling, the places of the maxima."""
    return any(user.args[1] != 0 and user.users for user in node.users if user.target is operator.getitem)


def _resized(name: str, size: list[int], corners: list[bool], scale: float | None, x: Tensor) -> Tensor:
    """Resize the third axis of x with PyTorch's own operation."""
    resized: Tensor = getattr(torch.ops.aten, name).default(x, size, *corners, scale, None)
    return resized


@_handles("upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_bilinear2d", "upsample_bicubic2d")
def _resize(at: _Lowering, a: _Arguments) -> _Wire | None:
    x = next(iter(a.values()))
    shape = at.shape(x)
    if not is_map(shape):
        return None
    out = _output_shape(at)
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


def _in_a_row(at: _Lowering, a: _Arguments, handler: _Handler) -> Any:
    """An operation of one dimension, as the one of two on a map of one row."""
    name, x = next(iter(a.items()))
    if not isinstance(x, _Stream) or len(at.shape(x)) != 3 or at.shape(x)[0] != 1:
        return None
    row = {**a, name: _reshaped(at, x, _one_row(at.shape(x)))}
    for key in _IN_A_ROW.keys() & a.keys():
        if a[key] and not isinstance(a[key], str):
            row[key] = [_IN_A_ROW[key], _pair(a[key])[1]]
    if isinstance(a.get("weight"), Tensor):
        row["weight"] = a["weight"].unsqueeze(2)
    if a.get("scale_factors"):
        row["scale_factors"] = [1.0, *a["scale_factors"]]
    row["scales_w"] = a.get("scales")
    at.in_a_row = True
    made = handler(at, row)
    at.in_a_row = False
    if isinstance(made, list):
        return [_reshaped(at, made[0], _output_shape(at)), *made[1:]]
    return None if made is None else _reshaped(at, made, _output_shape(at))


for _kind, _as_in_two in {
    **dict.fromkeys(("conv1d", "conv_transpose1d"), _convolution),
    "avg_pool1d": _avg_pool2d,
    "adaptive_avg_pool1d": _adaptive_avg_pool2d,
    **dict.fromkeys(("max_pool1d", "max_pool1d_with_indices"), _max_pool2d),
    "adaptive_max_pool1d": _adaptive_max_pool2d,
    **dict.fromkeys(("upsample_nearest1d", "_upsample_nearest_exact1d", "upsample_linear1d"), _resize),
}.items():
    _HANDLERS[_kind] = partial(_in_a_row, handler=_as_in_two)


@_handles("to", "_to_copy", "type_as")
def _convert(at: _Lowering, a: _Arguments) -> Any:
    return a["self"] if at.node.meta["val"].dtype == torch.float32 else None


def lower(program: ExportedProgram, name: str, strict: bool = False) -> Draft:
    """Translate an exported program.

    Args:
        program: functional, as `export` gives it; one frame (1, C, H, W) float32 goes in.
        name: of the network.
        strict: raise where an operation would become a dense island.

    Raises:
        CompileError: naming the operation and its source line.
    """
    draft = Draft(name)
    products_of_sums(program)
    join_norms(program)
    join_attention(program)
    _Lowering(program, draft, strict).run()
    draft.remove_dead()
    affine_into_norms(draft)
    return draft
