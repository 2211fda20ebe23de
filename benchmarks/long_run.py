"""Does a stream hold for 100,000 frames: memory, float32 drift, and what a refresh costs?

One clip, played there and back without end so that no scene cut makes everything new, goes through one stream for every
codec and every interval between refreshes. At some frames the state is looked at, from the thousandth on just before a
refresh is due:

    drift     every sum against the same sum computed from scratch in float64 from the values that its inputs have now:
              max |z - z64| / max |z64|, the worst of all operations
    dense     the same of a state that PyTorch has computed from scratch in float32: what drift starts from
    outputs   the stream's outputs against those of the network computed dense on what was sent: max |o - o'| / max |o'|
    codes     share of all elements whose value differs from that dense network's
    outputs_dense, codes_dense
              the same between that dense network in float32 and in float64, both by PyTorch: where a value lies on the
              edge between two codes, rounding decides, and in a network that was not trained to be quantised one code
              changes others

    python benchmarks/long_run.py --data ../shared/data --json long_run.json --svg docs/drift.svg
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import sparsetime
from sparsetime import networks
from sparsetime.engine import Plan, Snapshot, Stream
from sparsetime.engine.frames import FrameReader
from sparsetime.engine.ops import LINEAR
from sparsetime.engine.reference import Reference
from sparsetime.report.svg import Axis, element, linear_axis, log_axis, short, text
from sparsetime.video.reader import read_frames
from training_step import status_kib

Frames = NDArray[np.uint8]


def there_and_back(clip: Frames, number: int) -> Frames:
    """The frame `number` of a clip that is played forwards and backwards in turn."""
    period = 2 * len(clip) - 2
    place = number % period
    frame: Frames = clip[min(place, period - place)]
    return frame


def distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    """max |a - b| / max |b|."""
    return float(np.abs(a - b).max() / max(float(np.abs(b).max()), 1e-30))


class Dense:
    """A plan's sums from scratch, to compare with."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.exact, self.plain = Reference(plan, dtype=torch.float64), Reference(plan)
        self.twin = plan.stream()
        self.read = FrameReader(plan)

    def look(self, state: Snapshot, frame: Frames, outputs: NDArray[Any]) -> dict[str, float]:
        """Drift, dense, outputs, codes and labels, see the top."""
        values = {op.output: state[f"{number}.value"] for number, op in enumerate(self.plan.ops)}
        worst = {"drift": 0.0, "dense": 0.0}
        for number, op in enumerate(self.plan.ops):
            if op.kind not in LINEAR:
                continue
            kept = state[f"{number}.accumulator"] if op.has_accumulator else values[op.output]
            x = [torch.from_numpy(values[v].copy()) for v in op.inputs]
            right = self.exact.linear(op, [v.double() for v in x], constants=True).numpy()
            worst["drift"] = max(worst["drift"], distance(kept, right))
            worst["dense"] = max(worst["dense"], distance(self.plain.linear(op, x, constants=True).numpy(), right))
        # The same values, all sums anew: the network computed dense on what was sent.
        self.twin.restore(state)
        self.twin.refresh()
        expected = self.twin(frame)
        x = self.read(frame)
        for executor in (self.exact, self.plain):
            executor.restore(state)
            executor.refresh()
        right, plain = self.exact.run(x)[0], self.plain.run(x)[0]
        return worst | {
            "outputs": distance(outputs, expected),
            "codes": self.different(state, self.twin.snapshot()),
            "outputs_dense": distance(plain, right),
            "codes_dense": self.different(self.plain.state(), self.exact.state()),
            "same_label": float(outputs.argmax() == expected.argmax()),
        }

    def different(self, a: Mapping[str, NDArray[Any]], b: Mapping[str, NDArray[Any]]) -> float:
        """Share of the elements behind codecs that differ by more than rounding."""
        names = [f"{n}.value" for n, op in enumerate(self.plan.ops) if op.codec is not None]
        apart = sum(int((np.abs(a[n] - b[n]) > 1e-4 * np.abs(b[n]).max()).sum()) for n in names)
        return apart / sum(b[n].size for n in names)


