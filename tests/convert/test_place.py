"""Codecs stand where they should, with the steps that they should have."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_modules import Function, clip
from torch import nn

from sparsetime.convert.compile import compile
from sparsetime.engine.shapes import channel_axis


class Bottleneck(nn.Module):
    """Inverted residual with squeeze-excite, then a head that decodes boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depth, self.project = (
            nn.Conv2d(6, 8, 1),
            nn.Conv2d(8, 8, 3, 1, 1, groups=8),
            nn.Conv2d(8, 6, 1),
        )
        self.squeeze, self.excite, self.head = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        y = F.hardswish(self.depth(F.relu(self.expand(x))))
        gate = F.hardsigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        x = x + self.project(y * gate)
        return torch.sigmoid(self.head(F.max_pool2d(x, 2))) * 2 - 0.5


def coded(plan) -> list[str]:
    return [op.name for op in plan.ops if op.codec is not None]


def test_nonlinearities_that_feed_linear_operations():
    plan = compile(Bottleneck().eval(), clip()[0])
    assert coded(plan) == ["input", "expand", "depth", "squeeze", "excite", "mul"]


def test_everything_that_feeds_weights():
    plan = compile(Bottleneck().eval(), clip()[0], placement="every")
    # besides: the mean in front of `squeeze`, and the sum in `project`'s accumulator, which reaches `head`
    assert coded(plan) == ["input", "expand", "depth", "mean", "squeeze", "excite", "mul", "project"]


def stacked(m, x):
    return m.o(torch.stack([F.relu(m.a(x)), F.relu(m.b(x))], 1).sum(1))


def groups(m, x):
    return m.c(F.relu(m.a(x)).view(1, 4, 2, *x.shape[2:]).mean(2))


def rows(m, x):
    y = m.d(x.flatten(2))
    return m.g(F.relu(y + F.relu(m.f(y))))


def joined_rows(m, x):
    y = m.d(x.flatten(2))
    return m.h(torch.cat([F.relu(m.f(y)), y[:, :4] * y[:, 4:].sigmoid()], 1))


def rows_of_pixels(m, x):
    y = F.relu(m.a(x)).permute(0, 2, 3, 1)
    return m.q(y * y.mean(-1, keepdim=True)).mean(-1)


@pytest.mark.parametrize("network", [stacked, groups, rows, joined_rows, rows_of_pixels])
def test_channels_of_one_pixel_decide_together_and_no_others(network):
    """A small thing moves: a codec that takes the whole map, or a whole channel, for a pixel does not see it."""
    torch.manual_seed(0)
    layers = {
        "a": nn.Conv2d(3, 8, 3, padding=1),
        "b": nn.Conv2d(3, 8, 1),
        "o": nn.Conv2d(8, 2, 1),
        "q": nn.Linear(8, 8),
    }
    layers |= {"c": nn.Conv2d(4, 2, 1), "d": nn.Conv1d(3, 8, 5, padding=2), "f": nn.Conv1d(8, 8, 5, padding=2)}
    model = Function(network, **layers, g=nn.Conv1d(8, 2, 3), h=nn.Conv1d(12, 2, 3)).eval()
    x = torch.randn(1, 3, 48, 48)
    plan = compile(model, x, codec="pixel", steps=[x])
    for op in plan.ops:
        shape = plan.values[op.output]
        if op.codec is not None:
            assert shape[channel_axis(shape)] <= 12, op.name
    stream = plan.stream()
    with torch.no_grad():
        stream(x)
        for k in range(4):
            y = x.clone()
            y[:, :, 20:23, 10 + 3 * k : 13 + 3 * k] = 2.5
            assert (stream(y) - model(y)).abs().max() < 0.1 * (model(x) - model(y)).abs().max()


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_more_channels_than_a_pixel_bears_decide_one_by_one(precision):
    x = torch.rand(1, 33026)
    model = nn.Linear(33026, 2).eval()
    plan = compile(model, x, codec="pixel", precision=precision)
    assert plan.ops[0].codec["kind"] == ("hold" if precision == "float32" else "code")
    assert "pixel" not in plan.ops[0].codec
    torch.testing.assert_close(plan.stream()(x), model(x).detach(), rtol=0.05, atol=0.02)


@pytest.mark.parametrize(("codec", "levels"), [("exact", 64), ("hold", 100), ("residual", 64)])
def test_steps_are_shares_of_the_range(codec, levels):
    frames = torch.stack([torch.full((6, 9, 11), value) for value in (1.0, -4.0, 2.0)])
    plan = compile(Function(lambda m, x: m.conv(x), conv=nn.Conv2d(6, 2, 1)), frames[0], steps=frames, codec=codec)
    step = plan.tensors[plan.ops[0].codec["tensor"]]
    np.testing.assert_allclose(step, 4 / levels, rtol=1e-6)


