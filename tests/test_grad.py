"""Gradient rules: value and gradient of each, by hand."""

import math

import pytest
import torch

from sparsetime.grad import SURROGATES, replace, round_ste, scale_grad, spike, straight_through


def test_replace_has_the_value_of_one_and_the_gradient_of_the_other() -> None:
    # 0.1 + (0.3 - 0.1) is not 0.3 in float32: the usual detach trick would not be exact.
    value = torch.tensor([0.3, -7.0, 1e-30], requires_grad=True)
    receiver = torch.tensor([0.1, 1e8, 5.0], requires_grad=True)
    y = replace(value, receiver)
    assert torch.equal(y, value)
    y.backward(torch.tensor([2.0, -3.0, 5.0]))
    assert receiver.grad is not None
    assert receiver.grad.tolist() == [2.0, -3.0, 5.0]
    assert value.grad is None


def test_replace_shares_no_memory_with_the_value() -> None:
    value = torch.tensor([1.0, 2.0])
    y = replace(value, torch.zeros(2))
    y += 1
    assert value.tolist() == [1.0, 2.0]


def test_replace_refuses_two_shapes() -> None:
    with pytest.raises(ValueError, match=r"one shape, got \(2,\) and \(1,\)"):
        replace(torch.zeros(2), torch.zeros(1))


def test_replace_keeps_nan_and_infinity() -> None:
    y = replace(torch.tensor([math.nan, math.inf]), torch.zeros(2))
    assert math.isnan(y[0])
    assert y[1] == math.inf


def test_straight_through_has_the_gradient_of_the_identity() -> None:
    x = torch.tensor([-1.5, 0.2, 3.0], requires_grad=True)
    y = straight_through(torch.sign, x)
    assert y.tolist() == [-1.0, 1.0, 1.0]
    (y * torch.tensor([2.0, 3.0, 5.0])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2.0, 3.0, 5.0]


def test_straight_through_of_the_identity_does_not_alias() -> None:
    x = torch.tensor([1.0])
    straight_through(lambda v: v, x).add_(1)
    assert x.item() == 1.0


def test_round_ste_rounds_halves_to_even() -> None:
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.49999997, 2.6], requires_grad=True)
    y = round_ste(x)
    assert y.tolist() == [-2.0, -2.0, 0.0, 0.0, 2.0, 2.0, 0.0, 3.0]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0] * 8


@pytest.mark.parametrize("factor", [-1.0, 0.0, 0.25])
def test_scale_grad_is_the_identity_with_a_scaled_gradient(factor: float) -> None:
    x = torch.tensor([0.1, -3.0], requires_grad=True)
    y = scale_grad(x, factor)
    assert torch.equal(y, x)
    y.backward(torch.tensor([2.0, -8.0]))
    assert x.grad is not None
    assert x.grad.tolist() == [2.0 * factor, -8.0 * factor]


def test_spike_fires_from_zero_upwards() -> None:
    assert spike(torch.tensor([-1e-9, 0.0, 1e-9, 5.0])).tolist() == [0.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("surrogate", "expected"),
    [
        ("straight", [1.0, 1.0, 1.0]),
        ("triangle", [0.5, 1.0, 0.0]),
        ("sigmoid", [4 * math.exp(-2) / (1 + math.exp(-2)) ** 2, 1.0, 4 * math.exp(-8) / (1 + math.exp(-8)) ** 2]),
        ("fast_sigmoid", [1 / 13.5**2, 1.0, 1 / 51**2]),
        ("atan", [1 / (1 + math.pi**2 / 4), 1.0, 1 / (1 + 4 * math.pi**2)]),
    ],
)
def test_spike_has_the_gradient_of_its_surrogate(surrogate: str, expected: list[float]) -> None:
    u = torch.tensor([-0.5, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    (spike(u, surrogate) * 3).sum().backward()
    assert u.grad is not None
    assert u.grad.tolist() == pytest.approx([3 * e for e in expected], rel=1e-12)


@pytest.mark.parametrize(("surrogate", "primitive"), [("sigmoid", lambda u: torch.sigmoid(4 * u))])
def test_a_surrogate_that_is_a_derivative_is_that_derivative(surrogate: str, primitive: object) -> None:
    u = torch.linspace(-2, 2, 41, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(primitive(u).sum(), u)  # type: ignore[operator]
    torch.testing.assert_close(SURROGATES[surrogate](u.detach()), expected, rtol=1e-12, atol=1e-12)


def test_spike_names_the_surrogates_it_knows() -> None:
    with pytest.raises(KeyError, match=r"no surrogate 'box'; known: atan, fast_sigmoid, sigmoid, straight, triangle"):
        spike(torch.zeros(1), "box")
