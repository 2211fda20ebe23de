import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsetime.networks.blocks import ConvNormAct, initialise, same_padding


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation", "expected"),
    [
        # 224 -> 112 outputs that need 111 * 2 + 3 = 225 inputs: one zero, at the end.
        (224, 3, 2, 1, (0, 1)),
        # 513 -> 257 outputs, 256 * 2 + 3 = 515: one on each side.
        (513, 3, 2, 1, (1, 1)),
        (7, 3, 1, 1, (1, 1)),
        (33, 3, 1, 2, (2, 2)),
        (7, 1, 2, 1, (0, 0)),
        # 5 -> 3 outputs, 2 * 2 + 2 = 6: one zero, at the end; 4 -> 2 outputs of disjoint pairs: none.
        (5, 2, 2, 1, (0, 1)),
        (4, 2, 2, 1, (0, 0)),
        # The stride skips the last input: the total would be negative.
        (10, 1, 4, 1, (0, 0)),
    ],
)
def test_same_padding_by_hand(size: int, kernel: int, stride: int, dilation: int, expected: tuple[int, int]) -> None:
    assert same_padding(size, kernel, stride, dilation) == expected


@pytest.mark.parametrize("size", [(8, 8), (9, 9), (8, 9), (7, 12)])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_folded_block_pads_like_tensorflow(size: tuple[int, int], stride: int, dilation: int) -> None:
    torch.manual_seed(1)
    block = ConvNormAct(2, 3, 3, size=size, norm="folded", stride=stride, dilation=dilation)
    x = torch.randn(1, 2, *size)
    (top, bottom), (left, right) = (same_padding(n, 3, stride, dilation) for n in size)
    padded = torch.zeros(1, 2, size[0] + top + bottom, size[1] + left + right)
    padded[:, :, top : top + size[0], left : left + size[1]] = x
    expected = F.conv2d(padded, block[0].weight, block[0].bias, stride, dilation=dilation).clamp(0, 6)
    assert torch.equal(block(x), expected)
    assert block.out_size == tuple(expected.shape[2:])


@pytest.mark.parametrize("size", [(8, 8), (9, 9), (7, 12)])
@pytest.mark.parametrize("stride", [1, 2])
def test_batch_block_pads_like_pytorch(size: tuple[int, int], stride: int) -> None:
    block = ConvNormAct(2, 3, 3, size=size, norm="batch", stride=stride).eval()
    x = torch.randn(1, 2, *size)
    expected = F.relu6(block[1](F.conv2d(x, block[0].weight, None, stride, padding=1)))
    assert torch.equal(block(x), expected)
    assert block.out_size == tuple(expected.shape[2:])


def test_block_names_do_not_depend_on_size_or_norm() -> None:
    keys = [set(ConvNormAct(2, 3, 3, size=(n, n), norm="folded", stride=2).state_dict()) for n in (8, 9)]
    assert keys[0] == keys[1] == {"0.weight", "0.bias"}
    batch = ConvNormAct(2, 3, 3, size=(8, 8), norm="batch")
    assert isinstance(batch.get_submodule("2"), nn.ReLU6)
    assert isinstance(ConvNormAct(2, 3, 3, size=(8, 8), norm="folded").get_submodule("2"), nn.ReLU6)
    assert "0.bias" not in batch.state_dict()


def test_initialise_has_the_variance_of_the_fan_out() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(64, 128, 3), nn.Conv2d(512, 512, 3, groups=512), nn.Linear(200, 300))
    initialise(model)
    assert model[0].weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.02)
    # Depthwise: each input reaches nine outputs, whatever the number of channels.
    assert model[1].weight.std().item() == pytest.approx(math.sqrt(2 / 9), rel=0.05)
    assert model[2].weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not any(layer.bias.any() for layer in model)
