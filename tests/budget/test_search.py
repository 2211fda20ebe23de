"""The search on functions whose best point is known."""

import math

import pytest

from sparsetime.budget.errors import BudgetError
from sparsetime.budget.measure import Measured
from sparsetime.budget.search import COARSEST, FINEST, coarsest, search, shifted
from sparsetime.budget.setting import GRID, POWER, Setting


class Layers:
    """Layers that do not touch each other: time sum g m^-a, error sum c m^2, drop its root; m = GRID^k."""

    def __init__(self, times: list[float], errors: list[float]) -> None:
        self.times, self.errors = times, errors
        self.asked: list[Setting] = []

    def __call__(self, setting: Setting) -> Measured:
        self.asked.append(setting)
        ratios = [GRID ** (0 if k is None else k) for k in setting]
        error = sum(c * m**2 for c, m in zip(self.errors, ratios, strict=True))
        time = sum(g * m**-POWER for g, m in zip(self.times, ratios, strict=True))
        return Measured([math.sqrt(error), 0.0], [], error, time, time, 0.5, 0.5)

    def best_time(self, limit: float) -> float:
        """Of Lagrange's condition, between grid points too."""
        shares = [(g / c) ** (1 / (2 + POWER)) for g, c in zip(self.times, self.errors, strict=True)]
        scale = limit / math.sqrt(sum(c * s**2 for c, s in zip(self.errors, shares, strict=True)))
        return sum(g * (s * scale) ** -POWER for g, s in zip(self.times, shares, strict=True))


def test_finds_nearly_the_best_within_the_budget() -> None:
    layers = Layers([9.0, 1.0, 4.0, 0.2], [1e-6, 4e-4, 1e-5, 1e-3])
    found = search(layers, [(0, 0, 0, 0)], 0.05)
    assert layers(found.best).drop <= 0.05
    assert found.shifts[0] is not None
    assert layers(found.best).time_ns < 0.8 * layers(found.shifts[0]).time_ns
    assert layers(found.best).time_ns < 1.1 * layers.best_time(0.05)


def test_never_returns_what_does_not_pass() -> None:
    # The error says nothing about the drop: what the model wants next is always wrong.
    class Misled(Layers):
        def __call__(self, setting: Setting) -> Measured:
            found = super().__call__(setting)
            drop = 0.02 if setting[0] <= 3 else 0.9
            return Measured([drop], [], 1 / found.error, found.time_ns, 0, 0.5, 0.5)

    misled = Misled([5.0, 1.0], [1e-3, 1e-5])
    found = search(misled, [(0, 0)], 0.05)
    assert misled(found.best).drop == 0.02


def test_a_drop_that_is_not_known_does_not_pass() -> None:
    class Blind(Layers):
        def __call__(self, setting: Setting) -> Measured:
            return Measured([math.nan], [], 0.0, 1.0, 1.0, 0.5, 0.5)

    with pytest.raises(BudgetError, match="cannot be met"):
        search(Blind([1.0], [1.0]), [(0,)], 0.05)


def test_a_budget_that_nothing_meets_says_what_the_finest_gives() -> None:
    with pytest.raises(BudgetError, match=r"1/256 of the plan's the drop is still 39\.06%, 1\.00% is asked"):
        search(Layers([1.0], [1e4]), [(0,)], 0.01)


def test_the_quickest_of_several_starts_goes_on() -> None:
    layers = Layers([1.0, 1.0], [1e-8, 1e-2])
    found = search(layers, [(0, 0), (24, 0)], 0.1)
    first, second = found.shifts
    assert first is not None
    assert second is not None
    assert layers(second).time_ns < layers(first).time_ns
    assert layers(found.best).time_ns <= layers(second).time_ns


def test_without_a_codec_stays_without() -> None:
    found = search(Layers([1.0, 1.0, 1.0], [1e-5, 1e-4, 1e-6]), [(0, None, 0)], 0.05)
    assert found.best[1] is None
    assert found.best[0] is not None


def test_coarsest_is_the_last_that_passes() -> None:
    layers = Layers([1.0], [1e-4])  # drop = 0.01 GRID^k
    # GRID^9 = 4.76, GRID^10 = 5.66
    assert coarsest(layers, (0,), 0.05, -8, 16) == (9,)
    assert coarsest(layers, (0,), 0.05, -8, 4) == (4,)
    assert coarsest(layers, (0,), 0.001, -8, 16) is None


def test_shifts_end_at_the_ends_of_the_grid() -> None:
    assert shifted((0, None, COARSEST, FINEST), 3) == (3, None, COARSEST, FINEST + 3)
    assert shifted((0, None, COARSEST, FINEST), -3) == (-3, None, COARSEST - 3, FINEST)
