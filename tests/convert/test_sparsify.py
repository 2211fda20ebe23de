"""Where delta layers go, what stays as it was, and what is refused."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

import sparsetime
from sparsetime import DeltaActivation, SparsifyError, SpatialL1
from sparsetime.watch import LinearCall, OpNames, WatchLinear

from .sample_networks import (
    NETWORKS,
    BatchNormAct2d,
    DropPath,
    MobileNetLike,
    ResNetLike,
    build,
)

N, T = 2, 3


def clip(channels: int = 3, size: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(N, 1, channels, size, size, generator=generator)
    return base + 0.3 * torch.randn(N, T, channels, size, size, generator=generator)


def leaves(output: Any) -> list[Tensor]:
    return list(output.values()) if isinstance(output, dict) else [output]


def frames_of(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The original network on every frame of a clip."""
    return [o.unflatten(0, x.shape[:2]) for o in leaves(model(x.flatten(0, 1)))]


def linear_calls(model: nn.Module, x: Tensor) -> dict[str, LinearCall]:
    names = OpNames(model)
    calls: dict[str, LinearCall] = {}
    with WatchLinear(lambda call: calls.update({names(call): call})), torch.no_grad():
        model(x)
    return calls


def layers_of(model: nn.Module) -> dict[str, DeltaActivation]:
    return {n: layer for n, layer in sparsetime.delta_layers(model).items() if isinstance(layer, DeltaActivation)}


# --------------------------------------------------------------------------------------------- for every sample


@pytest.fixture(params=list(NETWORKS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_names_survive_and_an_original_checkpoint_loads(name: str) -> None:
    network = build(name)
    model = sparsetime.sparsify(network, clip()[:, 0])
    original, sparse = network.state_dict(), model.state_dict()
    assert [key for key in sparse if not key.startswith("delta.")] == list(original)
    assert dict(model.named_parameters()).keys() >= dict(network.named_parameters()).keys()
    other = {key: value + 1 for key, value in original.items()}
    steps = {key: value.clone() for key, value in sparse.items() if key.startswith("delta.")}
    assert steps
    model.load_state_dict(other, strict=True)
    for key, value in model.state_dict().items():
        assert torch.equal(value, steps[key] if key in steps else other[key]), key


def test_disabled_layers_change_no_bit_in_evaluation(name: str) -> None:
    network = build(name)
    model = sparsetime.sparsify(network, clip()[:, 0])
    sparsetime.enable(model, False)
    for expected, got in zip(frames_of(network, clip()), leaves(model(clip())), strict=True):
        assert torch.equal(got, expected)


def test_disabled_layers_change_no_bit_in_training(name: str) -> None:
    """Outputs, gradients and batch statistics, with dropout and stochastic depth drawn alike."""
    network = build(name).train()
    model = sparsetime.sparsify(network, clip()[:, 0])
    assert model.training
    sparsetime.enable(model, False)
    torch.manual_seed(5)
    expected = frames_of(network, clip())
    sum(o.square().sum() for o in expected).backward()  # type: ignore[union-attr]
    torch.manual_seed(5)
    got = leaves(model(clip()))
    sum(o.square().sum() for o in got).backward()  # type: ignore[union-attr]
    for a, b in zip(expected, got, strict=True):
        assert torch.equal(a, b)
    for key, p in network.named_parameters():
        mine = model.get_parameter(key)
        assert (p.grad is None) == (mine.grad is None), key
        if p.grad is not None and mine.grad is not None:
            torch.testing.assert_close(mine.grad, p.grad, msg=lambda m, key=key: f"{key}: {m}")
    for key, b in network.named_buffers():
        assert torch.equal(model.get_buffer(key), b), key


def test_a_training_step_with_everything_on(name: str) -> None:
    model = sparsetime.sparsify(build(name), clip()[:, 0])
    sparsetime.calibrate(model, clip())
    model.train()
    (sum(o.square().mean() for o in leaves(model(clip()))) + sparsetime.penalty(model)).backward()
    for key, p in model.named_parameters():
        if p.requires_grad:
            assert p.grad is not None, key
            assert torch.isfinite(p.grad).all(), key


def test_every_encoded_operation_reads_multiples_of_a_step(name: str) -> None:
    """Between a delta layer and its readers lie operations that keep elements alone."""
    network = build(name)
    model = sparsetime.sparsify(network, clip()[:, 0], step=1 / 64)
    calls = linear_calls(model, clip())
    assert model.encoded == set(calls), "every countable operation of these networks can be fed"
    for key, call in calls.items():
        assert torch.equal(call.x * 64, torch.round(call.x * 64)), key
        assert (call.x != 0).any(), key
    for call in linear_calls(network, clip()[:, 0]).values():
        assert not torch.equal(call.x * 64, torch.round(call.x * 64))


def test_shares_sum_to_one_and_every_layer_has_one(name: str) -> None:
    model = sparsetime.sparsify(build(name), clip()[:, 0])
    shares = [layer.weight for layer in sparsetime.delta_layers(model).values()]
    assert sum(shares) == pytest.approx(1.0, abs=1e-12)
    assert min(shares) > 0


def test_a_clip_is_its_frames(name: str) -> None:
    model = sparsetime.sparsify(build(name), clip()[:, 0], step=0.25)
    with torch.no_grad():
        whole = leaves(model(clip()))
        for t in range(T):
            for one, expected in zip(leaves(model(clip()[:, t])), whole, strict=True):
                torch.testing.assert_close(one, expected[:, t])


def test_unsparsify_gives_the_original_back(name: str) -> None:
    network = build(name)
    model = sparsetime.sparsify(network, clip()[:, 0])
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01)
    sparsetime.enable(model, False)
    expected = leaves(model(clip()[:, 0]))
    back = sparsetime.unsparsify(model)
    assert type(back) is type(network)
    assert list(back.state_dict()) == list(network.state_dict())
    for one, two in zip(leaves(back(clip()[:, 0])), expected, strict=True):
        assert torch.equal(one, two)
    again = sparsetime.sparsify(back, clip()[:, 0])
    assert list(sparsetime.delta_layers(again)) == list(sparsetime.delta_layers(model))


def test_a_sparse_checkpoint_goes_round(name: str, tmp_path: Path) -> None:
    model = sparsetime.sparsify(build(name), clip()[:, 0])
    sparsetime.calibrate(model, clip())
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = sparsetime.sparsify(NETWORKS[name](), clip()[:, 0]).eval()
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), strict=True)
    for one, two in zip(leaves(other(clip())), leaves(model(clip())), strict=True):
        assert torch.equal(one, two)


