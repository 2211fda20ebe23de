"""Reading run directories, whole and damaged."""

from pathlib import Path

import pytest

from sparsetime.report import ReportError, read_run
from sparsetime.report.runs import choose_split, read_runs

from .fabricate import edit_json, fabricate


def test_a_whole_run(tmp_path: Path) -> None:
    run = read_run(fabricate(tmp_path / "a", method="delta", seed=2))
    assert (run.method, run.network, run.data, run.seed) == ("delta", "mobilenet_v1_025", "ut_interaction", "2")
    assert len(run.epochs) == 12
    assert run.column("epoch") == [float(i) for i in range(12)]
    assert run.column("val_accuracy") == [None] * 12  # empty cells
    assert run.epochs[5]["phase"] == "strong"
    assert run.evaluations["test"]["accuracy"] == pytest.approx(19 / 29)
    assert run.frames == {"test": tmp_path / "a" / "frames-test.npz"}
    assert run.notes == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no config.json"), ("{", "not readable as JSON"), ("[1]", "expected an object"), ("\xff", "not readable")],
)
def test_what_is_no_run(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ReportError, match=message):
        read_run(tmp_path)


def test_no_directory_and_no_runs(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"no directory at .*absent"):
        read_run(tmp_path / "absent")
    with pytest.raises(ReportError, match="at least one run directory"):
        read_runs([])


def test_missing_and_damaged_parts_become_notes(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "a")
    (run / "metrics.csv").unlink()
    (run / "evaluation-test.json").write_text("{broken")
    (run / "frames-test.npz").unlink()
    found = read_run(run)
    assert found.epochs == ()
    assert found.evaluations == {}
    assert any("metrics.csv" in note for note in found.notes)
    assert any(note.startswith("evaluation-test.json was left out") for note in found.notes)


def test_no_evaluation_says_how_to_make_one(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "a")
    (run / "evaluation-test.json").unlink()
    assert any("sparsetime evaluate" in note for note in read_run(run).notes)


def test_figures_that_cannot_be_are_left_out(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "a")
    edit_json(run / "evaluation-test.json", accuracy=66.0, op_density=-0.1)
    found = read_run(run)
    assert "accuracy" not in found.evaluations["test"]
    assert "op_density" not in found.evaluations["test"]
    assert sum("is no share" in note for note in found.notes) == 2


def test_cells_that_are_no_numbers(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "a")
    (run / "metrics.csv").write_text("epoch,phase,train_loss\n0,1,nan\n1,2,inf\n2,3,0.5\nx,4,1\n")
    found = read_run(run)
    assert found.column("train_loss") == [None, None, 0.5]
    assert [row["phase"] for row in found.epochs] == ["1", "2", "3"]


def test_names_tell_runs_apart_and_each_counts_once(tmp_path: Path) -> None:
    a, b = fabricate(tmp_path / "x" / "run"), fabricate(tmp_path / "y" / "run", seed=1)
    runs = read_runs([a, b, a])
    assert [run.name for run in runs] == ["x/run", "y/run"]


def test_the_split_is_test_or_the_commonest(tmp_path: Path) -> None:
    runs = read_runs(
        [
            fabricate(tmp_path / "a", split="val"),
            fabricate(tmp_path / "b", split="val", seed=1),
            fabricate(tmp_path / "c", split="all", seed=2),
        ]
    )
    assert choose_split(runs) == "val"
    assert choose_split([*runs, read_run(fabricate(tmp_path / "d", seed=3))]) == "test"
    assert choose_split([]) is None
