"""Small plans and videos on disk."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import sparsetime
from sparsetime.video import write_video


def moving_square(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """(T, H, W, 3) uint8: a grey ramp, and a bright square that walks along the upper edge."""
    frames = np.repeat(np.linspace(20, 120, width)[None, None, :, None], count, axis=0)
    frames = np.tile(frames, (1, height, 1, 3)).astype(np.uint8)
    for t in range(count):
        frames[t, 4:16, 4 * t : 4 * t + 12] = (250, 200, 90)
    return frames


@pytest.fixture(scope="session")
def square(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lossless video of 10 frames, 48x64."""
    path = tmp_path_factory.mktemp("videos") / "square.mkv"
    write_video(path, moving_square(10), rate=20)
    return path


def small_network(classes: int = 5) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)),
    ).eval()


@pytest.fixture(scope="session")
def small_plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier for 24x32 frames, codec hold."""
    path = tmp_path_factory.mktemp("plans") / "small.plan"
    frame = torch.from_numpy(moving_square(1, 24, 32)).permute(0, 3, 1, 2).float()
    sparsetime.compile(small_network(), frame, codec="hold").save(path)
    return path
