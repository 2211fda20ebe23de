"""Augmentation that is the same for all frames of a clip, so that what stands still stays still."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augment:
    """Random resized crop, mirror, brightness, contrast and small rotation; one draw a clip.

    Attributes:
        scale: share of the picture's area that the crop keeps, drawn uniformly.
        ratio: width to height of the crop relative to the picture's own, drawn uniformly in the logarithm.
        flip: probability of a left-right mirror. Set 0 where left and right are part of the label.
        brightness: largest shift, as a share of the full range.
        contrast: largest relative change of the distance from the clip's mean.
        rotation: largest turn in degrees; what comes in from outside is the mirrored border.
    """

    scale: tuple[float, float] = (0.7, 1.0)
    ratio: tuple[float, float] = (0.85, 1.18)
    flip: float = 0.5
    brightness: float = 0.2
    contrast: float = 0.2
    rotation: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale: expected 0 < low <= high <= 1, got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio: expected 0 < low <= high, got {self.ratio}")

    def __call__(self, clip: Tensor, size: tuple[int, int], rng: np.random.Generator) -> Tensor:
        """Draw once and treat all frames alike.

        Args:
            clip: uint8 (T, 3, H, W).
            size: (H, W) of the result.
            rng: where the draws come from; equal states give equal results.

        Returns:
            uint8 (T, 3, *size), a new tensor.
        """
        if clip.dtype != torch.uint8 or clip.ndim != 4:
            raise ValueError(f"clip: expected uint8 (T, 3, H, W), got {clip.dtype} {tuple(clip.shape)}")
        top, left, height, width = self._crop(clip.shape[-2], clip.shape[-1], rng)
        out = clip[..., top : top + height, left : left + width]
        if (height, width) != size:
            out = F.interpolate(out, size=size, mode="bilinear", antialias=True)
        if rng.random() < self.flip:
            out = out.flip(-1)
        if self.rotation:
            out = _rotate(out, rng.uniform(-self.rotation, self.rotation))
        gain = 1 + rng.uniform(-self.contrast, self.contrast)
        shift = 255 * rng.uniform(-self.brightness, self.brightness)
        mean = out.float().mean()
        # One table for all pixels: equal pixels stay equal.
        levels = ((torch.arange(256.0) - mean) * gain + mean + shift).round().clamp(0, 255).to(torch.uint8)
        return levels[out.int()]

    def _crop(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        area = rng.uniform(*self.scale)
        ratio = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
        crop_height = max(1, round(height * min(1.0, math.sqrt(area / ratio))))
        crop_width = max(1, round(width * min(1.0, math.sqrt(area * ratio))))
        top = int(rng.integers(height - crop_height + 1))
        left = int(rng.integers(width - crop_width + 1))
        return top, left, crop_height, crop_width


def _rotate(clip: Tensor, degrees: float) -> Tensor:
    """Turn all frames about the centre, counterclockwise; (T, 3, H, W) uint8 in and out."""
    frames, _, height, width = clip.shape
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # affine_grid's axes run from -1 to 1 whatever the size: the aspect ratio keeps the turn a turn.
    theta = torch.tensor([[c, -s * height / width, 0.0], [s * width / height, c, 0.0]])
    grid = F.affine_grid(theta.expand(frames, 2, 3), list(clip.shape), align_corners=False)
    turned = F.grid_sample(clip.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return turned.round().clamp(0, 255).to(torch.uint8)
