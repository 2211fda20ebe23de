"""What an example frame is to a network: a map (C, H, W) or (1, C, H, W), a sequence (1, L, F), a vector (1, F)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from sparsetime.convert.draft import CompileError
from sparsetime.convert.export import export
from sparsetime.convert.learned import prepared
from sparsetime.convert.network import SparseNetwork

__all__ = ["with_batch"]


def with_batch(model: nn.Module, example: Tensor) -> Tensor:
    """The example frame with its batch of one.

    An example (1, A, B) is what the network takes it for: a sequence, or else a map of one channel.

    Raises:
        CompileError: the network takes it neither as the one nor as the other.
        ValueError: no frame.
    """
    dims = model.frame_dims if isinstance(model, SparseNetwork) else 4
    frame = example[None] if example.dim() == dims - 1 else example
    if frame.dim() < 2 or frame.shape[0] != 1:
        raise ValueError(f"compile: expected an example frame (1, C, H, W) or (C, H, W), got {tuple(example.shape)}")
    if frame is example or example.dim() != 3 or example.shape[0] != 1:
        return frame
    try:
        program = _exported(model, example)
    except CompileError as error:
        try:
            _exported(model, frame)
        except CompileError as other:
            raise CompileError(f"{other}\nAs a sequence {tuple(example.shape)}: {error}") from error
        return frame
    return frame if _reads_maps_without_batch(program) else example


def _exported(model: nn.Module, frame: Tensor) -> ExportedProgram:
    with prepared(model, frame.detach().float()) as (module, inputs, _):
        return export(module, inputs)


def _reads_maps_without_batch(program: ExportedProgram) -> bool:
    """Whether operators of two dimensions read values of three, which are (C, H, W) to PyTorch."""
    for node in program.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.name.endswith("2d"):
            x = node.args[0]
            if isinstance(x, torch.fx.Node) and x.meta["val"].dim() == 3:
                return True
    return False
