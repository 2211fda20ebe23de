"""From float32 plans to int8: steps, zeros, thresholds, and what is shared."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import sparsetime
from sparsetime.bench.density import with_thresholds
from sparsetime.bench.verify import verify
from sparsetime.budget import tune
from sparsetime.budget.errors import BudgetError
from sparsetime.convert.integers import quantised_plan, quantised_weights
from sparsetime.engine import Plan
from sparsetime.engine.dequantise import float32_plan
from sparsetime.run.runtimes import DisagreementError

torch.manual_seed(0)
CLIP = torch.rand(4, 3, 8, 8)


class Joined(nn.Module):
    """Two branches joined and pooled: one step for all that they join; one residual."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.c, self.d = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.cat([torch.relu(self.a(x)), 3 * torch.relu(self.b(x))], 1)
        y = torch.relu(self.c(nn.functional.max_pool2d(both, 2)))
        return self.d(y)


def compiled(codec: str = "hold", **options) -> Plan:
    return sparsetime.compile(Joined().eval(), CLIP[0], steps=CLIP, codec=codec, precision="int8", **options)


def test_weights_are_rounded_by_output_channel():
    weight = np.random.default_rng(0).standard_normal((6, 4, 3, 3)).astype(np.float32)
    weight[2] = 0
    w, step = quantised_weights(weight, "conv2d", 1)
    assert w.dtype == np.int8
    assert np.abs(w).reshape(6, -1).max(1).tolist() == [127, 127, 0, 127, 127, 127]
    assert np.abs(w * step[:, None, None, None] - weight).max() <= 0.5001 * step.max()


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_weights_have_their_outputs_second(groups):
    weight = np.random.default_rng(0).standard_normal((4, 3, 2, 2)).astype(np.float32)
    weight[: 4 // groups, 1] *= 10  # output channel 1
    w, step = quantised_weights(weight, "conv_transpose2d", groups)
    assert step.shape == (3 * groups,)
    assert step.argmax() == 1
    full = np.repeat(step.reshape(groups, 3), 4 // groups, axis=0)[:, :, None, None]
    assert (np.abs(w * full - weight) <= 0.5001 * full).all()


def test_what_moves_join_shares_one_step():
    plan = compiled()
    cat, pool = (next(op for op in plan.ops if op.kind == kind) for kind in ("cat", "max_pool2d"))
    assert cat.codec is None
    assert pool.codec is None
    assert len({plan.codings[v] for v in (*cat.inputs, cat.output, pool.output)}) == 1
    assert plan.codings[cat.output].zero == 0
    assert plan.codings[plan.ops[0].output] != plan.codings[cat.output]


def test_thresholds_are_whole_codes():
    plain = sparsetime.compile(Joined().eval(), CLIP[0], steps=0.02, codec="hold")
    plan = quantised_plan(plain, [x[None].numpy() for x in CLIP])
    for op in plan.ops:
        if op.codec is not None and op.name in {o.name for o in plain.ops if o.codec is not None}:
            step = plan.codings[op.output].step
            assert plan.tensors[op.codec["threshold"]].tolist() == [round(0.02 / step)]


def test_an_exact_step_is_kept_where_its_codes_fit():
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.relu(self.a(x)))

    for step, kept in ((0.05, True), (1e-5, False)):
        plan = sparsetime.compile(One().eval(), CLIP[0], steps=step, codec="exact", precision="int8")
        assert bool(plan.codings[1].step == np.float32(step)) is kept


def test_camera_bytes_are_their_own_codes():
    """(byte - 128) / 128 over all bytes is -1 to 0.992: step 1 / 128, zero 128, and code = byte."""

    class Camera(nn.Conv2d):
        spec = SimpleNamespace(name="camera", mean=(128.0,) * 3, std=(128.0,) * 3)

    plan = sparsetime.compile(Camera(3, 4, 1).eval(), CLIP[0], steps=CLIP, codec="hold", precision="int8")
    assert plan.codings[0] == (1 / 128, 128)
    stream = plan.stream()
    frame = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    stream(frame)
    np.testing.assert_array_equal(stream.snapshot()["0.value"], frame.transpose(2, 0, 1)[None])


def test_float32_again_is_near():
    plan = compiled()
    plain = float32_plan(plan)
    assert plain.precision == "float32"
    a, b = plan.stream(), plain.stream("reference")
    for frame in CLIP[:1]:
        x, y = a(frame), b(frame)
        assert float((x - y).norm() / y.norm()) < 0.05
    assert float32_plan(plain) is plain


@torch.no_grad()
def test_int8_answers_are_near_float32s():
    exact = Joined().eval()
    plan = sparsetime.compile(exact, CLIP[0], steps=CLIP, codec="hold", precision="int8")
    stream = plan.stream()
    for frame in CLIP:
        stream.reset()
        expected = exact(frame[None])
        assert float((stream(frame) - expected).norm() / expected.norm()) < 0.05


def test_a_learned_network_needs_frames_or_takes_the_example():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    model = sparsetime.sparsify(network, CLIP).eval()
    plan = sparsetime.compile(model, CLIP[0], steps=CLIP, precision="int8")
    assert plan.precision == "int8"
    with pytest.raises(ValueError, match="learned steps"):
        sparsetime.compile(model, CLIP[0], steps=CLIP)


def test_pixel_is_the_default():
    model = Joined().eval()
    default, pixel = (
        sparsetime.compile(model, CLIP[0], steps=CLIP, precision="int8", **options)
        for options in ({}, {"codec": "pixel"})
    )
    assert any(op.codec is not None and op.codec.get("pixel") for op in default.ops)
    assert default.ops == pixel.ops
    assert all(np.array_equal(array, pixel.tensors[name]) for name, array in default.tensors.items())


def test_unknown_precisions_are_refused():
    with pytest.raises(ValueError, match="precision must be one of float32, int8"):
        sparsetime.compile(nn.Conv2d(3, 4, 1), CLIP[0], steps=0.1, precision="int4")


def test_thresholds_between_two_codes_are_spread_over_channels():
    plan = compiled()
    name = next(op.name for op in plan.ops if op.codec is not None and plan.values[op.output][1] == 8)
    changed = with_thresholds(plan, {name: 1.3})
    op = next(op for op in changed.ops if op.name == name)
    found = changed.tensors[op.codec["threshold"]]
    assert sorted(set(found.tolist())) == [1, 2]
    assert 1 < found.mean() < 1.6


def test_a_stream_that_is_wrong_is_not_timed():
    plan = compiled()
    stream = plan.stream()
    frames = [x[None].numpy() for x in CLIP]
    stream(frames[0])
    assert verify(stream, frames[1]) == 0.0

    class Wrong:
        """Its weights are not those of its plan."""

        def __init__(self) -> None:
            weight = next(name for name, t in plan.tensors.items() if t.dtype == np.int8)
            other = {**plan.tensors, weight: -plan.tensors[weight]}
            self._stream = type(plan)(**{**_fields(plan), "tensors": other}).stream()
            self.plan, self.snapshot = plan, self._stream.snapshot

        def __call__(self, frame):
            return self._stream(frame)

    wrong = Wrong()
    wrong(frames[0])
    with pytest.raises(DisagreementError, match="not what its meaning gives"):
        verify(wrong, frames[1])


def _fields(plan: Plan) -> dict:
    names = ("name", "values", "ops", "outputs", "structure", "tensors", "input", "producer", "precision")
    return {name: getattr(plan, name) for name in names}


def test_tune_and_exports_want_float32(tmp_path):
    plan = compiled()
    with pytest.raises(BudgetError, match="precision int8"):
        tune(plan, [tmp_path], max_drop=0.1)
    pytest.importorskip("onnx")
    from sparsetime.neighbours.errors import ExportError
    from sparsetime.neighbours.onnx import build

    with pytest.raises(ExportError, match="precision int8"):
        build(plan)
