"""The loop: learning rate, loss, early stop, calibration."""

import csv
import math
from pathlib import Path

import pytest
import torch

import sparsetime
from sparsetime.engine import Plan
from sparsetime.run.planning import compile_file
from sparsetime.train import Machine, Phase, TrainingError, load_run, schedule, train
from sparsetime.train.loop import lr_factor
from sparsetime.train.model import log_mean_softmax
from sparsetime.train.recipe import Recipe, resolve

from .conftest import small_recipe

MACHINE = Machine(accelerator="cpu", threads=1, workers=0)


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_log_mean_softmax_by_hand() -> None:
    # Probabilities (.5, .5) and (.9, .1): their mean is (.7, .3).
    logits = torch.tensor([[[0.0, 0.0], [math.log(9.0), 0.0]]], dtype=torch.float64)
    expected = torch.tensor([[0.7, 0.3]], dtype=torch.float64)
    torch.testing.assert_close(log_mean_softmax(logits).exp(), expected)


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (0.0, 0.1),  # the rise takes a quarter of each cycle: 1 epoch of the warm-up's 4, 1.5 of the other 6
        (0.5, 0.55),
        (1.0, 1.0),
        (2.5, 0.5),
        (4.0, 0.1),
        (4.75, 0.55),
        (5.5, 1.0),
        (7.75, 0.5),
        (10.0, 0.0),
    ],
)
def test_learning_rate_has_a_cycle_for_the_warm_up_and_one_for_the_rest(progress: float, expected: float) -> None:
    recipe = resolve(Recipe("small_cnn", "clips", epochs=10, warmup=0.25), trained=False)
    assert lr_factor(recipe, schedule(recipe), progress) == pytest.approx(expected, abs=1e-12)


def test_dense_has_one_cycle() -> None:
    recipe = resolve(Recipe("small_cnn", "clips", method="dense", epochs=10, warmup=0.0), trained=False)
    assert lr_factor(recipe, schedule(recipe), 5.0) == pytest.approx(0.5)


@pytest.mark.parametrize("method", ["dense", "spatial_l1", "delta"])
def test_a_run_of_each_method(method: str, clips: Path, tmp_path: Path) -> None:
    result = train(small_recipe(clips, method=method, epochs=3), tmp_path / "run", machine=MACHINE, quiet=True)
    table = rows(tmp_path / "run")
    assert [row["epoch"] for row in table] == ["0", "1", "2"]
    assert [row["phase"] for row in table] == (["dense"] * 3 if method == "dense" else ["warm-up", "strong", "weak"])
    for row in table:
        weight, penalty = float(row["penalty_weight"]), float(row["penalty"])
        assert (penalty > 0) == (weight > 0)
        distance = float(row["distance"])
        assert (distance > 0) == (row["phase"] in ("strong", "weak"))
        assert float(row["train_loss"]) == pytest.approx(float(row["task_loss"]) + weight * penalty + 0.5 * distance)
        assert 0 < float(row["op_density"]) <= 1
    assert result["epochs"] == 3
    assert result["clips"] == 12
    assert result["broken"] == []
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_labels_may_weigh_nothing_once_layers_quantize(clips: Path, tmp_path: Path) -> None:
    train(small_recipe(clips, epochs=3, labels=0.0), tmp_path / "run", machine=MACHINE, quiet=True)
    warm_up, *others = rows(tmp_path / "run")
    assert float(warm_up["train_loss"]) == pytest.approx(float(warm_up["task_loss"]))
    for row in others:
        penalty, distance = float(row["penalty_weight"]) * float(row["penalty"]), float(row["distance"])
        assert float(row["train_loss"]) == pytest.approx(penalty + 0.5 * distance)
        assert float(row["task_loss"]) > 0.1


