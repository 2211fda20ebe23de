"""From a float32 plan to one of int8: codes of one byte between the operations, weights of one byte.

    value = step * (code - zero)      step = (high - low) / 255, zero = rint(-low / step); low = 0 behind a ReLU
    weight = weight_step[o] * w       weight_step[o] = max |weight[o]| / 127

[low, high] are percentiles of the value over a short clip, with 0 between them; of an input of camera bytes what these
can become. Values that moves (pooling by maximum, concatenation, channel shuffles) join or hand on share one step and
one zero, so that codes move as they are. An `exact` codec of one step whose codes fit a byte keeps its step. A
`hold` threshold becomes a number of codes, rint(threshold / step), one of `pixel` a sum of C squares of codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsetime.convert.steps import samples
from sparsetime.engine.check import CODES, LARGEST_STEP, LEAST_STEP
from sparsetime.engine.ops import WEIGHTED, Coding, Op
from sparsetime.engine.plan import Plan
from sparsetime.engine.shapes import channel_axis, shaped_to_weight

__all__ = ["quantised_plan", "quantised_weights"]

Array = NDArray[Any]

PERCENTILE = 99.99
_SAMPLES = 1 << 18


def quantised_weights(weight: Array, kind: str, groups: int) -> tuple[Array, Array]:
    """Weights of int8 and the step of each output channel."""
    # (outputs, all else), of transposed convolutions too: (C, O / g, kh, kw)
    if kind == "conv_transpose2d":
        grouped = weight.reshape(groups, -1, *weight.shape[1:])
        largest = np.abs(grouped).max(axis=(1, 3, 4)).reshape(-1)
    else:
        largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    step = np.where(largest > 0, np.maximum(largest / np.float32(127), LEAST_STEP), 1).astype(np.float32)
    full = shaped_to_weight(step, weight.shape, int(kind == "conv_transpose2d"), groups)
    return np.clip(np.rint(weight / full), -127, 127).astype(np.int8), step


class _Classes:
    """Values that must be coded alike: the number of one of them stands for all."""

    def __init__(self) -> None:
        self._leader: dict[int, int] = {}

    def find(self, value: int) -> int:
        while self._leader.get(value, value) != value:
            value = self._leader[value]
        return value

    def join(self, a: int, b: int) -> None:
        self._leader[self.find(a)] = self.find(b)


def _weighted(plan: Plan) -> Iterator[tuple[int, Op]]:
    """What operations with weights read, and all that moves hand on to it: each value and what makes it."""
    made = {value: op for op in plan.ops for value in op.outputs}
    # What is added to the sums, too: it has as many elements as they.
    left = [value for op in plan.ops if op.kind in WEIGHTED for value in op.inputs]
    seen: set[int] = set()
    while left:
        value = left.pop()
        if value not in seen:
            seen.add(value)
            yield value, made[value]
            left.extend(made[value].inputs if made[value].passes_codes else ())


def _with_carriers(plan: Plan) -> Plan:
    """The same plan with an identity of its own behind every output of an island that weights are applied to."""
    wanted = {value for value, op in _weighted(plan) if op.kind == "island"}
    wanted |= {op.output for op in plan.islands if op.codec is not None}
    if not wanted:
        return plan
    values, ops = list(plan.values), []
    renamed: dict[int, int] = {}
    tensors = dict(plan.tensors)
    tensors["carried"] = np.zeros(1, np.float32)
    for op in plan.ops:
        codec = op.codec
        if op.kind != "island":
            op = replace(op, inputs=tuple(renamed.get(x, x) for x in op.inputs))
        else:
            op = replace(op, codec=None)
        ops.append(op)
        for k, value in enumerate(op.outputs):
            if value in wanted:
                renamed[value] = len(values)
                values.append(plan.values[value])
                entry = codec if codec is not None and k == 0 else {"kind": "hold", "tensor": "carried"}
                ops.append(Op("identity", f"{op.name}.code.{k}", (value,), (renamed[value],), codec=entry))
    if all(op.codec is None or op.codec["tensor"] != "carried" for op in ops):
        del tensors["carried"]
    return replace(plan, values=tuple(values), ops=tuple(ops), tensors=tensors)


def _sources(plan: Plan, classes: _Classes) -> set[int]:
    """Values that need a codec of their own: what operations with weights read, looked for behind moves, and all that
    have one now."""
    found = {op.output for op in plan.ops if op.codec is not None}
    for value, op in _weighted(plan):
        if not op.passes_codes:
            found.add(value)
            continue
        for x in op.inputs:
            classes.join(x, value)
    return found


def _extents(plan: Plan, numbers: Iterable[int], frames: Iterable[Array], percentile: float) -> dict[int, list[float]]:
    """[low, high] of values by number: percentiles over the frames, each taken as the first of its stream."""
    if not 50 < percentile <= 100:
        raise ValueError(f"expected a percentile in (50, 100], got {percentile}")
    collected = samples(plan, numbers, frames, _SAMPLES)
    if not all(collected.values()):
        raise ValueError("int8 needs frames to find the ranges of values on, and there was none")
    found = {}
    for number, values in collected.items():
        low, high = np.percentile(np.concatenate(values), [100 - percentile, percentile])
        found[number] = [min(float(low), 0.0), max(float(high), 0.0)]
    return found


def _input_extent(plan: Plan) -> list[float] | None:
    """What the bytes of a camera can become."""
    if plan.input is None:
        return None
    pairs = list(zip(plan.input.mean, plan.input.std, strict=True))
    ends = [(byte - mean) / std for mean, std in pairs for byte in (0.0, 255.0)]
    return [min(*ends, 0.0), max(*ends, 0.0)]


def _coding(low: float, high: float, steps: set[float | None], widest: float) -> Coding:
    """How a class of values is coded.

    Args:
        low: smallest value, at most 0.
        high: largest, at least 0.
        steps: of the `exact` codecs of the class; None stands for anything else.
        widest: largest magnitude of any class. A class that was zero on all frames is coded from minus to plus this:
            what it will be is unknown, and codes that end too early would cut it off.
    """
    (step,) = steps if len(steps) == 1 else (None,)
    if low == high:
        low, high = -widest, widest
    if step is None or (high - low) / step > CODES:
        step = float(np.clip(np.float32((high - low) / CODES), LEAST_STEP, LARGEST_STEP))
    return Coding(step, int(np.clip(np.rint(-low / step), 0, CODES)))


def _threshold(plan: Plan, op: Op, step: float) -> Array:
    """The threshold of a codec as a number of codes; of `pixel`, of the sum of their squares."""
    if op.codec is None or op.codec["kind"] == "exact":
        return np.zeros(1, np.int32)
    tensor = plan.tensors[op.codec["tensor"]]
    shape = plan.values[op.output]
    if op.codec["kind"] == "pixel":  # one for all channels
        limit = shape[channel_axis(shape)] * float(np.square(tensor.astype(np.float64)).mean()) / step**2
        return np.asarray([min(int(limit), 2**31 - 1)], np.int32)
    if tensor.ndim > 1:  # per neuron: the mean of a channel
        axes = (1, 2) if len(shape) == 4 else tuple(range(tensor.ndim - 1))
        tensor = tensor.mean(axis=axes)
    return np.clip(np.rint(tensor / np.float32(step)), 0, CODES).astype(np.int32)


def quantised_plan(plan: Plan, frames: Iterable[Array], percentile: float = PERCENTILE) -> Plan:
    """The same network with weights and codes of one byte.

    Args:
        plan: of precision float32, with codecs `exact`, `hold` or `pixel`, or none.
        frames: as a stream of the plan takes them; at least one.
        percentile: of the values, that codes reach up to.

    Raises:
        ValueError: no frames, or another codec.
        PlanError: a layer whose sums could overflow.
    """
    others = {op.codec["kind"] for op in plan.ops if op.codec is not None} - {"exact", "hold", "pixel"}
    if others:
        raise ValueError(f"int8 plans know the codecs exact, hold and pixel, this one has {', '.join(sorted(others))}")
    plan = _with_carriers(plan)
    classes = _Classes()
    sources = _sources(plan, classes)
    found = _extents(plan, sources, frames, percentile)
    of_input = _input_extent(plan)
    if of_input is not None and plan.ops[0].output in found:
        found[plan.ops[0].output] = of_input
    made = {op.output: op for op in plan.ops}
    members: dict[int, list[int]] = {}
    for value in sources:
        members.setdefault(classes.find(value), []).append(value)
    codings: dict[int, Coding] = {}
    widest = max((max(-low, high) for low, high in found.values()), default=0.0) or 1.0
    for values in members.values():
        low, high = min(found[v][0] for v in values), max(found[v][1] for v in values)
        coding = _coding(low, high, {_exact_step(plan, made[v]) for v in values}, widest)
        codings.update(dict.fromkeys(values, coding))
    tensors: dict[str, Array] = {}
    ops = tuple(_quantised(plan, number, op, codings, tensors) for number, op in enumerate(plan.ops))
    return replace(plan, ops=ops, tensors=tensors, precision="int8")


def _exact_step(plan: Plan, op: Op) -> float | None:
    """The one step of an `exact` codec."""
    if op.codec is None or op.codec["kind"] != "exact":
        return None
    step = plan.tensors[op.codec["tensor"]]
    return float(step[0]) if step.shape == (1,) else None


def _quantised(plan: Plan, number: int, op: Op, codings: Mapping[int, Coding], tensors: dict[str, Array]) -> Op:
    """One operation of the int8 plan; its tensors are added to `tensors`."""
    roles = dict(op.tensors)
    if op.kind in WEIGHTED:
        name = op.tensors["weight"]
        if f"{name}.step" not in tensors:  # layers may share weights
            weight, step = quantised_weights(plan.need(op, "weight"), op.kind, op.attributes.get("groups", 1))
            tensors[name], tensors[f"{name}.step"] = weight, step
        roles["weight_step"] = f"{name}.step"
    for role, name in op.tensors.items():
        if role != "weight" or op.kind not in WEIGHTED:
            tensors[name] = plan.tensors[name]
    codec = None
    if op.output in codings:
        coding = codings[op.output]
        codec = {
            "kind": "code",
            "tensor": f"{number}.code",
            "zero": coding.zero,
            "threshold": f"{number}.threshold",
        }
        tensors[f"{number}.code"] = np.asarray([coding.step], np.float32)
        if op.codec is not None and op.codec["kind"] == "pixel":
            codec["pixel"] = True
        tensors[f"{number}.threshold"] = _threshold(plan, op, coding.step)
    return replace(op, tensors=roles, codec=codec, crossover=None, precision="int8")
