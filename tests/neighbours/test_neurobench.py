"""NeuroBench's own harness on sparse networks: its figures against the meter's, and against a pencil."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import sparsetime
from sparsetime import Meter

pytest.importorskip("neurobench", reason="needs sparsetime[neurobench]")

from neurobench.benchmarks import Benchmark
from neurobench.metrics.static import ConnectionSparsity, Footprint, ParameterCount
from neurobench.metrics.workload import ActivationSparsity, ClassificationAccuracy, SynapticOperations

from sparsetime.neighbours.neurobench import DeltaModel

STATIC = [Footprint, ConnectionSparsity, ParameterCount]
WORKLOAD = [ActivationSparsity, SynapticOperations]


def run(model: DeltaModel, clips: Tensor, batch: int = 2, workload: Any = WORKLOAD) -> dict[str, Any]:
    """What the harness says of clips (N, T, ...)."""
    data = TensorDataset(clips, torch.zeros(len(clips), clips.shape[1], dtype=torch.long))
    results: dict[str, Any] = Benchmark(model, DataLoader(data, batch), [], [], [STATIC, workload]).run(quiet=True)
    return results


def measured(network: nn.Module, clips: Tensor, batch: int = 2) -> dict[str, Any]:
    with torch.no_grad(), Meter(network) as meter:
        for part in clips.split(batch):
            network(part)
    return meter.summary()


# ----------------------------------------------------------------------------------------------------------- by hand


def test_a_case_worked_out_by_hand():
    """Two inputs, a ReLU with step 1 in front of two outputs; three frames.

    v = relu round x:    (1, 0)  (1, 2)  (3, 2)      values that are not zero: 1 + 2 + 2 = 5 of 6
    what is sent:        (1, 0)  (0, 2)  (2, 0)      three events; the second weight of the second input is zero
    """

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.relu(x))

    network = sparsetime.sparsify(Two(), torch.zeros(1, 2), step=1.0).eval()
    with torch.no_grad():
        network.fc.weight.copy_(torch.tensor([[2.0, 3.0], [5.0, 0.0]]))
        network.fc.bias.copy_(torch.tensor([0.5, -0.5]))
    clip = torch.tensor([[[1.0, -4.0], [1.2, 2.0], [2.9, 1.8]]])
    expected = torch.tensor([[[2.5, 4.5], [8.5, 4.5], [12.5, 14.5]]])
    figures = {}
    for sends in ("deltas", "values"):
        model = DeltaModel(network, sends)
        torch.testing.assert_close(model(clip), expected)
        figures[sends] = run(model, clip)
        assert figures[sends]["ActivationSparsity"] == pytest.approx(1 / 6)
        assert figures[sends]["ConnectionSparsity"] == 0.25
        assert figures[sends]["ParameterCount"] == 4 + 2 + 1
        assert figures[sends]["Footprint"] == 7 * 4 + 4  # and the layer's scale
    # The first input reaches two outputs, the second one.
    assert figures["deltas"]["SynapticOperations"] == {"Effective_MACs": 2 + 1 + 2, "Effective_ACs": 0, "Dense": 12}
    assert figures["values"]["SynapticOperations"] == {"Effective_MACs": 2 + 3 + 3, "Effective_ACs": 0, "Dense": 12}


def test_changes_of_one_step_are_accumulated_without_multiplying():
    """All that is sent is -1, 0 or 1: NeuroBench counts accumulates. The values are not, and are multiplied."""
    network = sparsetime.sparsify(nn.Sequential(nn.Linear(1, 3)), torch.zeros(1, 1), step=1.0).eval()
    clip = torch.tensor([[[1.0], [2.0], [2.0], [1.0]]])
    operations = run(DeltaModel(network), clip)["SynapticOperations"]
    assert operations == {"Effective_MACs": 0, "Effective_ACs": 9, "Dense": 12}
    operations = run(DeltaModel(network, "values"), clip)["SynapticOperations"]
    assert operations == {"Effective_MACs": 12, "Effective_ACs": 0, "Dense": 12}


# ----------------------------------------------------------------------------------------------- against the meter


class Small(nn.Module):
    """Strides, groups, padding, one convolution used twice, a residual sum, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.same = nn.Conv2d(8, 8, 3, 1, 1)
        self.relu, self.relu6, self.gelu = nn.ReLU(), nn.ReLU6(), nn.GELU()
        self.fc = nn.Linear(8, 5)
        generator = torch.Generator().manual_seed(1)
        for p in self.parameters():  # sixteenths, none of them zero: sums of products with codes are exact
            p.data = (torch.randint(0, 8, p.shape, generator=generator) * 2 - 7) / 16

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.relu6(self.depthwise(x))
        x = self.relu(self.same(torch.relu(self.same(x))))
        return self.gelu(self.fc(nn.functional.avg_pool2d(x, 8).flatten(1)))


CLIPS, FRAMES = 5, 6


@pytest.fixture
def clips() -> Tensor:
    """Eighths; a third of the numbers changes from frame to frame."""
    generator = torch.Generator().manual_seed(2)
    clips = torch.randint(-16, 17, (CLIPS, FRAMES, 3, 16, 16), generator=generator) / 8
    moves = torch.rand(clips.shape, generator=generator) < 1 / 3
    for t in range(1, FRAMES):
        clips[:, t] = torch.where(moves[:, t], clips[:, t], clips[:, t - 1])
    return clips


def sparse(**options: Any) -> nn.Module:
    return sparsetime.sparsify(Small(), torch.zeros(1, 3, 16, 16), step=0.25, **options).eval()


