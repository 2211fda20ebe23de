"""Time of a frame in a report: figures of `sparsetime run --json`."""

import json
from pathlib import Path

import pytest

from sparsetime.report import ReportError, write_report
from sparsetime.report.streams import distances_table, layers_table, read_streams, streams_table
from sparsetime.report.svg import MISSING

from .fabricate import edit_json, fabricate, fabricate_stream


def test_times_against_the_dense_network(tmp_path: Path) -> None:
    files = [fabricate_stream(tmp_path / "a.json"), fabricate_stream(tmp_path / "b.json", compared=False)]
    streams = read_streams(files)
    assert [stream.name for stream in streams] == [
        "mobilenet_v1_025 · street.mp4",
        f"mobilenet_v1_025 · street.mp4 ({files[1]})",
    ]
    table = streams_table(streams)
    assert table is not None
    titles = [column.title for column in table.columns]
    first, second = (dict(zip(titles, (cell.text for cell in row), strict=True)) for row in table.rows)
    assert (first["ms"], first["95 %"], first["dense ms"], first["faster"]) == ("4.00", "6.50", "10.00", "2.50\u00d7")
    assert (first["ops"], first["frames"], first["dense runtime"]) == ("0.100", "300", "OpenVINO 1.2")
    assert (second["dense ms"], second["faster"], second["dense runtime"]) == (MISSING, MISSING, "not compared")
    assert distances_table(streams[1]) is None
    distances = distances_table(streams[0])
    assert distances is not None
    assert [[cell.text for cell in row] for row in distances.rows] == [
        ["total variation", "0.02", "0.3", "0.05"],
        ["argmax agreement", "0.97", "0.4", MISSING],
    ]


def test_layers_share_the_time(tmp_path: Path) -> None:
    (stream,) = read_streams([fabricate_stream(tmp_path / "a.json", layers=3)])
    rows = [[cell.text for cell in row] for row in layers_table(stream).rows]
    assert rows[0] == ["features_0", "conv2d", "0.10", "16.7\u202f%", "0.100", "100", "0.080", "0.050", "25.0\u202f%"]
    assert rows[2][2:4] == ["0.30", "50.0\u202f%"]
    assert rows[3] == ["flatten", "reshape", MISSING, MISSING, MISSING, "100", "0.080", "0.050", MISSING]


def test_the_page_shows_them_or_says_how(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run")
    write_report([run], tmp_path / "without.html")
    without = (tmp_path / "without.html").read_text(encoding="utf-8")
    assert "sparsetime report RUN_DIR --stream FILE" in without
    bad = "<script>alert(1)</script>"
    stream = fabricate_stream(tmp_path / "a.json", video=bad)
    edit_json(stream, network=bad, dense_runtime=bad)
    write_report([run], tmp_path / "with.html", streams=[stream])
    page = (tmp_path / "with.html").read_text(encoding="utf-8")
    assert "sparsetime report RUN_DIR --stream FILE" not in page
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert ">2.50\u00d7</td>" in page


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({"layers": [], "accuracy": 1.0})])
def test_what_is_no_stream_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "figures.json"
    file.write_text(content)
    with pytest.raises(ReportError, match=r"figures\.json"):
        write_report([fabricate(tmp_path / "run")], tmp_path / "report.html", streams=[file])
    assert not (tmp_path / "report.html").exists()
