"""What layers with a penalty have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Penalised"]


class Penalised(nn.Module):
    """A layer whose last forward pass left a penalty, see `sparsetime.objective`.

    Attributes:
        enabled: False passes values through and leaves no penalty.
        weight: share of the network's MACs that this layer feeds.
        scale: range of the activation; makes penalties unit-free.
        penalty: of the last forward pass in training, else None. It belongs to that pass: copies do not have it.
    """

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(1.0))
        self.enabled = True
        self.weight = 1.0
        self.penalty: Tensor | None = None

    @property
    def _penalised(self) -> bool:
        return self.training and torch.is_grad_enabled()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"penalty": None}
