"""When a stream starts again where nobody says: one rule for `run`, `many`, `watch` and `tune`."""

from __future__ import annotations

from sparsetime.engine.plan import Plan

__all__ = ["FLUSH", "flush_of"]

FLUSH = 1.0
"""Dense frames' operations that changes ask for from one flush to the next, see `sparsetime.engine.Stream`."""

_KEEPING_BACK = frozenset(("hold", "pixel", "residual"))


def flush_of(plan: Plan, flush: float | None = None) -> float:
    """`flush` of a plan's streams: what was asked for; else `FLUSH` where a codec of the plan keeps something back
    (`hold`, `pixel`, `residual`, in int8 a threshold above 0), and 0, never, where none does.
    """
    if flush is not None:
        return flush
    codecs = [op.codec for op in plan.ops if op.codec is not None]
    keeping = any(
        codec["kind"] in _KEEPING_BACK or ("threshold" in codec and plan.tensors[codec["threshold"]].any())
        for codec in codecs
    )
    return FLUSH if keeping else 0.0
