"""DeepLabV3 on MobileNetV2: semantic segmentation (Chen et al. 2017, arXiv 1706.05587)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsetime.networks.blocks import ConvNormAct, Size, initialise, input_statistics
from sparsetime.networks.mobilenet_v2 import inverted_residuals
from sparsetime.networks.spec import Network, NetworkSpec, Norm


class DeepLabV3(Network):
    """MobileNetV2 of half width at output stride 16, and the head that MobileNetV2 needs of DeepLabV3.

    The head is the one of the MobileNetV2 paper [arXiv 1801.04381, section 6.3]: of the pyramid only a 1x1 convolution
    and the image-level features remain; both have 256 channels, are concatenated, projected to 256, and classified by a
    1x1 convolution. All resizing is bilinear with aligned corners. The halved widths are not rounded to multiples of 8.

    Args:
        name: for the specification.
        num_classes: channels of the output.
        input_size: (H, W); 513 x 513 in the published model.
        norm: "batch" or "folded"; see `MobileNetV1`.
    """

    classifier_name = "classifier"

    def __init__(self, name: str, *, num_classes: int, input_size: Size, norm: Norm) -> None:
        super().__init__()
        mean, std = input_statistics(norm)
        self.spec = NetworkSpec(name, input_size, mean, std, "rgb", num_classes, norm)
        modules, channels, self.map_size = inverted_residuals(
            3, alpha=0.5, divisor=1, output_stride=16, size=input_size, norm=norm
        )
        self.features = nn.Sequential(*modules)
        self.pixel = ConvNormAct(channels, 256, 1, size=self.map_size, norm=norm, activation=nn.ReLU)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.image = ConvNormAct(channels, 256, 1, size=(1, 1), norm=norm, activation=nn.ReLU)
        self.project = ConvNormAct(512, 256, 1, size=self.map_size, norm=norm, activation=nn.ReLU)
        self.classifier = nn.Conv2d(256, num_classes, 1)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map frames (N, 3, H, W) to logits (N, num_classes, H, W), H and W as in the specification."""
        x = self.features(x)
        image = _resize(self.image(self.pool(x)), self.map_size)
        logits = self.classifier(self.project(torch.cat([image, self.pixel(x)], 1)))
        return _resize(logits, self.spec.input_size)


def _resize(x: Tensor, size: Size) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)
