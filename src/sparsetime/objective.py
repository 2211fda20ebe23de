"""Penalties: what is added to the task loss so that little changes.

    L = L_task + penalty_weight * sum_l share_l * mean |O_l(t) - O_l(t-1)| / scale_l

share_l is the share of the network's MACs that layer l feeds (its fan-out weight, computed from the network), scale_l
the range of its activation found by `calibrate`: the weight in front then means the same for every network.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsetime.nn import DeltaActivation, SpatialL1
from sparsetime.quantize import SilentError

__all__ = ["calibrate", "delta_layers", "enable", "parameter_groups", "penalty", "step_rate"]

Layer = DeltaActivation | SpatialL1


def delta_layers(model: nn.Module) -> dict[str, Layer]:
    """The `DeltaActivation` and `SpatialL1` layers of a model by name, without the prefix that `sparsify` puts in
    front.
    """
    return {
        name.removeprefix("delta."): module
        for name, module in model.named_modules()
        if isinstance(module, DeltaActivation | SpatialL1)
    }


def _layers(model: nn.Module, caller: str) -> dict[str, Layer]:
    layers = delta_layers(model)
    if not layers:
        raise ValueError(f"{caller}: the model has no delta layers. First: model = sparsetime.sparsify(model, example)")
    return layers


def penalty(model: nn.Module) -> Tensor:
    """The penalty of the last forward pass in training mode, equation in this module's docstring; a scalar.

    A model that runs its layers several times for one loss (two views of a scene, a recurrence) adds up the penalties
    after each time. Where one is left out, the loss's backward pass raises a ValueError.

    Raises:
        ValueError: no delta layers; no forward pass in training mode, or one without gradients, as within
            torch.utils.checkpoint with use_reentrant=True; or clips of one frame, in which nothing can change.
    """
    total: Tensor | None = None
    for layer in _layers(model, "penalty").values():
        layer.asked()
        if layer.penalty is None or not layer.enabled:
            continue
        term = layer.penalty * (layer.weight / layer.scale)
        total = term if total is None else total + term
    if total is None:
        raise ValueError(
            "penalty: no layer has one. It takes a forward pass in training mode (model.train()), with gradients "
            "(around delta layers, torch.utils.checkpoint needs use_reentrant=False), layers enabled, and clips "
            "(N, T, C, H, W) of at least T = 2 frames."
        )
    return total


def enable(model: nn.Module, on: bool) -> None:
    """Turn quantizers and penalties on, or off: then the model computes what it computed before `sparsify`."""
    for layer in _layers(model, "enable").values():
        layer.enabled = on


def calibrate(
    model: nn.Module,
    clips: Tensor | Iterable[Tensor | Sequence[Tensor]],
    percentile: float = 99.0,
    levels: int = 16,
) -> None:
    """Set every layer's step (and scale) from data: percentile of its |activation| / levels.

    The network runs unquantised while its activations are looked at. Several clips are averaged; one in which a layer
    is silent does not count for that layer. A layer that is silent in all of them keeps its step, with a warning.

    Args:
        model: what `sparsify` returned.
        clips: (N, T, C, H, W), as the model takes them, or several such tensors. For a model of several inputs a
            sequence of tuples, one tensor for each input: calibrate(model, [(left, right)]).
        percentile: of the values that are not zero.
        levels: steps in that range.

    Raises:
        ValueError: no delta layers, no clips, values that are not finite, a layer that the pass does not reach (named),
            or silence everywhere. The steps are then as they were.
        TypeError: a clip is neither a tensor nor a tuple of tensors for the same frames.
    """
    layers = _layers(model, "calibrate")
    if isinstance(clips, Tensor):
        clips = [clips]
    found: dict[str, list[list[Tensor]]] = {name: [] for name in layers}
    silent: set[str] = set()
    count = 0

    def hook(name: str) -> Any:
        def measure(layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x, frames = args[0].detach(), args[1] if len(args) > 1 else kwargs.get("frames")
            if frames is None:  # a clip (N, T, ...)
                x, frames = x.flatten(0, 1), x.shape[1]
            try:
                layer.calibrate(x, percentile, levels, frames)
            except SilentError:
                silent.add(name)
            except ValueError as error:
                raise ValueError(f"calibrate: layer {name!r}: {error}") from error
            else:
                found[name].append([t.detach().clone() for t in _measured(layer)])

        return measure

    before = {name: [t.detach().clone() for t in _measured(layer)] for name, layer in layers.items()}
    was_enabled = {name: layer.enabled for name, layer in layers.items()}
    was_training = {module: module.training for module in model.modules()}
    handles = [layer.register_forward_pre_hook(hook(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        model.eval()
        enable(model, False)
        with torch.no_grad():
            for clip in clips:
                inputs = [clip] if isinstance(clip, Tensor) else clip
                if not _are_inputs(inputs):  # a loader's batches have labels too
                    raise TypeError(
                        "calibrate: expected clips as tensors, or as tuples with a clip for each input of the model, "
                        f"got a {type(clip).__name__}. Of batches (clip, label): "
                        "calibrate(model, (clip for clip, _ in loader))"
                    )
                model(*inputs)
                count += 1
    finally:
        for handle in handles:
            handle.remove()
        for module, training in was_training.items():
            module.training = training
        for name, layer in layers.items():
            layer.enabled = was_enabled[name]
            _set(layer, before[name])
    if not count:
        raise ValueError("calibrate: no clips were given")
    missed = [name for name, values in found.items() if not values and name not in silent]
    if missed:
        raise ValueError(f"calibrate: layer {missed[0]!r} was not reached by the forward pass; no step can be found")
    if not any(found.values()):
        raise ValueError("calibrate: every layer stayed silent (all zero); give clips in which something is seen")
    for name, values in found.items():
        if values:
            _set(layers[name], [torch.stack(parts).mean(0) for parts in zip(*values, strict=True)])
        else:
            warnings.warn(f"calibrate: layer {name!r} stayed silent (all zero) and keeps its step", stacklevel=2)


def _are_inputs(values: Any) -> bool:
    """Whether these are tensors for the same frames."""
    tensors = isinstance(values, tuple | list) and all(isinstance(value, Tensor) for value in values)
    return tensors and len({value.shape[:2] for value in values}) == 1


def _measured(layer: Layer) -> list[Tensor]:
    """What `calibrate` sets."""
    return [layer.step, layer.scale] if isinstance(layer, DeltaActivation) else [layer.scale]


def _set(layer: Layer, values: list[Tensor]) -> None:
    with torch.no_grad():
        for tensor, value in zip(_measured(layer), values, strict=True):
            tensor.copy_(value)


def parameter_groups(model: nn.Module, lr: float, step_lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Groups for a torch optimizer: the weights, and each layer's step in a group of its own, without decay.

    Adam moves a number by about its learning rate whatever the gradient. A rate that is right for a step of 0.1 would
    leave one of 2 where it is, so the rate of a step is relative to its size: lr = step_lr * mean |step|. Calibrate
    first; after another calibration see `step_rate`.

    Args:
        model: what `sparsify` returned.
        lr, weight_decay: of the weights.
        step_lr: of the steps, as a share of their size.
    """
    steps = [m.step for m in model.modules() if isinstance(m, DeltaActivation) and m.step.requires_grad]
    known = {id(p) for p in steps}
    weights = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    groups: list[dict[str, Any]] = [{"params": weights, "lr": lr, "weight_decay": weight_decay, "name": "weights"}]
    for step in steps:
        groups.append({"params": [step], "lr": step_rate(step, step_lr), "weight_decay": 0.0, "name": "step"})
    return groups


def step_rate(step: Tensor, step_lr: float) -> float:
    """The learning rate of a step: step_lr * mean |step|."""
    return step_lr * float(step.detach().abs().mean())
