"""Runs that differ in their seed only, as one group; statistics over them and the finding of a report."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from sparsetime.figures import wilson
from sparsetime.report.runs import Run, number
from sparsetime.report.svg import styles

METHODS = ("dense", "spatial_l1", "delta")
# What says where, when or how a run ran, not what it is.
_NOT_CONFIGURATION = {
    "seed",
    "out",
    "run_dir",
    "json",
    "resume",
    "command",
    "versions",
    "machine",
    "started",
    "finished",
    "left_dense",
}
# What a dense run has in its recipe and does not use.
_OF_QUANTIZERS = {
    *("calibration_clips", "codec", "distill", "exclude", "freeze_input_step", "granularity", "include", "labels"),
    *("levels", "percentile", "rule", "step_lr"),
}


class Spread(NamedTuple):
    """Mean and range of a figure over seeds."""

    mean: float
    low: float
    high: float
    number: int


@dataclass(frozen=True)
class Group:
    """Runs with the same configuration but for the seed.

    Attributes:
        runs: ordered by seed.
        split: the split whose figures are read.
        detail: what sets it apart from other groups of the same method, network and data set; empty if alone.
        style: number of its method's colour and shape.
        variant: its number among those of its method and task, which makes the colour paler.
    """

    runs: tuple[Run, ...]
    split: str | None
    detail: str = ""
    style: int = 0
    variant: int = 0

    @property
    def label(self) -> str:
        """The method, and what sets it apart."""
        return f"{self.method} ({self.detail})" if self.detail else self.method

    @property
    def method(self) -> str:
        return self.runs[0].method

    @property
    def paint(self) -> str:
        """The style sheet's classes for its colour."""
        return f"s{self.style} v{min(self.variant, 3)}"

    @property
    def task(self) -> tuple[str, str]:
        """Data set and network: accuracies compare within it only."""
        return self.runs[0].data, self.runs[0].network

    def evaluations(self) -> list[dict[str, Any]]:
        return [run.evaluations[self.split] for run in self.runs if self.split in run.evaluations]

    def spread(self, key: str) -> Spread | None:
        """Mean and range over the seeds that have the figure."""
        return spread(number(evaluation, key) for evaluation in self.evaluations())

    def clips(self) -> int | None:
        """Number of clips behind one run's accuracy, the smallest of the seeds'."""
        counts = [int(n) for e in self.evaluations() if (n := number(e, "clips")) is not None and n >= 1]
        return min(counts) if counts else None

    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean accuracy, over the clips of one run: seeds share them and add no clip."""
        accuracy, clips = self.spread("accuracy"), self.clips()
        return None if accuracy is None or clips is None else wilson(accuracy.mean, clips)

    def layers(self) -> dict[str, dict[str, Any]]:
        """Per layer the mean of each figure over the seeds, in the order of the network."""
        gathered: dict[str, list[dict[str, Any]]] = {}
        for evaluation in self.evaluations():
            for layer in _objects(evaluation.get("layers")):
                gathered.setdefault(str(layer.get("name", "?")), []).append(layer)
        return {name: _mean_of(layers) for name, layers in gathered.items()}


def spread(values: Iterable[float | None]) -> Spread | None:
    """Mean, least and greatest of the numbers among some values; None without any."""
    numbers = [value for value in values if value is not None]
    return Spread(sum(numbers) / len(numbers), min(numbers), max(numbers), len(numbers)) if numbers else None


def group_runs(runs: Sequence[Run], split: str | None) -> list[Group]:
    """Group runs by configuration, ordered by data set, network, method and density."""
    keyed: dict[str, list[Run]] = {}
    for run in runs:
        keyed.setdefault(json.dumps(_flat(run), sort_keys=True), []).append(run)
    members = [tuple(sorted(group, key=_seed_order)) for group in keyed.values()]
    groups = sorted((Group(group, split, _detail(group, members)) for group in members), key=_order)
    style = styles(sorted({group.method for group in groups}, key=_method_order))
    count: dict[tuple[str, ...], int] = {}
    numbered = []
    for group in groups:
        kind = (*group.task, group.method)
        numbered.append(replace(group, style=style[group.method], variant=count.get(kind, 0)))
        count[kind] = count.get(kind, 0) + 1
    return numbered


def tasks(groups: Iterable[Group]) -> dict[tuple[str, str], list[Group]]:
    """The groups of each data set and network."""
    found: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        found.setdefault(group.task, []).append(group)
    return found


def _method_order(method: str) -> tuple[int, str]:
    """Sort key: the known methods first, in the order in which they are compared."""
    return (METHODS.index(method) if method in METHODS else len(METHODS), method)


@dataclass(frozen=True)
class Finding:
    """The best sparse group of one task against its dense baseline.

    Attributes:
        sentence: operations and accuracy of both, and what that comes to.
        ratio: the baseline's operation density over the best group's; 0 without a comparison.
        chosen_among: how many sparse groups the best was chosen from, on the same clips.
        apart: whether the 95 % intervals of the two accuracies have no value in common; None without intervals.
    """

    sentence: str
    ratio: float
    chosen_among: int
    apart: bool | None = None


def finding(groups: Sequence[Group], tolerance: float = 0.01) -> Finding | None:
    """Name the sparse group with the fewest operations whose mean accuracy is within one point of dense.

    Where none is, the most accurate sparse group is named, with what it loses.

    Args:
        groups: of one task.
        tolerance: points of accuracy, as a share, that a sparse group may lose.

    Returns:
        None when no group has both an accuracy and an operation density.
    """
    rated = [group for group in groups if group.spread("accuracy") and group.spread("op_density")]
    if not rated:
        return None
    dense = max((group for group in rated if group.method == "dense"), key=_accuracy, default=None)
    sparse = [group for group in rated if group.method != "dense"]
    if not sparse:
        return Finding(f"{_figures(rated[0])}. No sparse run to compare it with.", 0.0, 0)
    if dense is None:
        best = min(sparse, key=_density)
        return Finding(f"{_figures(best)}. No dense run to compare it with.", 0.0, len(sparse))
    good_enough = [group for group in sparse if _accuracy(group) >= _accuracy(dense) - tolerance - 1e-9]
    most_accurate = max(sparse, key=lambda group: (_accuracy(group), -_density(group)))
    best = min(good_enough, key=_density) if good_enough else most_accurate
    ratio = _density(dense) / _density(best) if _density(best) > 0 else math.inf
    difference = 100 * (_accuracy(best) - _accuracy(dense))
    if abs(difference) < 0.05:
        change = "the same accuracy"
    else:
        change = f"{abs(difference):.1f} points {'more' if difference > 0 else 'less'} accuracy"
    amount = f"{ratio:.1f} times fewer operations" if ratio >= 1 else f"{1 / ratio:.1f} times as many operations"
    baseline = f"{dense.label}: {_density(dense):.2f} at {100 * _accuracy(dense):.1f} %"
    return Finding(
        f"{_figures(best)}; {baseline}. That is {amount} with {change}.", ratio, len(sparse), _apart(best, dense)
    )


def chance(groups: Iterable[Group]) -> float | None:
    """Accuracy of always naming the commonest class of the split, from a confusion matrix with true classes as rows."""
    for group in groups:
        for evaluation in group.evaluations():
            rows = evaluation.get("confusion")
            if not isinstance(rows, list) or not rows or not all(isinstance(row, list) for row in rows):
                continue
            try:
                sums = [sum(float(value) for value in row) for row in rows]
            except (TypeError, ValueError):
                continue
            if sum(sums) > 0 and min(sums) >= 0:
                return max(sums) / sum(sums)
    return None


def _apart(best: Group, dense: Group) -> bool | None:
    ours, theirs = best.interval(), dense.interval()
    if ours is None or theirs is None:
        return None
    return ours[1] < theirs[0] or theirs[1] < ours[0]


def _figures(group: Group) -> str:
    return f"{group.label}: {_density(group):.2f} of operations at {100 * _accuracy(group):.1f} % accuracy"


def _density(group: Group) -> float:
    value = group.spread("op_density")
    return value.mean if value else math.inf


def _accuracy(group: Group) -> float:
    value = group.spread("accuracy")
    return value.mean if value else 0.0


def _order(group: Group) -> tuple[Any, ...]:
    return (*group.task, _method_order(group.method), -_density(group), group.label)


def _seed_order(run: Run) -> tuple[int, str, str]:
    return (int(run.seed) if run.seed.isdecimal() else 0, run.seed, run.name)


def _flat(run: Run) -> dict[str, str]:
    """The configuration as dotted keys and texts; a data set is its name, wherever it lies."""
    flat: dict[str, str] = {}

    def walk(value: Any, key: str) -> None:
        items: Iterable[tuple[Any, Any]]
        if isinstance(value, dict) and value:
            items = value.items()
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            items = ((item.get("name", i) if isinstance(item, dict) else i, item) for i, item in enumerate(value))
        else:
            flat[key] = (
                f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
            )
            return
        for name, item in items:
            if name not in _NOT_CONFIGURATION:
                walk(item, f"{key}.{name}" if key else str(name))

    walk({**run.config, "data": run.data, "weights": _weights(run)}, "")
    unused = _OF_QUANTIZERS if run.method == "dense" else set()
    return {key: value for key, value in flat.items() if key.partition(".")[0] not in unused}


def _weights(run: Run) -> str | None:
    """Name of the weights; a run that refines the earlier run of its own seed starts like its fellows."""
    weights = run.config.get("weights")
    if not isinstance(weights, str):
        return None
    name = Path(weights).name
    if Path(name).suffix in {".npz", ".pth", ".pt", ".th", ".safetensors"}:
        return name
    # The last number that is the seed: others are parts of the network's name.
    return re.sub(rf"^(.*)(?<!\d){re.escape(run.seed)}(?!\d)", r"\1<seed>", name)


def _detail(group: tuple[Run, ...], groups: Sequence[tuple[Run, ...]]) -> str:
    """The keys whose values differ among the groups of one method and task, with this group's values."""
    run = group[0]
    same = [
        _flat(g[0]) for g in groups if (g[0].method, g[0].data, g[0].network) == (run.method, run.data, run.network)
    ]
    mine = _flat(run)
    values: dict[str, list[str]] = {}
    for key, value in mine.items():
        if len({other.get(key) for other in same}) > 1:
            # The phases' values of one key stand together: penalty 8/2.
            found = values.setdefault(key.rpartition(".")[2], [])
            if value not in found:
                found.append(value)
    named = [f"{key} {'/'.join(found)}" for key, found in values.items()]
    return ", ".join(named[:2]) + (f", {len(named) - 2} more" if len(named) > 2 else "")


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _mean_of(layers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean of every number, anything else from the first."""
    merged = dict(layers[0])
    for key in merged:
        values = spread(number(layer, key) for layer in layers)
        if values is not None:
            merged[key] = values.mean
    return merged
