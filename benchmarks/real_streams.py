"""Plain pretrained networks on real video: what does a stream cost, and how near is it to the dense network?

    python benchmarks/real_streams.py quality --data ../shared/data --out runs/streams
    python benchmarks/real_streams.py time --data ../shared/data --out runs/streams
    python benchmarks/real_streams.py table --out runs/streams --markdown streams.md --svg docs/streams.svg

No training and no labels: thresholds, by element (`hold`) or by pixel (`pixel`), are a share of each layer's range,
found on 16 frames spread over the video. Three things are compared with the dense network on the same frame, as
docs/run.md defines it:

    stream      one for each threshold, never flushed after its first frame, or whenever its changes have asked for the
                operations of a dense frame (`flush 1`, as `sparsetime run` does)
    skipping    the dense network on every k-th frame, its answer held in between, at a whole k in `quality`; in
                `table` at k = time of the dense network / time of the stream, by interpolation in 1 / k, which is what
                a mixture of the two whole k does
    frozen      the dense answer to the first frame for ever

`quality` runs all thresholds side by side and needs no quiet machine, `time` runs stream and dense network in turn and
does (it takes CPU time, so it bears a busy one). Both go on where they stopped: one file for each network and video.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import sparsetime
from sparsetime import networks
from sparsetime.bench.density import op_density
from sparsetime.bench.machine import machine
from sparsetime.budget.judge import drop_of
from sparsetime.engine import OpStats, Plan, Stream
from sparsetime.engine.crossover import measured
from sparsetime.files import write_json
from sparsetime.report.svg import Axis, element, linear_axis, log_axis, short, text
from sparsetime.run.dense import Dense, candidates, exported
from sparsetime.run.planning import spread
from sparsetime.run.quality import Answer, Distance, Reader, task_of
from sparsetime.run.sources import Source

Array = NDArray[Any]

NETWORKS = {
    "fastestdet": "detection/fastestdet_coco.pth",
    "deeplabv3_mobilenet_v2": "segmentation/deeplabv3_mnv2_dm05_pascal_quant.npz",
    "mobilenet_v2": "imagenet/mobilenet_v2_1.0_224_quant.npz",
}


@dataclass(frozen=True)
class Video:
    """A piece of a video: a file under the data folder, and the frame at which the piece begins."""

    file: str
    first: int = 0

    @property
    def name(self) -> str:
        return Path(self.file).stem


VIDEOS = (  # the cameras stand still, and something moves
    Video("static_videos/pedestrians_vtest.avi"),
    Video("static_videos/traffic_bridge.mp4"),
    Video("static_videos/highway_m25.avi"),
    Video("static_videos/road_topview.avi"),
    Video("static_videos/room_person_one_by_one.mp4", 100),
    Video("static_videos/bottles_table.mp4", 100),
    Video("image_sequences/highway"),
    Video("static_videos/asl_gestures/walk.mkv"),
    Video("static_videos/corridor_shop.avi"),
)
CODECS = ("hold", "pixel")
SHARES = (0.0025, 0.005, 0.01, 0.02, 0.04)
"""Thresholds over the range of each layer."""

EVERY = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 24)
"""k of frame skipping."""

_CALIBRATION = 16  # frames
_THINNED = 64  # maps of more rows are looked at on every fourth row and column for their relative error


def frames(video: Video, data: Path, size: tuple[int, int], count: int | None = None) -> Iterator[Array]:
    """(H, W, 3) uint8."""
    pictures = (shot.picture for shot in Source(str(data / video.file), size))
    return islice(pictures, video.first, None if count is None else video.first + count)


def compiled(name: str, data: Path, pictures: Iterable[Array], **options: Any) -> Plan:
    """As `sparsetime compile --calibrate` makes it, outputs as a list."""
    network = networks.create(name, weights=data / "weights" / NETWORKS[name]).eval()
    steps = [torch.from_numpy(p).permute(2, 0, 1).contiguous() for p in spread(pictures, _CALIBRATION)]
    plan = sparsetime.compile(network, torch.zeros(1, 3, *network.spec.input_size), steps=steps, **options)
    return measured(plan.flat())


def size_of(name: str) -> tuple[int, int]:
    """(H, W) of a network's input."""
    size: tuple[int, int] = networks.create(name).spec.input_size
    return size


