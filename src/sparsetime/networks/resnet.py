"""Residual networks (He et al. 2015, arXiv 1512.03385): for ImageNet with torchvision's names, and for CIFAR-10."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsetime.networks.blocks import Size, initialise, linear_classifier
from sparsetime.networks.spec import IMAGENET_MEAN, IMAGENET_STD, Network, NetworkSpec

Shortcut = Literal["project", "pad"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut [paper, Fig. 5 left]: y = relu(F(x) + shortcut(x)).

    Args:
        in_channels: of the input.
        channels: of both convolutions and the output.
        stride: of the first convolution.
        shortcut: where the shape changes [paper, section 3.3], "project" (option B) is a 1x1 convolution with batch
            norm, "pad" (option A) takes every second pixel and adds channels of zeros on both sides.
    """

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: Shortcut = "project") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(in_channels, channels, stride, shortcut)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, ceil(H / stride), ceil(W / stride))."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + (x if self.downsample is None else self.downsample(x)))  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution and a shortcut [paper, Fig. 5 right]; the 3x3 one has the stride, as in torchvision.

    Args:
        in_channels: of the input.
        channels: of the inner convolutions; the output has four times as many.
        stride: of the 3x3 convolution.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(channels, channels * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)
        self.downsample = _shortcut(in_channels, channels * self.expansion, stride, "project")
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, 4 channels, ceil(H / stride), ceil(W / stride))."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu3(y + (x if self.downsample is None else self.downsample(x)))  # type: ignore[no-any-return]


class SubsampleAndPad(nn.Module):
    """The shortcut without parameters: every stride-th pixel, and `extra` channels of zeros around the channels."""

    def __init__(self, stride: int, extra: int) -> None:
        super().__init__()
        self.stride = stride
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C + extra, ceil(H / stride), ceil(W / stride))."""
        before = self.extra // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.extra - before))


def _shortcut(in_channels: int, out_channels: int, stride: int, kind: Shortcut) -> nn.Module | None:
    if stride == 1 and in_channels == out_channels:
        return None
    if kind == "pad":
        return SubsampleAndPad(stride, out_channels - in_channels)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def _blocks(
    block: Callable[[int, int, int], BasicBlock | Bottleneck], depth: int, in_channels: int, channels: int, stride: int
) -> list[nn.Module]:
    """The blocks of a stage; the first one has the stride and changes the number of channels."""
    first = block(in_channels, channels, stride)
    rest = [block(channels * first.expansion, channels, 1) for _ in range(depth - 1)]
    return [first, *rest]


class ResNet(Network):
    """The ImageNet networks [paper, Table 1], under torchvision's parameter names: its state dicts load.

    Args:
        name: for the specification.
        block: `BasicBlock` (18 layers) or `Bottleneck` (50 layers).
        depths: number of blocks in each of the four stages.
        num_classes: outputs of the classifier; 0 gives the features.
        input_size: (H, W).
    """

    classifier_name = "fc"

    def __init__(
        self,
        name: str,
        *,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        num_classes: int,
        input_size: Size,
    ) -> None:
        super().__init__()
        self.spec = NetworkSpec(name, input_size, IMAGENET_MEAN, IMAGENET_STD, "rgb", num_classes)
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        out = block.expansion
        self.layer1 = nn.Sequential(*_blocks(block, depths[0], 64, 64, stride=1))
        self.layer2 = nn.Sequential(*_blocks(block, depths[1], 64 * out, 128, stride=2))
        self.layer3 = nn.Sequential(*_blocks(block, depths[2], 128 * out, 256, stride=2))
        self.layer4 = nn.Sequential(*_blocks(block, depths[3], 256 * out, 512, stride=2))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = linear_classifier(512 * out, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map frames (N, 3, H, W) to logits (N, num_classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))  # type: ignore[no-any-return]


class CifarResNet(Network):
    """The CIFAR-10 networks of 6n + 2 layers with shortcuts without parameters [paper, section 4.2].

    Args:
        name: for the specification.
        depth: n, the number of blocks in each of the three stages.
        num_classes: outputs of the classifier; 0 gives the 64 features.
        input_size: (H, W).
    """

    classifier_name = "linear"

    def __init__(self, name: str, *, depth: int, num_classes: int, input_size: Size) -> None:
        super().__init__()
        self.spec = NetworkSpec(name, input_size, IMAGENET_MEAN, IMAGENET_STD, "rgb", num_classes)
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        block = partial(BasicBlock, shortcut="pad")
        self.layer1 = nn.Sequential(*_blocks(block, depth, 16, 16, stride=1))
        self.layer2 = nn.Sequential(*_blocks(block, depth, 16, 32, stride=2))
        self.layer3 = nn.Sequential(*_blocks(block, depth, 32, 64, stride=2))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = linear_classifier(64, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map frames (N, 3, H, W) to logits (N, num_classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.flatten(self.avgpool(x), 1))  # type: ignore[no-any-return]
