"""Sums that keep rounding, behind them what has a pole or an edge at zero: pooling by powers, deviations, norms."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_modules import Function
from torch import Tensor, nn

import sparsetime

SIZE = 33


def generalised_mean(m, x):
    y = F.relu(m.stem(x)).clamp(min=1e-6)
    return m.head(F.adaptive_avg_pool2d(y.pow(3), 1).pow(1 / 3).flatten(1))


def deviation(m, x):
    y = F.relu(m.stem(x))
    mean = y.mean((2, 3))
    return m.head(((y * y).mean((2, 3)) - mean * mean + 1e-5).sqrt())


def root_of_moments(m, x):
    y = F.relu(m.stem(x))
    return m.last(y / (F.avg_pool2d(y * y, 16).mean().sqrt() + 1e-3))


def power_pooling(m, x):
    return m.last(F.lp_pool2d(F.relu(m.stem(x)), 3, 2))


def normalised_pixels(m, x):
    y = F.relu(m.stem(x))
    return m.last(y * torch.rsqrt(y.pow(2).mean(1, keepdim=True) + 1e-5))


def share_of_channels(m, x):
    y = F.relu(m.stem(x)).mean((2, 3))
    return m.head(y / (y.sum(1, keepdim=True) + 1e-5))


def root_of_moved(m, x):
    y = F.relu(m.stem(x))
    return m.last(torch.cat([y.flip(1)[:, :8], F.pad(y, (1, -1, 0, 0))[:, 8:]], 1).sqrt())


def root_of_weights(m, x):
    return m.last(F.conv2d(x.abs(), m.stem.weight.abs(), stride=2).sqrt())


NETWORKS = (
    *(generalised_mean, deviation, root_of_moments, power_pooling, normalised_pixels, share_of_channels),
    *(root_of_moved, root_of_weights),
)


def network(function) -> Function:
    torch.manual_seed(1)
    layers = {"stem": nn.Conv2d(3, 16, 3, 2), "last": nn.Conv2d(16, 8, 3), "head": nn.Linear(16, 5)}
    return Function(function, **layers).eval()


def fading() -> list[Tensor]:
    """A bright picture, a patch of which wanders off until all is dark, and bright ones again."""
    generator = torch.Generator().manual_seed(0)
    bright = [3 * torch.rand(1, 3, SIZE, SIZE, generator=generator) for _ in range(3)]
    dark = torch.zeros(1, 3, SIZE, SIZE)
    patches = []
    for k in range(5):
        patch = dark.clone()
        patch[:, :, 5 * k : 5 * k + 9, 5 * k : 5 * k + 9] = bright[0][:, :, :9, :9]
        patches.append(patch)
    return [*bright, *patches, dark, dark + 1e-4, dark, *bright]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("codec", ["exact", "hold", "pixel"])
@pytest.mark.parametrize("function", NETWORKS)
def test_rounding_does_not_grow(function, codec, backend):
    m, frames = network(function), fading()
    stream = sparsetime.compile(m, frames[0], codec=codec, steps=1e-12 if codec == "exact" else 0.0).stream(backend)
    with torch.no_grad():
        expected = [m(frame) for frame in frames]
        for y, d in zip(map(stream, frames), expected, strict=True):
            torch.testing.assert_close(y, d, rtol=1e-4, atol=3e-4 * float(max(map(torch.max, expected))))


def islands(function) -> list[str]:
    plan = sparsetime.compile(network(function), fading()[0])
    return [op.attributes["target"].split(".")[1] for op in plan.islands]


def test_only_sums_in_front_of_a_pole_are_islands():
    def residual(m, x):
        y = F.relu(m.stem(x))
        y = F.relu(F.pad(m.last(y), (1, 1, 1, 1))[:, :1] + y)  # weights add to it: it is a kept sum either way
        return m.head(F.adaptive_avg_pool2d(y, 1).pow(1 / 3).flatten(1)) + y.mean() * y.mean((2, 3))[:, :5]

    assert islands(residual) == ["adaptive_avg_pool2d", "pow"]
    assert islands(generalised_mean) == ["pow", "adaptive_avg_pool2d", "pow"]
    assert islands(root_of_weights) == ["sqrt"]
    assert islands(lambda m, x: m.head((2 * m.stem(x)).mean((2, 3)).sin() / 3).pow(4)) == ["sin", "pow"]
    assert islands(lambda m, x: F.layer_norm(x + x.mean(), (SIZE,))) == []


def test_a_constant_that_no_island_can_hold_stays_with_a_sum():
    half = torch.full((16, 1, 1), 0.5, dtype=torch.float16)
    m, x = network(lambda m, x: (F.relu(m.stem(x)) + half).rsqrt()), fading()[0]
    plan = sparsetime.compile(m, x)
    assert [op.attributes["target"] for op in plan.islands] == ["aten.rsqrt.default"]
    assert [op.kind for op in plan.ops] == ["input", "conv2d", "affine", "island"]
    np.testing.assert_allclose(plan.stream()(x), m(x).detach(), rtol=0.02)  # codecs


def test_the_same_in_int8():
    m, frames = network(generalised_mean), fading()
    plan = sparsetime.compile(m, frames[0], steps=frames, precision="int8")
    native, reference = plan.stream(), plan.stream("reference")
    for frame in frames:
        y = native(frame)
        assert torch.equal(y, reference(frame))
        torch.testing.assert_close(y, m(frame).detach(), rtol=0, atol=0.05)
