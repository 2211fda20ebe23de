"""Does tuning each layer beat one threshold for all of them, and does the budget hold on clips that were not seen?

    python benchmarks/tuning.py tune --data ../shared/data --out runs/tuning --codec pixel
    python benchmarks/tuning.py time --data ../shared/data --out runs/tuning --codec pixel
    python benchmarks/tuning.py table --out runs/tuning

`tune`, for each network and video: `sparsetime.budget.tune` of a plan with `--codec`, and the curve of one threshold
for all layers, on the same clips, with the flushes of `sparsetime run`: the same share of each layer's range,
theta_l = s * range_l, with the codecs `hold` and `pixel`, and the same number, theta_l = s, with `hold`. All are
proven as `tune` does it and checked on the clips held back, the one threshold as coarse as the budget lets it be.

`time` runs the tuned plan, the points of the curves on both sides of its drop, and the fastest dense runtime in turns
of random order, frame by frame, and takes operations and CPU time, so that it bears a busy machine: means over the
frames of the tuning clips, first ones left out, and of them the median of five rounds. The figures of the one threshold
are interpolated at the worst drop that the tuned plan has on these clips, so that both stand at the same quality and
not only within the same budget; and, beside it, at the same mean drop, which is less noisy.

Both write a file for each experiment into --out. A search that was interrupted goes on from its state there.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
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

from sparsetime.bench.machine import machine
from sparsetime.budget import tune
from sparsetime.budget.clips import Clip
from sparsetime.budget.cost import Counted, Layout
from sparsetime.budget.judge import Judge
from sparsetime.budget.measure import Measured
from sparsetime.budget.search import COARSEST, FINEST, coarsest, shifted
from sparsetime.budget.setting import OCTAVE, apply, codecs
from sparsetime.budget.tuning import MARGIN, Sources, apart, lively, proven
from sparsetime.budget.workbench import Workbench
from sparsetime.convert.steps import fan_out_factors
from sparsetime.engine import Plan
from sparsetime.run.dense import Dense, dense_network
from sparsetime.run.flush import flush_of
from sparsetime.run.planning import compile_file


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
    Experiment("fastestdet-pedestrians", *FASTESTDET, "pedestrians_vtest.avi", 0.10, 24, 8, 12),
    Experiment("fastestdet-bridge", *FASTESTDET, "traffic_bridge.mp4", 0.10, 24, 8, 12),
    Experiment("deeplab-pedestrians", *DEEPLAB, "pedestrians_vtest.avi", 0.15, 16, 8, 10),
    Experiment("deeplab-bridge", *DEEPLAB, "traffic_bridge.mp4", 0.15, 16, 8, 10),
)
BASELINES = ("hold", "pixel", "number")
ROUNDS = 5
DROPS = ("drop", "mean_drop")
_FIGURES = ("op_density", "event_density", "ms")


def compiled(experiment: Experiment, data: Path, out: Path, codec: str) -> Plan:
    """The plan as `sparsetime compile --calibrate` makes it, kept in a file: what is timed for it is timed once."""
    file = out / f"{experiment.name}-{codec}-compiled.plan"
    if not file.exists():
        weights, video = data / "weights" / experiment.weights, data / "static_videos" / experiment.video
        compile_file(experiment.network, file, weights=weights, calibrate=str(video), codec=codec)
    return Plan.load(file)


def baseline(experiment: Experiment, data: Path, out: Path, kind: str) -> Plan:
    """One threshold for all layers, without regard to what an event costs: a share of each range, or one number."""
    plan = compiled(experiment, data, out, "hold" if kind == "number" else kind)
    factors = fan_out_factors(plan, [plan.ops[number].output for number in codecs(plan)])
    ops, tensors = list(plan.ops), dict(plan.tensors)
    thresholds = {
        k: (tensors[ops[k].codec["tensor"]] / factors[ops[k].output]).astype(np.float32) for k in codecs(plan)
    }
    number_for_all = np.exp(np.mean([np.log(own).mean() for own in thresholds.values()]))
    for k, own in thresholds.items():
        tensors[f"{k}.one"] = np.full_like(own, number_for_all) if kind == "number" else own
        ops[k] = dataclasses.replace(ops[k], codec={**ops[k].codec, "tensor": f"{k}.one"})
    return plan.flat().with_ops(ops, tensors)


def at(curve: list[dict[str, float]], drop: float, key: str, by: str) -> float | None:
    """A figure of a curve at a drop or mean_drop (`by`), by interpolation of its logarithm; None outside of it."""
    curve = sorted(curve, key=lambda point: point[by])
    drops = [point[by] for point in curve]
    if not drops[0] <= drop <= drops[-1]:
        return None
    return math.exp(float(np.interp(drop, drops, [math.log(point[key]) for point in curve])))


def point_of(found: Measured) -> dict[str, float]:
    return {
        "drop": found.drop,
        "mean_drop": found.mean_drop,
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
        counts = experiment.clip_frames, experiment.tune_clips, experiment.check_clips
        self.sources = Sources(plan, self.judge, self.videos, None, *counts, 1)
        found = self.sources.tuning(lambda: None)
        self.tuning, self.proof = apart(lively(self.judge, found, experiment.max_drop)[0], labelled=False)


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
    held = clips.sources.held(lambda: None)
    result: dict[str, Any] = {
        "experiment": experiment.name,
        "codec": codec,
        "machine": machine(),
        "tuned": found.figures,
    }
    for kind in BASELINES:
        one = baseline(experiment, data, out, kind)
        bench = Workbench(one, clips.tuning, clips.judge, 1, flush_of(one), None, progress)
        whole = (0,) * len(codecs(one))
        limit = experiment.max_drop * (1 - MARGIN)
        single = coarsest(bench, whole, limit, FINEST, COARSEST)
        assert single is not None
        single = proven(bench, single, clips.proof, limit)
        by_shift = {by: bench(shifted(single, by)) for by in range(-OCTAVE, OCTAVE + 1)}
        curve = [point_of(found) for found in by_shift.values()]
        on_held = bench.of(apply(one, single), held)
        shift = max((by for by, point in by_shift.items() if point.drop <= own["drop"]), default=-OCTAVE)
        apply(one, shifted(single, shift)).save(out / f"{experiment.name}-{codec}-one-{kind}.plan")
        result[f"one_{kind}"] = {
            **point_of(bench(single)),
            "curve": curve,
            "timed": point_of(by_shift[shift]),
            "check": point_of(on_held)
            | {"missed": sum(drop > experiment.max_drop for drop in on_held.drops), "clips": len(held)},
        }
    return result


def around(curve: list[dict[str, float]], drop: float, by: str) -> list[int]:
    """Numbers of the points of a curve between which a drop lies, or of the nearest one."""
    order = sorted(range(len(curve)), key=lambda k: curve[k][by])
    place = int(np.searchsorted([curve[k][by] for k in order], drop))
    return order[max(place - 1, 0) : place + 1]


class Raced:
    """A plan's stream in a race, and what it did.

    Args:
        plan: flushed as `sparsetime run` does it.
    """

    def __init__(self, plan: Plan) -> None:
        self.stream = plan.stream(flush=flush_of(plan))
        self._layout = Layout(plan)
        self._times: list[int] = []
        self._stats: list[Any] = []
        self._flushed: list[bool] = []

    def add(self, time_ns: int) -> None:
        """The last frame."""
        self._times.append(time_ns)
        self._stats.append(self.stream.stats)
        self._flushed.append(self.stream.flushed)

    def summary(self) -> dict[str, float]:
        """Means over the frames."""
        counted = Counted.of(self._stats, self._flushed)
        return {
            "ms": statistics.fmean(self._times) / 1e6,
            "op_density": self._layout.op_density(counted),
            "event_density": self._layout.event_density(counted),
        }


def race(stem: Path, result: dict[str, Any], clips: list[Clip]) -> dict[str, Any]:
    """CPU time and operations of a frame: the plans that `run` left, and the dense network."""
    own = result["tuned"]["tuning"]
    curves = {kind: result[f"one_{kind}"]["curve"] for kind in BASELINES}
    plans: dict[Any, Plan] = {"tuned": Plan.load(f"{stem}.plan")}
    for kind in BASELINES:
        curve, saved = curves[kind], Plan.load(f"{stem}-one-{kind}.plan")
        at_saved = curve.index(result[f"one_{kind}"]["timed"])
        for k in {k for by in DROPS for k in around(curve, own[by], by)}:
            plans[kind, k] = apply(saved, (k - at_saved,) * len(codecs(saved)))
    dense = dense_network(plans["tuned"], clips[0].frames[0], 1)
    dense_ms: list[float] = []
    rounds: list[dict[Any, dict[str, float]]] = []
    for _ in range(ROUNDS):  # new streams, whose memory lies elsewhere
        runners = {name: Raced(plan) for name, plan in plans.items()}
        gc.collect()
        gc.disable()  # or a collection of all that PyTorch has made falls on some stream's frame
        dense_ms.append(_round(clips, runners, dense))
        gc.enable()
        rounds.append({name: runner.summary() for name, runner in runners.items()})
    print({name: [round(one[name]["ms"], 2) for one in rounds] for name in plans})
    found = {name: {key: statistics.median(one[name][key] for one in rounds) for key in _FIGURES} for name in plans}
    raced: dict[str, Any] = {
        "dense_runtime": dense.name,
        "dense_ms": statistics.median(dense_ms),
        "tuned": found["tuned"],
    }
    for kind in BASELINES:
        curve = curves[kind]
        raced[f"one_{kind}"] = {}
        for by in DROPS:
            points = [curve[k] | found[kind, k] for k in around(curve, own[by], by)]
            raced[f"one_{kind}"][by] = {key: at(points, own[by], key, by) or points[0][key] for key in _FIGURES}
    return raced


def _round(clips: list[Clip], runners: dict[Any, Raced], dense: Dense) -> float:
    """All streams and the dense network over the clips; ms of the dense network."""
    names = [*runners, None]
    draw = np.random.default_rng(0)
    times: list[int] = []
    for clip in clips:
        for runner in runners.values():
            runner.stream.reset()
        for number, frame in enumerate(clip.frames):
            for place in draw.permutation(len(names)):  # whose caches were left by whom is chance
                raced = None if names[place] is None else runners[names[place]]
                # Of this thread: what another runtime's threads still do is not the stream's.
                start = time.thread_time_ns()
                (dense.run if raced is None else raced.stream)(frame)
                taken = time.thread_time_ns() - start
                if number and raced is None:
                    times.append(taken)
                elif number and raced is not None:
                    raced.add(taken)
    return statistics.fmean(times) / 1e6


def table(out: Path) -> None:
    """Ratios of the tuned plans to one threshold at the same drop, a line an experiment, medians of all below."""
    ratios: dict[tuple[str, str, str], list[float]] = {}
    for file in sorted(out.glob("*.json")):
        if file.name.endswith(".tune.json"):
            continue
        result = json.loads(file.read_text(encoding="utf-8"))
        tuned, raced = result["tuned"], result.get("raced")
        own, check = tuned["tuning"], tuned["check"]
        print(
            f"{result['experiment']} {result['codec']}: worst drop {own['drop']:.3f}, mean {own['mean_drop']:.3f}; "
            f"held back: {len(check['missed'])} of {check['clips_counted']} over {tuned['max_drop']:.0%}, worst "
            f"{check['drop']:.3f}, mean {check['mean_drop']:.3f}"
        )
        for kind in BASELINES:
            one = result[f"one_{kind}"]["check"]
            print(f"  one {kind} at the budget, held back: {one['missed']} of {one['clips']}, worst {one['drop']:.3f}")
        if raced is None:
            continue
        print("  tuned", _row(raced["tuned"]), f"; {raced['dense_runtime']} {raced['dense_ms']:.2f} ms")
        for kind in BASELINES:
            for by in DROPS:
                one = raced[f"one_{kind}"][by]
                row = {key: raced["tuned"][key] / one[key] for key in _FIGURES}
                print(f"  one {kind} at the same {by}", _row(one), "; tuned / it", _row(row))
                for key, value in row.items():
                    ratios.setdefault((kind, by, key), []).append(value)
    for (kind, by, key), values in ratios.items():
        print(f"median of {len(values)}: tuned / one {kind} at the same {by}, {key}: {statistics.median(values):.2f}")


def _row(figures: dict[str, float]) -> str:
    return ", ".join(f"{key} {figures[key]:.3f}" for key in _FIGURES)


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
            result["raced"] = race(options.out / f"{experiment.name}-{options.codec}", result, clips)
            print(experiment.name, result["raced"])
        file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
