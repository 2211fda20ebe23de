"""The delta activation layer: every option by a table worked out by hand, and clip form against streaming form."""

import copy
import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsetime import DeltaActivation
from sparsetime.codec import Codec, StateError
from sparsetime.nn import ACTIVATIONS, DeltaState

CODECS = get_args(Codec)
OUTPUTS = ("value", "delta", "delta_without_background")


def layer(**options: Any) -> DeltaActivation:
    """Step 0.5, no activation, in evaluation mode, unless said otherwise."""
    return DeltaActivation(**{"step": 0.5, "activation": "identity"} | options).eval()


def column(*values: float) -> Tensor:
    """One clip of one number per frame, (1, T, 1)."""
    return torch.tensor(values).view(1, -1, 1)


def stream(module: DeltaActivation, clip: Tensor) -> Tensor:
    state, outputs = None, []
    for frame in clip.unbind(1):
        output, state = module.step_stream(frame, state)
        outputs.append(output)
    return torch.stack(outputs, 1)


# ------------------------------------------------------------------------------------------------- options by hand


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [-0.5, 0.5, 1.0, 1.0, 7.0]),
        ({"activation": "relu"}, [0.0, 0.5, 1.0, 1.0, 7.0]),
        ({"activation": "relu6"}, [0.0, 0.5, 1.0, 1.0, 6.0]),
        ({"activation": torch.square}, [0.5, 0.5, 1.0, 1.5, 49.0]),
        ({"step": 2.0}, [0.0, 0.0, 0.0, 2.0, 8.0]),
        ({"step": -0.5, "rule": "fixed"}, [-0.5, 0.5, 1.0, 1.0, 7.0]),
        ({"codec": "hold"}, [-0.7, 0.6, 0.6, 1.2, 7.0]),
        ({"codec": "residual"}, [-0.7, 0.3, 0.8, 0.8, 6.8]),
        ({"bias": 1}, [0.5, 1.5, 2.0, 2.0, 8.0]),
        ({"sigma": True}, [-0.5, 0.0, 1.0, 2.0, 9.0]),
        ({"sigma": True, "bias": 1}, [0.5, 1.0, 2.0, 3.0, 10.0]),
        ({"output": "delta"}, [-0.5, 1.0, 0.5, 0.0, 6.0]),
        ({"output": "delta_without_background"}, [0.0, 1.0, 0.5, 0.0, 6.0]),
        ({"sigma": True, "bias": 1, "output": "delta"}, [0.5, 0.5, 1.0, 1.0, 7.0]),
        ({"codec": "hold", "output": "delta"}, [-0.7, 1.3, 0.0, 0.6, 5.8]),
        ({"codec": "residual", "output": "delta_without_background"}, [0.0, 1.0, 0.5, 0.0, 6.0]),
    ],
)
def test_table(options: dict[str, Any], expected: list[float]) -> None:
    module = layer(**options)
    if module.bias is not None:
        nn.init.ones_(module.bias)
    x = column(-0.7, 0.6, 0.9, 1.2, 7.0)
    for outputs in (module(x), stream(module, x), module(x.flatten(0, 1), frames=5).unflatten(0, (1, 5))):
        assert outputs.shape == x.shape
        assert outputs.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_codes_of_the_lsq_rule_are_clipped_in_both_forms() -> None:
    module = layer(rule="lsq")
    x = column(-100.0, 0.6, 127.4, 128.2, 1000.0)
    expected = [-64.0, 0.5, 127.5, 127.5, 127.5]
    assert module(x).flatten().tolist() == expected
    assert stream(module, x).flatten().tolist() == expected


def test_float16_has_a_floor_of_its_own_in_both_forms() -> None:
    module = layer(rule="lsq", step=1e-6).half()
    x = column(0.0, 1e-4).half()
    assert module(x).flatten().tolist() == [0, 2 * torch.finfo(torch.float16).tiny]
    assert torch.equal(stream(module, x), module(x))


