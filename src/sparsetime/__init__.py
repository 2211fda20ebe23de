"""Neural networks that are sparse in time: train them so that little changes, pay only for what did."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsetime.budget import tune
    from sparsetime.convert.compile import compile
    from sparsetime.convert.draft import CompileError
    from sparsetime.convert.network import SparseNetwork, unsparsify
    from sparsetime.convert.sparsify import SparsifyError, sparsify
    from sparsetime.convert.stream import DeltaStream
    from sparsetime.engine import Plan, Stream
    from sparsetime.meter import Counts, Meter
    from sparsetime.nn import DeltaActivation, SpatialL1
    from sparsetime.objective import calibrate, delta_layers, enable, parameter_groups, penalty
    from sparsetime.run.fallback import FallbackStream

__version__ = "0.1.0.dev0"

__all__ = [
    "CompileError",
    "Counts",
    "DeltaActivation",
    "DeltaStream",
    "FallbackStream",
    "Meter",
    "Plan",
    "SparseNetwork",
    "SparsifyError",
    "SpatialL1",
    "Stream",
    "calibrate",
    "compile",
    "delta_layers",
    "enable",
    "parameter_groups",
    "penalty",
    "sparsify",
    "tune",
    "unsparsify",
]

# Names are looked up on first use (PEP 562): `import sparsetime`, the command line's help and the engine, which runs
# plans, cost no torch.
_HOMES = {
    "sparsetime.budget": ("tune",),
    "sparsetime.convert": ("CompileError", "SparseNetwork", "SparsifyError", "compile", "sparsify", "unsparsify"),
    "sparsetime.convert.stream": ("DeltaStream",),
    "sparsetime.engine": ("Plan", "Stream"),
    "sparsetime.meter": ("Counts", "Meter"),
    "sparsetime.nn": ("DeltaActivation", "SpatialL1"),
    "sparsetime.run.fallback": ("FallbackStream",),
    "sparsetime.objective": ("calibrate", "delta_layers", "enable", "parameter_groups", "penalty"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(home), name)
            globals()[name] = value
            return value
    try:
        return importlib.import_module(f"sparsetime.{name}")  # sparsetime.networks without an import of its own
    except ModuleNotFoundError as error:
        if error.name != f"sparsetime.{name}":
            raise
        raise AttributeError(f"module 'sparsetime' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
