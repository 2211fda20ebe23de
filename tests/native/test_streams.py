"""What several streams of one plan have in common, and what a snapshot carries from one to another."""

from __future__ import annotations

import gc

import numpy as np
import torch

import sparsetime
from sparsetime import networks
from sparsetime.engine import cpu


def test_streams_of_a_plan_share_its_weights() -> None:
    plan = sparsetime.compile(torch.nn.Conv2d(1, 1, 3), torch.zeros(1, 1, 4, 4), steps=1.0)
    first, second = plan.stream(), plan.stream()
    assert first._executor._program is second._executor._program  # type: ignore[attr-defined]
    key = id(plan)
    assert key in cpu._programs
    del plan, first, second
    gc.collect()
    assert key not in cpu._programs


def test_both_go_on_from_a_snapshot_with_the_same_bits() -> None:
    torch.manual_seed(0)
    network = networks.create("mobilenet_v2", num_classes=5, input_size=(160, 160)).eval()
    rng = np.random.default_rng(0)
    background = rng.standard_normal((1, 3, 160, 160)).astype(np.float32)

    def frame(t: int) -> np.ndarray:
        x = background + 0.02 * rng.standard_normal(background.shape).astype(np.float32)
        x[:, :, 3 * t % 100 : 3 * t % 100 + 40, 20:60] += 1.0
        return x

    frames = [frame(t) for t in range(24)]
    plan = sparsetime.compile(
        network, torch.from_numpy(frames[0]), steps=[torch.from_numpy(f) for f in frames[:4]], codec="hold"
    )
    stream, other = plan.stream(), plan.stream()
    for x in frames[:12]:
        stream(x)
    other.restore(stream.snapshot())
    for x in frames[12:]:
        assert torch.equal(torch.as_tensor(stream(x)), torch.as_tensor(other(x)))
