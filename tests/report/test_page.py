"""The page as text: what is in it, and what becomes of missing pieces."""

import base64
import hashlib
import html
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sparsetime.frames import save_frames
from sparsetime.report import ReportError, write_report
from sparsetime.report.groups import group_runs
from sparsetime.report.maps import collect_maps
from sparsetime.report.papers import (
    DELTA,
    ENERGY,
    HMDB51,
    JHMDB,
    LSQ,
    MOBILENET_V1,
    MOBILENET_V2,
    NEUROBENCH,
    papers_for,
)
from sparsetime.report.runs import read_runs

from .fabricate import edit_json, fabricate


def report(tmp_path: Path, *runs: Path) -> tuple[str, dict]:
    result = write_report(list(runs), tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8"), result


def test_what_is_returned(tmp_path: Path) -> None:
    runs = [fabricate(tmp_path / f"{m}{s}", method=m, seed=s) for m in ("dense", "delta") for s in (0, 1, 2)]
    page, result = report(tmp_path, *runs)
    assert result["headline"] == (
        "delta: 0.15 of operations at 62.1 % accuracy; dense: 0.70 at 55.2 %. "
        "That is 4.7 times fewer operations with 6.9 points more accuracy."
    )
    assert html.escape(result["headline"]) in page
    assert result["runs"] == 6
    assert result["split"] == "test"
    assert result["notes"] == []
    assert result["size_bytes"] == (tmp_path / "report.html").stat().st_size < 500_000
    delta = result["groups"][1]
    assert delta["seeds"] == ["0", "1", "2"]
    assert delta["accuracy"] == pytest.approx({"mean": 18 / 29, "low": 17 / 29, "high": 19 / 29, "number": 3})
    json.dumps(result, allow_nan=False)


def test_the_page_asks_for_nothing(tmp_path: Path) -> None:
    page, _ = report(tmp_path, fabricate(tmp_path / "a"))
    for address in re.findall(r"(?:src|href|action|data|poster|srcset)=\"([^\"]*)\"", page):
        assert address.startswith(
            ("#", "data:", "https://arxiv.org/", "https://doi.org/", "https://cvrc.ece.utexas.edu/")
        )
    assert not re.findall(r"<(?:img|script|iframe|object|embed|video|audio|source)[^>]*\ssrc=", page)
    assert [tag for tag in re.findall(r"<(\w+)[^>]*https?://", page) if tag != "a"] == []
    assert "url(" not in page
    assert "@import" not in page


def test_only_the_pages_own_script_may_run(tmp_path: Path) -> None:
    page, _ = report(tmp_path, fabricate(tmp_path / "a"))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    script = re.search(r"<script>(.*)</script>", page, re.DOTALL)
    assert policy is not None
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert html.unescape(policy[1]) == (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )


def test_texts_from_files_are_escaped(tmp_path: Path) -> None:
    bad = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'"
    runs = [fabricate(tmp_path / method, method=method) for method in ("dense", "delta")]
    for run in runs:
        edit_json(run / "config.json", network=bad, data=bad, command=bad, left_dense={bad: bad}, machine={bad: bad})
        evaluation = json.loads((run / "evaluation-test.json").read_text())
        evaluation["layers"][0] |= {"name": bad, "kind": bad}
        evaluation["energy"]["remaining"][bad] = {"energy_uj": 1.0, "source": bad}
        evaluation["neurobench"][bad] = 1.0
        edit_json(run / "evaluation-test.json", **(evaluation | {"not_counted": [bad]}))
        (run / "metrics.csv").write_text(f'epoch,phase,train_loss\n0,"{bad.replace(chr(34), chr(34) * 2)}",1\n')
        frames = np.zeros((2, 4, 4, 3), np.uint8)
        save_frames(run / "frames-test.npz", frames, {"layer<script>": np.zeros((2, 2, 2))})
    edit_json(runs[1] / "config.json", method=bad)
    page, _ = report(tmp_path, *runs)
    assert "alert(1)" in page
    assert "<img" not in page
    assert "<script>alert" not in page
    assert len(re.findall(r"<script", page)) == 2
    assert not re.findall(r"<[^>]*\sonerror=[^>\"]*>", page.replace(html.escape(bad), ""))


PARTS = {
    "metrics.csv": "No run has learning curves",
    "evaluation-test.json": "No run has been evaluated",
    "frames-test.npz": "No run has pictures",
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", ["missing", "empty", "garbage"])
def test_a_missing_or_damaged_part_is_named_and_the_rest_stays(tmp_path: Path, part: str, damage: str) -> None:
    run = fabricate(tmp_path / "a")
    (run / part).unlink()
    if damage != "missing":
        (run / part).write_bytes(b"" if damage == "empty" else b"\x00\xff{not this[")
    page, result = report(tmp_path, run)
    assert PARTS[part] in page
    assert len(result["notes"]) >= 1
    assert all(note in html.unescape(page) for note in result["notes"])
    for other, words in PARTS.items():
        # Pictures belong to a split; without an evaluation none is chosen.
        if other != part and not (part == "evaluation-test.json" and other == "frames-test.npz"):
            assert words not in page


def test_a_bare_config_is_enough(tmp_path: Path) -> None:
    run = tmp_path / "a"
    run.mkdir()
    (run / "config.json").write_text("{}")
    page, result = report(tmp_path, run)
    assert result["headline"].startswith("No run has been evaluated")
    assert "unknown" in page


def test_an_evaluation_of_other_types_does_not_crash(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "a")
    evaluation = json.loads((run / "evaluation-test.json").read_text())
    for value in ("text", [1], {"a": [None]}, 3, True):
        changed = dict.fromkeys(evaluation, value)
        (run / "evaluation-test.json").write_text(json.dumps(changed))
        (run / "config.json").write_text(
            json.dumps(dict.fromkeys(json.loads((run / "config.json").read_text()), value))
        )
        _, result = report(tmp_path, run)
        assert result["headline"] == "No run has been evaluated: no accuracy and no operations."
        (group,) = result["groups"]
        assert (group["method"], group["accuracy"]) == (str(value), None)
        left_out = ("accuracy", "activation_density", "delta_density") if value == 3 else ()
        assert result["notes"] == [f"a: evaluation-test.json: {key} was left out, 3 is no share." for key in left_out]


def test_a_run_on_another_split_is_named(tmp_path: Path) -> None:
    _, result = report(tmp_path, fabricate(tmp_path / "a"), fabricate(tmp_path / "b", split="val", method="dense"))
    assert "b: not evaluated on test, only on val." in result["notes"]


def test_broken_videos_are_counted(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "a")
    edit_json(run / "evaluation-test.json", broken=[{"file": "x.avi", "reason": "empty"}])
    _, result = report(tmp_path, run)
    assert result["notes"] == ["a: 1 videos of split test could not be decoded and are in no figure."]


def test_no_run_makes_no_page(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    out.write_text("old")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReportError, match="no run directory"):
        write_report([fabricate(tmp_path / "a"), tmp_path / "empty"], out)
    assert out.read_text() == "old"


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_report([fabricate(tmp_path / "a")], tmp_path / "folder")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "folder"}


def test_caveats_are_computed(tmp_path: Path) -> None:
    page, _ = report(tmp_path, fabricate(tmp_path / "a"), fabricate(tmp_path / "b", method="dense"))
    caveats = re.search(r'<ul class="caveats".*?</ul>', page, re.DOTALL)
    assert caveats is not None
    said = html.unescape(caveats[0])
    assert "29 clips of split test: one clip is 3.4 points" in said
    assert "One seed for each configuration" in said
    assert "17.2\u202f% of the clips" in said
    assert "neither is proven better" in said


def test_without_jinja2_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ReportError, match=r"pip install 'sparsetime\[report\]'"):
        write_report([fabricate(tmp_path / "a")], tmp_path / "report.html")


