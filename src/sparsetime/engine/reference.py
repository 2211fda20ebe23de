"""The meaning of a plan, in plain PyTorch. Every other backend is a claim about this one.

Per operation k and frame t, with d(t) = v(t) - v(t-1) the delta of a value:

    linear      z_k(t) = z_k(t-1) + L_k(d of its inputs)      v_k(t) = codec(activation(z_k(t)), v_k(t-1))
    moves       v_k(t) = op_k(v of its inputs)                 where neither activation nor codec follows
    recomputed  z_k(t) = op_k(v of its inputs)                 v_k(t) = codec(activation(z_k(t)), v_k(t-1))

and on the first frame z_k(0) = op_k(v of its inputs), bias and constants included. It computes everywhere, not only
where something was touched: where nothing was, z does not change, and neither does v. It is slow, and meant to be read.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sparsetime.codec import pixels_sent
from sparsetime.engine.executor import OpStats
from sparsetime.engine.frames import normalised
from sparsetime.engine.islands import Watch, run_island
from sparsetime.engine.ops import LINEAR, Op
from sparsetime.engine.plan import Plan
from sparsetime.engine.shapes import channel_axis
from sparsetime.fanout import position_fanout

__all__ = ["Reference", "activate", "effective_macs", "encode"]


def activate(z: Tensor, activation: Mapping[str, Any] | None) -> Tensor:
    """y = activation(z)."""
    if activation is None:
        return z
    match activation["kind"]:
        case "relu":
            return F.relu(z)
        case "clamp":
            return z.clamp(activation["min"], activation["max"])
        case "leaky_relu":
            return F.leaky_relu(z, activation["slope"])
        case "hardswish":
            return F.hardswish(z)
        case "hardsigmoid":
            return F.hardsigmoid(z)
        case "silu":
            return F.silu(z)
        case "elu":
            return F.elu(z, activation["alpha"])
        case "mish":
            return F.mish(z)
        case "gelu":
            return F.gelu(z, approximate=activation["approximate"])
        case "sigmoid":
            return z.sigmoid()
        case _:
            return z.tanh()


def encode(y: Tensor, v: Tensor | None, codec: Mapping[str, Any] | None, step: Tensor | None) -> Tensor:
    """The new value v' that consumers see, given y and the last value v (None at the flush)."""
    if codec is None or step is None:
        return y
    if codec["kind"] == "exact":
        code = y / step
        if "low" in codec:
            code = code.clamp(codec["low"], codec["high"])
        return step * code.round()
    if v is None:
        return y
    if codec["kind"] == "hold":
        return torch.where((y - v).abs() > step, y, v)
    if codec["kind"] == "pixel":
        return torch.where(pixels_sent(y - v, step, channel_axis(tuple(y.shape))), y, v)
    return v + step * ((y - v) / step).trunc()


def _picked(x: Tensor, axis: int, index: Tensor) -> Tensor:
    """Entries of an axis by their numbers, zeros where the number is -1."""
    zeros = F.pad(x, (0, 0) * (x.dim() - 1 - axis) + (0, 1))  # -1 is the last entry
    return zeros.index_select(axis, index.long() % zeros.shape[axis])


def _windows(table: Tensor, extent: int, dtype: torch.dtype) -> Tensor:
    """(n, 2) of [start, end) as a matrix (n, extent) of ones where the window is."""
    place = torch.arange(extent)
    return ((place >= table[:, :1]) & (place < table[:, 1:])).to(dtype)


def _taps(index: Tensor, weights: Tensor, extent: int) -> Tensor:
    """(n, K) places and weights as a matrix (n, extent)."""
    return weights.new_zeros(len(index), extent).scatter_add_(1, index.long(), weights)


def _window_max(x: Tensor, table: Tensor, dilation: int) -> Tensor:
    """Maximum over windows [start, end) of the last axis, by steps of `dilation`."""
    start, end = table[:, 0].long(), table[:, 1].long()
    best = x[..., start]
    for k in range(dilation, int((end - start).max()), dilation):
        inside = start + k < end
        best = torch.where(inside, torch.maximum(best, x[..., (start + k).clamp(max=x.shape[-1] - 1)]), best)
    return best


