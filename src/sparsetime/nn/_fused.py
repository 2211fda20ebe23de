"""Clamp, quantize and penalty in one autograd node: the fast form of what `quantize` and `objective` say.

On a CPU a pass over memory that is fresh from the system costs ten times one over memory in the cache. So the work
goes frame by
frame through buffers that stay, and what is kept for the backward pass is the value, which the next layer keeps
anyhow, and one byte per element.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sparsetime.quantize import FLOOR

__all__ = ["clamp_quantize"]


class _ClampQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: float, high: float, frames: int) -> tuple[Tensor, Tensor]:
        q = step.detach().abs().clamp_min(FLOOR).to(x.dtype)
        ctx.frames = frames
        ctx.set_materialize_grads(False)  # None says that the penalty is in no loss
        clamped = low > -math.inf or high < math.inf
        value = torch.empty_like(x)
        inside = torch.empty_like(x, dtype=torch.bool) if clamped and ctx.needs_input_grad[0] else None
        total = x.new_zeros(())
        change = torch.empty_like(x[0])
        for i in range(x.shape[0]):
            frame, out = x[i], value[i]
            if inside is not None:
                torch.gt(frame, low, out=inside[i])
                if high < math.inf:
                    inside[i] &= frame < high
            if clamped:
                torch.clamp(frame, low, high, out=out).div_(q)
            else:
                torch.div(frame, q, out=out)
            out.round_().mul_(q)
            if i % frames:
                total += torch.sub(out, value[i - 1], out=change).abs_().sum()
        ctx.save_for_backward(value, inside, step)
        count = x.numel() // frames * (frames - 1)
        return value, total / max(count, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        grad_value, grad_penalty = grads[0], grads[1]
        value, inside, step = ctx.saved_tensors
        frames = ctx.frames
        weight: Tensor | None = None
        if frames >= 2 and grad_penalty is not None:
            weight = grad_penalty / (value.numel() // frames * (frames - 1))
        grad = torch.empty_like(value)
        product = torch.zeros_like(step, dtype=value.dtype)
        sign_before = sign_after = torch.empty(0)
        if weight is not None:
            sign_before, sign_after = torch.empty_like(value[0]), torch.empty_like(value[0])
        for i in range(value.shape[0]):
            out = grad[i]
            if grad_value is None:
                out.zero_()
            else:
                out.copy_(grad_value[i])
            if weight is not None:
                # d/dO(t) of sum |O(t) - O(t-1)| = sign(O(t) - O(t-1)) - sign(O(t+1) - O(t))
                if i % frames:
                    out += sign_before
                if (i + 1) % frames:
                    torch.sub(value[i + 1], value[i], out=sign_after).sign_().mul_(weight)
                    out -= sign_after
                    sign_before, sign_after = sign_after, sign_before
            if ctx.needs_input_grad[1]:
                product += _product(out, value[i], step)
            if inside is not None:
                out *= inside[i]
        grad_step = None
        if ctx.needs_input_grad[1]:
            # d value / d step = -n sign(step), n = value / q
            q = step.detach().abs().clamp_min(FLOOR)
            grad_step = -(product.to(step.dtype) / q) * torch.where(step < 0, -1.0, 1.0)
        return (grad if ctx.needs_input_grad[0] else None), grad_step, None, None, None


def _product(a: Tensor, b: Tensor, step: Tensor) -> Tensor:
    """Sum of a * b over what shares a step."""
    if step.dim():
        return (a * b).sum_to_size(step.shape)
    if a.dim() == 3 and a.stride() == b.stride():
        a, b = a.permute(1, 2, 0), b.permute(1, 2, 0)  # channels-last frames lie in this order
    return torch.dot(a.reshape(-1), b.reshape(-1))


def clamp_quantize(
    x: Tensor, step: Tensor, low: float = -math.inf, high: float = math.inf, frames: int = 1
) -> tuple[Tensor, Tensor]:
    """value = quantize(clamp(x, low, high), step, "dal") and mean |value(t) - value(t-1)|, t = 2..frames.

    Args:
        x: (N * frames, ...), floating point.
        step: broadcastable to a frame.
        low, high: the clamp; the gradient of x passes strictly inside. (0, inf) is ReLU, (0, 6) ReLU6.
        frames: frames of a clip, neighbours in the first dimension; below 2 the penalty is 0.

    Returns:
        value, the shape of x, and the penalty, a scalar.
    """
    result: tuple[Tensor, Tensor] = _ClampQuantize.apply(x, step, low, high, frames)
    return result
