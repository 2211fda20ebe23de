"""Where codecs go in a network that brings none of its own."""

from __future__ import annotations

from typing import Literal, get_args

from sparsetime.convert.draft import Draft, DraftCodec, DraftOp
from sparsetime.engine.check import MOST_CHANNELS
from sparsetime.engine.ops import MOVES, WEIGHTED
from sparsetime.engine.shapes import channel_axis

__all__ = ["Placement", "place"]

Placement = Literal["nonlinear", "every"]


def _lead_to_weights(draft: Draft) -> set[int]:
    """The values that some path leads from to an operation with weights."""
    leading: set[int] = set()
    for op in reversed(draft.ops):
        if op.kind in WEIGHTED or leading.intersection(op.outputs):
            leading.update(op.inputs)
    return leading


def _is_computed_with(draft: Draft, value: int, leading: set[int]) -> bool:
    """Whether a linear operation or a product, and not only another activation, reads a value on the way to weights."""
    for reader in draft.consumers(value):
        if reader.kind not in WEIGHTED and not leading.intersection(reader.outputs):
            continue
        if reader.kind in MOVES and reader.activation is None:
            if _is_computed_with(draft, reader.output, leading):
                return True
        elif reader.kind not in ("identity", "island"):
            return True
    return False


def _sources(draft: Draft, value: int) -> list[DraftOp]:
    """The operations whose elements reach a value unchanged."""
    op = draft.producer(value)
    if op.kind not in MOVES or not op.bare:
        return [op]
    return [source for x in op.inputs for source in _sources(draft, x)]


def place(draft: Draft, kind: str, placement: Placement = "nonlinear") -> list[DraftOp]:
    """Put codecs, their steps still unknown, into a folded draft.

    `nonlinear`: behind the input, every activation and every product that a linear operation or a product reads, if an
    operation with weights comes later (what only decodes the outputs stays exact). `every`: besides, behind whatever
    else feeds an operation with weights, so that sums and linear bottlenecks are encoded too: more state, fewer events.

    Returns:
        the operations that got one, in order.

    Raises:
        ValueError: an unknown placement.
    """
    if placement not in get_args(Placement):
        raise ValueError(f"placement must be one of {', '.join(get_args(Placement))}, got {placement!r}")
    leading = _lead_to_weights(draft)
    chosen = [
        op
        for op in draft.ops
        if op.nonlinear and op.kind not in ("island", "max_pool2d") and _is_computed_with(draft, op.output, leading)
    ]
    if placement == "every":
        for op in draft.ops:
            if op.kind in WEIGHTED:
                chosen.extend(_sources(draft, op.inputs[0]))
    kept = [op for op in draft.ops if op in chosen and op.codec is None and op.kind != "island"]
    for op in kept:
        shape = draft.shapes[op.output]
        # So many channels, or none, are no pixel.
        many = shape[channel_axis(shape)] > MOST_CHANNELS if shape else True
        op.codec = DraftCodec("hold" if kind == "pixel" and many else kind)
    return kept
