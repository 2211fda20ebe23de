"""Fan-out against brute force: the gradient of a sum through weights of one counts the multiplications."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from sparsetime.fanout import LinearOp, dense_macs, fanout, position_fanout
from sparsetime.watch import LinearCall, WatchLinear

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def described(function: Any, x: Tensor, weight: Tensor, **options: Any) -> LinearCall:
    """The operation as the library sees it when the function is called."""
    calls: list[LinearCall] = []
    with WatchLinear(calls.append):
        function(x, weight, None, **options)
    (call,) = calls
    return call


def counted(function: Any, x: Tensor, weight: Tensor, **options: Any) -> Tensor:
    """How often each input element is multiplied with a weight that is not zero: d sum(f(x, [w != 0])) / dx."""
    x = x.double().clone().requires_grad_()
    function(x, (weight != 0).double(), None, **options).sum().backward()
    assert x.grad is not None
    return x.grad[0]


def same(found: np.ndarray, expected: Tensor) -> bool:
    return torch.equal(torch.from_numpy(found).double(), expected)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Any, Tensor, Tensor, dict[str, Any]]:
    dims = draw(st.sampled_from([1, 2, 2, 3]))
    transposed = draw(st.booleans())
    groups = draw(st.integers(1, 3))
    per_in, per_out = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    small = st.integers(1, 3)
    each = [
        {"kernel": draw(small), "stride": draw(small), "dilation": draw(small), "padding": draw(st.integers(0, 2))}
        for _ in range(dims)
    ]
    sizes = []
    for d in each:
        reach = (d["kernel"] - 1) * d["dilation"] + 1
        least = 1 if transposed else max(1, reach - 2 * d["padding"])
        size = draw(st.integers(least, least + 5))
        if transposed and (size - 1) * d["stride"] + reach - 2 * d["padding"] < 1:
            d["padding"] = 0
        sizes.append(size)
    options: dict[str, Any] = {name: tuple(d[name] for d in each) for name in ("stride", "dilation", "padding")}
    options["groups"] = groups
    if transposed:
        options["output_padding"] = tuple(draw(st.integers(0, max(d["stride"], d["dilation"]) - 1)) for d in each)
        weight_shape = (groups * per_in, per_out)
    else:
        weight_shape = (groups * per_out, per_in)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 100)))
    weight = torch.rand(*weight_shape, *(d["kernel"] for d in each), generator=generator)
    if draw(st.booleans()):
        weight = weight * (torch.rand(weight.shape, generator=generator) < 0.6)
    x = torch.ones(1, groups * per_in, *sizes)
    return (TRANSPOSED if transposed else CONV)[dims], x, weight, options


@settings(max_examples=80, deadline=None)
@given(convolutions())
def test_fanout_equals_brute_force(case: tuple[Any, Tensor, Tensor, dict[str, Any]]) -> None:
    function, x, weight, options = case
    op = described(function, x, weight, **options).op
    assert op.channels == x.shape[1]
    everything = torch.ones_like(weight)
    frame = tuple(x.shape[1:])
    expected = counted(function, x, everything, **options)
    assert same(fanout(op, frame), expected)
    assert same(fanout(op, frame, (weight != 0).numpy()), counted(function, x, weight, **options))
    assert same(position_fanout(op, frame), expected[0])
    assert dense_macs(op, frame) == expected.sum()


def test_a_convolution_by_hand() -> None:
    # Width 4, kernel 3, padding 1, 5 outputs: the borders are met by two weights, the middle by three.
    op = LinearOp("conv", (5, 1, 1, 3), (1, 1), (0, 1), (1, 1), (1, 4), 1)
    assert fanout(op, (1, 1, 4)).tolist() == [[[10.0, 15.0, 15.0, 10.0]]]
    # Stride 2, no padding, width 6: outputs at 0 and 2; columns 2 is met twice, column 5 never.
    op = LinearOp("conv", (1, 1, 1, 3), (1, 2), (0, 0), (1, 1), (1, 2), 1)
    assert fanout(op, (1, 1, 6)).tolist() == [[[1.0, 1.0, 2.0, 1.0, 1.0, 0.0]]]


def test_groups_divide_the_outputs() -> None:
    op = LinearOp("conv", (6, 2, 1, 1), (1, 1), (0, 0), (1, 1), (1, 1), 3)
    assert op.channels == 6
    assert fanout(op, (6, 1, 1)).flatten().tolist() == [2.0] * 6
    depthwise = LinearOp("conv", (6, 1, 3, 3), (1, 1), (1, 1), (1, 1), (1, 1), 6)
    assert fanout(depthwise, (6, 1, 1)).flatten().tolist() == [1.0] * 6  # one pixel meets the kernel's middle alone


def test_zero_weights_of_groups_count_for_their_own_channels() -> None:
    weight = torch.zeros(4, 2, 1, 1)
    weight[0, 0] = weight[1, 0] = weight[2, 1] = 1  # group 0: channel 0 to two outputs; group 1: channel 3 to one
    op = LinearOp("conv", (4, 2, 1, 1), (1, 1), (0, 0), (1, 1), (1, 1), 2)
    assert fanout(op, (4, 1, 1), weight.numpy() != 0).flatten().tolist() == [2.0, 0.0, 0.0, 1.0]


def test_a_linear_layer() -> None:
    op = LinearOp("linear", (7, 3))
    assert fanout(op, (3,)).tolist() == [7.0, 7.0, 7.0]
    assert fanout(op, (10, 3)).tolist() == [7.0, 7.0, 7.0]
    assert position_fanout(op, (3,)) == 7
    assert dense_macs(op, (10, 3)) == 210
    weight = torch.ones(7, 3)
    weight[:5, 1] = 0
    assert fanout(op, (3,), weight.numpy() != 0).tolist() == [7.0, 2.0, 7.0]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (4, 1), (4, 3), (5, 2), (1, 1)])
def test_padding_by_name(kernel: int, dilation: int) -> None:
    x, weight = torch.ones(1, 2, 6, 7), torch.ones(3, 2, kernel, 2)
    for padding in ("same", "valid"):
        if padding == "valid" and (kernel - 1) * dilation >= 6:
            continue
        op = described(F.conv2d, x, weight, padding=padding, dilation=(dilation, 1)).op
        expected = counted(F.conv2d, x, weight, padding=padding, dilation=(dilation, 1))
        assert same(fanout(op, (2, 6, 7)), expected)


def test_the_sum_is_the_number_of_multiplications() -> None:
    """Padding's zeros are not counted: 3x3 on 4x4 with padding 1 makes 100 products per channel pair, not 144."""
    x, weight = torch.ones(1, 2, 4, 4), torch.ones(5, 2, 3, 3)
    op = described(F.conv2d, x, weight, padding=1).op
    products = 0
    for row in range(4):
        for column in range(4):
            products += sum(0 <= row + i < 4 and 0 <= column + j < 4 for i in (-1, 0, 1) for j in (-1, 0, 1))
    assert products == 100
    assert fanout(op, (2, 4, 4)).sum().item() == 100 * 2 * 5


def test_output_padding_of_a_transposed_convolution() -> None:
    x, weight = torch.ones(1, 1, 3), torch.ones(1, 2, 2)
    for output_padding in (0, 1):
        options = {"stride": 3, "output_padding": output_padding, "padding": 1}
        op = described(F.conv_transpose1d, x, weight, **options).op
        assert same(fanout(op, (1, 3)), counted(F.conv_transpose1d, x, weight, **options))
