"""Axes, texts and elements of the charts."""

import pytest

from sparsetime.report.svg import (
    MISSING,
    Axis,
    counted,
    decimal,
    duration,
    element,
    linear_axis,
    log_axis,
    percent,
    share,
    styles,
    text,
)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 0.73, (0.0, 0.2, 0.4, 0.6, 0.8)),
        (31.0, 77.0, (30.0, 40.0, 50.0, 60.0, 70.0, 80.0)),
        (0.0, 1.0, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
    ],
)
def test_linear_axis(low: float, high: float, ticks: tuple[float, ...]) -> None:
    axis = linear_axis(low, high)
    assert axis.ticks == ticks
    assert (axis.low, axis.high) == (ticks[0], ticks[-1])


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0, 1e-9, 1e12])
def test_an_axis_of_one_value_has_room_around_it(value: float) -> None:
    axis = linear_axis(value, value)
    assert axis.low < value < axis.high


def test_places() -> None:
    assert Axis(2.0, 4.0, ()).place(2.5) == 0.25
    assert Axis(2.0, 4.0, ()).place(9.0) == 1.0  # outside lies at the end
    assert Axis(0.01, 1.0, (), logarithmic=True).place(0.1) == pytest.approx(0.5)


def test_log_axis() -> None:
    axis = log_axis(0.05, 0.7)
    assert axis.ticks == pytest.approx((0.05, 0.1, 0.2, 0.5, 1.0))
    assert (axis.low, axis.high) == pytest.approx((0.05, 1.0))
    wide = log_axis(1e3, 9e8)
    assert wide.ticks == pytest.approx(tuple(10.0**i for i in range(3, 10)))
    same = log_axis(0.2, 0.2)
    assert same.low <= 0.2 < same.high


def test_elements_escape() -> None:
    assert element("a", data_tip='<"&', class_="x", gone=None) == '<a data-tip="&lt;&quot;&amp;" class="x"/>'
    assert text("<b>&", x=1.5) == '<text x="1.5">&lt;b&gt;&amp;</text>'


def test_texts() -> None:
    thin = "\u202f"
    assert share(0.6621) == f"66.2{thin}%"
    assert decimal(0.15) == "0.150"
    assert counted(41_234_567, "MAC") == f"41.2{thin}MMAC"
    assert counted(999_700) == f"1.00{thin}M"
    assert counted(0) == "0"
    assert counted(934_428, "B") == f"934{thin}kB"
    assert duration(75) == f"75.0{thin}s"
    assert duration(150) == f"2.5{thin}min"
    assert duration(7200) == f"2.0{thin}h"
    assert percent(0.12345678) == "12.35%"
    assert share(None) == decimal(None) == counted(None) == duration(None) == MISSING


def test_known_methods_keep_their_style() -> None:
    assert styles(["delta", "mine", "dense"]) == {"delta": 2, "mine": 3, "dense": 0}
