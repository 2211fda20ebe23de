"""Run by test_keras.py in a process of its own, where KERAS_BACKEND says what computes; writes what it found.

python keras_child.py IN.npz OUT.npz FOLDER
"""

import json
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

warnings.simplefilter("error")
warnings.simplefilter("ignore", DeprecationWarning)  # Keras' own, about its use of numpy

import keras  # noqa: E402
import numpy as np  # noqa: E402

from sparsetime.neighbours.keras import DeltaActivation  # noqa: E402


def gradients(layer: DeltaActivation, x: Any, weight: Any) -> dict[str, Any]:
    """Value, penalty, and the gradients of sum(weight * value) + penalty."""
    layer.build(x.shape)
    if keras.backend.backend() == "torch":
        import torch

        step = layer.step.value
        inputs = torch.tensor(x, requires_grad=True)
        value = layer(inputs, training=True)
        penalty = sum(layer.losses, torch.zeros(()))
        total = (value * torch.tensor(weight)).sum() + penalty
        total.backward()
        grad_step = step.grad if step.grad is not None else torch.zeros(step.shape)
        found = (value, penalty, inputs.grad, grad_step)
        return dict(zip(("value", "penalty", "x", "step"), (f.detach().numpy() for f in found), strict=True))

    import jax
    import jax.numpy as jnp

    def total(steps: Any, inputs: Any) -> Any:
        fixed = [v.value for v in layer.non_trainable_variables]
        trained = steps if layer.rule == "dal" else []
        value, _, losses = layer.stateless_call(trained, fixed, inputs, training=True, return_losses=True)
        penalty = sum(losses, jnp.zeros(()))
        return (value * weight).sum() + penalty, (value, penalty)

    steps = [layer.step.value]
    (grad_steps, grad_x), (value, penalty) = jax.grad(total, argnums=(0, 1), has_aux=True)(steps, jnp.array(x))
    found = (value, penalty, grad_x, grad_steps[0])
    return dict(zip(("value", "penalty", "x", "step"), map(np.asarray, found), strict=True))


def train(folder: Path) -> dict[str, Any]:
    """A small model: fit, save, load."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((16, 4, 6, 6, 2)).astype(np.float32)
    y = rng.standard_normal((16, 4, 3)).astype(np.float32)
    wrap = keras.layers.TimeDistributed
    model = keras.Sequential(
        [
            keras.Input(x.shape[1:]),
            wrap(keras.layers.Conv2D(4, 3)),
            DeltaActivation("relu6", step=0.1, granularity="channel", penalty_weight=1.0, name="delta"),
            wrap(keras.layers.Flatten()),
            DeltaActivation(keras.activations.tanh, step=0.1, rule="fixed"),
            keras.layers.Dense(3),
        ]
    )
    before = keras.ops.convert_to_numpy(model.get_layer("delta").step)
    model.compile(keras.optimizers.Adam(1e-2), "mse", jit_compile=keras.backend.backend() == "jax")
    history = model.fit(x, y, epochs=5, batch_size=8, verbose=0)
    model.save(folder / "model.keras")
    again = keras.saving.load_model(folder / "model.keras")
    return {
        "loss": history.history["loss"],
        "before": before,
        "after": keras.ops.convert_to_numpy(model.get_layer("delta").step),
        "answers": model.predict(x, verbose=0),
        "answers_again": again.predict(x, verbose=0),
    }


def refusals() -> list[str]:
    """What the layer says to what it cannot take."""
    calls: list[Callable[[], Any]] = [
        lambda: DeltaActivation(rule="lsq"),
        lambda: DeltaActivation(granularity="pixel"),
        lambda: DeltaActivation("gelu"),
        lambda: DeltaActivation(step=0.0),
        lambda: DeltaActivation(penalty_weight=-1.0),
        lambda: DeltaActivation()(np.zeros((4, 3), np.float32)),
        lambda: DeltaActivation(granularity="neuron")(keras.Input((8, None, 32, 3))),
    ]
    messages = []
    for call in calls:
        try:
            call()
        except ValueError as error:
            messages.append(str(error))
        else:
            messages.append("")
    return messages


def without_a_step() -> Any:
    """Values of float16, of a layer whose step has shrunk to 0."""
    layer = DeltaActivation("identity", dtype="float16")
    layer.build((1, 2, 3))
    layer.step.assign(0.0)
    return keras.ops.convert_to_numpy(layer(np.array([[[0.0, 0.25, -0.5], [1.0, 1.5, 2.0]]], np.float16)))


def example() -> str:
    """The page's own example, on one clip."""
    page = (Path(__file__).parents[2] / "docs" / "neighbours.md").read_text()
    code = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "import keras" in block)
    names: dict[str, Any] = {}
    exec(code, names)
    return str(tuple(names["model"](np.zeros((1, 8, 64, 64, 3), np.float32)).shape))


def main() -> None:
    given, result, folder = sys.argv[1:]
    arrays = np.load(given)
    found: dict[str, Any] = {}
    for name, options in json.loads(str(arrays["cases"])).items():
        layer = DeltaActivation(data_format="channels_first", **options)
        x, weight = arrays[f"{name}.given_x"], arrays[f"{name}.weight"]
        found |= {f"{name}.{key}": value for key, value in gradients(layer, x, weight).items()}
    found |= {f"train.{key}": value for key, value in train(Path(folder)).items()}
    found["without_a_step"] = without_a_step()
    found["refusals"] = np.array(refusals())
    found["example"] = example()
    found["torch_is_there"] = "torch" in sys.modules
    np.savez(result, **found)


main()
