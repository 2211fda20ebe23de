"""The paper's experiment in small: a CNN on drifting digits, dense, with spatial L1, and with delta activations.

    python examples/drift.py --seeds 0 1 2 3

Generated clips of 12 x 12 pixels and six frames, ten classes; drawings of train and test come from different seeds.
Ten to fifteen seconds a seed on one core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsetime
from sparsetime.video import digit_glyphs, drift_clips

TRAIN, TEST = 1297, 500
PENALTY = {"delta": 25.0, "spatial_l1": 8.0}


class TinyCNN(nn.Module):
    """Two convolutions and two linear layers for 12 x 12 frames."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.fc1 = nn.Linear(288, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x)).flatten(1)
        return self.fc2(F.relu(self.fc1(x)))


def data(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Train clips and labels, test clips and labels."""
    clips, labels = drift_clips(2 * TRAIN, *digit_glyphs(TRAIN, seed=100 + seed), seed=100 + seed)
    test_clips, test_labels = drift_clips(TEST, *digit_glyphs(TEST, seed=900 + seed), seed=900 + seed)
    return clips, labels, test_clips, test_labels


def sparse(model: nn.Module, clips: Tensor, method: str) -> nn.Module:
    """The model with layers in front of its four linear operations: a step per layer, channel, channel and neuron."""
    granularity = {"input": "layer", "relu": "channel", "relu_1": "channel", "relu_2": "neuron"}
    layer = "delta" if method == "delta" else "spatial_l1"
    settings = {"granularity": granularity, "rule": "dal", "step": 0.1} if method == "delta" else {}
    model = sparsetime.sparsify(model, clips[:2, 0], layer=layer, **settings)
    for part in sparsetime.delta_layers(model).values():
        if method != "delta":
            part.calibrate(torch.ones(1, 1))
    return model


def fit(model: nn.Module, clips: Tensor, labels: Tensor, epochs: int, lr: float, penalty: float, seed: int) -> None:
    """Adam, batches of 64 clips, cross entropy of the logits' mean over time."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(clips), generator=generator).split(64):
            loss = F.cross_entropy(per_frame(model, clips[batch]).mean(1), labels[batch])
            if penalty:
                loss = loss + penalty * sparsetime.penalty(model)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()


def per_frame(model: nn.Module, clips: Tensor) -> Tensor:
    """Logits (N, T, 10), whether the model knows clips or frames."""
    if isinstance(model, sparsetime.SparseNetwork):
        return model(clips)
    return model(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])


def score(model: nn.Module, clips: Tensor, labels: Tensor) -> dict[str, Any]:
    """Accuracy and the share of operations that remain."""
    with torch.no_grad(), sparsetime.Meter(model, frames=clips.shape[1]) as meter:
        right = per_frame(model, clips).mean(1).argmax(1) == labels
    figures = meter.summary()
    kept = ("op_density", "op_density_with_first_frame")
    return {"accuracy": right.float().mean().item(), **{key: figures[key] for key in kept}}


def train_dense(seed: int, clips: Tensor, labels: Tensor) -> TinyCNN:
    """The trained network from which every method refines."""
    torch.manual_seed(seed)
    model = TinyCNN()
    fit(model, clips, labels, epochs=15, lr=2e-3, penalty=0.0, seed=seed)
    return model


def run(seed: int) -> dict[str, Any]:
    """One seed: the three methods, refined for eight epochs each from the same dense network."""
    clips, labels, test_clips, test_labels = data(seed)
    dense = train_dense(seed, clips, labels)
    result: dict[str, Any] = {"seed": seed}
    for method in ("dense", "spatial_l1", "delta"):
        model: nn.Module = TinyCNN()
        model.load_state_dict(dense.state_dict())
        if method != "dense":
            model = sparse(model, clips, method)
        fit(model, clips, labels, epochs=8, lr=1e-3, penalty=PENALTY.get(method, 0.0), seed=seed + 1)
        result[method] = score(model, test_clips, test_labels)
        if method == "delta":
            result["model"] = model
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results = []
    for seed in args.seeds:
        result = run(seed)
        steps = {
            name: part.step.abs().mean().item() for name, part in sparsetime.delta_layers(result.pop("model")).items()
        }
        results.append(result | {"steps": steps})
        for method in ("dense", "spatial_l1", "delta"):
            figures = result[method]
            print(f"seed {seed} {method:11} accuracy {figures['accuracy']:.3f}  operations {figures['op_density']:.3f}"
                  f" (first frame in: {figures['op_density_with_first_frame']:.3f})", flush=True)  # fmt: skip
        print(f"seed {seed} steps: " + ", ".join(f"{name} {step:.3f}" for name, step in steps.items()), flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
