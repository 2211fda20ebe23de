"""Built-in networks by name.

>>> import torch
>>> network = create("small_cnn", num_classes=4)
>>> network(torch.zeros(2, 3, 64, 64)).shape
torch.Size([2, 4])
>>> network.spec.input_size
(64, 64)
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sparsetime.networks.deeplabv3 import DeepLabV3
from sparsetime.networks.fastestdet import Boxes, FastestDet, box_iou, decode_boxes
from sparsetime.networks.mobilenet_v1 import MobileNetV1
from sparsetime.networks.mobilenet_v2 import MobileNetV2
from sparsetime.networks.resnet import BasicBlock, Bottleneck, CifarResNet, ResNet
from sparsetime.networks.shufflenet_v2 import ShuffleNetV2
from sparsetime.networks.small_cnn import SmallCNN
from sparsetime.networks.spec import Network, NetworkSpec, Norm
from sparsetime.networks.squeezenet import SqueezeNet
from sparsetime.networks.weights import Checkpoint, WeightsError, is_classifier, load_weights, named_state, read_weights

__all__ = ["Boxes", "Network", "NetworkSpec", "WeightsError", "box_iou", "create", "decode_boxes", "names"]


@dataclass(frozen=True)
class _Entry:
    """How a network is made, and what it is like when nothing else is asked."""

    build: Callable[..., Network]
    size: int
    num_classes: int = 1000
    norms: tuple[Norm, ...] = ("batch",)
    headless: bool = True  # can end in its features, without a classifier


_NETWORKS = {
    "deeplabv3_mobilenet_v2": _Entry(DeepLabV3, 513, 21, norms=("batch", "folded"), headless=False),
    "fastestdet": _Entry(FastestDet, 352, 80, headless=False),
    "mobilenet_v1_025": _Entry(partial(MobileNetV1, alpha=0.25), 128, norms=("batch", "folded")),
    "mobilenet_v1_050": _Entry(partial(MobileNetV1, alpha=0.5), 160, norms=("batch", "folded")),
    "mobilenet_v1_075": _Entry(partial(MobileNetV1, alpha=0.75), 192, norms=("batch", "folded")),
    "mobilenet_v1_100": _Entry(partial(MobileNetV1, alpha=1.0), 224, norms=("batch", "folded")),
    "mobilenet_v2": _Entry(MobileNetV2, 224, norms=("batch", "folded")),
    "resnet18": _Entry(partial(ResNet, block=BasicBlock, depths=(2, 2, 2, 2)), 224),
    "resnet20_cifar": _Entry(partial(CifarResNet, depth=3), 32, 10),
    "resnet32_cifar": _Entry(partial(CifarResNet, depth=5), 32, 10),
    "resnet50": _Entry(partial(ResNet, block=Bottleneck, depths=(3, 4, 6, 3)), 224),
    "shufflenet_v2": _Entry(ShuffleNetV2, 224),
    "small_cnn": _Entry(SmallCNN, 64, 10),
    "squeezenet": _Entry(SqueezeNet, 227, norms=("none",), headless=False),
}


def names() -> list[str]:
    """The names that `create` knows, sorted."""
    return sorted(_NETWORKS)


def create(
    name: str,
    *,
    num_classes: int | None = None,
    input_size: tuple[int, int] | None = None,
    weights: str | Path | None = None,
    norm: Norm | None = None,
) -> Network:
    """Make a network, with weights from a file or fresh ones from PyTorch's global random generator.

    Weights must fit exactly, name by name and shape by shape. Only the classifier is different: it stays fresh where
    num_classes is not the file's or the file has none.

    Args:
        name: one of `names()`.
        num_classes: outputs of the classifier; 0 for a network that ends in its features. Without it, what the weights
            hold (where they hold no classifier, 0 if the network can end in its features), and without weights the
            network's usual number.
        input_size: (H, W); without it the network's usual one. Fixes the padding of networks with TensorFlow's 'same'.
        weights: a file in one of the formats of `sparsetime.networks.weights`.
        norm: "batch" or "folded" for networks that have both (see `MobileNetV1`); without it what the weights have, and
            without weights "batch". Give `spec.norm` to make a saved network again.

    Returns:
        The network in training mode; `.spec` says what it takes and gives.

    Raises:
        ValueError: an unknown name, a size below 1, or a norm that the network does not come in.
        FileNotFoundError: there is no such weights file.
        WeightsError: the weights cannot be read or do not fit; the message names the keys.
    """
    if name not in _NETWORKS:
        raise ValueError(f"unknown network {name!r}: expected one of {', '.join(names())}")
    entry = _NETWORKS[name]
    size = (entry.size, entry.size) if input_size is None else (int(input_size[0]), int(input_size[1]))
    least = 0 if entry.headless else 1
    if min(size) < 1 or (num_classes is not None and num_classes < least):
        raise ValueError(
            f"{name}: expected a positive input_size and num_classes of {least} or more, got {size} and {num_classes}"
        )
    checkpoint = None if weights is None else read_weights(weights)
    build = partial(entry.build, name, input_size=size, **_norm_argument(name, entry, norm, checkpoint))
    if checkpoint is None:
        return build(num_classes=entry.num_classes if num_classes is None else num_classes)

    with torch.device("meta"):  # names and shapes only; draws nothing from the random generator
        template = build(num_classes=entry.num_classes)
    state = named_state(template, checkpoint)
    # How many classes the file holds; 0 without a classifier.
    held = next((len(value) for key, value in state.items() if is_classifier(template, key) and value.dim()), 0)
    if num_classes is None:
        num_classes = held or (0 if entry.headless else entry.num_classes)
    network = build(num_classes=num_classes)
    if num_classes != held:
        state = {key: value for key, value in state.items() if not is_classifier(template, key)}
    load_weights(network, state, checkpoint.path)
    return network


def _norm_argument(name: str, entry: _Entry, asked: Norm | None, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """The keyword argument norm for networks that come in several, and the check that it agrees with the weights."""
    if asked is not None and asked not in entry.norms:
        raise ValueError(f"{name}: expected norm {' or '.join(entry.norms)}, got {asked}")
    norm = asked or entry.norms[0]
    if checkpoint is not None and (checkpoint.layers or len(entry.norms) > 1):
        found: Norm = "batch" if checkpoint.has_batch_norm else "folded"
        if found not in entry.norms or asked not in (None, found):
            expected = asked or " or ".join(entry.norms)
            raise WeightsError(f"weights file {checkpoint.path}: {name} expected norm {expected}, the file has {found}")
        norm = found
    return {"norm": norm} if len(entry.norms) > 1 else {}
