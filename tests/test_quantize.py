"""The step-size quantizer: codes, values and gradients against numbers worked out by hand."""

import math

import pytest
import torch

from sparsetime.quantize import (
    FLOOR,
    LSQ_NEG,
    LSQ_POS,
    SilentError,
    check_step,
    quantize,
    step_from_data,
    step_shape,
)

RULES = ("dal", "lsq", "fixed")


def param(*values: float) -> torch.Tensor:
    tensor = torch.tensor(values if len(values) > 1 else values[0], dtype=torch.float64)
    return tensor.requires_grad_()


@pytest.mark.parametrize("rule", RULES)
def test_codes_and_values(rule: str) -> None:
    a = torch.tensor([0.0, 0.24, 0.26, 0.5, 1.3, -0.7], dtype=torch.float64)
    value, code = quantize(a, param(0.5), rule)
    assert code.tolist() == [0.0, 0.0, 1.0, 1.0, 3.0, -1.0]
    assert value.tolist() == [0.0, 0.0, 0.5, 0.5, 1.5, -0.5]


@pytest.mark.parametrize("rule", RULES)
def test_halves_go_to_the_even_code(rule: str) -> None:
    a = torch.tensor([0.25, 0.75, 1.25, -0.25, -0.75])
    assert quantize(a, torch.tensor(0.5), rule)[1].tolist() == [0.0, 2.0, 2.0, 0.0, -2.0]


@pytest.mark.parametrize("rule", RULES)
def test_only_the_magnitude_of_a_step_counts(rule: str) -> None:
    a = torch.linspace(-3, 3, 50)
    for one, two in zip(quantize(a, torch.tensor(-0.3), rule), quantize(a, torch.tensor(0.3), rule), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("rule", RULES)
def test_dtype_of_the_activation_stays(rule: str) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        value, code = quantize(torch.ones(3, dtype=dtype), torch.tensor(0.5), rule)
        assert value.dtype == code.dtype == dtype


@pytest.mark.parametrize("rule", ["dal", "fixed"])
def test_the_gradient_of_the_input_is_the_identity(rule: str) -> None:
    a = param(0.1, 5.0, -200.0)
    value, _ = quantize(a, param(0.5), rule)
    value.backward(torch.tensor([2.0, -3.0, 7.0], dtype=torch.float64))
    assert a.grad.tolist() == [2.0, -3.0, 7.0]


def test_dal_gives_the_step_minus_the_code() -> None:
    # codes 1, 3, -2; gradients 1, 10, 100: d/dstep = -(1 + 30 - 200)
    a, step = param(0.6, 1.4, -1.1), param(0.5)
    quantize(a, step, "dal")[0].backward(torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64))
    assert step.grad.item() == 169.0


def test_dal_with_a_negative_step_moves_its_magnitude_the_same_way() -> None:
    a, step = param(0.6, 1.4, -1.1), param(-0.5)
    quantize(a, step, "dal")[0].backward(torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64))
    assert step.grad.item() == -169.0  # descent takes |step| where it took it above


def test_dal_gradient_of_the_delta_penalty_is_minus_the_mean_change_of_codes() -> None:
    torch.manual_seed(0)
    a = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64)
    step = param(0.3)
    value, code = quantize(a, step, "dal")
    torch.diff(value, dim=1).abs().mean().backward()
    expected = -torch.diff(code, dim=1).abs().mean()
    assert expected.item() < -0.5
    assert step.grad.item() == pytest.approx(expected.item(), rel=1e-12)


def test_the_penalty_coarsens_with_dal_alone() -> None:
    """The sign is the paper's point: with lsq, a penalty on values pulls at the step hardly at all or the other way."""
    torch.manual_seed(0)
    a = torch.randn(1, 64, dtype=torch.float64)
    a = torch.stack([a, a + torch.randn_like(a)], 1)
    gradient = {}
    for rule in ("dal", "lsq"):
        step = param(0.3)
        torch.diff(quantize(a, step, rule)[0], dim=1).abs().mean().backward()
        gradient[rule] = step.grad.item()
    assert gradient["dal"] < -1
    assert abs(gradient["lsq"]) < 0.05


