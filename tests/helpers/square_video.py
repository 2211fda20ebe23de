"""A small classifier's plan, and a video in which a square walks."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

import sparsetime
from sparsetime.video import write_video


def moving_square(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """(T, H, W, 3) uint8: a grey ramp, and a bright square that walks along the upper edge, 4 pixels a frame."""
    frames = np.repeat(np.linspace(20, 120, width)[None, None, :, None], count, axis=0)
    frames = np.tile(frames, (1, height, 1, 3)).astype(np.uint8)
    for t in range(count):
        frames[t, 4:16, 4 * t % width : 4 * t % width + 12] = (250, 200, 90)
    return frames


def save_square(path: Path, count: int = 10) -> Path:
    """A lossless video of moving squares, 48x64, 20 frames a second."""
    write_video(path, moving_square(count), rate=20)
    return path


def save_plan(path: Path) -> Path:
    """A plan for 24x32 frames, codec hold: two convolutions and a classifier of five classes."""
    torch.manual_seed(3)
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    ).eval()
    frame = torch.from_numpy(moving_square(1, 24, 32)).permute(0, 3, 1, 2).float()
    sparsetime.compile(network, frame, codec="hold").save(path)
    return path
