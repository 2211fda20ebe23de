"""Accuracy against operations on real video: dense, spatial L1, and delta with two codecs, several seeds.

    python benchmarks/real_video.py run --data ../shared/data --out runs/real      # hours; goes on where it stopped
    python benchmarks/real_video.py table --out runs/real --json real_video.json
    python benchmarks/real_video.py run --data ../shared/data --out runs/cross --folds 7 --only uti-025 --seeds 0
    python benchmarks/real_video.py table --out runs/cross

With `--folds` train and test are put together and divided anew, whole groups at a time: every clip is tested once, by a
network that has seen no clip of its group. `--within train` divides the training split alone; settings are chosen so.

Every run is the command line program's own `train` and `evaluate`. A dense network is refined from ImageNet weights;
spatial L1 and delta refine that network further. docs/experiments.md says how the settings were chosen.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

#: Rounding alone leaves much in motion: the whole network has to move, which takes larger steps than the default's.
EXACT = """
codec = "exact"
penalty = 60
distill = 0.2
step_lr = 1e-2
[[phases]]
name = "strong"
share = 0.7
lr = 2.5
[[phases]]
name = "weak"
share = 0.3
penalty = 0.25
clip_length = 0.5
batch_size = 2.0
lr = 2.5
"""
#: Variants: the method of the command line, and what else is in the recipe.
METHODS = {
    "dense": ("dense", ""),
    "spatial_l1": ("spatial_l1", ""),
    "exact": ("delta", EXACT),
    "set": ("delta", 'codec = "hold"\nlevels = 48\nepochs = 0\n'),  # thresholds alone, no training
    "hold": ("delta", 'codec = "hold"\nlevels = 32\n'),
    "pixel": ("delta", 'codec = "pixel"\n'),
    "hold64": ("delta", 'codec = "hold"\nlevels = 64\n'),  # thresholds half as large
}


@dataclass(frozen=True)
class Experiment:
    """One network on one data set: epochs of the dense run and of the refinements, and how much of each video an
    epoch sees.
    """

    name: str
    data: str
    network: str
    weights: str
    dense_epochs: int
    refine_epochs: int
    frames_per_video: int = 16


EXPERIMENTS = (
    Experiment("uti-025", "ut_interaction", "mobilenet_v1_025", "mobilenet_v1_0.25_128_quant.npz", 24, 20),
    Experiment("uti-mbv2", "ut_interaction", "mobilenet_v2", "mobilenet_v2_1.0_224_quant.npz", 10, 10, 8),
    Experiment("jhmdb-025", "jhmdb", "mobilenet_v1_025", "mobilenet_v1_0.25_128_quant.npz", 16, 16),
    Experiment("uti-050", "ut_interaction", "mobilenet_v1_050", "mobilenet_v1_0.5_160_quant.npz", 16, 16, 8),
    Experiment("jhmdb-050", "jhmdb", "mobilenet_v1_050", "mobilenet_v1_0.5_160_quant.npz", 8, 5, 8),
)


FIGURES = (
    "accuracy",
    "accuracy_frozen",
    "op_density",
    "op_density_with_first_frame",
    "activation_density",
    "delta_density",
)


def divide(rows: list[dict[str, str]], parts: int, seed: int = 0) -> list[list[dict[str, str]]]:
    """Divide clips into parts, whole groups at a time, each with about as many clips of every class.

    The largest groups go first, each to the part that has fewest clips of its classes, then fewest clips; what is
    equal otherwise is in random order.
    """
    groups: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    if len(groups) < parts:
        raise SystemExit(f"--folds: {len(groups)} groups cannot be divided into {parts} parts")
    names = sorted(groups)
    order = np.random.default_rng(seed).permutation(len(names)).tolist()
    folds: list[list[dict[str, str]]] = [[] for _ in range(parts)]
    for name in sorted((names[i] for i in order), key=lambda name: -len(groups[name])):
        labels = {row["label"] for row in groups[name]}
        min(folds, key=lambda fold: (sum(row["label"] in labels for row in fold), len(fold))).extend(groups[name])
    return folds


def write_fold(source: Path, target: Path, fold: int, parts: int, within: str | None) -> None:
    """Write a `clips.csv` in which one part is ``test`` and the others ``train``; the videos stay where they are."""
    with (source / "clips.csv").open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if within in (None, row["split"])]
    target.mkdir(parents=True, exist_ok=True)
    with (target / "clips.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["file", "label", "group", "split"], extrasaction="ignore")
        writer.writeheader()
        for number, part in enumerate(divide(rows, parts)):
            for row in part:
                changed = {
                    "file": str((source / row["file"]).resolve()),
                    "split": "test" if number == fold else "train",
                }
                writer.writerow(row | changed)


def directory(out: Path, experiment: Experiment, method: str, seed: int) -> Path:
    return out / f"{experiment.name}-{method}-{seed}"


def commands(args: argparse.Namespace, experiment: Experiment, method: str, seed: int) -> Iterator[list[str]]:
    """The two commands of one run."""
    data = args.data / experiment.data
    if args.fold is not None:
        data = args.out / experiment.data
        write_fold(args.data / experiment.data, data, args.fold, args.folds, args.within)
    run = directory(args.out, experiment, method, seed)
    recipe = args.out / f"{experiment.name}-{method}.toml"
    name, settings = METHODS[method]
    recipe.write_text(f"frames_per_video = {experiment.frames_per_video}\n{settings}", encoding="utf-8")
    train = [args.program, "train", "--data", str(data), "--model", experiment.network, "--method", name]
    train += ["--out", str(run), "--seed", str(seed), "--threads", "1", "--recipe", str(recipe)]
    if method == "dense":
        weights = args.data / "weights" / "imagenet" / experiment.weights
        train += ["--weights", str(weights), "--epochs", str(experiment.dense_epochs)]
    else:
        dense = directory(args.out, experiment, "dense", seed)
        train += ["--weights", str(dense)]
        if "epochs" not in settings:
            train += ["--epochs", str(experiment.refine_epochs)]
    yield train
    yield [args.program, "evaluate", str(run), "--data", str(data), "--split", "test", "--threads", "1"]


def chain(args: argparse.Namespace, experiment: Experiment, seed: int) -> None:
    """All methods of one seed, one after the other; what is there already is left."""
    args.out.mkdir(parents=True, exist_ok=True)
    for method in args.methods:
        run = directory(args.out, experiment, method, seed)
        if (run / "evaluation-test.json").exists():
            continue
        train, evaluate = commands(args, experiment, method, seed)
        for command in [evaluate] if (run / "model.safetensors").exists() else [train, evaluate]:
            print(" ".join(command), flush=True)
            with (args.out / f"{run.name}.log").open("a", encoding="utf-8") as log:
                environment = os.environ | {"OMP_NUM_THREADS": "1"}
                subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=True)


def run(args: argparse.Namespace) -> None:
    wanted = [e for e in EXPERIMENTS if not args.only or e.name in args.only]
    places = [(None, args.out)] if not args.folds else [(k, args.out / f"fold{k}") for k in range(args.folds)]
    jobs = [
        (argparse.Namespace(**vars(args) | {"fold": fold, "out": out}), experiment, seed)
        for seed in args.seeds
        for experiment in wanted
        for fold, out in places
    ]
    with ThreadPoolExecutor(args.jobs) as pool:
        for future in [pool.submit(chain, *job) for job in jobs]:
            future.result()


def by_group(result: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """Group, file and whether the network was right, of every clip of an evaluation."""
    with Path(result["data"], "clips.csv").open(newline="", encoding="utf-8") as stream:
        groups = {row["file"]: row["group"] for row in csv.DictReader(stream)}
    return [(groups[p["file"]], p["file"], p["correct"]) for p in result["predictions"]]


def interval(shares: dict[tuple[str, str], float], draws: int = 10_000) -> tuple[float, float]:
    """The 95 % interval of the mean over clips, by drawing groups anew, since the clips of a group are alike.

    Args:
        shares: a figure of every clip, by (group, file).
    """
    groups = sorted({group for group, _ in shares})
    sums = np.array([sum(x for (group, _), x in shares.items() if group == name) for name in groups])
    counts = np.array([sum(group == name for group, _ in shares) for name in groups])
    chosen = np.random.default_rng(0).integers(len(groups), size=(draws, len(groups)))
    low, high = np.quantile(sums[chosen].sum(1) / counts[chosen].sum(1), [0.025, 0.975])
    return float(low), float(high)


def shares_right(results: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """Of every clip, by (group, file): the share of seeds that had it right."""
    right: dict[tuple[str, str], list[bool]] = {}
    for result in results:
        for group, file, correct in result["right"]:
            right.setdefault((group, file), []).append(correct)
    return {clip: statistics.fmean(found) for clip, found in right.items()}


def pooled(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Folds of one seed as one result: every figure by the clips of its fold."""
    weights = [result["clips"] for result in results]
    whole: dict[str, Any] = {"clips": sum(weights), "right": [clip for r in results for clip in by_group(r)]}
    for key in FIGURES:
        whole[key] = sum(r[key] * w for r, w in zip(results, weights, strict=True)) / sum(weights)
    return whole


