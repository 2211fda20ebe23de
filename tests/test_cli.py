"""The command line: contract, errors, exit codes."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sparsetime.cli import app
from sparsetime.train.generated import write_video
from sparsetime.video import GeneratedClips

COMMANDS = ("demo", "train", "evaluate", "report")
CONTRACT = (
    "accuracy",
    "op_density",
    "op_density_with_first_frame",
    "activation_density",
    "delta_density",
    "layers",
)
SMALL = ["--accelerator", "cpu", "--threads", "1", "--workers", "0"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cli-cache"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with clips.csv: 8 training and 4 test videos of 2 classes, 64x64, 6 frames."""
    root = tmp_path_factory.mktemp("clips")
    made = GeneratedClips(12, seed=4, length=6, classes=2)
    with (root / "clips.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "group", "split"])
        for i in range(len(made)):
            write_video(root / f"{i}.avi", made[i]["clip"].permute(0, 2, 3, 1).numpy())
            split = "train" if i < 8 else "test"
            writer.writerow([f"{i}.avi", made.classes[i % 2], f"{split}{i}", split])
    return root


def call(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from sparsetime.cli import main\n"
        "sys.argv = ['sparsetime', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'lightning', 'av', 'jinja2', 'numpy'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_json(command: str) -> None:
    code, out, _ = call(command, "--help")
    assert code == 0
    assert f"sparsetime {command}" in out.split("Example")[1]
    assert "--json" in out


def test_train_evaluate_report(clips: Path, tmp_path: Path) -> None:
    for method in ("dense", "spatial_l1", "delta"):
        run = tmp_path / method
        code, out, err = call(
            *("train", "--data", clips, "--model", "small_cnn", "--method", method, "--out", run, "--epochs", 1),
            *("--seed", 3, "--batch-size", 4, "--clip-length", 4, "--json", run.with_suffix(".train.json"), *SMALL),
        )
        assert code == 0, err
        assert "epoch 1/1" in err
        assert len(out.splitlines()) == 1
        assert json.loads(run.with_suffix(".train.json").read_text())["epochs"] == 1
        assert json.loads((run / "config.json").read_text())["seed"] == 3

        file = run.with_suffix(".json")
        code, out, err = call("evaluate", run, "--data", clips, "--split", "test", "--json", file, "--threads", 1)
        assert code == 0, err
        result = json.loads(file.read_text())
        keys = {
            "accuracy",
            "op_density",
            "op_density_with_first_frame",
            "activation_density",
            "delta_density",
            "layers",
        }
        assert keys <= set(result)
        assert f"accuracy            {result['accuracy']:.3f}" in out

    page, file = tmp_path / "report.html", tmp_path / "report.json"
    runs = [tmp_path / method for method in ("dense", "spatial_l1", "delta")]
    code, out, err = call("report", *runs, "--out", page, "--json", file)
    assert code == 0, err
    assert out.strip().replace("\n", "") == str(page)
    assert page.read_text().lstrip().lower().startswith("<!doctype html")
    assert json.loads(file.read_text())


def test_weights_may_be_a_run(clips: Path, tmp_path: Path) -> None:
    common = ["--data", clips, "--model", "small_cnn", "--epochs", 1, "--clip-length", 4, *SMALL]
    assert call("train", *common, "--method", "dense", "--out", tmp_path / "dense")[0] == 0
    code, _, err = call("train", *common, "--weights", tmp_path / "dense", "--out", tmp_path / "delta")
    assert code == 0, err
    assert "strong 1 epochs" in err


def test_options_win_over_the_recipe(clips: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'network = "small_cnn"\ndata = "{clips}"\nmethod = "dense"\nepochs = 9\nclip_length = 4\n')
    code, _, err = call("train", "--recipe", recipe, "--epochs", 1, "--out", tmp_path / "run", "--quiet", *SMALL)
    assert code == 0, err
    assert err == ""
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["epochs"], config["method"], config["clip_length"]) == (1, "dense", 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--data": "nowhere"}, "data: no folder nowhere"),
        ({"--model": "mobilnet"}, "unknown network 'mobilnet': expected one of .*small_cnn"),
        ({"--weights": "absent.npz"}, "absent.npz"),
        ({"--recipe": "absent.toml"}, "recipe: no file absent.toml"),
        ({"--epochs": "0"}, "epochs must be more than 0"),
        ({"--clip-length": "0"}, "clip_length must be more than 0"),
        ({"--allow": "anything"}, r"key 'allow'\[0\]: expected one of 'class_in_one_split'"),
    ],
)
def test_one_clear_line_for_what_is_wrong(clips: Path, tmp_path: Path, change: dict[str, str], message: str) -> None:
    options = {"--data": str(clips), "--model": "small_cnn", "--out": str(tmp_path / "run")} | change
    code, out, err = call("train", *(word for pair in options.items() for word in pair), *SMALL)
    assert code == 1
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("sparsetime: error: ")
    assert re.search(message, lines[0])
    assert not (tmp_path / "run").exists()


def test_data_and_model_are_asked_for(tmp_path: Path) -> None:
    code, _, err = call("train", "--out", tmp_path / "run", "--model", "small_cnn")
    assert code == 2
    assert "expected --data" in err


def test_a_method_that_is_none(clips: Path, tmp_path: Path) -> None:
    code, _, err = call(
        "train", "--data", clips, "--model", "small_cnn", "--method", "sparse", "--out", tmp_path / "run"
    )
    assert code == 2
    assert "'sparse' is not one of 'dense', 'spatial_l1', 'delta'" in err


def test_evaluate_and_report_without_a_run(clips: Path, tmp_path: Path) -> None:
    code, _, err = call("evaluate", tmp_path, "--data", clips, "--split", "test")
    assert (code, err.count("\n")) == (1, 1)
    assert "has no config.json" in err
    code, _, err = call("report", tmp_path / "absent", "--out", tmp_path / "page.html")
    assert (code, err.count("\n")) == (1, 1)
    assert not (tmp_path / "page.html").exists()


def test_debug_shows_where(clips: Path, tmp_path: Path) -> None:
    code, _, err = call("evaluate", tmp_path, "--data", clips, "--split", "test", "--debug")
    assert code == 1
    assert "Traceback" in err
    assert "sparsetime: error: run: " in err.splitlines()[-1]
