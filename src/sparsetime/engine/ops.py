"""What a plan is made of: operations and their kinds, how bytes stand for numbers, and the error they raise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["LINEAR", "MOVES", "PRECISIONS", "WEIGHTED", "Coding", "InputSpec", "Op", "PlanError"]

WEIGHTED = frozenset(["conv2d", "conv_transpose2d", "linear"])
"""Kinds that have weights."""

LINEAR = WEIGHTED | {"affine", "add", "avg_pool2d", "resize2d", "cat", "channels", "gather", "reshape", "pad"}
"""Kinds that act on deltas directly."""

MOVES = frozenset(["cat", "channels", "gather", "reshape", "pad", "max_pool2d"])
"""Kinds that pass elements on as they are: bare ones keep codes that all their inputs share."""

PRECISIONS = ("float32", "int8")


class Coding(NamedTuple):
    """How bytes stand for numbers: value = step * (code - zero)."""

    step: float
    zero: int


class PlanError(ValueError):
    """A plan says something that cannot be: the message names the file, the operation and the entry."""


@dataclass(frozen=True)
class InputSpec:
    """How a uint8 frame becomes the network's input: x = (frame - mean) / std per channel, in this colour order."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    color: str = "rgb"


@dataclass(frozen=True)
class Op:
    """One operation: v = codec(activation(kind(inputs))). Kinds and their entries in docs/plan.md.

    Attributes:
        kind: what it computes, such as `conv2d`.
        name: its own in the plan, from the module's.
        inputs, outputs: numbers of the values that it reads and makes; islands alone make several.
        attributes: numbers of the kind, such as strides.
        tensors: by role (`weight`, `bias`, ...) the names of the plan's tensors.
        activation, codec: `kind` and entries of each; None for none.
        source: file and line of the module's code; None where it is not known.
        crossover: density of its input from which the dense path is taken; None leaves it to the backend.
        precision: that of its plan.
    """

    kind: str
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)
    activation: Mapping[str, Any] | None = None
    codec: Mapping[str, Any] | None = None
    source: str | None = None
    crossover: float | None = None
    precision: str = "float32"

    @property
    def output(self) -> int:
        """Number of the (first) value that this operation makes."""
        return self.outputs[0]

    @property
    def origin(self) -> str:
        """Its kind, and the line of the module's code where that is known; for messages."""
        return f"{self.kind}, {self.source}" if self.source else self.kind

    @property
    def has_accumulator(self) -> bool:
        """Whether a sum is kept besides the value: linear in float32, with an activation or a codec behind."""
        if self.precision != "float32":
            return False
        return self.kind in LINEAR and (self.activation is not None or self.codec is not None)

    @property
    def hands_on(self) -> bool:
        """Whether it moves elements and does nothing else with them: no sum of deltas, which would be rounded."""
        return self.kind in MOVES and self.activation is None and self.codec is None

    @property
    def passes_codes(self) -> bool:
        """Whether it hands on what it reads and nothing else, so that codes move as they are."""
        return self.hands_on and not self.attributes.get("value")

    @property
    def sends_changes(self) -> bool:
        """Whether the delta is a difference of values (True), or the linear operation of the inputs' deltas."""
        return self.kind not in LINEAR or self.hands_on or self.has_accumulator or self.precision != "float32"