def effective_macs(plan: Plan, op: Op, changed: Tensor) -> int:
    """Multiply-accumulates that the changed elements of an operation's input cause, by true fan-out."""
    linear = plan.linear_op(op)
    if linear is None:
        return 0
    events = changed.sum() if linear.kind == "linear" else changed.sum(dim=(0, 1))
    return int((events * torch.from_numpy(position_fanout(linear, tuple(changed.shape[1:])))).sum())


class Reference:
    """Executor in plain PyTorch; see `Executor` for its methods.

    Args:
        plan: what to run.
        dtype: float32 as every backend, or float64 to measure what rounding does.
    """

    def __init__(self, plan: Plan, dtype: torch.dtype = torch.float32) -> None:
        self._plan = plan
        self._dtype = dtype
        self._tensors = {name: self._tensor(array) for name, array in plan.tensors.items()}
        self._steps = [None if (s := plan.step(op)) is None else self._tensor(s) for op in plan.ops]
        self._values: dict[int, Tensor] = {}
        self._accumulators: dict[int, Tensor] = {}
        self._watch = Watch(plan)
        self._refresh = False
        self._cut = math.inf
        self.flushed = False
        self._stats = [OpStats(0, 0, 0, 0, 0, "sparse")] * len(plan.ops)

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array.copy())
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

    def _role(self, op: Op, role: str) -> Tensor | None:
        name = op.tensors.get(role)
        return None if name is None else self._tensors[name]

    def _need(self, op: Op, role: str) -> Tensor:
        return self._tensors[op.tensors[role]]

    def _expanded(self, op: Op, role: str) -> Tensor | None:
        array = self._plan.tensor(op, role)
        return None if array is None else self._tensor(self._plan.expand(array, self._plan.values[op.output]))

    def linear(self, op: Op, x: list[Tensor], constants: bool) -> Tensor:
        """L(x), and with `constants` the bias, shift or border that enters once."""
        a = op.attributes
        bias = self._role(op, "bias") if constants else None
        match op.kind:
            case "conv2d":
                top, bottom, left, right = a["padding"]
                padded = F.pad(x[0], (left, right, top, bottom))
                z = F.conv2d(padded, self._need(op, "weight"), bias, a["stride"], 0, a["dilation"], a["groups"])
                return z + x[1] if len(x) == 2 else z
            case "conv_transpose2d":
                top, bottom, left, right = a["padding"]
                rows, columns = a["output_padding"]
                weight = self._need(op, "weight")
                z = F.conv_transpose2d(x[0], weight, None, a["stride"], 0, 0, a["groups"], a["dilation"])
                z = F.pad(z, (-left, columns - right, -top, rows - bottom))
                return z if bias is None else z + bias.view(1, -1, 1, 1)
            case "linear":
                z = F.linear(x[0], self._need(op, "weight"), bias)
                return z + x[1] if len(x) == 2 else z
            case "affine":
                scale, shift = self._expanded(op, "scale"), self._expanded(op, "shift")
                z = x[0] if scale is None else x[0] * scale
                return z + shift if constants and shift is not None else z
            case "add":
                first, second = a["coefficients"]
                return torch.add(first * x[0], x[1], alpha=second)
            case "cat":
                return torch.cat(x, a["axis"])
            case "channels":
                return _picked(x[0], 1, self._need(op, "index"))
            case "gather":
                return _picked(x[0].reshape(-1), 0, self._need(op, "index")).reshape(self._plan.values[op.output])
            case "reshape":
                return x[0].reshape(self._plan.values[op.output])
            case "pad":
                top, bottom, left, right = a["padding"]
                return F.pad(x[0], (left, right, top, bottom), value=a["value"] if constants else 0.0)
            case "avg_pool2d":
                rows = _windows(self._need(op, "rows"), x[0].shape[2], self._dtype)
                columns = _windows(self._need(op, "columns"), x[0].shape[3], self._dtype)
                return rows @ x[0] @ columns.T / self._need(op, "divisor")
            case _:  # resize2d
                rows = _taps(self._need(op, "rows"), self._need(op, "row_weights"), x[0].shape[2])
                columns = _taps(self._need(op, "columns"), self._need(op, "column_weights"), x[0].shape[3])
                return rows @ x[0] @ columns.T

    def recomputed(self, op: Op, x: list[Tensor]) -> Tensor:
        """z from the current values of the inputs."""
        match op.kind:
            case "identity":
                return x[0]
            case "mul":
                return x[0] * x[1]
            case "layer_norm":
                return self.layer_norm(op, x[0])
            case "group_norm":
                return self.group_norm(op, x[0])
            case "softmax":
                return torch.softmax(x[0], channel_axis(tuple(x[0].shape)))
            case "attention":
                return self.attention(op, *x)
            case _:  # max_pool2d
                rows, columns = op.attributes["dilation"]
                z = _window_max(x[0], self._need(op, "columns"), columns)
                return _window_max(z.transpose(2, 3), self._need(op, "rows"), rows).transpose(2, 3)

    def layer_norm(self, op: Op, x: Tensor) -> Tensor:
        """(x - mean) / sqrt(variance + eps) * scale + shift over the channels of a place."""
        axis = channel_axis(tuple(x.shape))
        scale, shift = self._role(op, "scale"), self._role(op, "shift")
        rows = x.movedim(axis, -1)
        return F.layer_norm(rows, rows.shape[-1:], scale, shift, op.attributes["eps"]).movedim(-1, axis)

    def group_norm(self, op: Op, x: Tensor) -> Tensor:
        """(x - mean) / sqrt(variance + eps) * scale + shift over all places of the channels of a group."""
        groups = x.reshape(1, op.attributes["groups"], -1)
        variance, mean = torch.var_mean(groups, 2, correction=0, keepdim=True)
        z: Tensor = ((groups - mean) / (variance + op.attributes["eps"]).sqrt()).reshape(x.shape)
        for role, combine in (("scale", torch.mul), ("shift", torch.add)):
            vector = self._role(op, role)
            z = z if vector is None else combine(z, vector.view(-1, 1, 1))
        return z

    def attention(self, op: Op, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(scale q k^T + bias) v, in each window and each head."""
        windows, heads, bias = op.attributes["windows"], op.attributes["heads"], self._role(op, "bias")
        q, k, v = (x.reshape(windows, -1, heads, x.shape[2] // heads).transpose(1, 2) for x in (q, k, v))
        scores = op.attributes["scale"] * (q @ k.transpose(2, 3))
        z = torch.softmax(scores if bias is None else scores + bias, 3) @ v
        return z.transpose(1, 2).reshape(self._plan.values[op.output])

    def run(self, frame: NDArray[Any], keep: bool = True) -> list[NDArray[Any]]:
        frame = normalised(frame, self._plan.input)
        outputs = self._computed(frame)
        if not keep:
            self.reset()
        return outputs

    def _computed(self, frame: NDArray[Any]) -> list[NDArray[Any]]:
        """The outputs of a frame, and the state that it leaves."""
        flush = self._begins(frame)
        dense = flush or self._refresh
        self._refresh = False
        deltas: dict[int, Tensor] = {}
        touched: set[int] = set()  # values with events
        stats = []
        for number, op in enumerate(self._plan.ops):
            start = time.perf_counter_ns()
            old = [self._values.get(value) for value in op.outputs]
            still = not dense and touched.isdisjoint(op.inputs)
            if op.kind == "input":
                new = [self.sensed(frame, old[0])]
            elif op.kind == "island":
                new = (
                    [self._values[value] for value in op.outputs] if still else self._island(number, op, old[0], flush)
                )
            elif op.kind in LINEAR:
                z = self._accumulate(number, op, deltas, dense)
                new = [encode(activate(z, op.activation), old[0], op.codec, self._steps[number])]
            else:
                z = self.recomputed(op, [self._values[value] for value in op.inputs])
                new = [encode(activate(z, op.activation), old[0], op.codec, self._steps[number])]
            for value, before, after in zip(op.outputs, old, new, strict=True):
                # A flush has no earlier value: everything counts as changed, zeros too, and is added to nothing.
                if after.is_floating_point():
                    deltas[value] = after if before is None else after - before
                self._values[value] = after
            if not flush and op.kind in LINEAR and not op.sends_changes:
                deltas[op.output] = self.linear(op, [deltas[value] for value in op.inputs], constants=False)
            # Whole numbers and booleans have no deltas: what an island made anew counts as changed.
            touched.update(v for v in op.outputs if (deltas[v].any() if v in deltas else not still))
            stats.append(self._count(op, deltas, flush, dense, time.perf_counter_ns() - start))
        self._stats = stats
        return [self._values[value].numpy().copy() for value in self._plan.outputs]

    def _island(self, number: int, op: Op, old: Tensor | None, flush: bool) -> list[Tensor]:
        shapes = [self._plan.values[value] for value in op.outputs]
        new = run_island(op, self._values.__getitem__, self._tensors, shapes)
        self._watch.check(op, new, flush)
        new[0] = encode(new[0], old, op.codec, self._steps[number])
        return new

    def sensed(self, frame: NDArray[Any], old: Tensor | None) -> Tensor:
        """The input's new value, given the last one."""
        own = frame.copy()  # the caller may write its next frame to the same place
        return encode(torch.from_numpy(own).to(self._dtype), old, self._plan.ops[0].codec, self._steps[0])

    def _begins(self, frame: NDArray[Any]) -> bool:
        """Whether this frame is the first of a stream; a cut makes it so."""
        if self._values and self._cut < 1:
            old = self._values[self._plan.ops[0].output]
            if int((self.sensed(frame, old) != old).sum()) > self._cut * old.numel():
                self.reset()
        self.flushed = not self._values
        return self.flushed

    def _accumulate(self, number: int, op: Op, deltas: dict[int, Tensor], dense: bool) -> Tensor:
        """z of a linear operation: from scratch, as moves always are, or what it was plus L of the deltas."""
        kept = self._accumulators if op.has_accumulator else self._values
        place = number if op.has_accumulator else op.output
        if dense or op.hands_on:
            z = self.linear(op, [self._values[value] for value in op.inputs], constants=True)
        else:
            z = kept[place] + self.linear(op, [deltas[value] for value in op.inputs], constants=False)
        kept[place] = z
        return z

    def _count(self, op: Op, deltas: dict[int, Tensor], flush: bool, dense: bool, time_ns: int) -> OpStats:
        def count(value: int) -> int:
            if value not in deltas:
                return 0
            return deltas[value].numel() if flush else int((deltas[value] != 0).sum())

        macs = effective = self._plan.op_macs(op)
        if macs and not flush:
            effective = effective_macs(self._plan, op, deltas[op.inputs[0]] != 0)
        if not dense:
            macs = effective
        path = "dense" if dense or op.kind == "island" else "sparse"
        sent = sum(count(value) for value in op.outputs)
        return OpStats(sum(count(value) for value in op.inputs), sent, macs, effective, time_ns, path)

    def value(self, number: int) -> NDArray[Any]:
        """See `Executor`."""
        return self._values[number].numpy().copy()

    def set_cut(self, share: float) -> None:
        self._cut = share

    def reset(self) -> None:
        self._values, self._accumulators, self._refresh = {}, {}, False

    def flush(self) -> None:
        self.reset()

    def refresh(self) -> None:
        self._refresh = True

    def state(self) -> dict[str, NDArray[Any]]:
        if not self._values:
            return {}
        return {
            entry.name: (self._accumulators[entry.op] if entry.value is None else self._values[entry.value])
            .numpy()
            .copy()
            for entry in self._plan.state_entries()
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        self.reset()
        if not state:
            return
        for name, number, value, *_ in self._plan.state_entries():
            array = torch.from_numpy(np.array(state[name]))
            if value is None:
                self._accumulators[number] = array
            else:
                self._values[value] = array
        self._watch.restored(self._values.__getitem__)

    @property
    def memory_bytes(self) -> int:
        return sum(x.nbytes for kept in (self._values, self._accumulators) for x in kept.values())

    def stats(self) -> list[OpStats]:
        return self._stats

    def events(self) -> NDArray[Any]:
        return np.array([entry.events for entry in self._stats], np.int64)