def test_lsq_step_gradient_inside_and_outside_of_the_range() -> None:
    # a/q = 0.6 (code 1), 300 (clipped to 255), -150.2 (clipped to -128), 2.4 (code 2)
    a, step = param(0.3, 150.0, -75.1, 1.2), param(0.5)
    value, code = quantize(a, step, "lsq")
    assert code.tolist() == [1.0, LSQ_POS, LSQ_NEG, 2.0]
    assert value.tolist() == [0.5, 127.5, -64.0, 1.0]
    value.backward(torch.tensor([1.0, 10.0, 100.0, 1000.0], dtype=torch.float64))
    assert a.grad.tolist() == pytest.approx([1.0, 0.0, 0.0, 1000.0])
    scale = 1 / math.sqrt(4 * 255)
    expected = ((1 - 0.6) * 1 + 255 * 10 - 128 * 100 + (2 - 2.4) * 1000) * scale
    assert step.grad.item() == pytest.approx(expected, rel=1e-12)


def test_lsq_scale_counts_the_elements_that_share_a_step() -> None:
    a = torch.tensor([[0.3, 0.7], [0.3, 0.7], [0.3, 0.7]], dtype=torch.float64)
    step = param(0.5, 1.0)
    quantize(a, step, "lsq")[0].sum().backward()
    scale = 1 / math.sqrt(3 * 255)
    assert step.grad.tolist() == pytest.approx([3 * (1 - 0.6) * scale, 3 * (1 - 0.7) * scale])


def test_lsq_codes_carry_a_gradient_that_coarsens() -> None:
    a, step = param(0.3, 1.2), param(0.5)
    quantize(a, step, "lsq")[1].backward(torch.tensor([-1.0, 1.0], dtype=torch.float64))
    # d code / d a = 1/q; d code / d q = -a/q^2, scaled
    assert a.grad.tolist() == [-2.0, 2.0]
    assert step.grad.item() == pytest.approx((1.2 - 4.8) / math.sqrt(2 * 255))


def test_fixed_steps_receive_nothing() -> None:
    step = param(0.5)
    value, code = quantize(param(0.3, 1.2), step, "fixed")
    (value.sum() + code.sum()).backward()
    assert step.grad is None


@pytest.mark.parametrize("rule", ["dal", "lsq"])
def test_steps_below_the_floor_count_as_the_floor_and_can_come_back(rule: str) -> None:
    step = param(1e-12)
    value, code = quantize(torch.tensor([3e-8], dtype=torch.float64), step, rule)
    assert code.item() == 3
    assert value.item() == pytest.approx(3 * FLOOR)
    value.sum().backward()
    if rule == "dal":
        assert step.grad.item() == -3
    else:
        assert step.grad is not None


@pytest.mark.parametrize("rule", ["dal", "lsq", "fixed"])
def test_float16_in_which_the_floor_is_zero_has_its_own(rule: str) -> None:
    least = torch.finfo(torch.float16).tiny  # 6.1e-5
    step = param(1e-9)
    value, code = quantize(torch.tensor([0.0, 1e-4], dtype=torch.float16), step, rule)
    assert code.tolist() == [0, 2]
    assert value.tolist() == [0, 2 * least]
    if rule != "fixed":
        value.sum().backward()
        assert math.isfinite(step.grad.item())


def test_unknown_rule() -> None:
    with pytest.raises(ValueError, match="dal, lsq, fixed, got 'round'"):
        quantize(torch.zeros(1), torch.ones(()), "round")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("granularity", "frame", "expected"),
    [
        ("layer", (3, 4, 5), ()),
        ("layer", (7,), ()),
        ("channel", (3, 4, 5), (3, 1, 1)),
        ("channel", (7,), (7,)),
        ("neuron", (3, 4, 5), (3, 4, 5)),
        ("neuron", (7,), (7,)),
    ],
)
def test_step_shape(granularity: str, frame: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert step_shape(granularity, frame) == expected
    torch.broadcast_shapes((2, *frame), expected)


def test_step_shape_refuses_other_words() -> None:
    with pytest.raises(ValueError, match="layer, channel, neuron, got 'pixel'"):
        step_shape("pixel", (3,))  # type: ignore[arg-type]


def test_each_channel_and_each_neuron_has_its_own_step_and_gradient() -> None:
    a = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]], dtype=torch.float64)  # (1, 2, 1, 2)
    channel = torch.tensor([[[1.0]], [[2.0]]], dtype=torch.float64, requires_grad=True)
    value, code = quantize(a, channel)
    assert code.flatten().tolist() == [1, 2, 2, 2]  # 3/2 = 1.5 goes to the even 2
    assert value.flatten().tolist() == [1, 2, 4, 4]
    value.sum().backward()
    assert channel.grad.flatten().tolist() == [-3, -4]
    neuron = torch.tensor([[[1.0, 4.0]], [[2.0, 8.0]]], dtype=torch.float64, requires_grad=True)
    value, code = quantize(a, neuron)
    assert code.flatten().tolist() == [1, 0, 2, 0]
    value.sum().backward()
    assert neuron.grad.flatten().tolist() == [-1, 0, -2, 0]


