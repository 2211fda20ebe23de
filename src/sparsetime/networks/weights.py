"""Weights from files: read as data, named as the network names them, checked before they are used.

Four formats, told apart by extension and content:

- `.pth`, `.pt`, `.th`: a state dict, or a dict that holds one under "state_dict"; the prefix "module." of data-parallel
  training is dropped. Loaded with weights_only=True.
- `.safetensors`: a state dict.
- `.npz` with `graph_json` and quantized weights `007.weight_q`: converted from TFLite, batch norm folded in. The layers
  have numbers, not names, and follow each other in the order in which the network defines them.
- `.npz` with `graph_json`, `NAME.code` and `NAME.codebook`: Deep Compression's shared weights, by layer name.
"""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sparsetime.files import check_archive
from sparsetime.networks.spec import Network


class WeightsError(ValueError):
    """A weights file cannot be read, or does not fit the network."""


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file.

    Attributes:
        path: where they came from, for messages.
        tensors: by parameter name; for folded layers by number and kind, as "007.weight".
        layers: for folded layers, in order, the id, stride and dilation of each; else empty.
    """

    path: Path
    tensors: dict[str, Tensor]
    layers: list[dict[str, int]] = field(default_factory=list)

    @property
    def has_batch_norm(self) -> bool:
        return any(key.endswith("running_mean") for key in self.tensors)


def read_weights(path: str | Path) -> Checkpoint:
    """Read a weights file of any format that this module names.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: the extension is unknown, or the content is not what the extension promises.
    """
    path = Path(path)
    readers = {".npz": _read_npz, ".safetensors": _read_safetensors}
    readers |= dict.fromkeys((".pth", ".pt", ".th"), _read_torch)
    if not path.is_file():
        raise FileNotFoundError(f"weights file {path}: no such file")
    if path.suffix not in readers:
        raise WeightsError(
            f"weights file {path}: expected one of {', '.join(readers)}, got {path.suffix or 'no extension'}"
        )
    return readers[path.suffix](path)


def load_weights(network: Network, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state dict that must fit exactly, except for the classifier, which may be absent as a whole.

    Args:
        network: changed in place.
        state: by the network's parameter names.
        path: for messages.

    Raises:
        WeightsError: keys are missing or unexpected, or shapes differ; the message names them.
    """
    own = network.state_dict()
    # Files from before PyTorch 0.4.1 lack the counter of batches, which nothing here reads.
    optional = {key for key in own if key.endswith("num_batches_tracked")}
    classifier = {key for key in own if is_classifier(network, key)}
    if not classifier & state.keys():
        optional |= classifier
    complaints = {
        "missing": [key for key in own if key not in state and key not in optional],
        "unexpected": [key for key in state if key not in own],
        "of another shape": [
            f"{key} (expected {tuple(own[key].shape)}, got {tuple(value.shape)})"
            for key, value in state.items()
            if key in own and own[key].shape != value.shape
        ],
    }
    if any(complaints.values()):
        text = "; ".join(f"{kind}: {_shortened(keys)}" for kind, keys in complaints.items() if keys)
        classes = f" ({network.spec.num_classes} classes)" if network.spec.num_classes else ""
        raise WeightsError(f"weights file {path} does not fit {network.spec.name}{classes}: {text}")
    network.load_state_dict(dict(state), strict=False)


def is_classifier(network: Network, key: str) -> bool:
    """Whether a parameter's shape follows the number of classes."""
    return key.startswith(network.classifier_name + ".")


