"""Accuracy against operations: one mark per run, the mean and range of runs that differ in their seed only."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sparsetime.report.groups import Group, chance
from sparsetime.report.runs import Run, number
from sparsetime.report.svg import (
    Axis,
    counted,
    decimal,
    element,
    linear_axis,
    log_axis,
    percent,
    shape,
    share,
    short,
    text,
)


@dataclass(frozen=True)
class Quantity:
    """What the horizontal axis shows: a key of the evaluation, its title and scale."""

    name: str
    key: str
    title: str
    logarithmic: bool

    def value(self, evaluation: dict[str, object]) -> float | None:
        """The figure, or None where there is none or a logarithmic axis has no place for it."""
        value = number(evaluation, self.key)
        return None if value is None or (self.logarithmic and value <= 0) else value

    def tick(self, value: float) -> str:
        return counted(value) if self.key == "effective_macs" else short(value)

    def says(self, value: float) -> str:
        if self.key == "effective_macs":
            return f"{counted(value, 'MAC')} per frame"
        return f"{decimal(value)} of operations"


QUANTITIES = (
    Quantity("density", "op_density", "share of operations that remain", False),
    Quantity("log", "op_density", "share of operations that remain", True),
    Quantity("macs", "effective_macs", "multiply-accumulates per frame", True),
)


@dataclass(frozen=True)
class Plane:
    """The area of a plot: its quantity, its axes (accuracy in per cent), its height in pixels."""

    quantity: Quantity
    x: Axis
    y: Axis
    height: int

    def across(self, value: float) -> str:
        return percent(self.x.place(value))

    def down(self, accuracy: float) -> float:
        return round(self.height * (1 - self.y.place(100 * accuracy)), 2)


@dataclass(frozen=True)
class Spot:
    """A run's place: its figure and its accuracy."""

    run: Run
    value: float
    accuracy: float


def x_axis(groups: Iterable[Group], quantity: Quantity) -> Axis | None:
    """The axis that holds every run's figure, None if there is none."""
    values = [value for group in groups for e in group.evaluations() if (value := quantity.value(e)) is not None]
    if not values:
        return None
    return log_axis(min(values), max(values)) if quantity.logarithmic else linear_axis(0.0, max(*values, 0.1))


def y_axis(groups: Sequence[Group]) -> Axis | None:
    """The axis of accuracy in per cent that holds every run and every interval, None without an accuracy."""
    ends = [end for group in groups for end in group.interval() or ()]
    ends += [value for group in groups for e in group.evaluations() if (value := number(e, "accuracy")) is not None]
    if not ends:
        return None
    axis = linear_axis(100 * min(ends), 100 * max(ends), 6)
    ticks = tuple(tick for tick in axis.ticks if 0 <= tick <= 100)
    return Axis(ticks[0], ticks[-1], ticks)


def scatter(groups: Sequence[Group], plane: Plane) -> str:
    """The contents of a plot: axes, error bars, marks, names. Widths are shares of the plot's, heights are pixels.

    A thin line with ends is the 95 % interval of the mean accuracy over the clips, a broad one the range over seeds.
    A small open mark is a run, a filled one the mean of several or a run alone.
    """
    parts = [_axes(plane)]
    floor = chance(groups)
    if floor is not None and plane.y.low < 100 * floor < plane.y.high:
        at = plane.down(floor)
        tip = f"Always naming the commonest class: {share(floor)}"
        parts.append(element("line", x1="0", x2="100%", y1=at, y2=at, class_="chance hit", data_tip=tip))
    found = [(group, spots) for group in groups if (spots := _spots(group, plane.quantity))]
    means = [
        (group, sum(spot.value for spot in spots) / len(spots), sum(spot.accuracy for spot in spots) / len(spots))
        for group, spots in found
    ]
    for (group, spots), (_, value, accuracy) in zip(found, means, strict=True):
        parts.append(_bars(group, spots, value, accuracy, plane))
    parts.append(_names(means, plane))
    for (group, spots), (_, value, accuracy) in zip(found, means, strict=True):
        if len(spots) > 1:
            tip = _tip(f"{group.label}, mean of {len(spots)} seeds", group, value, accuracy, plane.quantity)
            parts.append(_mark("mean", tip, group, value, accuracy, plane))
    for group, spots in found:
        kind = "run" if len(spots) > 1 else "run alone"
        for spot in spots:
            tip = _tip(spot.run.name, group, spot.value, spot.accuracy, plane.quantity)
            parts.append(_mark(kind, tip, group, spot.value, spot.accuracy, plane))
    return "".join(parts)


def _spots(group: Group, quantity: Quantity) -> list[Spot]:
    found = []
    for run in group.runs:
        evaluation = run.evaluations.get(group.split or "", {})
        value, accuracy = quantity.value(evaluation), number(evaluation, "accuracy")
        if value is not None and accuracy is not None:
            found.append(Spot(run, value, accuracy))
    return found


