"""Counting: events, multiply-accumulates, state, energy."""

from sparsetime.meter.counts import Counts, OpCounts
from sparsetime.meter.energy import energy_table, estimate_energy
from sparsetime.meter.meter import Meter

__all__ = ["Counts", "Meter", "OpCounts", "energy_table", "estimate_energy"]
