"""One video through one plan: timed, measured, and compared with the dense network."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsetime.engine import OpStats, Plan, statefile
from sparsetime.files import ready
from sparsetime.run.dense import Dense, dense_network
from sparsetime.run.draw import VideoSink, Work, overlay
from sparsetime.run.fallback import FallbackStream
from sparsetime.run.flush import flush_of
from sparsetime.run.quality import Answer, Distance, Reader
from sparsetime.run.sources import FALLBACK_RATE, Shot, Source, picture_plan

__all__ = ["Skipping", "Tally", "run_file"]

Array = NDArray[Any]


def run_file(
    plan_file: Path | str,
    video: str,
    *,
    threads: int = 1,
    flush: float | None = None,
    compare: bool = False,
    fallback: bool = False,
    frames: int | None = None,
    out_video: Path | None = None,
    resume_state: Path | None = None,
    save_state: Path | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Run a plan over a video.

    Only the network is timed: from the uint8 frame at the network's size to its outputs, decoding, resizing and drawing
    left out. With `compare` the dense network runs on the same frames, in turn with the stream, and the answers are
    compared (`sparsetime.run.quality`). A first frame in which the stream was flushed is dense by nature: times and
    densities leave it out, where a second one comes. Distances always begin with the second.

    Args:
        plan_file: written by `Plan.save`; takes pictures of three channels.
        video: see `Source`.
        threads: of the stream, which takes no more than there are cores, and of the dense network. The figures have the
            number that was asked for.
        flush: after how much change the stream starts again, see `Stream`. None: as `sparsetime.run.flush` says.
        compare: with the dense network.
        fallback: leave the stream for the dense network while that is faster, see `sparsetime.run.fallback`.
        frames: at most; None for all.
        out_video: file to draw into what was recomputed.
        resume_state: a state that `save_state` wrote, to go on from: with the video's next frame, where the video is a
            file or a folder.
        save_state: file to write the state into at the end, also where `stop` or an error made it. Where it cannot be
            written, `state_error` of the figures says why.
        progress: called after every frame with the time of the stream and of the dense network (ns), and the density.
        stop: asked before every frame whether to end here.

    Returns:
        JSON-able figures. `damage` names what could not be decoded; `docs/run.md` has the others.

    Raises:
        PlanError: the plan cannot be read, or takes no pictures.
        SourceError: no frame can be had.
        OutputError: the video cannot be written.
        TargetError: `out_video` or `save_state` cannot.
        StreamError: `resume_state` is no state of this plan.
        ValueError: `fallback` with what needs the state after every frame: a drawn video, a state file.
    """
    if fallback and (out_video or resume_state or save_state):
        given = {"out_video": out_video, "save_state": save_state, "resume_state": resume_state}
        names = " and ".join(f"--{name.replace('_', '-')}" for name, file in given.items() if file)
        raise ValueError(
            f"a run that falls back to the dense network has no state in between: leave out --fallback, or {names}"
        )
    if save_state is not None:
        ready(save_state)
    plan, size = picture_plan(plan_file)
    source = Source(video, size, show=out_video is not None)
    flush = flush_of(plan, flush)
    session = _Session(plan, threads, flush, compare=compare, fallback=fallback, out_video=out_video)
    stream = session.stream
    if resume_state is not None:
        statefile.load_state(stream, resume_state)
    first, stopped = stream.frames, False
    try:
        with session.sink or nullcontext():
            start = 0 if source.live else first
            for shot in islice(source, start, None if frames is None else start + frames):
                if stop is not None and stop():
                    stopped = True
                    break
                took = session.frame(shot, source.rate or FALLBACK_RATE)
                if progress is not None:
                    progress(*took)
    except Exception:  # what was computed is not lost with what cannot be drawn
        if save_state is not None and stream.has_values:
            statefile.save_state(stream, save_state)
        raise
    state_error = None
    if save_state is not None:
        try:
            statefile.save_state(stream, save_state)
        except Exception as error:  # a full disk: the figures are not lost with the state
            reason = getattr(error, "strerror", None) or repr(error)
            state_error = f"{save_state}: the state cannot be written: {reason}"
    return {
        "plan": str(plan_file),
        "network": plan.name,
        "producer": plan.producer,
        "precision": plan.precision,
        "codecs": sorted({op.codec["kind"] for op in plan.ops if op.codec is not None}),
        "video": source.name,
        "input_size": list(size),
        "threads": threads,
        "flush": flush,
        "first_frame": first,
        "damage": source.damage,
        "stopped": stopped,
        "state_error": state_error,
        **session.summary(),
        "weight_bytes": plan.weight_bytes,
        "layers": session.tally.layers(),
    }


