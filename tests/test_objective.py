"""Penalty, calibration, switching and parameter groups of a small sparse network."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import sparsetime
from sparsetime import DeltaActivation, SpatialL1


class Net(nn.Module):
    """Convolution, ReLU, convolution, ReLU, mean, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.first(x))))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def clip() -> Tensor:
    return torch.randn(2, 4, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def test_layers_are_named_without_a_prefix(net: Net, clip: Tensor) -> None:
    model = sparsetime.sparsify(net, clip[:, 0])
    assert list(sparsetime.delta_layers(model)) == ["input", "relu", "mean"]
    assert list(sparsetime.delta_layers(net)) == []


def test_the_penalty_is_the_sum_of_shares_times_mean_change_over_scale(net: Net, clip: Tensor) -> None:
    model = sparsetime.sparsify(net, clip[:, 0]).train()
    layers = sparsetime.delta_layers(model)
    seen: dict[str, Tensor] = {}
    for index, (name, layer) in enumerate(layers.items()):
        layer.scale.fill_(index + 2.0)
        layer.register_forward_hook(lambda m, a, o, name=name: seen.update({name: o.detach()}))
    model(clip)
    expected = 0.0
    for index, (name, layer) in enumerate(layers.items()):
        value = seen[name].unflatten(0, (2, 4))
        expected += layer.weight * (value[:, 1:] - value[:, :-1]).abs().mean().item() / (index + 2.0)
    assert sum(layer.weight for layer in layers.values()) == pytest.approx(1.0)
    assert sparsetime.penalty(model).item() == pytest.approx(expected, rel=1e-5)
    assert expected > 0.01


def test_the_spatial_penalty_is_the_sum_of_shares_times_mean_magnitude_over_scale(net: Net, clip: Tensor) -> None:
    model = sparsetime.sparsify(net, clip[:, 0], layer="spatial_l1").train()
    layers = sparsetime.delta_layers(model)
    assert list(layers) == ["relu", "mean"]
    seen: dict[str, Tensor] = {}
    for name, layer in layers.items():
        layer.scale.fill_(2.0)
        layer.register_forward_hook(lambda m, a, o, name=name: seen.update({name: o.detach()}))
    model(clip)
    expected = sum(layer.weight * seen[name].abs().mean().item() / 2 for name, layer in layers.items())
    assert sparsetime.penalty(model).item() == pytest.approx(expected, rel=1e-5)
    # Shares are of the whole network's MACs: what the input feeds belongs to nobody here.
    everywhere = sparsetime.delta_layers(sparsetime.sparsify(net, clip[:, 0]))
    assert {name: layer.weight for name, layer in layers.items()} == {
        name: everywhere[name].weight for name in ("relu", "mean")
    }


def test_the_penalty_does_not_depend_on_the_unit_of_an_activation(net: Net, clip: Tensor) -> None:
    """Ten times larger activations behind ten times smaller weights: the same network, the same penalty."""
    scaled = copy.deepcopy(net)
    with torch.no_grad():
        scaled.first.weight *= 10
        scaled.first.bias *= 10
        scaled.second.weight /= 10
    penalties = []
    for network in (net, scaled):
        model = sparsetime.sparsify(network, clip[:, 0])
        sparsetime.calibrate(model, clip)
        model.train()(clip)
        penalties.append(sparsetime.penalty(model).item())
    assert penalties[1] == pytest.approx(penalties[0], rel=1e-3)


def test_the_penalty_is_zero_where_frames_are_equal(net: Net, clip: Tensor) -> None:
    model = sparsetime.sparsify(net, clip[:, 0]).train()
    model(clip[:, :1].expand(-1, 5, -1, -1, -1))
    assert sparsetime.penalty(model).item() == 0.0


def test_the_penalty_makes_steps_grow_and_reaches_the_weights(net: Net, clip: Tensor) -> None:
    model = sparsetime.sparsify(net, clip[:, 0]).train()
    model(clip)
    sparsetime.penalty(model).backward()
    for name, layer in sparsetime.delta_layers(model).items():
        assert isinstance(layer, DeltaActivation)
        if name == "input":
            assert layer.step.grad is None  # fixed
        else:
            assert layer.step.grad is not None
            assert layer.step.grad.item() < 0
    assert model.first.weight.grad.abs().sum() > 0
    assert model.head.weight.grad is None or not model.head.weight.grad.any()  # behind the last layer


@pytest.mark.parametrize(
    "prepare",
    [
        lambda model, clip: None,  # no forward pass at all
        lambda model, clip: model.eval()(clip),
        lambda model, clip: model(clip[:, :1]),  # T = 1
        lambda model, clip: model(clip[:, 0]),  # frames
        lambda model, clip: (sparsetime.enable(model, False), model(clip)),
    ],
)
def test_no_penalty_is_an_error_with_the_reasons(prepare: object, net: Net, clip: Tensor) -> None:
    model = sparsetime.sparsify(net, clip[:, 0]).train()
    prepare(model, clip)  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"no layer has one.*training mode.*at least T = 2 frames"):
        sparsetime.penalty(model)


