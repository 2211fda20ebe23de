"""Plans as NIR graphs: executed by NIR's definitions they give the network's answers, and files hold all of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsetime
from sparsetime.engine import Plan
from sparsetime.neighbours import ExportError

nir = pytest.importorskip("nir", reason="needs sparsetime[nir]")

from sparsetime.neighbours.nir import build, export  # noqa: E402 - needs nir

# ----------------------------------------------------------------------------------------------- NIR's definitions


class Run:
    """A NIR graph in time: nodes by their equations, edges into one node add up, all state is 0 before the start.

    One call is one unit of time; v' = R I becomes v(t) = v(t-1) + R I(t).
    """

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.state: dict[str, Tensor] = {}
        self.inner = {name: Run(node) for name, node in graph.nodes.items() if isinstance(node, nir.NIRGraph)}

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """What the graph's outputs read."""
        results: dict[str, Tensor] = {}
        waiting = dict(self.graph.nodes)
        while waiting:
            ready = [n for n in waiting if all(a in results for a, b in self.graph.edges if b == n)]
            assert ready, "a loop"
            for name in ready:
                sources = [results[a] for a, b in self.graph.edges if b == name]
                results[name] = self.node(name, waiting.pop(name), sum(sources[1:], sources[0]) if sources else x)
        return {name: results[name] for name in self.graph.outputs}

    def node(self, name: str, node: Any, x: Tensor) -> Tensor:
        match node:
            case nir.NIRGraph():
                (result,) = self.inner[name](x).values()
                return result
            case nir.Input() | nir.Output():
                assert tuple(node.input_type["input"]) == tuple(x.shape)
                return x
            case nir.Conv2d():
                pair = lambda value: tuple(int(n) for n in value)  # noqa: E731
                weight, bias = torch.as_tensor(node.weight), torch.as_tensor(node.bias)
                places = pair(node.stride), pair(node.padding), pair(node.dilation)
                return F.conv2d(x[None], weight, bias, *places, int(node.groups))[0]
            case nir.Linear():
                return torch.as_tensor(node.weight) @ x
            case nir.Scale():
                return torch.as_tensor(node.scale) * x
            case nir.Threshold():
                return (x > torch.as_tensor(node.threshold)).float()
            case nir.Flatten():
                return x.flatten(int(node.start_dim), int(node.end_dim))
            case nir.AvgPool2d():
                assert not np.any(node.padding)
                return F.avg_pool2d(x[None], tuple(map(int, node.kernel_size)), tuple(map(int, node.stride)))[0]
            case nir.I():
                self.state[name] = self.state.get(name, torch.zeros(x.shape)) + torch.as_tensor(node.r) * x
                return self.state[name]
            case nir.Delay():
                assert (np.asarray(node.delay) == 1).all()
                before, self.state[name] = self.state.get(name, torch.zeros(x.shape)), x
                return before
        raise AssertionError(f"{name}: a {type(node).__name__}")


# ---------------------------------------------------------------------------------------------------------- networks


def dyadic(module: nn.Module, fraction: int = 16) -> nn.Module:
    """Weights become multiples of 1 / fraction: sums of products with codes are then exact in float32."""
    generator = torch.Generator().manual_seed(1)
    for p in module.parameters():
        p.data = torch.randint(-8, 9, p.shape, generator=generator) / fraction
    return module.eval()


