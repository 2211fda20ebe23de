"""Steps and thresholds for a plain network, from a short unlabelled clip.

    step = range / levels        range = percentile of |value| over the clip
    threshold = range / levels * (fan-out / mean fan-out)^FAN_OUT_POWER

A threshold may be coarser where an event costs more: fan-out is the number of multiply-accumulates that one event of a
value causes in the operations that read it, the mean is geometric over all codecs. If errors add up as squares of the
thresholds and events grow as threshold^-a, the cheapest choice for a given error has the power 1 / (2 + a). Measured
against power 0 at the same share of operations: MobileNetV2 on pedestrians_vtest.avi, at 11 %: relative distance
to dense 0.127 instead of 0.165 (0.14 with power 0.35); DeepLabV3 there, at 10 %: foreground IoU 0.947 instead of 0.938;
FastestDet on traffic_bridge.mp4: no difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsetime.engine.plan import Plan
from sparsetime.engine.reference import Reference

__all__ = ["DEFAULT_CODEC", "FAN_OUT_POWER", "LEVELS", "fan_out_factors", "ranges"]

DEFAULT_CODEC = "pixel"
"""Of plain networks on the command line: with `exact` a camera's noise flips codes; a third of the operations stay."""

LEVELS = {"exact": 64.0, "hold": 100.0, "pixel": 100.0, "residual": 64.0}
"""Into how many parts the range of a value is divided: steps for `exact` and `residual`, else thresholds."""

FAN_OUT_POWER = 0.2

_SAMPLES = 65536
_PASSED = ("reshape", "channels", "gather", "cat", "pad", "max_pool2d", "avg_pool2d", "resize2d", "add", "affine")


def _caused(plan: Plan) -> dict[int, float]:
    """Multiply-accumulates that the elements of each value cause in the operations that they reach, by number."""
    caused = dict.fromkeys(range(len(plan.values)), 0.0)
    for op in reversed(plan.ops):
        if plan.op_macs(op):
            caused[op.inputs[0]] += plan.op_macs(op)
        elif op.kind in _PASSED and op.activation is None:
            # Of what the result causes, each input has the share that it has in the elements.
            total = sum(prod(plan.values[x]) for x in op.inputs)
            for x in op.inputs:
                caused[x] += caused[op.output] * prod(plan.values[x]) / total
    return caused


def fan_out_factors(plan: Plan, numbers: Iterable[int]) -> dict[int, float]:
    """(fan-out / geometric mean of all)^FAN_OUT_POWER by number of the value; fan-out counts at least 1 per element."""
    caused = _caused(plan)
    found = {n: max(caused[n] / prod(plan.values[n]), 1.0) for n in numbers}
    mean = sum(math.log(x) for x in found.values()) / max(len(found), 1)
    return {n: math.exp(FAN_OUT_POWER * (math.log(x) - mean)) for n, x in found.items()}


def samples(
    plan: Plan, numbers: Iterable[int], frames: Iterable[NDArray[Any]], most: int
) -> dict[int, list[NDArray[Any]]]:
    """At most so many elements of each value in each frame, which is taken as the first of its stream; by number."""
    collected: dict[int, list[NDArray[Any]]] = {number: [] for number in numbers}
    reference = Reference(plan)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for frame in frames:
            reference.reset()
            reference.run(frame)
            for number, found in collected.items():
                value = reference.value(number).ravel()
                found.append(value if value.size <= most else rng.choice(value, most, replace=False))
    return collected


def ranges(plan: Plan, numbers: Iterable[int], frames: Iterable[NDArray[Any]], percentile: float) -> dict[int, float]:
    """The range of values: the percentile of |v| over the frames, by number of the value.

    Args:
        plan: the network without codecs.
        numbers: values to look at.
        frames: as `Reference.run` takes them, at least one.
        percentile: of the magnitudes, zeros included, in (0, 100].

    Raises:
        ValueError: no frame, or a percentile out of range.
    """
    if not 0 < percentile <= 100:
        raise ValueError(f"expected a percentile in (0, 100], got {percentile}")
    collected = samples(plan, numbers, frames, _SAMPLES)
    if not all(collected.values()):
        raise ValueError("steps are calibrated from frames, and there was none")
    return {number: float(np.percentile(np.abs(np.concatenate(s)), percentile)) for number, s in collected.items()}
