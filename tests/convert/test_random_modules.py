"""Modules of random operations on values of any rank: what `compile` makes of them runs alike on both backends.

The operations are those that models write between their layers: axes in any order, other shapes, batches of windows,
products over the last axis, constants along any axis, sums of everything.
"""

from math import gcd, prod
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_modules import Function, clip
from torch import Tensor

from sparsetime.convert.compile import compile

SIZE = 4096
"""No value is larger."""


class Step(NamedTuple):
    """One operation, and a number from which it takes its choices."""

    kind: str
    number: int


def _permuted(x: Tensor, n: int) -> Tensor:
    return x.permute(np.random.default_rng(n).permutation(x.dim()).tolist())


def _reshaped(x: Tensor, n: int) -> Tensor:
    sizes, rest = [], x.numel()
    for k in range(n % 5):
        sizes.append(next(d for d in range(2 + (n >> k) % 4, 0, -1) if rest % d == 0))
        rest //= sizes[-1]
    sizes.insert(n % (len(sizes) + 1), rest)
    return x.reshape([1, *sizes] if n % 2 else sizes)


def _weight(x: Tensor, n: int, *shape: int) -> Tensor:
    drawn = np.random.default_rng(n).normal(size=shape) / max(prod(shape[1:]), 1) ** 0.5
    return torch.from_numpy(drawn.astype(np.float32)).to(x.dtype)


def _along(x: Tensor, n: int) -> Tensor:
    """A constant along one axis."""
    axis = n % x.dim()
    return _weight(x, n, x.shape[axis]).reshape([-1 if k == axis else 1 for k in range(x.dim())])


def _normed(x: Tensor, n: int) -> Tensor:
    channels = x.shape[1] if x.dim() > 1 else 0
    return F.batch_norm(x, _weight(x, n, channels), _weight(x, n, channels) ** 2 + 1) if channels else x


def _convolved(x: Tensor, n: int) -> Tensor:
    fits = x.dim() == 4 and min(x.shape[2:]) > 2
    return F.conv2d(x, _weight(x, n, 1 + n % 5, x.shape[1], 3, 3), stride=1 + n % 2, padding=n % 3) if fits else x


def _grouped(x: Tensor, n: int) -> Tensor:
    fits = x.dim() in (3, 4) and prod(x.shape[2:]) > 1
    return F.group_norm(x, gcd(x.shape[1], 1 + n % 6), eps=0.1) if fits else x


def _attended(x: Tensor, n: int) -> Tensor:
    if x.dim() < 3:
        return x
    scores = x @ x.transpose(-2, -1) * 0.3
    return (F.scaled_dot_product_attention(x, x * 0.5, x) if n % 2 else scores.softmax(-1) @ x) + 0.1 * x


def _written(x: Tensor, n: int) -> Tensor:
    y, axis = x * 2, n % x.dim()
    where = (slice(None),) * axis + (slice(n % 3, None, 1 + n % 2),)
    y[where] = -x[where] if n % 5 else 0.5
    return y


def _with_constants(x: Tensor, n: int) -> Tensor:
    axis = n % x.dim()
    return torch.cat([_weight(x, n, *x.shape).narrow(axis, 0, 1), x, torch.ones_like(x)], axis)


OPERATIONS = {
    "permute": _permuted,
    "reshape": _reshaped,
    "linear": lambda x, n: F.linear(x, _weight(x, n, 1 + n % 7, x.shape[-1]), _weight(x, n, 1 + n % 7)),
    "matmul": lambda x, n: x @ _weight(x, n, x.shape[-1], 1 + n % 7),
    "activation": lambda x, n: [F.relu, F.gelu, F.mish, F.silu, F.elu, torch.sigmoid, F.hardswish, F.relu6][n % 8](x),
    "scale": lambda x, n: x * _along(x, n),
    "shift": lambda x, n: _along(x, n) - x,
    "batch_norm": _normed,
    "flip": lambda x, n: x - 0.5 * x.flip(n % x.dim()),
    "cat": lambda x, n: torch.cat([x, x * 2], n % x.dim()),
    "stack": lambda x, n: torch.stack([x, -x], n % (x.dim() + 1)),
    "mean": lambda x, n: x.mean(n % x.dim(), keepdim=n % 2 == 0),
    "gate": lambda x, n: x * torch.sigmoid(x.mean(n % x.dim(), keepdim=True)),
    "narrow": lambda x, n: x.narrow(n % x.dim(), 0, -(-x.shape[n % x.dim()] // 2)),
    "conv": _convolved,
    "pool": lambda x, n: F.max_pool2d(x, 2, ceil_mode=True) if x.dim() == 4 else x,
    "softmax": lambda x, n: x.softmax(n % x.dim()),
    "group_norm": _grouped,
    "attention": _attended,
    "written": _written,
    "constants": _with_constants,
    "square": lambda x, n: 0.1 * x**2 - x.abs(),
    "index": lambda x, n: x[(slice(None),) * (n % x.dim()) + ([0, -1, 0],)],
    "sum": lambda x, n: x.sum((0, 1)[: x.dim()]) * 0.1,
}


def applied(steps: list[Step], x: Tensor) -> list[Tensor]:
    """All values."""
    values = [x * 1]
    for kind, number in steps:
        if values[-1].dim() == 0:
            break
        y = OPERATIONS[kind](values[-1], number)
        if y.numel() <= SIZE and y.dim() <= 7:
            values.append(y)
    return values


def alike(got: list, values: list[Tensor]) -> None:
    """Rounding errors are of the size of the largest value on the way: a small one may be a difference of two."""
    bound = 100 * np.finfo(np.float32).eps * max(value.abs().max().item() for value in values)
    for mine, value in zip(got, values, strict=True):
        assert tuple(mine.shape) == tuple(value.shape)
        assert (torch.as_tensor(mine) - value).abs().max().item() <= bound


def test_the_comparison_can_fail() -> None:
    x = torch.tensor([1.0, 2.0])
    alike([x * (1 + 1e-6)], [x])
    for wrong in ([x * 1.001], [x.view(1, 2)], [x, x], [torch.tensor([1, float("nan")])]):
        with pytest.raises((AssertionError, ValueError)):
            alike(wrong, [x])


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.builds(Step, st.sampled_from(sorted(OPERATIONS)), st.integers(0, 999)), min_size=1, max_size=8),
    st.tuples(st.just(1), st.integers(1, 6), st.integers(1, 9), st.integers(1, 9)),
)
def test_both_backends_compute_the_module(steps: list[Step], shape: tuple[int, ...]) -> None:
    module, frames = Function(lambda m, x: applied(steps, x)).eval(), clip(shape)
    plan = compile(module, frames[0], codec="hold", steps=0.0)
    streams = [plan.stream(backend=backend) for backend in ("reference", "cpu")]
    for frame in frames:
        with torch.no_grad():
            values = applied(steps, frame)
        for stream in streams:
            alike(stream(frame), values)
