"""Shapes of values and weights: which axis counts as channels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Shape", "channel_axis", "is_map", "shaped_to_weight"]

Array = NDArray[Any]
Shape = tuple[int, ...]


def is_map(shape: Shape) -> bool:
    """(1, C, H, W): channels first. Of any other shape the last axis counts as channels."""
    return len(shape) == 4 and shape[0] == 1


def channel_axis(shape: Shape) -> int:
    """The axis that steps, scales and weights count as channels."""
    return 1 if is_map(shape) else len(shape) - 1


def shaped_to_weight(entries: Array, shape: Shape, axis: int, groups: int) -> Array:
    """One entry a channel, shaped to multiply weights (O, C/g, kh, kw), transposed (C, O/g, kh, kw), or linear (O, C).

    Channels of axis 1 are counted group by group.
    """
    if axis == 1:
        entries = np.repeat(entries.reshape(groups, -1), shape[0] // groups, axis=0)
    return entries.reshape(*entries.shape, *(1,) * (len(shape) - axis - 1))