def test_pooling_lies_between_activation_and_quantizer() -> None:
    module = layer(activation="relu", pool=(2, 2), bias=2)
    assert module.bias is not None
    with torch.no_grad():
        module.bias.copy_(torch.tensor([0.0, 1.0]))
    x = torch.tensor([[[-1.0, 0.1], [0.7, -9.0]], [[-1.0, -1.1], [-3.0, -2.0]]]).view(1, 1, 2, 2, 2)
    assert module(x).flatten().tolist() == [0.5, 0.0]
    assert stream(module, x).flatten().tolist() == [0.5, 0.0]


def test_overlapping_pooling_has_a_stride() -> None:
    module = layer(pool=(3, 2))
    x = torch.arange(49.0).view(1, 1, 1, 7, 7)
    assert torch.equal(module(x)[0], F.max_pool2d(x[0], 3, 2))


def test_bias_enters_once() -> None:
    """With sigma a bias added to every delta would grow with time."""
    module = layer(sigma=True, bias=1, activation="relu")
    nn.init.constant_(module.bias, 2.0)  # type: ignore[arg-type]
    assert module(torch.zeros(1, 4, 1)).flatten().tolist() == [2.0] * 4


def test_bias_of_channels_and_of_features() -> None:
    module = layer(bias=3)
    with torch.no_grad():
        module.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))  # type: ignore[union-attr]
    images = module(torch.zeros(2, 2, 3, 4, 5))
    assert torch.equal(images[1, 1, :, 2, 3], torch.tensor([1.0, 2.0, 3.0]))
    assert torch.equal(module(torch.zeros(2, 2, 3))[0, 1], torch.tensor([1.0, 2.0, 3.0]))
    assert torch.equal(stream(module, torch.zeros(2, 2, 3, 4, 5)), images)


@pytest.mark.parametrize("granularity", ["channel", "neuron"])
def test_steps_per_channel_and_neuron(granularity: Any) -> None:
    module = layer(frame_shape=(2, 1, 2), granularity=granularity)
    steps = {"channel": [[[1.0]], [[4.0]]], "neuron": [[[1.0, 2.0]], [[4.0, 8.0]]]}[granularity]
    with torch.no_grad():
        module.step.copy_(torch.tensor(steps))
    x = torch.full((1, 1, 2, 1, 2), 5.0)
    expected = {"channel": [5.0, 5.0, 4.0, 4.0], "neuron": [5.0, 4.0, 4.0, 8.0]}[granularity]
    assert module(x).flatten().tolist() == expected
    assert stream(module, x).flatten().tolist() == expected


# --------------------------------------------------------------------------------------------- clip form and stream


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("activation", [*ACTIVATIONS, torch.tanh])
def test_forward_equals_the_stream_to_the_bit(codec: Codec, output: Any, activation: Any) -> None:
    torch.manual_seed(0)
    module = layer(codec=codec, output=output, activation=activation, bias=3, pool=(2, 2), step=0.2)
    clip = torch.randn(2, 6, 3, 4, 4).cumsum(1) * 0.3
    with torch.no_grad():
        module.bias.copy_(torch.randn(3))  # type: ignore[union-attr]
        assert torch.equal(module(clip), stream(module, clip))


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("rule", ["dal", "lsq", "fixed"])
def test_forward_equals_the_stream_for_every_rule(rule: Any, output: Any) -> None:
    module = layer(rule=rule, output=output, step=0.01, activation="relu")
    clip = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0)).cumsum(1)
    assert torch.equal(module(clip), stream(module, clip))


@pytest.mark.parametrize("codec", CODECS)
def test_forward_equals_the_stream_with_accumulation(codec: Codec) -> None:
    torch.manual_seed(0)
    module = layer(codec=codec, sigma=True, output="delta", bias=5, step=0.2).double()
    clip = torch.randn(2, 8, 5, dtype=torch.float64)
    torch.testing.assert_close(module(clip), stream(module, clip), rtol=0, atol=1e-12)


@pytest.mark.parametrize("sigma", [False, True])
def test_a_disabled_layer_passes_values_unquantised_in_both_forms(sigma: bool) -> None:
    module = layer(activation="relu", sigma=sigma, output="delta")
    module.enabled = False
    x = column(-0.7, 0.6, 0.9, 0.2)
    a = torch.relu(x.cumsum(1) if sigma else x)
    expected = torch.diff(a, dim=1, prepend=torch.zeros(1, 1, 1))
    torch.testing.assert_close(module(x), expected)
    torch.testing.assert_close(stream(module, x), expected)


