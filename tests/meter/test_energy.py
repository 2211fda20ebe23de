"""Energy: the table is data with a source, the estimate a sum of products."""

import pytest

from sparsetime.meter import energy_table, estimate_energy


def test_the_table() -> None:
    table = energy_table()
    assert {name: (row["mac_pj"], row["ac_pj"]) for name, row in table.items()} == {
        "45nm_float32": (4.6, 0.9),
        "45nm_int32": (3.2, 0.1),
        "45nm_int8": (0.23, 0.03),
    }
    for row in table.values():
        assert "Horowitz" in row["source"]


def test_the_estimate_by_hand() -> None:
    # 2 million MACs of 4.6 pJ and 5 million ACs of 0.9 pJ: 9.2 + 4.5 microjoules
    estimate = estimate_energy(2e6, 5e6)
    assert estimate["45nm_float32"]["energy_uj"] == pytest.approx(13.7)
    assert estimate["45nm_int32"]["energy_uj"] == pytest.approx(6.4 + 0.5)
    assert estimate["45nm_int8"]["energy_uj"] == pytest.approx(0.46 + 0.15)
    assert estimate["45nm_float32"]["source"] == energy_table()["45nm_float32"]["source"]


def test_nothing_costs_nothing() -> None:
    assert {row["energy_uj"] for row in estimate_energy(0, 0).values()} == {0.0}


def test_a_caller_cannot_change_the_table() -> None:
    energy_table()["45nm_int8"]["mac_pj"] = 99.0
    assert energy_table()["45nm_int8"]["mac_pj"] == 0.23