def read_results(out: Path, name: str) -> dict[int, dict[str, Any]]:
    """What was measured of an experiment and method, by seed; seeds of which a fold is missing are left out."""
    folds = sorted(out.glob("fold*")) or [out]
    found: dict[int, list[dict[str, Any]]] = {}
    for fold in folds:
        for file in sorted(fold.glob(f"{name}-*/evaluation-test.json")):
            seed = int(file.parent.name.rsplit("-", 1)[1])
            found.setdefault(seed, []).append(json.loads(file.read_text(encoding="utf-8")))
    return {seed: pooled(results) for seed, results in sorted(found.items()) if len(results) == len(folds)}


def summarise(out: Path) -> list[dict[str, Any]]:
    """Mean and range over seeds of every experiment and method, and intervals that take the clips as a sample."""
    rows = []
    for experiment in EXPERIMENTS:
        dense = read_results(out, f"{experiment.name}-dense")
        for method in METHODS:
            found = read_results(out, f"{experiment.name}-{method}")
            results = list(found.values())
            if not results:
                continue
            row: dict[str, Any] = {"experiment": experiment.name, "method": method, "seeds": len(results)}
            for key in FIGURES:
                values = [result[key] for result in results]
                row[key] = {"mean": statistics.fmean(values), "min": min(values), "max": max(values)}
            row["clips"] = results[0]["clips"]
            shares = shares_right(results)
            row["accuracy_interval_95"] = interval(shares)
            base = shares_right([dense[seed] for seed in found if seed in dense])
            if base.keys() == shares.keys():
                difference = {clip: share - base[clip] for clip, share in shares.items()}
                row["against_dense"] = statistics.fmean(difference.values())
                row["against_dense_interval_95"] = interval(difference)
            rows.append(row)
    return rows


