"""Learning curves: what changed over the epochs, with the phases of the recipe shaded."""

from collections.abc import Sequence
from dataclasses import dataclass

from sparsetime.report.groups import Group, spread
from sparsetime.report.runs import Run
from sparsetime.report.svg import Axis, element, linear_axis, percent, short, text

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """A column of ``metrics.csv`` and how it is drawn."""

    column: str
    name: str
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One picture: a title, its lines, and whether its values are shares shown in per cent."""

    title: str
    lines: tuple[Line, ...]
    in_percent: bool = False


PANELS = (
    Panel("loss", (Line("train_loss", "with penalty"), Line("task_loss", "task alone", dashed=True))),
    Panel(
        "accuracy (%)",
        (Line("val_accuracy", "held out"), Line("train_accuracy", "training", dashed=True)),
        in_percent=True,
    ),
    Panel("penalty", (Line("penalty", "penalty"),)),
    Panel("share of operations", (Line("op_density", "share of operations"),)),
)


@dataclass(frozen=True)
class Stretch:
    """A phase: its name and first and last epoch."""

    name: str
    first: float
    last: float


def phases(run: Run) -> list[Stretch]:
    """Consecutive epochs of one phase, joined."""
    found: list[Stretch] = []
    for row in run.epochs:
        epoch, name = row["epoch"], str(row.get("phase") or "")
        assert isinstance(epoch, float)  # rows without an epoch were dropped when the file was read
        if found and found[-1].name == name:
            found[-1] = Stretch(name, found[-1].first, epoch)
        else:
            found.append(Stretch(name, epoch, epoch))
    return found


def axes(groups: Sequence[Group], panel: Panel) -> tuple[Axis, Axis] | None:
    """The axes that hold a panel of all groups of a task, so that its pictures compare; None without a value."""
    runs = [run for group in groups for run in group.runs]
    points = [point for run in runs for line in panel.lines for point in _points(run, line, panel)]
    if not points:
        return None
    epochs = [epoch for run in runs for epoch in run.column("epoch") if epoch is not None]
    first, last = min(epochs), max(epochs)
    inner = [tick for tick in linear_axis(first, max(last, first + 1), 4).ticks if first <= tick <= last]
    whole = tuple(tick for tick in inner if tick == round(tick)) or (first,)
    x = Axis(first - 0.5, last + 0.5, whole)
    values = [value for _, value in points]
    y = linear_axis(min(0.0, *values), max(values), 3)
    return x, y


def curves(group: Group, panel: Panel, x: Axis, y: Axis, height: int) -> str:
    """The contents of a plot: phases, axes, a thin line for each seed and a broad one for their mean."""
    parts = []
    for i, stretch in enumerate(phases(group.runs[0])):
        start, end = x.place(stretch.first - 0.5), x.place(stretch.last + 0.5)
        parts.append(
            element("rect", x=percent(start), y=0, width=percent(end - start), height=height, class_=f"phase p{i % 3}")
        )
    for tick in y.ticks:
        at = round(height * (1 - y.place(tick)), 2)
        parts.append(element("line", x1="0", x2="100%", y1=at, y2=at, class_="grid"))
        parts.append(text(short(tick), x=-6, y=at, dy="0.32em", class_="tick end"))
    for tick in x.ticks:
        parts.append(text(short(tick), x=percent(x.place(tick)), y=height + 15, class_="tick middle"))
    drawn = []
    for line in panel.lines:
        seeds = [points for run in group.runs if (points := _points(run, line, panel))]
        for points in seeds:
            broad = "" if len(seeds) > 1 else " mean"
            drawn.append(_polyline(points, x, y, height, f"curve {group.paint}{broad}{' dashed' * line.dashed}"))
        if len(seeds) > 1:
            drawn.append(_polyline(_mean(seeds), x, y, height, f"curve {group.paint} mean{' dashed' * line.dashed}"))
    # Stretched with the plot's width; the lines keep theirs.
    parts.append(
        element(
            "svg",
            *drawn,
            x=0,
            y=0,
            width="100%",
            height=height,
            viewBox=f"0 0 1000 {height}",
            preserveAspectRatio="none",
            overflow="visible",
        )
        if drawn
        else text("no values", x="50%", y=height / 2, class_="tick middle")
    )
    parts.append(element("line", class_="cursor", x1=0, x2=0, y1=0, y2=height, visibility="hidden"))
    return "".join(parts)


def _points(run: Run, line: Line, panel: Panel) -> Points:
    factor = 100.0 if panel.in_percent else 1.0
    pairs = zip(run.column("epoch"), run.column(line.column), strict=True)
    return [(epoch, factor * value) for epoch, value in pairs if epoch is not None and value is not None]


def _mean(seeds: Sequence[Points]) -> Points:
    """The mean over the seeds at the epochs that all of them have."""
    tables = [dict(points) for points in seeds]
    shared = sorted(set.intersection(*(set(table) for table in tables)))
    return [(epoch, sum(table[epoch] for table in tables) / len(tables)) for epoch in shared]


def _polyline(points: Points, x: Axis, y: Axis, height: int, kind: str) -> str:
    places = " ".join(f"{1000 * x.place(a):.1f},{height * (1 - y.place(b)):.1f}" for a, b in points)
    if len(points) == 1:  # a line of one point is not drawn: make it a short dash
        at, up = places.split(",")
        places = f"{float(at) - 8:.1f},{up} {float(at) + 8:.1f},{up}"
    return element("polyline", points=places, class_=kind)


def curve_data(group: Group, panel: Panel) -> dict[str, list[list[float]]]:
    """What the page's script says at an epoch: for each line [epoch, mean, least, greatest over the seeds], rounded."""
    data = {}
    for line in panel.lines:
        tables = [dict(_points(run, line, panel)) for run in group.runs]
        rows = []
        for epoch in sorted({epoch for table in tables for epoch in table}):
            values = spread(table.get(epoch) for table in tables)
            if values is not None:
                rows.append([float(f"{value:.4g}") for value in (epoch, *values[:3])])
        if rows:
            data[line.name] = rows
    return data
