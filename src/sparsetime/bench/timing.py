"""Times of several methods that take turns in one process, and the ratios between them.

A *burst* is one call that nobody measures, which warms the caches, and a few measured ones, of which the median counts.
In a round every method has one burst; the order moves on by one from round to round. Ratios are taken within a round,
so that what slows a machine down for a second slows both sides, and the median over the rounds is reported with its
quartiles.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Literal

import numpy as np

__all__ = ["Clock", "Step", "fastest", "quartiles", "ratio", "take_turns"]

Step = Callable[[], float | None]
"""One call of a method. Gives seconds if it has measured itself, else None."""

Clock = Literal["wall", "cpu"]
"""`wall` for a quiet machine; `cpu`, the process's own time, for one thread on a busy one."""

_TRIES = 4


def _interruptions() -> int:
    """How often the threads of this process have had a core taken from them."""
    import resource  # Unix alone has it, and only a run of the benchmark needs it

    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _measured(step: Step, clock: Clock) -> float:
    """Seconds of one call; again, a few times, where another process took the core meanwhile."""
    seconds = 0.0
    for _ in range(_TRIES):
        before = _interruptions()
        wall, cpu = time.perf_counter(), time.process_time()
        own = step()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        seconds = (cpu if clock == "cpu" else wall) if own is None else own
        if own is not None and clock == "cpu":
            seconds = min(own, cpu)  # what it waited for the core it cannot have computed
        # The time of the process does not go on while it waits; a step's own clock does.
        if _interruptions() == before or (own is None and clock == "cpu"):
            break
    return seconds


def take_turns(
    methods: Mapping[str, Step], *, rounds: int, repeats: int = 3, clock: Clock = "wall", pause: float = 0.0
) -> dict[str, list[float]]:
    """Seconds per call, by method and round.

    Args:
        methods: what to call, by name.
        rounds: how often every method has its turn.
        repeats: measured calls in a burst.
        clock: see `Clock`. Steps that measure themselves are left to do so, on the wall's clock.
        pause: seconds of sleep before a burst, in which the threads of the method before stop spinning.
    """
    times: dict[str, list[float]] = {name: [] for name in methods}
    names = list(methods)
    for r in range(rounds):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            time.sleep(pause)
            methods[name]()
            times[name].append(median(_measured(methods[name], clock) for _ in range(repeats)))
    return times


def fastest(times: Mapping[str, Sequence[float]], names: Iterable[str]) -> str:
    """The method with the smallest median."""
    return min(names, key=lambda name: median(times[name]))


def quartiles(x: Sequence[float]) -> dict[str, float]:
    """Median and quartiles as plain data."""
    low, middle, high = (float(q) for q in np.percentile(x, [25, 50, 75]))
    return {"median": middle, "low": low, "high": high}


def ratio(times: Mapping[str, Sequence[float]], over: str, under: str) -> dict[str, float]:
    """time of `over` / time of `under`, round by round: above 1, `under` is the faster one."""
    return quartiles([a / b for a, b in zip(times[over], times[under], strict=True)])
