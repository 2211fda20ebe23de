"""Frames as they come, and frames as a plan wants them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sparsetime.engine.ops import InputSpec
    from sparsetime.engine.plan import Plan

__all__ = ["FrameError", "FrameReader", "coloured", "is_tensor", "normalised"]

Array = NDArray[Any]


class FrameError(ValueError):
    """A frame does not fit the plan; the stream is as it was."""

    @classmethod
    def not_finite(cls) -> FrameError:
        return cls("the frame holds NaN or infinity, which would stay in the stream's sums for ever")


def is_tensor(x: Any) -> bool:
    """Whether x is a PyTorch tensor, without importing PyTorch for the question."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def normalised(frame: Array, spec: InputSpec | None) -> Array:
    """A checked frame as float32: bytes in the network's colour order, (x - mean) / std per channel.

    Raises:
        FrameError: values that are not finite.
    """
    if frame.dtype == np.uint8:
        if spec is None:
            return frame.astype(np.float32)
        channels = (1, -1) + (1,) * (frame.ndim - 2)
        mean, std = (np.asarray(numbers, np.float32).reshape(channels) for numbers in (spec.mean, spec.std))
        return np.asarray((coloured(frame, spec).astype(np.float32) - mean) / std)
    # A sum shows NaN and infinity in one pass without a mask; float64 keeps finite values from overflowing.
    if not np.isfinite(frame.sum(dtype=np.float64)):
        raise FrameError.not_finite()
    return frame


def coloured(frame: Array, spec: InputSpec | None) -> Array:
    """A view of RGB bytes in the network's colour order."""
    return frame[:, ::-1] if spec is not None and spec.color == "bgr" else frame


def _addressable(frame: Array) -> bool:
    """Whether elements lie whole steps forwards from an aligned start, as in nearly all arrays."""
    return frame.flags.aligned and all(s >= 0 and s % frame.itemsize == 0 for s in frame.strides)


class FrameReader:
    """Turns a frame, uint8 or floating point, numpy or torch, into float32 of the plan's input shape.

    Accepted for a plan of (1, C, H, W): (1, C, H, W), (C, H, W) and (H, W, C). A shape that fits two of these is taken
    as the first. uint8 is RGB, and normalised and put in the network's colour order as the plan says; floating point is
    taken as it is. float32 is copied only where its elements lie in unusual places (unaligned, backwards).

    Args:
        plan: the plan.
        mend: what to do where a frame has another shape, for the error.
    """

    def __init__(self, plan: Plan, mend: str = "Resize it, or compile the network for its size.") -> None:
        self._shape = plan.input_shape
        self._spec = plan.input
        self._mend = mend

    def __call__(self, frame: Any) -> Array:
        """The frame as float32 of the plan's input shape.

        Raises:
            FrameError: another shape, another data type, or values that are not finite.
        """
        return normalised(self.checked(frame), self._spec)

    def checked(self, frame: Any) -> Array:
        """The frame in the plan's input shape, float32 or still uint8 and RGB; a view where the layout allows.

        Raises:
            FrameError: another shape or another data type.
        """
        if is_tensor(frame):
            frame = frame.detach().cpu()
            # numpy has no bfloat16.
            frame = (frame.float() if frame.is_floating_point() and frame.element_size() < 4 else frame).numpy()
        if not isinstance(frame, np.ndarray):
            raise FrameError(f"expected a frame as a numpy array or a torch tensor, got {type(frame).__name__}")
        x = self._arranged(frame)
        if frame.dtype == np.uint8:
            return x
        if frame.dtype.kind != "f":
            raise FrameError(f"expected a frame of uint8 or floating point, got {frame.dtype}")
        x = x.astype(np.float32, copy=False)
        return x if _addressable(x) else x.copy()

    def _arranged(self, frame: Array) -> Array:
        shape = self._shape
        if frame.shape == shape:
            return frame
        if frame.shape == shape[1:]:
            return frame[None]
        if len(shape) == 4 and frame.shape == (shape[2], shape[3], shape[1]):
            return frame.transpose(2, 0, 1)[None]
        also = f", {shape[1:]} or {(shape[2], shape[3], shape[1])}" if len(shape) == 4 else f" or {shape[1:]}"
        raise FrameError(f"expected a frame of shape {shape}{also}, got {frame.shape}. {self._mend}")
