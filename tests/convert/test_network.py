"""A sparse network as a module: what it takes and refuses, checkpoints, moving, and the way back."""

import copy
import math
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import sparsetime
from sparsetime import SparseNetwork


class Net(nn.Module):
    """Parameters, buffers and an attribute at the root; a child; a buffer that is not saved."""

    scale: Tensor
    cache: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.title = "a net"
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)
        self.gain = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        self.register_buffer("scale", torch.tensor(0.5))
        self.register_buffer("cache", torch.tensor(1.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        x = x.mean((2, 3)) * self.gain * self.scale * self.cache
        return self.head(x)

    def describe(self) -> str:
        return self.title + "!"


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def model(net: Net) -> SparseNetwork:
    return sparsetime.sparsify(net, torch.randn(2, 3, 8, 8))


CLIP = torch.randn(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_clips_and_frames(model: SparseNetwork) -> None:
    whole = model(CLIP)
    assert whole.shape == (2, 3, 2)
    for t in range(3):
        torch.testing.assert_close(model(CLIP[:, t]), whole[:, t])
    assert model(CLIP[:, :1]).shape == (2, 1, 2)
    assert model(CLIP[:1]).shape == (1, 3, 2)


def test_another_size_of_frame_than_the_example(model: SparseNetwork) -> None:
    assert model(torch.randn(1, 2, 3, 12, 10)).shape == (1, 2, 2)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 2, 2, 3, 8, 8), (8,)])
def test_another_number_of_dimensions(model: SparseNetwork, shape: tuple[int, ...]) -> None:
    words = r"expected a clip of 5 dimensions \(N, T, ...\) or frames of 4 \(N, ...\), got shape \("
    with pytest.raises(ValueError, match=words):
        model(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(0, 3, 3, 8, 8), (2, 0, 3, 8, 8), (0, 3, 8, 8), (2, 3, 3, 0, 8)])
def test_an_empty_clip(model: SparseNetwork, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"the clip is empty, shape \("):
        model(torch.zeros(shape))


def test_channels_in_another_place(model: SparseNetwork) -> None:
    with pytest.raises(RuntimeError, match="to have 3 channels, but got 5 channels"):
        model(torch.zeros(2, 3, 5, 8, 8))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_name_the_clip(model: SparseNetwork, value: float) -> None:
    for clip in (CLIP.clone(), CLIP[:, 0].clone()):
        clip[1, ..., -1, -1] = value
        with pytest.raises(ValueError, match=r"holds NaN or infinite values \(in elements \[1\] of the batch\)"):
            model(clip)


def test_whole_numbers_are_taken_where_the_network_turns_them_into_fractions(model: SparseNetwork) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x / 255)

    clip = torch.randint(0, 256, (2, 3, 3, 8, 8), dtype=torch.uint8)
    scaled = sparsetime.sparsify(Scaled(), clip[:, 0])
    assert torch.equal(scaled(clip), scaled(clip.float()))
    with pytest.raises(TypeError, match=r"expected floating point, got torch.uint8; give the network clip.float\(\)"):
        model(clip)


