"""Accuracy against operations of a trained run, on whole videos."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from sparsetime.figures import wilson
from sparsetime.files import write_json
from sparsetime.frames import change_maps, save_frames
from sparsetime.meter import Counts, Meter
from sparsetime.train.data import WINDOW, open_clips
from sparsetime.train.device import pick_device
from sparsetime.train.errors import TrainingError
from sparsetime.train.model import ClipClassifier
from sparsetime.train.run import load_run, recipe_of
from sparsetime.video import EvalDataset
from sparsetime.watch import LinearCall, OpNames, WatchLinear

Progress = Callable[[int, int], None]


def evaluate(
    run: Path | str,
    data: str,
    split: str,
    *,
    device: str = "auto",
    threads: int | None = None,
    window: int = WINDOW,
    limit: int | None = None,
    workers: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a finished run on one split and write ``evaluation-<split>.json`` and ``frames-<split>.npz`` into it.

    Every video goes through the network in consecutive windows that do not overlap. Its class is the arg-max of the
    mean of the probabilities over all its frames. The first frame of each window is computed dense; `op_density` leaves
    it out. `accuracy_frozen` is the control: each window's first answer stands for the whole window, so a network for
    which it is the same has labels that need no more than a frame now and then.

    Args:
        run: directory of a finished run.
        data: folder of the data set.
        split: name of the split, as the data set writes it.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        threads: of PyTorch; None leaves its choice.
        window: frames in a window, T.
        limit: videos to measure; None for all.
        workers: processes that decode.
        progress: called with (windows done, windows in all).

    Returns:
        What is in the JSON file; docs/train.md names its entries.

    Raises:
        RunError: not a finished run.
        TrainingError: a label that the run does not know.
        ListError: no such split, or none of its videos can be used.
    """
    started = time.perf_counter()
    if threads is not None:
        torch.set_num_threads(threads)
    run = Path(run)
    model, config = load_run(run)
    recipe = recipe_of(config)
    classes = tuple(config["classes"])
    clips = open_clips(data, missing=recipe.missing, allow=recipe.allow).split(split)
    unknown = sorted({clip.label for clip in clips} - set(classes))
    if unknown:
        raise TrainingError(
            f"evaluate: {run} was trained on {', '.join(classes)}; {data} has also {', '.join(unknown)}"
        )
    chosen = clips.clips if limit is None else clips.clips[:limit]
    windows = EvalDataset(
        chosen, classes, size=model.spec.input_size, length=window, stride=recipe.stride, workers=workers
    )
    model = model.to(pick_device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    counts, sums, frozen = measure(model, windows, progress)
    figures = counts.summary()
    figures["windows"] = figures.pop("clips")
    result = figures | summarise(windows, sums, classes)
    result |= {
        "accuracy_frozen": summarise(windows, frozen, classes)["accuracy"],
        "split": split,
        "method": recipe.method,
        "network": recipe.network,
        "seed": recipe.seed,
        "data": data,
        "window": window,
        "broken": [{"file": broken.clip.name, "reason": broken.reason} for broken in windows.broken],
        "missing": [clip.name for clip in clips.missing],
        "time_s": time.perf_counter() - started,
    }
    write_json(run / f"evaluation-{split}.json", result)
    write_frames(run / f"frames-{split}.npz", model, windows)
    return result


def measure(
    model: ClipClassifier, windows: EvalDataset, progress: Progress | None = None
) -> tuple[Counts, Tensor, Tensor]:
    """Every window through the network.

    Returns:
        What was counted; and for each video the sums over all its frames of the probabilities, and of those that each
        window's first frame got, (videos, K), float64.
    """
    device = next(model.parameters()).device
    counts = Counts()
    sums = torch.zeros(len(windows.clips), len(windows.classes), dtype=torch.float64)
    frozen = torch.zeros_like(sums)
    done = 0
    with torch.inference_mode():
        for length, indices in windows.by_length().items():
            # A meter is told how many frames lie between two first frames, so each length has its own.
            with Meter(model.model, frames=length) as meter:
                for item in DataLoader(Subset(windows, indices), batch_size=1):
                    logits = model(item["clip"].to(device))
                    p = logits.cpu().double().softmax(-1)  # MPS has no float64
                    sums.index_add_(0, item["video"], p.sum(1))
                    frozen.index_add_(0, item["video"], p[:, 0] * length)
                    done += 1
                    if progress is not None:
                        progress(done, len(windows))
            counts += meter.counts
    return counts, sums, frozen


def summarise(windows: EvalDataset, sums: Tensor, classes: tuple[str, ...]) -> dict[str, Any]:
    """Accuracy and what it is made of.

    Args:
        windows: gives videos and labels.
        sums: of the probabilities over all frames, (videos, K).
        classes: names.
    """
    number = {name: i for i, name in enumerate(classes)}
    labels = torch.tensor([number[clip.label] for clip in windows.clips])
    predicted = sums.argmax(1)
    confusion = torch.zeros(len(classes), len(classes), dtype=torch.int64)
    for label, guess in zip(labels.tolist(), predicted.tolist(), strict=True):
        confusion[label, guess] += 1
    right = int(confusion.diagonal().sum())
    per_class = {
        name: {"clips": int(confusion[i].sum()), "accuracy": int(confusion[i, i]) / int(confusion[i].sum())}
        for name, i in number.items()
        if confusion[i].any()
    }
    return {
        "accuracy": right / len(labels),
        "accuracy_interval_95": list(wilson(right / len(labels), len(labels))),
        "clips": len(labels),
        "classes": list(classes),
        "per_class": per_class,
        "confusion": confusion.tolist(),
        "predictions": [
            {
                "file": clip.name,
                "label": clip.label,
                "predicted": classes[guess],
                "correct": classes[guess] == clip.label,
            }
            for clip, guess in zip(windows.clips, predicted.tolist(), strict=True)
        ],
    }


def write_frames(path: Path, model: ClipClassifier, windows: EvalDataset, count: int = 12, layers: int = 6) -> None:
    """Write frames in which something moves, with change maps of what a few linear operations read.

    Video, frames and operations are chosen in the same way for every method, so that runs can be laid side by side.

    Args:
        path: of the npz file.
        model: in evaluation mode.
        windows: of the evaluation.
        count: frames to keep, at most.
        layers: maps to keep, spread over the depth.
    """
    clip = liveliest(windows, count + 1)
    maps: dict[str, np.ndarray[Any, Any]] = {}
    names = OpNames(model.model)

    def keep(call: LinearCall) -> None:
        name = names(call)
        if call.x.dim() == 4 and call.x.shape[0] == len(clip):
            maps[name] = change_maps(call.x.float().cpu().numpy())[1:]

    device = next(model.parameters()).device
    with torch.inference_mode(), WatchLinear(keep):
        model(clip[None].to(device))
    every = list(maps)
    picked = [every[i] for i in sorted({round(i) for i in np.linspace(0, len(every) - 1, layers)})] if every else []
    save_frames(path, clip[1:].permute(0, 2, 3, 1).contiguous().numpy(), {name: maps[name] for name in picked})


def liveliest(windows: EvalDataset, frames: int, candidates: int = 12) -> Tensor:
    """The first frames (T, 3, H, W) of the window that changes most, among some spread over the data."""
    best: Tensor = windows[0]["clip"][:frames]
    most = -1.0
    for index in sorted({round(i) for i in np.linspace(0, len(windows) - 1, candidates)}):
        clip: Tensor = windows[index]["clip"][:frames]
        change = torch.diff(clip.float(), dim=0).abs().mean().item()
        if change > most and len(clip) >= min(frames, len(best)):
            best, most = clip, change
    return best