def test_a_deep_copy_is_independent(name: str) -> None:
    model = sparsetime.sparsify(build(name), clip()[:, 0]).train()
    model(clip())
    model.eval()
    expected = [o.clone() for o in leaves(model(clip()))]
    twin = copy.deepcopy(model.train()).eval()
    model.eval()
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(1.5)
    for one, two in zip(leaves(model(clip())), expected, strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(leaves(twin(clip()))[0], expected[0])
    back = sparsetime.unsparsify(twin)
    assert not {p.data_ptr() for p in back.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert {p.data_ptr() for p in back.parameters()} <= {p.data_ptr() for p in twin.parameters()}


def test_a_whole_network_goes_through_pickle(name: str, tmp_path: Path) -> None:
    model = sparsetime.sparsify(build(name), clip()[:, 0])
    sparsetime.calibrate(model, clip())
    torch.save(model, tmp_path / "model.pt")
    other = torch.load(tmp_path / "model.pt", weights_only=False)
    assert [[(n.op, n.target) for n in graph.nodes] for graph in other.graphs.values()] == [
        [(n.op, n.target) for n in graph.nodes] for graph in model.graphs.values()
    ]
    assert (other.graphs[True] is other.graphs[False]) == (model.graphs[True] is model.graphs[False])
    for mode in (True, False):
        results = []
        for one in (model, other):
            torch.manual_seed(0)
            results.append(leaves(one.train(mode)(clip())))
        for one, two in zip(*results, strict=True):
            assert torch.equal(one, two)


def test_the_network_that_came_in_is_left_alone(name: str) -> None:
    network, example = build(name).train(), clip()[:, 0]
    before, kept = copy.deepcopy(network.state_dict()), example.clone()
    flags = [m.training for m in network.modules()]
    model = sparsetime.sparsify(network, example)
    assert torch.equal(example, kept)
    assert [m.training for m in network.modules()] == flags
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


# ---------------------------------------------------------------------------------------------------- placement

SITES = {
    "many_uses": ["input", "act", "act_1", "act_2", "relu_1"],
    "mobilenet": [
        "input",
        "features_0_2",
        *("features_1_conv_0_2", "features_1_conv_1_2", "add"),
        *("features_2_conv_0_2", "features_2_conv_1_2", "add_1"),
        *("features_3_conv_0_2", "features_3_conv_1_2"),
        "adaptive_avg_pool2d",
    ],
    "resnet": ["input", "maxpool", "layer1_0_relu", "layer1_0_relu_1", "layer1_1_relu", "avgpool"],
    "mobilenet_v3": ["input", "stem_2", "expand_2", "se_avgpool", "se_activation", "mul", "mean", "head_1"],
    "dense": ["input", "relu", "relu_1", "relu_2", "relu_3", "avg_pool2d"],
    "shufflenet": [
        "input",
        "maxpool",
        *("stage_0_branch2_2", "stage_0_branch2_4", "stage_0_branch2_7"),
        *("stage_1_branch2_2", "stage_1_branch2_4"),
        "mean",
    ],
    "efficientnet": [
        "input",
        "bn1_act",
        *("blocks_0_bn1_act", "blocks_0_bn2_act", "add"),
        *("blocks_1_bn1_act", "blocks_1_bn2_act", "add_1"),
        "global_pool_pool",
    ],
    "convnext": ["input", "stem", "blocks_0_norm", "blocks_0_act", "add", "blocks_1_norm", "blocks_1_act", "norm"],
    "vit": ["input", "block_norm1", "scaled_dot_product_attention", "block_norm2", "block_mlp_1", "norm"],
    "vit_torch": ["input", "block_norm2", "block_mlp_1", "norm"],
    "unet": ["input", "relu", "relu_1", "relu_2", "relu_3", "sigmoid"],
    "frozen_norm": ["input", "relu"],
}
CLAMPS = {
    "many_uses": {"act": "relu", "act_1": "relu", "act_2": "relu", "relu_1": "relu"},
    "resnet": {"layer1_0_relu": "relu", "layer1_0_relu_1": "relu", "layer1_1_relu": "relu"},
    "mobilenet_v3": {"se_activation": "relu"},
    "efficientnet": {f"{b}_act": "relu" for b in ("bn1", *(f"blocks_{i}_bn{j}" for i in (0, 1) for j in (1, 2)))},
    "efficientnet_silu": {},
}


@pytest.mark.parametrize("case", list(SITES))
def test_where_layers_go(case: str) -> None:
    assert list(sparsetime.delta_layers(sparsetime.sparsify(build(case), clip()[:, 0]))) == SITES[case]


@pytest.mark.parametrize(
    ("case", "twin"),
    [
        ("efficientnet", "efficientnet_drop_path"),
        ("efficientnet", "efficientnet_silu"),
        ("convnext", "convnext_drop_path"),
    ],
)
def test_what_happens_in_training_alone_moves_no_layer(case: str, twin: str) -> None:
    """Arithmetic on shapes in stochastic depth makes nodes that are named as the residual additions are."""
    assert list(sparsetime.delta_layers(sparsetime.sparsify(build(twin), clip()[:, 0]))) == SITES[case]


@pytest.mark.parametrize("case", list(CLAMPS))
def test_which_activations_the_layers_compute_themselves(case: str) -> None:
    layers = layers_of(sparsetime.sparsify(build(case), clip()[:, 0]))
    assert {n: layer.activation for n, layer in layers.items() if layer.activation != "identity"} == CLAMPS[case]


def test_what_is_left_dense_is_listed() -> None:
    for case in NETWORKS:
        model = sparsetime.sparsify(build(case), clip()[:, 0])
        words = {"vit": "scaled_dot_product_attention", "vit_torch": "multi_head_attention_forward"}.get(case)
        if words is None:
            assert model.left_dense == {}, case
        else:
            ((key, reason),) = model.left_dense.items()
            assert key == {"vit": "scaled_dot_product_attention", "vit_torch": "block.attn.mha"}[case]
            assert reason.startswith(words)


class Clamps(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x)))