def test_no_penalty_without_gradients(net: Net, clip: Tensor) -> None:
    model = sparsetime.sparsify(net, clip[:, 0]).train()
    with torch.no_grad():
        model(clip)
    with pytest.raises(ValueError, match="with gradients"):
        sparsetime.penalty(model)


def test_the_penalty_of_an_earlier_pass_is_forgotten(net: Net, clip: Tensor) -> None:
    model = sparsetime.sparsify(net, clip[:, 0]).train()
    model(clip)
    model.eval()(clip)
    with pytest.raises(ValueError, match="no layer has one"):
        sparsetime.penalty(model)


def test_a_layer_that_was_switched_off_since_has_no_part(net: Net, clip: Tensor) -> None:
    model = sparsetime.sparsify(net, clip[:, 0]).train()
    model(clip)
    layers = sparsetime.delta_layers(model)
    whole = sparsetime.penalty(model)
    relu = layers["relu"]
    assert relu.penalty is not None
    relu.enabled = False
    torch.testing.assert_close(sparsetime.penalty(model), whole - relu.penalty * relu.weight / relu.scale)


class Difference(nn.Module):
    """One sparse network for two inputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.network(x) - self.network(y)


@pytest.mark.parametrize("options", [{}, {"rule": "lsq"}, {"codec": "hold"}, {"layer": "spatial_l1"}])
def test_a_penalty_that_leaves_out_a_pass_of_the_loss_is_an_error(
    options: dict[str, str], net: Net, clip: Tensor
) -> None:
    model = Difference(sparsetime.sparsify(net, clip[:, 0], **options)).train()
    loss = model(clip, -clip).square().sum() + sparsetime.penalty(model)
    with pytest.raises(ValueError, match=r"ran more than once in this loss.*after each pass.*torch.cat"):
        loss.backward()


class Checkpointed(nn.Module):
    """A delta layer, and another one in a part that is computed again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.between, self.second = DeltaActivation(), nn.Linear(6, 8), DeltaActivation()

    def forward(self, x: Tensor, reentrant: bool | None) -> Tensor:
        x = self.first(x)
        if reentrant is None:
            return self.second(self.between(x))
        return checkpoint(lambda x: self.second(self.between(x)), x, use_reentrant=reentrant)


def test_a_checkpoint_within_which_penalties_are_lost_is_an_error() -> None:
    torch.manual_seed(0)
    model, x = Checkpointed().train(), torch.rand(2, 4, 6, requires_grad=True)
    model(x, None)
    whole = sparsetime.penalty(model).item()
    y = model(x, False)
    assert sparsetime.penalty(model).item() == whole
    (y.sum() + sparsetime.penalty(model)).backward()
    model(x, True).sum().backward()  # no penalty, none lost
    y = model(x, True)
    loss = y.sum() + sparsetime.penalty(model)
    with pytest.raises(ValueError, match=r"again in the backward pass.*use_reentrant=False"):
        loss.backward()
    with torch.no_grad():  # a part that is not trained
        model.second(model.first(x))
    model.first(x)
    assert sparsetime.penalty(model).item() > 0
    (model(x, False).sum() + sparsetime.penalty(model)).backward()


