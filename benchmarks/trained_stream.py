"""A trained network as a stream: label accuracy and time on a split, beside dense, frozen and frame skipping.

    python benchmarks/trained_stream.py runs/real/uti-mbv2-hold-0 --data ../shared/data/ut_interaction

The run is compiled to a plan and every video of the split goes through one stream, which is flushed at its first frame
and then as `--flush` says. The dense network is the same one without codecs, in the fastest runtime that is installed;
stream and dense take turns frame by frame. The class of a video is the arg-max of the mean of the probabilities over
its frames.
Controls: `frozen` keeps the first dense answer, `skipping` computes densely every k-th frame, k such that it takes as
long as the stream.
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

from sparsetime.bench.density import op_density
from sparsetime.bench.machine import machine
from sparsetime.engine import OpStats, Plan
from sparsetime.run.dense import dense_network
from sparsetime.run.planning import compile_file
from sparsetime.run.session import FLUSH
from sparsetime.train.data import open_clips
from sparsetime.train.run import read_config
from sparsetime.video import read_frames


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return e / e.sum()


def right(answers: list[np.ndarray], labels: list[int]) -> float:
    """Share of videos whose mean answer, (frames, K) each, is largest at the label."""
    return float(np.mean([a.mean(0).argmax() == label for a, label in zip(answers, labels, strict=True)]))


def skipped(dense: list[np.ndarray], share: float) -> list[np.ndarray]:
    """The dense answers as frame skipping gives them that computes a share of the frames: the last one is held."""
    return [a[(np.floor(np.floor(np.arange(len(a)) * share) / share + 1e-9)).astype(int)] for a in dense]


def measure(run: Path, data: Path, split: str, threads: int, frames: int | None, flush: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.plan"
        compile_file(str(run), file)
        plan = Plan.load(file)
    classes = read_config(run)["classes"]
    size = plan.input_shape[2:]
    stream = plan.stream(threads=threads, flush=flush)
    dense = None
    labels: list[int] = []
    ours: list[np.ndarray] = []
    theirs: list[np.ndarray] = []
    times: list[tuple[int, int]] = []
    statistics_of_frames: list[dict[str, OpStats]] = []
    for clip in open_clips(str(data)).split(split).clips:
        shots = read_frames(clip.path, size=size)[:frames]
        dense = dense or dense_network(plan, shots[0], threads)
        stream.reset()
        answers: list[tuple[np.ndarray, np.ndarray]] = []
        for t, shot in enumerate(shots):
            begin = time.perf_counter_ns()
            y = stream(shot)
            middle = time.perf_counter_ns()
            z = dense.run(shot)[0]
            end = time.perf_counter_ns()
            answers.append((softmax(np.ravel(y)), softmax(np.ravel(z))))
            if t:
                times.append((middle - begin, end - middle))
                statistics_of_frames.append(dict(stream.stats))
        labels.append(classes.index(clip.label))
        ours.append(np.stack([a for a, _ in answers]))
        theirs.append(np.stack([a for _, a in answers]))
    spent, spent_dense = (sum(pair[k] for pair in times) for k in (0, 1))
    ratios = statistics.quantiles([b / a for a, b in times], n=4)
    assert dense is not None
    return {
        "run": run.name,
        "clips": len(labels),
        "frames": len(times),
        "threads": threads,
        "flush": flush,
        "accuracy": right(ours, labels),
        "accuracy_dense": right(theirs, labels),
        "accuracy_frozen": right([a[:1] for a in theirs], labels),
        "accuracy_skipping": right(skipped(theirs, spent / spent_dense), labels) if spent < spent_dense else None,
        "op_density": op_density(plan, statistics_of_frames),
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
    parser.add_argument("--frames", type=int, help="of each video, at most")
    parser.add_argument("--flush", type=float, default=FLUSH, help="see `Stream`; 0: never")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = [measure(run, args.data, args.split, n, args.frames, args.flush) for n in args.threads for run in args.runs]
    print("| run | threads | accuracy | dense | frozen | skipping | operations | ms | dense ms | speed-up |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for r in rows:
        figures = [r[k] for k in ("accuracy", "accuracy_dense", "accuracy_frozen", "accuracy_skipping", "op_density")]
        cells = [r["run"], str(r["threads"]), *("-" if x is None else f"{x:.3f}" for x in figures)]
        print(
            f"| {' | '.join(cells)} | {r['ms']:.2f} | {r['ms_dense']:.2f} ({r['dense_runtime']}) | {r['speedup']:.2f} |"
        )
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