@pytest.mark.parametrize(
    ("function", "activation"),
    [
        (nn.ReLU(), "relu"),
        (nn.ReLU(inplace=True), "relu"),
        (nn.ReLU6(), "relu6"),
        (nn.Hardtanh(0, 6), "relu6"),
        (nn.Hardtanh(), "identity"),
        (nn.LeakyReLU(), "identity"),
        (F.relu, "relu"),
        (F.relu_, "relu"),
        (torch.relu, "relu"),
        (torch.relu_, "relu"),
        (F.relu6, "relu6"),
        (lambda x: F.relu(x, inplace=True), "relu"),
        (lambda x: F.relu(input=x), "relu"),
        (lambda x: F.hardtanh(x, 0.0, 6.0), "relu6"),
        (lambda x: F.hardtanh(x, 0.0, 5.0), "identity"),
        (lambda x: x.relu(), "relu"),
        (lambda x: x.relu_(), "relu"),
        (lambda x: x.clamp(min=0), "relu"),
        (lambda x: x.clamp(0, 6), "relu6"),
        (lambda x: x.clamp_(min=0.0), "relu"),
        (lambda x: torch.clamp(x, 0), "relu"),
        (lambda x: torch.clamp(input=x, min=0, max=6.0), "relu6"),
        (lambda x: x.clamp(max=0), "identity"),
        (lambda x: x.clamp(1), "identity"),
    ],
)
def test_every_way_to_write_a_clamp(function: Callable[[Tensor], Tensor], activation: str) -> None:
    torch.manual_seed(0)
    network = Clamps(function)
    model = sparsetime.sparsify(network, clip()[:, 0], step=1e-4)
    (_, layer) = layers_of(model).values()
    assert layer.activation == activation
    torch.testing.assert_close(model(clip()[:, 0]), network(clip()[:, 0]), rtol=0, atol=1e-2)
    sparsetime.enable(model, False)
    assert torch.equal(model(clip()[:, 0]), network(clip()[:, 0]))


def test_a_layer_lies_behind_a_pool_only_if_nobody_reads_before_it() -> None:
    class Net(nn.Module):
        def __init__(self, twice: bool) -> None:
            super().__init__()
            self.a, self.b, self.c, self.twice = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 2, 2), twice

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.a(x))
            y = self.b(F.max_pool2d(x, 2))
            return y + self.c(x) if self.twice else y

    assert list(layers_of(sparsetime.sparsify(Net(False), clip()[:, 0]))) == ["input", "max_pool2d"]
    assert list(layers_of(sparsetime.sparsify(Net(True), clip()[:, 0]))) == ["input", "relu"]