_fastest: dict[str, Dense] = {}
_TRIALS = 15


def fastest(plan: Plan, frame: Array) -> Dense:
    """The fastest dense runtime of a network on one thread, chosen once: the least CPU time of some runs in turn, which
    a busy machine hardly moves."""
    if plan.name not in _fastest:
        found = candidates(plan, 1) + exported(plan, frame, 1)
        least = [math.inf] * len(found)
        for _ in range(_TRIALS):
            for number, dense in enumerate(found):
                begin = time.process_time_ns()
                dense.run(frame)
                least[number] = min(least[number], time.process_time_ns() - begin)
        _fastest[plan.name] = found[least.index(min(least))]
        shown = (f"{dense.name} {ns / 1e6:.2f} ms" for dense, ns in zip(found, least, strict=True))
        print(f"{plan.name}: {', '.join(shown)}", file=sys.stderr, flush=True)
    return _fastest[plan.name]


class Looker:
    """Reads answers, and keeps of large maps what a relative error needs."""

    def __init__(self, plan: Plan) -> None:
        self._reader = Reader(plan)

    def __call__(self, outputs: list[Array]) -> Answer:
        answer = self._reader(outputs)
        return Answer(
            [y[:, :, ::4, ::4].copy() if y.ndim == 4 and y.shape[2] > _THINNED else y for y in outputs], answer.meaning
        )


class Beside:
    """Controls and any number of streams beside the dense network, frame by frame; the first frame is the start."""

    def __init__(self, plan: Plan) -> None:
        self._task = task_of(plan)[0]
        self._frames = 0
        self._first: Answer | None = None
        self._held: dict[int, Answer] = {}
        self._skipped = {k: Distance(self._task) for k in EVERY}
        self._frozen = Distance(self._task)
        self._streams: dict[str, Distance] = {}

    def add(self, dense: Answer, answers: dict[str, Answer]) -> None:
        for k in EVERY:
            if self._frames % k == 0:
                self._held[k] = dense
        if self._first is None:
            self._first = dense
        else:
            self._frozen.add(self._first, dense)
            for k, distance in self._skipped.items():
                distance.add(self._held[k], dense)
            for name, answer in answers.items():
                self._streams.setdefault(name, Distance(self._task)).add(answer, dense)
        self._frames += 1

    def controls(self) -> dict[str, Any]:
        return {
            "frozen": self._frozen.summary(),
            "skipping": {str(k): distance.summary() for k, distance in self._skipped.items()},
        }

    def streams(self) -> dict[str, dict[str, Any]]:
        return {name: distance.summary() for name, distance in self._streams.items()}


def label(codec: str, share: float, flush: float = 0) -> str:
    return f"{codec} {100 * share:g} %" + (f", flush {flush:g}" if flush else "")


class Way(NamedTuple):
    """A plan, and after how much change its stream starts again, see `Stream`."""

    plan: Plan
    flush: float

    def stream(self) -> Stream:
        return self.plan.stream(flush=self.flush)


def qualities(ways: dict[str, Way], pictures: Iterable[Array]) -> dict[str, Any]:
    """Streams of one network side by side: `controls`, and of each its distance and its densities."""
    plan = next(iter(ways.values())).plan
    streams = {name: way.stream() for name, way in ways.items()}
    looker, beside = Looker(plan), Beside(plan)
    stats: dict[str, list[dict[str, OpStats]]] = {name: [] for name in ways}
    done: dict[str, list[float]] = {name: [] for name in ways}
    for number, picture in enumerate(pictures):
        answers = {}
        for name, stream in streams.items():
            answers[name] = looker(stream(picture))
            if number:
                stats[name].append(stream.stats)
                done[name].append(stream.op_density)
        beside.add(looker(fastest(plan, picture).run(picture)), answers)
    settings = {
        name: {
            "quality": quality,
            "events": op_density(ways[name].plan, stats[name]),
            "operations": statistics.fmean(done[name]),
        }
        for name, quality in beside.streams().items()
    }
    return {"task": task_of(plan)[0], "controls": beside.controls(), "settings": settings}


