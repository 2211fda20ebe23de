"""The tables of a report: what stands in them, as text and as the value to sort by."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsetime.report.groups import Group, Spread, spread
from sparsetime.report.runs import Run, number
from sparsetime.report.svg import MISSING, counted, decimal, duration, share


@dataclass(frozen=True)
class Cell:
    """A cell: its text, the value to sort by (a number or a text), and the group whose mark stands before it."""

    text: str
    order: float | str
    group: Group | None = None


@dataclass(frozen=True)
class Column:
    """A column: title, what it means, whether it holds numbers."""

    title: str
    hint: str
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """Columns and rows."""

    columns: list[Column]
    rows: list[list[Cell]]


def runs_table(groups: Sequence[Group]) -> Table:
    """Every run with its figures."""
    columns = [
        Column("run", "name of the run's directory", False),
        Column("method", "dense, spatial L1 or delta", False),
        *_task_columns(groups),
        Column("seed", "of weights, clips and order"),
        Column("accuracy", "share of clips named right"),
        Column("ops", "operations that remain over dense operations, first frame out"),
        Column("first in", "the same with the first frame of each clip"),
        Column("activations", "share of activations that are not zero"),
        Column("deltas", "share of activations that change from frame to frame"),
        Column("MACs", "multiply-accumulates that remain, per frame"),
        Column("of", "multiply-accumulates of the dense network, per frame"),
        Column("state", "bytes that one stream keeps from frame to frame"),
        Column("weights", "bytes of weights"),
        Column("epochs", "epochs trained"),
        Column("time", "time of training"),
    ]
    rows = []
    for group in groups:
        for run in group.runs:
            evaluation = run.evaluations.get(group.split or "", {})
            rows.append(
                [
                    Cell(run.name, run.name, group),
                    Cell(run.method, run.method),
                    *_task_cells(group, groups),
                    Cell(run.seed, float(run.seed) if run.seed.isdecimal() else run.seed),
                    number_cell(number(evaluation, "accuracy"), share),
                    number_cell(number(evaluation, "op_density"), decimal),
                    number_cell(number(evaluation, "op_density_with_first_frame"), decimal),
                    number_cell(number(evaluation, "activation_density"), decimal),
                    number_cell(number(evaluation, "delta_density"), decimal),
                    number_cell(number(evaluation, "effective_macs"), counted),
                    number_cell(number(evaluation, "dense_macs"), counted),
                    number_cell(number(evaluation, "state_bytes"), bytes_text),
                    number_cell(number(evaluation, "weight_bytes"), bytes_text),
                    number_cell(float(len(run.epochs)) if run.epochs else None, counted),
                    number_cell(training_time(run), duration),
                ]
            )
    return Table(columns, rows)


def summary_table(by_task: Mapping[tuple[str, str], Sequence[Group]]) -> Table:
    """Every configuration with mean and range over its seeds, against the most accurate dense one of its task."""
    every = [group for groups in by_task.values() for group in groups]
    columns = [
        Column("configuration", "method, and what sets it apart", False),
        *_task_columns(every),
        Column("seeds", "runs that differ in their seed only"),
        Column("accuracy", "mean (range) over seeds"),
        Column("95 % interval", "of the mean accuracy, over the clips of the split"),
        Column("ops", "operations that remain, first frame out: mean (range) over seeds"),
        Column("first in", "the same with the first frame of each clip, mean over seeds"),
        Column("fewer ops", "operations of the dense baseline over these"),
        Column("points", "accuracy against the dense baseline, in points"),
    ]
    rows = []
    for groups in by_task.values():
        baselines = [group for group in groups if group.method == "dense" and group.spread("accuracy")]
        baseline = max(baselines, key=lambda group: _mean(group, "accuracy") or 0.0, default=None)
        for group in groups:
            interval = group.interval()
            ratio, points = _against(group, baseline)
            rows.append(
                [
                    Cell(group.label, group.label, group),
                    *_task_cells(group, every),
                    Cell(str(len(group.runs)), len(group.runs)),
                    _spread_cell(group.spread("accuracy"), lambda value: f"{100 * value:.1f}", "\u202f%"),
                    Cell(
                        MISSING if interval is None else f"{100 * interval[0]:.1f}\u2013{share(interval[1])}",
                        -1e300 if interval is None else interval[0],
                    ),
                    _spread_cell(group.spread("op_density"), decimal),
                    number_cell(_mean(group, "op_density_with_first_frame"), decimal),
                    number_cell(ratio, lambda value: f"{value:.1f}\u00d7"),
                    number_cell(points, lambda value: f"{value:+.1f}".replace("-", "\u2212")),
                ]
            )
    return Table(columns, rows)


def neurobench_table(groups: Sequence[Group]) -> Table | None:
    """NeuroBench's figures under NeuroBench's names, mean over seeds; None where no run has them."""
    figures = [(group, [_numbers(e.get("neurobench")) for e in group.evaluations()]) for group in groups]
    names = list(dict.fromkeys(name for _, seeds in figures for seed in seeds for name in seed))
    if not names:
        return None
    columns = [Column("configuration", "method, and what sets it apart", False), *_task_columns(groups)]
    columns += [Column(name.rpartition(".")[2], f"{name} of NeuroBench, mean over seeds") for name in names]
    rows = []
    for group, seeds in figures:
        means = [spread(seed.get(name) for seed in seeds) for name in names]
        if any(means):
            cells = [number_cell(mean.mean if mean else None, _plain) for mean in means]
            rows.append([Cell(group.label, group.label, group), *_task_cells(group, groups), *cells])
    return Table(columns, rows)


def energy_table(groups: Sequence[Group]) -> tuple[Table, dict[str, str]] | None:
    """Estimated energy of the arithmetic of one frame, mean over seeds, and each technology's source.

    None where no run has an estimate.
    """
    sources: dict[str, str] = {}
    for group in groups:
        for evaluation in group.evaluations():
            for name, entry in object_of(object_of(evaluation.get("energy")).get("remaining")).items():
                sources.setdefault(name, str(object_of(entry).get("source", "not stated")))
    if not sources:
        return None
    columns = [Column("configuration", "method, and what sets it apart", False), *_task_columns(groups)]
    for name in sources:
        columns.append(Column(f"{name}, \u00b5J", "the operations of one frame that remain"))
        columns.append(Column("of", f"all operations of one frame, {name}, \u00b5J"))
    rows = []
    for group in groups:
        estimates = [object_of(evaluation.get("energy")) for evaluation in group.evaluations()]
        cells = [_energy(estimates, part, name) for name in sources for part in ("remaining", "dense")]
        if any(cell.text != MISSING for cell in cells):
            rows.append([Cell(group.label, group.label, group), *_task_cells(group, groups), *cells])
    return Table(columns, rows), sources


def entries(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested JSON as dotted names and texts."""
    if isinstance(value, dict):
        return [pair for key, item in value.items() for pair in entries(item, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list):
        return [(name, ", ".join(str(item) for item in value))]
    return [(name, MISSING if value is None else str(value))]


def reasons(value: Any) -> list[tuple[str, str]]:
    """What was left dense or not counted, with the reason where there is one.

    Takes a mapping of names to reasons or a list of texts (``"name"`` or ``"name: reason"``); anything else is empty.
    """
    if isinstance(value, dict):
        return [(str(name), str(reason)) for name, reason in value.items()]
    if not isinstance(value, list):
        return []
    return [(name, reason) for name, _, reason in (str(item).partition(": ") for item in value)]


def training_time(run: Run) -> float | None:
    """Seconds of all epochs."""
    times = [value for value in run.column("time_s") if value is not None]
    return sum(times) if times else None


def _task_columns(groups: Sequence[Group]) -> list[Column]:
    """A column for the data set and one for the network, where there are several."""
    columns = (Column("data", "name of the data set", False), Column("network", "name of the network", False))
    return [column for i, column in enumerate(columns) if _several(groups, i)]


def _task_cells(group: Group, groups: Sequence[Group]) -> list[Cell]:
    return [Cell(name, name) for i, name in enumerate(group.task) if _several(groups, i)]


def _several(groups: Sequence[Group], part: int) -> bool:
    return len({group.task[part] for group in groups}) > 1


def _against(group: Group, baseline: Group | None) -> tuple[float | None, float | None]:
    """How many times fewer operations than the baseline, and how many points more accuracy."""
    if baseline is None or group is baseline:
        return None, None
    ours, theirs = _mean(group, "op_density"), _mean(baseline, "op_density")
    ratio = theirs / ours if ours and theirs is not None else None
    right, baseline_right = _mean(group, "accuracy"), _mean(baseline, "accuracy")
    points = 100 * (right - baseline_right) if right is not None and baseline_right is not None else None
    return ratio, points


def _energy(estimates: Sequence[dict[str, Any]], part: str, name: str) -> Cell:
    entries_of = [object_of(object_of(estimate.get(part)).get(name)) for estimate in estimates]
    mean = spread(number(entry, "energy_uj") for entry in entries_of)
    return number_cell(mean.mean if mean else None, lambda value: f"{value:.3g}")


def object_of(value: Any) -> dict[str, Any]:
    """A JSON object, empty where there is something else."""
    return value if isinstance(value, dict) else {}


def _numbers(value: Any) -> dict[str, float]:
    """The numbers in nested JSON, under dotted names."""
    found: dict[str, float] = {}

    def walk(item: Any, name: str) -> None:
        if isinstance(item, dict):
            for key in item:
                inner = f"{name}.{key}" if name else str(key)
                plain = number(item, key)
                if plain is None:
                    walk(item[key], inner)
                else:
                    found[inner] = plain

    walk(value, "")
    return found


def _mean(group: Group, key: str) -> float | None:
    value = group.spread(key)
    return value.mean if value else None


def number_cell(value: float | None, show: Callable[[float], str]) -> Cell:
    """A number, or the sign for a missing one."""
    # Below every figure: what is missing goes to one end of a sorted column.
    return Cell(MISSING, -1e300) if value is None else Cell(show(value), value)


def _spread_cell(value: Spread | None, show: Callable[[float], str], unit: str = "") -> Cell:
    if value is None:
        return Cell(MISSING, -1e300)
    extent = f" ({show(value.low)}\u2013{show(value.high)})" if value.number > 1 else ""
    return Cell(show(value.mean) + unit + extent, value.mean)


def bytes_text(value: float) -> str:
    """A count of bytes."""
    return counted(value, "B")


def _plain(value: float) -> str:
    return counted(value) if abs(value) >= 1000 else f"{value:.4g}"
