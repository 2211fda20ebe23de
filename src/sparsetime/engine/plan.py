"""The plan: a network as a flat list of operations with weights, steps and shapes. Meanings in `docs/plan.md`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsetime.engine.check import check_plan
from sparsetime.engine.ops import WEIGHTED, Coding, InputSpec, Op
from sparsetime.engine.shapes import Shape, channel_axis
from sparsetime.fanout import LinearOp, dense_macs

if TYPE_CHECKING:
    from sparsetime.engine.stream import Stream

__all__ = ["Plan", "StateEntry"]

Array = NDArray[Any]


class StateEntry(NamedTuple):
    """An array of a stream's state.

    name: outside. op: number of the operation. value: number of the value, None for an accumulator.
    """

    name: str
    op: int
    value: int | None
    shape: Shape
    dtype: str


@dataclass(frozen=True, repr=False)
class Plan:
    """A compiled network. Immutable; any number of streams and threads may share it. More in docs/plan.md.

    Attributes:
        name: of the network.
        values: shape of every value, by number.
        ops: operations, each after those that it reads; the first is the input.
        outputs: numbers of the values that the network returns.
        structure: how they nest in what the module returned.
        tensors: weights, steps and tables by name, read-only.
        input: how a uint8 frame is normalised; None where the network does not say.
        producer: what compiled it.
        precision: `float32` or `int8`.
        codings: how the values that are kept as codes are coded, by number; found by the check.

    Raises:
        PlanError: at construction, when anything does not fit together.
    """

    name: str
    values: tuple[Shape, ...]
    ops: tuple[Op, ...]
    outputs: tuple[int, ...]
    structure: Any
    tensors: Mapping[str, Array]
    input: InputSpec | None = None
    producer: str = ""
    precision: str = "float32"
    codings: Mapping[int, Coding] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "codings", check_plan(self))
        # Views, so that the caller's own arrays stay writeable.
        object.__setattr__(self, "tensors", {name: tensor.view() for name, tensor in self.tensors.items()})
        for tensor in self.tensors.values():
            tensor.flags.writeable = False

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.input_shape))
        islands = f" ({len(self.islands)} islands)" if self.islands else ""
        return (
            f"<Plan '{self.name}' of {shape}, {self.precision}: {len(self.ops)} operations{islands}, "
            f"weights {self.weight_bytes / 1e6:.1f} MB>"
        )

    @property
    def input_shape(self) -> Shape:
        """Shape of a frame, (1, C, H, W)."""
        return self.values[self.ops[0].output]

    @property
    def islands(self) -> list[Op]:
        """Operations that PyTorch computes densely."""
        return [op for op in self.ops if op.kind == "island"]

    @cached_property
    def dense_macs(self) -> int:
        """Multiply-accumulates of one dense frame, true fan-out."""
        return sum(self.op_macs(op) for op in self.ops)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors, shared by the streams."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def state_bytes(self) -> int:
        """Bytes of the state of one stream: every value, and every accumulator that the backend `cpu` keeps, see
        `sparsetime.engine.sums`. What a stream takes besides (`Stream.memory_bytes`) depends on the backend.
        """
        from sparsetime.engine.sums import kept_sums

        kept = kept_sums(self)
        return sum(
            int(np.prod(entry.shape)) * np.dtype(entry.dtype).itemsize
            for entry in self.state_entries()
            if entry.value is not None or entry.op in kept
        )

    def state_entries(self) -> Iterator[StateEntry]:
        """The arrays of a stream's state, in the order of the operations: docs/plan.md, "State on the outside"."""
        for number, op in enumerate(self.ops):
            for k, value in enumerate(op.outputs):
                name = f"{number}.value" if len(op.outputs) == 1 else f"{number}.value.{k}"
                yield StateEntry(name, number, value, self.values[value], self.value_type(op, k))
            if op.has_accumulator:
                yield StateEntry(f"{number}.accumulator", number, None, self.values[op.output], "float32")

    def value_type(self, op: Op, k: int = 0) -> str:
        """Data type of the k-th value that `op` makes: float32, uint8 for codes, or what an island says."""
        if op.outputs[k] in self.codings:
            return "uint8"
        return str(op.attributes["types"][k]) if op.kind == "island" else "float32"

    def tensor(self, op: Op, role: str) -> Array | None:
        """The tensor that plays a role (`weight`, `bias`, ...) in an operation, or None."""
        name = op.tensors.get(role)
        return None if name is None else self.tensors[name]

    def need(self, op: Op, role: str) -> Array:
        """The tensor that plays a role that the kind of `op` cannot do without."""
        return self.tensors[op.tensors[role]]

    def step(self, op: Op) -> Array | None:
        """Steps or thresholds of the operation's codec, shaped to broadcast against its value, or None."""
        if op.codec is None:
            return None
        return self.expand(self.tensors[op.codec["tensor"]], self.values[op.output])

    @staticmethod
    def expand(tensor: Array, shape: Shape) -> Array:
        """A `[1]`, `[C]` or per-element tensor, shaped to broadcast against a value of `shape`."""
        if tensor.shape == (1,):
            return tensor.reshape((1,) * len(shape))
        if tensor.ndim == 1 and len(shape) > 1:
            axis = channel_axis(shape)
            return tensor.reshape([-1 if k == axis else 1 for k in range(len(shape))])
        return tensor.reshape(shape)

    def op_macs(self, op: Op) -> int:
        """Multiply-accumulates of one operation on a dense frame."""
        linear = self.linear_op(op)
        if linear is None:
            return 0
        shape = self.values[op.inputs[0]]
        return dense_macs(linear, shape if linear.kind == "linear" else shape[1:])

    def macs_per_event(self) -> Array:
        """Multiply-accumulates that an event of each operation causes in those that read it, on average: (L,)."""
        places = {value: place for place, op in enumerate(self.ops) for value in op.outputs}
        sizes = [sum(int(np.prod(self.values[value])) for value in op.outputs) for op in self.ops]
        found = np.zeros(len(self.ops))
        for op in self.ops:
            if macs := self.op_macs(op):
                maker = places[op.inputs[0]]
                found[maker] += macs / sizes[maker]
        return found

    def linear_op(self, op: Op) -> LinearOp | None:
        """An operation with weights as `sparsetime.fanout` counts it; None for all others."""
        if op.kind not in WEIGHTED:
            return None
        weight, a = tuple(self.need(op, "weight").shape), op.attributes
        if op.kind == "linear":
            return LinearOp("linear", weight)
        return LinearOp(
            op.kind.removesuffix("2d"),
            weight,
            tuple(a["stride"]),
            (a["padding"][0], a["padding"][2]),
            tuple(a["dilation"]),
            self.values[op.output][2:],
            a["groups"],
        )

    def flat(self) -> Plan:
        """The plan with its outputs as a list, in order, whatever the network packs them into.

        Always the same one, whose streams share its packed weights.
        """
        return self if self.structure == self._listed else self._flat

    def with_ops(self, ops: Sequence[Op], tensors: Mapping[str, Array] | None = None) -> Plan:
        """The plan with other operations, and of its tensors, or of those given, the ones that these use."""
        used = {name for op in ops for name in op.tensors.values()}
        codecs = [op.codec for op in ops if op.codec is not None]
        used |= {codec[key] for codec in codecs for key in ("tensor", "threshold") if key in codec}
        tensors = self.tensors if tensors is None else tensors
        kept = {name: array for name, array in tensors.items() if name in used}
        return replace(self, ops=tuple(ops), tensors=kept)

    @property
    def _listed(self) -> list[dict[str, int]]:
        return [{"output": k} for k in range(len(self.outputs))]

    @cached_property
    def _flat(self) -> Plan:
        return replace(self, structure=self._listed)

    def stream(self, backend: str = "cpu", threads: int = 1, refresh: int = 0, flush: float = 0.0) -> Stream:
        """A stream of frames through this plan; see `Stream`."""
        from sparsetime.engine.stream import Stream

        return Stream(self, backend=backend, threads=threads, refresh=refresh, flush=flush)

    def save(self, path: str | Path) -> None:
        """Write the plan to one file, whole or not at all."""
        from sparsetime.engine.planfile import save

        save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan from a file; runs no code.

        Raises:
            PlanError: the file is no plan, or something in it does not fit; says what.
        """
        from sparsetime.engine.planfile import load

        return load(Path(path))

    def describe(self) -> str:
        """A table of the operations, one a line."""
        rows = []
        for number, op in enumerate(self.ops):
            stages = [op.kind]
            if op.activation is not None:
                stages.append(op.activation["kind"])
            if op.codec is not None:
                stages.append(op.codec["kind"])
            shape = "x".join(map(str, self.values[op.output]))
            rows.append(f"{number:4d}  {op.name:40s} {' + '.join(stages):32s} {shape:18s} {self.op_macs(op):>14,d}")
        return "\n".join(rows)