class Function(nn.Module):
    """What `function` says of a module with some layers; then a convolution, unless told not to."""

    def __init__(self, function: Callable[[Any, Tensor], Any], *, end: int = 0, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.end = nn.Conv2d(end, 2, 1) if end else nn.Identity()  # what only makes outputs has no codec
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.end(self.function(self, x))


def conv(o: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(4, o, **{"kernel_size": 3} | options)


def twice(x: Tensor) -> Tensor:
    return x + x


NETWORKS: dict[str, nn.Module] = {
    "convolution": Function(lambda m, x: F.relu6(m.c(x)), c=conv(5), end=5),
    "border and stride": Function(lambda m, x: F.relu6(m.c(x)), c=conv(5, padding=1, stride=2), end=5),
    "one-sided border": Function(lambda m, x: F.relu6(m.c(F.pad(x, (0, 1, 1, 2)))), c=conv(5, stride=2), end=5),
    "dilation": Function(lambda m, x: F.relu6(m.c(x)), c=conv(5, padding=2, dilation=2), end=5),
    "groups": Function(lambda m, x: F.relu6(m.c(x)), c=conv(6, padding=1, groups=2), end=6),
    "depthwise": Function(lambda m, x: F.relu6(m.c(x)), c=conv(4, padding=1, groups=4), end=4),
    "long kernel": Function(lambda m, x: F.relu6(m.c(x)), c=conv(5, kernel_size=(1, 3), padding=(0, 1)), end=5),
    "border of ones": Function(lambda m, x: m.c(F.pad(F.relu6(x), (1, 1, 1, 1), value=1.0)), c=conv(3)),
    "two layers": Function(lambda m, x: F.relu6(m.d(F.relu6(m.c(x)))), c=conv(4, padding=1), d=conv(3), end=3),
    "bottleneck": Function(lambda m, x: F.relu6(m.d(m.c(x))), c=conv(4, padding=1), d=conv(3, padding=1), end=3),
    "residual": Function(lambda m, x: F.relu6(m.c(x) + m.d(x)), c=conv(4, padding=1), d=conv(4, padding=1), end=4),
    "twice the same": Function(lambda m, x: m.c(x) * 0.5 + twice(F.relu6(x)), c=conv(4, padding=1), end=4),
    "difference": Function(lambda m, x: F.relu6(x) - 2 * F.relu6(m.c(x)), c=conv(4, padding=1), end=4),
    "join": Function(lambda m, x: torch.cat([F.relu6(m.c(x)), F.relu6(x)], 1), c=conv(4, padding=1), end=8),
    "join of vectors": Function(
        lambda m, x: m.d(torch.cat([F.relu6(m.c(x.flatten(1))), F.relu6(x.mean((2, 3)))], 1)),
        c=nn.Linear(256, 5),
        d=nn.Linear(9, 2),
    ),
    "channel moves": Function(lambda m, x: F.relu6(x).view(1, 2, 2, 8, 8).transpose(1, 2).reshape(1, 4, 8, 8), end=4),
    "average pooling": Function(lambda m, x: F.avg_pool2d(F.relu6(m.c(x)), 2), c=conv(4, padding=1), end=4),
    "dense layers": Function(
        lambda m, x: m.d(F.relu6(m.c(F.avg_pool2d(F.relu6(x), 4).flatten(1)))), c=nn.Linear(16, 6), d=nn.Linear(6, 3)
    ),
    "two outputs": Function(lambda m, x: (m.c(x), m.d(F.relu6(x))), c=conv(2), d=conv(3)),
    "signed codes": Function(lambda m, x: F.hardtanh(m.c(x), -2, 1), c=conv(3, padding=1), end=3),
    "always above zero": Function(lambda m, x: m.c(x).clamp(1, 3), c=conv(3, padding=1), end=3),
    "never above zero": Function(lambda m, x: m.c(x).clamp(-3, -1), c=conv(3, padding=1), end=3),
}


def frames(length: int = 7, shape: tuple[int, ...] = (1, 4, 8, 8)) -> Tensor:
    """Quarters up to 4, of which some change; values at the ties of rounding are among them."""
    generator = torch.Generator().manual_seed(3)
    clip = torch.randint(-16, 17, (length, *shape), generator=generator) / 4
    for t in range(1, length):
        clip[t] = torch.where(torch.rand(shape, generator=generator) < 0.3, clip[t], clip[t - 1])
    return clip


def plan_of(network: nn.Module, step: float = 0.5) -> Plan:
    return sparsetime.compile(dyadic(network), frames(1)[0], steps=step, codec="exact")


def check(graph: Any, plan: Plan, clip: Tensor) -> None:
    """Executed by NIR's definitions, the graph gives on every frame what the plan gives."""
    run, stream = Run(graph), plan.stream(backend="reference")
    seen = set()
    for frame in clip:
        outputs = run(frame[0])
        expected = stream(frame)
        expected = expected if isinstance(expected, tuple) else (expected,)
        assert len(outputs) == len(expected)
        for name, value in zip(sorted(outputs), expected, strict=True):
            torch.testing.assert_close(outputs[name][None], value, rtol=0, atol=0)
            seen.add(float(value.abs().sum()))
    assert len(seen) > 3  # something happens in this clip


@pytest.mark.parametrize("name", NETWORKS)
def test_the_graph_gives_the_networks_answers(name):
    """Numbers that float32 does not round: to the bit, ties and first frame included."""
    plan = plan_of(NETWORKS[name])
    check(build(plan, max_code=16), plan, frames())


RISING = {
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hardsigmoid": F.hardsigmoid,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "relu": F.relu,
}


@pytest.mark.parametrize("name", RISING)
def test_thresholds_are_those_of_the_float32_computation(name):
    """A step that is no power of two; numbers at the thresholds, next to them, and anywhere."""
    activation = RISING[name]
    plan = plan_of(Function(lambda m, x: activation(x), end=4), step=0.07)
    layer = build(plan, max_code=120).nodes[f"1_{name}_delta"]
    edges = torch.cat([torch.as_tensor(t.threshold).flatten()[:1] for n, t in layer.nodes.items() if n[:3] == "up_"])
    edges = torch.cat([edges, torch.nextafter(edges, edges - 1), torch.nextafter(edges, edges + 1)])
    if name in ("sigmoid", "tanh"):  # PyTorch's own last bit depends on an element's place in memory
        edges = edges[:0]
    anywhere = 16 * torch.rand(1024 - len(edges), generator=torch.Generator().manual_seed(5)) - 8
    code = (activation(torch.cat([edges, anywhere])) / 0.07).clamp(-120, 120).round()
    for z, expected in zip(torch.cat([edges, anywhere]).view(4, 4, 8, 8), code.view(4, 4, 8, 8), strict=True):
        torch.testing.assert_close(Run(layer)(z)["output"], expected * torch.tensor(0.07), rtol=0, atol=1e-9)


def test_a_layer_by_hand():
    """S = 2, codes 0 to 3: z = 1 is a tie that goes to the even 0, z = 3 one that goes to 2."""
    network = Function(lambda m, x: m.c(F.relu6(x)), c=nn.Linear(1, 1, bias=False))
    plan = sparsetime.compile(dyadic(network), torch.zeros(1, 1), steps=2.0, codec="exact")
    layer = next(node for name, node in build(plan, max_code=8).nodes.items() if name.endswith("relu6_delta"))
    assert {"up_1", "up_2", "up_3", "sigma", "last", "minus", "value_up", "input", "output"} == set(layer.nodes)
    thresholds = [layer.nodes[f"up_{k}"].threshold.item() for k in (1, 2, 3)]
    assert thresholds[0] == 1.0  # passed above
    assert thresholds[1] == np.nextafter(np.float32(3), np.float32(0))  # reached
    assert thresholds[2] == 5.0
    run = Run(layer)
    sent = [run(torch.tensor([x]))["output"].item() for x in (1.0, 0.5, 1.5, 0.0, 9.0, -20.0)]
    assert sent == [0.0, 2.0, 2.0, 0.0, 2.0, -6.0]  # z = 1, 1.5, 3, 3, 12, -8


def test_a_layer_that_never_reaches_its_first_code():
    plan = plan_of(Function(lambda m, x: F.tanh(x), end=4), step=4.0)
    run, stream = Run(build(plan, max_code=4)), plan.stream(backend="reference")
    for frame in frames(3):
        torch.testing.assert_close(run(frame[0])["output"][None], stream(frame), rtol=0, atol=0)


# ---------------------------------------------------------------------------------------------------------- the file


def same(a: Any, b: Any) -> None:
    """Two graphs hold the same nodes, edges and numbers."""
    assert a.nodes.keys() == b.nodes.keys()
    assert set(map(tuple, a.edges)) == set(map(tuple, b.edges))
    assert a.metadata == b.metadata
    for name, node in a.nodes.items():
        other = b.nodes[name]
        assert type(node) is type(other), name
        if isinstance(node, nir.NIRGraph):
            same(node, other)
            continue
        mine, theirs = node.to_dict(), other.to_dict()
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            np.testing.assert_array_equal(value, theirs[key], err_msg=f"{name}, {key}")


def test_a_file_goes_round(tmp_path: Path):
    plan = plan_of(NETWORKS["depthwise"])
    export(plan, tmp_path / "plan.nir", max_code=16)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.nir"]
    back = nir.read(tmp_path / "plan.nir")
    same(build(plan, max_code=16), back)
    check(back, plan, frames())
    weight = plan.need(plan.ops[1], "weight")
    np.testing.assert_array_equal(np.diagonal(back.nodes["1_c"].weight).transpose(2, 0, 1), weight[:, 0])


def test_a_trained_network_with_eight_bits(tmp_path: Path):
    """The rule `lsq` has codes from -128 to 255: nothing has to be said about bounds."""
    network = dyadic(Function(lambda m, x: m.d(F.relu(m.c(x))), c=conv(2), d=nn.Conv2d(2, 2, 1)))
    sparse = sparsetime.sparsify(network, frames(1)[0], step=0.25, rule="lsq").eval()
    plan = sparsetime.compile(sparse, frames(1)[0])
    assert {op.kind for op in plan.ops if op.codec is not None and op.codec["high"] == 255} == {"input", "conv2d"}
    check(build(plan), plan, frames())


def test_frames_of_bytes_have_bounds():
    network = Function(lambda m, x: m.c(x), c=conv(2, kernel_size=1))
    plan = plan_of(network)
    spec = sparsetime.engine.InputSpec((64.0,) * 4, (32.0,) * 4)  # -2 to 191 / 32 = 5.97, in steps of 0.5
    plan = dataclasses.replace(plan, input=spec)
    layer = build(plan).nodes["0_input_delta"]
    assert sum(name.startswith("down_") for name in layer.nodes) == 4
    assert sum(name.startswith("up_") for name in layer.nodes) == 12
    generator = torch.Generator().manual_seed(4)
    run, stream = Run(build(plan)), plan.stream(backend="reference")
    for _ in range(4):
        picture = torch.randint(0, 256, (1, 4, 8, 8), dtype=torch.uint8, generator=generator)
        outputs = run(((picture.float() - 64) / 32)[0])
        torch.testing.assert_close(outputs["output"][None], stream(picture), rtol=0, atol=0)


def test_max_code_stops():
    network = dyadic(Function(lambda m, x: m.c(x), c=nn.Linear(3, 3)))
    plan = sparsetime.compile(network, torch.zeros(1, 3), steps=0.5, codec="exact")
    run, stream = Run(build(plan, max_code=4)), plan.stream(backend="reference")
    frame = torch.tensor([[1.5, 7.0, -9.0]])  # at most 4 steps of 0.5
    stopped = stream(frame.clamp(-2, 2))
    torch.testing.assert_close(run(frame[0])["output"][None], stopped, rtol=0, atol=0)
    stream.reset()
    assert (stream(frame) != stopped).any()
    for wrong in (0, -3, 5000):
        with pytest.raises(ValueError, match=f"max_code must be from 1 to 2048, got {wrong}"):
            build(plan, max_code=wrong)


# -------------------------------------------------------------------------------------------------- what NIR cannot say


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


def refused(network: nn.Module, codec: str = "exact", **options: Any) -> str:
    plan = sparsetime.compile(dyadic(network), frames(1)[0], steps=0.5, codec=codec, **options)
    with pytest.raises(ExportError) as error:
        build(plan, max_code=16)
    return str(error.value)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Function(lambda m, x: m.c(F.hardswish(x)), c=conv(2)), "operation 1 'hardswish' (identity, test_nir.py"),
        (Function(lambda m, x: m.c(F.silu(x)), c=conv(2)), "rises and falls"),
        (Function(lambda m, x: m.c(F.leaky_relu(x, -0.5)), c=conv(2)), "leaky_relu rises and falls"),
        (Function(lambda m, x: F.relu6(m.c(x)), c=conv(2)), "its clamp has no codec"),
        (Function(lambda m, x: m.c(F.max_pool2d(x, 2)), c=conv(2)), "(max_pool2d, "),
        (Function(lambda m, x: m.c(x * F.relu6(x)), c=conv(2)), "(mul, "),
        (Function(lambda m, x: m.c(x), c=nn.ConvTranspose2d(4, 2, 2)), "'c' (conv_transpose2d, "),
        (Function(lambda m, x: F.interpolate(m.c(x), scale_factor=2), c=conv(2)), "(resize2d, "),
        (Function(lambda m, x: m.c(F.avg_pool2d(x, 3, 2, 1)), c=conv(2)), "equal windows inside the map"),
        (
            Function(lambda m, x: m.c(x), c=conv(2, kernel_size=(1, 2))),
            "a kernel of (1, 2) with the border [0, 0, 0, 0]",
        ),
        (Function(lambda m, x: m.c(x.flatten(2)), c=nn.Linear(64, 3)), "(reshape, "),
        (Sine(), "(island, "),
    ],
)
def test_what_nir_cannot_say_is_named(network, words):
    message = refused(network)
    assert message.startswith("nir: operation "), message
    assert words in message, message


def test_codecs_with_a_memory_are_refused():
    network = Function(lambda m, x: m.c(x), c=conv(2))
    for codec in ("hold", "residual"):
        assert f"NIR can say the codec 'exact', not '{codec}'" in refused(network, codec)


def test_codes_without_bounds_are_refused():
    plan = plan_of(Function(lambda m, x: m.c(F.relu(x)), c=conv(2)))
    plan = dataclasses.replace(plan, input=sparsetime.engine.InputSpec((0.0,) * 4, (64.0,) * 4))
    with pytest.raises(ExportError, match=r"operation 1 'relu'.* no bound.*ReLU6.*max_code="):
        build(plan)


def test_a_wrong_graph_is_seen():
    plan = plan_of(NETWORKS["convolution"])
    graph = build(plan, max_code=16)
    graph.nodes["1_c"].weight[0, 0, 0, 0] += np.float32(1 / 16)
    with pytest.raises(AssertionError):
        check(graph, plan, frames())
    with pytest.raises(AssertionError):
        same(graph, build(plan, max_code=16))