def test_passes_that_are_in_no_loss_or_in_one_of_their_own(net: Net, clip: Tensor) -> None:
    model = sparsetime.sparsify(net, clip[:, 0]).train()
    kept = model(clip)  # in no loss
    model(clip).sum().backward()  # without a penalty
    first, one = model(clip), sparsetime.penalty(model)
    second, other = model(-clip), sparsetime.penalty(model)
    (first.sum() - second.sum() + one + other).backward()
    (model(clip) - model(-clip)).sum().backward()
    assert isinstance(kept.grad_fn, torch.autograd.graph.Node)
    step = sparsetime.delta_layers(model)["relu"].step
    assert step.grad is not None
    assert step.grad.isfinite()


@pytest.mark.parametrize("function", ["penalty", "enable", "calibrate"])
def test_a_model_without_layers(function: str, net: Net, clip: Tensor) -> None:
    arguments = {"penalty": (), "enable": (True,), "calibrate": (clip,)}[function]
    with pytest.raises(ValueError, match=rf"{function}: the model has no delta layers.*sparsify\(model, example\)"):
        getattr(sparsetime, function)(net, *arguments)


def test_disabled_layers_give_what_the_network_gave(net: Net, clip: Tensor) -> None:
    model = sparsetime.sparsify(net, clip[:, 0])
    expected = net(clip.flatten(0, 1)).unflatten(0, (2, 4))
    assert not torch.equal(model(clip), expected)
    sparsetime.enable(model, False)
    assert torch.equal(model(clip), expected)
    sparsetime.enable(model, True)
    assert not torch.equal(model(clip), expected)


def test_calibration_by_hand() -> None:
    layer = DeltaActivation((1,))
    model = nn.Sequential(layer)
    sparsetime.calibrate(model, torch.tensor([[[0.0], [2.0], [-5.0], [8.0]]]), percentile=100, levels=4)
    assert layer.step.item() == 2.0  # ReLU: 0 2 0 8
    assert layer.scale.item() == 8.0
    sparsetime.calibrate(model, torch.tensor([[[0.0], [2.0], [-5.0], [8.0]]]), percentile=50, levels=4)
    assert layer.step.item() == 0.5
    assert layer.scale.item() == 2.0


def test_clips_are_averaged_and_one_in_which_a_layer_is_silent_does_not_count() -> None:
    layer = DeltaActivation((1,))
    model = nn.Sequential(layer)
    clips = [torch.tensor([[[2.0], [1.0]]]), torch.tensor([[[-3.0], [-1.0]]]), torch.tensor([[[6.0], [1.0]]])]
    sparsetime.calibrate(model, iter(clips), percentile=100, levels=2)
    assert layer.step.item() == 2.0  # (1 + 3) / 2
    assert layer.scale.item() == 4.0


def test_calibration_looks_at_the_unquantised_network(net: Net, clip: Tensor) -> None:
    model = sparsetime.sparsify(net, clip[:, 0], step=100.0)  # so coarse that everything behind would be silent
    sparsetime.calibrate(model, clip, percentile=100, levels=10)
    with torch.no_grad():
        first = F.relu(net.first(clip.flatten(0, 1)))
        second = F.relu(net.second(first)).mean((2, 3))
    layers = sparsetime.delta_layers(model)
    for name, values in (("input", clip), ("relu", first), ("mean", second)):
        layer = layers[name]
        assert isinstance(layer, DeltaActivation)
        assert layer.scale.item() == pytest.approx(values.abs().max().item(), rel=1e-6)
        assert layer.step.item() == pytest.approx(values.abs().max().item() / 10, rel=1e-6)


def test_calibration_of_spatial_layers_sets_their_scale(net: Net, clip: Tensor) -> None:
    model = sparsetime.sparsify(net, clip[:, 0], layer="spatial_l1")
    sparsetime.calibrate(model, clip, percentile=100)
    layer = sparsetime.delta_layers(model)["relu"]
    assert isinstance(layer, SpatialL1)
    with torch.no_grad():
        expected = F.relu(net.first(clip.flatten(0, 1))).max().item()
    assert layer.scale.item() == pytest.approx(expected, rel=1e-6)


def test_calibration_of_a_layer_placed_by_hand_that_takes_clips() -> None:
    """(N, T, C, H, W): channels are channels and not frames."""
    layer = DeltaActivation((3, 2, 2), granularity="channel", activation="identity", pool=(2, 2), bias=3)
    clip = torch.zeros(2, 4, 3, 4, 4)
    clip[:, :, 0], clip[:, :, 1], clip[:, :, 2] = 1.0, 2.0, 4.0
    sparsetime.calibrate(nn.Sequential(layer), clip, percentile=100, levels=1)
    assert layer.step.flatten().tolist() == [1.0, 2.0, 4.0]


