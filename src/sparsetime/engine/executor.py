"""What a backend is: the part of a stream that computes. `Stream` does everything else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

__all__ = ["Executor", "NotFiniteError", "OpStats"]

Array = NDArray[Any]


class NotFiniteError(ArithmeticError):
    """An island gave NaN or infinity in a frame on deltas: the frame has to be the first of a new stream."""


class OpStats(NamedTuple):
    """What one operation did in the last frame.

    events_in: nonzero deltas at its inputs. events: nonzero deltas that it sent. macs: multiply-accumulates done, on
    the dense path those of touched outputs from all of their inputs. effective_macs: those that the events at its
    input cause, by true fan-out, the same on every backend. path: `sparse`, or `dense` when it was computed from
    scratch.
    """

    events_in: int
    events: int
    macs: int
    effective_macs: int
    time_ns: int
    path: str


class Executor(Protocol):
    """Runs one plan on one stream of frames, and holds its state.

    flushed: whether the last frame was the first of a stream, by `reset`, by `flush` or by a cut.
    """

    @property
    def flushed(self) -> bool: ...

    def set_cut(self, share: float) -> None:
        """From now on a frame that sends more than this share of the input's elements is the first of a new stream."""

    def run(self, frame: Array, keep: bool = True) -> list[Array]:
        """One frame to new arrays: the plan's outputs in order.

        Args:
            frame: of the plan's input shape, float32, or uint8 RGB to be normalised as the plan says.
            keep: whether it leaves a state; if not, the next frame is the first again. Only the first frame may do so.

        Raises:
            FrameError: values that are not finite; the state is as it was. After any other error it is undefined until
                `reset`.
            NotFiniteError: see there; not in a first frame.
        """

    @property
    def memory_bytes(self) -> int:
        """Bytes that this executor has allocated for itself, weights not counted."""

    def reset(self) -> None:
        """Forget everything: the next frame is the first."""

    def flush(self) -> None:
        """Forget the state: the next frame is the first. What makes later frames faster may be remembered."""

    def refresh(self) -> None:
        """Take the dense path for every linear operation in the next frame."""

    def state(self) -> dict[str, Array]:
        """Copies of all values and accumulators, by `Plan.state_entries`; empty before the first frame."""

    def value(self, number: int) -> Array:
        """A copy of what one value of the plan stands for, codes as numbers. Not before the first frame."""

    def restore(self, state: Mapping[str, Array]) -> None:
        """Continue from what `state` gave; empty means the start of a stream."""

    def stats(self) -> list[OpStats]:
        """One entry per operation of the plan, of the last frame."""

    def events(self) -> Array:
        """Of `stats`, what each operation sent, without making all of them."""