def run(plans: dict[str, Plan], clip: Frames, frames: int, refresh: list[int], backend: str) -> list[dict[str, Any]]:
    """All streams side by side, one entry each."""
    streams: dict[tuple[str, int], Stream] = {
        (codec, every): plan.stream(backend=backend, refresh=every)
        for codec, plan in plans.items()
        for every in refresh
    }
    dense = {codec: Dense(plan) for codec, plan in plans.items()}
    looks = {1, *(k * 10**e for e in range(1, 9) for k in (1, 2, 5)), *(i * frames // 25 for i in range(1, 26))}
    entries: dict[tuple[str, int], dict[str, Any]] = {
        key: {"codec": key[0], "refresh": key[1], "looks": [], "op_density": 0.0, "sparse": 0.0} for key in streams
    }
    counted = 0
    start = time.monotonic()
    for number in range(frames):
        frame = there_and_back(clip, number)
        outputs = {key: stream(frame) for key, stream in streams.items()}
        if number % 97 == 50:  # no divisor of the intervals: refreshes are in it as often as they are
            counted += 1
            for key, stream in streams.items():
                stats = [s for op, s in stream.stats.items() if s.macs or s.events_in]
                entries[key]["op_density"] += stream.op_density
                entries[key]["sparse"] += sum(s.path == "sparse" for s in stats) / max(len(stats), 1)
        if number + 1 in looks:
            memory = status_kib("VmRSS")
            for key, stream in streams.items():
                seen = dense[key[0]].look(stream.snapshot(), frame, outputs[key])
                entries[key]["looks"].append({"frame": number + 1, "resident_kib": memory, **seen})
            spent = time.monotonic() - start
            worst = max(entry["looks"][-1]["drift"] for entry in entries.values())
            print(f"{number + 1:7d} frames, {spent:5.0f} s, {memory / 1024:.1f} MiB, drift {worst:.1e}", flush=True)
    for entry in entries.values():
        entry["op_density"] /= max(counted, 1)
        entry["sparse"] /= max(counted, 1)
    return list(entries.values())


def costs(plan: Plan, clip: Frames, rounds: int) -> dict[str, float]:
    """CPU time of a frame in ms, one thread, in turn: on its sparse way, with a refresh, and the first of a stream."""
    stream, fresh = plan.stream(), plan.stream()
    stream(clip[0])
    times: dict[str, list[float]] = {"frame": [], "refresh": [], "first": []}
    for number in range(1, rounds + 1):
        for kind in times:
            frame = there_and_back(clip, 3 * number + len(kind) % 3)
            if kind == "refresh":
                stream.refresh()
            elif kind == "first":
                fresh.reset()
            begin = time.process_time()
            (fresh if kind == "first" else stream)(frame)
            times[kind].append(time.process_time() - begin)
    return {f"{kind}_ms": 1e3 * statistics.median(t) for kind, t in times.items()}


WIDTH, HEIGHT, LEFT, TOP, GAP = 560, 200, 64, 44, 76


def chart(entries: list[dict[str, Any]], title: str) -> str:
    """Drift and memory over the frames, one SVG document."""
    last = max(look["frame"] for entry in entries for look in entry["looks"])
    drifts = [look[k] for entry in entries for look in entry["looks"] for k in ("drift", "dense") if look[k] > 0]
    memory = [look["resident_kib"] / 1024 for look in entries[0]["looks"]]
    x = log_axis(1, last)
    y = log_axis(min(drifts), max(drifts))
    megabytes = linear_axis(0, max(memory), 4)
    css = files("sparsetime.report").joinpath("templates/chart.css").read_text(encoding="utf-8")
    css += "path.line { fill: none; stroke: var(--c); stroke-width: 1.6; } path.broken { stroke-dasharray: 5 4; }"
    parts = [element("style", css), element("rect", width="100%", height="100%", class_="ground")]

    def plot(top: int, heading: str, up: Axis, lines: list[tuple[str, list[tuple[float, float]]]]) -> None:
        inner = [text(heading, x=-48, y=-20, class_="heading")]
        for tick in up.ticks:
            at = HEIGHT * (1 - up.place(tick))
            inner.append(element("line", x1=0, x2=WIDTH, y1=at, y2=at, class_="grid"))
            shown = f"{tick:.0e}" if tick < 1e-3 and tick else short(tick)
            inner.append(text(shown, x=-6, y=at, dy="0.32em", class_="tick end"))
        for tick in x.ticks:
            inner.append(text(f"{tick:,.0f}", x=WIDTH * x.place(tick), y=HEIGHT + 16, class_="tick middle"))
        for style, points in lines:
            places = " L".join(f"{WIDTH * x.place(a):.1f},{HEIGHT * (1 - up.place(b)):.1f}" for a, b in points)
            inner.append(element("path", d=f"M{places}", class_=f"line {style}"))
        parts.append(element("svg", *inner, x=LEFT, y=top, width=WIDTH, height=HEIGHT, overflow="visible"))

    codecs = list(dict.fromkeys(entry["codec"] for entry in entries))
    lines, legend = [], []
    for entry in entries:
        style = f"s{1 + codecs.index(entry['codec'])}" + (" broken" if entry["refresh"] else "")
        lines.append((style, [(look["frame"], look["drift"]) for look in entry["looks"]]))
        name = f"refresh every {entry['refresh']:,}" if entry["refresh"] else "no refresh"
        legend.append((style, f"{entry['codec']}, {name}"))
    floor = [(look["frame"], max(look["dense"], 1e-12)) for look in entries[0]["looks"]]
    plot(TOP, f"{title}: drift of the sums", y, [*lines, ("s0", floor)])
    legend.append(("s0", "from scratch, float32 (PyTorch)"))
    parts.append(text("frames", x=LEFT + WIDTH, y=TOP + HEIGHT + 32, class_="title end"))
    below = TOP + HEIGHT + GAP
    growth = [(look["frame"], look["resident_kib"] / 1024) for look in entries[0]["looks"]]
    plot(below, "resident memory of the process, MiB", megabytes, [("s2", growth)])
    end = below + HEIGHT + 44
    for i, (style, name) in enumerate(legend):
        at_x, at_y = LEFT + 290 * (i % 2), end + 20 * (i // 2)
        parts.append(element("path", d=f"M{at_x},{at_y}h26", class_=f"line {style}"))
        parts.append(text(name, x=at_x + 34, y=at_y, dy="0.32em", class_="tick"))
    width, height = LEFT + WIDTH + 30, end + 20 * ((len(legend) + 1) // 2) + 6
    return element(
        "svg", *parts, xmlns="http://www.w3.org/2000/svg", width=width, height=height,
        viewBox=f"0 0 {width} {height}", class_="figure", role="img", aria_label="Drift and memory over the frames",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--network", default="mobilenet_v1_025")
    parser.add_argument("--weights", default="weights/imagenet/mobilenet_v1_0.25_128_quant.npz")
    parser.add_argument("--video", default="static_videos/pedestrians_vtest.avi")
    parser.add_argument("--clip", type=int, default=200, help="frames of the video that are played there and back")
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--refresh", type=int, nargs="+", default=[0, 1000], help="intervals; 0 is never")
    parser.add_argument("--codec", nargs="+", default=["exact", "hold"])
    parser.add_argument("--backend", default="cpu", choices=("cpu", "reference"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--svg", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)

    network = networks.create(args.network, weights=args.data / args.weights).eval()
    pictures = read_frames(args.data / args.video, stop=args.clip, size=network.spec.input_size)
    clip = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
    steps = torch.from_numpy(clip[::10])
    plans = {codec: sparsetime.compile(network, steps[0], steps=steps, codec=codec) for codec in args.codec}
    entries = run(plans, clip, args.frames, args.refresh, args.backend)
    memory = [look["resident_kib"] for look in entries[0]["looks"] if look["frame"] >= args.frames // 25]
    result = {
        "network": args.network,
        "video": args.video,
        "backend": args.backend,
        "frames": args.frames,
        "machine": {"processor": platform.processor() or platform.machine(), "torch": torch.__version__},
        "resident_kib": {"start": memory[0], "end": memory[-1], "most": max(memory)},
        "streams": entries,
        "costs": {codec: costs(plan, clip, 300) for codec, plan in plans.items()},
    }
    for entry in entries:
        looks = entry["looks"]
        most = {name: max(look[name] for look in looks) for name in looks[0]}
        print(
            f"{entry['codec']:6s} refresh {entry['refresh']:6d}: drift {looks[0]['drift']:.1e} -> "
            f"{looks[-1]['drift']:.1e}, most {most['drift']:.1e} (from scratch {most['dense']:.1e}); outputs at most "
            f"{most['outputs']:.1e} ({most['outputs_dense']:.1e}), codes {most['codes']:.1e} "
            f"({most['codes_dense']:.1e}), label equal in "
            f"{sum(look['same_label'] for look in looks):.0f} of {len(looks)}; operations {entry['op_density']:.3f}, "
            f"sparse path {entry['sparse']:.2f}"
        )
    for codec, cost in result["costs"].items():
        print(codec, ", ".join(f"{name} {value:.3f}" for name, value in cost.items()))
    print(f"resident memory {memory[0] / 1024:.1f} -> {memory[-1] / 1024:.1f} MiB, most {max(memory) / 1024:.1f}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.svg:
        args.svg.write_text(chart(entries, args.network) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
