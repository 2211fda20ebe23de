"""Read run directories: plain files, some of which may be missing or damaged."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

Epoch = dict[str, float | str | None]


class ReportError(ValueError):
    """A report cannot be made of what was given; the message says of what and what mends it."""


@dataclass(frozen=True)
class Run:
    """One run directory.

    Attributes:
        path: the directory.
        name: its name, unique among the runs of a report.
        config: ``config.json``.
        epochs: the rows of ``metrics.csv``; numbers as float, an empty or non-finite cell as None.
        evaluations: split to ``evaluation-<split>.json``.
        frames: split to the path of ``frames-<split>.npz``.
        notes: what is missing or could not be read, as sentences.
    """

    path: Path
    name: str
    config: dict[str, Any]
    epochs: tuple[Epoch, ...]
    evaluations: dict[str, dict[str, Any]]
    frames: dict[str, Path]
    notes: tuple[str, ...]

    @property
    def method(self) -> str:
        return str(self.config.get("method", "unknown"))

    @property
    def network(self) -> str:
        return str(self.config.get("network", "unknown"))

    @property
    def data(self) -> str:
        """Name of the data set: the last part of its path."""
        return Path(str(self.config.get("data", "unknown"))).name or "unknown"

    @property
    def seed(self) -> str:
        return str(self.config.get("seed", "?"))

    def column(self, name: str) -> list[float | None]:
        """One column of ``metrics.csv``, None where there is no number."""
        values = (epoch.get(name) for epoch in self.epochs)
        return [value if isinstance(value, float) else None for value in values]


def number(mapping: Mapping[str, Any], key: str) -> float | None:
    """The finite number under a key, else None: files from outside may hold anything."""
    value = mapping.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def read_run(path: Path) -> Run:
    """Read one run directory. What is missing or damaged beside ``config.json`` becomes a note.

    Raises:
        ReportError: no such directory, no ``config.json`` in it, or one that is no JSON object.
    """
    path = Path(path)
    if not path.is_dir():
        raise ReportError(f"report: expected a run directory, found no directory at {path}")
    notes: list[str] = []
    evaluations = {}
    for file in sorted(path.glob("evaluation-*.json")):
        try:
            evaluations[file.stem.removeprefix("evaluation-")] = _plausible(read_object(file), file, notes)
        except ReportError as error:
            notes.append(f"{file.name} was left out: {error}")
    if not evaluations and not notes:
        notes.append(f"not evaluated: no evaluation-<split>.json. Call sparsetime evaluate {path}")
    epochs = _read_metrics(path / "metrics.csv", notes)
    frames = {file.stem.removeprefix("frames-"): file for file in sorted(path.glob("frames-*.npz"))}
    return Run(path, path.resolve().name, _read_config(path), epochs, evaluations, frames, tuple(notes))


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read several run directories, each once, with names that tell them apart.

    Raises:
        ReportError: no directory was given, or one of them is no run.
    """
    if not paths:
        raise ReportError(
            "report: expected at least one run directory, got none. Make one with sparsetime train --out DIR"
        )
    unique = {Path(path).resolve(): Path(path) for path in paths}
    runs = [read_run(path) for path in unique.values()]
    depth = 1
    while len({run.name for run in runs}) < len(runs):
        depth += 1
        runs = [replace(run, name="/".join(run.path.resolve().parts[-depth:])) for run in runs]
    return runs


def choose_split(runs: Sequence[Run]) -> str | None:
    """The split the report is about: ``test`` if any run has it, else the one that most runs have."""
    splits = [split for run in runs for split in run.evaluations]
    if not splits or "test" in splits:
        return "test" if splits else None
    return max(sorted(set(splits)), key=splits.count)


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if not file.is_file():
        raise ReportError(
            f"report: {path} is no run directory, it has no config.json. "
            "Give the directories that sparsetime train --out made"
        )
    return read_object(file)


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ReportError: there is none.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ReportError(f"report: {file} is not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ReportError(f"report: {file} holds a JSON {type(value).__name__}, expected an object")
    return value


def _plausible(evaluation: dict[str, Any], file: Path, notes: list[str]) -> dict[str, Any]:
    """The evaluation without figures that cannot be: shares below 0 or, for the accuracy, above 1."""
    bounds = {"accuracy": 1.0, "op_density": math.inf, "activation_density": 1.0, "delta_density": 1.0}
    kept = dict(evaluation)
    for key, most in bounds.items():
        value = number(evaluation, key)
        if value is not None and not 0 <= value <= most:
            notes.append(f"{file.name}: {key} was left out, {value:g} is no share")
            del kept[key]
    return kept


def _read_metrics(file: Path, notes: list[str]) -> tuple[Epoch, ...]:
    if not file.is_file():
        notes.append("no learning curves: no metrics.csv")
        return ()
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            rows = [{key: _cell(key, value) for key, value in row.items() if key} for row in csv.DictReader(lines)]
    except (OSError, ValueError, csv.Error) as error:
        notes.append(f"no learning curves: metrics.csv is not readable: {error}")
        return ()
    epochs = tuple(row for row in rows if isinstance(row.get("epoch"), float))
    if not epochs:
        notes.append("no learning curves: metrics.csv has no row with an epoch")
    return epochs


def _cell(key: str, text: Any) -> float | str | None:
    if not isinstance(text, str) or not text.strip():
        return None
    if key == "phase":
        return text
    try:
        value = float(text)
    except ValueError:
        return text
    return value if math.isfinite(value) else None
