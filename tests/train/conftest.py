"""A small labelled data set, and a run that was killed, for the tests of training."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparsetime.train import Recipe
from sparsetime.video import GeneratedClips, write_video

CLASSES = 3


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded frames go to a folder of this test run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with clips.csv: 12 training and 6 test videos of 3 classes, 32x32, 10 frames."""
    root = tmp_path_factory.mktemp("clips")
    made = GeneratedClips(18, seed=3, size=(32, 32), length=10, classes=CLASSES)
    with (root / "clips.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "group", "split"])
        for i in range(len(made)):
            item = made[i]
            write_video(root / f"{i:02d}.mkv", item["clip"].permute(0, 2, 3, 1).numpy())
            split = "train" if i < 12 else "test"
            writer.writerow([f"{i:02d}.mkv", made.classes[item["label"]], f"{split}{i % 4}", split])
    return root


def small_recipe(clips: Path, **changes: object) -> Recipe:
    """A run of a second or two."""
    fields: dict[str, object] = {
        "network": "small_cnn",
        "data": str(clips),
        "method": "delta",
        "epochs": 6,
        "batch_size": 4,
        "clip_length": 4,
        "frames_per_video": 4,
        "calibration_clips": 2,
        "input_size": (32, 32),
        "lr": 1e-3,
        "distill": 0.5,
    }
    return Recipe(**{**fields, **changes})  # type: ignore[arg-type]


def start_train(recipe: Path, out: Path, *arguments: str, program: str = "") -> subprocess.Popen[str]:
    """`sparsetime train` in a process of its own; `program` runs in it first."""
    code = f"{program}\nfrom sparsetime.cli import main\nmain()"
    command = [sys.executable, "-c", code, "train", "--recipe", str(recipe), "--out", str(out), "--threads", "1"]
    return subprocess.Popen(
        [*command, "--workers", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HANGS": str(_hangs(out))},
    )


HANGS_IN_THE_THIRD_EPOCH = """
import os, time
from pathlib import Path
from sparsetime.train.progress import Progress

def batch(self, epoch, done, total, loss):
    if epoch == 2:
        Path(os.environ["HANGS"]).touch()
        time.sleep(600)

Progress.batch = batch
"""  # so that whoever waits for two epochs always comes in time, however busy the machine is


def wait_for_third_epoch(process: subprocess.Popen[str], out: Path) -> None:
    """Wait until a process hangs there: a signal before that may meet a library that catches whatever it gets."""
    end = time.monotonic() + 300
    while not _hangs(out).exists():
        if process.poll() is not None or time.monotonic() > end:
            raise AssertionError(f"the run ended too early: {process.communicate()}")
        time.sleep(0.02)
    assert len((out / "metrics.csv").read_text().splitlines()) == 1 + 2


def _hangs(out: Path) -> Path:
    return out.with_suffix(".hangs")


@pytest.fixture(scope="session")
def recipe_file(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`small_recipe` as a file, with epochs enough to be stopped in between."""
    from sparsetime.files import write_json
    from sparsetime.train import to_dict

    path = tmp_path_factory.mktemp("recipe") / "small.json"
    write_json(path, to_dict(small_recipe(clips)))
    return path


@pytest.fixture(scope="session")
def killed_run(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory whose process was killed in the third epoch. Copy it before use."""
    out = tmp_path_factory.mktemp("killed") / "run"
    process = start_train(recipe_file, out, program=HANGS_IN_THE_THIRD_EPOCH)
    wait_for_third_epoch(process, out)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    return out