def test_what_keeps_elements_is_walked_through() -> None:
    """Padding with zeros, slices, pixel shuffle, nearest upsampling: the layer goes where the tensor is smallest."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.pad = nn.Conv2d(3, 8, 1), nn.Conv2d(2, 4, 3), nn.ZeroPad2d(1)
            self.up, self.drop = nn.Upsample(scale_factor=2), nn.Dropout2d()

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.a(x))
            x = F.pixel_shuffle(x[:, :, 1:, :], 2)
            return self.b(self.pad(self.up(self.drop(x.contiguous().clone()))))

    layers = layers_of(sparsetime.sparsify(Net(), clip()[:, 0], granularity="neuron"))
    assert list(layers) == ["input", "relu"]
    assert layers["relu"].step.shape == (8, 16, 16)


def test_what_mixes_elements_is_a_source_of_its_own() -> None:
    class Net(nn.Module):
        def __init__(self, mix: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.a, self.b, self.mix = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), mix

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.mix(torch.relu(self.a(x))))

    cases: dict[str, Callable[[Tensor], Tensor]] = {
        "interpolate": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False),
        "pad": lambda x: F.pad(x, (1, 1), value=1.0),
        "pad_": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
        "avg_pool2d": lambda x: F.avg_pool2d(x, 2),
        "softmax": lambda x: x.softmax(1),
        "mul": lambda x: x * 2,
        "sigmoid": lambda x: x.sigmoid(),
    }
    for name, mix in cases.items():
        layers = layers_of(sparsetime.sparsify(Net(mix), clip()[:, 0]))
        assert list(layers) == ["input", name.rstrip("_")], name


def test_names_that_a_module_dictionary_cannot_hold() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.values, self.input, self.training_ = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, image: Tensor) -> Tensor:
            return self.training_(self.input(self.values(image)))

    layers = layers_of(sparsetime.sparsify(Net(), clip()[:, 0]))
    assert list(layers) == ["input", "values_", "input_1"]
    assert [layer.rule for layer in layers.values()] == ["fixed", "dal", "dal"]


def test_a_linear_operation_by_function_and_one_on_constants() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 3, 1, 1))
            self.by_table, self.by_vector = nn.Linear(4, 5), nn.Linear(4, 5)
            self.table, self.vector = nn.Parameter(torch.randn(1, 4)), nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            bias = self.by_table(self.table) + self.by_vector(self.vector)
            return F.conv2d(x, self.weight) + bias.view(1, 5, 1, 1)

    model = sparsetime.sparsify(Net(), clip()[:, 0])
    assert list(layers_of(model)) == ["input"]
    assert model.encoded == {"weight"}
    assert model.left_dense == {
        "by_table": "its input does not vary",
        "by_vector": "linear: not a product of a batch of frames and weights",
    }


# ------------------------------------------------------------------------------------------------------- shares


def test_shares_by_hand() -> None:
    """Stride, groups and borders on 4x4 frames.

    input  3x3 stride 2 padding 1, 3 -> 4: of each axis outputs 0, 2 meet 2 and 3 weights: 25 products, 25 * 3 * 4 = 300
    relu   depthwise 3x3 padding 1 on 2x2: every output meets all 4: 16 products * 4 channels = 64
    relu_1 1x1, groups 2, 4 -> 6: 4 places * 2 * 6 = 48, and the head's 2x2 kernel without padding: 4 * 4 * 5 = 80
    """

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, padding=1, groups=4)
            self.c, self.d = nn.Conv2d(4, 6, 1, groups=2), nn.Conv2d(4, 5, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = F.relu(self.b(F.relu(self.a(x))))
            return self.c(x), self.d(x)

    layers = layers_of(sparsetime.sparsify(Net(), torch.randn(1, 3, 4, 4)))
    total = 300 + 64 + 48 + 80
    assert {n: layer.weight * total for n, layer in layers.items()} == pytest.approx(
        {"input": 300, "relu": 64, "relu_1": 128}
    )


def test_shares_follow_the_elements_through_upsampling_slices_and_concatenation() -> None:
    """A quarter of the elements, upsampled, causes as many products as the rest; half of a sliced map causes all."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(3, 8, 1), nn.Conv2d(12, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            coarse = F.interpolate(F.relu(self.a(x)), scale_factor=2.0)
            fine = F.relu(self.b(x))
            return self.c(torch.cat([coarse, fine[:, 4:]], 1))

    layers = layers_of(sparsetime.sparsify(Net(), clip(size=4)[:, 0]))
    reads = {"input": 16 * 3 * 8 * 2, "relu": 16 * 8 * 5, "relu_1": 16 * 4 * 5}
    assert {n: layer.weight * sum(reads.values()) for n, layer in layers.items()} == pytest.approx(reads)


