"""One training run from a recipe to a run directory."""

import gc
import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy

from sparsetime.files import write_csv, write_json
from sparsetime.train import run as runs
from sparsetime.train.data import TrainingData, open_clips
from sparsetime.train.device import pick_device
from sparsetime.train.errors import RunError
from sparsetime.train.loop import COLUMNS, Loop, Row, Watch
from sparsetime.train.model import ClipClassifier, make_sparse
from sparsetime.train.progress import Progress
from sparsetime.train.recipe import Recipe, resolve
from sparsetime.train.start import build


@dataclass(frozen=True)
class Machine:
    """Where and how fast a run runs; decides no figure beyond rounding.

    Attributes:
        accelerator: ``auto``, ``cpu``, ``cuda`` or ``mps``; see `pick_device`.
        threads: of PyTorch; None leaves its choice.
        workers: processes that load clips, for each training process.
    """

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: int | None = None
    workers: int = 1


def train(
    recipe: Recipe, out: Path | str, *, machine: Machine | None = None, overwrite: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """Train a network as the recipe says and write the run directory.

    A directory with an unfinished run of the same recipe is gone on with from its last whole epoch. Under ``torchrun``
    every process calls this with the same arguments; the first writes.

    Args:
        recipe: what to train, on what.
        out: the run directory.
        machine: device, threads, worker processes.
        overwrite: delete what is in `out` first.
        quiet: no progress on stderr.

    Returns:
        The last row of metrics.csv, if there is one, and: run, method, network, epochs, resumed_from_epoch, clips,
        broken, time_s.

    Raises:
        RunError: `out` holds a finished run, one with another recipe, or the weights to start from.
        TrainingError: the data cannot be used or the loss is not finite.
    """
    started = time.perf_counter()
    machine = machine or Machine()
    out = Path(out)
    if recipe.weights is not None and Path(recipe.weights).resolve().is_relative_to(out.resolve()):
        raise RunError(f"out: {out} holds the weights to start from, {recipe.weights}; give another --out")
    if machine.threads is not None:
        torch.set_num_threads(machine.threads)
    fabric = make_fabric(recipe, machine)
    fabric.launch()
    progress = Progress(enabled=not quiet and fabric.is_global_zero)

    clips = open_clips(recipe.data, missing=recipe.missing, allow=recipe.allow)
    network, trained = build(recipe, tuple(clips.classes))
    recipe = resolve(recipe, trained=trained)
    spec = network.spec
    model = ClipClassifier(make_sparse(network, recipe), spec, per_frame=recipe.method == "dense")
    config = runs.make_config(recipe, spec, clips, " ".join(sys.argv))
    config["left_dense"] = dict(getattr(model.model, "left_dense", {}))
    if fabric.is_global_zero:
        prepare(out, config, overwrite=overwrite)
    fabric.barrier()

    data = decode(fabric, machine, progress, clips, recipe, spec.input_size)
    loop = Loop(model, recipe, data, fabric, workers=machine.workers)
    checkpoint = out / runs.CHECKPOINT
    if checkpoint.is_file():
        loop.load(checkpoint)
    resumed = loop.epochs_done
    progress.start(recipe, data, resumed)

    with progress, tensorboard(out, enabled=fabric.is_global_zero) as board:

        def epoch_done(row: Row) -> None:
            if not fabric.is_global_zero:
                return
            write_csv(out / runs.METRICS, COLUMNS, loop.rows)
            board(row)
            progress.epoch(row)

        rows = loop.run(checkpoint, Watch(batch=progress.batch, epoch=epoch_done))

    if fabric.is_global_zero:
        write_csv(out / runs.METRICS, COLUMNS, rows)
        runs.write_weights(out, model.model, config)
    fabric.barrier()
    return (rows[-1] if rows else {}) | {
        "run": str(out),
        "network": recipe.network,
        "method": recipe.method,
        "seed": recipe.seed,
        "epochs": len(rows),
        "resumed_from_epoch": resumed,
        "clips": len(data.clips),
        "held_out": len(data.held_out),
        "broken": [{"file": broken.clip.name, "reason": broken.reason} for broken in data.broken],
        "time_s": time.perf_counter() - started,
    }


def leave_group() -> None:
    """Part from the other processes of ``torchrun``; to be called when everything that trained is out of reach.

    A thread of gloo may still hold tensors of the last exchange. Letting go of them takes the interpreter's lock, and
    once the interpreter has ended that aborts the process. So the threads are ended first.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()  # the wrapped network and the trainer refer to each other, and to the group
        torch.distributed.destroy_process_group()


def make_fabric(recipe: Recipe, machine: Machine) -> Fabric:
    """Devices and processes: one device, or under ``torchrun`` one for each process."""
    world, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    device = pick_device(machine.accelerator)
    strategy: DDPStrategy | str = "auto"
    if world > 1:
        # The steps have no gradient during the dense warm-up.
        backend = "gloo" if device.type == "cpu" else None
        strategy = DDPStrategy(find_unused_parameters=recipe.method == "delta", process_group_backend=backend)
    with warnings.catch_warnings(), calm_logging():
        warnings.filterwarnings("ignore", module="lightning.*")
        return Fabric(
            accelerator=device.type,
            devices=local if world > 1 else 1,
            num_nodes=max(1, world // local),
            strategy=strategy,
            precision="bf16-mixed" if recipe.precision == "bf16-mixed" else "32-true",
        )


def prepare(out: Path, config: dict[str, Any], *, overwrite: bool) -> None:
    """Make the run directory, or see that what is in it may be gone on with.

    Raises:
        RunError: it is finished, another run's, one on other clips, or no run directory but not empty.
    """
    if overwrite and out.exists():
        if not runs.is_run(out) and any(out.iterdir()):
            raise RunError(f"out: {out} is not a run directory; --overwrite deletes nothing but those")
        shutil.rmtree(out)
    if runs.is_run(out):
        if runs.is_finished(out):
            raise RunError(f"out: {out} holds a finished run; give another --out, or --overwrite to delete it")
        stored = runs.read_config(out)
        different = runs.same_run(stored, config)
        if different:
            raise RunError(
                f"out: {out} holds an unfinished run that differs in {', '.join(different)}; give its own command to "
                "go on with it, another --out, or --overwrite to delete it"
            )
        if stored.get(runs.CLIPS, config[runs.CLIPS]) != config[runs.CLIPS]:  # older runs have none
            raise RunError(
                f"out: {out} holds an unfinished run on other clips: since it began, training videos have come, gone, "
                f"or changed label, group or order in {config['data']}. Put the list back as it was to go on with the "
                "run, give another --out, or --overwrite to delete it"
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"out: {out} exists and is not a run directory; give another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / runs.CONFIG, config)


def decode(
    fabric: Fabric, machine: Machine, progress: Progress, clips: Any, recipe: Recipe, size: tuple[int, int]
) -> TrainingData:
    """Decode every video once; the first process of a machine does it, the others find the frames in the cache."""
    if fabric.local_rank == 0:
        data = TrainingData.decode(clips, recipe, size, workers=machine.workers, progress=progress.decoded)
    fabric.barrier()
    if fabric.local_rank != 0:
        logging.getLogger("sparsetime.video").setLevel(logging.ERROR)  # the first process has named the broken files
        data = TrainingData.decode(clips, recipe, size)
    return data


@contextmanager
def tensorboard(out: Path, *, enabled: bool) -> Iterator[Any]:
    """A function that writes a row of metrics for TensorBoard."""
    if not enabled:
        yield lambda row: None
        return
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(out / "tensorboard"))

    def write(row: Row) -> None:
        for name, value in row.items():
            if isinstance(value, float):
                writer.add_scalar(name, value, row["epoch"])
        writer.flush()

    try:
        yield write
    finally:
        writer.close()


@contextmanager
def calm_logging() -> Iterator[None]:
    """Keep Lightning's remarks about devices off the terminal."""
    logger = logging.getLogger("lightning.fabric")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
