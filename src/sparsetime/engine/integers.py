"""The meaning of an int8 plan, in plain PyTorch. Every other backend must equal it to the bit.

A value is kept as codes n, one byte an element, and stands for v = step * (n - zero); or as float32 where no codec
follows. Per operation and frame everything follows from the values of the inputs, so nothing can drift:

    weights of int8   z = float(sum w (n - zero)) * (step * weight_step) + bias (+ r)    a sum of integers, hence exact
    all others        z = op(v of the inputs), float32, in the stated order
    then              y = activation(z)
                      m = clamp(rint(y * (1 / step)) + zero, 0, 255)
                      n' = m where |m - n| > threshold, else n
                      or by pixel: where sum over channels of (m - n)^2 > threshold, else n

Every product and every sum of float32 is rounded by itself.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sparsetime.engine.executor import OpStats
from sparsetime.engine.islands import run_island
from sparsetime.engine.ops import Coding, Op
from sparsetime.engine.plan import Plan
from sparsetime.engine.reference import Reference, activate, effective_macs
from sparsetime.engine.shapes import channel_axis

__all__ = ["IntegerReference", "decode", "encode", "quantised"]


def decode(code: Tensor, coding: Coding) -> Tensor:
    """v = step * (n - zero)."""
    return (code.to(torch.int32) - coding.zero).to(torch.float32) * torch.tensor(coding.step)


def quantised(y: Tensor, coding: Coding) -> Tensor:
    """clamp(rint(y * (1 / step)) + zero, 0, 255) as uint8, ties to even; what is no number counts as the lowest."""
    low, high = torch.tensor(float(-coding.zero)), torch.tensor(float(255 - coding.zero))
    scaled = y * (torch.tensor(1.0) / torch.tensor(coding.step))
    scaled = torch.where(scaled > low, scaled, low)
    scaled = torch.where(scaled < high, scaled, high)
    return (scaled.round().to(torch.int32) + coding.zero).to(torch.uint8)


def encode(y: Tensor, held: Tensor | None, coding: Coding, threshold: Tensor, pixel: bool = False) -> Tensor:
    """The codes that consumers see: new ones where they are further than the threshold from those held.

    By `pixel` all channels of a place are new or none, and the threshold is one of the sum of their squares.
    """
    code = quantised(y, coding)
    if held is None:
        return code
    moved = code.to(torch.int32) - held.to(torch.int32)
    if pixel:
        far = moved.square().sum(channel_axis(tuple(y.shape)), keepdim=True)
        return torch.where(far > threshold, code, held)
    return torch.where(moved.abs() > threshold, code, held)


def _activate(z: Tensor, activation: Mapping[str, Any] | None) -> Tensor:
    """As in float32, the two that could be computed in several orders in the stated one."""
    kind = None if activation is None else activation["kind"]
    if kind in ("hardswish", "hardsigmoid"):
        clamped = (z + 3.0).clamp(0.0, 6.0)
        return (z * clamped if kind == "hardswish" else clamped) / 6.0
    return activate(z, activation)


def _window_sums(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Sums over windows of both axes, the rows of a window one after the other, in each its columns."""
    total = x.new_zeros((*x.shape[:-2], len(rows), len(columns)))
    for i in range(int((rows[:, 1] - rows[:, 0]).max())):
        for j in range(int((columns[:, 1] - columns[:, 0]).max())):
            y, inside_y = rows[:, 0] + i, rows[:, 0] + i < rows[:, 1]
            k, inside_x = columns[:, 0] + j, columns[:, 0] + j < columns[:, 1]
            part = x[..., y.clamp(max=x.shape[-2] - 1).long(), :][..., k.clamp(max=x.shape[-1] - 1).long()]
            total = torch.where(inside_y[:, None] & inside_x, total + part, total)
    return total


