"""Which sums the native executor keeps from frame to frame, and which it computes from values where they are touched.

A plan has an accumulator behind every linear operation with an activation or a codec (docs/plan.md, "State"). Of a
convolution of few terms, of a depthwise one, and of one that reads single pixels which change as a whole, a touched
sum costs no more from all values of its inputs than from their deltas, so the native executor keeps none
(`Node::cheap` in native/program.cpp, which this mirrors). A snapshot has them all the same.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from sparsetime.engine.ops import WEIGHTED, Op

if TYPE_CHECKING:
    from sparsetime.engine.plan import Plan

__all__ = ["FEW_TERMS", "kept_sums"]

FEW_TERMS = 36
"""Products of one sum that are few."""

NARROW = 4
"""Channels of a map that are few."""


def kept_sums(plan: Plan) -> frozenset[int]:
    """Numbers of the operations whose accumulators are kept."""
    whole: set[int] = set()  # values that change by whole pixels, mostly
    kept = []
    for number, op in enumerate(plan.ops):
        if op.has_accumulator and not _computed(plan, op, whole):
            kept.append(number)
        passed = bool(op.inputs) and whole.issuperset(op.inputs)
        if passed if op.codec is None else op.codec["kind"] == "pixel":
            whole.add(op.outputs[0])
    return frozenset(kept)


def _computed(plan: Plan, op: Op, whole: set[int]) -> bool:
    if op.kind not in WEIGHTED:
        return False
    shape = plan.need(op, "weight").shape
    if op.kind == "linear":
        taps, channels = 1, shape[1]
    else:
        taps = prod(shape[2:])
        channels = shape[1] if op.kind == "conv2d" else shape[0] // op.attributes["groups"]
    few = taps * channels <= FEW_TERMS or _depthwise(plan, op)
    return few or (taps == 1 and op.inputs[0] in whole)


def _depthwise(plan: Plan, op: Op) -> bool:
    if op.kind == "linear":
        return False
    before, after = plan.values[op.inputs[0]][1], plan.values[op.output][1]
    return before == after == op.attributes["groups"] and before > NARROW
