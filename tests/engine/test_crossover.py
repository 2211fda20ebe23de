"""Measured crossovers: which operations get one, and that it is kept with the plan."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import sparsetime
from sparsetime.engine import Plan
from sparsetime.engine.crossover import measured


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, groups=32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 48, 1),
        nn.ReLU(),
    ).eval()


def test_convolutions_with_a_choice_are_measured(tmp_path):
    frame = torch.randn(1, 3, 24, 24)
    plan = sparsetime.compile(network(), frame, codec="hold")
    assert all(op.crossover is None for op in plan.ops)
    known = measured(plan, rounds=3)
    found = {op.name: op.crossover for op in known.ops}
    # Sums of at most 36 terms, 27 of the first and 9 of the depthwise one, are always computed from values.
    assert [name for name, crossover in found.items() if crossover is not None] == ["4", "6"]
    assert all(0 <= found[name] <= 1 for name in ("4", "6"))
    known.save(tmp_path / "known.plan")
    assert [op.crossover for op in Plan.load(tmp_path / "known.plan").ops] == list(found.values())
    assert [op.crossover for op in plan.ops] == [None] * len(plan.ops)
    one, other = plan.stream(), known.stream()
    for x in (frame, frame + 0.1 * (torch.rand_like(frame) < 0.05), frame):
        np.testing.assert_allclose(one(x), other(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [16, 24])
def test_depthwise_convolutions_have_no_choice(channels):
    """Event by event there is no such path, however many terms a sum has (49 of 7x7)."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, channels, 1), nn.ReLU(), nn.Conv2d(channels, channels, 7, padding=3, groups=channels), nn.ReLU()
    ).eval()
    frame = torch.randn(1, 3, 14, 14)
    plan = sparsetime.compile(module, frame, codec="hold")
    known = measured(plan, rounds=1)
    assert [op.crossover for op in known.ops] == [None] * 3
    one, other = plan.stream(), known.stream()
    for x in (frame, frame + 0.1 * (torch.rand_like(frame) < 0.05), frame):
        np.testing.assert_array_equal(one(x), other(x))
