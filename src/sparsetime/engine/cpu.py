"""The native backend: docs/plan.md in C++, one call a frame. `sparsetime/engine/reference.py` is its meaning."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsetime import _native
from sparsetime.engine.executor import OpStats
from sparsetime.engine.frames import FrameError, coloured
from sparsetime.engine.ops import Op
from sparsetime.engine.plan import Plan

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Native"]

Array = NDArray[Any]
_INFINITY = float("inf")
_KEPT = ("float32", "uint8")
"""Types of values that the native side keeps; others are opaque to it."""


def _activation(activation: Mapping[str, Any] | None) -> tuple[str, float, float]:
    """Name and two parameters as the native side knows them."""
    if activation is None:
        return "none", 0.0, 0.0
    kind = activation["kind"]
    if kind == "relu":
        return "clamp", 0.0, _INFINITY
    if kind == "clamp":
        low, high = activation["min"], activation["max"]
        return "clamp", -_INFINITY if low is None else low, _INFINITY if high is None else high
    if kind == "leaky_relu":
        return kind, activation["slope"], 0.0
    if kind == "elu":
        return kind, activation["alpha"], 0.0
    if kind == "gelu":
        return "gelu_tanh" if activation["approximate"] == "tanh" else "gelu", 0.0, 0.0
    return kind, 0.0, 0.0


def _numbers(op: Op) -> dict[str, list[float]]:
    numbers: dict[str, list[float]] = {}
    if op.kind != "island":
        for key, value in op.attributes.items():
            numbers[key] = [float(x) for x in value] if isinstance(value, list | tuple) else [float(value)]
    return numbers


def _entry(plan: Plan, op: Op, opaque: set[int]) -> dict[str, Any]:
    codec, coding = op.codec, plan.codings.get(op.output)
    return {
        "kind": op.kind,
        "name": op.name,
        "inputs": list(op.inputs),
        "outputs": list(op.outputs),
        "numbers": _numbers(op),
        "tensors": {} if op.kind == "island" else dict(op.tensors),
        "activation": _activation(op.activation),
        "codec": ("", "", -_INFINITY, _INFINITY)
        if codec is None or plan.precision != "float32"
        else (codec["kind"], codec["tensor"], codec.get("low", -_INFINITY), codec.get("high", _INFINITY)),
        "crossover": -1.0 if op.crossover is None else op.crossover,
        "opaque": [v in opaque for v in op.outputs],
        "code": None if coding is None else (*coding, *((None, False) if codec is None else _threshold(codec))),
    }


def _threshold(codec: Mapping[str, Any]) -> tuple[str, bool]:
    return codec["threshold"], codec.get("pixel", False)


def _call_weakly(method: Callable[[int], None]) -> Callable[[int], None]:
    """A method without a hold on its object: what the native side keeps, the garbage collector cannot see."""
    weak = weakref.WeakMethod(method)

    def call(number: int) -> None:
        found = weak()
        assert found is not None
        found(number)

    return call


def _opaque(plan: Plan) -> set[int]:
    """Values of types that the native side does not keep: islands make them, and islands and the caller read them."""
    return {v for op in plan.ops for k, v in enumerate(op.outputs) if plan.value_type(op, k) not in _KEPT}


_programs: dict[int, tuple[Any, dict[str, Tensor]]] = {}


def _program(plan: Plan) -> tuple[Any, dict[str, Tensor]]:
    """The plan as the native side keeps it, weights packed, and the tensors of its islands as PyTorch takes them: made
    once, shared by all streams of the plan."""
    key = id(plan)
    if key not in _programs:
        tensors, opaque = {name: np.ascontiguousarray(array) for name, array in plan.tensors.items()}, _opaque(plan)
        program = _native.program(
            [list(shape) for shape in plan.values],
            [_entry(plan, op, opaque) for op in plan.ops],
            [v for v in plan.outputs if v not in opaque],
            tensors,
            integer=plan.precision != "float32",
        )
        _programs[key] = program, _constants(plan)
        weakref.finalize(plan, _programs.pop, key, None)  # each stream holds its own references
    return _programs[key]


def _constants(plan: Plan) -> dict[str, Tensor]:
    if not plan.islands:
        return {}
    import torch

    names = {name for op in plan.islands for name in op.tensors.values()}
    return {name: torch.from_numpy(plan.tensors[name].copy()) for name in names}


class Native:
    """Executor in C++; see `Executor` for its methods.

    Args:
        plan: what to run. Islands need PyTorch.
        threads: how many threads share a frame; no more than the cores that this process may use, since waiting
            threads would take them from those that compute.
    """

    def __init__(self, plan: Plan, threads: int = 1) -> None:
        self._plan = plan
        self._program, self._tensors = _program(plan)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._stream = _native.Stream(
            self._program, min(threads, cores), _call_weakly(self._island) if plan.islands else None
        )
        if plan.input is not None:
            self._stream.set_camera(plan.input.mean, plan.input.std)
        self._opaque: dict[int, Tensor] = {}  # see _opaque; filled by the first frame
        self._watch = None
        if plan.islands:
            from sparsetime.engine.islands import Watch

            self._watch = Watch(plan)

    def _tensor(self, value: int) -> Tensor:
        import torch

        return self._opaque[value] if value in self._opaque else torch.from_numpy(self._stream.value(value))

    def _island(self, number: int) -> None:
        from sparsetime.engine.islands import run_island

        op = self._plan.ops[number]

        results = run_island(op, self._tensor, self._tensors, [self._plan.values[v] for v in op.outputs])
        if self._watch is not None:
            self._watch.check(op, results, self.flushed)
        for k, (v, result) in enumerate(zip(op.outputs, results, strict=True)):
            if self._plan.value_type(op, k) in _KEPT:
                self._stream.put(v, result.numpy())
            else:
                self._opaque[v] = result
                self._stream.touch(v)

    def run(self, frame: Array, keep: bool = True) -> list[Array]:
        if frame.dtype == np.uint8:
            frame = coloured(frame, self._plan.input)
        outputs = self._stream.run(frame if frame.ndim == 4 else np.ascontiguousarray(frame), keep)
        if outputs is None:
            raise FrameError.not_finite()
        kept = iter(outputs)
        return [self._opaque[v].numpy().copy() if v in self._opaque else next(kept) for v in self._plan.outputs]

    @property
    def flushed(self) -> bool:
        return bool(self._stream.flushed)

    def set_cut(self, share: float) -> None:
        self._stream.set_cut(share)

    def reset(self) -> None:
        self._stream.reset()

    def flush(self) -> None:
        self._stream.flush()

    def refresh(self) -> None:
        self._stream.refresh()

    def state(self) -> dict[str, Array]:
        if not self._stream.started:
            return {}
        state: dict[str, Array] = {}
        for name, number, value, _, dtype in self._plan.state_entries():
            if value is None:
                state[name] = self._stream.accumulator(number)
            else:
                state[name] = self._stream.codes(value) if dtype == "uint8" else self.value(value)
        return state

    @property
    def memory_bytes(self) -> int:
        return int(self._stream.memory_bytes)

    def value(self, number: int) -> Array:
        if number in self._opaque:
            return self._opaque[number].numpy().copy()
        found: Array = self._stream.value(number)
        return found

    def restore(self, state: Mapping[str, Array]) -> None:
        self._stream.reset()
        if not state:
            return
        for name, number, value, _, dtype in self._plan.state_entries():
            array = state[name]  # also of no dimensions, to which ascontiguousarray would give one
            if value is None:
                self._stream.set_accumulator(number, np.asarray(array, order="C"))
            elif dtype == "float32":
                self._stream.set_value(value, np.asarray(array, order="C"))
            elif dtype == "uint8":
                self._stream.set_codes(value, np.asarray(array, order="C"))
            else:
                import torch

                self._opaque[value] = torch.from_numpy(np.array(array))
        self._stream.resume()
        if self._watch is not None:
            self._watch.restored(self._tensor)

    def stats(self) -> list[OpStats]:
        return [OpStats(*entry) for entry in self._stream.stats()]

    def events(self) -> Array:
        found: Array = self._stream.events()
        return found