def test_shares_know_the_borders_of_concatenated_frames() -> None:
    """Two maps side by side, 3x3 with padding: the outer columns meet fewer weights, whichever map they are of."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 1, 1), nn.Conv2d(3, 1, 1), nn.Conv2d(1, 1, (1, 3), padding=(0, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.cat([F.relu(self.a(x))[..., :1], F.relu(self.b(x))], 3))

    layers = layers_of(sparsetime.sparsify(Net(), torch.randn(1, 3, 1, 2)))
    # columns: one of a, two of b; they meet 2, 3, 2 weights
    assert layers["relu"].weight / layers["relu_1"].weight == pytest.approx(2 / 5)


def test_shares_of_a_convolution_that_pads_by_itself_with_what_is_there() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 6, 1)
            self.c = nn.Conv2d(8, 4, 3, padding=1, padding_mode="circular")

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.cat([F.relu(self.a(x)), F.relu(self.b(x))], 1))

    layers = layers_of(sparsetime.sparsify(Net(), clip()[:, 0]))
    assert layers["relu_1"].weight / layers["relu"].weight == pytest.approx(3)
    assert sum(layer.weight for layer in layers.values()) == pytest.approx(1)


def test_shares_of_windows_and_of_other_orders_count_the_whole_frame() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.q, self.head = nn.LayerNorm(3), nn.Linear(3, 5), nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.norm(x.permute(0, 2, 3, 1))
            b, h, w, c = y.shape
            windows = y.view(b, 2, h // 2, 2, w // 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, h * w // 4, c)
            return self.q(windows), self.head(x)

    layers = layers_of(sparsetime.sparsify(Net(), clip()[:, 0]))
    assert layers["layer_norm" if "layer_norm" in layers else "norm"].weight == pytest.approx(15 / 21)
    assert layers["input"].weight == pytest.approx(6 / 21)


def test_excluded_layers_keep_the_shares_of_the_others() -> None:
    everywhere = layers_of(sparsetime.sparsify(build("resnet"), clip()[:, 0]))
    some = layers_of(sparsetime.sparsify(build("resnet"), clip()[:, 0], exclude="input"))
    assert {n: layer.weight for n, layer in some.items()} == {
        n: layer.weight for n, layer in everywhere.items() if n != "input"
    }


# --------------------------------------------------------------------------------------------- control by name


def test_include_and_exclude() -> None:
    network = build("resnet")
    both = sparsetime.sparsify(network, clip()[:, 0], include=["input", "layer1_*"], exclude="*_1")
    assert list(layers_of(both)) == ["input", "layer1_0_relu", "layer1_1_relu"]
    assert both.encoded == {"conv1", "layer1.0.conv2", "layer1.1.conv2"}
    assert both.left_dense["fc"] == "fed by avgpool, which is excluded"
    assert both.left_dense["layer1.0.conv1"] == "fed by maxpool, which is excluded"
    assert set(both.left_dense) | both.encoded == set(linear_calls(network, clip()[:, 0]))
    assert not set(both.left_dense) & both.encoded


def test_an_operation_that_is_fed_in_part_is_not_encoded() -> None:
    model = sparsetime.sparsify(build("dense"), clip()[:, 0], exclude="relu_1")
    assert "squeeze" not in model.encoded
    assert model.left_dense == {"squeeze": "fed by relu_1, which is excluded"}


def test_excluded_layers_compute_what_they_computed() -> None:
    network = build("resnet")
    model = sparsetime.sparsify(network, clip()[:, 0], include="avgpool", step=0.25)
    calls, original = linear_calls(model, clip()[:, 0]), linear_calls(network, clip()[:, 0])
    assert torch.equal(calls["layer1.1.conv2"].x, original["layer1.1.conv2"].x)
    assert torch.equal(calls["fc"].x, torch.round(original["fc"].x * 4) / 4)


def test_settings_by_pattern() -> None:
    model = sparsetime.sparsify(
        build("resnet"),
        clip()[:, 0],
        step={"layer1_0_relu": 0.5, "layer1_*": 0.25},
        rule={"maxpool": "lsq", "avg*": "fixed"},
        granularity={"maxpool": "channel", "avgpool": "neuron"},
        codec={"layer1_1_*": "hold"},
    )
    layers = layers_of(model)
    assert {n: layer.step.max().item() for n, layer in layers.items()} == {
        "input": 1 / 16,
        "maxpool": 1 / 16,
        "layer1_0_relu": 0.5,
        "layer1_0_relu_1": 0.25,
        "layer1_1_relu": 0.25,
        "avgpool": 1 / 16,
    }
    rules = {"input": "fixed", "maxpool": "lsq", "avgpool": "fixed"}
    assert {n: layer.rule for n, layer in layers.items()} == {n: rules.get(n, "dal") for n in layers}
    assert layers["maxpool"].step.shape == (6, 1, 1)
    assert layers["avgpool"].step.shape == (8, 1, 1)
    assert layers["input"].step.shape == ()
    assert {n for n, layer in layers.items() if layer.codec == "hold"} == {"layer1_1_relu"}


def test_one_setting_for_all() -> None:
    layers = layers_of(
        sparsetime.sparsify(build("resnet"), clip()[:, 0], step=0.5, rule="dal", granularity="neuron", codec="residual")
    )
    assert {(layer.rule, layer.codec, layer.granularity) for layer in layers.values()} == {
        ("dal", "residual", "neuron")
    }
    assert layers["input"].step.shape == (3, 16, 16)
    assert layers["maxpool"].step.shape == (6, 4, 4)
    assert layers["avgpool"].step.shape == (8, 1, 1)


def test_the_inputs_rule_is_fixed_and_that_of_a_layer_named_like_it_is_not() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input_block, self.b = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.input_block(x))

    layers = layers_of(sparsetime.sparsify(Net(), clip()[:, 0]))
    assert {n: layer.rule for n, layer in layers.items()} == {"input": "fixed", "input_block_1": "dal"}
    layers = layers_of(sparsetime.sparsify(Net(), clip()[:, 0], rule="dal"))
    assert layers["input"].step.requires_grad


def test_spatial_layers() -> None:
    network = build("resnet")
    model = sparsetime.sparsify(network, clip()[:, 0], layer="spatial_l1")
    layers = sparsetime.delta_layers(model)
    assert list(layers) == SITES["resnet"][1:]
    assert all(isinstance(layer, SpatialL1) for layer in layers.values())
    assert torch.equal(model(clip()), frames_of(network, clip())[0])
    spatial_penalty_by_hand(model)


def test_spatial_layers_before_something_that_works_in_place() -> None:
    spatial_penalty_by_hand(sparsetime.sparsify(build("mobilenet_v3"), clip()[:, 0], layer="spatial_l1"))


def spatial_penalty_by_hand(model: nn.Module) -> None:
    """In training: the sum of weight / scale * mean |X| over the layers, its gradients too; all parameters get one."""
    model.train()
    terms = []

    def keep(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        # Of a copy, since what comes next may write into it.
        terms.append(output.clone().abs().mean() * layer.weight / layer.scale)

    layers = sparsetime.delta_layers(model)
    handles = [layer.register_forward_hook(keep) for layer in layers.values()]
    output = model(clip())
    for handle in handles:
        handle.remove()
    assert len(terms) == len(layers)
    penalty, expected = sparsetime.penalty(model), torch.stack(terms).sum()
    torch.testing.assert_close(penalty, expected)
    assert expected > 0
    names, parameters = zip(*model.named_parameters(), strict=True)
    got, wanted = (
        torch.autograd.grad(x, parameters, retain_graph=True, allow_unused=True) for x in (penalty, expected)
    )
    assert sum(g is not None and bool(g.any()) for g in got) >= len(layers)
    for key, a, b in zip(names, got, wanted, strict=True):
        assert (a is None) == (b is None), key
        if a is not None:
            torch.testing.assert_close(a, b, msg=lambda m, key=key: f"{key}: {m}")
    (output.sum() + penalty).backward()
    for key, p in model.named_parameters():
        assert p.grad is not None, key
        assert torch.isfinite(p.grad).all(), key


# ------------------------------------------------------------------------------------------------ work in place


class InPlace(nn.Module):
    """Readers before and after somebody writes: Python's order decides what they see."""

    def __init__(self, act: Callable[[Tensor], Tensor], before: bool, after: bool) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(i, 4, 1) for i in (3, 4, 4, 4))
        self.act, self.before, self.after = act, before, after

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        early = self.c(x) if self.before else 0
        y = self.b(self.act(x))
        if self.after:
            y = y + self.d(x)  # what the activation left in x
        return y + early


@pytest.mark.parametrize("layer", ["delta", "spatial_l1"])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("act", [nn.ReLU(inplace=True), nn.Hardswish(inplace=True), torch.relu_, lambda x: x.mul_(2)])
def test_who_reads_a_tensor_after_it_was_written_reads_what_was_written(
    act: Callable[[Tensor], Tensor], before: bool, after: bool, layer: Any
) -> None:
    torch.manual_seed(0)
    network = InPlace(act, before, after)
    model = sparsetime.sparsify(network, clip()[:, 0], layer=layer, step=1e-4)
    with torch.no_grad():
        expected = network(clip()[:, 0])
        torch.testing.assert_close(model(clip()[:, 0]), expected, rtol=0, atol=1e-2)
        sparsetime.enable(model, False)
        assert torch.equal(model(clip()[:, 0]), expected)
    sparsetime.enable(model, True)
    (model.train()(clip()).sum() + sparsetime.penalty(model)).backward()


