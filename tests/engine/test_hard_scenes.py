"""Cuts, exposure jumps and a shaking camera: nearly everything changes at once, and a stream must follow.

Native and reference stay equal to the bit; every value that is held lies within its threshold of what its operation
makes of the values in front of it, whatever came before; and the answers are as near to the dense network's as ever.

    |v_l - act(op_l(v))| <= theta_l        for every element of every operation l with a `hold` codec, after every frame
"""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_plans import plans
from torch import nn

import sparsetime
from sparsetime.engine.cpu import Native
from sparsetime.engine.reference import Reference, activate
from sparsetime.run.dense import without_codecs

HEIGHT, WIDTH = 32, 40


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(plans(dyadic=True), st.integers(0, 99), st.sampled_from([None, 0.0, 1.0]), st.sampled_from([math.inf, 0.3]))
def test_native_equals_the_reference_through_hard_scenes(plan, seed, crossover, cut):
    ops = tuple(replace(op, crossover=crossover) if op.kind == "conv2d" else op for op in plan.ops)
    plan = replace(plan, ops=ops)
    rng = np.random.default_rng(seed)
    first, second = ((rng.integers(-8, 9, plan.input_shape) / 4).astype(np.float32) for _ in range(2))
    shaken = np.roll(second, (1, -1), (2, 3))
    scenes = {
        "start": first,
        "cut": second,
        "exposure": second * np.float32(1.25),
        "exposure back": second,
        "shake": shaken,
        "shake back": second,
        "cut back": first,
        "still": first,
    }
    native, reference = Native(plan), Reference(plan)
    for executor in (native, reference):
        executor.set_cut(cut)
    for scene, frame in scenes.items():
        for got, expected in zip(native.run(frame), reference.run(frame), strict=True):
            np.testing.assert_array_equal(got, expected, err_msg=scene)
        assert native.flushed == reference.flushed, scene
        state = native.state()
        for name, expected in reference.state().items():
            np.testing.assert_array_equal(state[name], expected, err_msg=f"{scene}, {name}")


class Small(nn.Module):
    """A stem, an inverted residual block, a pooling and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.expand, self.depthwise = nn.Conv2d(8, 24, 1), nn.Conv2d(24, 24, 3, 1, 1, groups=24)
        self.project, self.head = nn.Conv2d(24, 8, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.classify = nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu6(self.stem(x))
        x = x + self.project(F.relu6(self.depthwise(F.relu6(self.expand(x)))))
        x = F.relu(self.head(F.max_pool2d(x, 2)))
        return self.classify(x.mean((2, 3)))


def texture(seed: int) -> torch.Tensor:
    """(3, H, W) in 0..1, smooth."""
    noise = torch.rand(1, 3, 5, 6, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, (HEIGHT, WIDTH), mode="bicubic", align_corners=True)[0].clamp(0, 1)


def walking(ground: torch.Tensor, t: int) -> torch.Tensor:
    """A square on the ground, and a camera's noise."""
    frame = ground.clone()
    frame[:, 10:18, 2 * t + 2 : 2 * t + 10] = 1 - frame[:, 10:18, 2 * t + 2 : 2 * t + 10]
    noise = torch.randn(frame.shape, generator=torch.Generator().manual_seed(t)) * 0.004
    return (frame + noise).clamp(0, 1)


def video() -> list[tuple[str, torch.Tensor]]:
    """Every scene follows a spell of small changes, in which values come to lie anywhere within their thresholds."""
    one, other = texture(1), texture(2)
    shots = [("walk", walking(one, t)) for t in range(5)]
    shots += [("cut", walking(other, t)) for t in range(5)]
    shots += [("exposure", (walking(other, t) * 1.3).clamp(0, 1)) for t in range(5, 9)]
    shots += [("exposure back", walking(other, t)) for t in range(9, 12)]
    shots += [("shake", walking(other, 12).roll(shift, (1, 2))) for shift in ((2, -3), (-1, 2), (0, 0), (3, 1))]
    shots += [("cut back", walking(one, t)) for t in range(3)]
    return shots


@pytest.fixture(scope="module")
def plan():
    torch.manual_seed(0)
    network = Small().eval()
    for layer in network.children():
        nn.init.kaiming_normal_(layer.weight)  # PyTorch's own start lets hardly anything of the picture through
    frames = torch.stack([frame for _, frame in video()[::4]])
    return sparsetime.compile(network, frames[0], steps=frames, codec="hold", levels=200)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_held_values_stay_within_their_thresholds(plan, backend):
    stream, exact = plan.stream(backend=backend), Reference(plan, dtype=torch.float64)
    held = 0
    for number, (scene, frame) in enumerate(video()):
        stream(frame)
        state = stream.snapshot()
        values = {op.output: torch.from_numpy(state[f"{k}.value"].copy()).double() for k, op in enumerate(plan.ops)}
        for op in plan.ops:
            if op.codec is None:
                continue
            if op.kind == "input":
                z = frame[None].double()
            elif op.kind in ("identity", "max_pool2d", "mul"):
                z = exact.recomputed(op, [values[v] for v in op.inputs])
            else:
                z = exact.linear(op, [values[v] for v in op.inputs], constants=True)
            away = (activate(z, op.activation) - values[op.output]).abs()
            # Sums of float32 deltas: some 30 roundings of numbers up to 10.
            allowed = float(plan.step(op).max()) + 2e-5
            assert float(away.max()) <= allowed, f"frame {number} ({scene}), {op.name}"
            held += int((away > 1e-4).sum())
    assert held > 1000  # or the thresholds were not at work


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_nothing_is_left_of_a_scene(plan, backend):
    """After a cut, an exposure jump or a shake the answer is as near to the dense one as in a quiet spell."""
    stream, dense = plan.stream(backend=backend), without_codecs(plan).stream(backend="reference")
    away: dict[str, list[float]] = {}
    answers = []
    for scene, frame in video():
        dense.reset()
        answers.append(dense(frame)[0])
        away.setdefault(scene, []).append(float((stream(frame) - answers[-1]).abs().max()))
    quiet = max(away.pop("walk"))
    moved = max(float((a - b).abs().max()) for a, b in pairwise(answers))
    assert quiet < 0.05 * moved  # an answer that stays behind would be seen
    for scene, distances in away.items():
        assert max(distances) <= 2 * quiet, scene  # the largest of a few answers: it varies with the scene