@pytest.mark.parametrize("codec", CODECS)
def test_the_stream_is_a_pure_function(codec: Codec) -> None:
    module = layer(codec=codec, sigma=True)
    first, second = torch.randn(2, 3), torch.randn(2, 3)
    kept = first.clone()
    with torch.no_grad():
        output, state = module.step_stream(first, None)
        assert isinstance(state, DeltaState)
        assert state.sigma is not None
        assert torch.equal(first, kept)
        before = (state.sigma.clone(), state.codec.reference.clone())
        once, _ = module.step_stream(second, state)
        first.fill_(99.0)
        output.fill_(99.0)
        again, _ = module.step_stream(second, state)
    assert torch.equal(once, again)
    assert torch.equal(state.sigma, before[0])
    assert torch.equal(state.codec.reference, before[1])


@pytest.mark.parametrize("sigma", [False, True])
def test_a_state_of_a_layer_that_accumulates_is_no_other_layers(sigma: bool) -> None:
    _, state = layer(sigma=not sigma).step_stream(torch.ones(1, 3), None)
    with pytest.raises(StateError, match=f"sigma={sigma} met .* sigma={not sigma}.* state=None"):
        layer(sigma=sigma).step_stream(torch.ones(1, 3), state)


@pytest.mark.parametrize("sigma", [False, True])
def test_a_state_of_other_frames_is_refused(sigma: bool) -> None:
    module = layer(sigma=sigma)
    _, state = module.step_stream(torch.zeros(2, 3), None)
    for other in (torch.zeros(1, 3), torch.zeros(2, 4), torch.zeros(2, 3, dtype=torch.float64)):
        with pytest.raises(StateError, match="A new stream"):
            module.step_stream(other, state)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_a_chain_of_deltas_equals_the_dense_quantised_network(dtype: torch.dtype, tolerance: float) -> None:
    """Only deltas travel between the layers; convolutions have no bias, it enters behind the accumulator."""
    torch.manual_seed(0)
    convs = [nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 5, 3, stride=2), nn.Conv2d(5, 4, 3)]
    clip = (torch.randn(2, 1, 2, 9, 9) + 0.1 * torch.randn(2, 50, 2, 9, 9).cumsum(1)).to(dtype)
    encoder = layer(step=0.05, output="delta").to(dtype)
    layers = []
    for conv in convs:
        conv.to(dtype)
        module = layer(step=0.04, activation="relu", sigma=True, output="delta", bias=conv.out_channels).to(dtype)
        with torch.no_grad():
            module.bias.copy_(conv.bias)  # type: ignore[union-attr,arg-type]
        layers.append(module)
    with torch.no_grad():
        x = torch.round(clip.flatten(0, 1) / encoder.step) * encoder.step
        deltas = encoder(clip.flatten(0, 1), frames=50)
        for conv, module in zip(convs, layers, strict=True):
            x = torch.round(F.relu(conv(x)) / module.step) * module.step
            deltas = module(F.conv2d(deltas, conv.weight, None, conv.stride, conv.padding), frames=50)
        received = deltas.unflatten(0, (2, 50)).cumsum(1)
        state: list[DeltaState | None] = [None] * 4
        total = torch.zeros_like(x.unflatten(0, (2, 50))[:, 0])
        for t in range(50):
            change, state[0] = encoder.step_stream(clip[:, t], state[0])
            for i, (conv, module) in enumerate(zip(convs, layers, strict=True)):
                moved = F.conv2d(change, conv.weight, None, conv.stride, conv.padding)
                change, state[i + 1] = module.step_stream(moved, state[i + 1])
            total += change
            torch.testing.assert_close(total, received[:, t], rtol=0, atol=tolerance)
    expected = x.unflatten(0, (2, 50))
    torch.testing.assert_close(received, expected, rtol=0, atol=tolerance)
    assert 0.02 < (deltas != 0).double().mean() < 0.9  # neither silent nor dense


# -------------------------------------------------------------------------------------------------------- penalties