def _axes(plane: Plane) -> str:
    parts = []
    for tick in plane.y.ticks:
        at = plane.down(tick / 100)
        parts.append(element("line", x1="0", x2="100%", y1=at, y2=at, class_="grid"))
        parts.append(text(short(tick), x=-8, y=at, dy="0.32em", class_="tick end"))
    for tick in plane.x.ticks:
        across = plane.across(tick)
        parts.append(element("line", x1=across, x2=across, y1=0, y2=plane.height, class_="grid"))
        parts.append(text(plane.quantity.tick(tick), x=across, y=plane.height + 18, class_="tick middle"))
    parts.append(element("line", x1="0", x2="100%", y1=plane.height, y2=plane.height, class_="axis"))
    parts.append(text("accuracy (%)", x=-40, y=-18, class_="title"))
    parts.append(text(plane.quantity.title, x="100%", y=plane.height + 38, class_="title end"))
    return "".join(parts)


def _bars(group: Group, spots: Sequence[Spot], value: float, accuracy: float, plane: Plane) -> str:
    across, down = plane.across(value), plane.down(accuracy)
    parts = []
    interval = group.interval()
    if interval is not None:
        low, high = (plane.down(end) for end in interval)
        whisker = (
            element("line", x1=0, x2=0, y1=low, y2=high),
            element("line", x1=-4, x2=4, y1=low, y2=low),
            element("line", x1=-4, x2=4, y1=high, y2=high),
        )
        inner = element("svg", *whisker, x=across, overflow="visible")
        parts.append(element("g", inner, class_=f"interval {group.paint}", data_low=interval[0], data_high=interval[1]))
    if len(spots) > 1:
        ends_x = [plane.across(end(spot.value for spot in spots)) for end in (min, max)]
        ends_y = [plane.down(end(spot.accuracy for spot in spots)) for end in (min, max)]
        parts.append(
            element(
                "g",
                element("line", x1=ends_x[0], x2=ends_x[1], y1=down, y2=down),
                element("line", x1=across, x2=across, y1=ends_y[0], y2=ends_y[1]),
                class_=f"range {group.paint}",
            )
        )
    return "".join(parts)


# Names must not touch where a plot is as narrow as on a phone; in a wider one they are further apart.
_NARROW, _LETTER, _LINE = 290.0, 7.0, 15.0


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels of the narrowest plot; `top` is the smaller number."""

    left: float
    right: float
    top: float
    bottom: float

    def touches(self, other: "Box") -> bool:
        apart = self.right <= other.left or other.right <= self.left
        return not (apart or self.bottom <= other.top or other.bottom <= self.top)


def _names(means: Sequence[tuple[Group, float, float]], plane: Plane) -> str:
    """Each group's name above or below its interval, where it touches nothing; none if there is no such place."""
    means = sorted(means, key=lambda entry: entry[1])
    taken = [Box(-40, 46, -29, -14)]  # the title of the vertical axis
    ends = []
    for group, value, accuracy in means:
        low, high = group.interval() or (accuracy, accuracy)
        at = _NARROW * plane.x.place(value)
        ends.append((plane.down(low) + 16, plane.down(high) - 8))
        taken.append(Box(at - 6, at + 6, plane.down(high) - 2, plane.down(low) + 2))
    parts = []
    for (group, value, _), (below, above) in zip(means, ends, strict=True):
        content = group.detail or group.method
        at, width = _NARROW * plane.x.place(value), _LETTER * len(content)
        heights = (above, below, above - _LINE, below + _LINE)
        anchors = (("middle ", 0, at - width / 2), ("", -6, at - 6), ("end ", 6, at + 6 - width))
        for y, (anchor, x, left) in itertools.product(heights, anchors):
            box = Box(left, left + width, y - 11, y + 3)
            inside = box.left >= 0 and box.right <= _NARROW + 10 and -20 < y < plane.height
            if inside and not any(box.touches(other) for other in taken):
                taken.append(box)
                name = text(content, x=x, y=0, class_=f"name {anchor}{group.paint}")
                parts.append(element("svg", name, x=plane.across(value), y=y, overflow="visible"))
                break
    return "".join(parts)


def _mark(kind: str, tip: str, group: Group, value: float, accuracy: float, plane: Plane) -> str:
    path = element(
        "path",
        d=shape(group.style),
        class_=f"mark {kind} {group.paint}",
        tabindex="0",
        role="img",
        aria_label=tip,
        data_x=value,
        data_y=accuracy,
    )
    return element("svg", path, x=plane.across(value), y=plane.down(accuracy), overflow="visible")


def _tip(name: str, group: Group, value: float, accuracy: float, quantity: Quantity) -> str:
    lines = [name, f"{quantity.says(value)}, {share(accuracy)} accuracy"]
    interval = group.interval()
    if interval is not None:
        lines.append(f"95 % interval of the mean {share(interval[0])} to {share(interval[1])}, {group.clips()} clips")
    return "\n".join(lines)
