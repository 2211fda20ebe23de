"""Poolings and resizings as tables: which input rows and columns each output row and column reads."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["adaptive_windows", "pool_windows", "resize_taps"]

Array = NDArray[Any]


def pool_windows(
    size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool
) -> tuple[Array, NDArray[np.int64]]:
    """Windows of a pooling along one axis.

    Returns:
        (n, 2) int32 of [start, end) inside the map, and the number of places in each window, padding included.
    """
    reach = dilation * (kernel - 1) + 1
    steps = (size + 2 * padding - reach) / stride
    count = (math.ceil(steps) if ceil_mode else math.floor(steps)) + 1
    # PyTorch drops a last window that would start in the padding behind the map.
    if ceil_mode and (count - 1) * stride >= size + padding:
        count -= 1
    windows, places = [], []
    for i in range(count):
        start = i * stride - padding
        end = min(start + reach, size + padding)
        places.append(len(range(start, end, dilation)))
        if start < 0:
            start += math.ceil(-start / dilation) * dilation
        windows.append((start, min(end, size)))
    return np.asarray(windows, np.int32), np.asarray(places, np.int64)


def adaptive_windows(size: int, out: int) -> Array:
    """Windows of an adaptive pooling along one axis, (out, 2) int32."""
    return np.asarray([(i * size // out, -(-(i + 1) * size // out)) for i in range(out)], np.int32)


def resize_taps(resize: Callable[[Tensor], Tensor], size: int) -> tuple[Array, Array]:
    """Places and weights of a resizing along one axis, read off the operation itself.

    Args:
        resize: the operation, (1, size, size, 1) to (1, size, out, 1), along the third axis.
        size: extent of that axis.

    Returns:
        (out, K) int32 and (out, K) float32; unused entries have weight 0.
    """
    matrix = resize(torch.eye(size).reshape(1, size, size, 1))[0, :, :, 0].T.numpy()  # (out, size)
    taps = max(int((matrix != 0).sum(axis=1).max()), 1)
    index = np.argsort(matrix == 0, axis=1, kind="stable")[:, :taps]
    return index.astype(np.int32), np.take_along_axis(matrix, index, axis=1).astype(np.float32)
