"""A stream: one video through one plan."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray

from sparsetime.engine.executor import Executor, NotFiniteError, OpStats
from sparsetime.engine.flushes import Flushes, Pace
from sparsetime.engine.frames import FrameError, FrameReader, is_tensor, normalised
from sparsetime.engine.plan import Plan
from sparsetime.engine.structure import entry_of, rebuilt

__all__ = ["Snapshot", "Stream", "StreamBusyError", "StreamError", "nested"]

Array = NDArray[Any]


class StreamError(ValueError):
    """A state does not belong to this stream's plan."""


class StreamBusyError(RuntimeError):
    """A stream was used while another thread was using it."""


class Snapshot(Mapping[str, Array]):
    """The state of a stream at one time: arrays by the names of docs/plan.md. Never changes.

    Args:
        arrays: the snapshot's own from now on; they are not copied.

    Attributes:
        frames: that the stream has seen.
        pace: how near the next flush is.
    """

    def __init__(self, arrays: Mapping[str, Array], frames: int, pace: Pace = Pace()) -> None:  # noqa: B008 - a tuple
        self._arrays = {name: array.view() for name, array in arrays.items()}
        self.frames, self.pace = frames, pace
        for array in self._arrays.values():
            array.flags.writeable = False

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def _executor(plan: Plan, backend: str, threads: int) -> Executor:
    if backend == "reference":
        from sparsetime.engine.integers import IntegerReference
        from sparsetime.engine.reference import Reference

        return Reference(plan) if plan.precision == "float32" else IntegerReference(plan)
    if backend == "cpu":
        from sparsetime.engine.cpu import Native

        return Native(plan, threads)
    raise ValueError(f"backend must be 'cpu' or 'reference', got {backend!r}")


def nested(structure: Any, outputs: list[Any]) -> Any:
    """Outputs as the module returned them; `structure` is checked when the plan is."""

    def given(leaf: Any) -> Any:
        key, entry = entry_of(leaf)
        if key == "output":
            return outputs[entry]
        if key == "array":
            copied = entry.copy()  # the caller's own
            return sys.modules["torch"].from_numpy(copied) if is_tensor(outputs[0]) else copied
        return entry

    return rebuilt(structure, given, plain=True)