SHOWN = ("accuracy", "accuracy_frozen", "op_density")


def table(args: argparse.Namespace) -> None:
    rows = summarise(args.out)
    dense = {row["experiment"]: row for row in rows if row["method"] == "dense"}
    titles = ("experiment", "method", "seeds", "accuracy", "frozen", "operations", "first frame in", "of dense")
    titles += ("95 % interval", "minus dense (95 %)")
    print(f"| {' | '.join(titles)} |")
    print(f"| {' | '.join('---' for _ in titles)} |")
    for row in rows:
        cells = [f"{row[k]['mean']:.3f} ({row[k]['min']:.3f}-{row[k]['max']:.3f})" for k in SHOWN]
        first = f"{row['op_density_with_first_frame']['mean']:.3f}"
        base = dense.get(row["experiment"])
        ratio = f"{row['op_density']['mean'] / base['op_density']['mean']:.2f}" if base else ""
        cells += [first, ratio, "{:.2f}-{:.2f}".format(*row["accuracy_interval_95"])]
        if "against_dense" in row:
            low, high = row["against_dense_interval_95"]
            cells.append(f"{row['against_dense']:+.3f} ({low:+.3f} to {high:+.3f})")
        print(f"| {row['experiment']} | {row['method']} | {row['seeds']} | {' | '.join(cells)} |")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    runner = actions.add_parser("run", help="train and evaluate what is not there yet")
    runner.add_argument("--data", type=Path, required=True)
    runner.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    runner.add_argument("--only", nargs="*", choices=[e.name for e in EXPERIMENTS])
    runner.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    runner.add_argument("--folds", type=int, default=0, help="cross-validate over groups, in so many parts")
    runner.add_argument("--within", metavar="SPLIT", help="with --folds: divide this split alone")
    runner.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    runner.add_argument("--program", default=str(Path(sys.executable).with_name("sparsetime")))
    runner.set_defaults(function=run)
    printer = actions.add_parser("table", help="mean and range over seeds")
    printer.add_argument("--json", type=Path)
    printer.set_defaults(function=table)
    for action in (runner, printer):
        action.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.function(args)


if __name__ == "__main__":
    main()
