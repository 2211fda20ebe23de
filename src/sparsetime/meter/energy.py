"""An estimate of compute energy from counts. The constants are data with their source, never part of the code."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

__all__ = ["energy_table", "estimate_energy"]


def energy_table() -> dict[str, dict[str, Any]]:
    """Energy per operation by technology: {"name": {"mac_pj", "ac_pj", "source"}}, picojoules."""
    text = resources.files("sparsetime.meter").joinpath("energy.json").read_text(encoding="utf-8")
    table: dict[str, dict[str, Any]] = json.loads(text)
    return table


def estimate_energy(macs: float, acs: float) -> dict[str, dict[str, Any]]:
    """Energy of `macs` multiply-accumulates and `acs` accumulates by technology, microjoules.

    E = macs * e_mac + acs * e_ac. Arithmetic alone: moving weights and state costs more than this on most machines.
    """
    return {
        name: {"energy_uj": (macs * row["mac_pj"] + acs * row["ac_pj"]) * 1e-6, "source": row["source"]}
        for name, row in energy_table().items()
    }