def test_a_clamp_in_place_on_a_view_of_what_others_read() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Linear(4 * 256, 4), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            y = self.b(F.relu_(x.view(x.shape[0], -1)))
            return y + self.c(x).mean((2, 3))

    network = Net()
    model = sparsetime.sparsify(network, clip()[:, 0], exclude="a")
    assert layers_of(model)["relu_"].activation == "identity"
    sparsetime.enable(model, False)
    with torch.no_grad():
        assert torch.equal(model(clip()[:, 0]), network(clip()[:, 0]))
    # With a layer on what lies behind the view the order of reading and writing cannot be kept: it is refused.
    with pytest.raises(
        SparsifyError, match=r"relu_ \(.*test_sparsify.py:\d+\) works in place on a view of what delta.a"
    ):
        sparsetime.sparsify(network, clip()[:, 0])


def test_an_operator_that_writes_into_what_is_read_under_another_name_is_refused() -> None:
    """Tracing takes `x += y` for `x = x + y`, which is something else here."""

    class Net(nn.Module):
        def __init__(self, alias: bool) -> None:
            super().__init__()
            self.a, self.b, self.alias = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), alias

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            kept = x if self.alias else x.clone()
            x += 1
            return self.b(torch.relu(x)) + kept

    sparsetime.sparsify(Net(False), clip()[:, 0])
    with pytest.raises(SparsifyError, match=r"Net computes something else when it is traced.*Write x = x \+ y"):
        sparsetime.sparsify(Net(True), clip()[:, 0])


def test_chance_in_evaluation_is_no_difference_and_draws_nothing_from_outside() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.dropout(torch.relu(self.a(x)), 0.5, training=True))

    network = Net()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    sparsetime.sparsify(network, clip()[:, 0])
    assert torch.equal(torch.rand(1), expected)


# ------------------------------------------------------------------------------------------- modes and buffers


def test_batch_statistics_go_on_counting_in_traced_batch_norms() -> None:
    model = sparsetime.sparsify(build("efficientnet"), clip()[:, 0]).train()
    before = model.get_buffer("bn1.num_batches_tracked").item()
    mean = model.get_buffer("bn1.running_mean").clone()
    model(clip())
    model(clip())
    assert model.get_buffer("bn1.num_batches_tracked").item() == before + 2
    assert not torch.equal(model.get_buffer("bn1.running_mean"), mean)
    model.eval()(clip())
    assert model.get_buffer("bn1.num_batches_tracked").item() == before + 2


def test_what_is_computed_from_buffers_follows_them() -> None:
    network = build("frozen_norm")
    model = sparsetime.sparsify(network, clip()[:, 0])
    sparsetime.enable(model, False)
    other = {key: value * 2 + 1 for key, value in network.state_dict().items()}
    network.load_state_dict(other)
    model.load_state_dict(other)
    assert torch.equal(model(clip()[:, 0]), network(clip()[:, 0]))


def test_frozen_parts_stay_frozen() -> None:
    network = MobileNetLike().train()
    frozen = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for module in frozen:
        module.eval()
    model = sparsetime.sparsify(network, clip()[:, 0])
    mean = model.get_buffer("features.0.1.running_mean").clone()
    assert model.training
    assert not model.get_submodule("features.0.1").training
    model(clip())
    assert torch.equal(model.get_buffer("features.0.1.running_mean"), mean)
    assert [m.training for m in sparsetime.unsparsify(model).modules()] == [m.training for m in network.modules()]


def test_a_traced_batch_norm_that_was_frozen_before_stays_frozen() -> None:
    network = build("efficientnet").train()
    for module in network.modules():
        if isinstance(module, BatchNormAct2d):
            module.eval()
    model = sparsetime.sparsify(network, clip()[:, 0])
    mean = model.get_buffer("bn1.running_mean").clone()
    model(clip())
    assert torch.equal(model.get_buffer("bn1.running_mean"), mean)
    model.train()
    with pytest.raises(ValueError, match=r"frozen or thawed after sparsify.*again after each model.train"):
        model(clip())


def test_a_traced_batch_norm_that_is_frozen_later_is_refused_instead_of_trained() -> None:
    model = sparsetime.sparsify(build("efficientnet"), clip()[:, 0]).train()
    model.get_submodule("blocks.0.bn1").eval()
    with pytest.raises(ValueError, match=r"'blocks.0.bn1' was frozen or thawed after sparsify"):
        model(clip())
    model.train()(clip())


def test_the_mode_of_the_model_decides_for_its_layers() -> None:
    model = sparsetime.sparsify(ResNetLike().train(), clip()[:, 0])
    assert all(layer.training for layer in sparsetime.delta_layers(model).values())
    model = sparsetime.sparsify(ResNetLike().eval(), clip()[:, 0])
    assert not any(layer.training for layer in sparsetime.delta_layers(model).values())
    assert not any(m.training for m in model.modules())


def test_a_network_that_does_something_else_in_training_is_refused_with_its_line() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            if self.training:
                return self.b(torch.tanh(x))
            return self.b(torch.relu(x))  # the line

    line = next(i for i, text in enumerate(Path(__file__).read_text().splitlines(), 1) if text.endswith("# the line"))
    with pytest.raises(SparsifyError, match=rf"in training than in evaluation, at relu \(.*test_sparsify.py:{line}\)"):
        sparsetime.sparsify(Net(), clip()[:, 0])


