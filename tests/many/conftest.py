"""A small plan and video on disk."""

from pathlib import Path

import pytest
from square_video import save_plan, save_square


@pytest.fixture(scope="session")
def square(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 10 frames, 48x64."""
    return save_square(tmp_path_factory.mktemp("videos") / "square.mkv")


@pytest.fixture(scope="session")
def small_plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier for 24x32 frames, codec hold."""
    return save_plan(tmp_path_factory.mktemp("plans") / "small.plan")