@pytest.mark.parametrize("rule", ["dal", "fixed"])
@pytest.mark.parametrize("activation", ["identity", torch.abs])
def test_the_penalty_is_the_mean_change_without_the_first_frame(rule: Any, activation: Any) -> None:
    module = layer(rule=rule, activation=activation).train()
    module(column(100.0, 0.6, 0.7, 2.0).requires_grad_())
    assert module.penalty is not None
    # values 100 0.5 0.5 2: the first frame's 100 appears as the start of one change, never as a change from nothing
    assert module.penalty.item() == pytest.approx((99.5 + 0 + 1.5) / 3)


def test_the_lsq_penalty_is_the_mean_change_of_codes() -> None:
    module = layer(rule="lsq").train()
    module(column(100.0, 0.6, 0.7, 2.0).requires_grad_())
    assert module.penalty is not None
    assert module.penalty.item() == pytest.approx((199 + 0 + 3) / 3)


@pytest.mark.parametrize("rule", ["dal", "lsq", "fixed"])
@pytest.mark.parametrize("codec", CODECS)
def test_the_penalty_of_equal_frames_is_zero(rule: Any, codec: Codec) -> None:
    module = layer(rule=rule, codec=codec).train()
    module(torch.randn(2, 1, 5).expand(2, 4, 5).clone().requires_grad_())
    assert module.penalty is not None
    assert module.penalty.item() == 0


def test_clips_of_a_batch_are_not_neighbours() -> None:
    module = layer().train()
    module(torch.tensor([[1.0, 1.0], [50.0, 50.0]]).unsqueeze(-1).requires_grad_())
    assert module.penalty is not None
    assert module.penalty.item() == 0


@pytest.mark.parametrize("activation", ["relu", torch.relu])
def test_no_penalty_for_one_frame_in_evaluation_or_without_gradients(activation: Any) -> None:
    module, x = layer(activation=activation).train(), torch.randn(2, 4, 3)
    module(x)
    assert module.penalty is not None
    module(x[:, :1])
    assert module.penalty is None
    module(x)
    module.eval()(x)
    assert module.penalty is None
    with torch.no_grad():
        module.train()(x)
    assert module.penalty is None
    module.enabled = False
    module(x)
    assert module.penalty is None


@pytest.mark.parametrize("pool", [None, (1, 1)])
def test_the_step_gradient_of_the_penalty_is_minus_the_mean_change_of_codes(pool: Any) -> None:
    """Exactly: (d) of the paper's experiment. With pooling the layer is not fused."""
    module = layer(step=0.25, pool=pool).train()
    x = torch.randn(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    module(x)
    assert module.penalty is not None
    module.penalty.backward()
    codes = torch.round(x / 0.25)
    expected = -torch.diff(codes, dim=1).abs().mean()
    assert module.step.grad is not None
    assert module.step.grad.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("activation", ["relu", "relu6", "identity"])
@pytest.mark.parametrize("codec", CODECS)
def test_the_gradient_is_that_of_the_activation(activation: str, codec: Codec) -> None:
    """Zero at the bounds, as PyTorch's own, in the fused and in the plain form."""
    module = layer(activation=activation, codec=codec, step=1e-3).train()
    x = torch.tensor([[[-1.0, 0.0, 0.5, 6.0, 7.0]], [[1.0, 0.0, -2.0, 3.0, 6.0]]], requires_grad=True)
    (got,) = torch.autograd.grad(module(x).sum(), x)
    own = {"relu": F.relu, "relu6": F.relu6, "identity": lambda v: v}[activation]
    (expected,) = torch.autograd.grad(own(x).sum(), x)
    assert torch.equal(got, expected)


# ------------------------------------------------------------------------------------------------- state and errors


def test_state_dict() -> None:
    assert set(layer(bias=2).state_dict()) == {"step", "scale", "bias"}
    assert set(layer().state_dict()) == {"step", "scale"}


def test_fixed_steps_are_not_trained() -> None:
    assert not layer(rule="fixed").step.requires_grad
    assert not layer(codec="hold").step.requires_grad
    assert layer(rule="lsq").step.requires_grad


def test_a_copy_made_after_a_forward_pass() -> None:
    module = layer().train()
    module(torch.randn(1, 3, 2, requires_grad=True))
    twin = copy.deepcopy(module)
    assert twin.penalty is None
    assert module.penalty is not None
    assert torch.equal(twin.step, module.step)


@pytest.mark.parametrize("step", [0.0, math.nan, math.inf])
def test_a_step_of_zero_or_nan_is_refused(step: float) -> None:
    with pytest.raises(ValueError, match=r"DeltaActivation: step: .*finite and not zero.*calibrate"):
        DeltaActivation(step=step)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("step", [0.0, math.nan])
def test_a_step_that_became_zero_or_nan_is_refused(codec: Codec, step: float) -> None:
    module = layer(codec=codec)
    with torch.no_grad():
        module.step.fill_(step)
    for call in (lambda: module(torch.ones(1, 2, 3)), lambda: module.step_stream(torch.ones(1, 3), None)):
        with pytest.raises(ValueError, match="finite and not zero, 1 of 1"):
            call()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rule": "x"}, "rule must be one of dal, lsq, fixed, got 'x'"),
        ({"granularity": "x"}, "granularity must be one of layer, channel, neuron, got 'x'"),
        ({"codec": "x"}, "codec must be one of exact, hold, pixel, residual, got 'x'"),
        ({"output": "x"}, "output must be one of value, delta, delta_without_background, got 'x'"),
        ({"activation": "gelu"}, r"activation 'gelu' is not in \['identity', 'relu', 'relu6'\]; pass a function"),
        ({"granularity": "channel"}, "granularity 'channel' needs frame_shape"),
    ],
)
def test_wrong_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DeltaActivation(**options)


