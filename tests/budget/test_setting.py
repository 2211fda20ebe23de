"""Settings applied to plans, and state."""

import dataclasses

import numpy as np
import pytest
import torch
from small_modules import Function
from tiny_plan import tiny
from torch import nn

import sparsetime
from sparsetime.budget.errors import BudgetError
from sparsetime.budget.setting import GRID, apply, codecs, codecs_to_drop, freed_bytes, least_state_bytes
from sparsetime.codec import Codec


def bottlenecks(codec: Codec = "hold") -> sparsetime.Plan:
    """Two linear bottlenecks, 1x4x8x8 and 1x2x4x4, each between activations."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 5, 1, 2), nn.Conv2d(4, 8, 3, 1, 1), nn.ReLU()),
        *(nn.Conv2d(8, 2, 3, 2, 1), nn.Conv2d(2, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 3, 1)),
    ).eval()
    return sparsetime.compile(model, torch.randn(1, 3, 8, 8), codec=codec)


def test_scales_thresholds_and_leaves_the_plan_alone() -> None:
    plan = tiny()
    coarser = apply(plan, (4,))
    assert coarser.step(coarser.ops[0]).item() == 1.0
    assert plan.step(plan.ops[0]).item() == 0.5
    assert apply(plan, (0,)).step(plan.ops[0]).item() == 0.5
    assert apply(plan, (-1,)).step(coarser.ops[0]).item() == pytest.approx(0.5 / GRID)
    assert np.shares_memory(coarser.tensors["weight"], plan.tensors["weight"])
    assert "step" not in coarser.tensors


def test_none_takes_the_codec_away_and_all_is_sent() -> None:
    plan = bottlenecks()
    setting = tuple(None for _ in codecs(plan))
    bare = apply(plan, setting)
    assert codecs(bare) == []
    frame = torch.randn(2, 3, 8, 8)
    stream, dense = bare.stream(), bare.stream()
    stream(frame[0])
    np.testing.assert_allclose(stream(frame[1]), dense(frame[1]), atol=1e-5)


@pytest.mark.parametrize("codec", ["hold", "pixel"])
def test_codecs_behind_linear_operations_give_their_sum_back(codec: Codec) -> None:
    plan = bottlenecks(codec)
    freed = {op.name: freed_bytes(plan, op) for op in plan.ops if freed_bytes(plan, op)}
    assert sorted(freed.values()) == [4 * 2 * 4 * 4, 4 * 4 * 8 * 8]
    places = codecs(plan)
    for number in places:
        setting = tuple(None if other == number else 0 for other in places)
        assert plan.state_bytes - apply(plan, setting).state_bytes == freed_bytes(plan, plan.ops[number])
    everything = apply(plan, tuple(None for _ in places))
    assert everything.state_bytes == least_state_bytes(plan)


def test_sums_that_come_back_are_counted() -> None:
    """Linear 5x5, then 40 channels of 1x1: without the codec of the first the second has to keep its sums."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 40, 5, 2, 2), nn.Conv2d(40, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 5)).eval()
    plan = sparsetime.compile(model, torch.randn(1, 3, 16, 16), codec="pixel")
    first = plan.ops[1]
    assert freed_bytes(plan, first) == 4 * 40 * 64  # the input's pixels are whole, and so are its sums'
    ops = [dataclasses.replace(plan.ops[0], codec={**plan.ops[0].codec, "kind": "hold"}), *plan.ops[1:]]
    odd = plan.with_ops(ops)
    assert freed_bytes(odd, first) == 4 * (40 - 8) * 64
    limit = odd.state_bytes - 4 * 32 * 64
    assert codecs_to_drop(odd, limit, {}) == [1]
    with pytest.raises(BudgetError, match="cannot be met"):
        codecs_to_drop(odd, limit - 1, {})


def test_drops_what_costs_least_for_its_bytes() -> None:
    plan = bottlenecks()
    large, small = sorted((n for n in codecs(plan) if freed_bytes(plan, plan.ops[n])), key=lambda n: n)
    assert freed_bytes(plan, plan.ops[large]) == 1024
    whole = plan.state_bytes
    assert codecs_to_drop(plan, whole, {}) == []
    assert codecs_to_drop(plan, whole - 100, {large: 800.0, small: 10.0}) == [small]
    assert codecs_to_drop(plan, whole - 100, {large: 8.0, small: 10.0}) == [large]
    # The small one first, then the large one makes it needless.
    assert codecs_to_drop(plan, whole - 1000, {large: 800.0, small: 10.0}) == [large]
    assert codecs_to_drop(plan, whole - 1152, {large: 800.0, small: 10.0}) == [large, small]


def test_a_limit_below_what_a_plan_can_say_is_an_error_that_names_the_least() -> None:
    plan = bottlenecks()
    with pytest.raises(
        BudgetError, match=r"--max-state .* cannot be met: .* A plan keeps every value, .* give at least"
    ):
        codecs_to_drop(plan, least_state_bytes(plan) - 1, {})


def test_tensors_of_islands_stay() -> None:
    torch.manual_seed(0)
    floor = torch.randn(4, 6, 6)
    model = Function(lambda self, x: torch.maximum(self.c(x), floor), c=nn.Conv2d(3, 4, 3)).eval()
    plan = sparsetime.compile(model, torch.randn(1, 3, 8, 8), codec="hold")
    (island,) = plan.islands
    (name,) = island.tensors.values()
    other = apply(plan, (4,) * len(codecs(plan)))
    np.testing.assert_array_equal(other.tensors[name], floor)
    assert other.stream()(np.zeros((1, 3, 8, 8), np.float32)).shape == (1, 4, 6, 6)
