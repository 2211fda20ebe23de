"""Gradient rules: the few ways in which a backward pass may differ from its forward pass.

Everything that is not differentiable in this library is one of these four: a function with identity gradient
(`straight_through`), a gradient times a constant (`scale_grad`), the value of one tensor with the gradient of another
(`replace`), and a spike with a surrogate gradient (`spike`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["SURROGATES", "replace", "round_ste", "scale_grad", "spike", "straight_through"]


class _Replace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, forward: Tensor, backward: Tensor) -> Tensor:
        return forward.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, grads[0]


class _ScaleGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, surrogate: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(u)
        ctx.surrogate = surrogate
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (u,) = ctx.saved_tensors
        return grads[0] * ctx.surrogate(u), None


def replace(forward: Tensor, backward: Tensor) -> Tensor:
    """The value of `forward` with the gradient of `backward`.

    y = forward;   dL/dbackward = dL/dy,   dL/dforward = 0

    Args:
        forward: the value that goes on, any shape.
        backward: the tensor that receives the gradient, same shape.

    Raises:
        ValueError: the shapes differ.
    """
    if forward.shape != backward.shape:
        raise ValueError(
            f"replace: forward and backward must have one shape, got {tuple(forward.shape)} and {tuple(backward.shape)}"
        )
    result: Tensor = _Replace.apply(forward.detach(), backward)
    return result


def straight_through(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function(x)` with the gradient of the identity: y = f(x), dy/dx = 1."""
    with torch.no_grad():
        y = function(x)
    return replace(y, x)


def round_ste(x: Tensor) -> Tensor:
    """Round to the nearest integer (halves to even) with the gradient of the identity."""
    return straight_through(torch.round, x)


def scale_grad(x: Tensor, factor: float) -> Tensor:
    """The identity whose gradient is multiplied by a constant: y = x, dy/dx = factor.

    factor = -1 gives the negated step gradient of the Delta Activation Layer, 0 stops the gradient.
    """
    result: Tensor = _ScaleGrad.apply(x, factor)
    return result


SURROGATES: dict[str, Callable[[Tensor], Tensor]] = {
    "straight": torch.ones_like,
    # (1 - |u|)+, width 1: temporal efficient training (arXiv 2202.11946)
    "triangle": lambda u: (1 - u.abs()).clamp_min(0),
    # derivative of a logistic of slope 4: online training through time (arXiv 2210.04195)
    "sigmoid": lambda u: 4 * torch.sigmoid(4 * u) * (1 - torch.sigmoid(4 * u)),
    # 1 / (1 + 25 |u|)^2 (Zenke and Ganguli 2018)
    "fast_sigmoid": lambda u: 1 / (1 + 25 * u.abs()).square(),
    # derivative of arctan(pi u) / pi (Fang et al. 2021)
    "atan": lambda u: 1 / (1 + (math.pi * u).square()),
}


def spike(u: Tensor, surrogate: str = "triangle") -> Tensor:
    """A spike where u reaches 0, with a surrogate gradient.

    s = H(u), H(0) = 1;   ds/du = SURROGATES[surrogate](u)

    Raises:
        KeyError: no surrogate of that name.
    """
    if surrogate not in SURROGATES:
        raise KeyError(f"spike: no surrogate {surrogate!r}; known: {', '.join(sorted(SURROGATES))}")
    result: Tensor = _Spike.apply(u, SURROGATES[surrogate])
    return result
