"""How much of an error in a value reaches the answer: by backpropagation, for each channel.

    gain_c = mean over the elements v of channel c of E_r [ (d(r . s)/dv)^2 ],  r of random signs, s the signature

An error of variance e in channel c adds about gain_c * elements * e to the squared error of the signature. Where events
of a value fall as its threshold^-a, and each costs f multiply-accumulates, Lagrange's condition gives thresholds

    threshold_c ~ (f / gain_c)^(1 / (2 + a))

`pixel` weighs the changes of a place against each other by their thresholds, sum_c (change_c / threshold_c)^2, and
what a place adds to the error while it is held is sum_c gain_c change_c^2. So its channels get gain_c^(-1/2), and

    threshold_c ~ f^(1 / (2 + a)) gain_c^(-1/2)

The search starts from it, and leaves the proportions of the channels of a layer as they are here: measuring each of
some thousands of channels would take too long.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsetime.budget.cost import Layout
from sparsetime.budget.setting import OCTAVE, POWER, Setting, codecs
from sparsetime.budget.signature import Signature
from sparsetime.engine.frames import FrameReader
from sparsetime.engine.plan import Plan
from sparsetime.engine.shapes import channel_axis
from sparsetime.run.dense import without_codecs
from sparsetime.run.module import PlanModule

__all__ = ["balanced", "gains", "shaped"]

Array = NDArray[Any]
_LEAST = 1e-3  # of the mean: a channel that does not matter on these frames may on others


def gains(plan: Plan, frames: list[Array]) -> list[Array]:
    """Gain of each channel of the value of each codec, float64 (C,), in the order of `codecs`; zeros where nothing of
    it reaches the answer.

    Args:
        plan: see above.
        frames: (H, W, 3) uint8, a few.
    """
    places = [plan.ops[number].output for number in codecs(plan)]
    network, read, signature = PlanModule(without_codecs(plan)), FrameReader(plan), Signature(plan)
    axes = [channel_axis(plan.values[value]) for value in places]
    found = [np.zeros(plan.values[value][axis]) for value, axis in zip(places, axes, strict=True)]
    draw = torch.Generator().manual_seed(0)
    for frame in frames:
        x = torch.from_numpy(read(frame)).clone().requires_grad_()
        values = network.values(x)
        s = signature([values[v] for v in plan.outputs])
        signs = torch.randint(0, 2, s.shape, generator=draw) * 2.0 - 1.0
        slopes = torch.autograd.grad((signs * s).sum(), [values[v] for v in places], allow_unused=True)
        for gain, slope, axis in zip(found, slopes, axes, strict=True):
            if slope is not None:
                gain += slope.double().square().mean([k for k in range(slope.dim()) if k != axis]).numpy() / len(frames)
    return found


def shaped(plan: Plan, found: list[Array]) -> Plan:
    """Thresholds of a plan's `hold` and `pixel` codecs with the proportions that the channels' gains ask for, their
    geometric means kept.

    Args:
        plan: see above. Codecs with a step per channel or element keep it.
        found: see `gains`.
    """
    ops, tensors = list(plan.ops), dict(plan.tensors)
    for number, gain in zip(codecs(plan), found, strict=True):
        op = ops[number]
        assert op.codec is not None
        threshold = plan.tensors[op.codec["tensor"]]
        if op.codec["kind"] not in ("hold", "pixel") or threshold.shape != (1,) or not gain.any():
            continue
        shape = _floored(gain) ** -_power(op.codec)
        name = f"{number}.channels"
        tensors[name] = (threshold * shape / np.exp(np.log(shape).mean())).astype(np.float32)
        ops[number] = dataclasses.replace(op, codec={**op.codec, "tensor": name})
    return plan.with_ops(ops, tensors)


def balanced(plan: Plan, found: list[Array], layout: Layout) -> Setting:
    """The setting in which the layers too have the proportions of their gains, its mean shift 0."""
    wanted = []
    for number, gain in zip(codecs(plan), found, strict=True):
        codec = plan.ops[number].codec
        assert codec is not None
        threshold = plan.tensors[codec["tensor"]].astype(np.float64)
        if gain.any() and (threshold > 0).all():
            cost = max(float(layout.caused[number]), 1.0)
            shape = cost ** (1 / (2 + POWER)) * _floored(gain) ** -_power(codec)
            wanted.append(float(np.log2(shape).mean() - np.log2(threshold).mean()))
        else:
            wanted.append(float("nan"))
    middle = np.nanmean(wanted) if np.isfinite(wanted).any() else 0.0
    return tuple(0 if np.isnan(want) else round(OCTAVE * (want - middle)) for want in wanted)


def _power(codec: Mapping[str, Any]) -> float:
    """p in threshold ~ gain^-p."""
    return 0.5 if codec["kind"] == "pixel" else 1 / (2 + POWER)


def _floored(gain: Array) -> Array:
    return np.asarray(np.maximum(gain, _LEAST * gain.mean()))
