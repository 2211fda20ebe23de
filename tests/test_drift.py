"""The paper's claims, on generated drifting digits: the experiment of examples/drift.py and its five assertions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsetime
from sparsetime.convert.stream import DeltaStream

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import drift

SEED = 0


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return drift.run(SEED)


def test_delta_needs_far_fewer_operations_than_spatial_l1_at_the_dense_accuracy(result: dict[str, Any]) -> None:
    dense, spatial, delta = result["dense"], result["spatial_l1"], result["delta"]
    assert delta["op_density"] <= 0.20
    assert delta["op_density"] <= 0.65 * spatial["op_density"]
    assert delta["accuracy"] >= dense["accuracy"] - 0.02
    # An untrained head would make the comparison empty.
    assert dense["accuracy"] >= 0.7


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_stream_clip_and_dense_inference_agree_over_1000_frames(
    result: dict[str, Any], dtype: torch.dtype, tolerance: float
) -> None:
    model = result["model"].to(dtype).eval()
    clip = long_clip(1000).to(dtype)
    stream = DeltaStream(model)
    with torch.no_grad():
        whole = model(clip)
        alone = model(clip[0])  # frames as clips of one: dense quantised inference
        streamed = torch.stack([stream(frame) for frame in clip[0].split(1)], 1)
    result["model"].to(torch.float32)
    # A value on the edge between two codes may fall to either side: such frames differ by a step, not by rounding.
    # In float64 there are none; in float32 there are about two in a million values (1e-7 of rounding, steps of 0.2).
    for other in (alone.unsqueeze(0), streamed):
        error = (other - whole).abs().amax(-1).flatten()
        flipped = error > tolerance
        allowed = 0 if dtype == torch.float64 else 3
        assert int(flipped.sum()) <= allowed, f"{int(flipped.sum())} of 1000 frames differ, by up to {error.max():.1e}"
        assert torch.equal(other.argmax(-1)[0, ~flipped], whole.argmax(-1)[0, ~flipped])
        assert error[~flipped].max() <= tolerance
    assert whole.std(1).max() > 0.1, "the clip does not change the answer: nothing was tested"


def long_clip(frames: int) -> Tensor:
    """One clip of many frames, (1, T, 1, 12, 12): short ones in a row."""
    clips, _ = sparsetime_clips(frames // 6 + 1)
    return clips.flatten(0, 1)[:frames].unsqueeze(0)


def sparsetime_clips(count: int) -> tuple[Tensor, Tensor]:
    _, _, clips, labels = drift.data(SEED)
    return clips[:count], labels[:count]


class PlainGradient(sparsetime.DeltaActivation):
    """The layer with the true gradient of the product instead of the negated one."""

    def _plain(self, a: Tensor, frames: int) -> tuple[Tensor, None, Tensor]:
        q = self.step.abs().clamp_min(1e-8)
        value = sparsetime.grad.round_ste(a / q.detach()) * q
        return value, None, torch.diff(value.unflatten(0, (-1, frames)), dim=1).abs().mean()

    def _fuses(self, x: Tensor) -> bool:
        return False


def test_the_negated_gradient_makes_steps_grow_where_the_true_one_lets_them_vanish(result: dict[str, Any]) -> None:
    grown = {name: layer.step.abs().mean().item() for name, layer in sparsetime.delta_layers(result["model"]).items()}
    assert min(grown["input"], grown["relu"], grown["relu_1"]) > 0.1  # where they started
    clips, labels, test_clips, test_labels = drift.data(SEED)
    dense = drift.train_dense(SEED, clips, labels)
    model = drift.sparse(dense, clips, "delta")
    for layer in sparsetime.delta_layers(model).values():
        layer.__class__ = PlainGradient
    drift.fit(model, clips, labels, epochs=8, lr=1e-3, penalty=drift.PENALTY["delta"], seed=SEED + 1)
    steps = [layer.step.abs().mean().item() for layer in sparsetime.delta_layers(model).values()]
    density = drift.score(model, test_clips, test_labels)["op_density"]
    assert steps[0] < 0.02
    assert density > 1.5 * result["delta"]["op_density"]


def test_gradient_of_the_penalty_is_minus_the_mean_change_of_the_codes() -> None:
    torch.manual_seed(0)
    layer = sparsetime.DeltaActivation(activation="identity", step=0.3).double()
    x = torch.randn(2, 8, 4, dtype=torch.float64)
    layer(x)
    assert layer.penalty is not None
    layer.penalty.backward()
    codes = torch.round(x / 0.3)
    expected = -(codes[:, 1:] - codes[:, :-1]).abs().mean().item()
    assert layer.step.grad is not None
    assert layer.step.grad.item() == pytest.approx(expected, rel=1e-6)  # the step is a float32 0.3 made float64


def test_penalty_is_zero_when_nothing_changes() -> None:
    torch.manual_seed(0)
    model: nn.Module = drift.TinyCNN()
    frame = torch.rand(2, 1, 1, 12, 12)
    model = drift.sparse(model, frame, "delta").train()
    model(frame.expand(-1, 5, -1, -1, -1))
    assert sparsetime.penalty(model).item() == 0.0
    model(torch.rand(2, 5, 1, 12, 12))
    assert sparsetime.penalty(model).item() > 0.0