def test_a_part_that_runs_in_evaluation_only() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.b(torch.relu(self.a(x)))
            return x if self.training else x.softmax(1)

    network = Net()
    model = sparsetime.sparsify(network, clip()[:, 0])
    sparsetime.enable(model, False)
    assert torch.equal(model.eval()(clip()[:, 0]), network.eval()(clip()[:, 0]))
    assert torch.equal(model.train()(clip()[:, 0]), network.train()(clip()[:, 0]))


# -------------------------------------------------------------------------------------- inputs, outputs, dtypes


def test_several_inputs() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, image: Tensor, depth: Tensor) -> dict[str, Any]:
            x = torch.relu(self.a(image) + self.b(depth))
            return {"map": self.head(x), "pair": (x.mean((1, 2, 3)), x.mean())}

    network = Net()
    image, depth = clip(), clip(channels=1)
    model = sparsetime.sparsify(network, [image[:, 0], depth[:, 0]])
    assert list(layers_of(model)) == ["input_image", "input_depth", "relu"]
    assert [layer.rule for layer in layers_of(model).values()] == ["fixed", "fixed", "dal"]
    sparsetime.enable(model, False)
    got = model(image, depth)
    expected = network(image.flatten(0, 1), depth.flatten(0, 1))
    assert torch.equal(got["map"], expected["map"].unflatten(0, (N, T)))
    assert torch.equal(got["pair"][0], expected["pair"][0].unflatten(0, (N, T)))
    assert got["pair"][1].shape == ()


def test_an_argument_named_frames_and_arguments_with_defaults() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 4, 1)

        def forward(self, frames: Tensor, mask: Tensor | None = None, gain: float = 2.0) -> Tensor:
            x = self.a(frames)
            return x * gain

    network = Net()
    model = sparsetime.sparsify(network, clip()[:, 0])
    sparsetime.enable(model, False)
    assert torch.equal(model(clip()[:, 0]), network(clip()[:, 0]))
    assert list(layers_of(model)) == ["input"]


def test_a_tensor_made_while_tracing() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = x * torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)
            return self.b(torch.relu(self.a(x)))

    network = Net()
    model = sparsetime.sparsify(network, clip()[:, 0])
    sparsetime.enable(model, False)
    for mode in (False, True):
        assert torch.equal(model.train(mode)(clip()[:, 0]), network(clip()[:, 0]))
    assert torch.equal(copy.deepcopy(model)(clip()[:, 0]), network(clip()[:, 0]))


def test_one_frame_as_example() -> None:
    """Other dimensions of one are not taken for the batch."""
    model = sparsetime.sparsify(build("mobilenet"), clip()[:1, 0])
    assert list(layers_of(model)) == SITES["mobilenet"]
    assert model(clip()).shape == (N, T, 5)


def test_sequences_of_features() -> None:
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    model = sparsetime.sparsify(network, torch.randn(2, 6))
    assert model(torch.randn(2, 5, 6)).shape == (2, 5, 3)
    assert model(torch.randn(2, 6)).shape == (2, 3)
    assert [layer.weight for layer in layers_of(model).values()] == pytest.approx([48 / 72, 24 / 72])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    network = build("resnet").to(dtype)
    model = sparsetime.sparsify(network, clip()[:, 0].to(dtype))
    assert model(clip().to(dtype)).dtype == dtype
    sparsetime.enable(model, False)
    assert torch.equal(model(clip().to(dtype)), frames_of(network, clip().to(dtype))[0])


def test_the_example_is_not_written_into() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x.sub_(1).div_(2))

    for example in (clip()[:, 0].clone(), clip()[:1, 0].clone()):
        before = example.clone()
        sparsetime.sparsify(Net(), example)
        assert torch.equal(example, before)


def test_working_on_the_model_itself() -> None:
    network = build("resnet")
    model = sparsetime.sparsify(network, clip()[:, 0], copy_model=False)
    assert model.get_parameter("fc.weight") is network.fc.weight
    assert sparsetime.unsparsify(model) is network


# -------------------------------------------------------------------------------------------------------- errors


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if x.sum() > 0:  # the offending line
            x = -x
        return x


def test_an_untraceable_model_names_the_line() -> None:
    line = next(
        i for i, text in enumerate(Path(__file__).read_text().splitlines(), 1) if text.endswith("# the offending line")
    )
    network = nn.Sequential(nn.Conv2d(3, 3, 1), Untraceable())
    network.train()
    with pytest.raises(
        SparsifyError, match=rf"Sequential cannot be traced, at .*test_sparsify.py:{line}: if x.sum"
    ) as e:
        sparsetime.sparsify(network, clip()[:, 0])
    assert "control flow" in str(e.value)
    assert "by hand (sparsetime.nn.DeltaActivation)" in str(e.value)
    assert all(m.training for m in network.modules())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layer": "delta2"}, "layer must be 'delta' or 'spatial_l1', got 'delta2'"),
        ({"include": "layer9*"}, r"pattern 'layer9\*' fits no layer; layers are: input, maxpool, layer1_0_relu"),
        ({"exclude": ["input", "nothing"]}, "pattern 'nothing' fits no layer"),
        ({"exclude": "*"}, "include and exclude leave no layer of: input"),
        ({"step": {"conv*": 0.1}}, r"step: pattern 'conv\*' fits no layer"),
        ({"rule": {"conv*": "dal"}}, r"rule: pattern 'conv\*' fits no layer"),
        ({"granularity": {"conv*": "layer"}}, "granularity: pattern"),
        ({"codec": {"conv*": "hold"}}, "codec: pattern"),
        ({"exclude": "input", "step": {"input": 0.1}}, "step: pattern 'input' fits no layer"),
        ({"step": 0.0}, "finite and not zero"),
        ({"rule": "paper"}, "rule must be one of"),
        ({"codec": "zip"}, "codec must be one of"),
    ],
)
def test_wrong_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sparsetime.sparsify(build("resnet"), clip()[:, 0], **options)


