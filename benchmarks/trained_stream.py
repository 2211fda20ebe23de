"""A trained network as a stream: label accuracy and time on a split, beside dense, frozen and frame skipping.

    python benchmarks/trained_stream.py runs/real/uti-mbv2-hold-0 --data ../shared/data/ut_interaction

The run is compiled to a plan and every video of the split goes through one stream, which is flushed at its first frame
and after that as `--flush` says (see `sparsetime.Stream`; 0: never, 1: what `sparsetime run` does). The dense network
is the same one without codecs, in the fastest runtime that is installed, with `--precision int8` the fastest of those
that run it in int8; stream and dense take turns clip by clip. The class of a video is the arg-max of the mean of the
probabilities over its frames. Controls: `frozen` keeps the first dense answer, `skipping` computes densely every k-th
frame, k such that it takes as long as the stream.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from sparsetime.bench.machine import machine
from sparsetime.engine import Plan
from sparsetime.engine.frames import FrameReader
from sparsetime.run.dense import Dense, dense_network, without_codecs
from sparsetime.run.module import PlanModule
from sparsetime.run.planning import compile_file
from sparsetime.run.quality import Reader
from sparsetime.run.runtimes import Network, Opponent
from sparsetime.train.data import open_clips
from sparsetime.train.run import read_config
from sparsetime.video import read_frames


def right(answers: list[np.ndarray], labels: list[int]) -> float:
    """Share of videos whose mean answer, (frames, K) each, is largest at the label."""
    return float(np.mean([a.mean(0).argmax() == label for a, label in zip(answers, labels, strict=True)]))


def skipped(dense: list[np.ndarray], share: float) -> list[np.ndarray]:
    """The dense answers as frame skipping gives them that computes a share of the frames: the last one is held."""
    return [a[(np.floor(np.floor(np.arange(len(a)) * share) / share + 1e-9)).astype(int)] for a in dense]


def fastest_int8(plan: Plan, shots: list[np.ndarray], threads: int) -> Dense:
    """The dense runtime that is fastest in int8, calibrated on the shots that it is timed on."""
    plain = without_codecs(plan)
    read = FrameReader(plain)
    opponents = Network(PlanModule(plain), [read(shot).copy() for shot in shots]).opponents(threads, ("int8",))

    def median(opponent: Opponent) -> float:
        x = opponent.prepare(read(shots[0]).copy())
        times = []
        for _ in range(20):
            begin = time.perf_counter()
            opponent.run(x)
            times.append(time.perf_counter() - begin)
        return statistics.median(times)

    best = min(opponents, key=median)
    return Dense(f"{best.name}, int8", lambda shot: best.outputs(best.run(best.prepare(read(shot).copy()))))


def measure(
    run: Path,
    data: Path,
    split: str,
    threads: int,
    flush: float,
    frames: int | None,
    precision: str = "float32",
    codec: str | None = None,
    levels: float | None = None,
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.plan"
        compile_file(str(run), file, precision=precision, codec=codec, levels=levels)
        plan = Plan.load(file)
    classes = read_config(run)["classes"]
    size = plan.input_shape[2:]
    stream, reader = plan.flat().stream(threads=threads, flush=flush), Reader(plan)
    dense = None
    labels: list[int] = []
    ours: list[np.ndarray] = []
    theirs: list[np.ndarray] = []
    times: list[tuple[int, int]] = []
    effective: list[int] = []  # multiply-accumulates that the events of each frame cause
    for clip in open_clips(str(data)).split(split).clips:
        shots = read_frames(clip.path, size=size)[:frames]
        if dense is None:
            int8 = precision == "int8"
            dense = fastest_int8(plan, shots[:8], threads) if int8 else dense_network(plan, shots[0], threads)
        stream.reset()
        spent_here: list[list[int]] = []
        for call, found in ((stream, ours), (dense.run, theirs)):
            answers, taken = [], []
            for t, shot in enumerate(shots):
                begin = time.perf_counter_ns()
                y = call(shot)
                taken.append(time.perf_counter_ns() - begin)
                answers.append(reader(y).meaning)
                if t and call is stream:
                    effective.append(sum(entry.effective_macs for entry in stream.stats.values()))
            found.append(np.stack(answers))
            spent_here.append(taken[1:])
        times += zip(*spent_here, strict=True)
        labels.append(classes.index(clip.label))
    spent, spent_dense = (sum(pair[k] for pair in times) for k in (0, 1))
    ratios = statistics.quantiles([b / a for a, b in times], n=4)
    assert dense is not None
    return {
        "run": run.name,
        "clips": len(labels),
        "frames": len(times),
        "precision": precision,
        "threads": threads,
        "flush": flush,
        "accuracy": right(ours, labels),
        "accuracy_dense": right(theirs, labels),
        "accuracy_frozen": right([a[:1] for a in theirs], labels),
        "accuracy_skipping": right(skipped(theirs, spent / spent_dense), labels) if spent < spent_dense else None,
        "op_density": statistics.fmean(effective) / plan.dense_macs,
        "dense_runtime": dense.name,
        "ms": spent / len(times) / 1e6,
        "ms_dense": spent_dense / len(times) / 1e6,
        "speedup": spent_dense / spent,
        "speedup_quartiles": ratios,
        "worst_frame": min(b / a for a, b in times),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--flush", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--frames", type=int, help="of each video, at most")
    parser.add_argument("--precision", choices=("float32", "int8"), default="float32")
    parser.add_argument("--codec", help="another one than the run's")
    parser.add_argument("--levels", type=float, help="of a run without thresholds of its own, see `sparsetime.compile`")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = [
        measure(run, args.data, args.split, n, flush, args.frames, args.precision, args.codec, args.levels)
        for n in args.threads
        for flush in args.flush
        for run in args.runs
    ]
    print("| run | threads | flush | accuracy | dense | frozen | skipping | operations | ms | dense ms | speed-up |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for r in rows:
        figures = [r[k] for k in ("accuracy", "accuracy_dense", "accuracy_frozen", "accuracy_skipping", "op_density")]
        cells = [r["run"], str(r["threads"]), f"{r['flush']:g}", *("-" if x is None else f"{x:.3f}" for x in figures)]
        print(
            f"| {' | '.join(cells)} | {r['ms']:.2f} | {r['ms_dense']:.2f} ({r['dense_runtime']}) | {r['speedup']:.2f} |"
        )
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
