"""The line that says how it goes: rewritten in place on a terminal, a new one now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

__all__ = ["Progress"]


class Progress:
    """Frames per second and density since the last line, on stderr. Use as a context manager.

    Args:
        every_s: seconds between lines; without one, 0.2 on a terminal and 5 elsewhere.
    """

    def __init__(self, every_s: float | None = None) -> None:
        self._terminal = sys.stderr.isatty()
        self._every = every_s if every_s is not None else 0.2 if self._terminal else 5.0
        self._shown = time.monotonic()
        self._frames = self._unsaid = 0
        self._time_ns = self._dense_ns = 0
        self._density = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._unsaid:
            self._show()
        if self._terminal and self._frames:
            print(file=sys.stderr)

    def frame(self, time_ns: int, dense_ns: int, density: float) -> None:
        """One more frame.

        Args:
            time_ns: that it took.
            dense_ns: that the dense network took, 0 without one.
            density: share of the operations that were done.
        """
        self._frames += 1
        self._unsaid += 1
        self._time_ns += time_ns
        self._dense_ns += dense_ns
        self._density += density
        if time.monotonic() - self._shown >= self._every:
            self._show()

    def _show(self) -> None:
        text = f"{self._frames} frames, {self._unsaid * 1e9 / max(self._time_ns, 1):.1f} frames/s"
        if self._dense_ns:
            text += f" (dense {self._unsaid * 1e9 / self._dense_ns:.1f})"
        text += f", operations {self._density / self._unsaid:.3f}"
        if self._terminal:
            print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)
        self._shown = time.monotonic()
        self._unsaid = self._time_ns = self._dense_ns = 0
        self._density = 0.0
