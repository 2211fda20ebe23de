"""The baseline: a penalty on the activations themselves, which makes them sparse in space."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsetime.nn._penalised import Penalised
from sparsetime.quantize import step_from_data

__all__ = ["SpatialL1"]


class SpatialL1(Penalised):
    """Passes its input on and penalises its mean magnitude.

    O = X,   penalty = mean |X|

    The control against which temporal sparsity is compared (arXiv 2107.07305, "L1"). Shapes as in `DeltaActivation`.
    """

    def forward(self, x: Tensor, frames: int | None = None) -> Tensor:
        """The input itself; `frames` is accepted so that the layer fits where a `DeltaActivation` fits."""
        penalty = None
        if self.enabled and self._penalised:
            wide = torch.promote_types(x.dtype, torch.float32)  # a sum in float16 ends at 65504
            penalty = (torch.linalg.vector_norm(x, 1, dtype=wide) / x.numel()).to(x.dtype)
        self._leave(penalty, x)
        return x

    def calibrate(self, x: Tensor, percentile: float = 99.0, levels: int = 16, frames: int = 1) -> None:
        """Set the scale, the percentile of |x|, which makes the penalty unit-free."""
        del levels, frames  # no steps here, no time
        self.scale.copy_(step_from_data(x, "layer", percentile, 1))
