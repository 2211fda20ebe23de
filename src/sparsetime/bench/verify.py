"""Is what a stream did what its plan means? No figure is reported of a stream that this finds wrong.

Every operation is looked at by itself, from the values that the stream's own state holds at its inputs:

    accumulator = op(values of the inputs)            value = codec(activation(accumulator), value before)

So one value that lies on its threshold, and is sent in one correct computation and not in another, does not move
everything behind it. Values for which rounding decides may go either way; all others must agree. Islands, which PyTorch
itself computes, are passed over.

A stream of an int8 plan must equal its meaning to the bit: the reference goes on from the same state.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsetime.codec import LEAST_THRESHOLD
from sparsetime.engine import Op, Plan, Stream
from sparsetime.engine.ops import LINEAR
from sparsetime.engine.reference import Reference, activate, encode
from sparsetime.engine.shapes import channel_axis
from sparsetime.run.runtimes import DisagreementError, distance

__all__ = ["verify"]

Array = NDArray[Any]

LIMIT = 1e-4
_ROUNDING = 1e-4  # of the largest value: float32 sums in another order, and what they drift in some thousand frames


def verify(stream: Stream, frame: Array) -> float:
    """Run one more frame of a stream that has run some, and check all that it did.

    Args:
        stream: not at its start.
        frame: the next one, float32 in the shape of the plan's input.

    Returns:
        The largest relative distance of an accumulator or a value.

    Raises:
        DisagreementError: names the operation that is wrong.
    """
    plan = stream.plan
    if plan.precision != "float32":
        return _verify_bits(stream, frame)
    before = stream.snapshot()
    stream(frame)
    after = stream.snapshot()
    reference = Reference(plan)
    made = {entry.value: entry.name for entry in plan.state_entries() if entry.value is not None}
    worst = 0.0
    with torch.inference_mode():
        for number, op in enumerate(plan.ops):
            if op.kind == "island":
                continue
            x = [torch.from_numpy(after[made[v]].copy()) for v in op.inputs]
            if op.kind == "input":
                z = torch.from_numpy(frame)
            else:
                z = reference.linear(op, x, constants=True) if op.kind in LINEAR else reference.recomputed(op, x)
            found = _value(plan, op, z, before[f"{number}.value"], after[f"{number}.value"])
            if op.has_accumulator:
                found = max(found, distance([after[f"{number}.accumulator"]], [z.numpy()]))
            if not found < LIMIT:
                raise DisagreementError(
                    f"'{op.name}' of the plan '{plan.name}' is {found:.2g} away from its meaning: no time is reported"
                )
            worst = max(worst, found)
    return worst


def _verify_bits(stream: Stream, frame: Array) -> float:
    plan = stream.plan
    reference = plan.stream("reference")
    reference.restore(stream.snapshot())
    stream(frame)
    reference(frame)
    found, expected = stream.snapshot(), reference.snapshot()
    for number, op in enumerate(plan.ops):
        for name in found:
            if name.startswith(f"{number}.value") and not np.array_equal(found[name], expected[name]):
                raise DisagreementError(
                    f"'{op.name}' of the int8 plan '{plan.name}' is not what its meaning gives: no time is reported"
                )
    return 0.0


def _value(plan: Plan, op: Op, z: torch.Tensor, before: Array, after: Array) -> float:
    """Distance of a new value, places aside at which rounding decides whether it is sent."""
    y, old = activate(z, op.activation), torch.from_numpy(before.copy())
    threshold = plan.step(op)
    if threshold is None:
        return distance([after], [y.numpy()])
    step = torch.from_numpy(threshold.copy())
    little = _ROUNDING * max(float(y.abs().max()), 1e-30)
    if op.codec is not None and op.codec["kind"] == "pixel":
        inverse = step.clamp_min(LEAST_THRESHOLD).reciprocal()
        axis = channel_axis(tuple(y.shape))
        least, most = (
            ((y - old).abs() + e).clamp_min(0).mul(inverse).square().sum(axis, keepdim=True) for e in (-little, little)
        )
        channels = y.shape[axis]
        either = ((least <= channels) & (most >= channels) & ((y - old).abs() > 3 * little)).numpy()
    else:
        below, above = (encode(y + e, old, op.codec, step) for e in (-little, little))
        either = ((above - below).abs() > 3 * little).numpy()
    expected = encode(y, old, op.codec, step).numpy()
    return distance([np.where(either, 0, after)], [np.where(either, 0, expected)])
