"""Files that are either whole or not there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_plan

from sparsetime.files import write_csv, write_json, write_whole


def test_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_whole(path, b"long content")
    write_whole(path, b"short")
    assert path.read_bytes() == b"short"
    assert [file.name for file in path.parent.iterdir()] == ["file"]


WRITERS = {
    "bytes": "from sparsetime.files import write_whole; write = lambda path: write_whole(path, bytes(5000))",
    "plan": "from tiny_plan import tiny; write = tiny().save",
    "state": (
        "import numpy as np; from tiny_plan import tiny; from sparsetime.engine.statefile import save_state\n"
        "plan = tiny(); stream = plan.stream(); stream(np.zeros(plan.input_shape, np.float32))\n"
        "write = lambda path: save_state(stream, path)"
    ),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_leaves_the_old_file(writer: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    program = (
        "import resource, sys\n"
        f"{WRITERS[writer]}\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))\n"  # as a full disk does
        "try: write(sys.argv[1])\n"
        "except OSError as error: print(error.strerror)\n"
    )
    command = [sys.executable, "-c", program, str(path)]
    helpers = os.environ | {"PYTHONPATH": str(Path(tiny_plan.__file__).parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=helpers)
    assert (done.stdout, done.returncode) == ("File too large\n", 0), done.stderr
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_json_refuses_what_json_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_csv(tmp_path: Path) -> None:
    write_csv(tmp_path / "rows.csv", ("a", "b"), [{"a": 1, "b": None}, {"a": 0.5, "b": "x, y"}])
    assert (tmp_path / "rows.csv").read_text() == 'a,b\n1,\n0.5,"x, y"\n'
