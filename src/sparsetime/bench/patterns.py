"""Frames in which a stated share changes.

    clustered   whole pixels, in one square
    pixels      whole pixels, each by itself
    elements    single values

All arrays are float32 and (1, C, H, W).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Pattern", "change", "there_and_back"]

Pattern = Literal["clustered", "pixels", "elements"]
Array = NDArray[Any]
Shape = tuple[int, ...]


def _square(shape: Shape, share: float, at: tuple[float, float]) -> Array:
    """A mask (1, 1, H, W) with one square, stretched as the frame is."""
    height, width = shape[2:]
    wanted = share * height * width
    rows = min(max(round(wanted**0.5 * (height / width) ** 0.5), 1), height)
    columns = min(max(round(wanted / rows), 1), width)
    mask = np.zeros((1, 1, height, width), bool)
    y, x = round(at[0] * (height - rows)), round(at[1] * (width - columns))
    mask[:, :, y : y + rows, x : x + columns] = share > 0
    return mask


def _mask(shape: Shape, pattern: Pattern, share: float, rng: np.random.Generator, at: tuple[float, float]) -> Array:
    """Where something changes; broadcasts to the shape."""
    if pattern == "clustered":
        return _square(shape, share, at)
    one = shape if pattern == "elements" else (1, 1, *shape[2:])
    # Exactly the share, whatever the seed: small maps would stray from it otherwise.
    mask = np.zeros(int(np.prod(one)), bool)
    mask[rng.permutation(mask.size)[: round(share * mask.size)]] = True
    return mask.reshape(one)


def change(
    shape: Shape,
    pattern: Pattern,
    share: float,
    rng: np.random.Generator,
    at: tuple[float, float] = (0.5, 0.5),
) -> Array:
    """A change of `share` of a frame; magnitudes 0.5 to 1, both signs, exact zeros elsewhere.

    Args:
        shape: (1, C, H, W).
        pattern: see above.
        share: 0 to 1; `clustered` and `pixels` round it to whole pixels.
        rng: where the places and values come from.
        at: where the square stands, from the upper left (0, 0) to the lower right (1, 1).
    """
    values = rng.uniform(0.5, 1.0, shape).astype(np.float32)
    np.negative(values, out=values, where=rng.random(shape) < 0.5)
    mask: Array = _mask(shape, pattern, share, rng, at)
    return np.where(mask, values, np.float32(0))


def there_and_back(shape: Shape, pattern: Pattern, share: float, *, changes: int = 6, seed: int = 0) -> list[Array]:
    """A cycle of frames: a still image, and on it in every other frame a change, each time elsewhere.

        b, b + d1, b, b + d2, b, ...

    Exactly `share` of a frame differs from the one before. A stream with `hold` codecs is back in the same state at
    every b: what was sent for d is sent back, what was too small was never sent. So the density does not depend on how
    long the stream has been running, as it does with noise that never returns.

    The square of `clustered` moves on from the upper left to the lower right.
    """
    rng = np.random.default_rng(seed)
    base = rng.standard_normal(shape).astype(np.float32)
    frames = []
    for k in range(changes):
        along = (k + 0.5) / changes
        frames += [base, base + change(shape, pattern, share, rng, (along, along))]
    return frames
