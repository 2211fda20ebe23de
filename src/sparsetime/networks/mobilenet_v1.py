"""MobileNetV1 (Howard et al. 2017, arXiv 1704.04861)."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from sparsetime.networks.blocks import ConvNormAct, Size, initialise, input_statistics, linear_classifier
from sparsetime.networks.spec import Network, NetworkSpec, Norm

# Output channels and stride of the depthwise separable blocks [paper, Table 1].
BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)


class MobileNetV1(Network):
    """A 3x3 convolution, 13 depthwise separable blocks, a global mean and a linear classifier.

    Every convolution is followed by batch norm and ReLU6 [paper, Fig. 3; ReLU6 as in the published weights]; all
    channels are scaled by the width multiplier alpha [paper, section 3.3].

    norm="batch" is that definition, for training from scratch. norm="folded" is the same network as the published
    TFLite files hold it: batch norm folded into weight and bias, TensorFlow's 'same' padding, input (x - 128) / 128.
    It is what weights from such a file get: the statistics that were folded are not in the file, so a batch norm put
    back would start from wrong ones and change the network in the first training step. A folded network is refined as
    it is, without batch norm.

    Args:
        name: for the specification.
        alpha: width multiplier.
        num_classes: outputs of the classifier; 0 gives the 1024 alpha features.
        input_size: (H, W).
        norm: "batch" or "folded".
    """

    classifier_name = "classifier"

    def __init__(self, name: str, *, alpha: float, num_classes: int, input_size: Size, norm: Norm) -> None:
        super().__init__()
        mean, std = input_statistics(norm)
        self.spec = NetworkSpec(name, input_size, mean, std, "rgb", num_classes, norm)
        channels = int(32 * alpha)
        stem = ConvNormAct(3, channels, 3, stride=2, size=input_size, norm=norm)
        features: list[nn.Module] = [stem]
        size = stem.out_size
        for width, stride in BLOCKS:
            out = int(width * alpha)
            depthwise = ConvNormAct(channels, channels, 3, stride=stride, groups=channels, size=size, norm=norm)
            pointwise = ConvNormAct(channels, out, 1, size=depthwise.out_size, norm=norm)
            features.append(nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=pointwise)))
            channels, size = out, depthwise.out_size
        self.features = nn.Sequential(*features)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = linear_classifier(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map frames (N, 3, H, W) to logits (N, num_classes)."""
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))  # type: ignore[no-any-return]