def turns(
    plan: Plan, pictures: list[Array], clock: Callable[[], int], repeats: int, flush: float = 0
) -> tuple[Array, list[float]]:
    """Stream and dense network in turn, all frames at a time: the times of each frame, medians over the repeats,
    (frames, 2) in ms, and the share of operations done in each."""
    dense = fastest(plan, pictures[0])
    stream = plan.stream(flush=flush)
    taken = np.zeros((repeats, len(pictures), 2))
    operations: list[float] = []
    for repeat in range(-1, repeats):  # the first round, a short one, brings memory and weights
        stream.reset()
        operations = []
        for which in (0, 1) if repeat % 2 else (1, 0):
            for number, picture in enumerate(pictures if repeat >= 0 else pictures[:2]):
                begin = clock()
                (dense.run if which else stream)(picture)
                if repeat >= 0:
                    taken[repeat, number, which] = (clock() - begin) / 1e6
                if not which:
                    operations.append(stream.op_density)
    return np.median(taken, axis=0), operations


def times(
    plan: Plan, pictures: list[Array], clock: Callable[[], int], repeats: int = 1, flush: float = 0
) -> dict[str, Any]:
    """Figures of `turns`, the first frame, dense by nature, left out."""
    taken, operations = turns(plan, pictures, clock, repeats, flush)
    own, dense = taken[1:].T
    # The dense network takes as long on every frame: one of its frames would only add noise to the worst ratio.
    middle = float(np.median(dense))
    return {
        "frames": len(own),
        "dense_runtime": fastest(plan, pictures[0]).name,
        "stream_ms": float(np.median(own)),
        "dense_ms": middle,
        "time_share": float(own.mean() / dense.mean()),
        "speedup_median": float(np.median(dense / own)),
        "speedup_quartiles": [float(q) for q in np.quantile(dense / own, [0.25, 0.75])],
        "speedup_worst": middle / float(own.max()),
        "speedup_first": middle / float(taken[0, 0]),
        "operations": statistics.fmean(operations[1:]),
        "operations_most": max(operations[1:]),
    }


def trials(args: argparse.Namespace) -> Iterator[tuple[str, Video, Path]]:
    for name in args.networks:
        for video in VIDEOS:
            if not args.videos or video.name in args.videos:
                yield name, video, args.out / name / f"{video.name}.json"


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found


def ways(args: argparse.Namespace, name: str, video: Video, known: Iterable[str]) -> dict[str, Way]:
    """What has been asked for and is not known yet, by label."""
    found = {}
    for codec in args.codecs:
        wanted = {label(codec, share, flush): (share, flush) for flush in args.flush for share in args.shares}
        missing = {key: value for key, value in wanted.items() if key not in known}
        if missing:
            plan = compiled(name, args.data, frames(video, args.data, size_of(name)), codec=codec, levels=1.0)
            found |= {key: Way(scaled(plan, share), flush) for key, (share, flush) in missing.items()}
    return found


def scaled(plan: Plan, factor: float) -> Plan:
    """The plan with all thresholds multiplied."""
    steps = {op.codec["tensor"] for op in plan.ops if op.codec is not None}
    tensors = {name: (t * factor).astype(t.dtype) if name in steps else t for name, t in plan.tensors.items()}
    return replace(plan, tensors=tensors)


def quality(args: argparse.Namespace) -> None:
    for name, video, file in trials(args):
        result = read(file)
        started = time.monotonic()
        missing = ways(args, name, video, result.get("settings", {}))
        if not missing:
            continue
        found = qualities(missing, frames(video, args.data, size_of(name), args.frames))
        found["settings"] = result.get("settings", {}) | found["settings"]
        write_json(file, {"network": name, "video": video.name} | result | found)
        shown = {
            s: f"{1 - (drop_of(found['task'], v['quality']) or 0):.3f}@{v['events']:.3f}"
            for s, v in found["settings"].items()
        }
        print(f"{name} {video.name} {time.monotonic() - started:.0f} s", shown, flush=True)


def timing(args: argparse.Namespace) -> None:
    clock = time.perf_counter_ns if args.wall else time.process_time_ns
    for name, video, file in trials(args):
        result = read(file)
        taken = {} if args.again else result.get("times", {})
        missing = ways(args, name, video, taken)
        if not missing:
            continue
        compared = [found["quality"]["frames"] + 1 for found in result.get("settings", {}).values()]
        count = max(compared, default=args.frames)  # the same ones: time and quality of other frames say nothing
        pictures = list(frames(video, args.data, size_of(name), count))
        for setting, way in missing.items():
            taken[setting] = times(way.plan, pictures, clock, flush=way.flush)
        write_json(
            file,
            {"network": name, "video": video.name}
            | result
            | {"times": taken, "clock": "wall" if args.wall else "cpu", "machine": machine()},
        )
        shown = {s: f"{t['time_share']:.2f}" for s, t in taken.items()}
        print(name, video.name, shown, flush=True)


