"""Streams that are maps, though their shapes do not say so: (1, C, L), (1, H, W, C), channels in groups.

A plan takes axis 1 of (1, C, H, W) for channels and the last axis of all other shapes. What computes on a value in the
wrong form would take a whole row, or a channel of the whole map, for one pixel. A form says which map a stream is.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from sparsetime.engine.shapes import Shape, is_map

__all__ = ["CHANNELS_LAST", "GROUPS", "MAP", "ROW", "TOKENS", "Form", "form_of"]


@dataclass(frozen=True)
class Form:
    """On which axes of a map the axes of a stream stand, and, from its rank on, axes of one element."""

    axes: tuple[int, int, int, int]

    def there(self, x: Tensor, shape: Shape) -> Tensor:
        """The elements of a map, from those of a stream that can be broadcast to `shape`."""
        thick = x.reshape(*(1,) * (len(shape) - x.dim()), *x.shape, *(1,) * (4 - len(shape)))
        return thick.permute([self.axes.index(k) for k in range(4)])

    def back(self, x: Tensor, shape: Shape) -> Tensor:
        """The elements of a stream of `shape`, from those of a map."""
        return x.permute(self.axes).reshape(shape)

    def split(self, shape: Shape, axes: Collection[int]) -> tuple[Tensor, set[int]]:
        """What a sum over axes of a stream of `shape` adds up on the map.

        Returns:
            numbers of channels, (groups, channels of each), and axes of places, 2 and 3.
        """
        gone = {self.axes[k] for k in axes}
        channels = torch.arange(self.there(torch.empty(shape), shape).shape[1])
        return channels.reshape((1, -1) if 1 in gone else (-1, 1)), gone - {1}


class _Groups(Form):
    """(1, ..., H, W), where all that is between stands on the channels."""

    def there(self, x: Tensor, shape: Shape) -> Tensor:
        thick = x.reshape(*(1,) * (len(shape) - x.dim()), *x.shape)
        if prod(thick.shape[:-2]) > 1:
            thick = thick.expand(*shape[:-2], -1, -1)
        return thick.reshape(1, -1, *thick.shape[-2:])

    def back(self, x: Tensor, shape: Shape) -> Tensor:
        return x.reshape(shape)

    def split(self, shape: Shape, axes: Collection[int]) -> tuple[Tensor, set[int]]:
        between = range(1, len(shape) - 2)
        gone, kept = ([k - 1 for k in between if (k in axes) == there] for there in (True, False))
        channels = torch.arange(prod(shape[1:-2])).reshape(shape[1:-2]).permute(*kept, *gone)
        groups = channels.reshape(prod(shape[k + 1] for k in kept), -1)
        return groups, {k - len(shape) + 4 for k in axes if k >= len(shape) - 2}


MAP = Form((0, 1, 2, 3))
ROW = Form((0, 1, 3, 2))
TOKENS = Form((0, 2, 1, 3))
CHANNELS_LAST = Form((0, 2, 3, 1))
GROUPS = _Groups((0, 1, 2, 3))

_FORMS = {3: (TOKENS, ROW), 4: (MAP, CHANNELS_LAST)}


def form_of(index: Tensor, made_of: Shape) -> Form | None:
    """The form in which elements of a map are a map again: those of a channel come from one channel.

    Args:
        index: numbers of the elements, -1 for a zero; batch 1.
        made_of: shape of what they are the elements of.
    """
    shape = tuple(index.shape)
    if not is_map(made_of) or len(shape) < 3 or shape[0] != 1:
        return None
    area = made_of[2] * made_of[3]
    for form in _FORMS.get(len(shape), (GROUPS,)):
        channel = torch.div(form.there(index, shape), area, rounding_mode="floor")
        if bool(((channel == channel.amax((2, 3), keepdim=True)) | (channel < 0)).all()):
            return form
    return None
