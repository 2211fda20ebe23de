"""Settings: how much coarser or finer each codec of a plan is than the plan says.

    step of codec l = step in the plan * GRID^(k_l)        k_l an integer; None takes the codec away

Whole numbers on a fixed grid: a setting is a key under which what was measured of it can be kept.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from sparsetime.budget.errors import BudgetError
from sparsetime.engine.ops import LINEAR, Op
from sparsetime.engine.plan import Plan
from sparsetime.engine.sums import kept_sums

__all__ = [
    "GRID",
    "OCTAVE",
    "POWER",
    "Setting",
    "apply",
    "codecs",
    "codecs_to_drop",
    "freed_bytes",
    "least_state_bytes",
]

Setting = tuple[int | None, ...]
"""k of each codec, in the order of the plan's operations."""

OCTAVE = 4

POWER = 0.7
"""a: time and events fall with a threshold to this power, between what MobileNetV2, DeepLabV3 and FastestDet show."""

GRID = 2 ** (1 / OCTAVE)


def codecs(plan: Plan) -> list[int]:
    """Numbers of the operations that have a codec."""
    return [number for number, op in enumerate(plan.ops) if op.codec is not None]


def apply(plan: Plan, setting: Setting) -> Plan:
    """The plan with its steps and thresholds as a setting says.

    Args:
        plan: with one codec for each entry of the setting.
        setting: see above.
    """
    ops = list(plan.ops)
    tensors = dict(plan.tensors)
    for number, k in zip(codecs(plan), setting, strict=True):
        op = ops[number]
        assert op.codec is not None
        if k is None:
            ops[number] = dataclasses.replace(op, codec=None)
        elif k:
            # A tensor of its own: two codecs may share one.
            name = f"{number}.tuned"
            tensors[name] = (plan.tensors[op.codec["tensor"]] * GRID**k).astype(np.float32)
            ops[number] = dataclasses.replace(op, codec={**op.codec, "tensor": name})
    return plan.with_ops(ops, tensors)


def freed_bytes(plan: Plan, op: Op) -> int:
    """Bytes of state that a stream saves if this operation has no codec.

    A linear operation with neither activation nor codec keeps one array, its value, where it would keep two
    (docs/plan.md, "State"). Behind an activation the accumulator stays, and nothing is saved; nor is it where no
    accumulator is kept. A value of `pixel` may then change by less than whole pixels, so that convolutions behind it
    keep accumulators that they had no need of: that counts against it, and where it is more, 0 is saved.
    """
    if op.codec is None or op.kind not in LINEAR or op.activation is not None:
        return 0
    return max(plan.state_bytes - _without(plan, [plan.ops.index(op)]).state_bytes, 0)


def least_state_bytes(plan: Plan) -> int:
    """Bytes of the state of a stream with every codec gone that gives bytes back by itself."""
    return _without(plan, [number for number in codecs(plan) if freed_bytes(plan, plan.ops[number])]).state_bytes


def _without(plan: Plan, numbers: Iterable[int]) -> Plan:
    """The plan with some of its codecs taken away."""
    ops = list(plan.ops)
    for number in numbers:
        ops[number] = dataclasses.replace(ops[number], codec=None)
    return plan.with_ops(ops)


def codecs_to_drop(plan: Plan, limit: int, cost: dict[int, float]) -> list[int]:
    """Which operations to take the codec from so that a stream's state fits into `limit` bytes.

    Those that cost the least time for the bytes they free, as long as bytes are wanting.

    Args:
        plan: see above.
        limit: bytes.
        cost: time that it adds to have no codec there, by number of the operation.

    Raises:
        BudgetError: the limit is below what the values and the accumulators behind activations take.
    """
    if plan.state_bytes <= limit:
        return []
    least = least_state_bytes(plan)
    if least > limit:
        sums = kept_sums(plan)
        stays = {op.name: _kept_bytes(plan, op, number in sums) / 2**20 for number, op in enumerate(plan.ops)}
        largest = ", ".join(f"{name} {stays[name]:.1f} MiB" for name in sorted(stays, key=lambda n: -stays[n])[:3])
        raise BudgetError(
            f"--max-state {limit / 2**20:.1f}MiB cannot be met: a stream of this plan has "
            f"{plan.state_bytes / 2**20:.1f} MiB of state, and {least / 2**20:.1f} MiB without the codecs that can go. "
            f"A plan keeps every value, and the sums in front of activations ({largest}): give at least "
            f"{math.ceil(least / 2**20 * 10) / 10:.1f}MiB, or compile the network for smaller frames"
        )
    dropped: list[int] = []
    free = {number: freed_bytes(plan, plan.ops[number]) for number in codecs(plan)}
    for number in sorted((n for n in free if free[n]), key=lambda n: cost.get(n, 0.0) / free[n]):
        if _without(plan, dropped).state_bytes <= limit:
            break
        dropped.append(number)
    # What was taken early may have become needless by something larger taken later.
    for number in sorted(dropped, key=lambda n: cost.get(n, 0.0), reverse=True):
        rest = [other for other in dropped if other != number]
        if _without(plan, rest).state_bytes <= limit:
            dropped = rest
    return sorted(dropped)


def _kept_bytes(plan: Plan, op: Op, has_sum: bool) -> int:
    """Bytes of an operation that stay whatever becomes of its codec."""
    values = sum(math.prod(plan.values[value]) for value in op.outputs)
    return 4 * values * (2 if has_sum and op.activation is not None else 1)
