"""Where the dense path of an operation becomes the cheaper one, measured on this machine.

Both ways to compute a convolution's touched outputs cost about

    dense     t_d          from all values of their inputs, whatever the density
    elements  a + b rho    event by event, rho being the share of the inputs that changed

so two timings of the second and one of the first give the density where they meet: rho* = (t_d - a) / b. It is kept in
the plan as the hint `crossover` (docs/plan.md), by which the native executor takes its path frame by frame.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from sparsetime import _native
from sparsetime.engine.ops import Op
from sparsetime.engine.plan import Plan
from sparsetime.engine.sums import kept_sums

__all__ = ["measured"]

LOW, HIGH = 0.04, 0.16
"""Densities of the two timings: below and about where layers cross."""


def measured(plan: Plan, rounds: int = 5) -> Plan:
    """The plan with a `crossover` for every convolution that has a choice.

    Args:
        plan: any plan.
        rounds: timings of each path, of which the median counts.
    """
    found: dict[object, float | None] = {}
    ops = []
    kept = kept_sums(plan)
    for number, op in enumerate(plan.ops):
        # Where no sum is kept there is no choice: it is computed from values where it is touched.
        if op.kind != "conv2d" or number not in kept:
            ops.append(op)
            continue
        a = op.attributes
        shape = (
            plan.values[op.inputs[0]],
            plan.need(op, "weight").shape,
            *(tuple(a[k]) for k in ("stride", "padding", "dilation")),
        )
        if shape not in found:  # networks repeat their blocks
            found[shape] = _crossover(plan, op, rounds)
        ops.append(replace(op, crossover=found[shape]))
    return replace(plan, ops=tuple(ops))


def _crossover(plan: Plan, op: Op, rounds: int) -> float | None:
    """The density at which both paths cost the same, or None where there is no path event by event."""
    shape = plan.values[op.inputs[0]]
    rng = np.random.default_rng(0)
    a = op.attributes
    weight = plan.need(op, "weight")
    size = (shape[2], shape[3])
    base = rng.random((*size, shape[1]), dtype=np.float32)

    def layer_with(**codec: Any) -> _native.Layer:
        layer = _native.Layer(
            size,
            weight,
            plan.tensor(op, "bias"),
            stride=tuple(a["stride"]),
            padding=tuple(a["padding"]),
            dilation=tuple(a["dilation"]),
            groups=a["groups"],
            activation="clamp",
            b=float("inf"),
            **codec,
        )
        layer.set_input(base)
        layer.run("dense")
        return layer

    # A threshold at which some outputs change, as in a network whose layers send a share of what they get.
    plain = layer_with(codec="change")
    if not plain.has_elements:
        return None
    largest = float(np.abs(plain.value()).max())
    layer = layer_with(codec="hold", step=np.full(weight.shape[0], 0.05 * largest + 1e-6, np.float32))

    def cost(path: str, density: float) -> float:
        change = base * (rng.random(base.shape, dtype=np.float32) < density)
        times = []
        for k in range(rounds + 1):
            layer.set_input(change if k % 2 == 0 else -change)
            times.append(_cpu_time(lambda: layer.run(path, rows=False, events=True)))
        return statistics.median(times[1:])

    dense, low, high = cost("dense", HIGH), cost("elements", LOW), cost("elements", HIGH)
    slope = (high - low) / (HIGH - LOW)
    if slope <= 0:  # the timings do not show that events cost anything
        return 1.0
    return float(np.clip(LOW + (dense - low) / slope, 0.0, 1.0))


def _cpu_time(call: Callable[[], None]) -> int:
    start = time.thread_time_ns()
    call()
    return time.thread_time_ns() - start
