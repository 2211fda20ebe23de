"""Settings measured on the tuning clips, each once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from sparsetime.budget.clips import Clip
from sparsetime.budget.cost import CostModel, Counted, Layout
from sparsetime.budget.judge import Judge
from sparsetime.budget.measure import Answered, Measured, measure, measured
from sparsetime.budget.memo import Memo
from sparsetime.budget.search import shifted
from sparsetime.budget.setting import GRID, OCTAVE, Setting, apply, codecs, codecs_to_drop, freed_bytes
from sparsetime.engine import Plan

__all__ = ["Say", "Workbench", "one", "or_none"]

Say = Callable[[str, int], None]
"""Told what is being done, and how many settings have been measured."""

_PROFILED = (-OCTAVE, 0, OCTAVE, 2 * OCTAVE, 3 * OCTAVE)  # shifts at which the work of operations is timed
_PROFILE_CLIPS = 2


class Workbench:
    """Measures settings on the tuning clips, each once.

    Args:
        plan: with its outputs as a list.
        threads, flush: of the streams.
    """

    def __init__(
        self, plan: Plan, clips: list[Clip], judge: Judge, threads: int, flush: float, memo: Memo | None, say: Say
    ) -> None:
        self.plan, self.judge, self.layout, self.threads, self.flush = plan, judge, Layout(plan), threads, flush
        self._clips, self._memo, self._say = clips, memo, say
        self._known: dict[Setting, Measured] = {} if memo is None else memo.measured
        cost = None if memo is None else memo.cost
        self.cost = cost or self._profile()
        if memo is not None and memo.cost is None:
            memo.cost = self.cost
            memo.save()

    def __call__(self, setting: Setting) -> Measured:
        if setting not in self._known:
            found = self.of(apply(self.plan, setting), self._clips)
            self._known[setting] = found
            if self._memo is not None:
                self._memo.put(setting, found)
        return self._known[setting]

    def of(self, plan: Plan, clips: list[Clip]) -> Measured:
        """A plan that differs in nothing but codecs, on any clips."""
        return measured(*self._run(plan, clips), self.layout, self.cost)

    def _run(self, plan: Plan, clips: list[Clip]) -> tuple[Answered, Counted]:
        return measure(plan, clips, self.judge, threads=self.threads, flush=self.flush)

    @property
    def count(self) -> int:
        """Settings measured so far."""
        return len(self._known)

    def save(self) -> None:
        """Write the state file now."""
        if self._memo is not None:
            self._memo.save()

    def _profile(self) -> CostModel:
        whole: Setting = (0,) * len(codecs(self.plan))
        runs = []
        for by in _PROFILED:
            self._say("timing operations", 0)
            runs.append(self._run(apply(self.plan, shifted(whole, by)), self._clips[:_PROFILE_CLIPS])[1])
        return CostModel.fit(Counted(*(np.concatenate(parts) for parts in zip(*runs, strict=True))))

    def within(self, max_state: int) -> Setting:
        """A setting whose codecs fit into a limit of state, see `codecs_to_drop`."""
        places = codecs(self.plan)
        whole: Setting = (0,) * len(places)
        extra: dict[int, float] = {}
        if self.plan.state_bytes > max_state:
            codecs_to_drop(self.plan, max_state, {})  # raises before anything is measured
            for place, number in enumerate(places):
                if freed_bytes(self.plan, self.plan.ops[number]):
                    self._say("state", self.count)
                    without: Setting = (*whole[:place], None, *whole[place + 1 :])
                    extra[number] = max(self(without).time_ns - self(whole).time_ns, 0.0)
        dropped = codecs_to_drop(self.plan, max_state, extra)
        return tuple(None if number in dropped else 0 for number in places)

    def pareto(self) -> list[dict[str, Any]]:
        """What no other setting beats in both time and drop, the quickest first."""
        kept: list[dict[str, Any]] = []
        least = math.inf
        for setting, found in sorted(self._known.items(), key=lambda item: (item[1].time_ns, item[1].drop)):
            if found.drop < least:
                least = found.drop
                kept.append(one(found) | {"exponents": list(setting)})
        return kept

    def layers(self, plan: Plan, setting: Setting) -> list[dict[str, Any]]:
        """Each codec of a plan made by a setting: multiple of its step, share of its elements sent on these clips."""
        counted = self._run(plan, self._clips)[1]
        events, times = counted.events.mean(axis=0), self.cost(counted)
        rows = []
        for number, k in zip(codecs(self.plan), setting, strict=True):
            op = self.plan.ops[number]
            rows.append(
                {
                    "name": op.name,
                    "kind": op.kind,
                    "codec": None if k is None or op.codec is None else op.codec["kind"],
                    "multiple": None if k is None else GRID**k,
                    "delta_density": float(events[number]) / math.prod(self.plan.values[op.output]),
                    "time_ms": float(times[number]) / 1e6,
                }
            )
        return rows


def one(found: Measured) -> dict[str, Any]:
    """The figures of a measurement, JSON-able."""
    return {
        "drop": or_none(found.drop),
        "time_ms": found.wall_ns / 1e6,
        "time_model_ms": found.time_ns / 1e6,
        "op_density": found.op_density,
        "event_density": found.event_density,
    }


def or_none(x: float) -> float | None:
    """None in the place of NaN."""
    return None if math.isnan(x) else x
