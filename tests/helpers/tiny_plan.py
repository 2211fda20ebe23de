"""A plan small enough to count by hand."""

import dataclasses

import numpy as np

from sparsetime.engine import InputSpec, Op, Plan


def tiny() -> Plan:
    """Input 1x2x4x5, codec, 3x3 convolution with stride 2 and padding 1, ReLU."""
    rng = np.random.default_rng(0)
    tensors = {
        "step": np.asarray([0.5], np.float32),
        "weight": rng.standard_normal((3, 2, 3, 3)).astype(np.float32),
        "bias": np.ones(3, np.float32),
    }
    attributes = {"stride": [2, 2], "padding": [1, 1, 1, 1], "dilation": [1, 1], "groups": 1}
    ops = (
        Op("input", "input", (), (0,), codec={"kind": "exact", "tensor": "step"}),
        Op("conv2d", "conv", (0,), (1,), attributes, {"weight": "weight", "bias": "bias"}, {"kind": "relu"}),
    )
    return Plan("tiny", ((1, 2, 4, 5), (1, 3, 2, 3)), ops, (1,), {"output": 0}, tensors, InputSpec((1, 2), (3, 4)))


def changed(**parts) -> Plan:
    """`tiny` with its second operation changed."""
    plan = tiny()
    return dataclasses.replace(plan, ops=(plan.ops[0], dataclasses.replace(plan.ops[1], **parts)))
