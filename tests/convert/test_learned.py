"""Networks from `sparsify` become plans with their own codecs and learned steps, and compute the same."""

import numpy as np
import pytest
import torch
from small_modules import clip
from torch import Tensor, nn

import sparsetime
from sparsetime.convert import CompileError, compile
from sparsetime.engine import Plan


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(6, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU6(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 1),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def sparse(**options) -> nn.Module:
    model = sparsetime.sparsify(network(), clip()[0], **options)
    sparsetime.calibrate(model, torch.stack(clip(), 1), levels=8)
    return model.eval()


def coded(plan: Plan) -> list[str]:
    return [op.codec["kind"] for op in plan.ops if op.codec is not None]


@pytest.mark.parametrize("granularity", ["layer", "channel", "neuron"])
@pytest.mark.parametrize("rule", ["dal", "lsq"])
def test_a_plan_equals_its_sparse_network(granularity, rule):
    model = sparse(granularity=granularity, rule=rule)
    plan = compile(model, clip()[0])
    assert not plan.islands
    assert len(coded(plan)) == len(sparsetime.delta_layers(model))
    assert all(("low" in op.codec) == (rule == "lsq") for op in plan.ops if op.codec is not None)
    stream = plan.stream(backend="reference")
    with torch.no_grad():
        for frame in clip():
            torch.testing.assert_close(stream(frame), model(frame), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("codec", ["hold", "residual"])
def test_codecs_with_memory_equal_over_the_clip(codec):
    model = sparse(codec=codec)
    plan = compile(model, clip()[0])
    assert set(coded(plan)) == {codec}
    stream = plan.stream(backend="reference")
    with torch.no_grad():
        expected = model(torch.stack(clip(), 1))[0]
        got = torch.cat([stream(frame) for frame in clip()])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_an_argument_may_be_named_frames():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 4, 1)

        def forward(self, frames: Tensor) -> Tensor:
            return self.conv(frames.relu())

    model = sparsetime.sparsify(Named(), clip()[0]).eval()
    stream = compile(model, clip()[0]).stream(backend="reference")
    with torch.no_grad():
        for frame in clip():
            torch.testing.assert_close(stream(frame), model(frame), rtol=1e-4, atol=1e-4)


class Tokens(nn.Module):
    """Patches, then tokens (N, L, F)."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(6, 8, 2, 2)
        self.head = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))

    def forward(self, x):
        return self.head(self.patches(x).flatten(2).transpose(1, 2))


def lines():
    """(N, C, L) by Conv1d."""
    return nn.Sequential(
        *(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Flatten(2)),
        *(nn.Conv1d(8, 5, 3, padding=1), nn.ReLU(), nn.Conv1d(5, 4, 3), nn.Flatten(), nn.LazyLinear(3)),
    )


@pytest.mark.parametrize("make", [Tokens, lines])
def test_pixels_of_sequences_are_the_same_before_and_after(make):
    frames = torch.stack(clip(count=12), 1)
    torch.manual_seed(0)
    net = make()
    net(frames[:, 0])
    model = sparsetime.sparsify(net, frames[:, 0], codec="pixel")
    sparsetime.calibrate(model, frames, levels=8)
    stream = compile(model.eval(), frames[:, 0]).stream(backend="reference")
    with torch.no_grad():
        expected = model(frames)[0]
        got = torch.cat([stream(frame) for frame in frames.unbind(1)])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        dense = net(frames[0])
    assert (expected - dense).abs().max() > 1e-3  # something was kept back


def test_steps_are_the_learned_ones():
    model = sparse()
    plan = compile(model, clip()[0])
    steps = [float(plan.tensors[op.codec["tensor"]][0]) for op in plan.ops if op.codec is not None]
    learned = [float(layer.step.detach().abs()) for layer in sparsetime.delta_layers(model).values()]
    np.testing.assert_allclose(sorted(steps), sorted(learned), rtol=1e-6)


def test_a_step_below_zero_counts_by_its_magnitude():
    model = sparse()
    first = next(iter(sparsetime.delta_layers(model).values()))
    before = compile(model, clip()[0])
    first.step.data.neg_()
    after = compile(model, clip()[0])
    for name, tensor in before.tensors.items():
        np.testing.assert_array_equal(after.tensors[name], tensor)


def test_activations_are_fused_and_batch_norm_is_gone():
    plan = compile(sparse(), clip()[0])
    kinds = [op.kind for op in plan.ops]
    assert kinds == ["input", "conv2d", "max_pool2d", "conv2d", "avg_pool2d", "reshape", "linear"]


def test_the_network_is_left_as_it_was():
    model = sparse().train()
    layers = sparsetime.delta_layers(model)
    compile(model, clip()[0])
    assert sparsetime.delta_layers(model) == layers
    assert model.training
    model(torch.stack(clip(), 1)).sum().backward()


def test_a_spatial_network_is_a_plain_one():
    model = sparsetime.sparsify(network(), clip()[0], layer="spatial_l1").eval()
    plan = compile(model, clip()[0], codec="hold", steps=0.0)
    assert "hold" in coded(plan)
    with torch.no_grad():
        torch.testing.assert_close(plan.stream(backend="reference")(clip()[0]), model(clip()[0]), rtol=1e-4, atol=1e-4)


def test_layers_that_are_off_are_left_out():
    model = sparse()
    sparsetime.enable(model, False)
    assert coded(compile(model, clip()[0])) == []


def test_delta_layers_in_a_module_of_ones_own():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(6, 4, 3), sparsetime.DeltaActivation(activation=torch.tanh, step=0.1)
            self.head = nn.Conv2d(4, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.act(self.conv(x), frames=1))

    model = Own().eval()
    plan = compile(model, clip()[0])
    assert [op.kind for op in plan.ops] == ["input", "conv2d", "conv2d"]
    assert plan.ops[1].activation == {"kind": "tanh"}
    stream = plan.stream(backend="reference")
    with torch.no_grad():
        for frame in clip():
            torch.testing.assert_close(stream(frame), model(frame), rtol=1e-4, atol=1e-4)


def test_a_delta_layer_under_two_names():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 1)
            self.first = self.second = sparsetime.DeltaActivation(step=0.1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.second(self.conv(self.first(x, frames=1)), frames=1))

    model = Twice().eval()
    plan = compile(model, clip()[0])
    assert coded(plan) == ["exact", "exact"]
    assert model.first is model.second
    assert isinstance(model.first, sparsetime.DeltaActivation)
    stream = plan.stream(backend="reference")
    with torch.no_grad():
        for frame in clip():
            torch.testing.assert_close(stream(frame), model(frame), rtol=1e-4, atol=1e-4)


def test_a_module_with_a_sparse_network_inside():
    class Headed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = sparse(), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x))

    model = Headed().train()
    plan = compile(model, clip()[0])
    assert coded(plan) == ["exact"] * len(sparsetime.delta_layers(model.body))
    assert plan.ops[-1].name == "head"
    stream = plan.stream(backend="reference")
    model.eval()
    with torch.no_grad():
        for frame in clip():
            torch.testing.assert_close(stream(frame), model(frame), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="NaN"):
        model(clip()[0] / 0)


def test_layers_that_exchange_deltas_are_refused():
    model = nn.Sequential(nn.Conv2d(6, 4, 3), sparsetime.DeltaActivation(output="delta"))
    with pytest.raises(CompileError, match=r"delta layer '1' exchanges deltas"):
        compile(model, clip()[0])


def test_steps_cannot_be_stated_twice():
    with pytest.raises(ValueError, match="has learned steps"):
        compile(sparse(), clip()[0], steps=0.5)