class _Session:
    """A stream, what runs and is counted beside it, and what is drawn of it.

    Args:
        plan: of the stream.
        threads, flush, compare, fallback, out_video: see `run_file`.

    Attributes:
        stream: the stream, which does nothing where there is a fallback.
        tally: its figures.
        sink: what is drawn into; to be entered around all frames.
    """

    def __init__(
        self, plan: Plan, threads: int, flush: float, *, compare: bool, fallback: bool, out_video: Path | None
    ) -> None:
        self._plan, self._threads, self._flush = plan.flat(), threads, flush
        self.stream = self._plan.stream(threads=threads, flush=flush)
        self.tally = Tally(plan)
        self.sink = None if out_video is None else VideoSink(out_video)
        self._work = None if out_video is None else Work(plan)
        self._reader = Reader(plan)
        self._comparison = Comparison(self._reader) if compare else None
        self._dense: Dense | None = None
        self._not_finite = self._flushes = 0  # frames
        self._falls_back = fallback
        self._fallback: FallbackStream | None = None

    def frame(self, shot: Shot, rate: float) -> tuple[int, int, float]:
        """Run, count and draw a frame of a video of `rate` frames a second.

        Returns:
            Time of the stream and of the dense network (ns), and the density.
        """
        if self._dense is None and (self._comparison is not None or self._falls_back):
            self._find_dense(shot.picture)
        if self._work is not None and not self.tally.frames and self.stream.has_values:
            self._work(self.stream)  # what the first frame is compared with
        running = self._fallback or self.stream
        beside = None if self._comparison is None else self._dense
        outputs, time_ns, expected, dense_ns = _both(
            running, beside, shot.picture, dense_first=self.tally.frames % 2 == 1
        )
        flushed = self._fallback is not None or self.stream.flushed
        self.tally.add(running.stats, time_ns, dense_ns, flushed=flushed)
        self._flushes += self.stream.flushed
        self._not_finite += not all(np.isfinite(output).all() for output in outputs)
        if self._comparison is not None:
            self._comparison.add(self._reader(outputs), self._reader(expected), time_ns, dense_ns)
        if self.sink is not None and self._work is not None and shot.shown is not None:
            self.sink.add(overlay(shot.shown, self._work(self.stream), self.tally.last_density), rate, shot.time_s)
        return time_ns, dense_ns, self.tally.last_density

    def _find_dense(self, frame: Array) -> None:
        self._dense = dense_network(self._plan, frame, self._threads)
        if self._falls_back:
            self._fallback = FallbackStream(
                self._plan, frame, threads=self._threads, flush=self._flush, dense=self._dense
            )

    def summary(self) -> dict[str, Any]:
        """Figures of all frames."""
        running = self._fallback or self.stream
        beside = None if self._dense is None else self._comparison
        return {
            "dense_runtime": None if self._dense is None else self._dense.name,
            "dense_frames": 0 if self._fallback is None else self._fallback.dense_frames,
            "flushes": None if self._falls_back else self._flushes,
            "frames_not_finite": self._not_finite,
            "task": self._reader.task,
            **self.tally.summary(),
            **(Comparison.nothing() if beside is None else beside.summary()),
            "state_bytes": running.state_bytes,
            "memory_bytes": running.memory_bytes,
        }


