"""The step-size quantizer: value = code * |step| with a step that can be learned.

    code n = round(a / q),   q = max(|step|, FLOOR),   value = n q      FLOOR in float16: its least normal number

Three rules say what gradient the step receives; the input's is the identity (straight-through) inside the range.

`dal` (Yousefzadeh and Sifalakis, arXiv 2107.07305), the negated gradient of the product:

    d value / d a = 1,   d value / d step = -n sign(step)

so a penalty on the change of the value makes the step grow (sparser), and a task that wants larger activations makes it
shrink. With the true gradient (+n) the penalty could be lowered by letting the step shrink to nothing.

`lsq` (Esser et al., arXiv 1902.08153), codes clipped to `levels`, LSQ_NEG <= n <= LSQ_POS:

    d value / d a = 1 inside the range, else 0
    d value / d step = (n - a/q) sign(step) inside, n sign(step) outside, times 1 / sqrt(M * LSQ_POS)

where M is the number of elements of a that share the step.

`fixed`: the step receives no gradient.

The floor lets gradients pass, so that a step that fell below it can come back.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from sparsetime.grad import round_ste, scale_grad, straight_through

__all__ = [
    "FLOOR",
    "LSQ_NEG",
    "LSQ_POS",
    "Granularity",
    "Rule",
    "SilentError",
    "check_step",
    "floored",
    "quantize",
    "step_from_data",
    "step_shape",
]

Rule = Literal["dal", "lsq", "fixed"]
Granularity = Literal["layer", "channel", "neuron"]

FLOOR = 1e-8
"""Smallest step: below it codes would overflow."""


class SilentError(ValueError):
    """Data that is all zero tells nothing of a step."""


LSQ_NEG, LSQ_POS = -128, 255
"""Range of the lsq rule's codes: 8 bits for signed values below zero, 8 bits for unsigned ones above."""


def step_shape(granularity: Granularity, frame_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the steps for frames of `frame_shape`, (C, H, W) or (F,), that broadcasts against a batch of them.

    layer: (); channel: (C, 1, 1) or (F,); neuron: the frame's own shape.
    """
    if granularity not in get_args(Granularity):
        raise ValueError(f"granularity must be one of {', '.join(get_args(Granularity))}, got {granularity!r}")
    if granularity == "layer":
        return ()
    if granularity == "channel":
        return (frame_shape[0],) + (1,) * (len(frame_shape) - 1)
    return tuple(frame_shape)


def check_step(step: Tensor, name: str = "step") -> None:
    """Refuse steps that are zero or not finite.

    Raises:
        ValueError: with the number of bad steps and the call that sets good ones.
    """
    if step.numel() == 1:  # the usual case, at every layer of every pass: numbers are quicker than tensors
        bad = int(not math.isfinite(number := step.item()) or number == 0)
    else:
        bad = int(((step == 0) | ~torch.isfinite(step)).sum())
    if bad:
        raise ValueError(
            f"{name}: a step must be finite and not zero, {bad} of {step.numel()} are not. "
            "Set it from data: sparsetime.calibrate(model, clips)."
        )


def floored(magnitude: Tensor) -> Tensor:
    """q of |step|, which is of the type that is divided by it."""
    # In float16 FLOOR itself is 0.
    return magnitude.clamp_min(max(FLOOR, torch.finfo(magnitude.dtype).tiny))


def quantize(a: Tensor, step: Tensor, rule: Rule = "dal") -> tuple[Tensor, Tensor]:
    """Round to multiples of a step; equations in this module's docstring.

    Args:
        a: activations, (..., C, H, W) or (..., F), floating point.
        step: broadcastable to a; only its magnitude counts.
        rule: the step's gradient.

    Returns:
        value, the shape of a; and code, integers kept in a's dtype. The code carries a gradient too (straight-through
        of a / q), so that `lsq` can penalise the change of codes.
    """
    if rule not in get_args(Rule):
        raise ValueError(f"rule must be one of {', '.join(get_args(Rule))}, got {rule!r}")
    q = straight_through(floored, step.abs().to(a.dtype))
    if rule == "fixed":
        code = round_ste(a / q.detach())
        return code * q.detach(), code
    if rule == "dal":
        code = round_ste(a / q.detach())
        return code * scale_grad(q, -1.0), code
    q = scale_grad(q, 1.0 / math.sqrt(a.numel() / max(step.numel(), 1) * LSQ_POS))
    code = round_ste((a / q).clamp(LSQ_NEG, LSQ_POS))
    return code * q, code


def step_from_data(a: Tensor, granularity: Granularity, percentile: float, levels: int) -> Tensor:
    """A step that divides the range of the data into `levels`: percentile of |a| / levels.

    Values that are zero do not count: a layer that is mostly silent would otherwise get a step near zero.

    Args:
        a: activations of some frames, (M, C, H, W) or (M, F).
        granularity: as for `step_shape`; channels or neurons that are silent in the data get the layer's step.

    Returns:
        steps of `step_shape(granularity, a.shape[1:])`, positive.

    Raises:
        SilentError: every value is zero.
        ValueError: some values are not finite, or percentile or levels make no sense.
    """
    if not 0 < percentile <= 100 or levels < 1:
        raise ValueError(f"expected 0 < percentile <= 100 and levels >= 1, got {percentile} and {levels}")
    magnitude = a.detach().abs().float()
    if not torch.isfinite(magnitude).all():
        raise ValueError("calibration data holds values that are not finite")
    if not magnitude.any():
        raise SilentError("calibration data is all zero: no step can be found from it")

    def scale(values: Tensor) -> Tensor:
        values = values[values > 0]
        index = max(math.ceil(values.numel() * percentile / 100), 1)
        return values.kthvalue(index).values

    layer = scale(magnitude.flatten())
    shape = step_shape(granularity, tuple(a.shape[1:]))
    if granularity == "layer":
        return layer / levels
    keep = 1 if granularity == "channel" else len(a.shape) - 1
    columns = magnitude.flatten(keep + 1) if keep < a.dim() - 1 else magnitude.unsqueeze(-1)
    columns = columns.movedim(0, -1).flatten(keep).flatten(0, keep - 1)  # (channels or neurons, samples)
    steps = [scale(column) if column.any() else layer for column in columns]
    return torch.stack(steps).reshape(shape) / levels