def test_thresholds_are_coarser_where_events_cost_more():
    model = nn.Sequential(nn.Conv2d(6, 1, 1), nn.ReLU(), nn.Conv2d(1, 64, 1)).eval()
    coarse, fine = (compile(model, clip()[0], codec=codec, levels=1) for codec in ("hold", "exact"))
    steps = [[float(p.tensors[op.codec["tensor"]][0]) for op in p.ops[:2]] for p in (coarse, fine)]
    # fan-out 1 and 64, geometric mean 8
    np.testing.assert_allclose(steps[0], [steps[1][0] * 8**-0.2, steps[1][1] * 8**0.2], rtol=1e-5)


def test_steps_can_be_stated():
    model = Bottleneck().eval()
    plan = compile(model, clip()[0], steps={"expand": torch.arange(1.0, 9), "depth": 0.25})
    steps = {op.name: plan.tensors[op.codec["tensor"]] for op in plan.ops if op.codec is not None}
    np.testing.assert_array_equal(steps["expand"], np.arange(1, 9))
    np.testing.assert_array_equal(steps["depth"], [0.25])
    with pytest.raises(ValueError, match=r"no codec stands at \['expnd'\]; codecs stand at \['input', 'expand'"):
        compile(model, clip()[0], steps={"expnd": 1.0})
    with pytest.raises(ValueError, match=r"'expand' has the shape .* must be one, 8 or"):
        compile(model, clip()[0], steps={"expand": torch.ones(7)})


def test_stated_steps_leave_the_ranges_of_the_others_alone():
    model = Bottleneck().eval()
    plain, coarse = (compile(model, clip()[0], steps=steps) for steps in ({}, {"input": 1e3}))
    for op in plain.ops[1:]:
        if op.codec is not None:
            np.testing.assert_array_equal(coarse.tensors[op.codec["tensor"]], plain.tensors[op.codec["tensor"]])


def test_steps_of_windows_are_by_their_last_axis():
    module = Function(
        lambda m, x: m.b(m.a(x.reshape(3, 2, 9, 11)).relu()), a=nn.Linear(11, 5), b=nn.Linear(5, 2)
    ).eval()
    plan = compile(module, clip()[0], steps={"a": torch.arange(1.0, 6)})
    coded = next(op for op in plan.ops if op.name == "a")
    np.testing.assert_array_equal(plan.tensors[coded.codec["tensor"]], np.arange(1, 6))
    with pytest.raises(ValueError, match="must be one, 5 or"):
        compile(module, clip()[0], steps={"a": torch.ones(2)})


@pytest.mark.parametrize(
    ("codec", "precision"),
    [(c, "float32") for c in ("exact", "hold", "pixel", "residual")]
    + [(c, "int8") for c in ("exact", "hold", "pixel")],
)
def test_a_layer_that_is_silent_on_the_clip_is_heard_later(codec, precision):
    """relu(left - right) is 0 on all frames of the clip, and not once left and right have changed places."""
    torch.manual_seed(0)
    model = Function(lambda m, x: m.conv((x[:, :3] - x[:, 3:]).relu()), conv=nn.Conv2d(3, 2, 1)).eval()
    calm = torch.rand(4, 6, 9, 11) * 0.3 + torch.tensor([0.0, 0.7]).repeat_interleave(3).view(6, 1, 1)
    plan = compile(model, calm[0], steps=calm, codec=codec, precision=precision)
    for backend in ("reference", "cpu"):
        stream = plan.stream(backend=backend)
        stream(calm[0])
        for frame in calm.flip(1):
            with torch.no_grad():
                expected = model(frame[None])
            assert float((stream(frame) - expected).norm() / expected.norm()) < 0.1  # steps of the input


@pytest.mark.parametrize("codec", ["exact", "hold", "pixel"])
def test_steps_are_not_found_on_a_picture_of_one_colour(codec):
    model = nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    for example in (torch.zeros(1, 6, 9, 11), torch.ones(6, 9, 11)):
        with pytest.warns(UserWarning, match=r"of one colour: every change will be sent.*as steps="):
            stream = compile(model, example, codec=codec).stream()
        for frame in clip():
            with torch.no_grad():
                torch.testing.assert_close(stream(frame), model(frame), rtol=1e-5, atol=1e-5)
        compile(model, example, codec=codec, steps=clip())
        with pytest.raises(ValueError, match=r"ranges of values \(int8\).*of one colour.*as steps="):
            compile(model, example, codec="hold", steps=0.1, precision="int8")


def test_exact_plans_equal_the_quantised_network():
    model = nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    plan = compile(model, clip()[0], steps=0.37)
    stream = plan.stream(backend="reference")
    with torch.no_grad():
        for frame in clip():
            quantised = (model[1](model[0]((frame / 0.37).round() * 0.37)) / 0.37).round() * 0.37
            assert (stream(frame) - model[2](quantised)).abs().max() < 1e-4


