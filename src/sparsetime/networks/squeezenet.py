"""SqueezeNet 1.0 (Iandola et al. 2016, arXiv 1602.07360)."""

import torch
from torch import Tensor, nn

from sparsetime.networks.blocks import Size, initialise
from sparsetime.networks.spec import Network, NetworkSpec

# The published Caffe names of a fire module's convolutions.
CAFFE_NAMES = (("/conv1x1_1.", ".squeeze."), ("/conv1x1_2.", ".expand1x1."), ("/conv3x3_2.", ".expand3x3."))


class Fire(nn.Module):
    """Squeeze with a 1x1 convolution, expand with a 1x1 and a 3x3 one side by side [paper, Fig. 1]."""

    def __init__(self, in_channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, squeeze, 1)
        self.squeeze_relu = nn.ReLU()
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand1x1_relu = nn.ReLU()
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)
        self.expand3x3_relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, 2 expand, H, W)."""
        x = self.squeeze_relu(self.squeeze(x))
        return torch.cat([self.expand1x1_relu(self.expand1x1(x)), self.expand3x3_relu(self.expand3x3(x))], 1)


class SqueezeNet(Network):
    """A 7x7 convolution, eight fire modules, a 1x1 convolution to classes and a global mean [paper, Table 1].

    Input and paddings are those of the published Caffe model: BGR minus a mean, max pools of 3x3 and stride 2 that
    round up, one pixel of padding at the last convolution. There is no batch norm. The dropout is left out: it would
    draw anew on every frame.

    Args:
        name: for the specification.
        num_classes: channels of the last convolution.
        input_size: (H, W).
    """

    classifier_name = "classifier"

    def __init__(self, name: str, *, num_classes: int, input_size: Size) -> None:
        super().__init__()
        self.spec = NetworkSpec(name, input_size, (104.0, 117.0, 123.0), (1.0,) * 3, "bgr", num_classes, "none")
        self.conv1 = nn.Conv2d(3, 96, 7, 2)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.fire2 = Fire(96, 16, 64)
        self.fire3 = Fire(128, 16, 64)
        self.fire4 = Fire(128, 32, 128)
        self.pool4 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.fire5 = Fire(256, 32, 128)
        self.fire6 = Fire(256, 48, 192)
        self.fire7 = Fire(384, 48, 192)
        self.fire8 = Fire(384, 64, 256)
        self.pool8 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.fire9 = Fire(512, 64, 256)
        self.classifier = nn.Conv2d(512, num_classes, 1, padding=1)
        self.classifier_relu = nn.ReLU()
        self.pool_final = nn.AdaptiveAvgPool2d(1)
        initialise(self)

    @classmethod
    def rename(cls, key: str) -> str:
        """From the names of the published Caffe model."""
        for old, new in CAFFE_NAMES:
            key = key.replace(old, new)
        return key.replace("conv_final.", "classifier.")

    def forward(self, x: Tensor) -> Tensor:
        """Map frames (N, 3, H, W) to logits (N, num_classes), not negative because of the last ReLU."""
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool4(self.fire4(self.fire3(self.fire2(x))))
        x = self.pool8(self.fire8(self.fire7(self.fire6(self.fire5(x)))))
        x = self.classifier_relu(self.classifier(self.fire9(x)))
        return torch.flatten(self.pool_final(x), 1)
