"""Layers, one idea a file."""

from sparsetime.nn.delta_activation import ACTIVATIONS, DeltaActivation, DeltaState
from sparsetime.nn.spatial_l1 import SpatialL1

__all__ = ["ACTIVATIONS", "DeltaActivation", "DeltaState", "SpatialL1"]
