"""Write the report: one HTML page that needs no network and no other file."""

import base64
import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import sparsetime
from sparsetime.files import ready, write_whole
from sparsetime.report import bars, curves, maps, tables
from sparsetime.report.groups import Finding, Group, chance, finding, group_runs
from sparsetime.report.groups import tasks as tasks_of
from sparsetime.report.papers import papers_for
from sparsetime.report.runs import ReportError, Run, choose_split, read_runs
from sparsetime.report.scatter import QUANTITIES, Plane, scatter, x_axis, y_axis
from sparsetime.report.streams import StreamFigures, distances_table, layers_table, read_streams, streams_table
from sparsetime.report.svg import shape, share

_SCATTER_HEIGHT, _CURVE_HEIGHT = 260, 110


def write_report(run_dirs: Sequence[Path], out: Path, *, streams: Sequence[Path] = ()) -> dict[str, Any]:
    """Write one self-contained HTML page about some runs.

    Args:
        run_dirs: run directories, as ``sparsetime train`` and ``sparsetime evaluate`` leave them. What one of them
            lacks beside its ``config.json`` is named in the page.
        streams: files that ``sparsetime run --json`` wrote, to show what running the networks takes.
        out: the file to write; an older one is replaced when the new one is complete.

    Returns:
        What the page says, as plain data: ``page``, ``size_bytes``, ``split``, ``headline``, ``runs``, ``groups``
        (label, method, network, data, seeds, accuracy and operation density with mean and range) and ``notes``.

    Raises:
        ReportError: no directory was given, one is no run, or jinja2 is not installed.
        TargetError, OSError: the page cannot be written.
    """
    out = ready(out)
    runs = read_runs(run_dirs)
    split = choose_split(runs)
    groups = group_runs(runs, split)
    content = _content(runs, groups, split) | _streams(read_streams(streams))
    page = _render(content)
    write_whole(out, page.encode("utf-8"))
    return {
        "page": str(out),
        "size_bytes": len(page.encode("utf-8")),
        "split": split,
        "headline": content["headline"],
        "runs": len(runs),
        "groups": [_summary(group) for group in groups],
        "notes": content["notes"],
    }


def _content(runs: Sequence[Run], groups: Sequence[Group], split: str | None) -> dict[str, Any]:
    by_task = tasks_of(groups)
    findings = {task: found for task, group in by_task.items() if (found := finding(group)) is not None}
    best = max(findings, key=lambda task: findings[task].ratio, default=None)
    named = {" · ".join(task): found for task, found in by_task.items()}
    pictures = maps.collect_maps(named)
    notes = [f"{run.name}: {note}." for run in runs for note in _notes(run, split)]
    return {
        "version": sparsetime.__version__,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "split": split,
        "runs": runs,
        "headline": findings[best].sentence if best else "No run has been evaluated: no accuracy and no operations.",
        "headline_task": " · ".join(best) if best and len(by_task) > 1 else None,
        "other_findings": [(" · ".join(task), found.sentence) for task, found in findings.items() if task != best],
        "caveats": _caveats(groups, findings, split),
        "legend": _legend(groups),
        "shape": shape,
        "summary": tables.summary_table(by_task) if split else None,
        "scatters": _scatters(by_task),
        "runs_table": tables.runs_table(groups),
        "tasks": list(named),
        "layers": {task: rows for task, found in named.items() if (rows := bars.layer_rows(found))},
        "groups_of": named,
        "maps": pictures,
        "curves": {task: drawn for task, found in named.items() if (drawn := _curves(found))},
        "neurobench": tables.neurobench_table(groups),
        "energy": tables.energy_table(groups),
        "uncounted": _uncounted(groups),
        "configurations": [_configuration(group) for group in groups],
        "papers": papers_for(runs),
        "notes": notes + pictures.notes,
    }


def _streams(streams: Sequence[StreamFigures]) -> dict[str, Any]:
    details = [
        {"name": stream.name, "layers": layers_table(stream), "distances": distances_table(stream)}
        for stream in streams
    ]
    return {"streams": streams_table(streams), "stream_details": details}


def _notes(run: Run, split: str | None) -> list[str]:
    notes = list(run.notes)
    if run.evaluations and split not in run.evaluations:
        notes.append(f"not evaluated on {split}, only on {', '.join(run.evaluations)}")
    evaluation = run.evaluations.get(split or "", {})
    for key, what in (("broken", "could not be decoded"), ("missing", "are listed but absent")):
        files = evaluation.get(key)
        if isinstance(files, list) and files:
            notes.append(f"{len(files)} videos of split {split} {what} and are in no figure")
    return notes


