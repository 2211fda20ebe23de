"""The run directory: what a training run leaves behind, written and read."""

import dataclasses
import hashlib
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

import sparsetime
from sparsetime import networks
from sparsetime.files import write_whole
from sparsetime.networks import NetworkSpec
from sparsetime.train import recipe as recipes
from sparsetime.train.errors import RunError
from sparsetime.train.model import ClipClassifier, make_sparse
from sparsetime.train.recipe import Recipe
from sparsetime.video import Clip, ClipList

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
METRICS = "metrics.csv"
CHECKPOINT = Path("checkpoints", "last.ckpt")
CLIPS = "clips_sha256"
"""Key of config.json: a digest of the training clips, see `clips_digest`."""


def clips_digest(clips: Sequence[Clip]) -> str:
    """A digest of which videos these are, in their order, with label and group; not of what is in the files."""
    said = json.dumps([(clip.name, clip.label, clip.group) for clip in clips])
    return hashlib.sha256(said.encode()).hexdigest()


def make_config(recipe: Recipe, spec: NetworkSpec, clips: ClipList, command: str) -> dict[str, Any]:
    """The content of config.json: the resolved recipe and what it ran on."""
    return recipes.to_dict(recipe) | {
        "spec": dataclasses.asdict(spec),
        "classes": list(clips.classes),
        CLIPS: clips_digest([clip for clip in clips if clip.split == "train"]),
        "versions": {
            "sparsetime": sparsetime.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "machine": {
            "processor": platform.machine(),
            "system": platform.system(),
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
        },
        "command": command,
    }


def same_run(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """The keys in which two configurations differ, clips, machine, versions and command aside."""
    a, b = json.loads(json.dumps(a)), json.loads(json.dumps(b))
    ignored = {CLIPS, "versions", "machine", "command"}
    return sorted(key for key in (set(a) | set(b)) - ignored if a.get(key) != b.get(key))


def is_run(path: Path) -> bool:
    """Whether a run has been started in this directory."""
    return (path / CONFIG).is_file()


def is_finished(path: Path) -> bool:
    """Whether the run in this directory has written its final weights."""
    return (path / WEIGHTS).is_file()


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a run.

    Raises:
        RunError: there is none or it is damaged.
    """
    file = path / CONFIG
    if not file.is_file():
        raise RunError(f"run: {path} has no {CONFIG}; expected the --out directory of `sparsetime train`")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"run: {file} is damaged: {error}") from error
    if not isinstance(config, dict) or "network" not in config or "classes" not in config or "spec" not in config:
        raise RunError(f"run: {file} is not a configuration written by `sparsetime train`")
    return config


def recipe_of(config: dict[str, Any]) -> Recipe:
    """The recipe in a run's configuration."""
    fields = {field.name for field in dataclasses.fields(Recipe)}
    return recipes.from_dict({key: value for key, value in config.items() if key in fields}, CONFIG)


def spec_of(config: dict[str, Any]) -> NetworkSpec:
    """The network's specification in a run's configuration."""
    spec: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config["spec"].items()}
    return NetworkSpec(**spec)


def write_weights(path: Path, model: nn.Module, config: dict[str, Any]) -> None:
    """Write model.safetensors, in one step; the same bytes for the same weights and configuration."""
    spec = config["spec"]
    meta = {
        "network": config["network"],
        "method": config["method"],
        "num_classes": spec["num_classes"],
        "input_size": spec["input_size"],
    }
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    content = safetensors.torch.save(state, {key: json.dumps(value) for key, value in meta.items()})
    write_whole(path / WEIGHTS, _ordered(content))


def _ordered(content: bytes) -> bytes:
    """A safetensors file with the keys of its metadata in order: the library writes them in another one each time."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that arrays begin where they are aligned; their offsets count from there
    return len(text).to_bytes(8, "little") + text + content[start:]


def read_weights(path: Path) -> dict[str, Tensor]:
    """The final weights of a run by parameter name.

    Raises:
        RunError: the run is unfinished or the file damaged.
    """
    file = path / WEIGHTS
    if not file.is_file():
        raise RunError(
            f"run: {path} is not finished, it has no {WEIGHTS}; give the same `sparsetime train` command again"
        )
    try:
        return safetensors.torch.load_file(file)
    except SafetensorError as error:
        raise RunError(f"run: {file} is damaged: {error}") from error


def load_run(path: Path | str) -> tuple[ClipClassifier, dict[str, Any]]:
    """A trained model, in evaluation mode, and its configuration.

    Returns:
        The model on RGB clips (`.model` is the sparsified network, the plain one for ``dense``); config.json.

    Raises:
        RunError: not a finished run, or weights that do not fit its configuration.
    """
    path = Path(path)
    config = read_config(path)
    state = read_weights(path)
    recipe, spec = recipe_of(config), spec_of(config)
    network = networks.create(spec.name, num_classes=spec.num_classes, input_size=spec.input_size, norm=spec.norm)
    model = make_sparse(network, recipe)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise RunError(f"run: {path / WEIGHTS} does not fit {path / CONFIG}: {error}") from error
    return ClipClassifier(model, spec, per_frame=recipe.method == "dense").eval(), config