FIGURES = {
    "detection": ("boxes_found", "boxes_false"),
    "segmentation": ("foreground_iou",),
    "classification": ("total_variation",),
}


def skipping(result: dict[str, Any], share: float, figure: str) -> float | None:
    """A figure of frame skipping that computes a share of the frames: linear in 1 / k between whole k.

    A mixture of gaps of k and k + 1 frames has these two's sums over frames in proportion. Relative errors add up as
    squares.
    """
    squared = figure == "relative_error"
    points = sorted((1 / int(k), values[figure]) for k, values in result["controls"]["skipping"].items())
    points = [(x, y**2 if squared else y) for x, y in points if y is not None]
    if not points or share < points[0][0]:
        return None
    y = float(np.interp(share, *zip(*points, strict=True)))
    return y**0.5 if squared else y


def nearness(task: str, figures: dict[str, Any]) -> float | None:
    """1 - drop, see `sparsetime.budget.judge`: F1 of the boxes, foreground IoU, 1 - total variation."""
    drop = drop_of(task, figures)  # type: ignore[arg-type]
    return None if drop is None else 1 - drop


def skipping_nearness(result: dict[str, Any], share: float) -> float | None:
    points = sorted((1 / int(k), nearness(result["task"], v)) for k, v in result["controls"]["skipping"].items())
    points = [(x, y) for x, y in points if y is not None]
    if not points or share < points[0][0]:
        return None
    return float(np.interp(share, *zip(*points, strict=True)))


def cell(values: Iterable[float | None]) -> str:
    return " / ".join("-" if value is None else f"{value:.3f}" for value in values)


def rows(result: dict[str, Any], settings: Iterable[str]) -> Iterator[str]:
    """Rows of the table, one for each setting that has been measured and timed."""
    names = (*FIGURES[result["task"]], "relative_error")
    frozen = cell(result["controls"]["frozen"][name] for name in names)
    for setting in settings:
        found, taken = (result.get(key, {}).get(setting) for key in ("settings", "times"))
        if found is None or taken is None:
            continue
        own = nearness(result["task"], found["quality"])
        verdicts = []
        for equal in (taken["time_share"], found["events"]):
            other = skipping_nearness(result, equal)
            verdicts.append("-" if own is None or other is None else f"{own - other:+.3f}")
        yield " | ".join(
            [
                f"| {result['video']} | {setting} | {found['events']:.3f} / {found['operations']:.3f}",
                f"{taken['dense_ms']:.2f} | {taken['stream_ms']:.2f} | {taken['time_share']:.2f}",
                cell(found["quality"][name] for name in names),
                cell(skipping(result, taken["time_share"], name) for name in names),
                frozen,
                f"{verdicts[0]} | {verdicts[1]} |",
            ]
        )


def summary(results: list[dict[str, Any]], settings: Iterable[str]) -> Iterator[str]:
    """Rows of means over the videos: how near, at what cost, and how far ahead of frame skipping at equal cost."""

    def mean(values: Iterable[float | None]) -> str:
        known = [value for value in values if value is not None]
        return f"{statistics.fmean(known):.3f}" if known else "-"

    for setting in settings:
        own = [r for r in results if setting in r["settings"]]
        if not own:
            continue
        found = [r["settings"][setting] for r in own]
        near = [nearness(r["task"], f["quality"]) for r, f in zip(own, found, strict=True)]
        shares = {
            "events": [f["events"] for f in found],
            "operations": [f["operations"] for f in found],
            "time": [r.get("times", {}).get(setting, {}).get("time_share") for r in own],
        }
        cells = []
        for costs in shares.values():
            ahead = [
                n - other
                for r, n, cost in zip(own, near, costs, strict=True)
                if n is not None and cost is not None and (other := skipping_nearness(r, cost)) is not None
            ]
            cells.append(f"{statistics.fmean(ahead):+.3f} ({sum(a > 0 for a in ahead)}/{len(ahead)})" if ahead else "-")
        errors = mean(f["quality"]["relative_error"] for f in found)
        yield (
            f"| {own[0]['network']} | {setting} | {mean(near)} | {errors} | {' | '.join(map(mean, shares.values()))} | "
            + (f"{' | '.join(cells)} |")
        )


