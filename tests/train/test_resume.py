"""A run that was stopped goes on as if it had not been."""

import csv
import io
import json
import re
import shutil
import signal
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sparsetime.train import CheckpointError, Machine, RunError, train

from .conftest import HANGS_IN_THE_THIRD_EPOCH, small_recipe, start_train, wait_for_third_epoch

MACHINE = Machine(accelerator="cpu", threads=1, workers=0)


def figures(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "time_s"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole_run(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    train(small_recipe(clips), out, machine=MACHINE, quiet=True)
    return out


def test_a_killed_run_goes_on_to_the_same_figures_and_weights(
    clips: Path, killed_run: Path, whole_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(killed_run, run)
    assert not (run / "model.safetensors").exists()
    result = train(small_recipe(clips), run, machine=MACHINE, quiet=True)
    assert result["resumed_from_epoch"] == 2
    assert figures(run) == figures(whole_run)
    ours, reference = load_file(run / "model.safetensors"), load_file(whole_run / "model.safetensors")
    assert ours.keys() == reference.keys()
    assert all(torch.equal(ours[name], reference[name]) for name in reference)


def test_worker_processes_change_no_figure(clips: Path, whole_run: Path, tmp_path: Path) -> None:
    machine = Machine(accelerator="cpu", threads=1, workers=2)
    train(small_recipe(clips), tmp_path / "run", machine=machine, quiet=True)
    assert figures(tmp_path / "run") == figures(whole_run)


def test_another_seed_gives_other_figures(clips: Path, whole_run: Path, tmp_path: Path) -> None:
    train(small_recipe(clips, seed=1), tmp_path / "run", machine=MACHINE, quiet=True)
    assert figures(tmp_path / "run") != figures(whole_run)


def test_ctrl_c_leaves_a_run_that_goes_on(clips: Path, recipe_file: Path, whole_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start_train(recipe_file, run, program=HANGS_IN_THE_THIRD_EPOCH)
    wait_for_third_epoch(process, run)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "Give the same command again to go on" in errors.splitlines()[-1]
    result = train(small_recipe(clips), run, machine=MACHINE, quiet=True)
    assert result["resumed_from_epoch"] == 2
    assert figures(run) == figures(whole_run)


def test_full_disk_leaves_the_old_checkpoint(
    clips: Path, recipe_file: Path, killed_run: Path, whole_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(killed_run, run)
    checkpoint = run / "checkpoints" / "last.ckpt"
    before = checkpoint.read_bytes()
    limit = len(before) // 2  # the kernel refuses to let any file grow past this, as on a full disk
    program = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    process = start_train(recipe_file, run, program=program)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert re.search(r"could not be written: File too large; that of epoch \d is whole", errors.splitlines()[-1])
    assert checkpoint.read_bytes() == before
    assert [file.name for file in checkpoint.parent.iterdir()] == ["last.ckpt"]
    train(small_recipe(clips), run, machine=MACHINE, quiet=True)
    assert figures(run) == figures(whole_run)


def test_a_finished_run_is_refused_and_kept(clips: Path, whole_run: Path) -> None:
    before = (whole_run / "model.safetensors").read_bytes()
    with pytest.raises(RunError, match="holds a finished run; give another --out, or --overwrite"):
        train(small_recipe(clips), whole_run, machine=MACHINE, quiet=True)
    assert (whole_run / "model.safetensors").read_bytes() == before


def test_another_recipe_is_refused(clips: Path, killed_run: Path) -> None:
    with pytest.raises(RunError, match=r"unfinished run that differs in epochs, .*\blr;"):
        train(small_recipe(clips, epochs=7, lr=2e-3), killed_run, machine=MACHINE, quiet=True)


@pytest.fixture
def listed(clips: Path) -> Iterator[Path]:
    """The list of the clips, which is put back."""
    table = clips / "clips.csv"
    before = table.read_bytes()
    yield table
    table.write_bytes(before)


def test_other_clips_in_the_same_folder_are_refused(
    clips: Path, killed_run: Path, listed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(killed_run, run)
    head, *rows = listed.read_text().splitlines()
    (one, a, *rest), (other, b, *more) = (row.split(",") for row in rows[:2])
    assert a != b
    swapped = [",".join((one, b, *rest)), ",".join((other, a, *more)), *rows[2:]]
    for changed in (swapped, rows[1:], [rows[1], rows[0], *rows[2:]]):
        listed.write_text("\n".join([head, *changed]))
        with pytest.raises(RunError, match=r"unfinished run on other clips.*Put the list back.*--overwrite"):
            train(small_recipe(clips), run, machine=MACHINE, quiet=True)
    listed.write_text("\n".join([head, *rows[:-3]]))  # videos to test on
    assert train(small_recipe(clips), run, machine=MACHINE, quiet=True)["resumed_from_epoch"] == 2


def test_a_run_of_an_older_version_goes_on_without_a_word_on_its_clips(
    clips: Path, killed_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(killed_run, run)
    config = json.loads((run / "config.json").read_text())
    del config["clips_sha256"]
    (run / "config.json").write_text(json.dumps(config))
    assert train(small_recipe(clips), run, machine=MACHINE, quiet=True)["resumed_from_epoch"] == 2


def test_overwrite_starts_anew(clips: Path, killed_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(killed_run, run)
    result = train(small_recipe(clips, epochs=1), run, machine=MACHINE, overwrite=True, quiet=True)
    assert result["resumed_from_epoch"] == 0
    assert len(figures(run)) == 1


def test_overwrite_deletes_nothing_but_runs(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("kept")
    for overwrite in (False, True):
        with pytest.raises(RunError, match="not a run directory"):
            train(small_recipe(clips), tmp_path, machine=MACHINE, overwrite=overwrite, quiet=True)
    assert (tmp_path / "precious.txt").read_text() == "kept"


def flip_a_bit_of_a_weight(whole: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        place = whole.index(archive.read(largest)) + 2
    return whole[:place] + bytes([whole[place] ^ 0x40]) + whole[place + 1 :]


@pytest.mark.parametrize(
    "damage", [lambda whole: whole[:1000], lambda whole: b"garbage", lambda whole: b"", flip_a_bit_of_a_weight]
)
def test_a_damaged_checkpoint_is_an_error(
    clips: Path, killed_run: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(killed_run, run)
    checkpoint = run / "checkpoints" / "last.ckpt"
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    with pytest.raises(CheckpointError, match=r"cannot be used: .*--overwrite"):
        train(small_recipe(clips), run, machine=MACHINE, quiet=True)
