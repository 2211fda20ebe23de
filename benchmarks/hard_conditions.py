"""Does a stream ever cost more than the dense network: moving cameras, scene cuts, exposure jumps, shakes?

    python benchmarks/hard_conditions.py moving --data ../shared/data --out runs/hard
    python benchmarks/hard_conditions.py cuts --data ../shared/data --out runs/hard
    python benchmarks/hard_conditions.py table --out runs/hard --markdown hard.md

Plain pretrained networks with the default codec and thresholds, calibrated on the video, flushed as `run` does. Stream
and the fastest dense runtime take turns clip by clip; the whole is repeated, and the median over the repeats is a
frame's time, so that the worst frame is the stream's and not the machine's. Ratios are dense / stream: 1 is as fast as
dense.

    moving      every video of a moving camera: median and worst frame
    cuts        one sequence: quiet spells between cuts from one video to another, exposures of 1.3 and back, and a
                camera that shakes; the worst frame of each kind
"""

from __future__ import annotations

import argparse
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from real_streams import CODECS, NETWORKS, Video, compiled, fastest, frames, read, size_of, times, turns
from sparsetime.bench.machine import machine
from sparsetime.files import write_json

Array = NDArray[Any]

MOVING = (
    Video("moving_videos/dashcam_highway.mp4"),
    Video("moving_videos/arm_wrestling_k400.mp4"),
    Video("moving_videos/flipping_pancake_k400.mkv"),
    Video("moving_videos/carving_ice_k600.mp4"),
    *(
        Video(f"moving_videos/ego_gesture/ego_{name}_dev.mp4")
        for name in ("circlecc", "del", "down", "left", "right", "square", "star", "tick", "unclassified", "up")
    ),
)
FIRST, SECOND = Video("static_videos/traffic_bridge.mp4"), Video("static_videos/pedestrians_vtest.avi")
_SPELL = 6  # frames between two scenes


def scenes(data: Path, size: tuple[int, int]) -> list[tuple[str, Array]]:
    """Kind and frame, in order; the first of a spell is named by what happened before it, the others are `quiet`."""
    one, other = (list(frames(video, data, size, 5 * _SPELL)) for video in (FIRST, SECOND))
    taken = {"one": iter(one), "other": iter(other)}

    def spell(kind: str, which: str, gain: float = 1.0) -> list[tuple[str, Array]]:
        pictures = [brighter(picture, gain) for picture in islice(taken[which], _SPELL)]
        return [(kind if number == 0 else "quiet", picture) for number, picture in enumerate(pictures)]

    rng = np.random.default_rng(0)
    shaking = [
        ("shake", np.roll(picture, tuple(rng.integers(-6, 7, 2)), (0, 1))) for picture in islice(one, 4 * _SPELL, None)
    ]
    return [
        *spell("first", "one"),
        *spell("cut", "other"),
        *spell("exposure", "other", 1.3),
        *spell("exposure", "other"),
        *spell("cut", "one"),
        *spell("exposure", "one", 1.3),
        *spell("cut", "other"),
        *spell("cut", "one"),
        *shaking,
    ]


def brighter(picture: Array, gain: float) -> Array:
    """An exposure `gain` times as long."""
    return np.asarray(np.minimum(picture * np.float32(gain), 255), np.uint8)


def moving(args: argparse.Namespace) -> None:
    for name in args.networks:
        for video in MOVING:
            file = args.out / "moving" / name / f"{video.name}.json"
            if (args.videos and video.name not in args.videos) or (file.exists() and not args.again):
                continue
            pictures = list(frames(video, args.data, size_of(name), args.frames))
            plan = compiled(name, args.data, pictures, codec=args.codec)
            result = times(plan, pictures, args.clock, args.repeats, args.flush)
            write_json(file, {"network": name, "video": video.name, "machine": machine()} | result)
            print(name, video.name, f"{result['speedup_median']:.2f} worst {result['speedup_worst']:.2f}", flush=True)


def cuts(args: argparse.Namespace) -> None:
    for name in args.networks:
        file = args.out / "cuts" / f"{name}.json"
        if file.exists() and not args.again:
            continue
        sequence = scenes(args.data, size_of(name))
        pictures = [picture for _, picture in sequence]
        plan = compiled(name, args.data, pictures, codec=args.codec)
        taken, operations = turns(plan, pictures, args.clock, args.repeats, args.flush)
        dense = float(np.median(taken[:, 1]))
        kinds: dict[str, dict[str, Any]] = {}
        for kind in dict.fromkeys(kind for kind, _ in sequence):
            chosen = [number for number, (k, _) in enumerate(sequence) if k == kind]
            kinds[kind] = {
                "frames": len(chosen),
                "speedup_median": dense / float(np.median(taken[chosen, 0])),
                "speedup_worst": dense / float(taken[chosen, 0].max()),
                "operations": float(np.mean([operations[number] for number in chosen])),
            }
        result = {"dense_runtime": fastest(plan, pictures[0]).name, "dense_ms": dense, "kinds": kinds}
        write_json(file, {"network": name, "machine": machine()} | result)
        print(name, {kind: round(k["speedup_worst"], 2) for kind, k in kinds.items()}, flush=True)


def table(args: argparse.Namespace) -> None:
    lines = ["| network | video | operations | fastest dense, ms | stream, ms | speed-up, median | worst frame |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for name in args.networks:
        for video in MOVING:
            found = read(args.out / "moving" / name / f"{video.name}.json")
            if found:
                lines.append(
                    f"| {name} | {video.name} | {found['operations']:.2f} | {found['dense_ms']:.2f} "
                    f"| {found['stream_ms']:.2f} | {found['speedup_median']:.2f} | {found['speedup_worst']:.2f} |"
                )
    kinds = ("first", "cut", "exposure", "shake", "quiet")
    lines += ["", f"| network | fastest dense, ms | {' | '.join(kinds)} |", "| --- " * (2 + len(kinds)) + "|"]
    for name in args.networks:
        found = read(args.out / "cuts" / f"{name}.json")
        if found:
            cells = [f"{found['kinds'][kind]['speedup_worst']:.2f}" for kind in kinds]
            lines.append(f"| {name} | {found['dense_ms']:.2f} ({found['dense_runtime']}) | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    if args.markdown:
        args.markdown.write_text(text, encoding="utf-8")
    print(text, end="")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    for action, function in (("moving", moving), ("cuts", cuts)):
        p = actions.add_parser(action)
        p.add_argument("--data", type=Path, required=True)
        p.add_argument("--codec", choices=CODECS, default="pixel")
        p.add_argument("--repeats", type=int, default=3)
        p.add_argument("--flush", type=float, default=1.0, help="see `Stream`; 0: never flushed")
        p.add_argument("--wall", action="store_true", help="take wall time instead of CPU time: on an idle machine")
        p.add_argument("--again", action="store_true", help="take all times anew")
        p.set_defaults(function=function)
    actions.choices["moving"].add_argument("--frames", type=int, default=30, help="of each video, at most")
    actions.choices["moving"].add_argument("--videos", nargs="+", choices=[v.name for v in MOVING])
    p = actions.add_parser("table")
    p.add_argument("--markdown", type=Path)
    p.set_defaults(function=table)
    for p in actions.choices.values():
        p.add_argument("--out", type=Path, required=True, help="folder of the results")
        p.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    args = parser.parse_args()
    args.clock = time.perf_counter_ns if getattr(args, "wall", False) else time.process_time_ns
    torch.set_num_threads(1)
    args.function(args)


if __name__ == "__main__":
    main()
