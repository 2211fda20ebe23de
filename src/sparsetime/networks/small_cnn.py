"""A small convolutional network for small frames."""

import torch
from torch import Tensor, nn

from sparsetime.networks.blocks import ConvNormAct, Size, initialise, linear_classifier
from sparsetime.networks.spec import Network, NetworkSpec

# Output channels and stride of the four convolutions.
LAYERS = ((16, 2), (32, 2), (64, 2), (64, 1))


class SmallCNN(Network):
    """Four 3x3 convolutions with batch norm and ReLU, a global mean and a linear classifier: a network for CPU minutes.

    Args:
        name: for the specification.
        num_classes: outputs of the classifier; 0 gives the 64 features.
        input_size: (H, W).
    """

    classifier_name = "classifier"

    def __init__(self, name: str, *, num_classes: int, input_size: Size) -> None:
        super().__init__()
        self.spec = NetworkSpec(name, input_size, (128.0,) * 3, (64.0,) * 3, "rgb", num_classes)
        channels, size = 3, input_size
        features: list[nn.Module] = []
        for width, stride in LAYERS:
            block = ConvNormAct(channels, width, 3, stride=stride, size=size, norm="batch", activation=nn.ReLU)
            features.append(block)
            channels, size = width, block.out_size
        self.features = nn.Sequential(*features)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = linear_classifier(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map frames (N, 3, H, W) to logits (N, num_classes)."""
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))  # type: ignore[no-any-return]
