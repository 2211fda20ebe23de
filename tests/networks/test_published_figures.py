"""Parameters and multiply-accumulates of every network against the figures its authors publish."""

from typing import Any

import pytest
import torch
from torch import nn

from sparsetime.networks import create
from sparsetime.networks.spec import Norm


def macs(network: nn.Module) -> int:
    total = 0

    def count(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    network.eval()(torch.zeros(1, 3, *network.spec.input_size))
    return total


@pytest.mark.parametrize(
    ("name", "num_classes", "parameters"),
    [
        # torchvision's model pages, to the parameter.
        ("mobilenet_v2", 1000, 3_504_872),
        ("resnet18", 1000, 11_689_512),
        ("resnet50", 1000, 25_557_032),
        # MobileNetV1 in TensorFlow's table, 1001 classes: 4.24, 2.59, 1.34, 0.47 million; here to the parameter.
        ("mobilenet_v1_100", 1001, 4_233_001),
        ("mobilenet_v1_075", 1001, 2_586_329),
        ("mobilenet_v1_050", 1001, 1_332_105),
        ("mobilenet_v1_025", 1001, 470_329),
        # 0.27 and 0.46 million [ResNet paper, Table 6].
        ("resnet20_cifar", 10, 269_722),
        ("resnet32_cifar", 10, 464_154),
        # 1,248,424 [SqueezeNet paper, Table 1].
        ("squeezenet", 1000, 1_248_424),
    ],
)
def test_parameters(name: str, num_classes: int, parameters: int) -> None:
    with torch.device("meta"):
        network = create(name, num_classes=num_classes)
    assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "size", "millions"),
    [
        # MobileNetV1 paper, Tables 6 and 7.
        ("mobilenet_v1_100", 224, 569),
        ("mobilenet_v1_075", 224, 325),
        ("mobilenet_v1_050", 224, 149),
        ("mobilenet_v1_025", 224, 41),
        ("mobilenet_v1_100", 192, 418),
        ("mobilenet_v1_100", 160, 290),
        ("mobilenet_v1_100", 128, 186),
        # MobileNetV2 paper, Table 4.
        ("mobilenet_v2", 224, 300),
    ],
)
@pytest.mark.parametrize("norm", ["batch", "folded"])
def test_macs_of_mobilenets(name: str, size: int, millions: int, norm: Norm) -> None:
    with torch.device("meta"):
        assert macs(create(name, input_size=(size, size), norm=norm)) / 1e6 == pytest.approx(millions, abs=1)


# torchvision's model pages (1.81 and 4.09 billion); 41 and 69 million for the CIFAR networks.
@pytest.mark.parametrize(
    ("name", "millions"), [("resnet18", 1814), ("resnet50", 4089), ("resnet20_cifar", 41), ("resnet32_cifar", 69)]
)
def test_macs_of_residual_networks(name: str, millions: int) -> None:
    with torch.device("meta"):
        assert macs(create(name)) / 1e6 == pytest.approx(millions, abs=0.9)
