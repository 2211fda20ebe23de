"""Shared fixtures."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sparsetime import _native

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

# Two cores: more threads than that only fight each other, and one makes the figures repeatable.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The development videos and weights that lie beside the checkout; skips where they are absent."""
    if not SHARED_DATA.is_dir():
        if os.environ.get("SPARSETIME_REQUIRE_DATA"):
            pytest.fail(f"development data expected at {SHARED_DATA}, found nothing")
        pytest.skip(f"needs the development data at ../shared/data (looked at {SHARED_DATA})")
    return SHARED_DATA


@pytest.fixture(params=_native.available())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each table of kernels that this machine can run, in use for the time of the test."""
    before = _native.isa()
    _native.select(request.param)
    yield request.param
    _native.select(before)
