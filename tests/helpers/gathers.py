"""Plans of one gather, in every form that the native side tells apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsetime.engine import Op, Plan

SHAPE = (1, 20, 4, 6)

GATHERS: dict[str, Callable[[Tensor], Tensor]] = {  # of the numbers of a map's elements, -1 for a zero
    "pixels in another order": lambda x: x.flip(3).roll(1, 2),
    "windows": lambda x: x.reshape(1, 20, 2, 2, 3, 2).permute(0, 2, 4, 3, 5, 1).reshape(1, 24, 20),
    "pixels and zeros": lambda x: F.pad(x, (1, 0, 0, 2), value=-1),
    "some of the pixels twice": lambda x: x[:, :, ::2].repeat(1, 1, 1, 2),
    "a part of the channels of tokens": lambda x: x.flatten(2).transpose(1, 2)[..., 3:19],
    "channels of tokens in another order": lambda x: x.flatten(2).transpose(1, 2)[..., [5, 19, 0, 5]],
    "channels that are zeros": lambda x: F.pad(x.flatten(2).transpose(1, 2)[..., :7], (2, 1), value=-1),
    "channels of another pixel": lambda x: torch.cat([x[:, :10].flip(3), x[:, 10:]], 1),
    "pixels shuffled into channels": lambda x: F.pixel_unshuffle(x, 2),
    "zeros alone": lambda x: torch.full_like(x, -1),
}


def gather_plan(name: str, codec: bool) -> Plan:
    """The input, with `hold` or as it comes, and the gather of that name."""
    index = GATHERS[name](torch.arange(480, dtype=torch.float32).reshape(SHAPE))
    tensors = {"i": index.numpy().astype(np.int32).ravel()}
    if codec:
        tensors["s"] = np.asarray([0.25], np.float32)
    ops = (
        Op("input", "input", (), (0,), codec={"kind": "hold", "tensor": "s"} if codec else None),
        Op("gather", "gather", (0,), (1,), {}, {"index": "i"}),
    )
    return Plan("gather", (SHAPE, tuple(index.shape)), ops, (1,), {"output": 0}, tensors)
