"""What running plans took: figures that `sparsetime run --json` wrote, as tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsetime.report.runs import ReportError, number, read_object
from sparsetime.report.svg import counted, decimal, share
from sparsetime.report.tables import Cell, Column, Table, bytes_text, number_cell, object_of

_DISTANCES = (
    ("quality", "stream", "of the stream's outputs"),
    ("quality_frozen", "frozen", "of the dense answer to the first frame, kept for ever"),
    (
        "quality_frame_skipping",
        "skipping",
        "of frame skipping: the dense network on as many frames as take the stream's time",
    ),
)


@dataclass(frozen=True)
class StreamFigures:
    """One file of `sparsetime run --json`.

    Attributes:
        name: network and video, unique among the files of a report.
        figures: the file's content.
    """

    name: str
    figures: dict[str, Any]


def read_streams(files: Sequence[Path]) -> list[StreamFigures]:
    """Read what `sparsetime run --json` wrote.

    Raises:
        ReportError: a file is not readable, or holds something else.
    """
    found: list[StreamFigures] = []
    for file in files:
        figures = read_object(Path(file))
        if not isinstance(figures.get("layers"), list) or not {"time_ms", "threads", "video"} <= figures.keys():
            raise ReportError(
                f"report: {file} holds no figures of a stream. Give what sparsetime run PLAN VIDEO --json FILE wrote"
            )
        name = f"{figures.get('network', 'network')} · {Path(str(figures['video'])).name}"
        if any(other.name == name for other in found):
            name = f"{name} ({file})"
        found.append(StreamFigures(name, figures))
    return found


def streams_table(streams: Sequence[StreamFigures]) -> Table | None:
    """One row a stream: time of a frame against the dense network's; None where there is none."""
    if not streams:
        return None
    columns = [
        Column("stream", "network and video", False),
        Column("ms", "time of a frame: median, decoding and the first frame left out"),
        Column("dense ms", "time of a frame of the dense network: median"),
        Column("faster", "median over the frames of dense time over stream time"),
        Column("95 %", "of the frames took no longer, ms"),
        Column("ops", "operations that remain over dense operations, first frame out"),
        Column("threads", "of the stream, and of the dense network"),
        Column("frames", "that were run"),
        Column("state", "bytes that the stream keeps from frame to frame"),
        Column("weights", "bytes of weights, shared by all streams of a plan"),
        Column("dense runtime", "the fastest that was found for the dense network", False),
    ]
    rows = []
    for stream in streams:
        figures = stream.figures
        time_ms, dense_ms = object_of(figures.get("time_ms")), object_of(figures.get("time_dense_ms"))
        runtime = str(figures.get("dense_runtime") or "not compared")
        rows.append(
            [
                Cell(stream.name, stream.name),
                number_cell(number(time_ms, "median"), _ms),
                number_cell(number(dense_ms, "median"), _ms),
                number_cell(number(figures, "speedup_median"), lambda value: f"{value:.2f}\u00d7"),
                number_cell(number(time_ms, "p95"), _ms),
                number_cell(number(figures, "op_density"), decimal),
                number_cell(number(figures, "threads"), counted),
                number_cell(number(figures, "frames"), counted),
                number_cell(number(figures, "state_bytes"), bytes_text),
                number_cell(number(figures, "weight_bytes"), bytes_text),
                Cell(runtime, runtime),
            ]
        )
    return Table(columns, rows)


def layers_table(stream: StreamFigures) -> Table:
    """One row an operation of the plan, in its order: a mean frame, the first left out."""
    columns = [
        Column("operation", "its name in the plan", False),
        Column("kind", "what it does", False),
        Column("ms", "time in a mean frame"),
        Column("of the time", "share of the time of all operations"),
        Column("ops", "operations done over dense operations"),
        Column("MACs", "multiply-accumulates done"),
        Column("by events", "operations that the events cause, by true fan-out, over dense operations"),
        Column("deltas", "share of its output's elements that it sent on"),
        Column("dense path", "share of the frames in which so much changed that it was computed densely"),
    ]
    layers = [object_of(layer) for layer in stream.figures["layers"]]
    total = sum(number(layer, "time_ms") or 0.0 for layer in layers)
    rows = []
    for place, layer in enumerate(layers):
        time_ms = number(layer, "time_ms")
        rows.append(
            [
                Cell(str(layer.get("name", "?")), place),
                Cell(str(layer.get("kind", "?")), str(layer.get("kind", "?"))),
                number_cell(time_ms, _ms),
                number_cell(None if time_ms is None or not total else time_ms / total, share),
                number_cell(number(layer, "op_density"), decimal),
                number_cell(number(layer, "macs"), counted),
                number_cell(number(layer, "effective_density"), decimal),
                number_cell(number(layer, "delta_density"), decimal),
                number_cell(number(layer, "dense_path"), share),
            ]
        )
    return Table(columns, rows)


def distances_table(stream: StreamFigures) -> Table | None:
    """Distances to the dense network's outputs beside those of the two controls; None where nothing was compared."""
    by_method = [object_of(stream.figures.get(key)) for key, *_ in _DISTANCES]
    names = [name for name in by_method[0] if any(number(found, name) is not None for found in by_method)]
    if not names:
        return None
    columns = [Column("distance to dense", "see docs/run.md", False)]
    columns += [Column(title, hint) for _, title, hint in _DISTANCES]
    rows = []
    for name in names:
        cells = [number_cell(number(found, name), lambda value: f"{value:.4g}") for found in by_method]
        rows.append([Cell(name.replace("_", " "), name), *cells])
    return Table(columns, rows)


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"