def _both(
    stream: Any, dense: Dense | None, frame: Array, *, dense_first: bool
) -> tuple[list[Array], int, list[Array], int]:
    """Outputs and time (ns) of the stream and of the dense network. They take turns in who meets the frame first."""
    expected: list[Array] = []
    before = after = 0
    if dense is not None and dense_first:
        expected, before = _timed(dense.run, frame)
    outputs, time_ns = _timed(stream, frame)
    if dense is not None and not dense_first:
        expected, after = _timed(dense.run, frame)
    return outputs, time_ns, expected, before + after


def _timed(call: Callable[[Array], list[Array]], frame: Array) -> tuple[list[Array], int]:
    start = time.perf_counter_ns()
    outputs = call(frame)
    return outputs, time.perf_counter_ns() - start


class Skipping:
    """When frame skipping computes a frame, if it is to take the time that the stream takes.

    After the first frame, which both compute, it may compute n of the frames so far, n = floor(frames * time of the
    stream / time of the dense network): every k-th frame with k = time of the dense network / time of the stream, as
    measured so far.
    """

    def __init__(self) -> None:
        self.frames = self.computed = 0
        self._time_ns = self._dense_ns = 0

    def computes(self, time_ns: int, dense_ns: int) -> bool:
        """Whether it computes the next frame, which took the stream and the dense network so long."""
        self.frames += 1
        self._time_ns += time_ns
        self._dense_ns += dense_ns
        if self.computed + 1 > self.frames * self._time_ns / max(self._dense_ns, 1):
            return False
        self.computed += 1
        return True

    @property
    def every(self) -> float | None:
        """k; None where no frame was computed but the first."""
        return self.frames / self.computed if self.computed else None

    @property
    def time_share(self) -> float | None:
        """Time that it took over the time that the stream took; near 1 where there were enough frames to divide."""
        return self.computed * self._dense_ns / (self.frames * self._time_ns) if self._time_ns else None


class Comparison:
    """Distances to the dense network: of the stream, and of the two controls.

    frozen: the dense answer to the first frame for ever. Frame skipping: see `Skipping`.

    Args:
        reader: whose task says which distances there are.
    """

    def __init__(self, reader: Reader) -> None:
        self._stream, self._frozen, self._skipped = (Distance(reader.task) for _ in range(3))
        self._skipping = Skipping()
        self._first: Answer | None = None
        self._held: Answer | None = None

    def add(self, answer: Answer, dense: Answer, time_ns: int, dense_ns: int) -> None:
        """Count one frame; the first is only the start."""
        if self._first is None or self._held is None:
            self._first = self._held = dense
            return
        if self._skipping.computes(time_ns, dense_ns):
            self._held = dense
        self._stream.add(answer, dense)
        self._frozen.add(self._first, dense)
        self._skipped.add(self._held, dense)

    def summary(self) -> dict[str, Any]:
        """The three distances."""
        skipping = {"every": self._skipping.every, "time_share": self._skipping.time_share}
        return {
            "quality": self._stream.summary(),
            "quality_frozen": self._frozen.summary(),
            "quality_frame_skipping": skipping | self._skipped.summary(),
        }

    @staticmethod
    def nothing() -> dict[str, Any]:
        """The same keys where nothing was compared."""
        return {"quality": None, "quality_frozen": None, "quality_frame_skipping": None}


