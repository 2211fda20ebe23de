"""A small classifier and videos in which something moves, or not."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import sparsetime
from sparsetime.codec import Codec
from sparsetime.engine import Plan
from sparsetime.video import write_video


def moving(count: int, start: int = 0, speed: int = 2) -> np.ndarray:
    """(T, 24, 32, 3) uint8: a grey ramp with faint noise, and a bright square that walks round and round."""
    rng = np.random.default_rng(start)
    frames = np.tile(np.linspace(20, 120, 32)[None, None, :, None], (count, 24, 1, 3)).astype(np.uint8)
    frames += rng.integers(0, 4, frames.shape, np.uint8)
    for t in range(count):
        at = (start + speed * t) % 24
        frames[t, 6:16, at : at + 8] = (250, 200, 90)
    return frames


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos: six in which the square walks, and one in which nothing ever changes."""
    path = tmp_path_factory.mktemp("tune")
    for number in range(6):
        write_video(path / f"walk{number}.mkv", moving(24, start=3 * number))
    (path / "still").mkdir()
    write_video(path / "still" / "still.mkv", np.repeat(moving(1), 24, axis=0))
    return path


def classifier(codec: Codec) -> Plan:
    """A classifier for 24x32 frames whose answer follows the square."""
    torch.manual_seed(3)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d((1, 4)), nn.Flatten(), nn.Linear(32, 4)),
    ).eval()
    frames = torch.from_numpy(moving(24)).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        model[-1].bias -= model(frames).mean(0)  # else one class is ahead wherever the square is
    return sparsetime.compile(model, frames[:1], codec=codec)


@pytest.fixture(scope="session")
def plan() -> Plan:
    """Its changes sent element by element."""
    return classifier("hold")


@pytest.fixture(scope="session", params=["hold", "pixel"])
def each_plan(request: pytest.FixtureRequest) -> Plan:
    """With each of the codecs that have thresholds."""
    return classifier(request.param)
