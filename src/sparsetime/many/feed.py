"""One video, read by a thread of its own into a bounded queue; a camera that went away is looked for again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Literal, NamedTuple, Protocol

from sparsetime.many.inbox import Inbox, Policy
from sparsetime.run.sources import FALLBACK_RATE, Shot

__all__ = ["Arrival", "Backoff", "Clock", "Feed", "State", "Video"]

State = Literal["running", "waiting", "ended", "failed"]


class Video(Protocol):
    """What a feed reads: `sparsetime.run.Source`, or anything like it. Errors while it is read end the attempt."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def live(self) -> bool:
        """Whether the frames come at their own pace and have no end."""

    @property
    def rate(self) -> float | None:
        """Frames a second that it states; known once the first frame was given."""

    @property
    def damage(self) -> list[str]:
        """What could not be decoded so far, in words."""

    def __iter__(self) -> Iterator[Shot]:
        """The frames."""


class Clock:
    """Seconds, and waiting for them."""

    def now(self) -> float:
        """Seconds since some moment; never goes back."""
        return time.monotonic()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait until the event or so many seconds; whether it was the event."""
        return event.wait(max(seconds, 0.0))


class Backoff(NamedTuple):
    """Seconds before the attempt k + 1 to reconnect, k = 0, 1, ... in a row without a frame: min(first 2^k, most)."""

    first_s: float = 1.0
    most_s: float = 60.0

    def __call__(self, k: int) -> float:
        """The delay."""
        return float(min(self.first_s * 2.0 ** min(k, 60), self.most_s))


class Arrival(NamedTuple):
    """A frame that was read: its number among those read from the video, and when (seconds of the clock)."""

    number: int
    at_s: float
    shot: Shot


class Feed:
    """Reads one video in a thread. What waits to be computed is in `inbox`.

    A live video that ends or cannot be reached is opened again after a back-off. A file whose frames may be dropped is
    given at its own rate, as a camera would; with the policy `block` as fast as it is taken.

    Args:
        open_video: makes the video. Called here once, so that errors of the arguments are raised at once, and again
            before each attempt to reconnect.
        size: frames that wait at most.
        policy: see `Inbox`; None: `drop-oldest` for a live video, `block` for a file.
        retries: attempts in a row without a frame after which a live video is given up; None: never.
        frames: to read at most; None for all.
        backoff: seconds before an attempt.
        clock: of arrivals, rate and back-off.

    Attributes:
        state: running; waiting (for the next attempt); ended; or failed, see `error`.
        read: frames read so far.
        reconnects: attempts to open the video again.
        error: why no frame has come since the last one; "" while they come.
    """

    def __init__(
        self,
        open_video: Callable[[], Video],
        *,
        size: int = 4,
        policy: Policy | None = None,
        retries: int | None = None,
        frames: int | None = None,
        backoff: Backoff | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._open, self._video = open_video, open_video()
        self.name, self.live = self._video.name, self._video.live
        self.policy: Policy = policy or ("drop-oldest" if self.live else "block")
        self.state: State = "running"
        self.read = self.reconnects = 0
        self.error = ""
        self.on_change: Callable[[], None] | None = None
        self.clock = clock or Clock()
        self.inbox: Inbox[Arrival] = Inbox(size, self.policy, self._changed)
        self._retries, self._most = retries, frames
        self._backoff = backoff or Backoff()
        self._stop = threading.Event()
        # A daemon: reading from a camera that hangs cannot be interrupted, and must not keep the process.
        self._thread = threading.Thread(target=self._run, name=f"reader of {self.name}", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """End reading and throw away what waits. A reader that hangs longer than this is left to itself."""
        self._stop.set()
        self.inbox.close(empty=True)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    @property
    def rate(self) -> float | None:
        """Frames a second that the video states."""
        return self._video.rate

    @property
    def damage(self) -> list[str]:
        """What could not be decoded since the video was last opened, in words."""
        return self._video.damage

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change()

    def _run(self) -> None:
        try:
            self._read_all()
        finally:
            self.inbox.close()

    def _read_all(self) -> None:
        attempt = 0
        while True:
            before = self.read
            failed = True
            try:
                self._read_once()
                failed, reason = False, "; ".join(self.damage) or "the stream ended"
            except Exception as error:  # whatever a source dies of, the other streams go on
                reason = " ".join(str(error).split()) or type(error).__name__
            if failed:
                self.error = reason
            if self._stop.is_set() or self.read == self._most or (not self.live and not failed):
                self.state = "ended"
                return
            self.error = reason
            attempt = 0 if self.read > before else attempt
            if not self.live or (self._retries is not None and attempt >= self._retries):
                self.state = "failed"
                return
            self.state = "waiting"
            if self.clock.wait(self._stop, self._backoff(attempt)):
                self.state = "ended"
                return
            attempt += 1
            self.reconnects += 1

    def _read_once(self) -> None:
        if self.reconnects:
            self._video = self._open()
        paced = not self.live and self.policy != "block"
        due = self.clock.now()
        left = None if self._most is None else self._most - self.read
        for shot in islice(self._video, left):
            if paced and self.clock.wait(self._stop, due - self.clock.now()):
                return
            if self._stop.is_set():
                return
            # Late by more than a frame, it does not hurry after: a burst would only be dropped.
            period = 1.0 / (self._video.rate or FALLBACK_RATE)
            due = max(due, self.clock.now() - period) + period
            self.state, self.error = "running", ""
            self.read += 1
            self.inbox.put(Arrival(self.read - 1, self.clock.now(), shot))