def test_a_wrong_example() -> None:
    network = build("resnet")
    with pytest.raises(SparsifyError, match=r"does not run on the example \(2, 5, 16, 16\).*to have 3 channels"):
        sparsetime.sparsify(network, torch.randn(2, 5, 16, 16))
    with pytest.raises(SparsifyError, match=r"does not run on the example \(0, 3, 16, 16\).*expanded size"):
        sparsetime.sparsify(network, torch.randn(0, 3, 16, 16))
    assert not network.training


class Mixed(nn.Module):
    def __init__(self, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.before, self.after = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), before, after

    def forward(self, x: Tensor) -> Any:
        return self.after(self.b(torch.relu(self.a(self.before(x)))))


def same(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize("example", [clip()[:, 0], clip()[:1, 0], torch.zeros(1, 3, 16, 16)], ids=["2", "1", "zeros"])
def test_a_model_that_mixes_frames_is_refused_with_its_line(example: Tensor) -> None:
    line = Path(__file__).read_text().splitlines().index("    cases = [  # of mixing") + 2
    # fmt: off
    cases = [  # of mixing
        (lambda x: (x - x.min()) / (x.max() - x.min()), same),
        (same, lambda y: y / y.std()),
        (same, lambda y: y - y.mean()),
        (same, lambda y: y.reshape(1, -1, 8)),
        (same, lambda y: y.reshape(1, -1, 8).mean(1)),
    ]
    # fmt: on
    for number, (before, after) in enumerate(cases):
        model = Mixed(before, after)
        where = rf"Mixed mixes the frames of a batch, at \w+ \(.*test_sparsify.py:{line + number}\)"
        with pytest.raises(SparsifyError, match=where):
            sparsetime.sparsify(model, example)
        assert model.training


def test_a_model_that_computes_over_each_frame_is_taken() -> None:
    def after(y: Tensor) -> dict[str, Tensor]:
        own = (y - y.mean((1, 2, 3), keepdim=True)) / y.std((1, 2, 3), keepdim=True)
        return {"own": own, "loss": y.mean(), "anchors": torch.ones(3, 4), "codes": (y * 100).round()}

    sparsetime.sparsify(Mixed(lambda x: x / (x.abs().amax((1, 2, 3), keepdim=True) + 1), after), clip()[:, 0])
    # Noise tells frames apart too, but not by mixing them.
    sparsetime.sparsify(Mixed(same, lambda y: y + torch.rand_like(y)), clip()[:, 0])


def test_a_model_for_a_batch_of_one_is_told_that_it_is_the_two_that_fail() -> None:
    model = Mixed(same, lambda y: y.reshape(1, 8, 144))
    with pytest.raises(SparsifyError, match=r"Mixed runs on the example \(1, 3, 16, 16\), but not on a batch of two"):
        sparsetime.sparsify(model, clip()[:1, 0])


def test_a_model_that_does_not_take_one_frame_alone() -> None:
    model = Mixed(same, lambda y: y - y[1])
    with pytest.raises(SparsifyError, match=r"the example \(2, 3, 16, 16\), but not on one frame .*: index 1 is"):
        sparsetime.sparsify(model, clip()[:, 0])
    assert model.training


def test_a_model_without_linear_operations() -> None:
    with pytest.raises(SparsifyError, match="no linear operation"):
        sparsetime.sparsify(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), clip()[:, 0])


def test_a_model_whose_linear_operations_cannot_be_fed_names_them() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(16, 8, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x[:, 0])[0]

    with pytest.raises(SparsifyError, match=r"no linear operation.*; rnn: gru"):
        sparsetime.sparsify(Net(), clip()[:, 0])


def test_a_sparse_model_is_not_made_sparse_twice() -> None:
    model = sparsetime.sparsify(build("resnet"), clip()[:, 0])
    with pytest.raises(SparsifyError, match=r"SparseNetwork has delta layers already \(delta.input.*unsparsify"):
        sparsetime.sparsify(model, clip()[:, 0])
    with pytest.raises(SparsifyError, match="Sequential has delta layers already"):
        sparsetime.sparsify(nn.Sequential(nn.Conv2d(3, 4, 1), DeltaActivation()), clip()[:, 0])


def test_a_model_that_cannot_be_copied_can_be_shared() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    prune.l1_unstructured(network[2], "weight", amount=0.5)  # type: ignore[no-untyped-call]
    with pytest.raises(SparsifyError, match=r"Sequential cannot be copied: Only Tensors .*\nWith copy_model=False"):
        sparsetime.sparsify(network, clip()[:, 0])
    model = sparsetime.sparsify(network, clip()[:, 0], copy_model=False)
    sparsetime.enable(model, False)
    torch.testing.assert_close(model(clip()[:, 0]), network(clip()[:, 0]))


def test_a_compiled_model_is_made_sparse_before_it_is_compiled() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))
    for compiled, name in (
        (torch.compile(network), "the model"),
        (nn.Sequential(network[0], torch.compile(network[1])), "1"),
    ):
        with pytest.raises(SparsifyError, match=rf"{name} was compiled.*compile the result: torch.compile\(sparsetime"):
            sparsetime.sparsify(compiled, clip()[:, 0])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["delta", "frame_dims"])
def test_a_model_that_uses_the_names_of_a_sparse_network(name: str) -> None:
    network = build("resnet")
    setattr(network, name, nn.Identity())
    with pytest.raises(ValueError, match=f"ResNetLike has attributes named {name}"):
        sparsetime.sparsify(network, clip()[:, 0])


def test_drop_path_is_active_in_training_only() -> None:
    """A check of the sample itself: its two modes differ, or tests on it would be empty."""
    torch.manual_seed(0)
    drop, x = DropPath(0.5), torch.ones(8, 1)
    assert not torch.equal(drop.train()(x), x)
    assert torch.equal(drop.eval()(x), x)