@pytest.mark.parametrize("activation", ["relu", torch.relu])
def test_frames_that_steps_do_not_fit_are_refused(activation: Any) -> None:
    module = layer(frame_shape=(2, 4, 4), granularity="neuron", activation=activation).eval()
    clip = torch.rand(1, 3, 2, 5, 4)
    words = r"steps by neuron, of shape \(2, 4, 4\), do not fit frames of shape \(2, 5, 4\).*granularity='layer' or"
    for call in (
        lambda: module(clip),
        lambda: module.step_stream(clip[:, 0], None),
        lambda: module.calibrate(clip.flatten(0, 1)),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    module = layer(frame_shape=(2, 4, 4), granularity="channel", activation=activation).eval()
    assert module(clip).shape == clip.shape
    with pytest.raises(ValueError, match=r"steps by channel, of shape \(2, 1, 1\), do not fit .*\(1, 5, 4\)"):
        module(clip[:, :, :1])


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 4, 4), (1, 1, 1, 1, 1, 1)])
def test_what_is_not_a_clip_is_refused(shape: tuple[int, ...]) -> None:
    """Images without `frames` would be taken for clips: their channels for frames."""
    with pytest.raises(ValueError, match=r"expected a clip \(N, T, C, H, W\) or \(N, T, F\).*pass frames=T"):
        layer()(torch.zeros(shape))


@pytest.mark.parametrize(("count", "frames"), [(5, 2), (0, 1), (4, 0), (4, -2)])
def test_frames_that_do_not_divide_into_clips(count: int, frames: int) -> None:
    with pytest.raises(ValueError, match=f"{count} frames do not divide into clips of {frames}"):
        layer()(torch.zeros(count, 3), frames=frames)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_what_is_not_floating_point_is_refused(dtype: torch.dtype) -> None:
    """A step below one has no integer form: what came out was NaN."""
    clip = column(1, 0, 1).to(dtype)
    for call in (lambda: layer()(clip), lambda: layer()(clip[0], frames=3), lambda: layer().step_stream(clip[0], None)):
        with pytest.raises(TypeError, match=rf"expected floating point, got {dtype}; give the network clip.float\(\)"):
            call()


def test_a_layer_says_what_it_is() -> None:
    text = repr(DeltaActivation((3, 1, 1), granularity="channel", sigma=True, output="delta", rule="lsq"))
    for part in ("relu", "step=(3, 1, 1)", "rule=lsq", "codec=exact", "sigma", "output=delta"):
        assert part in text
    assert "step=0.0625" in repr(DeltaActivation())
