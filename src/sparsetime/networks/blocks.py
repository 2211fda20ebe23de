"""Building blocks that several networks share."""

import math
from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from sparsetime.networks.spec import IMAGENET_MEAN, IMAGENET_STD, Norm

Size = tuple[int, int]


def same_padding(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """Zeros before and after one axis in TensorFlow's 'same' padding.

    total = max((ceil(n / s) - 1) s + (k - 1) d + 1 - n, 0);   before = floor(total / 2), after = total - before
    [TensorFlow, tf.nn.convolution]: the odd pixel goes to the end.
    """
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


class ConvNormAct(nn.Sequential):
    """Convolution, normalisation, activation: children "0", "1", "2", as torchvision names them.

    With norm="batch" the convolution has no bias, a batch norm follows, and the padding is symmetric, d(k-1)/2:
    PyTorch's conventions. With norm="folded" the convolution has the bias that batch norm was folded into, child "1" is
    absent, and the padding is TensorFlow's 'same' for the input size given here (see `same_padding`): the conventions
    of the files that come without batch norm. The output is ceil(n / stride) in both.

    Attributes:
        pad: (left, right, top, bottom) zeros where they are not symmetric, so that the convolution cannot add them
            itself; else None.
        out_size: (H, W) of the output.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        size: Size,
        norm: Norm,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        activation: type[nn.Module] = nn.ReLU6,
    ) -> None:
        padding = (dilation * (kernel - 1) // 2,) * 2
        pad: tuple[int, int, int, int] | None = None
        if norm == "folded":
            top, bottom = same_padding(size[0], kernel, stride, dilation)
            left, right = same_padding(size[1], kernel, stride, dilation)
            if (top, left) == (bottom, right):
                padding = (top, left)
            else:
                padding, pad = (0, 0), (left, right, top, bottom)
        conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=norm != "batch",
        )
        layers: OrderedDict[str, nn.Module] = OrderedDict({"0": conv})
        if norm == "batch":
            layers["1"] = nn.BatchNorm2d(out_channels)
        layers["2"] = activation()
        super().__init__(layers)
        self.pad = pad
        self.out_size: Size = (-(-size[0] // stride), -(-size[1] // stride))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        if self.pad is not None:
            x = F.pad(x, self.pad)
        return super().forward(x)  # type: ignore[no-any-return]


def input_statistics(norm: Norm) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of the input, in 0..255 units: the conventions that go with `ConvNormAct`'s norm."""
    if norm == "folded":
        return (128.0, 128.0, 128.0), (128.0, 128.0, 128.0)
    return IMAGENET_MEAN, IMAGENET_STD


def linear_classifier(features: int, num_classes: int) -> nn.Module:
    """A linear layer from features to classes, or nothing for num_classes = 0 (the network gives its features)."""
    return nn.Linear(features, num_classes) if num_classes else nn.Identity()


def initialise(module: nn.Module) -> None:
    """Draw fresh weights from the global random generator, in place.

    Convolutions: normal, variance 2 / (k^2 C_out / groups) [He et al. 2015, Eq. 14]; linear layers: normal, standard
    deviation 0.01; biases 0; batch norm keeps PyTorch's weight 1 and bias 0.
    """
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            fan_out = child.weight[0, 0].numel() * child.out_channels // child.groups
            nn.init.normal_(child.weight, std=math.sqrt(2 / fan_out))
        elif isinstance(child, nn.Linear):
            nn.init.normal_(child.weight, std=0.01)
        else:
            continue
        if child.bias is not None:
            nn.init.zeros_(child.bias)
