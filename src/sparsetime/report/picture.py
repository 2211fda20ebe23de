"""Accuracy against operations as an SVG file of its own."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from sparsetime.report.groups import Group, group_runs, tasks
from sparsetime.report.runs import ReportError, choose_split, read_runs
from sparsetime.report.scatter import QUANTITIES, Plane, scatter, x_axis, y_axis
from sparsetime.report.svg import element, shape, text

_WIDTH, _HEIGHT = 400, 250
_LEFT, _TOP, _RIGHT, _BOTTOM = 56, 66, 22, 56
_LEGEND = 54
_COLUMNS = 2


def accuracy_figure_svg(run_dirs: Sequence[Path]) -> str:
    """Draw accuracy against operations of all runs, the chart of the page, as one SVG document.

    Args:
        run_dirs: run directories.

    Returns:
        The document, with a plot for each data set and network; light or dark as the viewer prefers.

    Raises:
        ReportError: a directory is no run, or no run has both an accuracy and an operation density.
    """
    runs = read_runs(run_dirs)
    by_task = tasks(group_runs(runs, choose_split(runs)))
    quantity = QUANTITIES[0]
    every = [group for groups in by_task.values() for group in groups]
    of_data = {data: y_axis([group for group in every if group.task[0] == data]) for data, _ in by_task}
    x = x_axis(every, quantity)
    drawn = [(task, groups, y) for task, groups in by_task.items() if (y := of_data[task[0]]) is not None]
    if x is None or not drawn:
        raise ReportError("accuracy_figure_svg: no run was evaluated. Call sparsetime evaluate RUN_DIR first")
    columns = min(_COLUMNS, len(drawn))
    plot_width = _WIDTH if columns > 1 else int(1.4 * _WIDTH)
    step_x, step_y = _LEFT + plot_width + _RIGHT, _TOP + _HEIGHT + _BOTTOM
    width, height = columns * step_x, -(-len(drawn) // columns) * step_y + _LEGEND
    css = files("sparsetime.report").joinpath("templates/chart.css").read_text(encoding="utf-8")
    parts = [element("style", css), element("rect", width="100%", height="100%", class_="ground")]
    for i, (task, groups, y) in enumerate(drawn):
        left, top = i % columns * step_x + _LEFT, i // columns * step_y + _TOP
        contents = scatter(groups, Plane(quantity, x, y, _HEIGHT))
        heading = text(" · ".join(task), x=-40, y=-38, class_="heading")
        parts.append(
            element("svg", heading, contents, x=left, y=top, width=plot_width, height=_HEIGHT, overflow="visible")
        )
    parts.append(_legend([group for _, groups, _ in drawn for group in groups], height - 38))
    return element(
        "svg",
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        width=width,
        height=height,
        viewBox=f"0 0 {width} {height}",
        class_="figure",
        role="img",
        aria_label="Accuracy against operations",
    )


def _legend(groups: Sequence[Group], at_y: int) -> str:
    parts, at_x = [], 24
    for style, method in sorted({(group.style, group.method) for group in groups}):
        mark = element("path", d=shape(style), class_=f"mark mean s{style}")
        parts.append(element("svg", mark, x=at_x, y=at_y, overflow="visible"))
        parts.append(text(method, x=at_x + 12, y=at_y, dy="0.32em", class_="tick"))
        at_x += 34 + 7 * len(method)
    note = "bars: range over seeds; whiskers: 95 % interval of the mean; dashes: commonest class"
    parts.append(text(note, x=18, y=at_y + 20, dy="0.32em", class_="tick"))
    return "".join(parts)
