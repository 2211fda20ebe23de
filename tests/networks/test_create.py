"""The registry, and what holds for every built-in network."""

import doctest

import pytest
import torch
from torch import nn

from sparsetime import networks
from sparsetime.networks import create, names

# Batch norm and folded networks of every name, small enough to run here.
SMALL = {"deeplabv3_mobilenet_v2": (65, 49), "fastestdet": (96, 64), "squeezenet": (67, 59)}
CASES = [
    *((name, "none" if name == "squeezenet" else "batch") for name in names()),
    *((name, "folded") for name in names() if name.startswith("mobilenet") or name.startswith("deeplab")),
]


def small(name: str, norm: str, **options: object) -> networks.Network:
    torch.manual_seed(0)
    return create(name, input_size=SMALL.get(name, (64, 48)), norm=norm, num_classes=5, **options)


@torch.no_grad()
def randomise_batch_norm(network: nn.Module) -> None:
    """Statistics and affine parameters that a mistake would show in; fresh ones are the identity."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(std=0.1)


def test_names_has_the_built_in_networks() -> None:
    assert {
        "mobilenet_v1_025",
        "mobilenet_v1_050",
        "mobilenet_v1_075",
        "mobilenet_v1_100",
        "mobilenet_v2",
        "resnet18",
        "resnet50",
        "resnet20_cifar",
        "squeezenet",
        "fastestdet",
        "deeplabv3_mobilenet_v2",
        "small_cnn",
    } <= set(names())
    assert names() == sorted(names())


def test_docstring_example_runs() -> None:
    result = doctest.testmod(networks)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("mobilenet_v1_025", 128),
        ("mobilenet_v1_050", 160),
        ("mobilenet_v1_075", 192),
        ("mobilenet_v1_100", 224),
        ("mobilenet_v2", 224),
        ("resnet18", 224),
        ("resnet20_cifar", 32),
        ("squeezenet", 227),
        ("fastestdet", 352),
        ("deeplabv3_mobilenet_v2", 513),
        ("small_cnn", 64),
    ],
)
def test_usual_input_size(name: str, size: int) -> None:
    with torch.device("meta"):
        assert create(name).spec.input_size == (size, size)


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_traced_network_is_the_network_at_any_batch_size(name: str, norm: str) -> None:
    network = small(name, norm).eval()
    randomise_batch_norm(network)
    traced = torch.fx.symbolic_trace(network)
    for batch in (1, 3):
        x = torch.randn(batch, 3, *network.spec.input_size)
        with torch.no_grad():
            y = network(x)
            assert y.shape[0] == batch
            assert y.shape[1] == (10 if name == "fastestdet" else 5)
            assert y.std() > 0
            assert torch.equal(traced(x), y)


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_frames_of_a_batch_do_not_see_each_other_in_float64(name: str, norm: str) -> None:
    network = small(name, norm).eval().double()
    x = torch.randn(2, 3, *network.spec.input_size, dtype=torch.float64)
    with torch.no_grad():
        together = network(x)
        alone = torch.cat([network(x[:1]), network(x[1:])])
    assert together.dtype == torch.float64
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_every_parameter_gets_a_gradient(name: str, norm: str) -> None:
    network = small(name, norm)
    network(torch.randn(2, 3, *network.spec.input_size)).square().sum().backward()
    without = [key for key, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    # Convolution biases in front of batch norm would be here: there must be none.
    assert without == []


def test_the_seed_decides_the_fresh_weights() -> None:
    first, again = small("mobilenet_v2", "batch"), small("mobilenet_v2", "batch")
    other = create("mobilenet_v2", input_size=(64, 48), num_classes=5)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.features[0][0].weight, other.features[0][0].weight)


def test_no_classes_gives_the_features() -> None:
    network = create("mobilenet_v1_025", num_classes=0, input_size=(32, 32)).eval()
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 256)


def test_segmentation_has_the_size_of_the_frame() -> None:
    network = small("deeplabv3_mobilenet_v2", "folded").eval()
    assert network(torch.randn(1, 3, 65, 49)).shape == (1, 5, 65, 49)


def test_spec_can_make_the_network_again() -> None:
    for name, norm in CASES:
        spec = small(name, norm).spec
        with torch.device("meta"):
            again = create(spec.name, num_classes=spec.num_classes, input_size=spec.input_size, norm=spec.norm)
        assert again.spec == spec


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "mobilenet"}, "unknown network 'mobilenet': expected one of deeplabv3_mobilenet_v2"),
        ({"name": "resnet18", "input_size": (0, 32)}, "resnet18: expected a positive input_size"),
        ({"name": "resnet18", "num_classes": -1}, "num_classes of 0 or more"),
        ({"name": "squeezenet", "num_classes": 0}, "num_classes of 1 or more"),
        ({"name": "resnet18", "norm": "folded"}, "resnet18: expected norm batch, got folded"),
        ({"name": "fastestdet", "input_size": (100, 96)}, "fastestdet: expected an input_size of multiples of 32"),
    ],
)
def test_bad_arguments_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        create(**options)
