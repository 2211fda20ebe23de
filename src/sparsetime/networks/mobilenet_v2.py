"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381)."""

import torch
from torch import Tensor, nn

from sparsetime.networks.blocks import ConvNormAct, Size, initialise, input_statistics, linear_classifier
from sparsetime.networks.spec import Network, NetworkSpec, Norm

# Expansion t, channels c, repeats n, stride of the first s [paper, Table 2].
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    """Expand (1x1), filter (3x3 depthwise), project (1x1, linear); plus the input where shapes agree [paper, Fig. 4].

    The children carry torchvision's names: `conv.0` (expansion, absent for t = 1), then the depthwise block, the
    projection and, with norm="batch", its batch norm.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, expansion: int, stride: int, dilation: int, size: Size, norm: Norm
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        depthwise = ConvNormAct(
            hidden, hidden, 3, stride=stride, dilation=dilation, groups=hidden, size=size, norm=norm
        )
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(ConvNormAct(in_channels, hidden, 1, size=size, norm=norm))
        layers += [depthwise, nn.Conv2d(hidden, out_channels, 1, bias=norm != "batch")]
        if norm == "batch":
            layers.append(nn.BatchNorm2d(out_channels))
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and in_channels == out_channels
        self.out_size = depthwise.out_size

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        y: Tensor = self.conv(x)
        return x + y if self.residual else y


def inverted_residuals(
    channels: int, *, alpha: float, divisor: int, output_stride: int, size: Size, norm: Norm
) -> tuple[list[nn.Module], int, Size]:
    """The stem and the 17 inverted residual blocks.

    A stage that would pass output_stride keeps its resolution, and all blocks after its first are dilated instead
    [DeepLabV3, arXiv 1706.05587, section 3.1].

    Args:
        channels: of the input.
        alpha: width multiplier; widths are rounded to multiples of divisor, as `scaled_width` says.
        divisor: of the widths.
        output_stride: input size over the size of the last map, at most.
        size: (H, W) of the input.
        norm: see `ConvNormAct`.

    Returns:
        The modules in order, the channels and the size of the last one's output.
    """
    width = scaled_width(32, alpha, divisor)
    stem = ConvNormAct(channels, width, 3, stride=2, size=size, norm=norm)
    modules: list[nn.Module] = [stem]
    size, total_stride, dilation = stem.out_size, 2, 1
    for expansion, stage_channels, repeats, first_stride in STAGES:
        out = scaled_width(stage_channels, alpha, divisor)
        for index in range(repeats):
            stride = first_stride if index == 0 else 1
            next_dilation = dilation
            if stride * total_stride > output_stride:
                stride, next_dilation = 1, dilation * stride
            block = InvertedResidual(
                width, out, expansion=expansion, stride=stride, dilation=dilation, size=size, norm=norm
            )
            modules.append(block)
            width, size, dilation = out, block.out_size, next_dilation
            total_stride *= stride
    return modules, width, size


def scaled_width(channels: int, alpha: float, divisor: int) -> int:
    """The nearest multiple of divisor to alpha * channels, at least divisor, and never below 90 % of it.

    [the authors' MobileNetV2 implementation in TensorFlow; the rounding is not in the paper]
    """
    scaled = channels * alpha
    rounded = max(divisor, int(scaled + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * scaled else rounded + divisor


class MobileNetV2(Network):
    """A 3x3 convolution, 17 inverted residual blocks, a 1x1 convolution, a global mean and a linear classifier.

    norm="batch" is the paper's definition under torchvision's parameter names, paddings and input normalisation, so
    torchvision's state dicts load. norm="folded" is the network as the published TFLite files hold it; see
    `MobileNetV1` for why such a network has no batch norm to train. There is no dropout: it would draw anew on every
    frame and so make changes where the video has none.

    Args:
        name: for the specification.
        num_classes: outputs of the classifier; 0 gives the 1280 features.
        input_size: (H, W).
        norm: "batch" or "folded".
    """

    classifier_name = "classifier"

    def __init__(self, name: str, *, num_classes: int, input_size: Size, norm: Norm) -> None:
        super().__init__()
        mean, std = input_statistics(norm)
        self.spec = NetworkSpec(name, input_size, mean, std, "rgb", num_classes, norm)
        modules, channels, size = inverted_residuals(
            3, alpha=1.0, divisor=8, output_stride=32, size=input_size, norm=norm
        )
        self.features = nn.Sequential(*modules, ConvNormAct(channels, 1280, 1, size=size, norm=norm))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = linear_classifier(1280, num_classes)
        initialise(self)

    @classmethod
    def rename(cls, key: str) -> str:
        """torchvision's classifier is a dropout and a linear layer; here it is the linear layer alone."""
        return key.replace("classifier.1.", "classifier.")

    def forward(self, x: Tensor) -> Tensor:
        """Map frames (N, 3, H, W) to logits (N, num_classes)."""
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))  # type: ignore[no-any-return]
