"""The command, and what it reads from its options."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from sparsetime.budget import Tuned
from sparsetime.cli.tuning import parse_bytes, parse_share, register
from sparsetime.engine import Plan


def app() -> typer.Typer:
    commands = typer.Typer()
    register(commands)
    commands.command("other")(lambda: None)  # with one command alone typer would not ask for its name
    return commands


def test_tunes(plan: Plan, folder: Path, tmp_path: Path) -> None:
    plan.save(tmp_path / "small.plan")
    out, figures = tmp_path / "tuned.plan", tmp_path / "figures.json"
    options = ["--max-drop", "2%", "--clip-frames", "8", "--tune-clips", "2", "--check-clips", "2"]
    options += ["--flush", "2.5"]
    files = ["--out", str(out), "--json", str(figures)]
    result = CliRunner().invoke(
        app(), ["tune", str(tmp_path / "small.plan"), "--video", str(folder), *options, *files], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    assert Plan.load(out).name == plan.name
    written = json.loads(figures.read_text())
    assert written["flush"] == 2.5
    assert f"{written['check']['drop']:.2%}" in result.output
    assert "frozen" in result.output
    assert "skipping" in result.output
    assert "held-back clips" in result.output


@pytest.mark.parametrize("dense_ms", [1e-6, 1e6])
def test_a_result_slower_than_dense_is_warned_of(
    plan: Plan, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dense_ms: float
) -> None:
    import sparsetime.budget

    real = sparsetime.budget.tune

    def tune(*args: Any, **kwargs: Any) -> Tuned:
        found = real(*args, **kwargs)
        found.figures["check"]["time_dense_ms"] = dense_ms
        return found

    monkeypatch.setattr(sparsetime.budget, "tune", tune)
    plan.save(tmp_path / "small.plan")
    command = ["tune", str(tmp_path / "small.plan"), "--video", str(folder), "--max-drop", "2%", "--clip-frames", "8"]
    command += ["--tune-clips", "1", "--check-clips", "1", "--out", str(tmp_path / "tuned.plan")]
    result = CliRunner().invoke(app(), command, catch_exceptions=False)
    assert ("slower than dense" in result.output) == (dense_ms < 1)


def test_errors_are_one_line(plan: Plan, folder: Path, tmp_path: Path) -> None:
    plan.save(tmp_path / "small.plan")
    still = str(folder / "still" / "still.mkv")
    command = ["tune", str(tmp_path / "small.plan"), "--video", still, "--max-drop", "2%", "--clip-frames", "8"]
    result = CliRunner().invoke(app(), [*command, "--out", str(tmp_path / "x.plan")])
    assert result.exit_code == 1
    assert "sparsetime: error: " in result.output
    assert "too still" in result.output
    assert not (tmp_path / "x.plan").exists()


@pytest.mark.parametrize(("text", "share"), [("0.5%", 0.005), ("5 %", 0.05), ("0.005", 0.005), (".5", 0.5), ("1", 1.0)])
def test_shares(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["0", "0%", "5", "101%", "-1%", "x", "", "nan"])
def test_shares_that_are_none(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="--max-drop"):
        parse_share(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [("32MiB", 2**25), ("1.5kB", 1500), ("7", 7), ("2 GB", 2 * 10**9), ("1e10", 10**10), (".5GiB", 2**29)],
)
def test_bytes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["32 mebi", "MiB", "-1", "", "1e999", "."])
def test_bytes_that_are_none(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="--max-state"):
        parse_bytes(text)
