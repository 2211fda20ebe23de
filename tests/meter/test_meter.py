"""The meter against counting loops, and what must not change while it counts."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sparsetime
from sparsetime import DeltaActivation, Meter


class Net(nn.Module):
    """Strides, groups, borders, a convolution used twice, batch norm, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, 2, 1)
        self.norm = nn.BatchNorm2d(4)
        self.depth = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.head = nn.Linear(4, 3)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        x = self.relu(self.depth(x))
        x = F.relu(self.depth(x))
        return self.head(x.mean((2, 3)))


def moving(n: int = 2, t: int = 4, size: int = 7, seed: int = 0) -> Tensor:
    """A clip in which a part moves and a part is black."""
    generator = torch.Generator().manual_seed(seed)
    clip = torch.randn(n, 1, 2, size, size, generator=generator).expand(n, t, -1, -1, -1).clone()
    clip[:, :, :, : size // 2] = 0
    clip[:, :, :, -2:] += torch.randn(n, t, 2, 2, size, generator=generator)
    return clip


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    net = Net().eval()
    nn.init.constant_(net.depth.bias, 0.2)  # type: ignore[arg-type]  # no layer is silent
    return net


def sparse(net: Net, **options: Any) -> sparsetime.SparseNetwork:
    model = sparsetime.sparsify(net, moving()[:, 0], **options)
    sparsetime.calibrate(model, moving())
    return model


def conv_macs(mask: np.ndarray, weight: np.ndarray, stride: int, padding: int, groups: int) -> int:
    """Products of inputs that `mask` has, one frame (C, H, W), counted one by one."""
    _, h, w = mask.shape
    o, per_group, kh, kw = weight.shape
    count = 0
    for out in range(o):
        group = out // (o // groups)
        for y in range((h + 2 * padding - kh) // stride + 1):
            for x in range((w + 2 * padding - kw) // stride + 1):
                for i in range(per_group):
                    for dy in range(kh):
                        for dx in range(kw):
                            row, column = y * stride - padding + dy, x * stride - padding + dx
                            if 0 <= row < h and 0 <= column < w and weight[out, i, dy, dx] != 0:
                                count += bool(mask[group * per_group + i, row, column])
    return count


def inputs_of(model: nn.Module, clip: Tensor) -> dict[str, Tensor]:
    """What each linear operation reads, (N, T, ...), by the meter's name."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            key = name if name not in seen else f"{name}#2"
            seen[key] = args[0].detach().unflatten(0, clip.shape[:2])

        return hook

    handles = [
        m.register_forward_hook(keep(n)) for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        model(clip if isinstance(model, sparsetime.SparseNetwork) else clip.flatten(0, 1))
    for handle in handles:
        handle.remove()
    return seen


def brute_force(model: nn.Module, clip: Tensor) -> dict[str, dict[str, float]]:
    """Everything the meter counts per operation, by loops."""
    modules = {"stem": (2, 1, 1), "depth": (1, 1, 2), "depth#2": (1, 1, 2), "head": None}
    result = {}
    for name, x in inputs_of(model, clip).items():
        weight = model.get_parameter(f"{name.removesuffix('#2')}.weight").detach().numpy()
        ones = np.ones_like(weight)
        settings = modules[name]

        def macs(mask: np.ndarray, w: np.ndarray, settings: Any = settings) -> float:
            return float((mask[None] * (w != 0)).sum()) if settings is None else conv_macs(mask, w, *settings)

        array = x.numpy()
        n, t = array.shape[:2]
        later = [(array[i, j], array[i, j - 1]) for i in range(n) for j in range(1, t)]
        result[name] = {
            "dense_macs": macs(np.ones(array.shape[2:], bool), ones),
            "macs_first": sum(macs(array[i, 0] != 0, ones) for i in range(n)),
            "macs_later": sum(macs(now != 0, ones) for now, _ in later),
            "delta_macs_later": sum(macs(now != before, ones) for now, before in later),
            "nonzero_first": int((array[:, 0] != 0).sum()),
            "nonzero_later": int((array[:, 1:] != 0).sum()),
            "changed_later": int((array[:, 1:] != array[:, :-1]).sum()),
            "nb": sum(macs(array[i, j] != 0, weight) for i in range(n) for j in range(t)),
        }
    return result


def zero_some_weights(model: nn.Module) -> None:
    with torch.no_grad():
        model.get_parameter("depth.weight")[:, :, 0] = 0
        model.get_parameter("head.weight")[0] = 0


@pytest.mark.parametrize("kind", ["plain", "delta", "zero weights"])
def test_counts_equal_loops(kind: str, net: Net) -> None:
    clip = moving(t=3)
    model: nn.Module = net if kind == "plain" else sparse(net)
    if kind == "zero weights":
        zero_some_weights(model)
    with torch.no_grad(), Meter(model, frames=3) as meter:
        model(clip.flatten(0, 1) if kind == "plain" else clip)
    expected = brute_force(model, clip)
    assert list(meter.counts.ops) == ["stem", "depth", "depth#2", "head"]
    for name, op in meter.counts.ops.items():
        for key, value in expected[name].items():
            if key != "nb":
                assert getattr(op, key) == pytest.approx(value), (name, key)
        assert op.nb_macs + op.nb_acs == pytest.approx(expected[name]["nb"]), name
        assert op.nb_dense == op.dense_macs * 6
        assert (op.frames_first, op.frames_later) == (2, 4)
    assert meter.counts.clips == 2
    # The clip leaves something to count in every class.
    stem = meter.counts.ops["stem"]
    assert 0 < stem.changed_later < stem.nonzero_later < stem.elements * 4


def test_figures_are_made_of_the_counts(net: Net) -> None:
    clip = moving()
    model = sparse(net)
    with torch.no_grad(), Meter(model) as meter:
        model(clip)
    expected = brute_force(model, clip)
    figures = meter.summary()
    dense = sum(op["dense_macs"] for op in expected.values())
    later = sum(op["delta_macs_later"] for op in expected.values())
    first = sum(op["macs_first"] for op in expected.values())
    assert figures["skips"] == "deltas"
    assert figures["dense_macs"] == dense
    assert figures["op_density"] == pytest.approx(later / (dense * 6))
    assert figures["op_density_with_first_frame"] == pytest.approx((first + later) / (dense * 8))
    assert figures["op_density_activations"] == pytest.approx(
        sum(op["macs_later"] for op in expected.values()) / (dense * 6)
    )
    assert [row["name"] for row in figures["layers"]] == ["stem", "depth", "depth#2", "head"]
    json.dumps(figures, allow_nan=False)


@pytest.mark.parametrize("kind", ["plain", "delta", "training"])
def test_metered_and_unmetered_runs_give_the_same_bits(kind: str, net: Net) -> None:
    results = []
    for metered in (False, True):
        model: nn.Module = net if kind == "plain" else sparse(net)
        model.train(kind == "training")
        model.zero_grad()
        clip = moving() if kind != "plain" else moving().flatten(0, 1)
        if metered:
            with Meter(model, frames=4):
                output = model(clip)
        else:
            output = model(clip)
        output.square().sum().backward()
        results.append([output, *(p.grad for p in model.parameters() if p.grad is not None), *model.buffers()])
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_a_meter_leaves_nothing_behind(net: Net) -> None:
    model = sparse(net)
    with Meter(model):
        model(moving())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(RuntimeError, match="channels"), Meter(model):
        model(torch.zeros(1, 2, 3, 7, 7))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_two_clips_in_one_run_are_two_meters_added(net: Net) -> None:
    model = sparse(net)
    clips = moving(seed=1), moving(n=1, t=6, seed=2)
    with torch.no_grad():
        with Meter(model) as one_run:
            for clip in clips:
                model(clip)
        parts = []
        for clip in clips:
            with Meter(model) as meter:
                model(clip)
            parts.append(meter)
    total = parts[0] + parts[1]
    assert total.counts == one_run.counts
    assert total.summary() == one_run.summary()
    assert one_run.summary()["clips"] == 3
    assert one_run.summary()["frames"] == 2 * 4 + 6


def test_how_clips_are_batched_does_not_matter(net: Net) -> None:
    model = sparse(net)
    clip = moving()
    with torch.no_grad(), Meter(model) as together:
        model(clip)
    with torch.no_grad(), Meter(model) as apart:
        for one in clip.split(1):
            model(one)
    assert together.counts == apart.counts


def test_a_plain_network_is_told_the_frames(net: Net) -> None:
    clip = moving()
    with torch.no_grad(), Meter(net, frames=4) as meter:
        net(clip.flatten(0, 1))
    stem = meter.counts.ops["stem"]
    assert stem.changed_later == int((clip[:, 1:] != clip[:, :-1]).sum())
    assert meter.summary()["skips"] == "activations"
    assert meter.summary()["op_density"] == meter.summary()["op_density_activations"]
    with torch.no_grad(), Meter(net) as single:
        net(clip.flatten(0, 1))
    assert (single.counts.ops["stem"].frames_first, single.counts.ops["stem"].frames_later) == (8, 0)
    assert single.summary()["op_density"] is None
    assert single.summary()["activation_density"] == meter.summary()["activation_density"]


@pytest.mark.parametrize("frames", [1, 2, 255, 256, 257, 600])
def test_clips_of_any_length(frames: int) -> None:
    """Counting goes on beyond what a byte holds."""
    net = nn.Linear(3, 5)
    x = torch.ones(frames, 3)
    x[:, 1] = 0
    x[1::2, 2] = 2
    with torch.no_grad(), Meter(net, frames=frames) as meter:
        net(x)
    (op,) = meter.counts.ops.values()
    assert (op.nonzero_first, op.nonzero_later, op.changed_later) == (2, 2 * (frames - 1), frames - 1)
    assert op.macs_later == 10 * (frames - 1)


def test_frames_that_do_not_divide(net: Net) -> None:
    words = r"7 frames do not divide into clips of 3; see Meter\(frames=\)"
    with pytest.raises(ValueError, match=words), Meter(net, frames=3):
        net(moving().flatten(0, 1)[:7])
    with pytest.raises(ValueError, match="frames must be at least 1, got 0"):
        Meter(net, frames=0)


def test_frames_may_be_given_by_name(net: Net) -> None:
    with Meter(net) as named:
        net(x=moving()[:, 0])
    with Meter(net) as placed:
        net(moving()[:, 0])
    assert named.summary() == placed.summary()
    with Meter(net), pytest.raises(ValueError, match="Net was called without a tensor"):
        net(x=None)


def test_counting_needs_no_float64(net: Net) -> None:
    """Not every device has it."""
    zero_some_weights(net)
    model, made = sparse(net), set()

    class Types(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            made.update(x.dtype for x in tree_leaves(result) if isinstance(x, Tensor))
            return result

    with Meter(model), Types():
        model(moving())
    assert torch.int64 in made
    assert torch.float64 not in made


def test_frames_given_to_a_sparse_network_are_clips_of_one(net: Net) -> None:
    model = sparse(net)
    with torch.no_grad(), Meter(model) as meter:
        model(moving()[:, 0])
    assert (meter.counts.clips, meter.counts.ops["stem"].frames_later) == (2, 0)


def test_frames_for_a_sparse_network_that_is_fed_no_clips(net: Net) -> None:
    model = sparse(net).eval()
    x = moving().flatten(0, 1)
    with Meter(model, frames=4) as meter, torch.no_grad():
        with pytest.raises(ValueError, match=r"frames=4.*fed frames \(8, 2, 7, 7\).*x.unflatten\(0, \(-1, 4\)\)"):
            model(x)
        model(x.unflatten(0, (-1, 4)))
    assert meter.summary()["clips"] == 2


def test_a_sparse_network_inside_another_module(net: Net) -> None:
    class Around(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model, self.extra = model, nn.Parameter(torch.zeros(3))

        def forward(self, clip: Tensor) -> Tensor:
            return self.model(clip / 2) + self.extra

    model = sparse(net)
    around = Around(model)
    with torch.no_grad(), Meter(around) as meter:
        around(moving())
    with torch.no_grad(), Meter(model) as inner:
        model(moving() / 2)
    assert meter.counts.ops == inner.counts.ops
    assert meter.counts.clips == 2
    assert meter.counts.weight_bytes == inner.counts.weight_bytes + 12


class Head(nn.Module):
    """Sparse networks one after the other, and a head on the features of each frame or of each clip."""

    def __init__(self, *networks: nn.Module, features: int, per_clip: bool = False) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.conv, self.per_clip = nn.Linear(features, 5), per_clip

    def forward(self, x: Tensor) -> Tensor:
        for network in self.networks:
            x = network(x)
        return self.conv(x.mean((-1, -2)).mean(1) if self.per_clip else x.mean((-1, -2)))


@pytest.fixture
def two() -> tuple[sparsetime.SparseNetwork, sparsetime.SparseNetwork]:
    """Two sparse networks whose layers have the same names, the second for what the first gives."""
    torch.manual_seed(0)
    networks = []
    clip = moving()
    for channels, step in ((2, 0.1), (4, 0.3)):
        network = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
        networks.append(sparsetime.sparsify(network, clip[:, 0], step=step))
        with torch.no_grad():
            clip = networks[-1](clip)
    return networks[0], networks[1]


def test_two_sparse_networks_in_one_model(two: tuple[sparsetime.SparseNetwork, sparsetime.SparseNetwork]) -> None:
    model = nn.Sequential(*two)
    with torch.no_grad(), Meter(model) as meter:
        model(moving())
        model(moving(n=1, t=3, seed=3))
    parts = {}
    state = 0
    for name, network, clips in (("0", two[0], None), ("1", two[1], two[0])):
        with torch.no_grad(), Meter(network) as part:
            for clip in (moving(), moving(n=1, t=3, seed=3)):
                network(clip if clips is None else clips(clip))
        parts |= {f"{name}.{key}": op for key, op in part.counts.ops.items() if key in network.encoded}
        state += part.summary()["state_bytes"]
    figures = meter.summary()
    assert meter.counts.ops == parts
    assert list(parts) == ["0.0", "0.2", "1.0", "1.2"]
    assert all(op.encoded for op in parts.values())
    assert (figures["clips"], figures["frames"], figures["not_counted"]) == (3, 11, [])
    assert figures["state_bytes"] == state
    assert figures["op_density"] == pytest.approx(
        sum(op.delta_macs_later for op in parts.values()) / sum(op.dense_macs * 8 for op in parts.values())
    )


@pytest.mark.parametrize("count", [1, 2])
def test_a_plain_head_behind_sparse_networks_skips_zeros(
    two: tuple[sparsetime.SparseNetwork, sparsetime.SparseNetwork], count: int
) -> None:
    model = Head(*two[:count], features=4)
    with torch.no_grad(), Meter(model) as meter:
        model(moving())
    names = [f"networks.{k}.{layer}" for k in range(count) for layer in (0, 2)]
    assert list(meter.counts.ops) == [*names, "conv"]
    head = meter.counts.ops["conv"]
    assert (head.encoded, head.frames_first, head.frames_later) == (False, 2, 6)
    assert (head.elements, head.output_elements, head.dense_macs, head.nonzero_later) == (4, 5, 20, 24)
    assert meter.summary()["not_counted"] == []


def test_a_head_on_whole_clips_is_named(two: tuple[sparsetime.SparseNetwork, sparsetime.SparseNetwork]) -> None:
    model = Head(two[0], features=4, per_clip=True)
    with torch.no_grad(), Meter(model) as meter:
        model(moving())
    assert meter.summary()["not_counted"] == ["conv (the first dimension of its input is not that of the frames)"]
    assert list(meter.counts.ops) == ["networks.0.0", "networks.0.2"]


def test_what_runs_before_the_frames_are_known_is_named(
    two: tuple[sparsetime.SparseNetwork, sparsetime.SparseNetwork],
) -> None:
    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.network = nn.Conv2d(2, 4, 1), two[1]

        def forward(self, clip: Tensor) -> Tensor:
            return self.network(self.stem(clip.flatten(0, 1)).unflatten(0, clip.shape[:2]))

    model, clip = Stem(), moving()
    for options in ({}, {"frames": 4}, {"clips": True}):
        with torch.no_grad(), Meter(model, **options) as meter:  # type: ignore[arg-type]
            model(clip)
            model(clip)
        known = bool(options)
        assert list(meter.counts.ops)[-2:] == ["network.0", "network.2"]
        assert meter.counts.clips == 4
        assert meter.summary()["not_counted"] == (
            [] if known else ["stem (runs before the frames of a clip are known; see Meter(clips=))"]
        )
        if known:
            stem = meter.counts.ops["stem"]
            assert (stem.encoded, stem.frames_first, stem.frames_later) == (False, 4, 12)


def test_a_sparse_network_that_runs_twice_in_a_pass(
    two: tuple[sparsetime.SparseNetwork, sparsetime.SparseNetwork],
) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = two

        def forward(self, clips: list[Tensor]) -> list[Tensor]:
            return [self.other(self.one(clip)) for clip in clips]

    model = Both()
    with torch.no_grad(), Meter(model) as meter:
        model([moving(), moving(n=1, t=3)])
    assert list(meter.counts.ops) == ["one.0", "one.2", "other.0", "other.2"]
    assert meter.counts.clips == 3
    for op in meter.counts.ops.values():
        assert (op.encoded, op.frames_first, op.frames_later) == (True, 3, 8)


def test_a_pass_that_failed_leaves_the_next_one_as_it_is(
    two: tuple[sparsetime.SparseNetwork, sparsetime.SparseNetwork],
) -> None:
    model = nn.Sequential(*two)
    with torch.no_grad(), Meter(model) as meter:
        with pytest.raises(RuntimeError, match="channels"):
            model(torch.ones(1, 2, 3, 7, 7))
        model(moving())
    with torch.no_grad(), Meter(model) as alone:
        model(moving())
    assert meter.counts.ops == alone.counts.ops
    assert meter.summary()["not_counted"] == []


def test_a_model_that_is_fed_clips() -> None:
    """With delta layers put in by hand; a linear layer may take the clip as it is."""

    class ByHand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(2, 3, 3), nn.Linear(3, 5)
            self.before = DeltaActivation(activation="identity", step=0.5)
            self.after = DeltaActivation(step=0.5)

        def forward(self, x: Tensor) -> Tensor:
            n, t = x.shape[:2]
            y = self.conv(self.before(x.flatten(0, 1), frames=t))
            return self.head(self.after(y.mean((2, 3)).unflatten(0, (n, t))))

    torch.manual_seed(0)
    model, clip = ByHand(), moving(t=6)
    with torch.no_grad(), Meter(model, clips=True) as meter:
        model(clip)
        model(moving(n=6, t=3))
    figures = meter.summary()
    assert (figures["skips"], figures["clips"], figures["frames"], figures["not_counted"]) == ("deltas", 8, 30, [])
    quantised = [(c / 0.5).round() * 0.5 for c in (clip, moving(n=6, t=3))]
    changed = sum(int((c[:, 1:] != c[:, :-1]).sum()) for c in quantised)
    assert (meter.counts.ops["conv"].changed_later, meter.counts.ops["conv"].encoded) == (changed, True)
    head = meter.counts.ops["head"]
    assert (head.elements, head.output_elements, head.dense_macs) == (3, 5, 15)
    assert (head.frames_first, head.frames_later) == (8, 22)
    words = r"2 frames do not divide into clips of 6; .* Meter\(clips=\) for a model that is fed clips"
    with pytest.raises(ValueError, match=words), Meter(model, frames=6):
        model(clip)
    with pytest.raises(ValueError, match=r"clips=True, but ByHand was fed shape \(2, 3\)"), Meter(model, clips=True):
        model(torch.ones(2, 3))
    with pytest.raises(ValueError, match="leave out frames, or clips"):
        Meter(model, frames=6, clips=True)
    assert (meter + meter).counts.clips == 16


def test_static_frames_leave_no_operation(net: Net) -> None:
    model = sparse(net)
    with torch.no_grad(), Meter(model) as meter:
        model(moving()[:, :1].expand(-1, 5, -1, -1, -1))
    assert meter.summary()["op_density"] == 0
    assert meter.summary()["delta_density"] == 0
    assert meter.summary()["op_density_with_first_frame"] > 0


def test_disabled_layers_and_spatial_layers_skip_zeros(net: Net) -> None:
    model = sparse(net)
    sparsetime.enable(model, False)
    with torch.no_grad(), Meter(model) as disabled:
        model(moving())
    with torch.no_grad(), Meter(net, frames=4) as plain:
        net(moving().flatten(0, 1))
    spatial = sparsetime.sparsify(net, moving()[:, 0], layer="spatial_l1")
    with torch.no_grad(), Meter(spatial) as spatially:
        spatial(moving())
    for meter in (disabled, spatially):
        for key in ("skips", "op_density", "op_density_with_first_frame", "activation_density", "state_bytes"):
            assert meter.summary()[key] == plain.summary()[key], key
    assert plain.summary()["state_bytes"] == 0


# ------------------------------------------------------------------------------------------------------- partial use


def test_what_is_excluded_skips_zeros_and_keeps_no_state(net: Net) -> None:
    """Otherwise partial use would have the savings of full use at a fraction of its memory."""
    clip = moving()
    model = sparsetime.sparsify(net, clip[:, 0], include="input")
    sparsetime.calibrate(model, clip)
    with torch.no_grad(), Meter(model) as meter:
        model(clip)
    rows = {row["name"]: row for row in meter.summary()["layers"]}
    assert {name: row["encoded"] for name, row in rows.items()} == {
        "stem": True,
        "depth": False,
        "depth#2": False,
        "head": False,
    }
    assert rows["stem"]["op_density"] == rows["stem"]["op_density_deltas"]
    assert rows["depth"]["op_density"] == rows["depth"]["op_density_activations"]
    assert rows["depth"]["op_density_deltas"] < rows["depth"]["op_density_activations"]
    # the input's last values, 2 * 7 * 7, and the accumulator of the stem, 4 * 4 * 4
    assert meter.summary()["state_bytes"] == (98 + 64) * 4


def test_state_bytes_by_hand(net: Net) -> None:
    model = sparse(net)
    with torch.no_grad(), Meter(model) as meter:
        model(moving())
    references = 2 * 7 * 7 + 4 * 4 * 4 + 4 * 4 * 4 + 4
    accumulators = 3 * 4 * 4 * 4 + 3
    assert meter.summary()["state_bytes"] == (references + accumulators) * 4
    assert meter.summary()["weight_bytes"] == sum(p.numel() for p in model.parameters()) * 4
    double = model.double()
    with torch.no_grad(), Meter(double) as meter:
        double(moving().double())
    assert meter.summary()["state_bytes"] == (references + accumulators) * 8


def test_state_is_that_of_one_stream(net: Net) -> None:
    model = sparse(net)
    sizes = []
    for n, t in ((1, 2), (3, 5)):
        with torch.no_grad(), Meter(model) as meter:
            model(moving(n, t))
        sizes.append(meter.summary()["state_bytes"])
    assert sizes[0] == sizes[1]


# -------------------------------------------------------------------------------------------------------- NeuroBench


def test_activation_sparsity_counts_every_activation_once(net: Net) -> None:
    with torch.no_grad(), Meter(net, frames=4) as meter:
        net(moving().flatten(0, 1))
    x = moving().flatten(0, 1)
    with torch.no_grad():
        a = F.relu(net.norm(net.stem(x)))
        b = F.relu(net.depth(a))
        c = F.relu(net.depth(b))
    zeros = sum(int((v == 0).sum()) for v in (a, b, c))
    elements = sum(v.numel() for v in (a, b, c))
    assert meter.counts.activations == elements
    assert meter.summary()["neurobench"]["ActivationSparsity"] == pytest.approx(zeros / elements)


def test_activation_sparsity_of_layers_that_compute_the_activation(net: Net) -> None:
    """The same places as in the plain network, the values quantised; the input is no activation."""
    model = sparse(net)
    seen: list[Tensor] = []
    for name, layer in sparsetime.delta_layers(model).items():
        if "relu" in name:
            layer.register_forward_hook(lambda m, a, o: seen.append(o))
    with torch.no_grad(), Meter(model) as meter:
        model(moving())
    # the last ReLU feeds no linear operation: it is still itself
    assert len(seen) == 2
    assert meter.counts.activations == 3 * 8 * 64
    assert meter.counts.activations_nonzero >= sum(int((o != 0).sum()) for o in seen)


ACTIVATIONS = [
    *(nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.LeakyReLU(), nn.PReLU(), nn.RReLU(), nn.ELU(), nn.SELU()),
    *(nn.CELU(), nn.GELU(), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh(), nn.Sigmoid()),
    *(nn.Tanh(), nn.Softplus(), nn.Softsign(), nn.LogSigmoid(), nn.Threshold(0.0, 0.0), F.relu, F.silu, torch.relu),
    *(torch.sigmoid, torch.tanh, Tensor.relu, lambda x: x.sigmoid(), lambda x: x.tanh(), lambda x: x.relu_()),
]


@pytest.mark.parametrize("function", ACTIVATIONS)
def test_every_activation_function_is_known(function: Callable[[Tensor], Tensor]) -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    model = Plain()
    x = torch.tensor([[-1.0, 0.0, 2.0, 0.0]])
    with torch.no_grad(), Meter(model) as meter:
        y = model(x.clone())
    assert meter.counts.activations == 4
    assert meter.counts.activations_nonzero == int((y != 0).sum())


@pytest.mark.parametrize("activation", ["relu", F.relu, torch.square])
def test_a_layer_placed_by_hand_counts_as_one_activation(activation: Any) -> None:
    layer = DeltaActivation(activation=activation, step=0.5)
    x = torch.tensor([[[0.1, 1.0], [0.0, -2.0]]])
    with torch.no_grad(), Meter(layer, frames=1) as meter:
        y = layer(x)
    assert meter.counts.activations == 4
    assert meter.counts.activations_nonzero == int((y != 0).sum())
    assert meter.counts.reference_elements == 2  # per frame, whatever the clip's length


def test_inputs_of_minus_one_zero_and_one_are_accumulated() -> None:
    net = nn.Linear(3, 5)
    with torch.no_grad():
        net.weight[0, 0] = 0
    cases = [([[1.0, 0.0, -1.0]], 0.0, 9.0), ([[1.0, 0.0, -2.0]], 9.0, 0.0), ([[0.0, 0.0, 0.0]], 0.0, 0.0)]
    for x, macs, acs in cases:
        with torch.no_grad(), Meter(net) as meter:
            net(torch.tensor(x))
        operations = meter.summary()["neurobench"]["SynapticOperations"]
        assert operations == {"Effective_MACs": macs, "Effective_ACs": acs, "Dense": 15.0}


def test_an_operation_that_remains_is_counted_once() -> None:
    """Spikes: by zeros 2 and 1 of three inputs, by deltas 1 and 3; -1 to 1 is a change by 2, no accumulate."""
    net = nn.Linear(3, 5)
    spikes = [[1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    signed = [[1.0, -1.0, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 0.0]]
    values = [[1.0, 0.5, 0.0], [2.0, 0.5, 0.0], [2.0, 0.5, 0.0]]  # changes by ones
    cases: list[tuple[list[list[float]], Any, float, float]] = [
        (spikes, "activations", 0.0, 5 * 3 / 2),
        (spikes, "deltas", 0.0, 5 * 5 / 2),
        (signed, "activations", 0.0, 5 * 4 / 2),
        (signed, "deltas", 5 * 1 / 2, 0.0),
        (values, "activations", 5 * 4 / 2, 0.0),
        (values, "deltas", 0.0, 5 * 1 / 2),
    ]
    for frames, skips, macs, acs in cases:
        with torch.no_grad(), Meter(net, frames=3, skips=skips) as meter:
            net(torch.tensor(frames))
        figures = meter.summary()
        assert (figures["effective_macs"], figures["acs"]) == (macs, acs)
        assert figures["effective_macs"] + figures["acs"] == figures["op_density"] * figures["dense_macs"]
        energy = figures["energy"]["remaining"]["45nm_float32"]["energy_uj"]
        assert energy == pytest.approx((4.6 * macs + 0.9 * acs) * 1e-6)


def test_footprint_and_weights_that_are_zero() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.same = nn.Linear(3, 3)
            self.norm = nn.BatchNorm1d(3)
            self.last = nn.Linear(3, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.norm(self.same(self.same(x))))

    net = Twice().eval()
    with torch.no_grad():
        net.same.weight[0] = 0
        with Meter(net) as meter:
            net(torch.ones(2, 3))
            net(torch.ones(2, 3))
    figures = meter.summary()["neurobench"]
    assert figures["ConnectionSparsity"] == 3 / 15  # the weights of `same` count once
    # Weights and biases; gain, shift, mean, variance; and one int64 counter of batches.
    assert figures["Footprint"] == (9 + 3 + 6) * 4 + 4 * 3 * 4 + 8


def pruned(network: nn.Sequential) -> None:
    """A tenth of the weights of one layer are zero, and nine tenths of those of another with the same shape."""
    prune.l1_unstructured(network[2], "weight", amount=0.1)  # type: ignore[no-untyped-call]
    prune.l1_unstructured(network[4], "weight", amount=0.9)  # type: ignore[no-untyped-call]


def normalised(network: nn.Sequential) -> None:
    for layer in (network[2], network[4]):
        with torch.no_grad():
            layer.weight[:2] = 0
            nn.utils.parametrizations.weight_norm(layer, dim=None)  # type: ignore[no-untyped-call]


class LowRank(nn.Module):
    """Adds a product of two small matrices to a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, 1)), nn.Parameter(torch.randn(1, 4 * 9))

    def forward(self, weight: Tensor) -> Tensor:
        wanted = (self.a @ self.b).view_as(weight)
        wanted[:2] = -weight[:2]
        return weight + wanted


def adapted(network: nn.Sequential) -> None:
    nn.utils.parametrize.register_parametrization(network[2], "weight", LowRank())


@pytest.mark.parametrize("change", [pruned, normalised, adapted])
@pytest.mark.parametrize("is_sparse", [True, False])
def test_weights_that_are_computed_anew_in_each_pass_are_those_of_their_modules(
    change: Callable[[nn.Sequential], None], is_sparse: bool
) -> None:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(n, 4, 3, padding=1) for n in (2, 4, 4)]
    network = nn.Sequential(*(part for conv in convolutions for part in (conv, nn.ReLU()))).eval()
    change(network)
    clip = moving()
    model = sparsetime.sparsify(network, clip[:, 0], copy_model=False) if is_sparse else network
    with torch.no_grad(), Meter(model) as meter:
        for _ in range(2):
            model(clip if is_sparse else clip.flatten(0, 1))
    summary = meter.summary()
    zero = sum(int((conv.weight == 0).sum()) for conv in convolutions)
    assert summary["neurobench"]["ConnectionSparsity"] == zero / (4 * 9 * (2 + 4 + 4))
    assert zero > 50
    assert summary["not_counted"] == []
    assert not is_sparse or model.left_dense == {}
    assert [layer["name"] for layer in summary["layers"]] == ["0", "2", "4"]
    assert [layer["encoded"] for layer in summary["layers"]] == [True] * 3