class Tally:
    """Times and counts of a stream, frame by frame.

    Args:
        plan: of the stream.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._times: list[int] = []
        self._dense_times: list[int] = []
        self._first_macs = 0
        self._dense_macs = max(plan.dense_macs, 1)
        self._left_out = 0  # frames at the start: the first, if it was a flush
        # Columns: events in, events, macs, effective macs, time_ns, frames on the dense path, of frames that are not
        # left out.
        self._sums = np.zeros((len(plan.ops), 6), np.int64)
        self.last_density = 0.0

    @property
    def frames(self) -> int:
        """Frames counted."""
        return len(self._times)

    def add(self, stats: Mapping[str, OpStats], time_ns: int, dense_ns: int, *, flushed: bool) -> None:
        """Count one frame; dense_ns is 0 where the dense network did not run.

        Args:
            stats, time_ns: of the stream.
            dense_ns: of the dense network.
            flushed: whether the stream was; a first frame in which it was is left out.
        """
        rows = np.asarray(
            [[s.events_in, s.events, s.macs, s.effective_macs, s.time_ns, s.path == "dense"] for s in stats.values()]
        )
        macs = int(rows[:, 2].sum())
        self.last_density = macs / self._dense_macs
        if self._times or not flushed:
            self._sums += rows
        else:
            self._first_macs, self._left_out = macs, 1
        self._times.append(time_ns)
        if dense_ns:
            self._dense_times.append(dense_ns)

    def summary(self) -> dict[str, Any]:
        """Times and densities of the whole network."""
        frames, rest = self.frames, self.frames - self._left_out
        macs = int(self._sums[:, 2].sum())
        times, dense_times = self._rest(self._times), self._rest(self._dense_times)
        fps, fps_dense = _rate(times), _rate(dense_times)
        ratios = [dense / own for dense, own in zip(dense_times, times, strict=False)]
        return {
            "frames": frames,
            "fps": fps,
            "fps_dense": fps_dense,
            "speedup": fps / fps_dense if fps and fps_dense else None,
            "speedup_median": statistics.median(ratios) if ratios else None,
            "time_ms": _percentiles(self._times, times),
            "time_dense_ms": _percentiles(self._dense_times, dense_times),
            "op_density": macs / (rest * self._dense_macs) if rest > 0 else None,
            "effective_density": int(self._sums[:, 3].sum()) / (rest * self._dense_macs) if rest > 0 else None,
            "op_density_with_first_frame": (macs + self._first_macs) / (frames * self._dense_macs) if frames else None,
            "dense_macs": self._plan.dense_macs,
            "islands": self._islands(),
        }

    def _rest(self, times: list[int]) -> list[int]:
        """Without what is left out, where there are others."""
        return times[self._left_out :] or times

    def _islands(self) -> list[dict[str, Any]]:
        total = int(self._sums[:, 4].sum())
        return [
            {
                "name": op.name,
                "operator": op.attributes["target"],
                "time_share": int(sums[4]) / total if total else None,
            }
            for op, sums in zip(self._plan.ops, self._sums, strict=True)
            if op.kind == "island"
        ]

    def layers(self) -> list[dict[str, Any]]:
        """What each operation did in a mean frame, a first one that was a flush left out; None where that was all."""
        rest = self.frames - self._left_out

        def mean(total: float, of: float = 1.0) -> float | None:
            return total / (rest * of) if rest and of else None

        found = []
        for op, (events_in, events, macs, effective, time_ns, dense) in zip(
            self._plan.ops, self._sums.tolist(), strict=True
        ):
            dense_macs = self._plan.op_macs(op)
            elements = sum(int(np.prod(self._plan.values[value])) for value in op.outputs)
            found.append(
                {
                    "name": op.name,
                    "kind": op.kind,
                    "codec": None if op.codec is None else op.codec["kind"],
                    "dense_macs": dense_macs,
                    "macs": mean(macs),
                    "op_density": mean(macs, dense_macs),
                    "effective_macs": mean(effective),
                    "effective_density": mean(effective, dense_macs),
                    "events_in": mean(events_in),
                    "events": mean(events),
                    "delta_density": mean(events, elements),
                    "time_ms": mean(time_ns / 1e6),
                    "dense_path": mean(dense),
                }
            )
        return found


def _rate(times: list[int]) -> float | None:
    """Frames a second."""
    return 1e9 * len(times) / sum(times) if times else None


def _percentiles(times: list[int], rest: list[int]) -> dict[str, float] | None:
    if not times:
        return None
    middle, high = np.percentile(rest, [50, 95]) / 1e6
    return {"first": times[0] / 1e6, "median": float(middle), "p95": float(high)}