def table(args: argparse.Namespace) -> None:
    results = [read(file) for _, _, file in trials(args)]
    settings = [label(codec, share, flush) for codec in args.codecs for share in args.shares for flush in args.flush]
    lines = [
        "| network | threshold | nearness | relative error | operations asked for | done | time "
        "| ahead at equal operations asked for (videos) | done | at equal time |",
        "| --- " * 10 + "|",
    ]
    for name in args.networks:
        lines += summary([r for r in results if r.get("network") == name and "settings" in r], settings)
    lines.append("")
    for name in args.networks:
        own = [r for r in results if r.get("network") == name and "settings" in r]
        if not own:
            continue
        figures = " / ".join((*FIGURES[own[0]["task"]], "relative_error")).replace("_", " ")
        lines += [
            f"**{name}**, {figures}:",
            "",
            "| video | threshold | operations asked for / done | dense, ms | stream, ms | time | stream "
            "| skipping at equal time | frozen | ahead at equal time | at equal operations |",
            "| --- " * 11 + "|",
            *(row for result in own for row in rows(result, settings)),
            "",
        ]
    written = "\n".join(lines)
    if args.markdown:
        args.markdown.write_text(written, encoding="utf-8")
    print(written)
    if args.svg:
        args.svg.write_text(chart([r for r in results if "settings" in r]) + "\n", encoding="utf-8")


WIDTH, HEIGHT, LEFT, TOP, GAP_X, GAP_Y = 210, 92, 150, 74, 46, 34
TITLES = {
    "detection": "F1 of the boxes",
    "segmentation": "foreground IoU",
    "classification": "1 \u2212 total variation",
}