def _caveats(groups: Sequence[Group], findings: dict[tuple[str, str], Finding], split: str | None) -> list[str]:
    """What a reader must know before believing the figures, computed from the runs."""
    found = []
    sizes: dict[str, set[int]] = {}
    for group in groups:
        if (clips := group.clips()) is not None:
            sizes.setdefault(group.task[0], set()).add(clips)
    for data, counts in sizes.items():
        least = min(counts)
        amount = str(least) if len(counts) == 1 else f"{least} to {max(counts)}"
        found.append(
            f"Accuracy on {data} is over {amount} clips of split {split}: one clip is {100 / least:.1f} points. "
            "Intervals are Wilson's, 95 %, over clips; seeds share the clips and do not narrow them."
        )
    close = [" · ".join(task) for task, finding in findings.items() if finding.apart is False]
    if close:
        which = (
            "" if len(findings) == 1 else " everywhere" if len(close) == len(findings) else f" on {', '.join(close)}"
        )
        found.append(
            f"The 95 % intervals of the two accuracies above overlap{which}: on so few clips neither is proven better."
        )
    seeds = sorted({len(group.runs) for group in groups})
    if seeds == [1]:
        found.append("One seed for each configuration: how far the figures vary between seeds is not known.")
    else:
        span = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        found.append(f"{span} seeds for each configuration; figures are their mean, ranges are least to greatest.")
    for data in sizes:
        floor = chance(group for group in groups if group.task[0] == data)
        if floor is not None:
            found.append(f"Always naming the commonest class of {data} would be right in {share(floor)} of the clips.")
    most = max((finding.chosen_among for finding in findings.values()), default=0)
    if most > 2:
        found.append(f"The best was chosen among up to {most} sparse configurations on the same clips.")
    if any(group.spread("op_density") for group in groups):
        found.append(
            "Operations are counted, not timed, and leave out the first frame of each window unless it says otherwise."
        )
    return found


def _scatters(by_task: dict[tuple[str, str], list[Group]]) -> list[tuple[str, dict[str, str]]]:
    """For each task a plot by each quantity; all share the horizontal axis, a data set the vertical one."""
    every = [group for groups in by_task.values() for group in groups]
    found = []
    for task, groups in by_task.items():
        y = y_axis([group for group in every if group.task[0] == task[0]])
        plots = {}
        for quantity in QUANTITIES:
            x = x_axis(every, quantity)
            if x is not None and y is not None and x_axis(groups, quantity) is not None:
                plots[quantity.name] = scatter(groups, Plane(quantity, x, y, _SCATTER_HEIGHT))
        if plots:
            found.append((" · ".join(task), plots))
    return found


def _curves(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """For each group of a task its phases and one plot a panel; all groups share the axes."""
    panels = [(panel, axes) for panel in curves.PANELS if (axes := curves.axes(groups, panel)) is not None]
    found = []
    for group in groups if panels else ():
        if not any(run.epochs for run in group.runs):
            continue
        plots = [
            {
                "title": panel.title,
                "contents": curves.curves(group, panel, x, y, _CURVE_HEIGHT),
                "data": {"low": x.low, "high": x.high, "lines": curves.curve_data(group, panel)},
            }
            for panel, (x, y) in panels
        ]
        seeds = sum(bool(run.epochs) for run in group.runs)
        found.append({"group": group, "seeds": seeds, "phases": curves.phases(group.runs[0]), "plots": plots})
    return found


def _legend(groups: Sequence[Group]) -> list[Group]:
    """One group of each method, in the order of their styles."""
    return sorted({group.method: group for group in reversed(groups)}.values(), key=lambda group: group.style)


def _uncounted(groups: Sequence[Group]) -> list[dict[str, Any]]:
    found = []
    for group in groups:
        lists = [tables.reasons(evaluation.get("not_counted")) for evaluation in group.evaluations()]
        entry = {
            "label": group.label,
            "task": " · ".join(group.task),
            "not_counted": list(dict.fromkeys(pair for pairs in lists for pair in pairs)),
            "left_dense": tables.reasons(group.runs[0].config.get("left_dense")),
        }
        if entry["not_counted"] or entry["left_dense"]:
            found.append(entry)
    return found


def _configuration(group: Group) -> dict[str, Any]:
    config = group.runs[0].config
    recipe = {key: value for key, value in config.items() if key not in {"command", "versions", "machine", "seed"}}
    return {
        "label": group.label,
        "task": " · ".join(group.task),
        "json": json.dumps(recipe, indent=2, ensure_ascii=False),
        "versions": tables.entries(config.get("versions") or {}),
        "machine": tables.entries(config.get("machine") or {}),
        "commands": [(run.name, run.seed, _command(run)) for run in group.runs],
    }


def _command(run: Run) -> str:
    command = run.config.get("command")
    if isinstance(command, list):
        return " ".join(str(part) for part in command)
    return str(command) if command else "not recorded"


def _summary(group: Group) -> dict[str, Any]:
    figures = {key: group.spread(key) for key in ("accuracy", "op_density", "op_density_with_first_frame")}
    return {
        "label": group.label,
        "method": group.method,
        "data": group.task[0],
        "network": group.task[1],
        "seeds": [run.seed for run in group.runs],
        "clips": group.clips(),
        "accuracy_interval_95": group.interval(),
        **{key: value._asdict() if value else None for key, value in figures.items()},
    }


def _render(content: dict[str, Any]) -> str:
    try:
        import jinja2
    except ImportError as error:
        raise ReportError("report: needs jinja2. Install it with pip install 'sparsetime[report]'") from error
    environment = jinja2.Environment(
        loader=jinja2.DictLoader({"page.html": _template("page.html")}),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "separators": (",", ":")}
    script = _template("page.js")
    # The page may run this script and no other, and may ask no server for anything.
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return environment.get_template("page.html").render(
        **content, css=_template("chart.css") + _template("page.css"), script=script, script_hash=f"sha256-{digest}"
    )


def _template(name: str) -> str:
    return files("sparsetime.report").joinpath("templates", name).read_text(encoding="utf-8")