def test_without_epochs_the_steps_are_set_and_the_weights_stay(clips: Path, tmp_path: Path) -> None:
    train(small_recipe(clips, method="dense", epochs=1), tmp_path / "dense", machine=MACHINE, quiet=True)
    recipe = small_recipe(clips, epochs=0, weights=str(tmp_path / "dense"), codec="hold", levels=8)
    result = train(recipe, tmp_path / "hold", machine=MACHINE, quiet=True)
    assert (result["epochs"], rows(tmp_path / "hold")) == (0, [])
    before, after = (load_run(tmp_path / name)[0].model for name in ("dense", "hold"))
    names = dict(after.named_parameters())
    assert all(torch.equal(value, names[name]) for name, value in before.named_parameters())
    layers = sparsetime.delta_layers(after).values()
    # The range that calibration found, in so many levels.
    assert [layer.step.item() for layer in layers] == pytest.approx([layer.scale.item() / 8 for layer in layers])
    assert all(layer.scale.item() != 1 for layer in layers)


def test_a_run_with_the_codec_pixel_becomes_a_plan_that_sends_whole_pixels(clips: Path, tmp_path: Path) -> None:
    train(small_recipe(clips, epochs=3, codec="pixel"), tmp_path / "run", machine=MACHINE, quiet=True)
    compile_file(str(tmp_path / "run"), tmp_path / "p.plan")
    plan, (network, _) = Plan.load(tmp_path / "p.plan"), load_run(tmp_path / "run")
    coded = [op for op in plan.ops if op.codec is not None]
    assert len(coded) > 2
    assert {op.codec["kind"] for op in coded if op.codec is not None} == {"pixel"}
    generator = torch.Generator().manual_seed(0)
    clip = torch.rand(1, 6, *plan.input_shape[1:], generator=generator)
    clip[:, 1::2] = clip[:, ::2] + 0.05 * torch.rand(clip[:, ::2].shape, generator=generator)
    network.model.eval()
    with torch.no_grad():
        expected = network.model(clip)
    stream = plan.stream("reference", threads=1)
    got = torch.stack([stream(frame) for frame in clip[0]])
    torch.testing.assert_close(got.flatten(), expected.flatten(), rtol=1e-4, atol=1e-4)  # sums in another order
    assert stream.op_density < 1


def test_steps_are_calibrated_where_quantization_begins_and_the_input_keeps_its_step(
    clips: Path, tmp_path: Path
) -> None:
    phases = (Phase("warm-up", penalty=0.0, quantize=False), Phase("strong"))
    recipe = small_recipe(clips, phases=phases, epochs=2, step_lr=0.0, weight_decay=0.0)
    train(recipe, tmp_path / "fixed", machine=MACHINE, quiet=True)
    train(recipe.replace(step_lr=0.05), tmp_path / "learned", machine=MACHINE, quiet=True)
    fixed, learned = (
        {
            name: layer.step.item()
            for name, layer in sparsetime.delta_layers(load_run(tmp_path / which)[0].model).items()
            if isinstance(layer, sparsetime.DeltaActivation)
        }
        for which in ("fixed", "learned")
    )
    assert all(step != pytest.approx(1 / 16) for step in fixed.values())
    assert fixed["input"] == learned["input"]
    assert all(fixed[name] != learned[name] for name in fixed if name != "input")


def test_a_loss_that_is_not_finite_stops_the_run(clips: Path, tmp_path: Path) -> None:
    recipe = small_recipe(clips, method="dense", lr=1e30, optimizer="sgd", clip_gradient=0.0, warmup=0.0)
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) .* in epoch \d, step \d; .*--lr"):
        train(recipe, tmp_path / "run", machine=MACHINE, quiet=True)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_early_stop_watches_the_held_out_groups(clips: Path, tmp_path: Path) -> None:
    recipe = small_recipe(clips, method="dense", epochs=40, validate=0.25, patience=2, lr=1e-9)
    result = train(recipe, tmp_path / "run", machine=MACHINE, quiet=True)
    table = rows(tmp_path / "run")
    # Nothing is learned, so no epoch is better than the first.
    assert len(table) == result["epochs"] == 3
    assert result["held_out"] == 3
    assert result["clips"] == 9
    assert float(table[-1]["val_accuracy"]) in (0.0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0)
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_it_learns(clips: Path, tmp_path: Path) -> None:
    recipe = small_recipe(clips, method="dense", epochs=8, lr=3e-3, frames_per_video=16, augment=False)
    train(recipe, tmp_path / "run", machine=MACHINE, quiet=True)
    table = rows(tmp_path / "run")
    assert float(table[-1]["train_loss"]) < 0.7 * float(table[0]["train_loss"])
