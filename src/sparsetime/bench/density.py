"""A network in which every layer sends a stated share, so that a stream through it runs at a stated density.

Thresholds are found by iteration. All codecs are `hold` or `pixel` with one threshold; the clip is run, the share that
each codec sends is counted, and its threshold moved:

    threshold' = threshold * (share / wanted)^p      p = 0.3, less from round to round

until all agree. What changes where is decided by the clip and the network alone. Clips are those of
`patterns.there_and_back`, over which densities do not depend on what was before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsetime.engine import OpStats, Plan, Stream
from sparsetime.engine.shapes import channel_axis

__all__ = ["op_density", "run_clip", "with_density", "with_thresholds"]

Array = NDArray[Any]

_GOLDEN = (5**0.5 - 1) / 2  # its multiples fall evenly between 0 and 1
_ROUGH = 8  # rounds until the shares are about right
_POWER = 0.3  # at a share of 5 % of a normal distribution d log share / d log threshold is about -4


def with_thresholds(plan: Plan, thresholds: Mapping[str, float]) -> Plan:
    """The same plan with other thresholds, by the names of operations.

    Thresholds of int8 plans are whole codes; one of 1.3 is 1 for seven channels of ten and 2 for three. By `pixel` they
    are the root of the mean square over the channels.
    """
    tensors = dict(plan.tensors)
    for op in plan.ops:
        if op.name not in thresholds:
            continue
        assert op.codec is not None
        if plan.precision == "float32":
            tensors[op.codec["tensor"]] = np.asarray([thresholds[op.name]], np.float32)
            continue
        shape = plan.values[op.output]
        channels = shape[channel_axis(shape)]
        if op.codec.get("pixel"):
            squares = min(thresholds[op.name], 255.0) ** 2 * channels
            tensors[op.codec["threshold"]] = np.asarray([round(squares)], np.int32)
        else:
            spread = np.arange(channels) * _GOLDEN % 1
            tensors[op.codec["threshold"]] = np.minimum(np.floor(thresholds[op.name] + spread), 255).astype(np.int32)
    return replace(plan, tensors=tensors)


def run_clip(stream: Stream, frames: Sequence[Array]) -> list[dict[str, OpStats]]:
    """Run a clip; what every operation did in every frame."""
    found = []
    for frame in frames:
        stream(frame)
        found.append(stream.stats)
    return found


def _shares(plan: Plan, clip: Sequence[Mapping[str, OpStats]]) -> dict[int, float]:
    """Mean share of the elements of each value that was sent, by number of the value."""
    return {
        op.output: float(np.mean([stats[op.name].events for stats in clip])) / prod(plan.values[op.output])
        for op in plan.ops
    }


def op_density(plan: Plan, clip: Sequence[Mapping[str, OpStats]]) -> float:
    """Share of multiply-accumulates that the events cause, by true fan-out, whatever paths the layers took."""
    return float(np.mean([sum(s.effective_macs for s in stats.values()) for stats in clip])) / plan.dense_macs


def with_density(plan: Plan, frames: Sequence[Array], wanted: float, *, rounds: int = 40) -> Plan:
    """Thresholds by which every codec sends the same share and operations have the wanted density.

    Both are within a few percent of each other: inputs that are joined from several values, or are a part of one, may
    hold another share than the codecs sent. Where less changes even without a threshold, the threshold goes towards 0
    and the share stays below. All codecs of the plan must be `hold` or `pixel`. Deep networks do not always settle:
    then the round with the nearest density is what is returned.

    Args:
        plan: from `sparsetime.compile`, see above.
        frames: the clip that is then timed, over and over.
        wanted: density of operations; 1 and more gives thresholds of 0.
        rounds: runs of the clip, at most.
    """
    coded = {op.name: op for op in plan.ops if op.codec is not None}
    plan = with_thresholds(plan, dict.fromkeys(coded, 0.0))
    if wanted >= 1:
        return plan
    thresholds = _first_guess(plan.stream(), frames, wanted)
    aim, best, nearest = wanted, plan, float("inf")
    for r in range(rounds):
        plan = with_thresholds(plan, thresholds)
        stream = plan.stream()
        run_clip(stream, frames)  # in the first cycle references still find their places
        clip = run_clip(stream, frames)
        shares = _shares(plan, clip)
        found = {name: shares[op.output] / aim for name, op in coded.items()}
        reached = op_density(plan, clip) / wanted
        settled = all(0.85 < x < 1.15 or (x < 1 and thresholds[name] < 1e-6) for name, x in found.items())
        if r >= _ROUGH and abs(reached - 1) < nearest:
            best, nearest = plan, abs(reached - 1)
        if settled and abs(reached - 1) < 0.03:
            return plan
        power = _POWER / (1 + r / 10)  # what a layer sends moves those behind it: large steps would never settle
        for name in coded:
            thresholds[name] *= min(max(found[name], 1e-2) ** power, 3.0)
        if settled:
            aim /= reached
    return best


def _first_guess(stream: Stream, frames: Sequence[Array], wanted: float) -> dict[str, float]:
    """The change from frame to frame that the wanted share of a value exceeds, as long as nothing is held back."""
    states = []
    for frame in frames[:4]:
        stream(frame)
        states.append({name: array.astype(np.float32) for name, array in stream.snapshot().items()})
    guess = {}
    for number, op in enumerate(stream.plan.ops):
        if op.codec is not None:
            moved = [np.abs(b[f"{number}.value"] - a[f"{number}.value"]) for a, b in pairwise(states)]
            found = np.concatenate([m.ravel() for m in moved])
            guess[op.name] = float(np.quantile(found, 1 - wanted)) or 1e-3 * float(found.max()) or 1e-6
    return guess
