"""The thread that computes: takes frames, runs the stream, measures the dense network now and then, tells."""

from __future__ import annotations

import json
import statistics
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sparsetime.engine import Plan, PlanError
from sparsetime.live.layers import Changes, layers_of
from sparsetime.live.picture import jpeg
from sparsetime.many.feed import Arrival, Feed
from sparsetime.run.dense import Dense, dense_network
from sparsetime.run.flush import flush_of
from sparsetime.run.sources import FALLBACK_RATE, Shot, Source, picture_plan

__all__ = ["Command", "Player", "parse_command"]

Command = tuple[Literal["play", "pause", "step", "reset", "layer"], int]

FindDense = Callable[[Plan, NDArray[Any], int], Dense]

_RECENT = 60  # frames that the mean time is of
_DENSE_EVERY, _RECENT_DENSE = 10, 12
_PATIENCE_S = 0.2
_FINE = 8  # pixels of the input to a place of a map


def parse_command(text: str, layers: int) -> Command | None:
    """A command as the page sends it, `{"do": "layer", "layer": 3}` say; None where it is none.

    Args:
        text: JSON.
        layers: how many there are to choose from.
    """
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict):
        return None
    number = said.get("layer", 0)
    if said.get("do") not in ("play", "pause", "step", "reset", "layer") or type(number) is not int:
        return None
    return (said["do"], number) if 0 <= number < layers else None


