"""Networks that bring their own quantisers, made ready for export."""

from __future__ import annotations

from torch import nn

__all__ = ["prepared"]


def prepared(model: nn.Module) -> tuple[nn.Module, tuple[object, ...], str, bool]:
    """What to export for one frame.

    Returns:
        a module, its inputs behind the frame, a prefix of the names in it, and whether it has codecs of its own.
    """
    return model, (), "", False
