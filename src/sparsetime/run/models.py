"""Networks by what a user calls them: a run directory, a built-in name with weights, or a function of their own."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sparsetime import networks
from sparsetime.video import VideoError, iter_frames
from sparsetime.video.reader import Frames

__all__ = ["Model", "ModelError", "load_model"]

Size = tuple[int, int]


class ModelError(ValueError):
    """A model cannot be found, made, or brought to a size; the message says what mends it."""


@dataclass(frozen=True)
class Model:
    """A network that can be compiled.

    Attributes:
        module: in evaluation mode, on frames (1, 3, H, W).
        size: (H, W).
        learned: whether it has codecs with steps of its own.
        codec: what its run was trained with, or None.
        config: of its run, or None.
    """

    module: nn.Module
    size: Size
    learned: bool = False
    codec: str | None = None
    config: dict[str, Any] | None = None

    def training_frames(self, count: int) -> Iterator[Frames]:
        """First frames of `count` of the videos that its run was trained on, at its size; none where they are gone."""
        if self.config is None:
            return
        from sparsetime.train.data import open_clips
        from sparsetime.train.errors import TrainingError
        from sparsetime.video import ListError

        try:
            clips = open_clips(self.config["data"], missing="skip", allow=self.config["allow"]).split("train").clips
        except (TrainingError, ListError):
            return
        for clip in clips[:: max(1, len(clips) // count)][:count]:
            try:
                yield next(iter_frames(clip.path, size=self.size))
            except VideoError:
                continue


def load_model(name: str, *, weights: Path | None = None, size: Size | None = None) -> Model:
    """Find a network.

    Args:
        name: the directory of a finished training run; one of `sparsetime.networks.names()`, with weights; or
            `package.module:function`, a function without arguments that returns a module. Modules are looked for in
            the working directory too.
        weights: of a built-in network, a file.
        size: (H, W) of its input. None: as trained, the network's own, or that of the module's `spec.input_size`.

    Raises:
        ModelError: there is no such network, or it does not come in that size.
        WeightsError, RunError: weights or run cannot be read.
    """
    if weights is not None and name not in networks.names():
        raise ModelError(
            f"model {name}: --weights is for built-in networks ({', '.join(networks.names())}), and this is none; a "
            "module of yours, package.module:function, loads its weights itself"
        )
    if name in networks.names() and not (Path(name) / "config.json").is_file():
        return _built_in(name, weights, size)
    if Path(name).is_dir():
        return _run(Path(name), size)
    if ":" in name:
        return _function(name, size)
    raise ModelError(
        f"model {name}: no such run directory, and no built-in network; expected the --out directory of `sparsetime "
        f"train`, package.module:function, or --weights FILE with one of {', '.join(networks.names())}"
    )


def _built_in(name: str, weights: Path | None, size: Size | None) -> Model:
    if weights is None:
        raise ModelError(f"model {name}: a built-in network needs its weights; give --weights FILE")
    network = networks.create(name, input_size=size, weights=weights).eval()
    return Model(network, network.spec.input_size)


def _run(path: Path, size: Size | None) -> Model:
    try:
        from sparsetime.train.run import load_run
    except ImportError as error:
        raise ModelError(f"reading a run directory needs pip install 'sparsetime[train]' ({error})") from error
    classifier, config = load_run(path)
    trained = classifier.spec.input_size
    if size not in (None, trained):
        raise ModelError(
            f"run {path} was trained at {trained[0]}x{trained[1]}, where its steps belong; leave out --size, or train "
            "with that input_size"
        )
    learned = _has_codecs(classifier.model)
    return Model(classifier.model, trained, learned, config["codec"] if learned else None, config)


def _function(name: str, size: Size | None) -> Model:
    where, _, function = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # the working directory, as `python -m` has it
    try:
        found: Any = importlib.import_module(where)
        for part in function.split("."):
            found = getattr(found, part)
        module = found()
    except Exception as error:  # whatever the user's own code raises
        raise ModelError(f"model {name}: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"model {name}: expected a function that returns a torch module, got {type(module).__name__}")
    own = getattr(getattr(module, "spec", None), "input_size", None)
    if size is None and own is None:
        raise ModelError(f"model {name}: its input size is not known; give --size HxW")
    height, width = size or own  # type: ignore[misc]  # one of them is there
    return Model(module.eval(), (int(height), int(width)), learned=_has_codecs(module))


def _has_codecs(module: nn.Module) -> bool:
    from sparsetime.nn import DeltaActivation

    return any(isinstance(part, DeltaActivation) for part in module.modules())
