"""A plan in the making: the same operations as in `docs/plan.md`, but mutable, with tensors in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsetime.engine.ops import LINEAR, InputSpec, Op
from sparsetime.engine.plan import Plan

__all__ = ["CompileError", "Draft", "DraftCodec", "DraftOp"]

Array = NDArray[Any]
Shape = tuple[int, ...]


class CompileError(ValueError):
    """A module cannot become a plan; names the operation and where in the code it stands."""


@dataclass(eq=False)
class DraftCodec:
    """A codec whose steps may still be unknown (None)."""

    kind: str
    step: Array | None = None
    low: int | None = None
    high: int | None = None


@dataclass(eq=False)
class DraftOp:
    """One operation; `tensors` holds arrays by role, everything else is as in a plan."""

    kind: str
    name: str
    inputs: list[int]
    outputs: list[int]
    attributes: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Array] = field(default_factory=dict)
    activation: Mapping[str, Any] | None = None
    codec: DraftCodec | None = None
    source: str | None = None

    @property
    def output(self) -> int:
        return self.outputs[0]

    @property
    def bare(self) -> bool:
        """Whether nothing follows the operation itself, so that something may be joined to it."""
        return self.activation is None and self.codec is None

    @property
    def nonlinear(self) -> bool:
        """Whether the value is other than a linear function of the inputs."""
        return self.kind not in LINEAR or self.activation is not None


class Draft:
    """Operations in order, and the shapes of the values between them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.shapes: dict[int, Shape] = {}
        self.ops: list[DraftOp] = []
        self.outputs: list[int] = []
        self.structure: Any = None
        self._names: set[str] = set()

    def value(self, shape: Shape) -> int:
        """A new value."""
        number = len(self.shapes)
        self.shapes[number] = tuple(int(n) for n in shape)
        return number

    def add(self, op: DraftOp) -> int:
        """Append an operation, under a name of its own; returns its first value."""
        name, k = op.name, 1
        while op.name in self._names:
            k += 1
            op.name = f"{name}_{k}"
        self._names.add(op.name)
        self.ops.append(op)
        return op.output

    def producer(self, value: int) -> DraftOp:
        """The operation that makes a value."""
        return next(op for op in self.ops if value in op.outputs)

    def consumers(self, value: int) -> list[DraftOp]:
        """The operations that read a value, each once."""
        return [op for op in self.ops if value in op.inputs]

    def only_consumer(self, value: int) -> DraftOp | None:
        """The one operation that reads a value, if there is exactly one and the value is not an output."""
        found = self.consumers(value)
        return found[0] if len(found) == 1 and value not in self.outputs else None

    def bypass(self, op: DraftOp, value: int) -> None:
        """Remove an operation; whoever read its value reads `value` instead."""
        self.ops.remove(op)
        for other in self.ops:
            other.inputs = [value if x == op.output else x for x in other.inputs]
            if other.kind == "island":
                _change_arguments(other.attributes, lambda x: _renumbered(x, op.output, value))
                other.inputs = list(dict.fromkeys(other.inputs))
        self.outputs = [value if x == op.output else x for x in self.outputs]

    def remove_dead(self) -> None:
        """Drop operations that no output needs."""
        needed = set(self.outputs)
        kept = []
        for op in reversed(self.ops):
            if op.kind == "input" or needed.intersection(op.outputs):
                needed.update(op.inputs)
                kept.append(op)
        self.ops = kept[::-1]

    def plan(self, input_spec: InputSpec | None, producer: str) -> Plan:
        """The finished plan: values numbered in order, tensors named `<op>.<role>`, equal ones shared.

        Codecs without steps are left out, which gives the plain network.
        """
        numbers: dict[int, int] = {}
        tensors: dict[str, Array] = {}
        seen: dict[tuple[int, str], str] = {}

        def store(name: str, array: Array) -> str:
            # Modules used twice share their arrays; so does the plan.
            key = (id(array), str(array.shape))
            if key not in seen:
                seen[key] = name
                tensors[name] = np.asarray(array, order="C")  # of no dimensions too, other than ascontiguousarray
            return seen[key]

        ops = []
        for number, op in enumerate(self.ops):
            inputs = tuple(numbers[x] for x in op.inputs)
            for value in op.outputs:
                numbers[value] = len(numbers)
            attributes = dict(op.attributes)
            roles = {role: store(f"{number}.{role}", array) for role, array in op.tensors.items()}
            if op.kind == "island":
                _change_arguments(attributes, lambda x, roles=roles: _stored(x, numbers, roles))  # type: ignore[misc]
                roles = {name: name for name in roles.values()}
            codec: dict[str, Any] | None = None
            if op.codec is not None and op.codec.step is not None:
                codec = {"kind": op.codec.kind, "tensor": store(f"{number}.{op.codec.kind}", op.codec.step)}
                if op.codec.low is not None:
                    codec |= {"low": op.codec.low, "high": op.codec.high}
            outputs = tuple(numbers[x] for x in op.outputs)
            ops.append(Op(op.kind, op.name, inputs, outputs, attributes, roles, op.activation, codec, op.source))
        shapes = {numbers[value]: self.shapes[value] for value in numbers}
        return Plan(
            name=self.name,
            values=tuple(shapes[k] for k in range(len(shapes))),
            ops=tuple(ops),
            outputs=tuple(numbers[x] for x in self.outputs),
            structure=self.structure,
            tensors=tensors,
            input=input_spec,
            producer=producer,
        )


def _change_arguments(attributes: dict[str, Any], change: Callable[[Any], Any]) -> None:
    """Replace each argument of an island; names of keywords, `value` among them, are no part of any."""
    attributes["arguments"] = [change(x) for x in attributes["arguments"]]
    attributes["keywords"] = {name: change(x) for name, x in attributes["keywords"].items()}


def _renumbered(x: Any, old: int, new: int) -> Any:
    """Arguments of an island with one value replaced by another."""
    if isinstance(x, list):
        return [_renumbered(item, old, new) for item in x]
    if isinstance(x, dict):
        if x == {"value": old}:
            return {"value": new}
        return {key: _renumbered(item, old, new) for key, item in x.items()}
    return x


def _stored(x: Any, numbers: Mapping[int, int], roles: Mapping[str, str]) -> Any:
    """Arguments of an island as they stand in the file: final numbers of values, names of tensors."""
    if isinstance(x, list):
        return [_stored(item, numbers, roles) for item in x]
    if isinstance(x, dict):
        if set(x) == {"value"}:
            return {"value": numbers[x["value"]]}
        if set(x) == {"tensor"}:
            return {"tensor": roles[x["tensor"]]}
        return {key: _stored(item, numbers, roles) for key, item in x.items()}
    return x
