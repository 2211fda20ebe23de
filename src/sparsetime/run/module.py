"""The dense network that a plan stands for, as a PyTorch module: what dense runtimes are given.

    z = op(values of the inputs), v = activation(z)        for every operation and every frame, codecs left out

The operations are those of docs/plan.md, each as the fastest PyTorch operator that computes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sparsetime.convert.tables import pool_windows
from sparsetime.engine.islands import run_island
from sparsetime.engine.ops import Op
from sparsetime.engine.plan import Plan
from sparsetime.engine.reference import Reference, activate

__all__ = ["PlanModule"]

Array = NDArray[Any]
Call = Callable[[list[Tensor]], Tensor]


class PlanModule(nn.Module):
    """Maps a frame, float32 of the plan's input shape, to the outputs in order: a tensor, or a tuple of several.

    Args:
        plan: its codecs are not used.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._plan = plan
        self._reference = Reference(plan)
        self._names: dict[str, str] = {}
        for number, (name, array) in enumerate(plan.tensors.items()):
            self._names[name] = f"tensor_{number}"
            self.register_buffer(self._names[name], torch.from_numpy(array.copy()))
        self._calls = [None if op.kind in ("input", "island") else self._call(op) for op in plan.ops]

    def forward(self, frame: Tensor) -> Any:
        values = self.values(frame)
        outputs = tuple(values[v] for v in self._plan.outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def values(self, frame: Tensor) -> dict[int, Tensor]:
        """All values of a frame, by number."""
        values: dict[int, Tensor] = {}
        for op, call in zip(self._plan.ops, self._calls, strict=True):
            if op.kind == "island":
                tensors = {name: self._tensor(name) for name in op.tensors.values()}
                made = run_island(op, values.__getitem__, tensors, [self._plan.values[v] for v in op.outputs])
            else:
                z = frame if call is None else call([values[v] for v in op.inputs])
                made = [activate(z, op.activation)]
            values.update(zip(op.outputs, made, strict=True))
        return values

    def _tensor(self, name: str) -> Tensor:
        tensor: Tensor = getattr(self, self._names[name])
        return tensor

    def _role(self, op: Op, role: str) -> Tensor | None:
        return self._tensor(op.tensors[role]) if role in op.tensors else None

    def _call(self, op: Op) -> Call:
        """What computes an operation, without its activation."""
        match op.kind:
            case "conv2d":
                return lambda x: self._convolution(op, x)
            case "linear":
                return lambda x: self._linear(op, x)
            case "identity":
                return lambda x: x[0]
            case "channels":
                return self._channels(op)
            case "avg_pool2d":
                return self._average(op)
            case "max_pool2d":
                return self._maximum(op)
            case "resize2d":
                return self._resize(op)
            case "layer_norm" | "group_norm" | "softmax" | "attention":
                return lambda x: self._reference.recomputed(op, x)
            case "mul":
                return lambda x: x[0] * x[1]
            case _:
                return lambda x: self._reference.linear(op, x, constants=True)

    def _convolution(self, op: Op, x: list[Tensor]) -> Tensor:
        a = op.attributes
        top, bottom, left, right = a["padding"]
        padded, padding = x[0], (top, left)
        if (top, left) != (bottom, right):
            padded, padding = F.pad(x[0], (left, right, top, bottom)), (0, 0)
        weight, bias = self._tensor(op.tensors["weight"]), self._role(op, "bias")
        z = F.conv2d(padded, weight, bias, a["stride"], padding, a["dilation"], a["groups"])
        return z + x[1] if len(x) == 2 else z

    def _linear(self, op: Op, x: list[Tensor]) -> Tensor:
        z = F.linear(x[0], self._tensor(op.tensors["weight"]), self._role(op, "bias"))
        return z + x[1] if len(x) == 2 else z

    def _channels(self, op: Op) -> Call:
        index = self._plan.need(op, "index").tolist()
        if index == list(range(index[0], index[0] + len(index))) and index[0] >= 0:
            return lambda x: x[0][:, index[0] : index[0] + len(index)]
        if min(index) >= 0:
            return lambda x: x[0].index_select(1, self._tensor(op.tensors["index"]))
        return lambda x: self._reference.linear(op, x, constants=True)

    def _average(self, op: Op) -> Call:
        height, width = self._plan.values[op.inputs[0]][2:]
        rows, columns = self._plan.need(op, "rows"), self._plan.need(op, "columns")
        divisor = self._plan.need(op, "divisor")
        if rows.tolist() == [[0, height]] and columns.tolist() == [[0, width]] and divisor.item() == height * width:
            return lambda x: x[0].mean((2, 3), keepdim=True)
        windows = _regular(rows, columns, height, width, [1, 1])
        if windows is not None:
            x, expected = self._example(op)
            for counts_padding in (True, False):
                if torch.allclose(F.avg_pool2d(x, *windows, counts_padding), expected, rtol=0, atol=1e-4):
                    return lambda x, last=counts_padding: F.avg_pool2d(x[0], *windows, last)  # type: ignore[misc]
        return lambda x: self._reference.linear(op, x, constants=True)

    def _example(self, op: Op) -> tuple[Tensor, Tensor]:
        """A random map, and what the operation makes of it: operators that agree there are the same."""
        x = torch.randn(self._plan.values[op.inputs[0]], generator=torch.Generator().manual_seed(0))
        return x, self._reference.linear(op, [x], constants=True)

    def _maximum(self, op: Op) -> Call:
        dilation = op.attributes["dilation"]
        height, width = self._plan.values[op.inputs[0]][2:]
        windows = _regular(self._plan.need(op, "rows"), self._plan.need(op, "columns"), height, width, dilation)
        if windows is None:
            return lambda x: self._reference.recomputed(op, x)
        kernel, stride, padding, ceil = windows
        return lambda x: F.max_pool2d(x[0], kernel, stride, padding, dilation, ceil)

    def _resize(self, op: Op) -> Call:
        size = self._plan.values[op.output][2:]
        x, expected = self._example(op)
        for options in _RESIZES:
            if torch.allclose(F.interpolate(x, size, **options), expected, rtol=0, atol=1e-4):
                return lambda x, options=options: F.interpolate(x[0], size, **options)  # type: ignore[misc]
        return lambda x: self._reference.linear(op, x, constants=True)


_RESIZES: list[dict[str, Any]] = [
    {"mode": "nearest"},
    {"mode": "bilinear", "align_corners": False},
    {"mode": "bilinear", "align_corners": True},
]

Pair = tuple[int, int]


def _regular(
    rows: Array, columns: Array, height: int, width: int, dilation: list[int]
) -> tuple[Pair, Pair, Pair, bool] | None:
    """Kernel, stride, padding and ceil mode of the pooling whose windows these are, or None if there is none."""
    for ceil in (False, True):
        first = next(_matching(rows, height, dilation[0], ceil), None)
        second = next(_matching(columns, width, dilation[1], ceil), None)
        if first is not None and second is not None:
            kernel, stride, padding = zip(first, second, strict=True)
            return kernel, stride, padding, ceil
    return None


def _matching(table: Array, size: int, dilation: int, ceil: bool) -> Iterator[tuple[int, int, int]]:
    """Kernels, strides and paddings along one axis that give the windows of a table."""
    reach = int((table[:, 1] - table[:, 0]).max())
    largest = (reach - 1) // dilation + 1
    # Padding hides a part of every window where the map is small, so the kernel may be up to twice what is seen.
    for kernel in range(largest, 2 * largest + 1):
        for padding in range(kernel // 2 + 1):
            for stride in range(1, max(kernel, 2) + 2):
                if size + 2 * padding < dilation * (kernel - 1) + 1:
                    continue
                windows, _ = pool_windows(size, kernel, stride, padding, dilation, ceil)
                if windows.shape == table.shape and (windows == table).all():
                    yield kernel, stride, padding
