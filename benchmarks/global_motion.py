"""Moving cameras: would it pay to move a stream's state with the image?

    python benchmarks/global_motion.py --data ../shared/data --json global_motion.json --markdown global_motion.md

Between two frames the shift of the whole picture is estimated by phase correlation (Kuglin and Hines 1975) on grey
pictures at the network's input size. It counts as *clean* where it is not zero and moving the last frame by it leaves
at most 0.8 of the pixels changed (by more than 4 of 255) that there were. A value of the network can follow a shift
that its stride divides: one of 32 pixels for all of MobileNetV2, one of 2 for what its first convolution gives.

Two streams run side by side, one of them with its state moved at every clean shift of even numbers: values that can
follow are moved (their border repeated), sums are made consistent with them. What that costs is counted: the strip that
came into view in every operation that moved, and the whole of every operation that could not follow but reads one that
did, since its sums are those of an input at another place.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hard_conditions import MOVING
from real_streams import NETWORKS, compiled, frames, size_of
from sparsetime.engine import Plan, Snapshot
from sparsetime.engine.ops import LINEAR
from sparsetime.engine.reference import Reference

Array = NDArray[Any]
_CHANGED = 4  # of 255
_CLEAN = 0.8
_STRIDES = (1, 2, 4, 8, 16, 32)


def estimated(last: Array, now: Array) -> tuple[int, int]:
    """The shift (dy, dx) in whole pixels by which `now` is `last` moved; pictures (H, W) float."""
    window = np.hanning(last.shape[0])[:, None] * np.hanning(last.shape[1])
    a, b = (np.fft.rfft2((x - x.mean()) * window) for x in (last, now))
    cross = b * a.conj()
    peak = np.fft.irfft2(cross / np.maximum(np.abs(cross), 1e-9), s=last.shape)
    dy, dx = np.unravel_index(peak.argmax(), peak.shape)
    return tuple(int(d - n if d > n // 2 else d) for d, n in zip((dy, dx), last.shape, strict=True))  # type: ignore[return-value]


def moved(x: Array, dy: int, dx: int) -> Array:
    """(..., H, W) moved down and to the right; what comes into view repeats the border."""
    rows = np.clip(np.arange(x.shape[-2]) - dy, 0, x.shape[-2] - 1)
    columns = np.clip(np.arange(x.shape[-1]) - dx, 0, x.shape[-1] - 1)
    return x[..., rows, :][..., columns]


def changed(a: Array, b: Array) -> float:
    """Share of pixels that differ, the outermost left out, which a shift uncovers."""
    return float((np.abs(a - b) > _CHANGED)[8:-8, 8:-8].mean())


def strides(plan: Plan) -> list[int]:
    """Pixels of the input to one of each value, by the sizes of the maps; 0 for vectors."""
    height = plan.input_shape[2]
    return [round(height / shape[2]) if len(shape) == 4 and min(shape[2:]) > 1 else 0 for shape in plan.values]


class Mover:
    """Moves the state of a stream.

    Args:
        plan: of the stream.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self._strides = plan, strides(plan)
        self._reference = Reference(plan)

    def __call__(self, state: Mapping[str, Array], count: int, dy: int, dx: int) -> tuple[Snapshot, float]:
        """The state moved, and the multiply-accumulates that it takes to make it consistent."""
        plan = self.plan
        follows = [s > 0 and dy % s == 0 and dx % s == 0 for s in self._strides]
        height, width = plan.input_shape[2:]
        strip = 1 - (1 - abs(dy) / height) * (1 - abs(dx) / width)
        arrays, values, cost = {}, {}, 0.0
        for number, op in enumerate(plan.ops):
            v = state[f"{number}.value"]
            if follows[op.output]:
                s = self._strides[op.output]
                v = moved(v, dy // s, dx // s)
            elif op.kind in LINEAR and not op.has_accumulator:
                v = self._sums(op, values)
            values[op.output] = torch.from_numpy(np.array(v))
            arrays[f"{number}.value"] = v
            if op.has_accumulator:
                arrays[f"{number}.accumulator"] = self._sums(op, values)
            macs = plan.op_macs(op)
            if macs and follows[op.inputs[0]]:
                cost += macs * (strip if follows[op.output] else 1.0)
        return Snapshot(arrays, count), cost

    def _sums(self, op: Any, values: dict[int, torch.Tensor]) -> Array:
        sums: Array = self._reference.linear(op, [values[v] for v in op.inputs], constants=True).numpy()
        return sums


def measure(name: str, data: Path, video: Any, count: int) -> dict[str, Any]:
    pictures = list(frames(video, data, size_of(name), count))
    plan = compiled(name, data, pictures, codec="hold")
    plain, follower, mover = plan.stream(), plan.stream(), Mover(plan)
    grey = [picture.astype(np.float32).mean(axis=2) for picture in pictures]
    shifts, clean, operations, operations_moved, gains = [], [], [], [], []
    for number, picture in enumerate(pictures):
        cost = 0.0
        use = False
        if number:
            dy, dx = estimated(grey[number - 1], grey[number])
            before = changed(grey[number - 1], grey[number])
            after = changed(moved(grey[number - 1], dy, dx), grey[number])
            shifts.append((dy, dx))
            clean.append((dy, dx) != (0, 0) and after <= _CLEAN * before)
            use = clean[-1] and dy % 2 == dx % 2 == 0
        if use:
            state, cost = mover(follower.snapshot(), follower.frames, dy, dx)
            follower.restore(state)
        plain(picture)
        follower(picture)
        if number:
            operations.append(plain.op_density)
            operations_moved.append(follower.op_density + cost / plan.dense_macs)
            if use:
                gains.append((operations[-1], operations_moved[-1]))
    common = [math.gcd(dy, dx) for (dy, dx), good in zip(shifts, clean, strict=True) if good]
    return {
        "network": name,
        "video": video.name,
        "frames": len(shifts),
        "not_zero": float(np.mean([s != (0, 0) for s in shifts])),
        "clean": {str(s): sum(c % s == 0 for c in common) / len(shifts) for s in _STRIDES},
        "moved": len(gains) / len(shifts),
        "operations": float(np.mean(operations)),
        "operations_moved": float(np.mean(operations_moved)),
        "where_moved": [float(x) for x in np.mean(gains, axis=0)] if gains else None,
    }


def markdown(results: list[dict[str, Any]]) -> str:
    lines = [
        "| network | video | frames with a shift | clean | even | by 4 | by 32 | operations | state moved | there |"
    ]
    lines.append("| --- " * 10 + "|")
    for r in results:
        there = "-" if r["where_moved"] is None else "{:.2f} to {:.2f}".format(*r["where_moved"])
        shares = " | ".join(f"{r['clean'][s]:.2f}" for s in ("1", "2", "4", "32"))
        lines.append(
            f"| {r['network']} | {r['video']} | {r['not_zero']:.2f} | {shares} | {r['operations']:.3f} "
            f"| {r['operations_moved']:.3f} | {there} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=["mobilenet_v2", "fastestdet"])
    parser.add_argument("--videos", nargs="+", choices=[v.name for v in MOVING])
    parser.add_argument("--frames", type=int, default=100, help="of each video, at most")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    for name in args.networks:
        for video in MOVING:
            if not args.videos or video.name in args.videos:
                results.append(measure(name, args.data, video, args.frames))
                print(json.dumps(results[-1]), flush=True)
                if args.json:
                    args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if args.markdown:
        args.markdown.write_text(markdown(results), encoding="utf-8")


if __name__ == "__main__":
    main()
