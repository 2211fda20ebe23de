"""Figures with their uncertainty, by hand."""

import pytest

from sparsetime.figures import wilson


@pytest.mark.parametrize(
    ("share", "number", "low", "high"),
    [
        # From the quadratic equation: 0 of n gives [0, z^2 / (n + z^2)].
        (0.0, 10, 0.0, 3.8416 / 13.8416),
        (1.0, 10, 10 / 13.8416, 1.0),
        # Worked out with R's prop.test(correct = FALSE).
        (0.5, 10, 0.2366, 0.7634),
        (1.0, 29, 0.8830, 1.0),
        (19 / 29, 29, 0.4735, 0.8006),
        (20 / 29, 29, 0.5077, 0.8272),
    ],
)
def test_wilson(share: float, number: int, low: float, high: float) -> None:
    assert wilson(share, number) == pytest.approx((low, high), abs=1e-4)
