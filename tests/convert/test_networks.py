"""The built-in networks become plans without islands that compute what the networks compute."""

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from sparsetime.convert import compile
from sparsetime.networks import create

SMALL = {
    "deeplabv3_mobilenet_v2": (65, 65),
    "fastestdet": (64, 64),
    "mobilenet_v1_025": (64, 64),
    "mobilenet_v2": (64, 64),
    "resnet18": (64, 64),
    "resnet20_cifar": (32, 32),
    "resnet50": (64, 64),
    "shufflenet_v2": (64, 64),
    "squeezenet": (64, 64),
}


@pytest.mark.parametrize("name", SMALL)
def test_built_in_network(name):
    torch.manual_seed(0)
    model = create(name, input_size=SMALL[name]).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # fresh ones would fold to almost nothing
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    frames = torch.randint(0, 256, (2, 3, *SMALL[name]), dtype=torch.uint8)
    plan = compile(model, model.spec.normalise(frames[0]), codec="hold", steps=0.0, strict=True)
    assert plan.name == name
    stream = plan.stream(backend="reference")
    with torch.no_grad():
        for frame in frames:
            expected = pytree.tree_leaves(model(model.spec.normalise(frame)[None]))
            for got, wanted in zip(pytree.tree_leaves(stream(frame)), expected, strict=True):
                scale = wanted.abs().max().item()
                assert (got - wanted).abs().max().item() <= 1e-4 * scale