def test_calibration_of_a_layer_that_accumulates() -> None:
    layer = DeltaActivation((1,), sigma=True)
    sparsetime.calibrate(nn.Sequential(layer), torch.ones(1, 6, 1), percentile=100, levels=1)
    assert layer.step.item() == 6.0  # six deltas of one
    model = nn.ModuleList([layer])
    model.forward = lambda x: layer(x.flatten(0, 1), frames=3)  # type: ignore[method-assign]
    sparsetime.calibrate(model, torch.ones(2, 3, 1), percentile=100, levels=1)
    assert layer.step.item() == 3.0


def test_silence_everywhere_is_an_error() -> None:
    model = nn.Sequential(DeltaActivation(step=0.125))
    with pytest.raises(ValueError, match="every layer stayed silent"):
        sparsetime.calibrate(model, torch.zeros(1, 2, 3))
    assert model[0].step.item() == 0.125


def test_calibration_with_a_loader(net: Net, clip: Tensor) -> None:
    model = sparsetime.sparsify(net, clip[:, 0]).train()
    steps = [layer.step.item() for layer in sparsetime.delta_layers(model).values()]
    loader = torch.utils.data.DataLoader([(one, 0) for one in clip], batch_size=2)
    words = r"expected clips as tensors, .* got a list. Of batches .*\(model, \(clip for clip, _ in loader\)\)"
    with pytest.raises(TypeError, match=words):
        sparsetime.calibrate(model, loader)
    assert [layer.step.item() for layer in sparsetime.delta_layers(model).values()] == steps
    assert model.training
    sparsetime.calibrate(model, (clip for clip, _ in loader))
    found = [layer.step.item() for layer in sparsetime.delta_layers(model).values()]
    sparsetime.calibrate(model, clip)
    assert [layer.step.item() for layer in sparsetime.delta_layers(model).values()] == found
    assert found != steps


def test_calibration_with_several_inputs(clip: Tensor) -> None:
    class Stereo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(2, 3, 1), nn.Conv2d(1, 3, 1)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.left(left) + self.right(right)

    pair = (clip, 5 * clip[:, :, :1])
    model = sparsetime.sparsify(Stereo(), [x[:, 0] for x in pair])
    sparsetime.calibrate(model, [pair, pair], percentile=100, levels=8)
    steps = [layer.step.item() for layer in sparsetime.delta_layers(model).values()]
    assert steps == pytest.approx([x.abs().max().item() / 8 for x in pair])


def test_calibration_restores_modes(net: Net, clip: Tensor) -> None:
    model = sparsetime.sparsify(net, clip[:, 0]).train()
    model.get_submodule("second").eval()
    layers = sparsetime.delta_layers(model)
    layers["relu"].enabled = False
    sparsetime.calibrate(model, clip)
    assert model.training
    assert not model.get_submodule("second").training
    assert {name: layer.enabled for name, layer in layers.items()} == {"input": True, "relu": False, "mean": True}


def test_a_silent_layer_keeps_its_step(net: Net, clip: Tensor) -> None:
    with torch.no_grad():
        net.first.weight.fill_(0.0)
        net.first.bias.fill_(-1.0)  # type: ignore[union-attr]  # dead behind the ReLU
    model = sparsetime.sparsify(net, clip[:, 0], step=0.125)
    with pytest.warns(UserWarning, match="layer 'relu' stayed silent"):
        sparsetime.calibrate(model, clip, percentile=100, levels=4)
    layers = sparsetime.delta_layers(model)
    assert layers["relu"].step.item() == 0.125  # type: ignore[union-attr, operator]
    assert layers["input"].step.item() == pytest.approx(clip.abs().max().item() / 4)  # type: ignore[union-attr, operator]


def test_the_scale_of_lsq_is_in_codes(net: Net, clip: Tensor) -> None:
    model = sparsetime.sparsify(net, clip[:, 0], rule="lsq")
    sparsetime.calibrate(model, clip, levels=16)
    assert [layer.scale.item() for layer in sparsetime.delta_layers(model).values()] == [16.0] * 3


