"""Files that are either whole or not there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_plan

from sparsetime.files import TargetError, ready, write_csv, write_json, write_whole


def test_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_whole(path, b"long content")
    write_whole(path, b"short")
    assert path.read_bytes() == b"short"
    assert [file.name for file in path.parent.iterdir()] == ["file"]


def test_what_cannot_be_written_is_known_before(tmp_path: Path) -> None:
    assert ready(str(tmp_path / "a" / "b" / "file")) == tmp_path / "a" / "b" / "file"
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    for path, words in (
        (tmp_path, "is a folder; expected the file to write: name one in it, such as .*/out"),
        (tmp_path / "file" / "x", "its folder cannot be made: .*; name a file elsewhere"),
    ):
        for write in (ready, lambda path: write_whole(path, b"x")):
            with pytest.raises(TargetError, match=words):
                write(path)
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["a", "b", "file"]


@pytest.mark.parametrize(
    "command",
    [
        *("compile small_cnn --out OUT", "compile small_cnn --out x.plan --json OUT"),
        *("run a.plan v.mp4 --json OUT", "run PLAN v.mp4 --save-state OUT", "many a.plan v.mp4 --json OUT"),
        *("watch a.plan v.mp4 --json OUT", "tune PLAN --video v --max-drop 1% --out OUT"),
        *("export PLAN --to onnx --out OUT", "export PLAN --to nir --out OUT", "report runs/a --out OUT"),
        *("evaluate runs/a --data d --json OUT", "bench layers --json OUT"),
    ],
)
def test_every_command_refuses_a_folder_before_the_work(command: str, tmp_path: Path) -> None:
    tiny_plan.tiny().save(tmp_path / "a.plan")
    names = {"OUT": str(tmp_path), "PLAN": str(tmp_path / "a.plan")}
    arguments = [names.get(word, word) for word in command.split()]
    # In a process: it would be long if it began.
    program = "from sparsetime.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env=os.environ | {"COLUMNS": "400"},
    )
    assert done.returncode in (1, 2)
    assert f"{tmp_path} is a folder; expected the file to write" in done.stderr


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
