"""Shapes of values: which axis a plan takes for channels."""

from __future__ import annotations

__all__ = ["Shape", "channel_axis", "is_map"]

Shape = tuple[int, ...]


def is_map(shape: Shape) -> bool:
    """(1, C, H, W): channels first. Of any other shape the last axis counts as channels."""
    return len(shape) == 4 and shape[0] == 1


def channel_axis(shape: Shape) -> int:
    """The axis that steps, scales and weights count as channels."""
    return 1 if is_map(shape) else len(shape) - 1
