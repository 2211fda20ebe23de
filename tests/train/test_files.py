"""Files that are either whole or not there."""

import subprocess
import sys
from pathlib import Path

import pytest

from sparsetime.train import files
from sparsetime.train.files import write_atomic, write_csv, write_json


def test_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_atomic(path, b"long content")
    write_atomic(path, b"short")
    assert path.read_bytes() == b"short"
    assert [file.name for file in path.parent.iterdir()] == ["file"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    program = (
        # The module alone: importing torch takes seconds.
        "import pathlib, resource, runpy, sys\n"
        "write_atomic = runpy.run_path(sys.argv[2])['write_atomic']\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_atomic(pathlib.Path(sys.argv[1]), bytes(5000))\n"
        "except OSError as error: print(error.strerror)\n"
    )
    command = [sys.executable, "-c", program, str(path), files.__file__]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "File too large\n"
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_json_refuses_what_json_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_csv(tmp_path: Path) -> None:
    write_csv(tmp_path / "rows.csv", ("a", "b"), [{"a": 1, "b": None}, {"a": 0.5, "b": "x, y"}])
    assert (tmp_path / "rows.csv").read_text() == 'a,b\n1,\n0.5,"x, y"\n'
