"""Networks that bring their own quantisers, made ready for export."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparsetime.convert.draft import CompileError
from sparsetime.convert.network import SparseNetwork
from sparsetime.nn import ACTIVATIONS, DeltaActivation
from sparsetime.quantize import FLOOR, LSQ_NEG, LSQ_POS, check_step

__all__ = ["prepared"]


class _Marked(nn.Module):
    """A delta layer as an exported graph should show it: its activation, then the mark of a codec."""

    def __init__(self, layer: DeltaActivation, name: str) -> None:
        super().__init__()
        if layer.sigma or layer.output != "value":
            raise CompileError(
                f"delta layer '{name}' exchanges deltas (sigma={layer.sigma}, output={layer.output!r}). A plan makes "
                "them itself: build the network with layers that give values (output='value', sigma=False)."
            )
        check_step(layer.step.detach(), f"delta layer '{name}'")
        self.register_buffer("step", layer.step.detach().abs().clamp_min(FLOOR))
        self.codec = layer.codec
        self.bounds = (LSQ_NEG, LSQ_POS) if layer.rule == "lsq" and layer.codec == "exact" else (0, 0)
        self.enabled = layer.enabled
        self.activation: Callable[[Tensor], Tensor] | None = None
        self.clamp = (-math.inf, math.inf)
        if isinstance(layer.activation, str):
            self.clamp = ACTIVATIONS[layer.activation]
        else:
            self.activation = layer.activation
        self.bias = None if layer.bias is None else layer.bias.detach()
        self.pool = layer.pool

    def forward(self, x: Tensor, frames: int | None = None) -> Tensor:
        if self.bias is not None:
            x = x + self.bias.view(-1, *(1,) * (x.dim() - 2))
        if self.activation is not None:
            x = self.activation(x)
        elif self.clamp != (-math.inf, math.inf):
            x = x.clamp(*(None if math.isinf(bound) else bound for bound in self.clamp))
        if self.pool is not None:
            x = nn.functional.max_pool2d(x, *self.pool)
        if not self.enabled:
            return x
        coded: Tensor = torch.ops.sparsetime.codec(x, self.step, self.codec, *self.bounds)
        return coded


@contextmanager
def _marked(module: nn.Module) -> Iterator[None]:
    """Put `_Marked` in the place of every delta layer for a while."""
    changed: list[tuple[nn.Module, str, nn.Module]] = []
    marked: dict[nn.Module, _Marked] = {}
    try:
        for path, owner in list(module.named_modules()):
            for name, child in owner._modules.items():  # named_children() leaves out a child's second name
                if isinstance(child, DeltaActivation):
                    if child not in marked:
                        marked[child] = _Marked(child, f"{path}.{name}".lstrip("."))
                    changed.append((owner, name, child))
                    owner._modules[name] = marked[child]
        yield
    finally:
        for owner, name, child in changed:
            owner._modules[name] = child


@contextmanager
def prepared(model: nn.Module, frame: Tensor) -> Iterator[tuple[nn.Module, tuple[Any, ...], bool]]:
    """What to export for one frame; the model is left as it was.

    Yields:
        a module, its inputs with the frame among them, and whether it has codecs of its own.

    Raises:
        CompileError: a delta layer that exchanges deltas.
    """
    learned = any(isinstance(m, DeltaActivation) for m in model.modules())
    inputs: tuple[Any, ...] = (frame,)
    module = model
    if isinstance(model, SparseNetwork):
        # The traced graph alone: the network's own forward looks at the values of its input.
        graph = model.graphs[False]
        module = fx.GraphModule(model, graph)
        # The first placeholder, whatever its name, is the number of frames of a clip.
        placeholders = sum(node.op == "placeholder" for node in graph.nodes)
        inputs = (1, *[frame] * (placeholders - 1))
    with _marked(module):
        yield module, inputs, learned