def test_weights_that_are_no_modules_are_others_each_time() -> None:
    class Gains(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.tensor([0.0, 1.0]))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.linear(x, torch.eye(3) * self.gain[0]), torch.ones(3, 3) * self.gain[1])

    net = Gains()
    with torch.no_grad(), Meter(net) as meter:
        net(torch.ones(2, 3))
    assert meter.summary()["neurobench"]["ConnectionSparsity"] == 9 / 18


def test_synaptic_operations_are_per_sample() -> None:
    net = nn.Linear(3, 5)
    with torch.no_grad(), Meter(net) as meter:
        net(torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]]))
    assert meter.summary()["neurobench"]["SynapticOperations"]["Effective_MACs"] == 15 / 2


# ------------------------------------------------------------------------------------------------------- not counted


def test_what_is_not_counted_is_named() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj, self.rnn = nn.Linear(4, 4), nn.GRU(4, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(self.proj(F.scaled_dot_product_attention(x, x, x)))[0] @ x.transpose(1, 2)

    net = Attention().eval()
    with torch.no_grad(), Meter(net) as meter:
        net(torch.randn(2, 3, 4))
    assert meter.summary()["not_counted"] == ["gru", "matmul", "scaled_dot_product_attention"]
    assert list(meter.counts.ops) == ["proj"]
    assert meter.counts.ops["proj"].dense_macs == 3 * 16


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_modules_in_which_nothing_is_seen_are_named() -> None:
    x = torch.randn(2, 3, 4, 4)
    traced = torch.jit.trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), x)
    with torch.no_grad(), Meter(nn.Sequential(traced, nn.Flatten(), nn.Linear(16, 2))) as meter:
        meter._model(x)
    assert meter.summary()["not_counted"] == ["0 (compiled by torch.jit)"]
    assert list(meter.counts.ops) == ["2"]
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 2)))
    for net in (traced, scripted):
        with torch.no_grad(), Meter(net) as meter:
            net(x)
        assert meter.summary()["not_counted"] == [f"{type(net).__name__} (compiled by torch.jit)"]


