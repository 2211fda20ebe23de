"""The float32 plan that an int8 plan came from, as near as its bytes say it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsetime.engine.ops import Op
from sparsetime.engine.plan import Plan
from sparsetime.engine.shapes import channel_axis, shaped_to_weight

__all__ = ["float32_plan"]

Array = NDArray[Any]


def float32_plan(plan: Plan) -> Plan:
    """The same network in float32: weights w * weight_step; codes become `hold` codecs of threshold * step.

    A plan of float32 is returned as it is.
    """
    if plan.precision == "float32":
        return plan
    tensors: dict[str, Array] = {}
    return replace(plan, ops=tuple(_op(plan, op, tensors) for op in plan.ops), tensors=tensors, precision="float32")


def _op(plan: Plan, op: Op, tensors: dict[str, Array]) -> Op:
    roles = {role: name for role, name in op.tensors.items() if role != "weight_step"}
    for role, name in roles.items():
        tensors[name] = _weight(plan, op) if role == "weight" else plan.tensors[name]
    codec = None
    if op.codec is not None:
        name, pixel = op.codec["threshold"], op.codec.get("pixel", False)
        threshold = plan.tensors[name].astype(np.float32)
        if pixel:  # of the sum of squares
            shape = plan.values[op.output]
            threshold = np.sqrt(threshold / np.float32(shape[channel_axis(shape)]))
        tensors[name] = threshold * plan.tensors[op.codec["tensor"]]
        codec = {"kind": "pixel" if pixel else "hold", "tensor": name}
    return replace(op, tensors=roles, codec=codec, precision="float32")


def _weight(plan: Plan, op: Op) -> Array:
    weight, step = plan.need(op, "weight").astype(np.float32), plan.need(op, "weight_step")
    axis = int(op.kind == "conv_transpose2d")
    return np.asarray(weight * shaped_to_weight(step, weight.shape, axis, op.attributes.get("groups", 1)))
