"""Videos that come from no file, and a clock that is set by hand."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from sparsetime.many import Clock
from sparsetime.run.sources import Shot


class FakeVideo:
    """Gives what `script` gives: numbers become frames of that grey, exceptions are raised, calls are made.

    Args:
        script: of one attempt to read it.
        live: whether it is a camera.
    """

    def __init__(self, script: list[Any], *, live: bool = False, name: str = "fake", size: tuple[int, int] = (24, 32)):
        self.name, self.live, self.rate = name, live, 20.0
        self.damage: list[str] = []
        self._script, self._size = script, size

    def __iter__(self) -> Iterator[Shot]:
        for item in self._script:
            if isinstance(item, Exception):
                raise item
            if callable(item):
                item()
                continue
            yield Shot(np.full((*self._size, 3), item, np.uint8), None)


def attempts(*scripts: list[Any], live: bool = True) -> Callable[[], FakeVideo]:
    """Opens a video that does something else each time; the last one for ever."""
    left = list(scripts)
    return lambda: FakeVideo(left.pop(0) if len(left) > 1 else left[0], live=live)


class HandClock(Clock):
    """Time goes on by what is waited for, at once; the waits are kept.

    Args:
        stop_after: waits after which it says that the event came.
    """

    def __init__(self, stop_after: int | None = None) -> None:
        self.waits: list[float] = []
        self._now = 100.0
        self._stop_after = stop_after

    def now(self) -> float:
        return self._now

    def wait(self, event: threading.Event, seconds: float) -> bool:
        self.waits.append(seconds)
        self._now += max(seconds, 0.0)
        return event.is_set() or len(self.waits) == self._stop_after
