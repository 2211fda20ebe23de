"""The Delta Activation Layer of Yousefzadeh and Sifalakis (arXiv 2107.07305)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsetime.codec import Codec, CodecState, StateError, check_state, encode, encode_clip
from sparsetime.nn._fused import clamp_hold, clamp_quantize, native
from sparsetime.nn._penalised import Penalised
from sparsetime.quantize import (
    LSQ_NEG,
    LSQ_POS,
    Granularity,
    Rule,
    check_step,
    floored,
    quantize,
    step_from_data,
    step_shape,
)

__all__ = ["ACTIVATIONS", "DeltaActivation", "DeltaState"]

Output = Literal["value", "delta", "delta_without_background"]

ACTIVATIONS: dict[str, tuple[float, float]] = {
    "identity": (-math.inf, math.inf),
    "relu": (0.0, math.inf),
    "relu6": (0.0, 6.0),
}
"""Activations that are a clamp, by name: these run fused with the quantizer. Any other one is passed as a function."""


class DeltaState(NamedTuple):
    """What a stream keeps of a layer: the accumulated input (None without `sigma`) and the last value sent."""

    sigma: Tensor | None
    codec: CodecState


class DeltaActivation(Penalised):
    """Activation, quantizer with a learned step, and codec; in training the change over time is penalised.

        Z(t) = sum_{s <= t} X(s) + b   with `sigma`, else  X(t) + b
        O(t) = Q(pool(f(Z(t))))        Q(a) = round(a / |step|) |step|            [arXiv 2107.07305]
        penalty = mean over n, t >= 2, elements of |O(t) - O(t-1)|

    The first frame is in no penalty. With the `lsq` rule the change of the codes is penalised instead: with that
    gradient a penalty on values would let the step shrink to nothing. Steps are trained with the codec `exact` alone.

    torch.func.grad and vmap are not supported (`torch.autograd.grad` is, and a batch of more clips), nor are gradients
    of gradients, except where the activation is a function.

    Clips are (N, T, C, H, W) or (N, T, F); with `frames=T`, (N * T, ...) as per-frame networks have them.

    Args:
        frame_shape: shape of one output frame, (C, H, W) or (F,); needed for steps per channel or neuron.
        activation: f, a name in `ACTIVATIONS` or a function of a tensor.
        step: initial step, positive.
        rule, granularity: of the quantizer, see `sparsetime.quantize`.
        codec: see `sparsetime.codec`; `exact` is the paper's.
        sigma: the input is a stream of deltas: accumulate it first.
        output: "value" (dense), "delta" (the first frame is sent whole, the background with it) or
            "delta_without_background" (the first frame sends nothing, like an event camera).
        bias: channels of a bias that is added after the accumulation, so that it enters once; 0 for none.
        pool: max pooling (kernel, stride) between activation and quantizer; None for none.
    """

    step: Tensor

    def __init__(
        self,
        frame_shape: tuple[int, ...] | None = None,
        *,
        activation: str | Callable[[Tensor], Tensor] = "relu",
        step: float = 1 / 16,
        rule: Rule = "dal",
        granularity: Granularity = "layer",
        codec: Codec = "exact",
        sigma: bool = False,
        output: Output = "value",
        bias: int = 0,
        pool: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        for value, allowed, what in (
            (rule, get_args(Rule), "rule"),
            (granularity, get_args(Granularity), "granularity"),
            (codec, get_args(Codec), "codec"),
            (output, get_args(Output), "output"),
        ):
            if value not in allowed:
                raise ValueError(f"DeltaActivation: {what} must be one of {', '.join(allowed)}, got {value!r}")
        if isinstance(activation, str) and activation not in ACTIVATIONS:
            raise ValueError(
                f"DeltaActivation: activation {activation!r} is not in {sorted(ACTIVATIONS)}; pass a function"
            )
        if granularity != "layer" and frame_shape is None:
            raise ValueError(f"DeltaActivation: granularity {granularity!r} needs frame_shape")
        self.activation = activation
        self.rule: Rule = rule
        self.granularity: Granularity = granularity
        self.codec: Codec = codec
        self.sigma = sigma
        self.output: Output = output
        self.pool = pool
        steps = torch.full(step_shape(granularity, frame_shape or ()), float(step))
        check_step(steps, "DeltaActivation: step")
        self.step = nn.Parameter(steps, requires_grad=rule != "fixed" and codec == "exact")
        self.bias = nn.Parameter(torch.zeros(bias)) if bias else None

    def extra_repr(self) -> str:
        name = self.activation if isinstance(self.activation, str) else getattr(self.activation, "__name__", "function")
        step = f"{self.step.item():.4g}" if self.step.dim() == 0 else f"{tuple(self.step.shape)}"
        text = f"{name}, step={step}, rule={self.rule}, codec={self.codec}"
        return text + (", sigma" if self.sigma else "") + (f", output={self.output}" if self.output != "value" else "")

    def forward(self, x: Tensor, frames: int | None = None) -> Tensor:
        """Clip form; see the class.

        Raises:
            ValueError: not the dimensions of a clip, an empty clip, a first dimension that `frames` does not divide, or
                frames that the steps do not fit.
            TypeError: a clip that is not floating point.
        """
        _check_floating_point(x)
        if frames is None:
            if x.dim() not in (3, 5):
                raise ValueError(
                    f"DeltaActivation: expected a clip (N, T, C, H, W) or (N, T, F), got {tuple(x.shape)}; "
                    "for (N * T, ...) pass frames=T"
                )
            n, t = x.shape[:2]
            output: Tensor = self.forward(x.flatten(0, 1), frames=t).unflatten(0, (n, t))
            return output
        if frames < 1 or x.shape[0] == 0 or x.shape[0] % frames:
            raise ValueError(f"DeltaActivation: {x.shape[0]} frames do not divide into clips of {frames}")
        x = self._add_bias(self._accumulate(x, frames))
        sent = penalty = None
        if self.enabled and self._fuses(x):
            low, high = ACTIVATIONS[self.activation]  # type: ignore[index]
            if self.codec == "hold":
                value, penalty = clamp_hold(x, self._checked_step(x), low, high, frames)
            else:
                value, penalty = clamp_quantize(x, self._checked_step(x), low, high, frames if self._penalised else 1)
        else:
            value, sent, penalty = self._plain(self._activate(x), frames)
        self._leave(penalty if self._penalised and frames > 1 else None, value)
        return value if self.output == "value" else self._deltas(value, sent, frames)

    def step_stream(self, x: Tensor, state: DeltaState | None) -> tuple[Tensor, DeltaState]:
        """One frame of a stream: a pure function of the frame (N, C, H, W) or (N, F) and the state before it.

        T calls give what `forward` gives on the clip. None starts a stream.

        Raises:
            StateError: the state belongs to frames of another shape, dtype or device, or to a layer that accumulates
                where this one does not, or the other way round.
            ValueError: a frame that the steps do not fit.
            TypeError: a frame that is not floating point.
        """
        _check_floating_point(x)
        sigma = None
        if state is not None and self.sigma == (state.sigma is None):
            raise StateError(
                f"DeltaActivation: a layer with sigma={self.sigma} met the state of one with sigma={not self.sigma}. "
                "A new stream? Start again with state=None."
            )
        if self.sigma:
            if state is None or state.sigma is None:
                sigma = x.clone()  # it never shares memory with the caller's frame
            else:
                check_state(x, state.sigma, "DeltaActivation")
                sigma = state.sigma + x
            x = sigma
        a = self._activate(self._add_bias(x))
        before = None if state is None else state.codec
        if self.enabled:
            step = self._checked_step(a)
            delta, codec = encode(self._clip(a), before, step, self.codec)
        else:
            delta, codec = encode(a, before, torch.zeros_like(self.step), "hold")  # every change is sent
        if self.output == "delta_without_background" and state is None:
            delta = torch.zeros_like(delta)
        return (codec.reference.clone() if self.output == "value" else delta), DeltaState(sigma, codec)

    def calibrate(self, x: Tensor, percentile: float = 99.0, levels: int = 16, frames: int = 1) -> None:
        """Set the steps from data: percentile of |activation| / levels (see `step_from_data`), and the scale.

        The scale is the range in what the penalty measures: the percentile, or `levels` where codes are penalised.

        Args:
            x: inputs of this layer, (M, C, H, W) or (M, F).
            frames: T, if x are clips (N * T, ...); a layer with `sigma` has to know.
        """
        with torch.no_grad():
            a = self._activate(self._add_bias(self._accumulate(x, frames)))
            self._check_frames(a)
            self.step.copy_(step_from_data(a, self.granularity, percentile, levels))
            self.scale.copy_(
                torch.tensor(float(levels)) if self.rule == "lsq" else step_from_data(a, "layer", percentile, 1)
            )

    def _fuses(self, x: Tensor) -> bool:
        if not isinstance(self.activation, str) or self.pool is not None:
            return False
        # The deltas of `hold` are made with the values, and are those that `encode` makes.
        return (self.codec == "exact" and self.rule == "dal") or (
            self.codec == "hold" and self.output == "value" and native(x, self.step)
        )

    def _check_frames(self, a: Tensor) -> None:
        """Refuse frames (M, ...) of another size than steps by channel or neuron are for."""
        shape = self.step.shape
        if shape and (
            a.dim() - 1 != len(shape) or any(s not in (1, n) for s, n in zip(shape, a.shape[1:], strict=True))
        ):
            raise ValueError(
                f"DeltaActivation: steps by {self.granularity}, of shape {tuple(shape)}, do not fit frames of shape "
                f"{tuple(a.shape[1:])}. For frames of any size: granularity='layer'"
                + (" or 'channel'" if self.granularity == "neuron" else "")
                + ". For frames of this size: frame_shape, which sparsify takes from its example"
            )

    def _checked_step(self, a: Tensor) -> Tensor:
        self._check_frames(a)
        if self.step.device.type == "cpu":  # elsewhere the check would wait for the device at every layer
            check_step(self.step.detach(), "DeltaActivation: step")
        return self.step

    def _accumulate(self, x: Tensor, frames: int) -> Tensor:
        return x.unflatten(0, (-1, frames)).cumsum(1).flatten(0, 1) if self.sigma else x

    def _add_bias(self, x: Tensor) -> Tensor:
        return x if self.bias is None else x + self.bias.view(-1, *(1,) * (x.dim() - 2))

    def _activate(self, x: Tensor) -> Tensor:
        if isinstance(self.activation, str):
            # Not clamp: its gradient at the bounds is 1, theirs is 0.
            a = x if self.activation == "identity" else getattr(F, self.activation)(x)
        else:
            a = self.activation(x)
        return a if self.pool is None else F.max_pool2d(a, *self.pool)

    def _clip(self, a: Tensor) -> Tensor:
        """The range of the `lsq` rule's codes, which `encode` does not know."""
        if self.rule != "lsq" or self.codec != "exact":
            return a
        q = floored(self.step.abs().to(a.dtype))
        return a.clamp(LSQ_NEG * q, LSQ_POS * q)

    def _plain(self, a: Tensor, frames: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Quantizer and codec one after the other: the meaning, and the path of all that is not fused.

        Returns values; where the codec makes its own, the deltas; and the penalty.
        """
        if not self.enabled:
            return a, None, None
        sent, step = None, self._checked_step(a)
        clip = a.unflatten(0, (-1, frames))
        if self.codec == "exact":
            value, code = quantize(clip, step, self.rule)
            measured = code if self.rule == "lsq" else value
        else:
            sent, value, _ = encode_clip(clip, None, step, self.codec)
            measured = value
        penalty = torch.diff(measured, dim=1).abs().mean() if self._penalised and frames > 1 else None
        return value.flatten(0, 1), sent, penalty

    def _deltas(self, value: Tensor, sent: Tensor | None, frames: int) -> Tensor:
        """What `encode` sends frame by frame, (N * T, ...)."""
        if sent is None:
            clip = value.unflatten(0, (-1, frames))
            sent = torch.diff(clip, dim=1, prepend=torch.zeros_like(clip[:, :1]))
        if self.output == "delta_without_background":
            sent = torch.cat([torch.zeros_like(sent[:, :1]), sent[:, 1:]], 1)
        return sent.flatten(0, 1)


def _check_floating_point(x: Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(f"DeltaActivation: expected floating point, got {x.dtype}; give the network clip.float()")
