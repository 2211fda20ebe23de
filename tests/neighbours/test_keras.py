"""The Keras layer against the PyTorch one, on two backends, each in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsetime import DeltaActivation

CHILD = Path(__file__).with_name("keras_child.py")

CASES: dict[str, dict[str, Any]] = {
    "relu": {"activation": "relu", "step": 0.3, "penalty_weight": 0.5},
    "relu6": {"activation": "relu6", "step": 0.3, "penalty_weight": 2.0},
    "identity": {"activation": "identity", "step": 0.3, "penalty_weight": 1.0},
    "channel": {"activation": "relu", "step": 0.3, "granularity": "channel", "penalty_weight": 1.0},
    "neuron": {"activation": "relu", "step": 0.3, "granularity": "neuron", "penalty_weight": 1.0},
    "fixed": {"activation": "relu", "step": 0.3, "rule": "fixed", "penalty_weight": 1.0},
    "no penalty": {"activation": "relu", "step": 0.3},
    "one frame": {"activation": "relu", "step": 0.3, "penalty_weight": 1.0},
    "vectors": {"activation": "relu", "step": 0.3, "granularity": "channel", "penalty_weight": 1.0},
    "ties": {"activation": "relu6", "step": 0.5, "penalty_weight": 1.0},
}


def clip(name: str) -> np.ndarray[Any, Any]:
    """(N, T, C, H, W), or (N, T, F); with numbers at the bounds, and frames that stay as they were."""
    rng = np.random.default_rng(sorted(CASES).index(name))
    shape = {"vectors": (3, 4, 7), "one frame": (2, 1, 3, 4, 4)}.get(name, (2, 5, 3, 4, 4))
    x = 3 * rng.standard_normal(shape)
    if name == "ties":
        x = np.round(x * 4) / 4
    if shape[1] > 1:
        x[:, 2] = x[:, 1]
    x.flat[:3] = [0.0, 6.0, -0.0]
    return x.astype(np.float32)


def weights(name: str) -> np.ndarray[Any, Any]:
    return np.random.default_rng(9).standard_normal(clip(name).shape).astype(np.float32)


@pytest.fixture(scope="module", params=["torch", "jax"])
def child(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process found with one of Keras' backends."""
    for module in ("keras", request.param):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}: pip install 'sparsetime[keras]' {module}")
    folder = tmp_path_factory.mktemp(request.param)
    arrays = {f"{name}.given_x": clip(name) for name in CASES} | {f"{name}.weight": weights(name) for name in CASES}
    np.savez(folder / "in.npz", cases=np.array(json.dumps(CASES)), **arrays)
    settings = {"KERAS_BACKEND": request.param, "JAX_PLATFORMS": "cpu", "KERAS_HOME": str(folder)}
    command = [sys.executable, str(CHILD), str(folder / "in.npz"), str(folder / "out.npz"), str(folder)]
    ran = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stderr
    with np.load(folder / "out.npz") as found:
        return {"backend": request.param} | dict(found)


def expected(name: str) -> dict[str, np.ndarray[Any, Any]]:
    """The same from the PyTorch layer, in float64: where both backends round, neither is right to the bit."""
    options = dict(CASES[name])
    weight = options.pop("penalty_weight", 0.0)
    x = torch.tensor(clip(name), dtype=torch.float64, requires_grad=True)
    layer = DeltaActivation(tuple(x.shape[2:]), **options).double()
    # The step that the others have: 0.3 in float32.
    layer.step.data = torch.full(layer.step.shape, options["step"], dtype=torch.float32).double()
    value = layer(x)
    penalty = torch.zeros((), dtype=torch.float64) if layer.penalty is None else weight * layer.penalty
    ((value * torch.tensor(weights(name))).sum() + penalty).backward()
    step = torch.zeros_like(layer.step) if layer.step.grad is None else layer.step.grad
    assert x.grad is not None
    found = {"value": value, "penalty": penalty, "x": x.grad, "step": step}
    return {key: tensor.detach().numpy() for key, tensor in found.items()}


@pytest.mark.parametrize("name", CASES)
def test_it_equals_the_pytorch_layer(child, name):
    """Values are a code times a step, one rounding: 1e-6 of them. Gradients of the step are sums of a few hundred terms
    of up to 20 / 0.3, whose rounding is within 1e-5 of the terms' size.
    """
    for key, truth in expected(name).items():
        got = child[f"{name}.{key}"]
        assert got.shape == truth.shape, key
        scale = max(1.0, np.abs(truth).max())
        np.testing.assert_allclose(got, truth, rtol=0, atol=(1e-5 if key == "step" else 1e-6) * scale, err_msg=key)
    codes = child[f"{name}.value"] / 0.3
    assert name == "ties" or np.abs(codes - np.round(codes)).max() < 1e-4


def test_the_cases_ask_for_something(child):
    """Steps get gradients but where they are fixed, penalties are there but where they should not be."""
    for name in CASES:
        truth = expected(name)
        assert (np.abs(truth["step"]).max() > 1e-2) == (name != "fixed"), name
        assert (truth["penalty"] > 0.05) == (name not in ("no penalty", "one frame")), name
        assert 0 < (truth["x"] == 0).mean() < 1 or name == "identity"


def test_a_model_learns_and_is_saved(child):
    """A penalty of weight 1 makes the steps grow, whatever the task wants; a saved model answers the same."""
    assert child["train.loss"][-1] < child["train.loss"][0]
    assert child["train.before"].shape == child["train.after"].shape == (4,)
    assert (child["train.after"] > child["train.before"]).all()
    np.testing.assert_array_equal(child["train.answers"], child["train.answers_again"])


def test_a_step_of_zero_in_float16_gives_numbers(child):
    np.testing.assert_array_equal(child["without_a_step"], [[[0.0, 0.25, -0.5], [1.0, 1.5, 2.0]]])


def test_pytorch_is_not_imported_for_another_backend(child):
    assert bool(child["torch_is_there"]) == (child["backend"] == "torch")


def test_the_example_of_the_docs(child):
    assert str(child["example"]) == "(1, 8, 10)"


def test_what_it_cannot_take_is_said(child):
    words = [
        "rule must be one of dal, fixed, got 'lsq'",
        "granularity must be one of layer, channel, neuron, got 'pixel'",
        "activation 'gelu' is not in ['identity', 'relu', 'relu6']; pass a function, keras.activations.get",
        "expected a step > 0 and a penalty_weight >= 0, got 0.0 and 0.0",
        "expected a step > 0 and a penalty_weight >= 0, got 0.0625 and -1.0",
        "expected clips (N, T, ...), got shape (4, 3)",
        "steps per neuron need the frame's shape, got (None, 8, None, 32, 3)",
    ]
    for message, wanted in zip(child["refusals"], words, strict=True):
        assert wanted in message