class Masked(nn.Module):
    """A second input, and one that need not be given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor, mask: Tensor, gain: float = 2.0) -> Tensor:
        return self.conv(x * mask) * gain


@pytest.fixture
def masked() -> SparseNetwork:
    torch.manual_seed(0)
    return sparsetime.sparsify(Masked(), [CLIP[:, 0], torch.ones(1, 1, 8, 8)]).eval()


def test_inputs_may_be_given_by_name(masked: SparseNetwork) -> None:
    mask = (torch.rand(2, 3, 1, 8, 8) > 0.5).float()
    expected = masked(CLIP, mask)
    assert torch.equal(masked(x=CLIP, mask=mask), expected)
    assert torch.equal(masked(mask=mask, x=CLIP), expected)
    assert torch.equal(masked(CLIP, mask=mask, gain=4.0), 2 * expected)
    frames = masked(x=CLIP[:, 0], mask=mask[:, 0])
    torch.testing.assert_close(frames, expected[:, 0])
    with torch.no_grad(), sparsetime.Meter(masked) as by_place:
        masked(CLIP, mask)
    with torch.no_grad(), sparsetime.Meter(masked) as by_name:
        masked(mask=mask, x=CLIP)
    assert by_name.counts == by_place.counts
    with pytest.raises(TypeError, match="unexpected keyword argument 'weight'"):
        masked(CLIP, mask, weight=1)
    with pytest.raises(TypeError, match="expected a clip as first input or as 'x', got NoneType"):
        masked(mask=mask)


def test_another_input_is_no_clip(masked: SparseNetwork) -> None:
    frames = masked(CLIP[:, 0], torch.ones(8, 8))  # as the network itself takes it
    torch.testing.assert_close(frames, masked(CLIP, torch.ones(2, 3, 1, 8, 8))[:, 0])
    words = r"expected a clip \(2, 3, ...\) as 'mask', like the first input, got shape \("
    for mask in (torch.ones(8, 8), torch.ones(1, 1, 8, 8), torch.ones(3, 2, 1, 8, 8)):
        with pytest.raises(ValueError, match=words):
            masked(CLIP, mask)
        with pytest.raises(ValueError, match=words):
            masked(CLIP, mask=mask)
    with pytest.raises(sparsetime.SparsifyError, match=r"expected 2 frames .* got shape \(8, 8\) for 'mask'\. What"):
        sparsetime.sparsify(Masked(), [CLIP[:, 0], torch.ones(8, 8)])


def test_state_dict_has_the_original_and_the_layers(net: Net, model: SparseNetwork) -> None:
    keys = list(model.state_dict())
    assert keys[: len(net.state_dict())] == list(net.state_dict())
    assert "cache" not in keys
    assert set(keys) - set(net.state_dict()) == {
        f"delta.{name}.{part}" for name in ("input", "mul_2") for part in ("step", "scale")
    }


def test_every_parameter_is_there_once(model: SparseNetwork) -> None:
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert len(names) == len(set(names)) == 7 + 2


def test_an_original_checkpoint_leaves_the_steps(net: Net, model: SparseNetwork) -> None:
    with torch.no_grad():
        model.delta.get_submodule("input").step.fill_(0.3)
    given = {key: value * 2 for key, value in net.state_dict().items()}
    keys = list(given)
    missing, unexpected = model.load_state_dict(given)
    assert (missing, unexpected) == ([], [])
    assert list(given) == keys, "the caller's dictionary is not ours to fill"
    assert model.delta.get_submodule("input").step.item() == pytest.approx(0.3)
    assert torch.equal(model.get_parameter("conv.weight"), given["conv.weight"])


def test_a_checkpoint_with_a_part_of_the_layers_is_refused(model: SparseNetwork) -> None:
    state = model.state_dict()
    del state["delta.input.step"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"delta.input.step"'):
        model.load_state_dict(state)


def test_a_checkpoint_with_other_layers_is_refused(net: Net, model: SparseNetwork) -> None:
    state = OrderedDict(net.state_dict())
    state["delta.other.step"] = torch.tensor(1.0)
    with pytest.raises(RuntimeError, match=r'(?s)Missing key.*"delta.input.step".*Unexpected key.*"delta.other.step"'):
        model.load_state_dict(state)


@pytest.mark.parametrize("change", [lambda s: s.pop("conv.weight"), lambda s: s.update(extra=torch.zeros(1))])
def test_an_original_checkpoint_that_does_not_fit_is_refused(
    net: Net, model: SparseNetwork, change: Callable[[dict[str, Tensor]], object]
) -> None:
    state = dict(net.state_dict())
    change(state)
    with pytest.raises(RuntimeError, match=r"Missing key|Unexpected key"):
        model.load_state_dict(state)


def test_checkpoints_of_a_module_around_it(net: Net, model: SparseNetwork) -> None:
    around = nn.ModuleDict({"backbone": model})
    plain = nn.ModuleDict({"backbone": copy.deepcopy(net)})
    with torch.no_grad():
        plain.get_parameter("backbone.head.bias").fill_(7.0)
    around.load_state_dict(plain.state_dict(), strict=True)
    assert model.get_parameter("head.bias").tolist() == [7.0, 7.0]
    state = around.state_dict()
    del state["backbone.delta.input.scale"]
    with pytest.raises(RuntimeError, match=r"backbone.delta.input.scale"):
        around.load_state_dict(state)


def test_a_copy_loads_checkpoints_too(net: Net, model: SparseNetwork) -> None:
    twin = copy.deepcopy(model)
    twin.load_state_dict({key: value + 1 for key, value in net.state_dict().items()})
    assert torch.equal(twin.get_parameter("head.bias"), net.head.bias + 1)
    assert torch.equal(model.get_parameter("head.bias"), net.head.bias)


def test_what_the_original_had_is_still_there(model: SparseNetwork) -> None:
    assert model.title == "a net"
    assert model.describe() == "a net!"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = model.nothing


def test_unsparsify_after_moving(model: SparseNetwork) -> None:
    """`to` replaces the buffers of the root, which the original holds as well."""
    model.to(torch.float64)
    with torch.no_grad():
        model.scale.fill_(3.0)
        model.gain.fill_(2.0)
    back = sparsetime.unsparsify(model)
    assert isinstance(back, Net)
    assert {t.dtype for t in back.state_dict().values()} == {torch.float64, torch.int64}
    sparsetime.enable(model, False)
    assert torch.equal(back(CLIP[:, 0].double()), model(CLIP[:, 0].double()))
    assert (back.scale.item(), back.gain[0].item()) == (3.0, 2.0)
    assert back.cache.dtype == torch.float64


def test_unsparsify_keeps_modes(model: SparseNetwork) -> None:
    model.train()
    model.get_submodule("norm").eval()
    back = sparsetime.unsparsify(model)
    assert back.training
    assert not back.get_submodule("norm").training


def test_unsparsify_shares_the_weights(model: SparseNetwork) -> None:
    back = sparsetime.unsparsify(model)
    with torch.no_grad():
        model.get_parameter("head.bias").fill_(5.0)
        model.gain.fill_(5.0)
    assert back.get_parameter("head.bias").tolist() == [5.0, 5.0]
    assert back.get_parameter("gain").tolist() == [5.0] * 4


def test_unsparsify_with_a_new_head(model: SparseNetwork) -> None:
    model.head = nn.Linear(4, 7)
    back = sparsetime.unsparsify(model)
    sparsetime.enable(model, False)
    torch.testing.assert_close(back(CLIP[:, 0]), model(CLIP[:, 0]))
    assert [name for name, _ in back.named_children()] == ["conv", "norm", "head"]
    assert [name for name, _ in model.named_children()] == ["conv", "norm", "head", "delta"]


def test_unsparsify_of_something_else(net: Net) -> None:
    with pytest.raises(TypeError, match=r"expected what sparsetime.sparsify returned, got Net"):
        sparsetime.unsparsify(net)


def test_quantised_inference_in_two_precisions(model: SparseNetwork) -> None:
    sparsetime.calibrate(model, CLIP)
    single = model(CLIP)
    double = copy.deepcopy(model).double()(CLIP.double())
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-4)


def test_batch_norm_trains_as_in_the_original(net: Net, model: SparseNetwork) -> None:
    sparsetime.enable(model, False)
    net.train()(CLIP.flatten(0, 1))
    model.train()(CLIP)
    for key, value in net.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_it_says_how_much_was_left(model: SparseNetwork) -> None:
    assert repr(model).startswith("SparseNetwork(\n  2 delta layers, 0 linear operations left dense")
