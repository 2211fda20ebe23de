"""The spatial baseline: it changes nothing and penalises magnitudes."""

import copy

import pytest
import torch

from sparsetime import SpatialL1


def test_it_passes_its_input_on() -> None:
    x = torch.randn(4, 3, 2, 2)
    assert torch.equal(SpatialL1().train()(x, 2), x)


def test_penalty_and_gradient_by_hand() -> None:
    layer = SpatialL1().train()
    x = torch.tensor([[[1.0, -3.0]], [[0.0, 4.0]]], requires_grad=True)
    layer(x)
    assert layer.penalty is not None
    assert layer.penalty.item() == 2.0
    layer.penalty.backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [0.25, -0.25, 0.0, 0.25]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_mean_of_many_elements_of_a_half_type(dtype: torch.dtype) -> None:
    layer = SpatialL1().train()
    layer(torch.full((2, 100_000), 2.0, dtype=dtype))
    assert layer.penalty is not None
    assert (layer.penalty.item(), layer.penalty.dtype) == (2.0, dtype)


def test_the_penalty_does_not_know_time() -> None:
    layer = SpatialL1().train()
    x = torch.randn(6, 5)
    layer(x, 3)
    first = layer.penalty
    layer(x[torch.randperm(6)], 2)
    assert first is not None
    torch.testing.assert_close(first, layer.penalty)
    layer(x[:1], 1)
    assert layer.penalty is not None  # a single frame has magnitudes, if no changes


def test_no_penalty_in_evaluation_without_gradients_or_disabled() -> None:
    layer, x = SpatialL1(), torch.randn(2, 3)
    layer.train()(x, 2)
    assert layer.penalty is not None
    layer.eval()(x, 2)
    assert layer.penalty is None
    with torch.no_grad():
        layer.train()(x, 2)
    assert layer.penalty is None
    layer.enabled = False
    layer(x, 2)
    assert layer.penalty is None


def test_calibration_sets_the_scale() -> None:
    layer = SpatialL1()
    layer.calibrate(torch.tensor([[0.0, 1.0], [-8.0, 2.0]]), percentile=100)
    assert layer.scale.item() == 8.0
    with pytest.raises(ValueError, match="all zero"):
        layer.calibrate(torch.zeros(2, 2))


def test_it_has_a_scale_and_no_parameters() -> None:
    assert list(SpatialL1().state_dict()) == ["scale"]
    assert not list(SpatialL1().parameters())


def test_a_copy_made_after_a_forward_pass_has_no_penalty() -> None:
    layer = SpatialL1().train()
    layer(torch.randn(2, 3, requires_grad=True), 2)
    assert copy.deepcopy(layer).penalty is None
    assert layer.penalty is not None
