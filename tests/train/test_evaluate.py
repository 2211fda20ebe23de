"""Evaluation: figures by hand, and the JSON's contract."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import sparsetime
from sparsetime.frames import load_frames
from sparsetime.train import Machine, TrainingError, evaluate, load_run, train
from sparsetime.video import ListError, read_frames

from .conftest import CLASSES, small_recipe

MACHINE = Machine(accelerator="cpu", threads=1, workers=0)
METHODS = ("dense", "spatial_l1", "delta")


@pytest.fixture(scope="module")
def runs(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    for method in METHODS:
        train(small_recipe(clips, method=method, epochs=2), folder / method, machine=MACHINE, quiet=True)
    return {method: folder / method for method in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_contract(method: str, runs: dict[str, Path], clips: Path) -> None:
    result = evaluate(runs[method], str(clips), "test", device="cpu", window=4)
    assert result == json.loads((runs[method] / "evaluation-test.json").read_text())
    for key in ("accuracy", "op_density", "op_density_with_first_frame", "activation_density", "delta_density"):
        assert 0 <= result[key] <= 1
    assert result["op_density"] == result["op_density_deltas" if method == "delta" else "op_density_activations"]
    assert [layer["kind"] for layer in result["layers"]] == ["conv"] * 4 + ["linear"]
    assert result["not_counted"] == []
    assert result["clips"] == 6
    assert result["frames"] == 60
    assert result["windows"] == 18  # 4 + 4 + 2 frames each
    assert (result["split"], result["method"], result["seed"]) == ("test", method, 0)
    assert {"ActivationSparsity", "SynapticOperations"} <= set(result["neurobench"])


def test_accuracy_is_what_its_parts_say(runs: dict[str, Path], clips: Path) -> None:
    result = evaluate(runs["dense"], str(clips), "test", device="cpu")
    names = result["classes"]
    confusion = np.zeros((CLASSES, CLASSES), int)
    for prediction in result["predictions"]:
        confusion[names.index(prediction["label"]), names.index(prediction["predicted"])] += 1
        assert prediction["correct"] == (prediction["label"] == prediction["predicted"])
    assert result["confusion"] == confusion.tolist()
    assert result["accuracy"] == confusion.trace() / 6
    assert {name: row["clips"] for name, row in result["per_class"].items()} == dict.fromkeys(names, 2)
    low, high = result["accuracy_interval_95"]
    assert low <= result["accuracy"] <= high


def test_predictions_are_the_mean_over_all_frames_of_the_video(runs: dict[str, Path], clips: Path) -> None:
    result = evaluate(runs["delta"], str(clips), "test", device="cpu", window=4)
    model, config = load_run(runs["delta"])
    frozen_right = 0
    for prediction in result["predictions"]:
        frames = torch.from_numpy(read_frames(clips / prediction["file"], size=(32, 32))).permute(0, 3, 1, 2)
        with torch.inference_mode():
            p = model(frames[None]).softmax(-1)[0]
        assert config["classes"][int(p.mean(0).argmax())] == prediction["predicted"]
        frozen = 4 * p[0] + 4 * p[4] + 2 * p[8]  # first answers, for windows of 4, 4 and 2 frames
        frozen_right += config["classes"][int(frozen.argmax())] == prediction["label"]
    assert result["accuracy_frozen"] == frozen_right / 6


def test_op_density_from_the_definition(runs: dict[str, Path], clips: Path) -> None:
    """MACs of changed inputs over all MACs, counted with plain convolutions of ones, per layer."""
    result = evaluate(runs["delta"], str(clips), "test", device="cpu", window=10, limit=1)
    model, _ = load_run(runs["delta"])
    frames = torch.from_numpy(read_frames(clips / result["predictions"][0]["file"], size=(32, 32))).permute(0, 3, 1, 2)
    inputs: dict[str, torch.Tensor] = {}
    convs = {n: m for n, m in model.model.named_modules() if isinstance(m, torch.nn.Conv2d)}
    for name, conv in convs.items():
        conv.register_forward_hook(lambda m, args, output, name=name: inputs.__setitem__(name, args[0].double()))
    with torch.inference_mode():
        model(frames[None])
    for layer in result["layers"][:4]:
        conv = convs[layer["name"]]
        changed = (inputs[layer["name"]].diff(dim=0) != 0).double()
        ones = torch.ones_like(conv.weight, dtype=torch.float64)
        reached = torch.nn.functional.conv2d(changed, ones, stride=conv.stride, padding=conv.padding).sum()
        dense = torch.nn.functional.conv2d(
            torch.ones_like(changed), ones, stride=conv.stride, padding=conv.padding
        ).sum()
        assert layer["op_density"] == pytest.approx(float(reached / dense), rel=1e-9)


def test_metering_changes_no_bit(runs: dict[str, Path]) -> None:
    model, _ = load_run(runs["delta"])
    clip = torch.randint(0, 256, (1, 4, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        plain = model(clip)
        with sparsetime.Meter(model.model, frames=4):
            metered = model(clip)
    assert torch.equal(plain, metered)


@pytest.mark.parametrize("method", METHODS)
def test_frames_for_the_report(method: str, runs: dict[str, Path], clips: Path) -> None:
    evaluate(runs[method], str(clips), "test", device="cpu")
    frames, maps = load_frames(runs[method] / "frames-test.npz")
    assert frames.shape[1:] == (32, 32, 3)
    assert 2 <= len(frames) <= 12
    assert all(value.shape[0] == len(frames) for value in maps.values())
    # Named by what reads them, so that runs of all methods show the same layers.
    assert set(maps) == {"features.0.0", "features.1.0", "features.2.0", "features.3.0"}


def test_broken_videos_are_counted_and_named(runs: dict[str, Path], clips: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    shutil.copytree(clips, folder)
    (folder / "13.mkv").write_bytes(b"not a video")
    result = evaluate(runs["dense"], str(folder), "test", device="cpu")
    assert result["clips"] == 5
    assert [broken["file"] for broken in result["broken"]] == ["13.mkv"]
    assert result["broken"][0]["reason"]


def test_missing_files_are_an_error_unless_the_recipe_says_skip(clips: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    shutil.copytree(clips, folder)
    for name in ("00.mkv", "12.mkv"):
        (folder / name).unlink()
    recipe = small_recipe(folder, method="dense", epochs=1)
    with pytest.raises(ListError, match=r"2 of 18 videos are not there: 00.mkv, 12.mkv"):
        train(recipe, tmp_path / "run", machine=MACHINE, quiet=True)
    result = train(recipe.replace(missing="skip"), tmp_path / "run", machine=MACHINE, quiet=True)
    assert result["clips"] == 11
    evaluation = evaluate(tmp_path / "run", str(folder), "test", device="cpu")
    assert evaluation["clips"] == 5
    assert evaluation["missing"] == ["12.mkv"]


def test_labels_that_the_run_does_not_know(runs: dict[str, Path], clips: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    shutil.copytree(clips, folder)
    table = folder / "clips.csv"
    label = table.read_text().splitlines()[1].split(",")[1]
    table.write_text(table.read_text().replace(label, "unheard of"))
    with pytest.raises(TrainingError, match="has also unheard of"):
        evaluate(runs["dense"], str(folder), "test", device="cpu")


def test_no_such_split(runs: dict[str, Path], clips: Path) -> None:
    with pytest.raises(ListError, match="split: expected one of test, train; got 'val'"):
        evaluate(runs["dense"], str(clips), "val", device="cpu")
