"""What a network expects at its input and gives at its output."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

Norm = Literal["batch", "folded", "none"]

# Mean and standard deviation of ImageNet's RGB values, as torchvision states them, in 0..255 units.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class NetworkSpec:
    """Input and output of a network, as plain data.

    A frame x of RGB values 0..255 is brought to the network's input by `normalise`:
    z[c] = (x[c] - mean[c]) / std[c], channels in the order that `color` says.

    Attributes:
        name: the registry's name.
        input_size: (H, W) in pixels.
        mean: per channel, in 0..255 units, in the order of `color`.
        std: per channel, in 0..255 units, in the order of `color`.
        color: channel order of the network's input.
        num_classes: size of the classifier's output; 0 where the network ends in its features.
        norm: "batch" (convolutions followed by batch norm), "folded" (batch norm already folded into weights and bias)
            or "none" (the network never had one). `create(norm=spec.norm)` makes the same parameters again.
    """

    name: str
    input_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    color: Literal["rgb", "bgr"]
    num_classes: int
    norm: Norm = "batch"

    def normalise(self, rgb: Tensor) -> Tensor:
        """Bring RGB frames to what the network takes: z = (x - mean) / std, in the network's channel order.

        Args:
            rgb: (..., 3, H, W), values 0..255, uint8 or floating point.

        Returns:
            Same shape; float32 for uint8, else the dtype that came.

        Raises:
            ValueError: the third dimension from the end is not 3.
        """
        if rgb.dim() < 3 or rgb.shape[-3] != 3:
            raise ValueError(f"{self.name}: expected RGB frames (..., 3, H, W), got {tuple(rgb.shape)}")
        x = rgb if rgb.is_floating_point() else rgb.float()
        if self.color == "bgr":
            x = x.flip(-3)
        mean, std = (x.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (x - mean) / std


class Network(nn.Module):
    """Base of the built-in networks: a module that knows its specification.

    Attributes:
        spec: what goes in and comes out.
        classifier_name: prefix of the parameters whose shape follows num_classes. They alone may be fresh when weights
            are loaded.
    """

    spec: NetworkSpec
    classifier_name: ClassVar[str]

    @classmethod
    def rename(cls, key: str) -> str:
        """Map a published checkpoint's parameter name to the one used here; the same name unless a network says so."""
        return key
