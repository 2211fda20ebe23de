"""FastestDet: an anchor-free one-map object detector on ShuffleNetV2, and the decoding of its boxes."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparsetime.networks.blocks import Size, initialise
from sparsetime.networks.shufflenet_v2 import STAGE_CHANNELS, ShuffleBackbone
from sparsetime.networks.spec import Network, NetworkSpec

CHANNELS = 96

# Module names of the published checkpoint and the ones used here.
PUBLISHED_NAMES = (
    ("SPP.Conv1x1.conv1x1.", "pyramid.reduce."),
    ("SPP.S1.", "pyramid.branch1."),
    ("SPP.S2.", "pyramid.branch2."),
    ("SPP.S3.", "pyramid.branch3."),
    ("SPP.output.", "pyramid.merge."),
    ("detect_head.conv1x1.conv1x1.", "reduce."),
    ("detect_head.obj_layers.conv5x5.", "objectness."),
    ("detect_head.reg_layers.conv5x5.", "box."),
    ("detect_head.cls_layers.conv5x5.3.", "classes.0."),
    ("detect_head.cls_layers.conv5x5.4.", "classes.1."),
    ("detect_head.cls_layers.conv5x5.", "class_features."),
)


def _pointwise(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)]


def _depthwise(channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, channels, 5, padding=2, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    ]


class Pyramid(nn.Module):
    """Three parallel chains of one, two and three 5x5 depthwise convolutions, merged and added to their input."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Sequential(*_pointwise(in_channels, channels), nn.ReLU())
        self.branch1 = nn.Sequential(*_depthwise(channels))
        self.branch2 = nn.Sequential(*_depthwise(channels), *_depthwise(channels))
        self.branch3 = nn.Sequential(*_depthwise(channels), *_depthwise(channels), *_depthwise(channels))
        self.merge = nn.Sequential(*_pointwise(3 * channels, channels))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, H, W)."""
        x = self.reduce(x)
        branches = torch.cat([self.branch1(x), self.branch2(x), self.branch3(x)], 1)
        return self.relu(x + self.merge(branches))  # type: ignore[no-any-return]


class FastestDet(Network):
    """Backbone maps brought to one size (1/16 of the input), a pyramid of depthwise convolutions, and three heads.

    The output is raw: the objectness before its sigmoid, four box numbers before tanh and sigmoid, and the class logits
    before their softmax. `decode_boxes` does the rest.

    Args:
        name: for the specification.
        num_classes: of objects.
        input_size: (H, W), multiples of 32.

    Raises:
        ValueError: input_size is not a multiple of 32, so the maps would not fit each other.
    """

    classifier_name = "classes"

    def __init__(self, name: str, *, num_classes: int, input_size: Size) -> None:
        super().__init__()
        if input_size[0] % 32 or input_size[1] % 32:
            raise ValueError(f"{name}: expected an input_size of multiples of 32, got {input_size}")
        self.spec = NetworkSpec(name, input_size, (0.0,) * 3, (255.0,) * 3, "bgr", num_classes)
        self.backbone = ShuffleBackbone()
        self.downsample = nn.AvgPool2d(3, 2, padding=1)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.pyramid = Pyramid(sum(STAGE_CHANNELS), CHANNELS)
        self.reduce = nn.Sequential(*_pointwise(CHANNELS, CHANNELS), nn.ReLU())
        self.objectness = nn.Sequential(*_depthwise(CHANNELS), *_pointwise(CHANNELS, 1))
        self.box = nn.Sequential(*_depthwise(CHANNELS), *_pointwise(CHANNELS, 4))
        self.class_features = nn.Sequential(*_depthwise(CHANNELS))
        self.classes = nn.Sequential(*_pointwise(CHANNELS, num_classes))
        initialise(self)

    @classmethod
    def rename(cls, key: str) -> str:
        """From the names of the published checkpoint."""
        for old, new in PUBLISHED_NAMES:
            if key.startswith(old):
                return new + key.removeprefix(old)
        return key

    def forward(self, x: Tensor) -> Tensor:
        """Map frames (N, 3, H, W) to (N, 1 + 4 + num_classes, H / 16, W / 16): objectness, box, classes."""
        eighth, sixteenth, thirtysecond = self.backbone(x)
        x = torch.cat([self.downsample(eighth), sixteenth, self.upsample(thirtysecond)], 1)
        x = self.reduce(self.pyramid(x))
        return torch.cat([self.objectness(x), self.box(x), self.classes(self.class_features(x))], 1)


class Boxes(NamedTuple):
    """Objects found in one frame, the surest first.

    corners: (K, 4) left, top, right, bottom as shares of the frame's width and height.
    score: (K,), 0..1.
    label: (K,), class numbers.
    """

    corners: Tensor
    score: Tensor
    label: Tensor


def decode_boxes(output: Tensor, *, threshold: float = 0.5, overlap: float = 0.45) -> list[Boxes]:
    """Boxes from FastestDet's raw output, duplicates of a class removed.

    For the cell (i, j) of an h x w map with raw output (o, a, b, c, d, k):
    score = sigmoid(o)^0.6 max(softmax(k))^0.4;   centre = ((j + tanh a) / w, (i + tanh b) / h);
    width, height = sigmoid(c), sigmoid(d)   [FastestDet's decoding]

    Args:
        output: (N, 5 + num_classes, h, w).
        threshold: least score.
        overlap: a box whose intersection over union with a surer one of its class is larger is dropped.

    Returns:
        One `Boxes` per frame.

    Raises:
        ValueError: the output has not four dimensions or fewer than 6 channels.
    """
    if output.dim() != 4 or output.shape[1] < 6:
        raise ValueError(f"decode_boxes: expected (N, 5 + num_classes, h, w), got {tuple(output.shape)}")
    h, w = output.shape[2:]
    rows = torch.arange(h, dtype=output.dtype, device=output.device).view(h, 1)
    columns = torch.arange(w, dtype=output.dtype, device=output.device)
    probability, label = output[:, 5:].softmax(1).max(1)  # (N, h, w)
    score = output[:, 0].sigmoid() ** 0.6 * probability**0.4
    x = (columns + output[:, 1].tanh()) / w
    y = (rows + output[:, 2].tanh()) / h
    half_width, half_height = output[:, 3].sigmoid() / 2, output[:, 4].sigmoid() / 2
    corners = torch.stack([x - half_width, y - half_height, x + half_width, y + half_height], -1)
    found = []
    for n in range(len(output)):
        sure = score[n] >= threshold
        found.append(_without_duplicates(Boxes(corners[n][sure], score[n][sure], label[n][sure]), overlap))
    return found


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every box of a with every box of b.

    Args:
        a: (K, 4) corners left, top, right, bottom.
        b: (L, 4), likewise.

    Returns:
        (K, L); 0 where both boxes are empty.
    """
    top_left = torch.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(-1)
    area_a, area_b = ((x[:, 2:] - x[:, :2]).clamp(min=0).prod(-1) for x in (a, b))
    union = area_a[:, None] + area_b[None] - intersection
    return intersection / union.clamp(min=torch.finfo(a.dtype).tiny)


def _without_duplicates(boxes: Boxes, overlap: float) -> Boxes:
    order = boxes.score.argsort(descending=True, stable=True)
    boxes = Boxes(boxes.corners[order], boxes.score[order], boxes.label[order])
    same = boxes.label[:, None] == boxes.label[None]
    conflict = (box_iou(boxes.corners, boxes.corners) > overlap) & same
    kept: list[int] = []
    for index in range(len(order)):
        if not conflict[index, kept].any():
            kept.append(index)
    return Boxes(boxes.corners[kept], boxes.score[kept], boxes.label[kept])
