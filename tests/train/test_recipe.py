"""Recipes: phases, files, refusals."""

import itertools
import json
from pathlib import Path

import pytest

from sparsetime.train import Phase, Recipe, RecipeError, from_dict, read_recipe, resolve, schedule, to_dict


def epochs_of(recipe: Recipe, *, trained: bool = False) -> dict[str, int]:
    return {span.name: span.end - span.first for span in schedule(resolve(recipe, trained=trained))}


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        # shares .4 .4 .2
        (1, {"strong": 1}),
        (2, {"warm-up": 1, "strong": 1}),
        (3, {"warm-up": 1, "strong": 1, "weak": 1}),
        (10, {"warm-up": 4, "strong": 4, "weak": 2}),
        (11, {"warm-up": 4, "strong": 5, "weak": 2}),
    ],
)
def test_epochs_are_divided_by_share(epochs: int, expected: dict[str, int]) -> None:
    assert epochs_of(Recipe("small_cnn", "clips", epochs=epochs)) == expected


@pytest.mark.parametrize("method", ["dense", "spatial_l1", "delta"])
@pytest.mark.parametrize("epochs", [1, 2, 7, 40])
def test_every_method_gets_the_same_number_of_epochs(method: str, epochs: int) -> None:
    spans = schedule(resolve(Recipe("small_cnn", "clips", method=method, epochs=epochs), trained=False))
    assert spans[0].first == 0
    assert spans[-1].end == epochs
    assert all(a.end == b.first for a, b in itertools.pairwise(spans))


def test_phases_are_multiples_of_the_recipe() -> None:
    recipe = resolve(Recipe("small_cnn", "clips", epochs=10, penalty=6.0, clip_length=8, batch_size=4), trained=False)
    shown = [(s.name, s.penalty, s.clip_length, s.batch_size, s.quantize) for s in schedule(recipe)]
    assert shown == [("warm-up", 0.0, 8, 4, False), ("strong", 6.0, 8, 4, True), ("weak", 1.5, 4, 8, True)]


def test_warm_up_only_where_the_task_is_not_learned_yet() -> None:
    recipe = Recipe("small_cnn", "clips", epochs=9)
    assert epochs_of(recipe, trained=True) == {"strong": 6, "weak": 3}
    assert epochs_of(recipe.replace(start="vanilla")) == {"strong": 6, "weak": 3}


def test_own_phases_are_kept() -> None:
    recipe = Recipe("small_cnn", "clips", epochs=4, phases=(Phase("one"), Phase("two", share=3.0, clip_length=0.1)))
    assert epochs_of(recipe, trained=True) == {"one": 1, "two": 3}
    assert schedule(resolve(recipe, trained=True))[1].clip_length == 2


def test_an_unresolved_recipe_has_no_schedule() -> None:
    with pytest.raises(RecipeError, match=r"call resolve\(recipe\) first"):
        schedule(Recipe("small_cnn", "clips"))


FULL = Recipe("small_cnn", "clips", phases=(Phase("one", penalty=0.5),), include=("features*",), input_size=(32, 48))


def test_json_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(to_dict(FULL)))
    assert from_dict(read_recipe(path)) == FULL