def test_importing_the_report_imports_no_optional_library() -> None:
    code = "import sys, sparsetime.report; sys.exit(bool({'jinja2', 'av', 'lightning', 'typer'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_papers_follow_what_was_used(tmp_path: Path) -> None:
    runs = read_runs(
        [
            fabricate(tmp_path / "a", rule="lsq", data="x/jhmdb", network="mobilenet_v2"),
            fabricate(tmp_path / "b", method="dense", data="x/jhmdb"),
        ]
    )
    assert set(papers_for(runs)) == {DELTA, LSQ, MOBILENET_V1, MOBILENET_V2, JHMDB, HMDB51, NEUROBENCH, ENERGY}
    edit_json(tmp_path / "b" / "evaluation-test.json", neurobench=None, energy=None)
    edit_json(tmp_path / "b" / "config.json", network="small_cnn", data="generated")
    assert set(papers_for(read_runs([tmp_path / "b"]))) == {DELTA}


def test_change_maps_that_do_not_fit_are_left_out_and_named(tmp_path: Path) -> None:
    groups = group_runs(read_runs([fabricate(tmp_path / m, method=m) for m in ("dense", "delta")]), "test")
    every = collect_maps({"task": groups})
    assert [panel.group.method for panel in every.tasks[0].panels] == ["dense", "delta"]
    assert len(every.strips) == 1  # both saw the same clip
    strips = sum(map(len, every.strips))
    first = sum(len(entry["strip"]) for entry in every.tasks[0].panels[0].maps.values())
    less = collect_maps({"task": groups}, max_bytes=strips + first)
    assert [panel.group.method for panel in less.tasks[0].panels] == ["dense"]
    assert less.notes == ["delta on task: change maps left out to keep the page small."]


def test_names_of_plain_and_delta_layers_meet(tmp_path: Path) -> None:
    runs = [fabricate(tmp_path / m, method=m) for m in ("dense", "delta")]
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    maps = np.zeros((2, 2, 2), np.float16)
    save_frames(runs[0] / "frames-test.npz", frames, {"features.0.2": maps, "features.1.2": maps})
    save_frames(runs[1] / "frames-test.npz", frames, {"input": maps, "features_0_2": maps})
    (task,) = collect_maps({"task": group_runs(read_runs(runs), "test")}).tasks
    assert task.layers == ["features_0_2", "features_1_2", "input"]
    assert task.first == "features_0_2"
