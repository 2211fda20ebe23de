"""Small parts of every chart: elements, axes, figures as text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

# Shapes about the origin, of about equal area, so that a mark is known without its colour.
SHAPES = {
    "circle": "M0,-5.2A5.2,5.2 0 1 1 0,5.2A5.2,5.2 0 1 1 0,-5.2Z",
    "square": "M-4.6,-4.6H4.6V4.6H-4.6Z",
    "diamond": "M0,-6.6L6.6,0L0,6.6L-6.6,0Z",
    "triangle": "M0,-6.4L6.2,4.6H-6.2Z",
    "cross": "M-1.9,-6H1.9V-1.9H6V1.9H1.9V6H-1.9V1.9H-6V-1.9H-1.9Z",
}
_METHOD_STYLE = {"dense": 0, "spatial_l1": 1, "delta": 2}
STYLES = 5

# Stands for a figure that is not there.
MISSING = "\u2013"


def styles(methods: Sequence[str]) -> dict[str, int]:
    """A style number, that is a colour and a shape, for each method; the known ones always have the same."""
    others = [method for method in methods if method not in _METHOD_STYLE]
    return {
        method: _METHOD_STYLE[method] if method in _METHOD_STYLE else 3 + others.index(method) % (STYLES - 3)
        for method in methods
    }


def shape(style: int) -> str:
    """The path of a style's shape."""
    return list(SHAPES.values())[style % STYLES]


def element(tag: str, *children: str, **attributes: object) -> str:
    """One element. Attribute values are escaped; children are markup, text goes through ``text``.

    An underscore in an attribute's name stands for a hyphen, one at its end is dropped (``class_``).
    An attribute of None is left out.
    """
    parts = [tag]
    for name, value in attributes.items():
        if value is not None:
            shown = f"{value:.6g}" if isinstance(value, float) else str(value)
            parts.append(f'{name.rstrip("_").replace("_", "-")}="{escape(shown)}"')
    head = " ".join(parts)
    return f"<{head}>{''.join(children)}</{tag}>" if children else f"<{head}/>"


def text(content: str, **attributes: object) -> str:
    """A text element; the content is escaped."""
    return element("text", escape(content), **attributes)


def percent(fraction: float) -> str:
    """A place along the width of a plot: plots stretch with the page, their text does not."""
    return f"{100 * fraction:.4g}%"


@dataclass(frozen=True)
class Axis:
    """A range of values and where they lie.

    Attributes:
        low, high: ends of the range, low < high; both positive if logarithmic.
        ticks: values that are written at the axis.
        logarithmic: equal ratios, not equal differences, take equal room.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Where a value lies: 0 at the low end, 1 at the high end; values outside lie at the ends.

        (v - low) / (high - low),  or the same of the logarithms
        """
        value = min(max(value, self.low), self.high)
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def linear_axis(low: float, high: float, count: int = 5) -> Axis:
    """An axis over [low, high], widened to about ``count`` steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        low, high = low - max(abs(low), 1.0) * 0.05, high + max(abs(high), 1.0) * 0.05
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(float(f"{i * step:.12g}") for i in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks)


def log_axis(low: float, high: float) -> Axis:
    """A logarithmic axis over [low, high], 0 < low, widened to 1, 2 or 5 times a power of ten."""
    steps = [factor * 10.0**power for power in range(-12, 16) for factor in (1, 2, 5)]
    below = max((step for step in steps if step <= low * (1 + 1e-9)), default=steps[0])
    above = min((step for step in steps if step >= high * (1 - 1e-9) and step > below), default=steps[-1])
    inside = [step for step in steps if below * (1 - 1e-9) <= step <= above * (1 + 1e-9)]
    if len(inside) > 7:
        inside = [step for step in inside if f"{step:e}"[0] == "1"]
    return Axis(below, above, tuple(inside), logarithmic=True)


def share(value: float | None, digits: int = 1) -> str:
    """A share in per cent: 0.6621 is 66.2 %."""
    return MISSING if value is None else f"{100 * value:.{digits}f}\u202f%"


def decimal(value: float | None, digits: int = 3) -> str:
    """A number with a fixed count of decimals."""
    return MISSING if value is None else f"{value:.{digits}f}"


def short(value: float) -> str:
    """A number as briefly as it can be said: 0.25, 5, 0.001."""
    return f"{value:.4g}"


def counted(value: float | None, unit: str = "") -> str:
    """A count with three significant figures and a decimal prefix: 41234567 is 41.2 M."""
    if value is None:
        return MISSING
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor * 0.9995:
            return f"{_three(value / factor)}\u202f{prefix}{unit}"
    return f"{_three(value)}\u202f{unit}" if unit else _three(value)


def duration(seconds: float | None) -> str:
    """A time in the largest unit of which there are at least two: 75 is 75.0 s, 150 is 2.5 min."""
    if seconds is None:
        return MISSING
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f}\u202f{unit}"
    return f"{seconds:.1f}\u202fs"


def _three(value: float) -> str:
    if value == round(value) and abs(value) < 1000:
        return str(round(value))
    rounded = float(f"{value:.3g}")  # 0.9997 is written as 1.00, not as 1.000
    return f"{rounded:.{min(max(0, 2 - math.floor(math.log10(abs(rounded)))), 6)}f}"