@pytest.mark.parametrize("bad", [0.0, -0.0, math.nan, math.inf, -math.inf])
def test_check_step_refuses(bad: float) -> None:
    with pytest.raises(ValueError, match=r"layer 3: .*finite and not zero, 1 of 2 are not.*calibrate\(model, clips\)"):
        check_step(torch.tensor([0.5, bad]), "layer 3")


def test_check_step_accepts_negative_and_tiny() -> None:
    check_step(torch.tensor([-0.5, 1e-30]))


def test_step_from_data_is_a_percentile_of_what_is_not_zero() -> None:
    a = torch.tensor([[0.0, 0.0, 1.0, -2.0], [3.0, 4.0, 0.0, -10.0]])
    # magnitudes that count: 1 2 3 4 10
    for percentile, expected in ((100, 10.0), (99, 10.0), (80, 4.0), (79, 4.0), (60, 3.0), (20, 1.0), (0.01, 1.0)):
        assert step_from_data(a, "layer", percentile, 1).item() == expected, percentile
    assert step_from_data(a, "layer", 80, 16).item() == 0.25
    assert step_from_data(a, "layer", 80, 16).shape == ()


def test_step_from_data_per_channel_with_a_silent_one() -> None:
    a = torch.zeros(2, 3, 1, 2)  # (M, C, H, W)
    a[0, 0, 0] = torch.tensor([1.0, 8.0])
    a[1, 0, 0] = torch.tensor([-2.0, 0.0])
    a[1, 2, 0] = torch.tensor([0.0, -16.0])
    steps = step_from_data(a, "channel", 100, 2)
    assert steps.shape == (3, 1, 1)
    assert steps.flatten().tolist() == [4.0, 8.0, 8.0]  # the silent channel takes the layer's 16 / 2
    assert step_from_data(a, "channel", 50, 2).flatten().tolist() == [1.0, 1.0, 8.0]  # layer: 1 2 8 16 -> 2


def test_step_from_data_per_neuron() -> None:
    a = torch.tensor([[[[1.0, 0.0], [3.0, 5.0]]], [[[2.0, 0.0], [-4.0, 0.0]]]])  # (2, 1, 2, 2)
    steps = step_from_data(a, "neuron", 100, 1)
    assert steps.shape == (1, 2, 2)
    assert steps.flatten().tolist() == [2.0, 5.0, 4.0, 5.0]


@pytest.mark.parametrize("granularity", ["channel", "neuron"])
def test_step_from_data_of_features(granularity: str) -> None:
    a = torch.tensor([[1.0, 0.0, 3.0], [4.0, 0.0, -5.0]])
    steps = step_from_data(a, granularity, 100, 1)
    assert steps.shape == (3,)
    assert steps.tolist() == [4.0, 5.0, 5.0]


def test_step_from_data_keeps_channels_and_places_apart() -> None:
    torch.manual_seed(0)
    a = torch.rand(5, 2, 3, 4) + 0.1
    channel = step_from_data(a, "channel", 100, 1)
    neuron = step_from_data(a, "neuron", 100, 1)
    assert torch.equal(channel.flatten(), a.amax((0, 2, 3)))
    assert torch.equal(neuron, a.amax(0))


def test_step_from_data_errors() -> None:
    with pytest.raises(SilentError, match="all zero"):
        step_from_data(torch.zeros(2, 3), "layer", 99, 16)
    with pytest.raises(ValueError, match="not finite"):
        step_from_data(torch.tensor([[1.0, math.nan]]), "layer", 99, 16)
    with pytest.raises(ValueError, match="not finite"):
        step_from_data(torch.tensor([[1.0, math.inf]]), "layer", 99, 16)
    for percentile, levels in ((0, 16), (100.1, 16), (99, 0), (-1, 16)):
        with pytest.raises(ValueError, match="0 < percentile <= 100 and levels >= 1"):
            step_from_data(torch.ones(1, 1), "layer", percentile, levels)