def chart(results: list[dict[str, Any]]) -> str:
    """One panel for each video and network: nearness to the dense network over time, one SVG document."""
    css = files("sparsetime.report").joinpath("templates/chart.css").read_text(encoding="utf-8")
    css += "path.line { fill: none; stroke: var(--c); stroke-width: 1.8; } path.broken { stroke-dasharray: 3 3; }"
    css += " circle { fill: var(--c); } circle.open { fill: var(--ground); stroke: var(--c); stroke-width: 1.4; }"
    parts = [element("style", css), element("rect", width="100%", height="100%", class_="ground")]
    columns = [name for name in NETWORKS if any(r["network"] == name for r in results)]
    lines = [video.name for video in VIDEOS if any(r["video"] == video.name for r in results)]
    x = log_axis(0.02, 1.6)

    def path(points: list[tuple[float, float]], y: Axis, style: str) -> str:
        places = " L".join(f"{WIDTH * x.place(a):.1f},{HEIGHT * (1 - y.place(b)):.1f}" for a, b in points)
        return element("path", d=f"M{places}", class_=f"line {style}") if points else ""

    for result in results:
        column, line = columns.index(result["network"]), lines.index(result["video"])
        task = result["task"]
        skipped = sorted((1 / int(k), nearness(task, v)) for k, v in result["controls"]["skipping"].items())
        skipped = [(a, b) for a, b in skipped if b is not None]
        frozen = nearness(task, result["controls"]["frozen"])
        lines_of = []
        for style, codec in (("s2", "hold"), ("s4", "pixel")):
            own = {k: v for k, v in result["settings"].items() if k.startswith(codec) and k.endswith(", flush 1")}
            near = {k: nearness(task, v["quality"]) or 0.0 for k, v in own.items()}
            lines_of.append((f"{style} broken", sorted((v["events"], near[k]) for k, v in own.items())))
            timed = {k: t["time_share"] for k, t in result.get("times", {}).items() if k in own}
            lines_of.append((style, sorted((t, near[k]) for k, t in timed.items())))
        y = linear_axis(max(min(b for _, b in (*skipped, *lines_of[0][1], *lines_of[2][1])) - 0.02, 0.0), 1.0, 3)
        inner = []
        for tick in y.ticks:
            at = HEIGHT * (1 - y.place(tick))
            inner.append(element("line", x1=0, x2=WIDTH, y1=at, y2=at, class_="grid"))
            inner.append(text(short(tick), x=-6, y=at, dy="0.32em", class_="tick end"))
        for tick in x.ticks:
            if line == len(lines) - 1:
                inner.append(text(short(tick), x=WIDTH * x.place(tick), y=HEIGHT + 15, class_="tick middle"))
        if frozen is not None and frozen >= y.low:
            at = HEIGHT * (1 - y.place(frozen))
            inner.append(element("line", x1=0, x2=WIDTH, y1=at, y2=at, class_="chance"))
        inner.append(path(skipped, y, "s1"))
        for style, points in lines_of:
            inner.append(path(points, y, style))
            for a, b in points:
                place = {"cx": WIDTH * x.place(a), "cy": HEIGHT * (1 - y.place(b))}
                inner.append(element("circle", r=2.6, class_=style.replace("broken", "open"), **place))
        left, top = LEFT + column * (WIDTH + GAP_X), TOP + line * (HEIGHT + GAP_Y)
        parts.append(element("svg", *inner, x=left, y=top, width=WIDTH, height=HEIGHT, overflow="visible"))
        if line == 0:
            parts.append(text(result["network"].replace("_", " "), x=left, y=top - 34, class_="heading"))
            parts.append(text(TITLES[task], x=left, y=top - 16, class_="title"))
        if column == 0:
            words = result["video"].replace("_one_by_one", "").replace("_", " ")
            parts.append(text(words, x=12, y=top + HEIGHT / 2, dy="0.32em", class_="title"))
    end = TOP + len(lines) * (HEIGHT + GAP_Y) + 4
    width = LEFT + len(columns) * (WIDTH + GAP_X)
    parts.append(text("share of the dense network's time", x=width - GAP_X, y=end, class_="title end"))
    legend = (
        ("s2", "stream, hold"),
        ("s4", "stream, pixel"),
        ("s2 broken", "by operations instead of time"),
        ("s1", "frame skipping"),
    )
    at = 12
    for style, name in legend:
        parts.append(element("path", d=f"M{at},{end + 26}h26", class_=f"line {style}"))
        parts.append(text(name, x=at + 33, y=end + 26, dy="0.32em", class_="tick"))
        at += 60 + 6.5 * len(name)
    parts.append(element("line", x1=at, x2=at + 26, y1=end + 26, y2=end + 26, class_="chance"))
    parts.append(text("frozen", x=at + 33, y=end + 26, dy="0.32em", class_="tick"))
    height = end + 44
    return element(
        "svg", *parts, xmlns="http://www.w3.org/2000/svg", width=width, height=height,
        viewBox=f"0 0 {width} {height}", class_="figure", role="img",
        aria_label="Nearness to the dense network over time",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    for action, function in (("quality", quality), ("time", timing)):
        p = actions.add_parser(action)
        p.add_argument("--data", type=Path, required=True)
        p.add_argument("--codecs", nargs="+", choices=CODECS, default=list(CODECS))
        p.add_argument("--shares", type=float, nargs="+", default=list(SHARES))
        p.add_argument("--flush", type=float, nargs="+", default=[0, 1], help="see `Stream`; 0: never flushed")
        p.add_argument("--frames", type=int, default=100, help="of each video, at most")
        p.set_defaults(function=function)
    p.add_argument("--wall", action="store_true", help="take wall time instead of CPU time: on an idle machine")
    p.add_argument("--again", action="store_true", help="take all times anew")
    p = actions.add_parser("table")
    p.add_argument("--codecs", nargs="+", choices=CODECS, default=list(CODECS), help="codecs that are shown")
    p.add_argument("--shares", type=float, nargs="+", default=list(SHARES), help="thresholds that are shown")
    p.add_argument("--flush", type=float, nargs="+", default=[0, 1], help="flushes that are shown")
    p.add_argument("--markdown", type=Path)
    p.add_argument("--svg", type=Path)
    p.set_defaults(function=table)
    for p in actions.choices.values():
        p.add_argument("--out", type=Path, required=True, help="folder of the results")
        p.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
        p.add_argument("--videos", nargs="+", choices=[v.name for v in VIDEOS])
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.function(args)


if __name__ == "__main__":
    main()