def test_a_pass_without_linear_operations_is_named_where_there_are_weights() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 2))

        def forward(self, x: Tensor) -> Tensor:
            return (x[:, None] * self.weight).sum(-1)

    for net, words in ((Hidden(), ["Hidden (no linear operation was seen in a forward pass)"]), (nn.ReLU(), [])):
        with torch.no_grad(), Meter(net) as meter:
            net(torch.ones(1, 2))
        assert meter.summary()["not_counted"] == words


def test_operations_that_are_not_on_frames_are_named_and_not_counted_wrongly() -> None:
    """Windows, and tables that are the same for all frames: their first dimension is not the frames'."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.windows, self.table, self.head = nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(2, 5)
            self.positions = nn.Parameter(torch.randn(4, 2))

        def forward(self, x: Tensor) -> Tensor:
            y = self.windows(x.reshape(-1, 2, 2)).reshape(x.shape[0], -1)
            return self.head(x.mean(1)).sum(1) + y.sum(1) + self.table(self.positions).sum()

    net = Net()
    with torch.no_grad(), Meter(net, frames=2) as meter:
        net(torch.randn(2, 4, 2))
    assert list(meter.counts.ops) == ["head"]
    assert meter.summary()["not_counted"] == [
        f"{name} (the first dimension of its input is not that of the frames)" for name in ("table", "windows")
    ]


def test_zeros_that_are_padded_apart_are_no_operations() -> None:
    """The same network twice: once the convolution pads, once a layer before it does."""
    torch.manual_seed(0)
    together = nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1))
    apart = nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(2, 3, 3, 2), nn.ReLU(), nn.ZeroPad2d(1), nn.Conv2d(3, 3, 3))
    apart.load_state_dict(
        {f"{k}{key[1:]}": v for key, v in together.state_dict().items() for k in [{"0": 1, "2": 4}[key[0]]]}
    )
    figures = []
    for net in (together, apart):
        model = sparsetime.sparsify(net, moving()[:, 0])
        sparsetime.calibrate(model, moving())
        with torch.no_grad(), Meter(model) as meter:
            model(moving())
        summary = meter.summary()
        layers = [{k: v for k, v in row.items() if k != "name"} for row in summary.pop("layers")]
        figures.append((summary, layers, [layer.weight for layer in sparsetime.delta_layers(model).values()]))
    assert figures[0] == figures[1]


def test_zeros_that_are_padded_before_something_in_place_are_counted_as_they_arrive() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 2, 6, 6)
    net = nn.Sequential(nn.ZeroPad2d(1), nn.ReLU(inplace=True), nn.Conv2d(2, 3, 3))
    with torch.no_grad(), Meter(net) as meter:
        net(x)
    assert meter.counts.ops["2"].nonzero_first == int((x > 0).sum())


def test_layers_that_send_deltas_are_counted_by_what_they_send() -> None:
    """Placed by hand between operations that read deltas: zeros are what is skipped."""

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.fc = (
                DeltaActivation(activation="identity", step=0.5, output="delta"),
                nn.Linear(2, 3, False),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.encoder(x, frames=3))

    net = Chain()
    with torch.no_grad(), Meter(net, frames=3) as meter:
        net(torch.tensor([[1.0, 1.0], [1.0, 2.0], [1.0, 2.0]]))
    assert meter.summary()["skips"] == "activations"
    assert meter.summary()["op_density"] == pytest.approx(3 / 12)  # one of two elements, once in two later frames


def test_a_compiled_network_is_metered_as_the_network_itself() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    clip = torch.randn(2, 3, 3, 8, 8)
    model = sparsetime.sparsify(network, clip[:, 0])
    summaries = []
    for watched in (model, torch.compile(model, backend="eager")):
        with sparsetime.Meter(watched) as meter:
            watched(clip)
        summaries.append(meter.summary())
    assert summaries[0] == summaries[1]