@pytest.mark.parametrize("codec", ["exact", "residual", "hold", "pixel"])
def test_a_layer_that_hardly_says_anything_gets_a_step_that_a_plan_takes(codec):
    model = nn.Sequential(nn.Conv2d(6, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1)).eval()
    with torch.no_grad():
        model[0].weight.mul_(1e-20), model[0].bias.mul_(1e-20)
    plan = compile(model, clip()[0], codec=codec)
    step = float(plan.tensors[plan.ops[1].codec["tensor"]][0])
    assert step == np.float32(1e-12) if codec in ("exact", "residual") else 0 < step < 1e-20


def test_arguments_are_checked():
    model = nn.Conv2d(6, 2, 1)
    for options, message in (
        ({"codec": "lossy"}, "codec must be one of"),
        ({"placement": "some"}, "placement must be one of"),
        ({"percentile": 0}, "percentile"),
        ({"steps": []}, "there was none"),
        ({"steps": -1.0}, "steps: 'input' must have steps of at least 0, got -1"),
        (
            {"steps": {"input": torch.tensor([1.0, 2, 3, 4, 5, -6])}},
            "steps: 'input' must have steps of at least 0, got -6",
        ),
        ({"steps": float("nan")}, "steps of at least 0, got nan"),
        ({"levels": 0}, "levels must be a number above 0, got 0"),
        ({"levels": -1.0}, "levels must be a number above 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            compile(model, clip()[0], **options)
    with pytest.raises(ValueError, match=r"expected an example frame \(1, C, H, W\)"):
        compile(model, torch.zeros(2, 6, 9, 11))
    model.spec = SimpleNamespace(mean=(0.5,) * 6, std=(1.0,) * 6)
    for shape in ((), (6,)):
        with pytest.raises(ValueError, match=r"expected an example frame \(1, C, H, W\)"):
            compile(model, torch.zeros(shape))


def test_things_of_another_kind_are_refused_in_a_line():
    frame = clip()[0]
    for model, example, options, message in (
        ("mobilenet_v2", frame, {}, r"expected a torch module, got str; sparsetime.networks.create\(name"),
        (torch.jit.trace(nn.Conv2d(6, 2, 1), frame), frame, {}, "got a ScriptModule; give what it was made from"),
        (nn.Conv2d(6, 2, 1), (frame, frame), {}, r"one example frame as a torch tensor \(1, C, H, W\), got tuple$"),
        (nn.Conv2d(6, 2, 1), frame.numpy(), {}, r"got ndarray; torch.from_numpy\(frame\) makes one$"),
        (nn.Conv2d(6, 2, 1), frame, {"steps": "0.1"}, "steps must be frames, a number, a mapping or None, got str"),
    ):
        with pytest.raises(TypeError, match=message):
            compile(model, example, **options)


def test_a_number_of_numpy_or_torch_is_a_number():
    for step in (np.float32(0.25), np.asarray(0.25), torch.tensor(0.25)):
        plan = compile(nn.Conv2d(6, 2, 1), clip()[0], steps=step)
        assert plan.tensors[plan.ops[0].codec["tensor"]].tolist() == [0.25]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"mean": [0.0] * 6, "std": [1.0] * 6}, r"Conv2d.spec must have attributes `mean` and `std`, 6.*got a dict"),
        (SimpleNamespace(mean=[0.0] * 6), "6 numbers each.*got std = None"),
        (SimpleNamespace(std=[1.0] * 6), "6 numbers each.*got mean = None"),
        (SimpleNamespace(mean=[0.0], std=[1.0]), r"6 numbers each.*got mean = \[0.0\]"),
        (SimpleNamespace(mean=[0.0] * 6, std=2.0), r"6 numbers each.*got std = 2.0"),
        (SimpleNamespace(mean=0.5, std=0.5), "6 numbers each.*got mean = 0.5"),
        (SimpleNamespace(mean=[0.485] * 6, std=[0.229] * 6), "units of 0 to 255 here: multiply both by 255"),
    ],
)
def test_a_spec_that_does_not_fit_is_refused(spec, message):
    model = nn.Conv2d(6, 2, 1)
    model.spec = spec
    with pytest.raises(ValueError, match=message):
        compile(model, clip()[0])


def test_a_spec_normalises_bytes_and_one_that_says_nothing_of_them_does_not():
    model = nn.Conv2d(6, 2, 1)
    model.spec = SimpleNamespace(mean=torch.arange(6.0), std=(2.0,) * 6)
    assert compile(model, clip()[0]).input.mean == (0, 1, 2, 3, 4, 5)
    for spec in (None, {"head": 3}, SimpleNamespace(name="net")):
        model.spec = spec
        assert compile(model, clip()[0]).input is None
