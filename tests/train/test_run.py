"""The run directory, and starting from one."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from sparsetime.train import Machine, RunError, load_run, to_dict, train
from sparsetime.train.run import recipe_of, same_run, write_weights
from sparsetime.train.start import build

from .conftest import CLASSES, small_recipe

MACHINE = Machine(accelerator="cpu", threads=1, workers=0)


@pytest.fixture(scope="module")
def run(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train(small_recipe(clips, epochs=1), out, machine=MACHINE, quiet=True)
    return out


def test_files_of_a_run(clips: Path, run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    assert {name: config[name] for name in ("network", "method", "data", "seed")} == {
        "network": "small_cnn",
        "method": "delta",
        "data": str(clips),
        "seed": 0,
    }
    assert len(config["classes"]) == CLASSES
    assert {"versions", "machine", "command", "spec"} <= set(config)
    assert to_dict(recipe_of(config)).items() <= config.items()
    with safe_open(run / "model.safetensors", "pt") as file:
        meta = {key: json.loads(value) for key, value in file.metadata().items()}
    assert meta == {"network": "small_cnn", "method": "delta", "num_classes": CLASSES, "input_size": [32, 32]}


def test_the_same_weights_are_the_same_bytes(run: Path, tmp_path: Path) -> None:
    model, config = load_run(run)
    for _ in range(8):
        write_weights(tmp_path, model.model, config)
        assert (tmp_path / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_load_run_gives_the_trained_model(run: Path) -> None:
    model, config = load_run(run)
    again, _ = load_run(run)
    assert not model.training
    clip = torch.randint(0, 256, (2, 3, 3, 32, 32), dtype=torch.uint8)
    logits = model(clip)
    assert logits.shape == (2, 3, len(config["classes"]))
    assert torch.equal(logits, again(clip))
    # The class logits of a frame do not depend on the frames beside it: quantized values are not deltas.
    torch.testing.assert_close(model(clip[:, 1:2]), logits[:, 1:2])


def test_what_is_not_a_run(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"has no config.json; expected the --out directory"):
        load_run(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RunError, match=r"config.json is damaged"):
        load_run(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RunError, match="not a configuration written by"):
        load_run(tmp_path)
    shutil.copy(run / "config.json", tmp_path)
    with pytest.raises(RunError, match=r"is not finished, it has no model.safetensors"):
        load_run(tmp_path)
    content = (run / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(RunError, match=r"model.safetensors is damaged"):
        load_run(tmp_path)


def test_weights_that_do_not_fit_the_configuration(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["spec"]["num_classes"] = CLASSES + 1
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match=r"(?s)does not fit .*classifier"):
        load_run(tmp_path / "run")


def test_a_run_as_weights_keeps_the_classifier_where_the_classes_agree(clips: Path, run: Path) -> None:
    model, config = load_run(run)
    trained = model.model.state_dict()
    recipe = small_recipe(clips, weights=str(run), input_size=None)
    network, same = build(recipe, tuple(config["classes"]))
    assert same
    assert network.spec.input_size == (32, 32)
    assert all(torch.equal(value, trained[name]) for name, value in network.state_dict().items())

    network, same = build(recipe, ("other", "names", "here"))
    assert not same
    differs = [name for name, value in network.state_dict().items() if not torch.equal(value, trained[name])]
    assert differs == ["classifier.weight", "classifier.bias"]


def test_a_run_of_another_network_as_weights(clips: Path, run: Path) -> None:
    with pytest.raises(RunError, match="holds a small_cnn, expected the recipe's network mobilenet_v2"):
        build(small_recipe(clips, network="mobilenet_v2", weights=str(run)), ("a", "b"))


def test_a_refinement_drops_the_warm_up(clips: Path, run: Path, tmp_path: Path) -> None:
    recipe = small_recipe(clips, epochs=3, weights=str(run))
    train(recipe, tmp_path / "run", machine=MACHINE, quiet=True)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert [phase["name"] for phase in config["phases"]] == ["strong", "weak"]
    assert config["penalty"] > 0


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_is_not_written_over_the_weights_it_starts_from(
    clips: Path, run: Path, tmp_path: Path, *, overwrite: bool
) -> None:
    start, link = tmp_path / "start", tmp_path / "link"
    shutil.copytree(run, start)
    link.symlink_to(start)
    for weights, out in ((start, link), (start / "model.safetensors", start), (start / "." / ".." / "start", start)):
        with pytest.raises(RunError, match=f"out: {out} holds the weights to start from, {weights}; give another"):
            train(small_recipe(clips, weights=str(weights)), out, machine=MACHINE, overwrite=overwrite, quiet=True)
    assert (start / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_same_run_ignores_where_it_ran() -> None:
    a = {"lr": 1.0, "seed": 0, "machine": {"threads": 1}, "versions": {}, "command": "x"}
    assert same_run(a, a | {"machine": {"threads": 2}, "command": "y"}) == []
    assert same_run(a, a | {"lr": 2.0, "new": 1}) == ["lr", "new"]
