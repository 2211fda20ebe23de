"""When streams start again where nobody says."""

import dataclasses

import pytest
from tiny_plan import tiny

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
