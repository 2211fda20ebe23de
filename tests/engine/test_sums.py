"""The rule for sums that are not kept, against what the native executor does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import sparsetime
from sparsetime.codec import Codec
from sparsetime.engine import Plan
from sparsetime.engine.sums import kept_sums


class Mixed(nn.Module):
    """Convolutions of few terms and of many, of single pixels, strided, padded, transposed, grouped; a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 40, 3, padding=1)  # 27 terms
        self.full = nn.Conv2d(40, 40, 3, padding=1)  # 360
        self.pixels = nn.Conv2d(40, 40, 1)
        self.depthwise = nn.Conv2d(40, 40, 7, padding=3, groups=40)  # 49
        self.groups = nn.Conv2d(40, 40, 3, padding=1, groups=8)  # 45
        self.edge = nn.Conv2d(40, 4, 3, padding=1, groups=4)  # 90
        self.few = nn.Conv2d(4, 40, 3, padding=1)  # 36
        self.strided = nn.Conv2d(40, 40, 1, stride=2)
        self.padded = nn.Conv2d(40, 40, 1, padding=1)
        self.up = nn.ConvTranspose2d(40, 40, 2, stride=2)  # 160
        self.up_few = nn.ConvTranspose2d(40, 40, 2, stride=2, groups=8)  # 20
        self.pool = nn.AvgPool2d(2)
        self.last = nn.Conv2d(40, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in ("stem", "full", "pixels", "depthwise", "groups", "edge", "few", "strided", "padded", "up"):
            x = torch.relu(getattr(self, name)(x))
        x = self.pool(torch.relu(self.up_few(x)))
        return self.last(torch.relu(self.last.weight.new_ones(1) * x))


def mixed(codec: Codec) -> Plan:
    torch.manual_seed(0)
    plan = sparsetime.compile(Mixed().eval(), torch.zeros(1, 3, 16, 16), steps=1e-6, codec=codec)
    # Where there is a choice, event by event is said to be the cheaper way up to all of the inputs.
    ops = tuple(replace(op, crossover=1.0) if op.kind == "conv2d" else op for op in plan.ops)
    return replace(plan, ops=ops)


def convolutions(plan: Plan) -> list[int]:
    return [number for number, op in enumerate(plan.ops) if plan.op_macs(op) and op.has_accumulator]


@pytest.mark.parametrize("codec", ["hold", "pixel"])
def test_sums_that_are_not_kept_are_computed_from_values(codec: Codec) -> None:
    plan = mixed(codec)
    stream = plan.stream()
    frame = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    stream(frame)
    frame = frame.copy()
    frame[0, 1, 8, 8] += 4
    stream(frame)
    stats = list(stream.stats.values())
    numbers = convolutions(plan)
    assert all(stats[number].events_in for number in numbers)
    kept = kept_sums(plan)
    # A kept sum may be computed anew all the same, where that is quicker, but one that is not kept has to be.
    sparse = {number for number in numbers if stats[number].path == "sparse"}
    assert sparse <= kept
    names = {plan.ops[number].name for number in sparse}
    # Whole pixels of groups of few channels cost more to add up than to compute anew; single elements do not.
    assert ({"full", "groups", "edge"} if codec == "hold" else {"full"}) <= names
    assert ("pixels" in names) == (codec == "hold")


def test_by_hand() -> None:
    common = {"full", "groups", "edge", "up"}
    for codec, single in (("hold", {"pixels", "strided", "padded"}), ("pixel", set())):
        plan = mixed(codec)  # type: ignore[arg-type]
        kept = {plan.ops[number].name for number in kept_sums(plan)}
        assert kept & {plan.ops[number].name for number in convolutions(plan)} == common | single


def test_values_that_pass_whole_pixels_on() -> None:
    """Between a codec and a convolution of single pixels: a pooling without codec, and one that has `hold`."""
    plan = mixed("pixel")
    pixels = next(number for number, op in enumerate(plan.ops) if op.name == "pixels")
    maker = next(number for number, op in enumerate(plan.ops) if op.output == plan.ops[pixels].inputs[0])
    assert pixels not in kept_sums(plan)
    ops = list(plan.ops)
    assert ops[maker].codec is not None
    ops[maker] = replace(ops[maker], codec={**ops[maker].codec, "kind": "hold"})
    assert pixels in kept_sums(replace(plan, ops=tuple(ops)))
    # Without a codec it changes by whole pixels, since its own input does.
    ops[maker] = replace(ops[maker], codec=None)
    tensors = {name: t for name, t in plan.tensors.items() if name != plan.ops[maker].codec["tensor"]}
    bare = replace(plan, ops=tuple(ops), tensors=tensors)
    assert pixels not in kept_sums(bare)


def test_bytes_by_hand() -> None:
    plan = mixed("pixel")
    values = sum(int(np.prod(shape)) for shape in plan.values)
    kept = sum(int(np.prod(plan.values[plan.ops[number].output])) for number in kept_sums(plan))
    assert plan.state_bytes == plan.stream().state_bytes == 4 * (values + kept)
    assert plan.state_bytes < mixed("hold").state_bytes
