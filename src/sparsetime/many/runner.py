"""N videos through one plan on a pool of threads.

A reader per video fills its inbox (`sparsetime.many.feed`). Streams with a frame waiting stand in one line; a thread of
the pool takes the first of the line, computes one frame, and puts the stream behind the others if more wait. So every
stream gets its turn, is with one thread at a time, and one that gives no frames takes nobody's time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sparsetime.engine import Plan
from sparsetime.many.feed import Arrival, Feed
from sparsetime.many.figures import Figures
from sparsetime.many.inbox import Policy
from sparsetime.run.flush import flush_of
from sparsetime.run.sources import Source, picture_plan

__all__ = ["Runner", "run_many"]

OnOutput = Callable[[int, int, Any], None]


class _Lane:
    """A video, its stream, and its figures."""

    def __init__(self, plan: Plan, feed: Feed, index: int, flush: float) -> None:
        self.feed, self.index = feed, index
        self.stream = plan.stream(flush=flush)
        self.figures = Figures(plan)
        self.error = ""
        self.listed = False  # in the line, or with a thread
        self.done = False


class Runner:
    """Computes what the feeds bring. Use as a context manager, or call `start` and `stop`.

    Args:
        plan: of all streams.
        feeds: one for each video; not yet started.
        threads: that compute, each one frame at a time.
        flush: of each stream, see `Stream`.
        on_output: called with the number of the stream, the number of the frame among those read, and the outputs, in
            the thread that computed them; the frames of one stream come in order, those of several at the same time.
            It holds its thread up. An error in it ends the stream.

    Attributes:
        output_error: the first exception that `on_output` raised, or None.

    Raises:
        ValueError: no feed, or no thread.
    """

    def __init__(
        self,
        plan: Plan,
        feeds: Sequence[Feed],
        *,
        threads: int = 1,
        flush: float = 0.0,
        on_output: OnOutput | None = None,
    ) -> None:
        if threads < 1 or not feeds:
            raise ValueError(f"expected at least one thread and one video, got {threads} and {len(feeds)}")
        self.output_error: Exception | None = None
        self._plan = plan
        self._on_output = on_output
        self._lanes = [_Lane(plan, feed, index, flush) for index, feed in enumerate(feeds)]
        self._line: deque[_Lane] = deque()
        # Two conditions of one lock: a waking call for one thread of the pool must not go to who waits for the end.
        self._lock = threading.Lock()
        self._more, self._fewer = threading.Condition(self._lock), threading.Condition(self._lock)
        self._stopping = False
        self._begun = self._ended = 0.0
        self._threads = [threading.Thread(target=self._work, name=f"pool {k}", daemon=True) for k in range(threads)]

    def __enter__(self) -> Runner:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to read and to compute."""
        self._begun = time.perf_counter()
        for lane in self._lanes:
            lane.feed.on_change = lambda lane=lane: self._list(lane)
            lane.feed.start()
        for thread in self._threads:
            thread.start()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until all streams are at their end; whether they are."""
        with self._fewer:
            return self._fewer.wait_for(lambda: all(lane.done for lane in self._lanes), timeout_s)

    def stop(self) -> None:
        """End after the frames that are being computed; those that wait are thrown away."""
        with self._more:
            self._stopping = True
            self._more.notify_all()
        for thread in self._threads:
            thread.join()
        for lane in self._lanes:
            lane.feed.stop(0.0)  # all at once, so that readers that hang are not waited for one after the other
        until = time.monotonic() + 2.0
        for lane in self._lanes:
            lane.feed.stop(max(until - time.monotonic(), 0.0))
        self._ended = self._ended or time.perf_counter()

    def statistics(self) -> list[dict[str, Any]]:
        """Figures of each stream so far; can be asked for at any time."""
        time_s = (self._ended or time.perf_counter()) - self._begun
        found = []
        for lane in self._lanes:
            feed, figures = lane.feed, lane.figures.summary()
            found.append(
                {
                    "video": feed.name,
                    "live": feed.live,
                    "policy": feed.policy,
                    "state": "failed" if lane.error else feed.state,
                    "error": lane.error or feed.error,
                    "damage": feed.damage,
                    "read": feed.read,
                    "dropped": feed.inbox.dropped,
                    "waiting": len(feed.inbox),
                    "reconnects": feed.reconnects,
                    "fps": figures["frames"] / time_s if time_s > 0 else None,
                    **figures,
                }
            )
        return found

    def _list(self, lane: _Lane) -> None:
        with self._more:
            if not lane.listed:
                lane.listed = True
                self._line.append(lane)
                self._more.notify()

    def _work(self) -> None:
        while True:
            with self._more:
                self._more.wait_for(lambda: self._line or self._stopping)
                if self._stopping:
                    return
                lane = self._line.popleft()
            arrival = lane.feed.inbox.take()
            if arrival is not None:
                try:
                    self._compute(lane, arrival)
                except Exception as error:
                    lane.error = " ".join(str(error).split()) or type(error).__name__
                    lane.feed.stop(0.0)
            with self._lock:
                lane.listed = False
                if len(lane.feed.inbox):
                    lane.listed = True
                    self._line.append(lane)
                    self._more.notify()
                elif lane.feed.inbox.finished:
                    lane.done = True
                    if all(other.done for other in self._lanes):
                        self._ended = time.perf_counter()
                    self._fewer.notify_all()

    def _compute(self, lane: _Lane, arrival: Arrival) -> None:
        wait_ms = 1e3 * (lane.feed.clock.now() - arrival.at_s)
        start = time.perf_counter_ns()
        outputs = lane.stream(arrival.shot.picture)
        time_ms = (time.perf_counter_ns() - start) / 1e6
        lane.figures.add(sum(entry.macs for entry in lane.stream.stats.values()), time_ms, wait_ms)
        if self._on_output is not None:
            try:
                self._on_output(lane.index, arrival.number, outputs)
            except Exception as error:
                self.output_error = self.output_error or error
                raise RuntimeError(f"on_output: {error!r}") from error


def run_many(
    plan_file: Path | str,
    videos: Sequence[str],
    *,
    threads: int = 1,
    flush: float | None = None,
    policy: Policy | None = None,
    queue: int = 4,
    retries: int | None = None,
    frames: int | None = None,
    on_output: OnOutput | None = None,
    progress: Callable[[list[dict[str, Any]]], None] | None = None,
    every_s: float = 1.0,
    stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Run a plan over several videos at the same time.

    Args:
        plan_file: written by `Plan.save`; takes pictures of three channels.
        videos: see `Source`.
        threads: that compute.
        flush: after how much change a stream starts again, see `Stream`. None: as `sparsetime.run.flush` says.
        policy: what happens to frames that come faster than they can be computed, see `Feed`.
        queue: frames of each video that wait at most.
        retries: attempts in a row after which a camera is given up; None: never.
        frames: of each video at most; None for all.
        on_output: see `Runner`.
        progress: called with `Runner.statistics()` about every `every_s` seconds.
        every_s: seconds.
        stop: asked several times a second whether to end here.

    Returns:
        JSON-able figures, `docs/live.md` has them.

    Raises:
        PlanError: the plan cannot be read, or takes no pictures.
        SourceError: there is no such file or folder.
        TypeError: one name instead of several.
        Exception: what `on_output` raised first, once the other streams have ended.
    """
    if isinstance(videos, str):
        raise TypeError(f"run_many: expected a sequence of videos, got one name: [{videos!r}]")
    plan, size = picture_plan(plan_file)
    flush = flush_of(plan, flush)
    feeds = [
        Feed(
            lambda video=video: Source(video, size),  # type: ignore[misc]
            size=queue,
            policy=policy,
            retries=retries,
            frames=frames,
        )
        for video in videos
    ]
    said = begun = time.monotonic()
    stopped = False
    with Runner(plan, feeds, threads=threads, flush=flush, on_output=on_output) as runner:
        while not runner.wait(min(0.1, every_s)):
            if stop is not None and stop():
                stopped = True
                break
            if progress is not None and time.monotonic() - said >= every_s:
                said = time.monotonic()
                progress(runner.statistics())
    if runner.output_error is not None:
        raise runner.output_error
    time_s = time.monotonic() - begun
    streams = runner.statistics()
    total = sum(entry["frames"] for entry in streams)
    return {
        "plan": str(plan_file),
        "network": plan.name,
        "threads": threads,
        "flush": flush,
        "queue": queue,
        "stopped": stopped,
        "time_s": time_s,
        "frames": total,
        "dropped": sum(entry["dropped"] for entry in streams),
        "fps": total / time_s,
        "state_bytes": plan.state_bytes * len(streams),
        "weight_bytes": plan.weight_bytes,
        "streams": streams,
    }
