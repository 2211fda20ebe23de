"""Where training and evaluation run."""

import types
from pathlib import Path

import pytest
import torch
from lightning.fabric.accelerators import MPSAccelerator

from sparsetime.train import Machine
from sparsetime.train.device import pick_device
from sparsetime.train.fit import make_fabric
from sparsetime.train.loop import Loop

from .conftest import small_recipe


def test_auto_is_the_same_in_training_and_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: True))
    for name in ("auto", "cpu", "mps"):
        assert make_fabric(small_recipe(Path()), Machine(accelerator=name)).device.type == pick_device(name).type
    assert pick_device("auto").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto").type == "cuda"


def test_sums_of_one_process_are_not_moved() -> None:
    """They are float64, which MPS has not."""
    loop = types.SimpleNamespace(fabric=types.SimpleNamespace(world_size=1, device=torch.device("mps")))
    sums = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert Loop._total(loop, sums).tolist() == [1, 2]  # type: ignore[arg-type]
