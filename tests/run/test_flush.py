"""When streams start again where nobody says."""

import dataclasses

import pytest
import torch
from tiny_plan import tiny

import sparsetime
from sparsetime.run.flush import flush_of


@pytest.mark.parametrize(
    ("codec", "flush"), [("hold", 1.0), ("pixel", 1.0), ("residual", 1.0), ("exact", 0.0), (None, 0.0)]
)
def test_streams_that_keep_something_back_are_flushed(codec: str | None, flush: float) -> None:
    plan = tiny()
    entry = None if codec is None else {"kind": codec, "tensor": "step"}
    tensors = {name: tensor for name, tensor in plan.tensors.items() if codec is not None or name != "step"}
    plan = dataclasses.replace(
        plan, ops=(dataclasses.replace(plan.ops[0], codec=entry), *plan.ops[1:]), tensors=tensors
    )
    assert flush_of(plan) == flush
    assert flush_of(plan, 0.0) == 0
    assert flush_of(plan, 2.5) == 2.5


@pytest.mark.parametrize(("codec", "flush"), [("hold", 1.0), ("pixel", 1.0), ("exact", 0.0)])
def test_codes_with_thresholds_keep_something_back_too(codec: str, flush: float) -> None:
    """A threshold of 0 sends every change of a code."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1)).eval()
    clip = torch.randn(2, 3, 8, 8)
    plan = sparsetime.compile(module, clip[:1], steps=clip, codec=codec, levels=20, precision="int8")
    assert flush_of(plan) == flush
