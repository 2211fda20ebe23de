"""From a module to a functional ATen graph, with quantisers as one operator each."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from sparsetime.convert.draft import CompileError

__all__ = ["export"]


@torch.library.custom_op("sparsetime::codec", mutates_args=())
def _codec(x: Tensor, step: Tensor, kind: str, low: int, high: int) -> Tensor:
    """Mark in an exported graph: here a codec stands. low = high = 0 stands for codes without bounds."""
    return x.clone()


@_codec.register_fake
def _(x: Tensor, step: Tensor, kind: str, low: int, high: int) -> Tensor:
    return torch.empty_like(x)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and layers that do not overwrite their input, for a while; afterwards all is as it was."""
    modes = {m: m.training for m in module.modules()}
    overwriting: list[Any] = [m for m in module.modules() if getattr(m, "inplace", None) is True]
    module.eval()
    for m in overwriting:
        m.inplace = False
    try:
        yield
    finally:
        for m, mode in modes.items():
            m.training = mode
        for m in overwriting:
            m.inplace = True


def _overwrites(program: ExportedProgram) -> bool:
    """Whether an operation of the graph changes one of its arguments."""
    targets = (node.target for node in program.graph.nodes)
    return any(isinstance(t, torch._ops.OpOverload) and t._schema.is_mutable for t in targets)


def export(module: nn.Module, inputs: tuple[object, ...]) -> ExportedProgram:
    """Trace a module with `torch.export`; in-place operations become functional ones, everything else stays as it is.

    Args:
        module: any module; it is left as it was.
        inputs: an example frame, and constants.

    Raises:
        CompileError: torch.export cannot trace it; with what it says.
    """
    with _evaluating(module), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's own, about its own internals
        try:
            program: ExportedProgram = torch.export.export(module, inputs, strict=False)
            if _overwrites(program):  # traces everything again, which takes longer than all else here
                program = program.run_decompositions({})
        except Exception as error:
            raise CompileError(
                f"{type(module).__name__} cannot be compiled, torch.export says: {error}\n"
                "A network must not branch on the values of its input."
            ) from error
    return program