@pytest.mark.parametrize(
    ("clips", "words"),
    [
        ([], "no clips were given"),
        ([torch.ones(1, 2, 2, 8, 8), torch.full((1, 2, 2, 8, 8), math.nan)], "NaN"),
        ([torch.ones(1, 2, 2, 8, 8), torch.full((1, 2, 2, 8, 8), 3e38)], "layer 'relu': .* not finite"),
    ],
)
def test_calibration_that_fails_leaves_everything_as_it_was(clips: list[Tensor], words: str, net: Net) -> None:
    with torch.no_grad():
        net.first.weight.fill_(10.0)  # the largest numbers overflow behind it
    model = sparsetime.sparsify(net, torch.ones(1, 2, 8, 8), step=0.125).train()
    with pytest.raises(ValueError, match=words):
        sparsetime.calibrate(model, clips)
    for layer in sparsetime.delta_layers(model).values():
        assert isinstance(layer, DeltaActivation)
        assert layer.step.item() == 0.125
        assert layer.scale.item() == 1.0
        assert layer.enabled
        assert not layer._forward_pre_hooks
    assert model.training


def test_a_layer_that_is_not_reached_is_named() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = DeltaActivation(), DeltaActivation()

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    with pytest.raises(ValueError, match="layer 'unused' was not reached"):
        sparsetime.calibrate(Unused(), torch.ones(1, 2, 3))


def test_steps_have_a_learning_rate_of_their_own(net: Net, clip: Tensor) -> None:
    model = sparsetime.sparsify(net, clip[:, 0], step={"relu": 0.5, "mean": 2.0})
    weights, *steps = sparsetime.parameter_groups(model, lr=0.1, step_lr=0.4, weight_decay=0.01)
    layers = sparsetime.delta_layers(model)
    assert (weights["lr"], weights["weight_decay"]) == (0.1, 0.01)
    assert [(group["lr"], group["weight_decay"]) for group in steps] == [(0.2, 0.0), (0.8, 0.0)]
    assert [group["params"] for group in steps] == [[layers["relu"].step], [layers["mean"].step]]  # type: ignore[union-attr]
    assert {id(p) for p in weights["params"]} == {id(p) for p in sparsetime.unsparsify(model).parameters()}
    torch.optim.SGD([weights, *steps], lr=1.0, momentum=0.9)


def test_frozen_parameters_and_fixed_steps_are_in_no_group(net: Net, clip: Tensor) -> None:
    model = sparsetime.sparsify(net, clip[:, 0], rule="fixed")
    model.first.weight.requires_grad_(False)
    groups = sparsetime.parameter_groups(model, lr=0.1, step_lr=0.4)
    assert len(groups) == 1
    assert len(groups[0]["params"]) == len(list(net.parameters())) - 1


@pytest.mark.parametrize("codec", ["hold", "residual"])
def test_steps_of_other_codecs_are_not_trained(codec: str, net: Net, clip: Tensor) -> None:
    model = sparsetime.sparsify(net, clip[:, 0], codec=codec).train()  # type: ignore[arg-type]
    assert len(sparsetime.parameter_groups(model, lr=0.1, step_lr=0.4)) == 1
    (model(clip).square().mean() + sparsetime.penalty(model)).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_three_lines_are_enough_to_train(net: Net, clip: Tensor) -> None:
    """The task is learned, and with the penalty less changes than without (the input changes as it changes)."""
    labels = torch.tensor([0, 2])
    clip = clip[:, :1] + clip  # what all frames of a clip have in common, and noise
    penalties = []
    for weight in (0.0, 16.0):
        model = sparsetime.sparsify(net, clip[:, 0])
        sparsetime.calibrate(model, clip)
        model.train()
        optimizer = torch.optim.Adam(sparsetime.parameter_groups(model, 5e-3, 1e-2))
        losses = []
        for _ in range(60):
            task = F.cross_entropy(model(clip).mean(1), labels)
            penalty = sparsetime.penalty(model)
            optimizer.zero_grad()
            (task + weight * penalty).backward()
            optimizer.step()
            losses.append(task.item())
        assert losses[-1] < 0.5 * losses[0]
        penalties.append(penalty.item())
    assert penalties[1] < 0.75 * penalties[0]
