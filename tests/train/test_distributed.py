"""The same command under torchrun, two processes on the CPU (gloo)."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparsetime.train import Machine, load_run, train

from .conftest import small_recipe


@pytest.mark.slow
def test_two_processes(clips: Path, recipe_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "two"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "sparsetime",
    ]
    options = [
        "--recipe",
        str(recipe_file),
        "--out",
        str(out),
        "--accelerator",
        "cpu",
        "--threads",
        "1",
        "--workers",
        "0",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "train", *options, "--json", str(tmp_path / "two.json")],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    # One line an epoch and one result: the second process is silent.
    assert sum(line.startswith("epoch ") for line in done.stderr.splitlines()) == 6
    assert len(done.stdout.splitlines()) == 1
    assert (tmp_path / "two.json").is_file()
    load_run(out)

    train(small_recipe(clips), tmp_path / "one", machine=Machine("cpu", 1, 0), quiet=True)
    with (tmp_path / "one" / "metrics.csv").open() as one, (out / "metrics.csv").open() as two:
        pairs = list(zip(csv.DictReader(one), csv.DictReader(two), strict=True))
    assert len(pairs) == 6
    # The same clips in the same batches; only batch norm sees half of each.
    for a, b in pairs:
        assert float(a["lr"]) == float(b["lr"])
        assert float(b["task_loss"]) == pytest.approx(float(a["task_loss"]), rel=0.15)
        assert float(b["penalty"]) == pytest.approx(float(a["penalty"]), rel=0.25)
