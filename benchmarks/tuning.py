"""Does tuning each layer beat one threshold for all of them, and does the budget hold on clips that were not seen?

    python benchmarks/tuning.py --data ../shared/data --out runs/tuning --json tuning.json

For each network and video: one relative threshold for all layers, theta_l = s * range_l with s as coarse as the tuning
clips allow, against `sparsetime.tune` at the same budget on the same clips; both on the clips held back. The density of
the one threshold is read off its curve at the worst drop that the tuned plan has on the tuning clips, so that the two
stand at the same quality and not only within the same budget.

A search that was interrupted goes on from its state in --out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sparsetime
from sparsetime import networks
from sparsetime.budget import tune
from sparsetime.budget.judge import Judge
from sparsetime.budget.search import COARSEST, FINEST, coarsest, shifted
from sparsetime.budget.setting import OCTAVE, apply, codecs, with_ops
from sparsetime.budget.tuning import MARGIN, Sources, lively
from sparsetime.budget.workbench import Workbench
from sparsetime.convert.steps import fan_out_factors
from sparsetime.engine import Plan
from sparsetime.run.planning import spread
from sparsetime.run.sources import Source


@dataclass(frozen=True)
class Experiment:
    """A network, and videos of its own kind to tune and to check on."""

    name: str
    network: str
    weights: str
    videos: tuple[str, ...]
    max_drop: float
    size: tuple[int, int] | None = None


FASTESTDET = ("fastestdet", "detection/fastestdet_coco.pth")
DEEPLAB = ("deeplabv3_mobilenet_v2", "segmentation/deeplabv3_mnv2_dm05_pascal_quant.npz")
EXPERIMENTS = (
    Experiment("fastestdet-pedestrians", *FASTESTDET, ("pedestrians_vtest.avi",), 0.10),
    Experiment("fastestdet-bridge", *FASTESTDET, ("traffic_bridge.mp4",), 0.10),
    Experiment("deeplab-pedestrians", *DEEPLAB, ("pedestrians_vtest.avi",), 0.15),
    Experiment("deeplab-bridge", *DEEPLAB, ("traffic_bridge.mp4",), 0.15),
)
_CALIBRATION = 16  # frames


def compiled(experiment: Experiment, data: Path, videos: list[str]) -> Plan:
    """The plan as `sparsetime compile --calibrate` makes it."""
    weights = data / "weights" / experiment.weights
    network = networks.create(experiment.network, input_size=experiment.size, weights=weights).eval()
    size = network.spec.input_size
    frames = spread((shot.picture for shot in Source(videos[0], size)), _CALIBRATION)
    steps = [torch.from_numpy(frame).permute(2, 0, 1).contiguous() for frame in frames]
    return sparsetime.compile(network, torch.zeros(1, 3, *size), steps=steps, codec="hold")


def one_relative(plan: Plan) -> Plan:
    """The plan with thresholds of range / levels, without regard to what an event costs."""
    factors = fan_out_factors(plan, [plan.ops[number].output for number in codecs(plan)])
    ops, tensors = list(plan.ops), dict(plan.tensors)
    for number in codecs(plan):
        op = ops[number]
        assert op.codec is not None
        tensors[f"{number}.one"] = (tensors[op.codec["tensor"]] / factors[op.output]).astype(np.float32)
        ops[number] = dataclasses.replace(op, codec={**op.codec, "tensor": f"{number}.one"})
    flat = dataclasses.replace(plan, structure=[{"output": k} for k in range(len(plan.outputs))])
    return with_ops(flat, ops, tensors)


def at_drop(curve: list[dict[str, float]], drop: float, key: str) -> float | None:
    """A density of a curve at a drop, by interpolation of its logarithm; None outside of the curve."""
    curve = sorted(curve, key=lambda point: point["drop"])
    drops = [point["drop"] for point in curve]
    if not drops[0] <= drop <= drops[-1]:
        return None
    return math.exp(float(np.interp(drop, drops, [math.log(point[key]) for point in curve])))


def run(experiment: Experiment, data: Path, out: Path, clip_frames: int, tuned: int, checked: int) -> dict[str, Any]:
    """Both ways, one experiment."""
    videos = [str(data / "static_videos" / video) for video in experiment.videos]
    plan = compiled(experiment, data, videos)

    def progress(stage: str, count: int) -> None:
        print(f"\r{experiment.name}: {stage}, {count} settings measured\x1b[K", end="", file=sys.stderr, flush=True)

    found = tune(
        plan,
        videos,
        max_drop=experiment.max_drop,
        out=out / f"{experiment.name}.plan",
        clip_frames=clip_frames,
        tune_clips=tuned,
        check_clips=checked,
        progress=progress,
    )
    own = found.figures["tuning"]

    judge = Judge(plan)
    sources = Sources(plan, judge, videos, None, clip_frames, 1)
    clips, _ = lively(judge, sources.tuning(tuned, lambda: None), experiment.max_drop)
    bench = Workbench(one_relative(plan), clips, judge, 1, None, progress)
    whole = (0,) * len(codecs(plan))
    limit = experiment.max_drop * (1 - MARGIN)
    single = coarsest(bench, whole, limit, FINEST, COARSEST)
    assert single is not None
    held = sources.held(checked, lambda: None)
    points = [bench(shifted(single, by)) for by in range(-OCTAVE, OCTAVE + 1)]
    curve = [
        {"drop": p.drop, "op_density": p.op_density, "event_density": p.event_density, "error": p.error} for p in points
    ]
    on_held = bench.of(apply(bench.plan, single), held)
    misses = sum(drop > experiment.max_drop for drop in on_held.drops)
    same = {key: at_drop(curve, own["drop"], key) for key in ("op_density", "event_density")}
    return {
        "experiment": experiment.name,
        "tuned": found.figures,
        "one_threshold": {
            "drop": bench(single).drop,
            "op_density": bench(single).op_density,
            "event_density": bench(single).event_density,
            "time_model_ms": bench(single).time_ns / 1e6,
            "curve": curve,
            "at_the_same_drop": same,
            "check": {
                "drop": on_held.drop,
                "op_density": on_held.op_density,
                "event_density": on_held.event_density,
                "missed": misses,
                "clips": len(held),
            },
        },
        "ratio": {key: None if value is None else own[key] / value for key, value in same.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for plans and states")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", help="name of one experiment")
    parser.add_argument("--clip-frames", type=int, default=32)
    parser.add_argument("--tune-clips", type=int, default=6)
    parser.add_argument("--check-clips", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    results = []
    for experiment in EXPERIMENTS:
        if options.only not in (None, experiment.name):
            continue
        result = run(
            experiment, options.data, options.out, options.clip_frames, options.tune_clips, options.check_clips
        )
        results.append(result)
        own, one = result["tuned"], result["one_threshold"]
        print(
            f"\n{experiment.name}: operations {own['tuning']['op_density']:.3f} tuned, "
            f"{one['at_the_same_drop']['op_density'] or math.nan:.3f} with one threshold at the same drop of "
            f"{own['tuning']['drop']:.3f} (ratio {result['ratio']['op_density'] or math.nan:.2f}, events "
            f"{result['ratio']['event_density'] or math.nan:.2f}); held back: "
            f"{len(own['check']['missed'])} of {own['check']['clips_counted']} clips over {experiment.max_drop:.0%}"
        )
        if options.json:
            options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
