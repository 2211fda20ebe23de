"""Neural networks that are sparse in time: train them so that little changes, pay only for what did."""

from sparsetime.convert import SparseNetwork, SparsifyError, sparsify, unsparsify
from sparsetime.meter import Counts, Meter
from sparsetime.nn import DeltaActivation, SpatialL1
from sparsetime.objective import calibrate, delta_layers, enable, parameter_groups, penalty

__version__ = "0.1.0.dev0"

__all__ = [
    "Counts",
    "DeltaActivation",
    "Meter",
    "SparseNetwork",
    "SparsifyError",
    "SpatialL1",
    "calibrate",
    "delta_layers",
    "enable",
    "parameter_groups",
    "penalty",
    "sparsify",
    "unsparsify",
]
