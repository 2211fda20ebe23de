"""Clamp, quantize or hold, and penalty in one autograd node: the fast form of `quantize`, `codec` and `objective`.

What is kept for the backward pass is the value, which the next layer keeps anyhow, and one byte per element. Where the
step is one number and the clip lies on the CPU in float32, native kernels make one pass over memory in each direction;
elsewhere `clamp_quantize` says the same in torch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparsetime import _quantize
from sparsetime.quantize import FLOOR, floored

__all__ = ["clamp_hold", "clamp_quantize", "native"]


class _ClampQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step: Tensor, low: float, high: float, frames: int, isa: str
    ) -> tuple[Tensor, Tensor]:
        ctx.frames, ctx.isa = frames, isa
        ctx.set_materialize_grads(False)  # None says that the penalty is in no loss
        clamped = low > -math.inf or high < math.inf
        x = _dense(x)
        inside = torch.empty_like(x, dtype=torch.bool) if clamped and ctx.needs_input_grad[0] else None
        changes = max(_changes(x, frames), 1)
        if native(x, step):
            value = torch.empty_like(x)
            total = _quantize.forward(
                x.data_ptr(),
                value.data_ptr(),
                _address(inside),
                *_shape(x, frames),
                _number(step),
                low,
                high,
                *_how(isa),
            )
            penalty = x.new_tensor(total / changes)
        else:
            if inside is not None:
                torch.logical_and(x > low, x < high, out=inside)
            q = floored(step.detach().abs().to(x.dtype))
            value = (x.clamp(low, high) if clamped else x.clone()).div_(q).round_().mul_(q)
            change = torch.diff(value.unflatten(0, (-1, frames)), dim=1).abs()
            penalty = (change.sum(dtype=_wide(x)) / changes).to(x.dtype)
        ctx.save_for_backward(value, inside, step)
        return value, penalty

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        grad_value, grad_penalty = grads[0], grads[1]
        value, inside, step = ctx.saved_tensors
        frames = ctx.frames
        changes = max(_changes(value, frames), 1)
        # d value / d step = -n sign(step), n = value / q
        if native(value, step):
            if grad_value is not None and grad_value.stride() != value.stride():
                grad_value = torch.empty_like(value).copy_(grad_value)
            grad = torch.empty_like(value)
            weight = 0.0 if grad_penalty is None else grad_penalty.item() / changes
            shape = _shape(value, frames)
            product = _quantize.backward(
                _address(grad_value),
                value.data_ptr(),
                _address(inside),
                grad.data_ptr(),
                *shape,
                weight,
                *_how(ctx.isa),
            )
            grad_step = step.new_tensor(math.copysign(1.0, -step.item()) * product / _number(step))
        else:
            grad = torch.zeros_like(value) if grad_value is None else grad_value.clone()
            # d/dO(t) of sum |O(t) - O(t-1)| = sign(O(t) - O(t-1)) - sign(O(t+1) - O(t))
            if grad_penalty is not None:
                sign = torch.diff(value.unflatten(0, (-1, frames)), dim=1).sign() * (grad_penalty / changes)
                clip = grad.unflatten(0, (-1, frames))
                clip[:, 1:] += sign
                clip[:, :-1] -= sign
            product = (grad.to(_wide(value)) * value).sum_to_size(step.shape)
            if inside is not None:
                grad *= inside
            q = floored(step.detach().abs().to(value.dtype))
            grad_step = (-(product / q) * torch.where(step < 0, -1.0, 1.0)).to(step.dtype)
        wanted = ctx.needs_input_grad
        return (grad if wanted[0] else None), (grad_step if wanted[1] else None), None, None, None, None


def _number(step: Tensor) -> float:
    """q of one step. As a number: at small layers, operations on tensors of one element cost more than the kernel."""
    return max(abs(step.item()), FLOOR)


class _ClampHold(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, threshold: Tensor, low: float, high: float, frames: int, isa: str
    ) -> tuple[Tensor, Tensor]:
        ctx.frames, ctx.isa = frames, isa
        ctx.set_materialize_grads(False)
        x = _dense(x)
        value, flags = torch.empty_like(x), torch.empty_like(x, dtype=torch.uint8)
        total = _quantize.hold_forward(
            x.data_ptr(), value.data_ptr(), flags.data_ptr(), *_shape(x, frames), abs(threshold.item()), low, high,
            *_how(isa),
        )  # fmt: skip
        ctx.save_for_backward(value, flags)
        return value, x.new_tensor(total / max(_changes(value, frames), 1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None, None, None, None]:
        grad_value, grad_penalty = grads[0], grads[1]
        value, flags = ctx.saved_tensors
        weight = 0.0 if grad_penalty is None else grad_penalty.item() / max(_changes(value, ctx.frames), 1)
        if grad_value is not None and grad_value.stride() != value.stride():
            grad_value = torch.empty_like(value).copy_(grad_value)
        grad = torch.empty_like(value)
        address = _address(grad_value)
        _quantize.hold_backward(
            address, value.data_ptr(), flags.data_ptr(), grad.data_ptr(), *_shape(value, ctx.frames), weight,
            *_how(ctx.isa),
        )  # fmt: skip
        return grad, None, None, None, None, None


def _dense(x: Tensor) -> Tensor:
    """x with frames one after the other in memory and no gaps, channels last or first."""
    if x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return x
    return x.contiguous()


def native(x: Tensor, step: Tensor) -> bool:
    """Whether the native kernels take these."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and step.dim() == 0


def _wide(x: Tensor) -> torch.dtype:
    """What sums over x are made in: float16 ends at 65504."""
    return torch.promote_types(x.dtype, torch.float32)


def _changes(x: Tensor, frames: int) -> int:
    """Pairs of neighbouring frames times elements."""
    return x.numel() // frames * (frames - 1)


def _shape(x: Tensor, frames: int) -> tuple[int, int, int]:
    return x.shape[0] // frames, frames, math.prod(x.shape[1:])


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _how(isa: str) -> tuple[int, str]:
    return torch.get_num_threads(), isa


def clamp_quantize(
    x: Tensor, step: Tensor, low: float = -math.inf, high: float = math.inf, frames: int = 1, isa: str = ""
) -> tuple[Tensor, Tensor]:
    """value = quantize(clamp(x, low, high), step, "dal") and mean |value(t) - value(t-1)|, t = 2..frames.

    Args:
        x: (N * frames, ...), floating point.
        step: broadcastable to a frame.
        low, high: the clamp; the gradient of x passes strictly inside. (0, inf) is ReLU, (0, 6) ReLU6.
        frames: frames of a clip, neighbours in the first dimension; with one the penalty is 0.
        isa: instruction set of the native kernels, "" for the best this machine has.

    Returns:
        value, the shape of x, and the penalty, a scalar.
    """
    result: tuple[Tensor, Tensor] = _ClampQuantize.apply(x, step, low, high, frames, isa)
    return result


def clamp_hold(
    x: Tensor, threshold: Tensor, low: float = -math.inf, high: float = math.inf, frames: int = 1, isa: str = ""
) -> tuple[Tensor, Tensor]:
    """The value that the receiver of codec `hold` has of clamp(x, low, high), and mean |value(t) - value(t-1)|.

    The gradient of a value goes to the frame that was sent. Arguments and results are those of `clamp_quantize`; for
    what `native` takes alone.
    """
    result: tuple[Tensor, Tensor] = _ClampHold.apply(x, threshold, low, high, frames, isa)
    return result
