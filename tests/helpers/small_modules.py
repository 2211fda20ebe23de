"""Modules in a line, and clips to run them on."""

import numpy as np
import torch
from torch import Tensor, nn


class Function(nn.Module):
    """A function with some layers and buffers beside it."""

    def __init__(self, function, **parts: nn.Module | nn.Buffer) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor):
        return self.function(self, x)


def clip(shape=(1, 6, 9, 11), count=4) -> list[Tensor]:
    """Frames of which each changes a third of the elements of the one before."""
    generator = torch.Generator().manual_seed(0)
    frame, result = torch.randn(shape, generator=generator) * 3, []
    for _ in range(count):
        result.append(frame)
        changed = torch.rand(shape, generator=generator) < 0.3
        frame = torch.where(changed, torch.randn(shape, generator=generator) * 3, frame)
    return result


def error(got, expected: Tensor, exact: Tensor) -> None:
    """At most twice what PyTorch itself makes in float32, with a floor of one rounding."""
    scale = exact.abs().max().item()
    own = (expected.double() - exact).abs().max().item()
    bound = 2 * own + 4 * len(clip()) * np.finfo(np.float32).eps * scale
    assert (torch.as_tensor(got).double() - exact).abs().max().item() <= bound