class Player:
    """Plays a video through a plan and tells `on_message` of each frame, from a thread of its own.

    A message is the length of its header (32 bits, big endian), the header (JSON), the map of the chosen layer (one
    byte a place, `map` in the header is its height and width), and the frame as JPEG. docs/live.md has the keys.
    It begins paused. Commands from several viewers act on the one stream that there is.

    Args:
        plan_file: written by `Plan.save`; takes pictures of three channels.
        video: see `Source`.
        threads: of the network.
        flush: after how much change the stream starts again, see `Stream`. None: as `sparsetime.run.flush` says.
        find_dense: gives the dense network to measure; may take long, see `dense_network`.

    Raises:
        PlanError: the plan cannot be read, takes no pictures, or has no layer to look at.
        SourceError: there is no such file or folder.
    """

    def __init__(
        self,
        plan_file: Path | str,
        video: str,
        *,
        threads: int = 1,
        flush: float | None = None,
        find_dense: FindDense = dense_network,
    ) -> None:
        plan, self._size = picture_plan(plan_file)
        self._plan = plan
        self.layers = layers_of(plan)
        if all(layer.source is None for layer in self.layers):
            raise PlanError(f"{plan_file}: the network has no convolution, so there are no places to show")
        self._file, self._video, self._threads = str(plan_file), video, threads
        self.on_message: Callable[[bytes], None] = lambda message: None
        self._feed = self._open()
        self._flush = flush_of(plan, flush)
        self._stream = plan.stream(threads=threads, flush=self._flush)
        self._dense: Dense | None = None
        self._find_dense = find_dense
        self._finding: threading.Thread | None = None
        self._chosen = self._first_choice()
        self._changes = Changes(self._stream, self.layers[self._chosen])
        self._paused, self._steps = True, 0
        self._stopping = False
        self._shot: Shot | None = None
        self._map: NDArray[np.uint8] | None = None
        self._changed = threading.Condition()
        self._commands: deque[Command] = deque(maxlen=64)  # more than that nobody presses; the oldest are forgotten
        self._thread = threading.Thread(target=self._run, name="player", daemon=True)
        self._error = ""
        self._clear()

    def _first_choice(self) -> int:
        """The layer with the most operations among those whose map shows where something is, if there are such."""

        def worth(number: int) -> tuple[bool, int]:
            shape = self._plan.values[self.layers[number].op.inputs[0]]
            return _FINE * min(shape[2:]) >= min(self._size), self.layers[number].macs

        return max((k for k, layer in enumerate(self.layers) if layer.source is not None), key=worth)

    def _open(self) -> Feed:
        video, size = self._video, self._size
        return Feed(lambda: Source(video, size, show=True), size=2)

    def _clear(self) -> None:
        """Figures of nothing."""
        self._times_ms: deque[float] = deque(maxlen=_RECENT)
        self._dense_ms: deque[float] = deque(maxlen=_RECENT_DENSE)
        self._frames = self._macs = 0
        self._sums = [0.0] * len(self.layers)
        self._due = 0.0
        self._dense_due = 2  # frames; the first is no usual one

    def start(self) -> None:
        """Begin; paused, until a command comes."""
        self._thread.start()

    def stop(self) -> None:
        """End after the frame that is being computed."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(5.0)
        self._feed.stop()

    @property
    def busy(self) -> bool:
        """Whether a thread is at work still, which only the end of the process ends."""
        return self._thread.is_alive() or (self._finding is not None and self._finding.is_alive())

    def send(self, command: Command) -> None:
        """Do this before the next frame."""
        with self._changed:
            self._commands.append(command)
            self._changed.notify_all()

    def about(self) -> dict[str, Any]:
        """What does not change while it plays."""
        total = max(self._plan.dense_macs, 1)
        return {
            "plan": self._file,
            "network": self._plan.name,
            "video": self._feed.name,
            "live": self._feed.live,
            "input_size": list(self._size),
            "threads": self._threads,
            "flush": self._flush,
            "dense_macs": self._plan.dense_macs,
            "layers": [
                {
                    "name": layer.op.name,
                    "kind": layer.op.kind,
                    "share": layer.macs / total,
                    "shape": list(self._plan.values[layer.op.inputs[0]][1:]),
                    "placed": layer.source is not None,
                }
                for layer in self.layers
            ],
        }

    def figures(self) -> dict[str, Any]:
        """What `sparsetime watch --json` writes: figures since the last reset."""
        rate, dense = _rate(self._times_ms), _rate(self._dense_ms)
        return {
            "frames": self._frames,
            "flush": self._flush,
            "fps": rate,
            "fps_dense": dense,
            "dense_runtime": None if self._dense is None else self._dense.name,
            "saved": 1 - self._macs / (self._frames * max(self._plan.dense_macs, 1)) if self._frames else None,
            "dropped": self._feed.inbox.dropped,
            "damage": self._feed.damage,
            "error": self._error or (self._feed.error if self._feed.state in ("waiting", "failed") else ""),
        }

    def _run(self) -> None:
        self._feed.start()
        try:
            while not self._stopping:
                self._obey()
                if self._paused and not self._steps:
                    with self._changed:
                        self._changed.wait_for(lambda: self._commands or self._stopping)
                    continue
                self._advance()
        except Exception as error:  # told to the viewers, who else would see a page that stands still
            self._error = " ".join(str(error).split()) or type(error).__name__
            self._tell(None)
        finally:
            self._feed.stop(0.0)

    def _advance(self) -> None:
        stepping = self._steps > 0
        if not stepping and not self._feed.live and not self._wait_until_due():
            return
        arrival = self._feed.inbox.take(_PATIENCE_S)
        if arrival is None:
            if self._feed.inbox.finished:
                self._paused, self._steps = True, 0
                self._tell(self._shot)
            elif self._feed.error:
                self._tell(self._shot)
            return
        self._steps = max(self._steps - 1, 0)
        self._compute(arrival)

    def _wait_until_due(self) -> bool:
        """Wait until a file's next frame is due; False when something else is to be done first."""
        with self._changed:
            if self._changed.wait_for(lambda: self._commands or self._stopping, max(self._due - time.monotonic(), 0.0)):
                return False
        # A computer that is too slow for the video does not hurry after.
        self._due = max(self._due, time.monotonic() - 0.1) + 1.0 / (self._feed.rate or FALLBACK_RATE)
        return True

    def _obey(self) -> None:
        while self._commands:
            do, number = self._commands.popleft()
            if do == "layer":
                self._choose(number)
            elif do == "reset":
                self._reset()
            else:
                if self._feed.inbox.finished and do != "pause":
                    self._reset()
                self._paused = do != "play"
                self._steps = self._steps + 1 if do == "step" else 0
            self._tell(self._shot)

    def _choose(self, number: int) -> None:
        if self.layers[number].source is None or number == self._chosen:
            return
        self._chosen = number
        self._changes = Changes(self._stream, self.layers[number])
        self._map = None

    def _reset(self) -> None:
        """Start again: the stream, the figures, and a video that is a file."""
        if not self._feed.live:
            self._feed.stop()
            self._feed = self._open()
            self._feed.start()
        self._map = None
        self._stream.reset()
        self._clear()

    def _compute(self, arrival: Arrival) -> None:
        frame = arrival.shot.picture
        start = time.perf_counter_ns()
        self._stream(frame)
        time_ms = (time.perf_counter_ns() - start) / 1e6
        stats = self._stream.stats
        if self._frames:
            self._times_ms.append(time_ms)
        self._frames += 1
        self._macs += sum(entry.macs for entry in stats.values())
        self._sums = [total + layer.density(stats) for total, layer in zip(self._sums, self.layers, strict=True)]
        self._map = self._changes.update()
        if self._frames >= self._dense_due:
            self._measure_dense(frame)
        self._shot = arrival.shot
        self._tell(arrival.shot)

    def _measure_dense(self, frame: NDArray[Any]) -> None:
        if self._dense is None:
            if self._finding is None:  # beside the stream: trying several runtimes takes seconds
                self._finding = threading.Thread(target=self._find, args=(frame,), name="find dense", daemon=True)
                self._finding.start()
            return
        self._dense_due = self._frames + _DENSE_EVERY
        start = time.perf_counter_ns()  # as it comes, behind what else the page does, like the stream's frames
        self._dense.run(frame)
        self._dense_ms.append((time.perf_counter_ns() - start) / 1e6)

    def _find(self, frame: NDArray[Any]) -> None:
        try:
            self._dense = self._find_dense(self._plan, frame, self._threads)
        except Exception as error:
            self._error = f"no dense network to compare with: {' '.join(str(error).split()) or type(error).__name__}"

    def _tell(self, shot: Shot | None) -> None:
        stats = self._stream.stats if self._stream.frames else {}
        frames = max(self._frames, 1)
        header = self.figures() | {
            "paused": self._paused,
            "ended": self._feed.inbox.finished,
            "layer": self._chosen,
            "density": self._stream.op_density if stats else None,
            "layers": [round(layer.density(stats), 4) for layer in self.layers] if stats else [],
            "means": [round(total / frames, 4) for total in self._sums],
            "whole": [stats[layer.op.name].path == "dense" for layer in self.layers] if stats else [],
            "map": None if self._map is None else list(self._map.shape),
        }
        text = json.dumps(header, allow_nan=False, separators=(",", ":")).encode()
        maps = b"" if self._map is None else self._map.tobytes()
        picture = b"" if shot is None or shot.shown is None else jpeg(shot.shown)
        self.on_message(struct.pack(">I", len(text)) + text + maps + picture)


def _rate(times_ms: deque[float]) -> float | None:
    """Frames a second, of the mean time: a stream's flushes count."""
    return 1e3 / statistics.fmean(times_ms) if times_ms else None