def test_toml(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        """
        network = "small_cnn"
        data = "clips"
        include = ["features*"]
        input_size = [32, 48]
        [[phases]]
        name = "one"
        penalty = 0.5
        """
    )
    assert from_dict(read_recipe(path)) == FULL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 1.0}, r"recipe: unknown key 'learning_rate'; known are network, data,.* lr,"),
        ({"phases": [{"name": "a", "length": 8}]}, r"key 'phases'\[0\]: unknown key 'length'"),
        ({"phases": [{}]}, r"key 'phases'\[0\]: key 'name' is missing"),
        ({"phases": ["a"]}, r"key 'phases'\[0\]: expected a table, got 'a'"),
        ({"epochs": "ten"}, r"key 'epochs': expected int, got 'ten'"),
        ({"epochs": True}, r"key 'epochs': expected int, got True"),
        ({"epochs": 1.5}, r"key 'epochs': expected int, got 1.5"),
        ({"augment": 1}, r"key 'augment': expected bool, got 1"),
        ({"weights": 3}, r"key 'weights': expected str, got 3"),
        ({"method": "sparse"}, r"key 'method': expected one of 'dense', 'spatial_l1', 'delta', got 'sparse'"),
        ({"input_size": [32]}, r"key 'input_size': expected 2 values, got \[32\]"),
        ({"input_size": 32}, r"key 'input_size': expected a list, got 32"),
        ({"clip_length": 1}, "clip_length must be 2 or more, since one frame has no change, got 1"),
        ({"epochs": -1}, "epochs must be 0 or more, got -1"),
        ({"labels": -1}, "labels must be 0 or more, got -1"),
        ({"penalty": -1}, "penalty must be 0 or more, got -1"),
        ({"validate": 1.0}, "validate is a share"),
        ({"percentile": 0}, r"percentile lies in \(0, 100\]"),
        ({"patience": 3}, "set validate"),
        ({"phases": [{"name": "a", "share": 0}]}, "phase 'a' needs share"),
    ],
)
def test_refusals_name_the_key(change: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        from_dict({"network": "small_cnn", "data": "clips"} | change)


def test_a_recipe_learns_from_labels_or_from_the_network_before() -> None:
    recipe = Recipe("small_cnn", "clips", labels=0.0)
    with pytest.raises(RecipeError, match="labels = 0 and distill = 0"):
        resolve(recipe, trained=False)
    assert resolve(recipe.replace(weights="w.npz"), trained=True).labels == 0.0


@pytest.mark.parametrize(("method", "trained"), [("delta", False), ("dense", True), ("spatial_l1", True)])
def test_no_epochs_need_steps_to_set_in_a_trained_network(method: str, trained: bool) -> None:
    with pytest.raises(RecipeError, match="epochs = 0 sets the steps of a trained network"):
        resolve(Recipe("small_cnn", "clips", method=method, weights="runs/dense", epochs=0), trained=trained)  # type: ignore[arg-type]


def test_without_training_thresholds_are_finer() -> None:
    recipe = resolve(Recipe("small_cnn", "clips", weights="runs/dense", epochs=0), trained=True)
    assert (recipe.levels, schedule(recipe)) == (48, ())
    assert resolve(recipe.replace(epochs=10, levels=None), trained=True).levels == 32
    assert resolve(recipe.replace(codec="exact", levels=None), trained=True).levels == 16


def test_integers_are_numbers_too() -> None:
    assert from_dict({"network": "small_cnn", "data": "clips", "penalty": 4}).penalty == 4.0


def test_a_missing_key_is_named() -> None:
    with pytest.raises(RecipeError, match="recipe: key 'data' is missing"):
        from_dict({"network": "small_cnn"})


def test_unreadable_files(tmp_path: Path) -> None:
    for name, content, message in (
        ("absent.toml", None, "no file"),
        ("broken.toml", "a = ", "broken.toml"),
        ("broken.json", "{", "broken.json"),
        ("list.json", "[]", "expected an object"),
        ("recipe.yaml", "a: 1", "expected a .toml or .json file, got suffix '.yaml'"),
    ):
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(RecipeError, match=message):
            read_recipe(tmp_path / name)


@pytest.mark.parametrize(
    ("changes", "codec", "levels", "penalty"),
    [
        ({"weights": "w.npz"}, "hold", 32, 10.0),
        ({"weights": "w.npz", "codec": "exact"}, "exact", 16, 40.0),
        ({"weights": "w.npz", "codec": "pixel"}, "pixel", 16, 10.0),
        ({"weights": "w.npz", "codec": "pixel", "epochs": 0}, "pixel", 48, 10.0),
        ({"weights": "w.npz", "start": "vanilla"}, "exact", 16, 40.0),
        ({}, "exact", 16, 40.0),
        ({"codec": "hold", "levels": 7, "penalty": 3.0}, "hold", 7, 3.0),
        ({"method": "spatial_l1", "weights": "w.npz"}, "hold", 16, 100.0),  # a codec that it does not use
    ],
)
def test_what_the_codec_brings_with_it(changes: dict[str, object], codec: str, levels: int, penalty: float) -> None:
    recipe = resolve(Recipe("small_cnn", "clips", **changes), trained=True)  # type: ignore[arg-type]
    assert (recipe.codec, recipe.levels, recipe.penalty) == (codec, levels, penalty)


def test_a_codec_is_read_from_plain_data() -> None:
    data = {"network": "small_cnn", "data": "clips", "codec": "hold"}
    assert from_dict(data).codec == "hold"
    assert from_dict({**data, "codec": None}).codec is None
    with pytest.raises(RecipeError, match="key 'codec': expected one of 'exact', 'hold', 'pixel', 'residual', got 'x'"):
        from_dict({**data, "codec": "x"})
