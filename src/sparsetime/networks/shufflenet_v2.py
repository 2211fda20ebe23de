"""ShuffleNetV2 (Ma et al. 2018, arXiv 1807.11164) in the narrow form that FastestDet stands on."""

import torch
from torch import Tensor, nn

from sparsetime.networks.blocks import Size, initialise, linear_classifier
from sparsetime.networks.spec import Network, NetworkSpec

# Output channels of the stages 2, 3 and 4; each halves the resolution.
STAGE_CHANNELS = (48, 96, 192)


class ShuffleUnit(nn.Module):
    """The basic unit: half of the channels pass, half are transformed [paper, Fig. 3 c].

    The paper shuffles channels after concatenation. Here, as in the published weights, the next unit takes the even
    channels as the ones that pass and the odd ones as those to transform: the same network, a shuffle less.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch_main = _main_branch(channels // 2, channels // 2, channels // 2, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to the same shape."""
        return torch.cat([x[:, 0::2], self.branch_main(x[:, 1::2])], 1)


class DownsampleUnit(nn.Module):
    """The unit for spatial down sampling: both branches see all channels and have stride 2 [paper, Fig. 3 d]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.branch_main = _main_branch(in_channels, out_channels // 2, out_channels - in_channels, stride=2)
        self.branch_proj = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 3, 2, padding=1, groups=in_channels, bias=False),
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, in_channels, 1, bias=False),
            nn.BatchNorm2d(in_channels),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, ceil(H / 2), ceil(W / 2))."""
        return torch.cat([self.branch_proj(x), self.branch_main(x)], 1)


def _main_branch(in_channels: int, hidden: int, out_channels: int, stride: int) -> nn.Sequential:
    """1x1 convolution, 3x3 depthwise convolution, 1x1 convolution; no ReLU after the depthwise one."""
    return nn.Sequential(
        nn.Conv2d(in_channels, hidden, 1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(),
        nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False),
        nn.BatchNorm2d(hidden),
        nn.Conv2d(hidden, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def _stage(in_channels: int, channels: int, units: int) -> nn.Sequential:
    return nn.Sequential(DownsampleUnit(in_channels, channels), *(ShuffleUnit(channels) for _ in range(units - 1)))


class ShuffleBackbone(nn.Module):
    """A 3x3 convolution of stride 2, a max pool and three stages of shuffle units, under the published names."""

    def __init__(self) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(nn.Conv2d(3, 24, 3, 2, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.stage2 = _stage(24, STAGE_CHANNELS[0], units=4)
        self.stage3 = _stage(STAGE_CHANNELS[0], STAGE_CHANNELS[1], units=8)
        self.stage4 = _stage(STAGE_CHANNELS[1], STAGE_CHANNELS[2], units=4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map frames (N, 3, H, W) to the maps of the three stages, at 1/8, 1/16 and 1/32 of H and W."""
        eighth = self.stage2(self.maxpool(self.first_conv(x)))
        sixteenth = self.stage3(eighth)
        return eighth, sixteenth, self.stage4(sixteenth)


class ShuffleNetV2(Network):
    """The backbone with a global mean and a linear classifier.

    The published backbone weights come without a classifier and do not state their training set or input; BGR / 255 is
    what FastestDet gives the same backbone.

    Args:
        name: for the specification.
        num_classes: outputs of the classifier; 0 gives the 192 features.
        input_size: (H, W).
    """

    classifier_name = "classifier"

    def __init__(self, name: str, *, num_classes: int, input_size: Size) -> None:
        super().__init__()
        self.spec = NetworkSpec(name, input_size, (0.0,) * 3, (255.0,) * 3, "bgr", num_classes)
        self.backbone = ShuffleBackbone()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = linear_classifier(STAGE_CHANNELS[-1], num_classes)
        initialise(self)

    @classmethod
    def rename(cls, key: str) -> str:
        """The published backbone's names have no prefix."""
        return key if key.startswith(("backbone.", "classifier.")) else f"backbone.{key}"

    def forward(self, x: Tensor) -> Tensor:
        """Map frames (N, 3, H, W) to logits (N, num_classes)."""
        _, _, features = self.backbone(x)
        return self.classifier(torch.flatten(self.pool(features), 1))  # type: ignore[no-any-return]
