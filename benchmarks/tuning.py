"""Does tuning each layer beat one threshold for all of them, and does the budget hold on clips that were not seen?

    python benchmarks/tuning.py tune --data ../shared/data --out runs/tuning --codec pixel
    python benchmarks/tuning.py time --data ../shared/data --out runs/tuning --codec pixel
    python benchmarks/tuning.py table --out runs/tuning

`tune`, for each network and video: one relative threshold for all layers, theta_l = s * range_l, with the codecs
`hold` and `pixel`, against `sparsetime.budget.tune` of a plan with `--codec`, on the same clips, with the flushes of
`sparsetime run`. The figures of the one threshold are read off its curve at the worst drop that the tuned plan has on
the tuning clips, so that they stand at the same quality and not only within the same budget; and, beside it, at the
same mean drop, which is less noisy. Then both are run on the clips held back.

`time` runs the tuned plan, the points of the curves on both sides of its drop, and the fastest dense runtime in turn,
frame by frame, and takes CPU time, so that it bears a busy machine. It writes the means over the frames of the tuning
clips, first ones left out; of the one threshold interpolated at the same worst drop and at the same mean drop.

Both write a file for each experiment into --out. A search that was interrupted goes on from its state there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sparsetime
from sparsetime import networks
from sparsetime.bench.machine import machine
from sparsetime.budget import tune
from sparsetime.budget.clips import Clip
from sparsetime.budget.judge import Judge
from sparsetime.budget.measure import Measured
from sparsetime.budget.search import COARSEST, FINEST, coarsest, shifted
from sparsetime.budget.setting import OCTAVE, apply, codecs, with_ops
from sparsetime.budget.tuning import MARGIN, Sources, lively
from sparsetime.budget.workbench import Workbench
from sparsetime.convert.steps import fan_out_factors
from sparsetime.engine import Plan
from sparsetime.engine.crossover import measured
from sparsetime.run.dense import dense_network
from sparsetime.run.flush import flush_of
from sparsetime.run.planning import spread
from sparsetime.run.sources import Source


@dataclass(frozen=True)
class Experiment:
    """A network, a video of its own kind to tune and to check on, and how much of it is taken."""

    name: str
    network: str
    weights: str
    video: str
    max_drop: float
    clip_frames: int
    tune_clips: int
    check_clips: int


FASTESTDET = ("fastestdet", "detection/fastestdet_coco.pth")
DEEPLAB = ("deeplabv3_mobilenet_v2", "segmentation/deeplabv3_mnv2_dm05_pascal_quant.npz")
EXPERIMENTS = (
    Experiment("fastestdet-pedestrians", *FASTESTDET, "pedestrians_vtest.avi", 0.10, 24, 4, 12),
    Experiment("fastestdet-bridge", *FASTESTDET, "traffic_bridge.mp4", 0.10, 24, 4, 12),
    Experiment("deeplab-pedestrians", *DEEPLAB, "pedestrians_vtest.avi", 0.15, 16, 2, 10),
    Experiment("deeplab-bridge", *DEEPLAB, "traffic_bridge.mp4", 0.15, 16, 2, 10),
)
BASELINES = ("hold", "pixel")
_CALIBRATION = 16  # frames
_FIGURES = ("op_density", "event_density", "time_model_ms")


def compiled(experiment: Experiment, data: Path, out: Path, codec: str) -> Plan:
    """The plan as `sparsetime compile --calibrate` makes it, kept in a file: what is timed for it is timed once."""
    file = out / f"{experiment.name}-{codec}-compiled.plan"
    if not file.exists():
        network = networks.create(experiment.network, weights=data / "weights" / experiment.weights).eval()
        size = network.spec.input_size
        video = str(data / "static_videos" / experiment.video)
        frames = spread((shot.picture for shot in Source(video, size)), _CALIBRATION)
        steps = [torch.from_numpy(frame).permute(2, 0, 1).contiguous() for frame in frames]
        measured(sparsetime.compile(network, torch.zeros(1, 3, *size), steps=steps, codec=codec)).save(file)
    return Plan.load(file)


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


def at(curve: list[dict[str, float]], drop: float, key: str, by: str) -> float | None:
    """A figure of a curve at a drop or mean_drop (`by`), by interpolation of its logarithm; None outside of it."""
    curve = sorted(curve, key=lambda point: point[by])
    drops = [point[by] for point in curve]
    if not drops[0] <= drop <= drops[-1]:
        return None
    return math.exp(float(np.interp(drop, drops, [math.log(point[key]) for point in curve])))


def mean_drop(found: Measured) -> float:
    """Over the clips in which there is something to compare."""
    return statistics.fmean(drop for drop in found.drops if not math.isnan(drop))


def point_of(found: Measured) -> dict[str, float]:
    return {
        "drop": found.drop,
        "mean_drop": mean_drop(found),
        "error": found.error,
        "op_density": found.op_density,
        "event_density": found.event_density,
        "time_model_ms": found.time_ns / 1e6,
    }


class Clips:
    """Clips of an experiment, answered by the dense network."""

    def __init__(self, experiment: Experiment, data: Path, plan: Plan) -> None:
        self.judge = Judge(plan)
        self.videos = [str(data / "static_videos" / experiment.video)]
        self.sources = Sources(plan, self.judge, self.videos, None, experiment.clip_frames, 1)
        found = self.sources.tuning(experiment.tune_clips, lambda: None)
        self.tuning, _ = lively(self.judge, found, experiment.max_drop)


def run(experiment: Experiment, data: Path, out: Path, codec: str) -> dict[str, Any]:
    """Both ways, one experiment."""

    def progress(stage: str, count: int) -> None:
        print(f"\r{experiment.name}: {stage}, {count} settings measured\x1b[K", end="", file=sys.stderr, flush=True)

    plan = compiled(experiment, data, out, codec)
    clips = Clips(experiment, data, plan)
    found = tune(
        plan,
        clips.videos,
        max_drop=experiment.max_drop,
        out=out / f"{experiment.name}-{codec}.plan",
        clip_frames=experiment.clip_frames,
        tune_clips=experiment.tune_clips,
        check_clips=experiment.check_clips,
        progress=progress,
    )
    own = found.figures["tuning"]
    held = clips.sources.held(experiment.check_clips, lambda: None)
    result: dict[str, Any] = {
        "experiment": experiment.name,
        "codec": codec,
        "machine": machine(),
        "tuned": found.figures,
    }
    for kind in BASELINES:
        one = one_relative(compiled(experiment, data, out, kind))
        bench = Workbench(one, clips.tuning, clips.judge, 1, flush_of(one), None, progress)
        whole = (0,) * len(codecs(one))
        single = coarsest(bench, whole, experiment.max_drop * (1 - MARGIN), FINEST, COARSEST)
        assert single is not None
        by_shift = {by: bench(shifted(single, by)) for by in range(-OCTAVE, OCTAVE + 1)}
        curve = [point_of(found) for found in by_shift.values()]
        on_held = bench.of(apply(one, single), held)
        same = {key: at(curve, own["drop"], key, "drop") for key in _FIGURES}
        same_mean = {key: at(curve, own["mean_drop"], key, "mean_drop") for key in _FIGURES}
        shift = max((by for by, point in by_shift.items() if point.drop <= own["drop"]), default=-OCTAVE)
        apply(one, shifted(single, shift)).save(out / f"{experiment.name}-{codec}-one-{kind}.plan")
        result[f"one_{kind}"] = {
            **point_of(bench(single)),
            "curve": curve,
            "at_the_same_drop": same,
            "at_the_same_mean_drop": same_mean,
            "timed": point_of(by_shift[shift]),
            "ratio": {key: None if value is None else own[key] / value for key, value in same.items()},
            "ratio_at_mean": {key: None if value is None else own[key] / value for key, value in same_mean.items()},
            "check": point_of(on_held)
            | {"missed": sum(drop > experiment.max_drop for drop in on_held.drops), "clips": len(held)},
        }
    return result


def around(curve: list[dict[str, float]], drop: float, by: str) -> list[int]:
    """Numbers of the points of a curve between which a drop lies, or of the nearest one."""
    order = sorted(range(len(curve)), key=lambda k: curve[k][by])
    place = int(np.searchsorted([curve[k][by] for k in order], drop))
    return order[max(place - 1, 0) : place + 1]


def race(stem: Path, result: dict[str, Any], clips: list[Clip]) -> dict[str, float | str]:
    """CPU time of a frame, ms: the plans that `run` left, and the dense network."""
    own = result["tuned"]["tuning"]
    plans: dict[Any, Plan] = {"tuned": Plan.load(f"{stem}.plan")}
    for kind in BASELINES:
        curve, saved = result[f"one_{kind}"]["curve"], Plan.load(f"{stem}-one-{kind}.plan")
        at_saved = curve.index(result[f"one_{kind}"]["timed"])
        for k in {k for by in ("drop", "mean_drop") for k in around(curve, own[by], by)}:
            plans[kind, k] = apply(saved, (k - at_saved,) * len(codecs(saved)))
    dense = dense_network(plans["tuned"], clips[0].frames[0], 1)
    streams = {name: plan.stream(flush=flush_of(plan)) for name, plan in plans.items()}
    calls = {**streams, "dense": dense.run}
    times: dict[Any, list[int]] = {name: [] for name in calls}
    names = list(calls)
    for clip in clips:
        for stream in streams.values():
            stream.reset()
        for number, frame in enumerate(clip.frames):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                start = time.process_time_ns()
                calls[name](frame)
                if number:
                    times[name].append(time.process_time_ns() - start)
    means = {name: statistics.fmean(taken) / 1e6 for name, taken in times.items()}
    found: dict[str, float | str] = {name: means[name] for name in ("tuned", "dense")}
    for kind in BASELINES:
        curve = result[f"one_{kind}"]["curve"]
        for by, name in (("drop", f"one_{kind}"), ("mean_drop", f"one_{kind}_at_mean")):
            points = [curve[k] | {"ms": means[kind, k]} for k in around(curve, own[by], by)]
            found[name] = at(points, own[by], "ms", by) or points[0]["ms"]
    return found | {"dense_runtime": dense.name}


def table(out: Path) -> None:
    """Ratios of the tuned plans to one threshold at the same drop, a line an experiment, medians of all below."""
    rows: list[list[float | None]] = []
    for file in sorted(out.glob("*.json")):
        if file.name.endswith(".tune.json"):
            continue
        result = json.loads(file.read_text(encoding="utf-8"))
        tuned, times = result["tuned"], result.get("cpu_ms", {})
        own, check = tuned["tuning"], tuned["check"]
        print(
            f"{result['experiment']} {result['codec']}: drop {own['drop']:.3f} (mean {own['mean_drop']:.3f}), "
            f"operations {own['op_density']:.3f}, asked for {own['event_density']:.3f}, model "
            f"{own['time_model_ms']:.2f} ms, held back: {len(check['missed'])} of {check['clips_counted']} over "
            f"{tuned['max_drop']:.0%} (worst {check['drop']:.3f})"
        )
        for kind in BASELINES:
            one = result[f"one_{kind}"]
            row = [one[by][key] for by in ("ratio", "ratio_at_mean") for key in _FIGURES]
            row += [times["tuned"] / times[f"one_{kind}{by}"] if times else None for by in ("", "_at_mean")]
            rows.append(row)
            print(
                f"  / one {kind}: at the same worst drop, same mean drop: done, asked for, model; CPU time at both: "
                + ", ".join("-" if x is None else f"{x:.2f}" for x in row)
                + f"; its misses {one['check']['missed']} of {one['check']['clips']}"
            )
        print("  CPU ms:", ", ".join(f"{k} {v if isinstance(v, str) else f'{v:.2f}'}" for k, v in times.items()))
    for kind, part in zip(BASELINES, (rows[0::2], rows[1::2]), strict=True):
        middles = [[x for x in column if x is not None] for column in zip(*part, strict=True)]
        print(f"median / one {kind}:", ", ".join(f"{statistics.median(x):.2f}" if x else "-" for x in middles))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("tune", "time", "table"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder for plans, states and figures")
    parser.add_argument("--codec", choices=("hold", "pixel"), default="pixel", help="of the plan that is tuned")
    parser.add_argument("--only", help="name of one experiment")
    options = parser.parse_args()
    if options.do == "table":
        table(options.out)
        return
    if options.data is None:
        parser.error("--data is needed")
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    for experiment in EXPERIMENTS:
        if options.only not in (None, experiment.name):
            continue
        file = options.out / f"{experiment.name}-{options.codec}.json"
        if options.do == "tune":
            result = run(experiment, options.data, options.out, options.codec)
        else:
            result = json.loads(file.read_text(encoding="utf-8"))
            plan = compiled(experiment, options.data, options.out, options.codec)
            clips = Clips(experiment, options.data, plan).tuning
            result["cpu_ms"] = race(options.out / f"{experiment.name}-{options.codec}", result, clips)
            print(experiment.name, result["cpu_ms"])
        file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