def test_on_deltas_it_computes_the_network(clips):
    network = sparse()
    model = DeltaModel(network)
    with torch.no_grad():
        torch.testing.assert_close(model(clips), network(clips), rtol=0, atol=0)
        torch.testing.assert_close(model(clips[:, 0]), network(clips[:, 0]), rtol=0, atol=0)  # frames
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


@pytest.mark.parametrize("exclude", [(), "input"])
def test_deltas_are_what_the_meter_counts(clips, exclude):
    """The excluded case: the first convolution's input is not encoded, and is skipped where it is zero."""
    network = sparse(exclude=exclude)
    figures, meter = run(DeltaModel(network), clips), measured(network, clips)
    operations = figures["SynapticOperations"]
    assert operations["Dense"] == meter["dense_macs"] * FRAMES
    assert operations["Effective_ACs"] == 0
    expected = meter["op_density_with_first_frame"] * meter["dense_macs"] * FRAMES
    assert operations["Effective_MACs"] == pytest.approx(expected, rel=1e-12)
    assert operations["Effective_MACs"] < 0.9 * operations["Dense"]
    check_static_and_activations(figures, meter)


def test_values_are_what_the_meter_counts(clips):
    network = sparse()
    figures, meter = run(DeltaModel(network, "values"), clips), measured(network, clips)
    for name, per_frame in meter["neurobench"]["SynapticOperations"].items():
        assert figures["SynapticOperations"][name] == pytest.approx(per_frame * FRAMES, rel=1e-12), name
    check_static_and_activations(figures, meter)


def check_static_and_activations(figures: dict[str, Any], meter: dict[str, Any]) -> None:
    for name in ("ActivationSparsity", "Footprint", "ConnectionSparsity"):
        assert figures[name] == pytest.approx(meter["neurobench"][name], rel=1e-12), name
    assert 0.1 < figures["ActivationSparsity"] < 0.9


def test_weights_that_are_zero_count_for_the_meter_and_not_for_neurobench(clips):
    network = sparse()
    with torch.no_grad():
        network.depthwise.weight.zero_()
    figures, meter = run(DeltaModel(network), clips), measured(network, clips)
    effective = figures["SynapticOperations"]["Effective_MACs"]
    assert effective < meter["op_density_with_first_frame"] * meter["dense_macs"] * FRAMES
    rows = {row["name"]: row for row in meter["layers"]}
    left = sum(
        row["op_density_with_first_frame"] * row["dense_macs"] for name, row in rows.items() if name != "depthwise"
    )
    assert effective == pytest.approx(left * FRAMES, rel=1e-12)
    # The harness rounds it to four digits.
    assert figures["ConnectionSparsity"] == round(meter["neurobench"]["ConnectionSparsity"], 4)
    assert figures["ConnectionSparsity"] == round(72 / (216 + 72 + 576 + 40), 4)


@pytest.mark.parametrize(("inside", "dense"), [(True, 49), (False, 81)])
def test_zeros_of_a_separate_padding_are_dense_operations_for_neurobench(inside, dense):
    """3x3 map, 3x3 kernel: 4 outputs meet 4 elements, 4 meet 6 and one meets 9, however the border is made.

    A convolution's own padding is counted so by both. Zeros that `F.pad` adds are inputs to NeuroBench.
    """

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=int(inside), bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x if inside else nn.functional.pad(x, (1, 1, 1, 1)))

    network = sparsetime.sparsify(Padded(), torch.zeros(1, 1, 3, 3), step=0.5).eval()
    clip = torch.full((1, 1, 1, 3, 3), 2.0)
    operations, meter = run(DeltaModel(network), clip)["SynapticOperations"], measured(network, clip)
    assert operations["Dense"] == dense
    assert meter["neurobench"]["SynapticOperations"]["Dense"] == 49
    assert operations["Effective_MACs"] == 49 == meter["neurobench"]["SynapticOperations"]["Effective_MACs"]


def test_accuracy_in_the_harness(clips):
    """NeuroBench's own score of what the model returns, (N, T, classes), with a class for every frame."""
    network = sparse()
    with torch.no_grad():
        network.fc.bias -= network(clips).mean((0, 1))  # no class wins everywhere
        answers = network(clips).argmax(-1)
    assert len(answers.unique()) > 1
    answers[:, 0] += 1  # the first frame's class is wrong
    loader = DataLoader(TensorDataset(clips, answers), 5)
    best = [lambda outputs: outputs.argmax(-1).flatten()]
    flat = [lambda data: (data[0], data[1])]

    class OverFrames(ClassificationAccuracy):
        def __call__(self, model: Any, preds: Tensor, data: Any) -> float:
            accuracy: float = super().__call__(model, preds, (data[0], data[1].flatten()))
            return accuracy

    results = Benchmark(DeltaModel(network), loader, flat, best, [[], [OverFrames]]).run(quiet=True)
    assert results["OverFrames"] == pytest.approx(5 / 6)


# ---------------------------------------------------------------------------------------------------------- the edges


def test_operations_that_are_no_modules_are_named():
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.ones(4, 3, 3, 3))
            self.up = nn.ConvTranspose2d(4, 2, 2, 2)
            self.last = nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.up(torch.relu(nn.functional.conv2d(x, self.kernel))))).sigmoid()

    network = sparsetime.sparsify(Functional(), torch.zeros(1, 3, 8, 8))
    assert DeltaModel(network).not_seen == ["kernel", "up", "sigmoid"]
    assert DeltaModel(sparse()).not_seen == []


def test_what_is_no_sparse_network_is_refused():
    with pytest.raises(TypeError, match=r"expected what sparsetime.sparsify returned, got Small"):
        DeltaModel(Small())
    with pytest.raises(ValueError, match="sends must be one of deltas, values, got 'codes'"):
        DeltaModel(sparse(), "codes")
