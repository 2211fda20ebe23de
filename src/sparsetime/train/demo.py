"""The main job in little: one network trained three ways on generated clips, and measured."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsetime.train.data import GENERATED
from sparsetime.train.evaluate import evaluate
from sparsetime.train.fit import Machine, train
from sparsetime.train.recipe import Recipe

#: All three go on from the same dense start for the same number of epochs, so that only the method differs.
START = Recipe(
    network="small_cnn",
    data=GENERATED,
    method="dense",
    epochs=28,
    lr=5e-3,
    batch_size=16,
    frames_per_video=8,
    augment=False,
)
EPOCHS = 10
PENALTY = {"dense": None, "spatial_l1": 4.0, "delta": 20.0}


def run_demo(out: Path, *, machine: Machine, tell: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Train and measure the three runs in `out`.

    Args:
        out: a folder; runs of an earlier demo in it are replaced.
        machine: threads and worker processes.
        tell: called with a line before each part.

    Returns:
        What `evaluate` gave, by method.
    """
    tell(f"training the start: {START.network}, {START.epochs} epochs")
    train(START, out / "start", machine=machine, overwrite=True)
    results = {}
    for method, penalty in PENALTY.items():
        tell(f"training {method}: {EPOCHS} epochs more")
        recipe = START.replace(method=method, penalty=penalty, weights=str(out / "start"), epochs=EPOCHS, codec="exact")
        train(recipe, out / method, machine=machine, overwrite=True)
        results[method] = evaluate(out / method, GENERATED, "test", threads=machine.threads)
    return results