def named_state(network: Network, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The checkpoint's tensors under the network's parameter names.

    Named tensors go through the network's `rename`. Folded layers, which only have an order, get the names of the
    network's convolutions and linear layers in the order of their definition; the classifier at the end may be absent.

    Raises:
        WeightsError: the number of folded layers, or the stride or dilation of one, is not the network's.
    """
    if not checkpoint.layers:
        return {network.rename(key): value for key, value in checkpoint.tensors.items()}
    modules = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    without_classifier = [(name, m) for name, m in modules if not is_classifier(network, name + ".")]
    if len(checkpoint.layers) == len(without_classifier):
        modules = without_classifier
    if len(checkpoint.layers) != len(modules):
        raise WeightsError(
            f"weights file {checkpoint.path} does not fit {network.spec.name}: expected {len(modules)} convolutions "
            f"and linear layers, got {len(checkpoint.layers)}"
        )
    state = {}
    for (name, module), layer in zip(modules, checkpoint.layers, strict=True):
        weight = checkpoint.tensors[f"{layer['id']:03d}.weight"]
        if isinstance(module, nn.Linear):
            weight = weight.flatten(1)  # TFLite keeps a linear layer on the pooled map as a 1x1 convolution
        else:
            own = {"stride": module.stride[0], "dilation": module.dilation[0]}
            came = {key: layer[key] for key in own}
            if own != came:
                raise WeightsError(
                    f"weights file {checkpoint.path} does not fit {network.spec.name}: {name} has {own}, "
                    f"layer {layer['id']} of the file has {came}"
                )
        state[f"{name}.weight"] = weight
        state[f"{name}.bias"] = checkpoint.tensors[f"{layer['id']:03d}.bias"]
    return state


def _shortened(keys: list[str], limit: int = 6) -> str:
    rest = len(keys) - limit
    return ", ".join(keys[:limit]) + (f" and {rest} more" if rest > 0 else "")


# The readers below catch every exception: on damaged bytes the decoders raise almost anything, zlib.error,
# NotImplementedError and AssertionError included.


def _read_torch(path: Path) -> Checkpoint:
    try:
        if zipfile.is_zipfile(path):  # older files are none
            check_archive(path)
        content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise WeightsError(f"weights file {path}: not a plain PyTorch state dict ({_first_line(error)})") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise WeightsError(
            f"weights file {path}: expected a state dict (names to tensors), got {type(content).__name__}"
        )
    return Checkpoint(path, {key.removeprefix("module."): value for key, value in content.items()})


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        return Checkpoint(path, load_file(path))
    except Exception as error:
        raise WeightsError(f"weights file {path}: not a safetensors file ({_first_line(error)})") from error


def _read_npz(path: Path) -> Checkpoint:
    try:
        # A file of our own: numpy leaves the one that it opens open when the content is no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        graph = json.loads(arrays["graph_json"].tobytes())
        if "ops" in graph:
            return _folded(path, arrays, graph["ops"])
        return _codebook(path, arrays)
    except Exception as error:
        raise WeightsError(
            f"weights file {path}: expected an .npz with graph_json and quantized or codebook weights "
            f"({type(error).__name__}: {_first_line(error)})"
        ) from error


def _folded(path: Path, arrays: dict[str, Any], ops: list[dict[str, Any]]) -> Checkpoint:
    """Float weight = (weight_q - weight_zero) * weight_scale, as the format says."""
    layers = [
        {key: int(op[key]) for key in ("id", "stride", "dilation")}
        for op in ops
        if op["op"] in ("conv_2d", "depthwise_conv_2d")
    ]
    tensors = {}
    for layer in layers:
        key = f"{layer['id']:03d}"
        codes = arrays[f"{key}.weight_q"].astype(np.float32) - arrays[f"{key}.weight_zero"].astype(np.float32)
        tensors[f"{key}.weight"] = torch.from_numpy(codes * arrays[f"{key}.weight_scale"].astype(np.float32))
        tensors[f"{key}.bias"] = torch.from_numpy(arrays[f"{key}.bias"].astype(np.float32))
    return Checkpoint(path, tensors, layers)


def _codebook(path: Path, arrays: dict[str, Any]) -> Checkpoint:
    """Weight = codebook[code], as the format says."""
    tensors = {}
    for name in (key.removesuffix(".code") for key in arrays if key.endswith(".code")):
        weight = arrays[f"{name}.codebook"][arrays[f"{name}.code"]]
        tensors[f"{name}.weight"] = torch.from_numpy(weight.astype(np.float32))
        tensors[f"{name}.bias"] = torch.from_numpy(arrays[f"{name}.bias"].astype(np.float32))
    if not tensors:
        raise ValueError("no arrays NAME.code")
    return Checkpoint(path, tensors)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
