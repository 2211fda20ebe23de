"""The command line: contract, errors, exit codes."""

import csv
import json
import os
import pty
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sparsetime.cli import app
from sparsetime.cli.common import StatusLine, check_targets
from sparsetime.files import TargetError
from sparsetime.video import GeneratedClips, write_video

COMMANDS = (
    "demo",
    "train",
    "evaluate",
    "report",
    "compile",
    "run",
    "tune",
    "many",
    "watch",
    "export",
    "bench layers",
    "bench network",
)
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
            write_video(root / f"{i}.mkv", made[i]["clip"].permute(0, 2, 3, 1).numpy())
            split = "train" if i < 8 else "test"
            writer.writerow([f"{i}.mkv", made.classes[i % 2], f"{split}{i}", split])
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
    assert all(command.split()[0] in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_json(command: str) -> None:
    code, out, _ = call(*command.split(), "--help")
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
        ({"--epochs": "0"}, "epochs = 0 sets the steps"),
        ({"--clip-length": "1"}, "clip_length must be 2 or more"),
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


RUN_CONTRACT = (
    *("frames", "fps", "fps_dense", "dense_runtime", "op_density", "state_bytes"),
    *("quality", "quality_frozen", "quality_frame_skipping", "layers"),
)


@pytest.fixture(scope="module")
def delta_plan(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan of a network that was trained for an epoch."""
    folder = tmp_path_factory.mktemp("plans")
    code, _, err = call(
        *("train", "--data", clips, "--model", "small_cnn", "--out", folder / "run", "--epochs", 1),
        *("--batch-size", 4, "--clip-length", 4, "--quiet", *SMALL),
    )
    assert code == 0, err
    code, out, err = call("compile", folder / "run", "--out", folder / "delta.plan", "--json", folder / "plan.json")
    assert code == 0, err
    assert "small_cnn at 64x64, codec exact" in out
    assert json.loads((folder / "plan.json").read_text())["calibration_frames"] == 0
    return folder / "delta.plan"


def test_compile_and_run(delta_plan: Path, clips: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "run.json"
    code, out, err = call(
        *("run", delta_plan, clips / "0.mkv", "--compare", "dense", "--threads", 1, "--frames", 5),
        *("--json", file, "--out-video", tmp_path / "drawn.mp4"),
    )
    assert code == 0, err
    result = json.loads(file.read_text())
    assert set(RUN_CONTRACT) <= set(result)
    assert result["frames"] == 5
    assert 0 < result["op_density"] < 1
    assert re.search(r"5 frames, \d+\.\d frames/s \(dense \d+\.\d\), operations 0\.\d+", err)
    assert "argmax_agreement" in out
    assert (tmp_path / "drawn.mp4").stat().st_size > 0


def test_export_to_onnx(delta_plan: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    code, out, err = call(
        "export", delta_plan, "--to", "onnx", "--out", tmp_path / "delta.onnx", "--json", tmp_path / "j"
    )
    assert code == 0, err
    assert json.loads((tmp_path / "j").read_text())["file_bytes"] == (tmp_path / "delta.onnx").stat().st_size > 10_000
    assert "small_cnn as onnx" in out


def test_export_says_what_a_format_cannot(delta_plan: Path, tmp_path: Path) -> None:
    pytest.importorskip("nir")
    code, _, err = call("export", delta_plan, "--to", "nir", "--out", tmp_path / "delta.nir")
    assert code == 1
    assert "max_code" in err
    assert err.count("\n") == 1
    assert call("export", delta_plan, "--to", "onnx", "--max-code", 3, "--out", tmp_path / "x")[0] == 2
    assert list(tmp_path.iterdir()) == []


def test_a_dense_run_is_calibrated_on_its_own_videos(clips: Path, tmp_path: Path) -> None:
    common = ["--data", clips, "--model", "small_cnn", "--epochs", 1, "--clip-length", 4, "--quiet", *SMALL]
    assert call("train", *common, "--method", "dense", "--out", tmp_path / "dense")[0] == 0
    code, out, err = call("compile", tmp_path / "dense", "--out", tmp_path / "p.plan")
    assert code == 0, err
    assert "codec pixel" in out


def test_a_cut_video_runs_as_far_as_it_goes(delta_plan: Path, clips: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.mkv"
    cut.write_bytes((clips / "0.mkv").read_bytes()[:-6000])
    code, out, err = call("run", delta_plan, cut, "--json", tmp_path / "run.json")
    result = json.loads((tmp_path / "run.json").read_text())
    assert code == 1
    assert 1 <= result["frames"] < 6
    assert f"frames              {result['frames']}" in out
    assert "cut off" in "".join(result["damage"])
    last = err.splitlines()[-1]
    assert last.startswith(f"sparsetime: error: {cut}: ")
    assert "cut off" in last


def test_of_many_videos_the_one_that_is_not_there_is_named_once(delta_plan: Path, clips: Path) -> None:
    down = "rtsp://127.0.0.1:9/x"
    code, out, err = call("many", delta_plan, clips / "0.mkv", down, "--frames", 2, "--retries", 0)
    assert code == 1
    assert down in out
    assert err.splitlines()[-1] == f"sparsetime: error: {down}: Connection refused"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "absent.plan", "VIDEO"], "absent.plan: no such file"),
        (["run", "VIDEO", "VIDEO"], "not a whole safetensors file"),
        (["run", "PLAN", "absent.mp4"], "absent.mp4: there is no such file or folder"),
        (["run", "PLAN", "rtsp://127.0.0.1:9/x"], "rtsp://127.0.0.1:9/x: .*refused"),
        (["run", "PLAN", "77"], "camera 77"),
        (["run", "PLAN", "VIDEO", "--out-video", "x.gif"], "expected a video file"),
        (["compile", "absent", "--out", "x.plan"], "no such run directory, and no built-in network"),
        (["compile", "mobilenet_v2", "--out", "x.plan"], "give --weights FILE"),
        (["compile", "no_package:make", "--out", "x.plan"], "ModuleNotFoundError"),
    ],
)
def test_one_clear_line_from_compile_and_run(
    delta_plan: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    real = {"PLAN": str(delta_plan), "VIDEO": str(clips / "0.mkv")}
    code, out, err = call(*(real.get(word, word) for word in arguments))
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("sparsetime: error: ")
    assert re.search(message, err)


SAME = [
    *("compile m:f --out v.mkv --calibrate v.mkv", "compile small_cnn --weights w.npz --out w.npz"),
    *("compile m:f --calibrate v.mkv --out p --json v.mkv", "compile m:f --calibrate pictures --out pictures/1.png"),
    *("compile run --out run/model.safetensors", "compile m:f --out p --json p", "compile m:f --out p --json ./p"),
    *("run a.plan v.mkv --out-video v.mkv", "run a.plan v.mkv --json v.mkv", "run a.plan v.mkv --json a.plan"),
    *("run a.plan v.mkv --save-state a.plan", "run a.plan pictures --json pictures/1.png"),
    *("run a.plan v.mkv --save-state f --json f", "run a.plan v.mkv --save-state v.mp4 --out-video v.mp4"),
    *("run a.plan v.mkv --resume-state s --json s", "run a.plan v.mkv --resume-state s --save-state s --json s"),
    *("run a.plan v.mkv --out-video link.mkv", "run a.plan link.mkv --out-video v.mkv", "run a.plan v.mkv --json hard"),
    *("many a.plan w.npz v.mkv --json v.mkv", "many a.plan v.mkv --json a.plan"),
    *("watch a.plan v.mkv --json v.mkv", "watch a.plan v.mkv --json a.plan"),
    *("tune a.plan --video v.mkv --max-drop 1% --out v.mkv", "tune a.plan --video v.mkv --max-drop 1% --out a.plan"),
    *("tune a.plan --video v.mkv --max-drop 1% --out p --json p", "tune a.plan --video . --max-drop 1% --out v.mkv"),
    "tune a.plan --video v.mkv --max-drop 1% --labels l.csv --out p --json l.csv",
    "tune a.plan --video v.mkv --max-drop 1% --out p --json p.tune.json",
    *("export a.plan --to onnx --out a.plan", "export a.plan --to nir --out a.plan"),
    *("export a.plan --to onnx --out p --json p", "export a.plan --to onnx --out p --json a.plan"),
    "train --data data --model small_cnn --weights w.npz --out new --json w.npz",
    "train --data data --model small_cnn --out new --json data/train/a/1.avi",
    "train --data data --model small_cnn --out new --json data/clips.csv",
    "train --data data --model small_cnn --weights run --out new --json run/model.safetensors",
    *("train --recipe r.toml --out new --json r.toml", "train --recipe r.toml --out new --json data/train/a/1.avi"),
    "train --data data --model small_cnn --out new --json new/config.json",
    "evaluate run --data data --split test --json run/config.json",
    "evaluate run --data data --split test --json data/train/a/1.avi",
    *("report run --out run/config.json", "report run --out p --json p", "report run --stream s --out s"),
    *("report run --out p --json run/evaluation-test.json", "report run --stream s --out p --json s"),
    *("demo --out new --json new/report.html", "demo --out new --json new/delta/config.json"),
    "bench network --plan a.plan --model m:f --video v.mkv --json v.mkv",
    "bench network --plan a.plan --model run --video v.mkv --json run/model.safetensors",
]


@pytest.mark.parametrize("command", SAME)
def test_what_is_read_is_never_overwritten(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["a.plan", "v.mkv", "w.npz", "l.csv", "s", "pictures/1.png", "data/clips.csv", "data/train/a/1.avi"]
    for name in (*names, "run/config.json", "run/model.safetensors", "run/evaluation-test.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "r.toml").write_text('data = "data"\nnetwork = "small_cnn"\n')
    (tmp_path / "link.mkv").symlink_to("v.mkv")
    (tmp_path / "hard").hardlink_to("v.mkv")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    code, out, err = call(*command.split())
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert re.fullmatch(
        r"sparsetime: error: (--|the ).* (would overwrite what this command uses \(.*\); name another file"
        r"|are the same file; expected two: name another one)\n",
        err,
    )
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_what_is_not_read_may_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("pictures/1.png", "pictures/drawn.mp4", "pictures/f.json", "run/config.json", "run/report.html", "0"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    check_targets({"--out-video": Path("pictures/drawn.mp4"), "--json": Path("pictures/f.json")}, "pictures", None)
    check_targets({"--out": Path("run/report.html"), "--json": Path("run/report.json")}, Path("run"))
    check_targets({"--json": Path("evaluation-run.json"), "--out": None}, Path("run"), ".")
    check_targets({"--json": Path("1")}, "1", "rtsp://" + "x" * 300)  # a camera, an address
    with pytest.raises(
        TargetError, match=r"^--json 0 would overwrite what this command uses \(0\); name another file$"
    ):
        check_targets({"--json": Path("0")}, "0")


def test_a_plan_may_have_the_name_of_its_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small_cnn").touch()
    code, _, err = call("compile", "small_cnn", "--out", "small_cnn")
    assert (code, "needs its weights" in err) == (1, True)


def test_a_state_may_be_replaced_by_the_next(delta_plan: Path, clips: Path, tmp_path: Path) -> None:
    state, again = tmp_path / "a.state", tmp_path / "x" / ".." / "a.state"
    common = ("run", delta_plan, clips / "0.mkv", "--frames", 2, "--json", tmp_path / "a.json")
    assert call(*common, "--save-state", state)[0] == 0
    code, _, err = call(*common, "--resume-state", state, "--save-state", again)
    assert code == 0, err
    assert json.loads((tmp_path / "a.json").read_text())["first_frame"] == 2
    assert call(*common, "--resume-state", state, "--frames", 1)[0] == 0
    assert json.loads((tmp_path / "a.json").read_text())["first_frame"] == 4


@pytest.mark.parametrize("size", ["224", "0x4", "4x", "axb", "4x4x4"])
def test_a_size_that_is_none(size: str) -> None:
    code, _, err = call("compile", "small_cnn", "--out", "x.plan", "--size", size)
    assert code == 2
    assert "expected --size HxW" in err


def test_ctrl_c_ends_with_the_figures_so_far(delta_plan: Path, tmp_path: Path) -> None:
    """A run on a terminal is told to stop once it says that it goes on."""
    video, file = tmp_path / "short.mkv", tmp_path / "run.json"
    write_video(video, np.zeros((30, 64, 64, 3), np.uint8))
    endless = (  # so that the signal never comes too late
        "from sparsetime.run.sources import Source\nframes = Source.__iter__\n"
        "Source.__iter__ = lambda self: (shot for _ in iter(int, 1) for shot in frames(self))\n"
        "from sparsetime.cli import main\nmain()"
    )
    terminal, its_end = pty.openpty()
    command = [sys.executable, "-c", endless, "run", str(delta_plan), str(video), "--json", str(file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=its_end, text=True)
    os.close(its_end)
    said = b""
    while b"frames/s" not in said:
        said += os.read(terminal, 4096)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    with suppress(OSError):  # how a terminal says that its other end is closed
        while more := os.read(terminal, 4096):
            said += more
    os.close(terminal)
    assert process.returncode == 0, said
    assert b"Traceback" not in said
    assert b"\r" in said.partition(b"frames/s")[0]  # one line, written over itself
    result = json.loads(file.read_text())
    assert result["stopped"]
    assert result["frames"] >= 1
    assert f"frames              {result['frames']} (stopped)" in out


def test_the_line_that_says_how_it_goes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with StatusLine(1.0, 1e9) as line:
        assert line.every_s == 1e9
        assert line.due
        line.show("elsewhere a line")
        assert not line.due
    assert capsys.readouterr().err == "elsewhere a line\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with StatusLine(0.0) as line:
        for text in ("one", "t" * 200):
            assert line.due
            line.show(text)
    assert capsys.readouterr().err == f"\rone\x1b[K\r{'t' * 100}\x1b[K\n"
    with StatusLine():
        pass  # nothing was said: there is no line to end
    assert capsys.readouterr().err == ""