class Stream:
    """All state of one video, and what computes it. `stream(frame)` gives what the module would return.

    The first frame is computed dense, every other one costs what changed, but for those in which an island would send
    NaN or infinity, which are first frames, too (`sparsetime.engine.islands.Watch`). Outputs are new arrays, torch
    tensors if the frame was one. A stream belongs to one thread at a time; streams of one plan share its weights and
    run in parallel.

    Args:
        plan: what to run.
        backend: `cpu` (native) or `reference` (PyTorch, slow, the meaning).
        threads: of the native backend, at least 1; it uses no more than the cores that this process may use.
        refresh: 0, or every how many frames all sums are computed anew, which takes away rounding gathered in them.
        flush: 0, or after how much change the stream starts again, which takes away what `hold`, `pixel` and `residual`
            have kept back: a frame is the first of a new stream once the events since the last such one have asked for
            the operations of `flush` dense frames, and where a flush costs no more than the changes do: behind a scene
            cut, and while most of the picture moves. With 1 the other flushes cost at most as many operations as the
            changes do, and a still picture is never flushed. The rule is in `sparsetime.engine.flushes`.

    Attributes:
        plan: what it runs.
        backend: which one runs it.
        frames: that it has seen since its start or the last `reset`; a restored state brings its own number.

    Raises:
        ValueError: an unknown backend, or numbers out of range.
    """

    def __init__(
        self, plan: Plan, backend: str = "cpu", threads: int = 1, refresh: int = 0, flush: float = 0.0
    ) -> None:
        if threads < 1 or refresh < 0 or not flush >= 0:
            raise ValueError(
                f"expected threads >= 1, refresh >= 0 and flush >= 0, got {threads}, {refresh} and {flush}"
            )
        self.plan = plan
        self.backend = backend
        self.frames = 0
        self._read = FrameReader(
            plan, "The stream is as it was; resize the frame, or compile the network for this size."
        )
        self._executor = _executor(plan, backend, threads)
        self._every = refresh
        self._wanted = False  # a refresh, by the next frame
        self._begun = False  # there is a last frame whose values can be asked for
        self._passed: Array | None = None  # that frame, if it left no state
        self._flushed = False
        self._flushes = Flushes(plan, flush)
        self._lock = threading.Lock()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise StreamBusyError(
                "this stream is in use by another thread. One stream is one video: give every thread its own, "
                "plan.stream()."
            )
        try:
            yield
        finally:
            self._lock.release()

    def __call__(self, frame: Any) -> Any:
        """One frame.

        Args:
            frame: (1, C, H, W), (C, H, W) or (H, W, C), uint8 or floating point, numpy or torch.

        Raises:
            FrameError: the frame does not fit; the stream is as it was.
            StreamBusyError: another thread is using this stream.
        """
        with self._alone():
            x = self._read.checked(frame)
            keep = True
            if self._flushes.due:
                if x.dtype.kind == "f":
                    normalised(x, None)  # a frame that is refused leaves the stream as it was
                self._executor.flush()
                keep = not self._flushes.again
            elif self._wanted or (self._every and self.frames and self.frames % self._every == 0):
                self._executor.refresh()
            self._executor.set_cut(self._flushes.cut)
            outputs: list[Any] = self._run(x, keep)
            self._wanted, self._begun = False, True
            self._passed = None if keep else x.copy()
            self._flushed = self._executor.flushed
            if self.frames:
                self._flushes.after(self._flushed, self._executor.events)
            self.frames += 1
        if is_tensor(frame):
            import torch

            outputs = [torch.from_numpy(output) for output in outputs]
        return nested(self.plan.structure, outputs)

    def _run(self, frame: Array, keep: bool = True) -> list[Array]:
        try:
            try:
                return self._executor.run(frame, keep)
            except NotFiniteError:
                self._executor.reset()
                return self._executor.run(frame, keep)
        except FrameError:
            raise
        except BaseException:  # an island's, say: the state of a frame half done is none
            self._executor.reset()
            self._begun, self._passed = False, None
            raise

    def reset(self) -> None:
        """Start again: the next frame is the first."""
        with self._alone():
            self._executor.reset()
            self.frames, self._flushes.pace, self._flushed = 0, Pace(), False
            self._wanted, self._begun, self._passed = False, False, None

    @property
    def flushed(self) -> bool:
        """Whether the last frame that this stream computed was a flush, its first one among them."""
        return self._flushed

    @property
    def has_values(self) -> bool:
        """Whether there is a last frame that `value` can tell of: neither before the first one nor behind a snapshot
        that was taken between two flushes."""
        return self._begun

    def refresh(self) -> None:
        """Compute all sums anew in the next frame; what was sent stays sent. Costs one dense frame."""
        with self._alone():
            self._wanted = True

    def snapshot(self) -> Snapshot:
        """A copy of the state. Empty before the first frame, and between two flushes, of which the second needs none.

        The stream goes on from the copy as another one would that restores it: how sums are rounded depends on the
        paths that the frames before took, which the state does not say.
        """
        with self._alone():
            snapshot = Snapshot(self._executor.state(), self.frames, self._flushes.pace)
            self._executor.restore(snapshot)
            return snapshot

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot of a stream of the same plan, to the bit.

        Raises:
            StreamError: the snapshot is of another plan; the stream is as it was.
            TypeError: no `Snapshot`: its arrays alone do not say when the next flush is.
        """
        if not isinstance(snapshot, Snapshot):
            raise TypeError(f"restore: expected what `snapshot()` gave, got {type(snapshot).__name__}")
        expected = list(self.plan.state_entries()) if len(snapshot) else []
        if odd := sorted(set(snapshot) ^ {entry.name for entry in expected})[:3]:
            raise StreamError(f"snapshot is of another plan than '{self.plan.name}': entries {odd} do not match")
        for name, _, _, shape, dtype in expected:
            array = snapshot[name]
            if array.shape != shape or array.dtype != dtype:
                raise StreamError(f"snapshot entry '{name}': expected {shape} {dtype}, got {array.shape} {array.dtype}")
        with self._alone():
            self._executor.restore(snapshot)
            self.frames, self._flushes.pace, self._flushed = snapshot.frames, snapshot.pace, False
            self._wanted, self._begun, self._passed = False, len(snapshot) > 0, None

    def value(self, number: int) -> NDArray[Any]:
        """A copy of one value of the plan after the last frame, shaped as `plan.values` says.

        The stream goes on as if it had not been asked, and pays for this value alone, not for a snapshot; between two
        flushes it computes the last frame again.

        Raises:
            StreamError: there was no frame yet, the last one failed, or there was none since a snapshot without a
                state was restored.
        """
        if not self._begun:
            raise StreamError(f"value {number}: expected a stream that has seen a frame, got a new one")
        with self._alone():
            if self._passed is not None:
                self._run(self._passed)
                self._passed = None
            return self._executor.value(number)

    @property
    def state_bytes(self) -> int:
        """Bytes of this stream's values and accumulators, see `Plan.state_bytes`."""
        return self.plan.state_bytes

    @property
    def memory_bytes(self) -> int:
        """Bytes that this stream has allocated by now, weights not counted: its state, of which the backend `cpu` pads
        channels to whole vectors, and room for deltas, lists and sums."""
        return self._executor.memory_bytes

    @property
    def stats(self) -> dict[str, OpStats]:
        """What each operation did in the last frame, by its name."""
        with self._alone():
            return {op.name: entry for op, entry in zip(self.plan.ops, self._executor.stats(), strict=True)}

    @property
    def op_density(self) -> float:
        """Multiply-accumulates of the last frame over those of a dense one."""
        return sum(entry.macs for entry in self.stats.values()) / max(self.plan.dense_macs, 1)