def _blended(x: Tensor, rows: Tensor, row_weights: Tensor, columns: Tensor, column_weights: Tensor) -> Tensor:
    """Every row to its new width, line[j] = sum_b column_weights[j, b] x[columns[j, b]], then sums of these rows."""
    lines = x.new_zeros((*x.shape[:-1], len(columns)))
    for b in range(columns.shape[1]):
        lines = lines + column_weights[:, b] * x[..., columns[:, b].long()]
    total = x.new_zeros((*x.shape[:-2], len(rows), len(columns)))
    for a in range(rows.shape[1]):
        total = total + row_weights[:, a, None] * lines[..., rows[:, a].long(), :]
    return total


def _sum_in_parts(x: Tensor) -> Tensor:
    """Sums over the last axis in sixteen parts: part l has entries l, l + 16, ..., and parts are added by halves."""
    parts = x.new_zeros((*x.shape[:-1], 16))
    for block in F.pad(x, (0, -x.shape[-1] % 16)).split(16, -1):
        parts = parts + block
    while parts.shape[-1] > 1:
        first, second = parts.chunk(2, -1)
        parts = first + second
    return parts


class IntegerReference(Reference):
    """Executor of int8 plans in plain PyTorch; see `Executor` for its methods."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._thresholds = [
            None
            if op.codec is None
            else torch.from_numpy(plan.expand(plan.tensors[op.codec["threshold"]], plan.values[op.output]).copy())
            for op in plan.ops
        ]

    def decoded(self, value: int) -> Tensor:
        """What a value stands for, float32."""
        coding = self._plan.codings.get(value)
        return self._values[value] if coding is None else decode(self._values[value], coding)

    def summed(self, op: Op, code: Tensor) -> Tensor:
        """sum w (n - zero) of an operation with weights, int32."""
        coding = self._plan.codings[op.inputs[0]]
        # float64 holds every integer that can come up, so these sums are those of integers.
        x = (code.to(torch.int32) - coding.zero).to(torch.float64)
        weight = self._need(op, "weight").to(torch.float64)
        a = op.attributes
        if op.kind == "linear":
            return F.linear(x, weight).to(torch.int32)
        if op.kind == "conv2d":
            top, bottom, left, right = a["padding"]
            padded = F.pad(x, (left, right, top, bottom))
            return F.conv2d(padded, weight, None, a["stride"], 0, a["dilation"], a["groups"]).to(torch.int32)
        top, bottom, left, right = a["padding"]
        rows, columns = a["output_padding"]
        z = F.conv_transpose2d(x, weight, None, a["stride"], 0, 0, a["groups"], a["dilation"])
        return F.pad(z, (-left, columns - right, -top, rows - bottom)).to(torch.int32)

    def weighted(self, op: Op) -> Tensor:
        """z of an operation with weights."""
        step = torch.tensor(self._plan.codings[op.inputs[0]].step) * self._need(op, "weight_step")
        bias = self._role(op, "bias")
        shape = [1] * len(self._plan.values[op.output])
        shape[-1 if op.kind == "linear" else 1] = -1
        z = self.summed(op, self._values[op.inputs[0]]).to(torch.float32) * step.view(shape)
        # Channels without bias have one of 0.
        z = z + (torch.zeros(1) if bias is None else bias.view(shape))
        return z + self.decoded(op.inputs[1]) if len(op.inputs) == 2 else z

    def computed(self, op: Op) -> Tensor:
        """z of any other operation, from what its inputs stand for."""
        x = [self.decoded(value) for value in op.inputs]
        match op.kind:
            case "add":
                first, second = (torch.tensor(c, dtype=torch.float32) for c in op.attributes["coefficients"])
                return first * x[0] + second * x[1]
            case "avg_pool2d":
                return _window_sums(x[0], self._need(op, "rows"), self._need(op, "columns")) / self._need(op, "divisor")
            case "resize2d":
                return _blended(
                    x[0], *(self._need(op, r) for r in ("rows", "row_weights", "columns", "column_weights"))
                )
            case "identity" | "mul" | "max_pool2d" | "layer_norm" | "group_norm" | "softmax" | "attention":
                return self.recomputed(op, x)
            case _:
                return self.linear(op, x, constants=True)

    def layer_norm(self, op: Op, x: Tensor) -> Tensor:
        """See `Reference`; every operation of float32 by itself, sums in the stated order."""
        axis = channel_axis(tuple(x.shape))
        rows = x.movedim(axis, -1)
        count = rows.shape[-1]
        apart = rows - _sum_in_parts(rows) / count
        variance = _sum_in_parts(apart * apart) / count
        eps = torch.tensor(op.attributes["eps"], dtype=torch.float32)
        # PyTorch's root of float32 is not always the nearest number; that of float64, rounded, is.
        y = apart * (1 / (variance + eps).double().sqrt().float())
        for role, combine in (("scale", torch.mul), ("shift", torch.add)):
            vector = self._role(op, role)
            y = y if vector is None else combine(y, vector)
        return y.movedim(-1, axis)

    def moved(self, op: Op) -> Tensor:
        """The codes of a bare move: its inputs' codes, `zero` where there is no input."""
        coding = self._plan.codings[op.output]
        x = [self._values[value].to(torch.float32) - coding.zero for value in op.inputs]
        z = self.recomputed(op, x) if op.kind == "max_pool2d" else self.linear(op, x, constants=True)
        return (z + coding.zero).to(torch.uint8)

    def sensed(self, frame: NDArray[Any], old: Tensor | None) -> Tensor:
        """See `Reference`."""
        op, threshold, new = self._plan.ops[0], self._thresholds[0], torch.from_numpy(frame)
        if op.codec is None or threshold is None:
            return new
        return encode(new, old, self._plan.codings[op.output], threshold, op.codec.get("pixel", False))

    def _computed(self, frame: NDArray[Any]) -> list[NDArray[Any]]:
        plan = self._plan
        flush, self._refresh = self._begins(frame), False
        changed: dict[int, Tensor] = {}
        stats = []
        for number, op in enumerate(plan.ops):
            start = time.perf_counter_ns()
            old = [self._values.get(value) for value in op.outputs]
            coding, threshold = plan.codings.get(op.output), self._thresholds[number]
            if coding is not None and threshold is None:
                new = [self.moved(op)]
            elif op.kind == "island":
                shapes = [plan.values[v] for v in op.outputs]
                new = run_island(op, self.decoded, self._tensors, shapes)
            elif op.kind == "input":
                new = [self.sensed(frame, old[0])]
            elif "weight" in op.tensors:
                new = [_activate(self.weighted(op), op.activation)]
            else:
                new = [_activate(self.computed(op), op.activation)]
            if coding is not None and threshold is not None and op.kind != "input":
                assert op.codec is not None
                new[0] = encode(new[0], old[0], coding, threshold, op.codec.get("pixel", False))
            for value, before, after in zip(op.outputs, old, new, strict=True):
                self._values[value] = after
                if after.dtype in (torch.uint8, torch.float32):
                    changed[value] = torch.ones_like(after) if before is None else (after != before).to(torch.uint8)
            stats.append(self._counted(op, changed, flush, time.perf_counter_ns() - start))
        self._stats = stats
        return [self.decoded(value).numpy().copy() for value in plan.outputs]

    def _counted(self, op: Op, changed: Mapping[int, Tensor], flush: bool, time_ns: int) -> OpStats:
        def events(values: tuple[int, ...]) -> int:
            return sum(int(changed[v].count_nonzero()) for v in values if v in changed)

        macs = self._plan.op_macs(op)
        if macs and not flush:
            macs = effective_macs(self._plan, op, changed[op.inputs[0]] != 0)
        path = "dense" if flush or op.kind == "island" else "sparse"
        return OpStats(events(op.inputs), events(op.outputs), macs, macs, time_ns, path)

    def value(self, number: int) -> NDArray[Any]:
        """See `Executor`."""
        return self.decoded(number).numpy().copy()
