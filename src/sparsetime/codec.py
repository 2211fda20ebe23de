"""Codecs: how a layer decides what to send.

A codec is a pure function from the new frame and a state to a delta and a new state; the receiver adds deltas up. The
state is the last value sent, `reference` r; None stands for a stream that starts (flush): r = 0 and everything is sent,
y = Q(x) for `exact`, y = x for the others.

    exact     y = Q(x) - r,                            r' = Q(x)       Q rounds to multiples of the step
    hold      y = x - r  where |x - r| > theta, else 0,  r' = r + y    send-on-delta
    pixel     y = x - r  where sum_c ((x - r) / theta)_c^2 > C, else 0, r' = r + y    the same for whole pixels: all C
              channels of a place are sent, or none, as the root mean square of their changes in thresholds is above 1;
              channels are axis 1 of (N, C, H, W), the last axis of any other frame, as in plans
    residual  y = q trunc((x - r) / q),                 r' = r + y    sigma-delta: whole steps are sent, the rest is
    kept

`exact` is the paper's (arXiv 2107.07305, quantised activations are differenced), `hold` that of delta networks
(arXiv 1612.05571), `pixel` its form for vectors (a receiver that computes whole pixels pays for pixels), `residual`
that of sigma-delta networks (arXiv 1611.02024): x - r holds both the newest change and all that was not sent before.
Equal to the receiver at every time: the sum of the deltas is r (up to rounding; `hold` and `pixel` keep the frame's own
number).

Gradients: `hold` and `pixel` pass them to the frame that was sent, `residual` straight through to the newest one,
`exact` none (see `sparsetime.quantize`); the step receives none.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from sparsetime.grad import straight_through
from sparsetime.quantize import floored

__all__ = [
    "LEAST_THRESHOLD",
    "Codec",
    "CodecState",
    "StateError",
    "check_state",
    "encode",
    "encode_clip",
    "pixels_sent",
]

Codec = Literal["exact", "hold", "pixel", "residual"]

LEAST_THRESHOLD = 1e-18
"""Of `pixel`, which divides by thresholds: smaller ones count as this."""


class StateError(ValueError):
    """A state does not belong to the frame that it met."""


class CodecState(NamedTuple):
    """The last value sent, per element: same shape, dtype and device as a frame."""

    reference: Tensor


def check_state(x: Tensor, kept: Tensor, name: str = "encode") -> None:
    """Refuse a frame that is not of the shape, dtype and device of what a state keeps.

    Raises:
        StateError: with both.
    """
    r = kept
    if (r.shape, r.dtype, r.device) != (x.shape, x.dtype, x.device):
        raise StateError(
            f"{name}: state is for {tuple(r.shape)} {r.dtype} on {r.device}, got a frame {tuple(x.shape)} {x.dtype} on "
            f"{x.device}. A new stream? Start again with state=None."
        )


def _check(x: Tensor, state: CodecState | None, codec: str) -> None:
    if codec not in get_args(Codec):
        raise ValueError(f"codec must be one of {', '.join(get_args(Codec))}, got {codec!r}")
    if state is not None:
        check_state(x, state.reference)


def pixels_sent(change: Tensor, threshold: Tensor, axis: int) -> Tensor:
    """Where `pixel` sends: sum_c (change_c / threshold_c)^2 > C.

    Args:
        change: x - r, C entries along `axis`.
        threshold: broadcastable to `change`.

    Returns:
        booleans of the shape of `change`, the same for all channels of a place.
    """
    wide = torch.promote_types(change.dtype, torch.float32)  # in float16 the least threshold is 0
    scaled = change.to(wide) * threshold.to(wide).clamp_min(LEAST_THRESHOLD).reciprocal()
    return (scaled.square().sum(axis, keepdim=True) > change.shape[axis]).expand_as(change)


def encode(x: Tensor, state: CodecState | None, step: Tensor, codec: Codec = "exact") -> tuple[Tensor, CodecState]:
    """Encode one frame; equations in this module's docstring.

    Args:
        x: the frame, (N, C, H, W), (N, L, F) or (N, F), floating point.
        state: what the last call returned, or None at the start of a stream.
        step: q, or theta for `hold` and `pixel`; broadcastable to x, its magnitude counts.

    Returns:
        the delta, shape of x, exact zeros where nothing is sent; and the new state, which shares no memory with x.

    Raises:
        StateError: state and frame differ in shape, dtype or device.
    """
    _check(x, state, codec)
    q = step.detach().abs().to(x.dtype)
    if codec not in ("hold", "pixel"):
        q = floored(q)
    if codec == "exact":
        value = torch.round(x / q) * q
        return (value.clone() if state is None else value - state.reference), CodecState(value)
    if state is None:
        return x.clone(), CodecState(x.clone())
    change = x - state.reference
    if codec in ("hold", "pixel"):
        sent = change.abs() > q if codec == "hold" else pixels_sent(change, q, 1 if x.dim() == 4 else -1)
        # The reference takes x itself: r + (x - r) may differ from it in the last bit.
        return torch.where(sent, change, 0.0), CodecState(torch.where(sent, x, state.reference))
    delta = straight_through(torch.trunc, change / q) * q
    return delta, CodecState(state.reference + delta)


def encode_clip(
    x: Tensor, state: CodecState | None, step: Tensor, codec: Codec = "exact"
) -> tuple[Tensor, Tensor, CodecState]:
    """Encode a whole clip at once: what T calls of `encode` would do.

    Args:
        x: clip, (N, T, C, H, W), (N, T, L, F) or (N, T, F).
        state: state before the clip, or None.
        step: as for `encode`, broadcastable to one frame.

    Returns:
        deltas and references (the value that the receiver holds at each time), both of x's shape; and the state after
        it.

    Raises:
        StateError: as for `encode`.
        ValueError: the clip has no frame.
    """
    if x.dim() < 2 or x.shape[1] == 0:
        raise ValueError(f"encode_clip: expected a clip (N, T, ...) with T >= 1, got shape {tuple(x.shape)}")
    _check(x[:, 0], state, codec)
    if codec == "exact":
        q = floored(step.detach().abs().to(x.dtype))
        value = torch.round(x / q) * q
        before = torch.zeros_like(x[:, :1]) if state is None else state.reference.unsqueeze(1)
        deltas = torch.diff(value, dim=1, prepend=before)
        return deltas, value, CodecState(value[:, -1].clone())
    # What is sent depends on all that was sent before: no closed form over T.
    deltas_list, references = [], []
    for frame in x.unbind(1):
        delta, state = encode(frame, state, step, codec)
        deltas_list.append(delta)
        references.append(state.reference)
    assert state is not None
    return torch.stack(deltas_list, 1), torch.stack(references, 1), CodecState(state.reference.clone())
