"""The dense network of a plan, by whatever runs it."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_plans import frames, plans
from small_modules import Function
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import sparsetime
from sparsetime.engine.reference import Reference
from sparsetime.run.dense import Dense, candidates, dense_network, exported, native_dense, pytorch_dense, without_codecs
from sparsetime.run.fallback import FallbackStream
from sparsetime.run.module import PlanModule

from .conftest import small_network


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-6))


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(plans(dyadic=True), st.integers(0, 99))
def test_both_equal_the_reference_on_every_frame(plan, seed) -> None:
    plain = without_codecs(plan)
    assert all(op.codec is None for op in plain.ops)
    runtimes = candidates(plan, threads=1)
    for frame in frames(plan, 3, seed, dyadic=True):
        expected = Reference(plain).run(frame)
        for dense in runtimes:
            for got, wanted in zip(dense.run(frame), expected, strict=True):
                assert relative(got, wanted) < 1e-4, dense.name


@pytest.mark.parametrize(
    "layer",
    [
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.MaxPool2d(2, 1, dilation=2),
        nn.MaxPool2d(5, 1, 2),
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.AdaptiveAvgPool2d((2, 3)),
        nn.AdaptiveAvgPool2d(1),
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.Upsample(size=(13, 7), mode="bilinear", align_corners=True),
        nn.Upsample(size=(13, 7), mode="bilinear", align_corners=False),
        nn.Upsample(scale_factor=2, mode="bicubic"),
        nn.ConvTranspose2d(4, 2, 3, 2, 1, output_padding=1),
        nn.ZeroPad2d((0, 1, 0, 2)),
        nn.ChannelShuffle(2),
        nn.Conv2d(4, 4, 3, groups=4),
    ],
    ids=str,
)
def test_the_module_is_the_network_that_was_compiled(layer: nn.Module) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), layer, nn.Conv2d(layer_channels(layer), 2, 1))
    frame = torch.randn(1, 3, 9, 11)
    plan = without_codecs(sparsetime.compile(network.eval(), frame, steps=0.1))
    with torch.no_grad():
        torch.testing.assert_close(PlanModule(plan)(frame), network(frame), rtol=1e-4, atol=1e-5)


def layer_channels(layer: nn.Module) -> int:
    return 2 if isinstance(layer, nn.ConvTranspose2d) else 4


def test_the_module_uses_pytorchs_own_operators() -> None:
    """What a runtime recognises is fast in it; tables and matrices are not."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1), nn.Upsample(9))
    frame = torch.randn(1, 3, 33, 33)
    plan = without_codecs(sparsetime.compile(network.eval(), frame, steps=0.1))
    graph = torch.export.export(PlanModule(plan), (frame,)).graph
    called = {str(node.target).split(".")[1] for node in graph.nodes if node.op == "call_function"}
    assert {"conv2d", "max_pool2d", "avg_pool2d"} <= called
    assert not called & {"matmul", "index_select", "where"}


def test_islands_and_several_outputs() -> None:
    network = Function(lambda self, x: {"a": self.c(x).sin(), "b": self.c(x).mean((2, 3))}, c=nn.Conv2d(3, 4, 3, 2))
    frame = torch.randn(1, 3, 9, 9)
    plan = sparsetime.compile(network.eval(), frame, steps=0.1)
    assert plan.islands
    expected = [y.detach().numpy() for y in network(frame).values()]
    for dense in candidates(plan, threads=1):
        for got, wanted in zip(dense.run(frame.numpy()), expected, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


class Threads(TorchDispatchMode):
    """How many threads PyTorch has at each operator."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(torch.get_num_threads())
        return func(*args, **(kwargs or {}))


def test_the_process_keeps_its_number_of_threads() -> None:
    plan = sparsetime.compile(small_network(), torch.zeros(1, 3, 24, 32), steps=50.0, codec="hold")
    x = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    before = torch.get_num_threads()
    asked = before + 1
    for dense in (pytorch_dense(plan, asked), *exported(plan, x, asked)):
        assert torch.get_num_threads() == before
        with Threads() as threads:
            dense.run(x)
        assert threads.seen <= {before, asked}
        assert (asked in threads.seen) == dense.name.startswith("PyTorch"), dense.name
        assert torch.get_num_threads() == before
    FallbackStream(plan, x, threads=asked)
    assert torch.get_num_threads() == before


def test_every_frame_stands_alone() -> None:
    plan = sparsetime.compile(small_network(), torch.zeros(1, 3, 24, 32), steps=50.0, codec="hold")
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 255, (2, 24, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = small_network()(torch.from_numpy(y).permute(2, 0, 1)[None].float()).numpy()
    runtimes = native_dense(plan, 1), pytorch_dense(plan, 1)
    versions = f"sparsetime {sparsetime.__version__} dense path", f"PyTorch {torch.__version__}"
    for dense, name in zip(runtimes, versions, strict=True):
        fresh = dense.run(y)[0].copy()
        assert relative(fresh, expected) < 1e-5
        dense.run(x)
        np.testing.assert_array_equal(dense.run(y)[0], fresh)
        assert dense.name == name


def test_the_fastest_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    import sparsetime.run.dense as module

    now = 0

    def takes(*times_ns: int) -> Dense:
        left = iter(times_ns)

        def run(frame: np.ndarray) -> list[np.ndarray]:
            nonlocal now
            now += next(left)
            return []

        return Dense(str(times_ns), run)

    # The first call only warms up; of the others the median counts, not the fastest.
    slow, fast, uneven = takes(1, *[20] * 5), takes(90, *[10] * 5), takes(1, 1, 1, 40, 40, 40)
    monkeypatch.setattr(module, "candidates", lambda plan, threads: [slow])
    monkeypatch.setattr(module, "exported", lambda plan, frame, threads: [fast, uneven])
    monkeypatch.setattr(module.time, "perf_counter_ns", lambda: now)
    assert dense_network(None, np.zeros(1), 1) is fast


def test_other_runtimes_give_the_same() -> None:
    for package in ("onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    plan = sparsetime.compile(small_network(), torch.zeros(1, 3, 24, 32), steps=50.0, codec="hold")
    x, y = np.random.default_rng(0).integers(0, 255, (2, 24, 32, 3), dtype=np.uint8)
    runtimes = exported(plan, x, 1)
    assert [dense.name.split()[0] for dense in runtimes] == ["PyTorch", "ONNX", "OpenVINO"]
    expected = pytorch_dense(plan, 1).run(y)
    for dense in runtimes:
        dense.run(x)
        for got, wanted in zip(dense.run(y), expected, strict=True):
            assert relative(got, wanted) < 1e-4, dense.name


def test_plans_with_islands_are_not_exported() -> None:
    network = Function(lambda self, x: self.c(x).sin(), c=nn.Conv2d(3, 4, 3, 2))
    plan = sparsetime.compile(network.eval(), torch.randn(1, 3, 9, 9), steps=0.1)
    assert plan.islands
    assert exported(plan, np.zeros((1, 3, 9, 9), np.float32), 1) == []
