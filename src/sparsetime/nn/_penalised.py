"""What layers with a penalty have in common."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Penalised"]


@dataclass
class _Pass:
    """A forward pass of a layer in training: whether `sparsetime.penalty` was called after it, before the next."""

    asked: bool = False
    gradients: bool = True


class Penalised(nn.Module):
    """A layer whose last forward pass left a penalty, see `sparsetime.objective`.

    A layer that runs twice before `sparsetime.penalty` is called has the penalty of the second pass alone. Where a loss
    has both passes and that penalty, its backward pass raises a ValueError.

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
        self._pass = _Pass()

    def asked(self) -> None:
        """Note that the penalty of the last pass goes into a loss."""
        self._pass.asked = True

    def _leave(self, penalty: Tensor | None, value: Tensor) -> None:
        """Keep the penalty of a pass that gives `value`."""
        self.penalty = penalty
        if torch.compiler.is_compiling():
            return
        if self.training and not torch.is_grad_enabled():
            self._pass = _Pass(gradients=False)
        elif self._pass.asked and not self._pass.gradients and torch._C._current_graph_task_id() != -1:
            raise ValueError(
                f"{type(self).__name__}: torch.utils.checkpoint ran the layer without gradients and runs it again in "
                "the backward pass, so its penalty is in no loss. Call checkpoint with use_reentrant=False"
            )
        if penalty is None or value.grad_fn is None:
            return
        this = self._pass = _Pass()
        layer = weakref.ref(self)  # the graph lives in the penalty, so the layer would hold itself

        def check(_: Tensor) -> None:
            last = layer()
            if last is not None and last._pass is not this and last._pass.asked and not this.asked:
                raise ValueError(
                    f"{type(last).__name__}: the layer ran more than once in this loss, and sparsetime.penalty was "
                    "called after the last pass only, so the penalty of the others is lost. Add up "
                    "sparsetime.penalty(model) after each pass, or run all inputs as one batch, torch.cat([x, y])"
                )

        value.register_hook(check)

    @property
    def _penalised(self) -> bool:
        return self.training and torch.is_grad_enabled()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"penalty": None, "_pass": _Pass()}
