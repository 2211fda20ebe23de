"""From a network to a plan file."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import sparsetime
from sparsetime.convert.steps import DEFAULT_CODEC
from sparsetime.engine.crossover import measured
from sparsetime.files import ready
from sparsetime.run.models import Model, ModelError, load_model
from sparsetime.run.sources import Source, SourceError
from sparsetime.video.reader import Frames

__all__ = ["compile_file", "spread"]

_FRAMES = 16  # to calibrate on


def compile_file(
    name: str,
    out: Path,
    *,
    weights: Path | None = None,
    calibrate: str | None = None,
    codec: str | None = None,
    levels: float | None = None,
    size: tuple[int, int] | None = None,
    precision: str = "float32",
) -> dict[str, Any]:
    """Compile a network and write its plan.

    A network trained by `--method delta` brings its steps. Others are calibrated on frames spread over the video
    `calibrate`, or, where they come from a run, on its training videos.

    Args:
        name: see `load_model`.
        out: file to write.
        weights: of a built-in network.
        calibrate: a video file or a folder of pictures.
        codec: see `sparsetime.codec`. None: the run's, or the default for a plain network.
        levels: into how many parts the range of a value is divided, see `sparsetime.compile`; of a plain network.
        size: (H, W) of the input, where the network comes in several.
        precision: `float32` or `int8`, which needs a clip, or the run's own training videos, for its ranges.

    Returns:
        JSON-able figures of the plan.

    Raises:
        ModelError: no such model, nothing to calibrate a plain network on, or a clip for one that has its steps.
        SourceError: the clip cannot be read in full.
        CompileError: the network cannot be a plan.
        TargetError: `out` cannot be written.
    """
    started = time.perf_counter()
    ready(out)
    model = load_model(name, weights=weights, size=size)
    chosen = codec or DEFAULT_CODEC
    example, steps = torch.zeros(1, 3, *model.size), None
    if model.learned:
        if calibrate is not None and precision != "int8":
            raise ModelError(f"model {name} has learned its steps; leave out --calibrate")
        if levels is not None:
            raise ModelError(f"model {name} has learned its steps; leave out --levels")
        _set_codec(model, codec)
    if not model.learned or precision == "int8":
        frames = _calibration_frames(name, model, calibrate)
        # uint8, which compile normalises as the network's `spec` says.
        steps = [torch.from_numpy(frame).permute(2, 0, 1).contiguous() for frame in frames]
    plan = measured(
        sparsetime.compile(model.module, example, steps=steps, codec=chosen, levels=levels, precision=precision)
    )
    plan.save(out)
    return {
        "plan": str(out),
        "network": plan.name,
        "input_size": list(model.size),
        "normalised": plan.input is not None,
        "precision": precision,
        "codec": codec or model.codec or (None if model.learned else chosen),
        "calibration_frames": 0 if steps is None else len(steps),
        "operations": len(plan.ops),
        "islands": [{"name": op.name, "operator": op.attributes["target"], "at": op.source} for op in plan.islands],
        "dense_macs": plan.dense_macs,
        "weight_bytes": plan.weight_bytes,
        "state_bytes": plan.state_bytes,
        "file_bytes": out.stat().st_size,
        "time_s": time.perf_counter() - started,
    }


def _set_codec(model: Model, codec: str | None) -> None:
    """Another codec for a network that has learned its steps: they become thresholds as they are."""
    if codec is not None:
        for layer in sparsetime.delta_layers(model.module).values():
            if isinstance(layer, sparsetime.DeltaActivation):
                layer.codec = codec  # type: ignore[assignment]  # compile checks it


def _calibration_frames(name: str, model: Model, calibrate: str | None) -> list[Frames]:
    if calibrate is None:
        frames = list(model.training_frames(_FRAMES))
        if not frames:
            why = "int8 needs the ranges of its values" if model.learned else "it has no steps of its own"
            gone = "" if model.config is None else ", and the videos that it was trained on are gone"
            raise ModelError(
                f"model {name}: {why}{gone}; give --calibrate VIDEO, a short clip (no labels) of what it will see"
            )
        return frames
    source = Source(calibrate, model.size)
    if source.live:
        raise SourceError(f"--calibrate {source.name}: expected a video file or a folder of pictures")
    frames = spread((shot.picture for shot in source), _FRAMES)
    if source.damage:
        raise SourceError(f"--calibrate {source.name}: {'; '.join(source.damage)}")
    return frames


def spread(frames: Iterable[Frames], count: int) -> list[Frames]:
    """At least count / 2 and at most `count` frames, evenly spread over a video of unknown length (all of a shorter
    one)."""
    kept: list[Frames] = []
    stride = 1
    for number, frame in enumerate(frames):
        if number % stride:
            continue
        if len(kept) == count:
            kept = kept[::2]
            stride *= 2
            if number % stride:
                continue
        kept.append(frame)
    return kept
