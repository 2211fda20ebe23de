"""Search for the setting that takes the least time within a budget.

Every setting that is accepted was measured on the tuning clips and lies within the budget there; models only say
which to measure next.

1. From each start one shift for all: the coarsest that passes, by bisection. The quickest goes on.
2. Sensitivity: with all codecs an octave finer, each alone three octaves coarser. It saves g of time and adds c of
   error. (A smaller change of one layer in many is lost in how the errors of the others happen to fall.) Where time
   falls as threshold^-a and errors add up as squares of the thresholds, the multiples m of the thresholds that take the
   least time for a given error follow from Lagrange's condition:

       min sum_l g_l m_l^-a   with   sum_l c_l m_l^2 = const     =>     log m_l = (log(g_l / c_l) + const) / (2 + a)

   const is found by bisection on the measured drop. Again from there, as long as it helps.
3. Single steps of half an octave, greedily by saving for the error it costs, each kept only if it passes and takes less
   time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from sparsetime.budget.errors import BudgetError
from sparsetime.budget.measure import Measured
from sparsetime.budget.setting import OCTAVE, POWER, Setting

__all__ = ["COARSEST", "FINEST", "Found", "coarsest", "passes", "search", "shifted"]

Measure = Callable[[Setting], Measured]

FINEST, COARSEST = -8 * OCTAVE, 8 * OCTAVE
_PROBE = 3 * OCTAVE
_FARTHEST = 3 * OCTAVE  # in one round
_ROUNDS = 3
_ENOUGH = 0.01  # share of the time that a round must save to be followed by another


class Found(NamedTuple):
    """shifts: from each start the coarsest that passes, or None. best: the least time found."""

    shifts: list[Setting | None]
    best: Setting


def shifted(setting: Setting, by: int) -> Setting:
    """All codecs coarser by `by` grid steps."""
    return tuple(None if k is None else min(max(k + by, FINEST), COARSEST) for k in setting)


def coarsest(measure: Measure, setting: Setting, limit: float, low: int, high: int) -> Setting | None:
    """The coarsest of the shifts in [low, high] that passes, if drops rise with the shift. What is returned passes.

    Bisection: where drops do not rise all the way, a coarser one may pass too.
    """
    if not passes(measure(shifted(setting, low)), limit):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        if passes(measure(shifted(setting, middle)), limit):
            low = middle
        else:
            high = middle - 1
    return shifted(setting, low)


def search(measure: Measure, starts: list[Setting], limit: float, say: Callable[[str], None] = lambda _: None) -> Found:
    """Search from one setting or several.

    Args:
        measure: the drop and the time of a setting on the tuning clips; the same answer to the same question.
        starts: where to begin; None entries stay as they are.
        limit: what no drop may exceed.
        say: told what is being done.

    Raises:
        BudgetError: even the finest steps drop more.
    """
    say("one threshold for all")
    shifts = [
        coarsest(measure, start, limit, -2 * OCTAVE, 4 * OCTAVE) or coarsest(measure, start, limit, FINEST, -2 * OCTAVE)
        for start in starts
    ]
    passing = [setting for setting in shifts if setting is not None]
    if not passing:
        finest = measure(shifted(starts[0], FINEST))
        raise BudgetError(
            f"the budget cannot be met: with all thresholds at 1/{2 ** (-FINEST // OCTAVE)} of the plan's the drop is "
            f"still {finest.drop:.2%}, {limit:.2%} is asked for; give a larger --max-drop"
        )
    best = min(passing, key=lambda setting: measure(setting).time_ns)
    for number in range(_ROUNDS):
        gains = _sensitivities(measure, best, f"round {number + 1}, sensitivity", say)
        say(f"round {number + 1}, step")
        moved = _round(measure, best, gains, limit)
        if moved is None:
            break
        saved = 1 - measure(moved).time_ns / measure(best).time_ns
        best = moved
        if saved < _ENOUGH:
            break
    return Found(shifts, _greedy(measure, best, limit, gains, say))


def passes(measured: Measured, limit: float) -> bool:
    """Whether the worst clip is within the limit; a drop that is not known is not."""
    return measured.drop <= limit


class _Gain(NamedTuple):
    """What a codec saves of the time (ns), and adds to the error, when it is `_PROBE` coarser."""

    time: float
    error: float


def _sensitivities(measure: Measure, setting: Setting, stage: str, say: Callable[[str], None]) -> dict[int, _Gain]:
    finer = shifted(setting, -OCTAVE)
    base = measure(finer)
    gains = {}
    places = [place for place, k in enumerate(finer) if k is not None and k <= COARSEST - _PROBE]
    for number, place in enumerate(places, 1):
        say(f"{stage} {number}/{len(places)}")
        coarser = measure(_with(finer, place, _PROBE))
        gains[place] = _Gain(base.time_ns - coarser.time_ns, coarser.error - base.error)
    return gains


def _round(measure: Measure, setting: Setting, gains: dict[int, _Gain], limit: float) -> Setting | None:
    """The setting of Lagrange's condition, shifted as far as the budget lets it; half the way if it takes more time."""
    moves = _moves(gains)
    time = measure(setting).time_ns
    for share in (1.0, 0.5):
        target = tuple(
            None if k is None else min(max(k + round(share * moves.get(place, 0.0)), FINEST), COARSEST)
            for place, k in enumerate(setting)
        )
        found = coarsest(measure, target, limit, -2 * OCTAVE, 2 * OCTAVE)
        if found is not None and measure(found).time_ns < time:
            return found
    return None


def _moves(gains: dict[int, _Gain]) -> dict[int, float]:
    """Grid steps that each threshold should move, around a mean of 0."""
    # A threshold whose effect is within the noise of others is taken as a hundredth of the typical one.
    times = sorted(gain.time for gain in gains.values() if gain.time > 0)
    errors = sorted(gain.error for gain in gains.values() if gain.error > 0)
    if not times or not errors:
        return {}
    least_time, least_error = times[len(times) // 2] / 100, errors[len(errors) // 2] / 100
    wishes = {
        place: OCTAVE * math.log2(max(gain.time, least_time) / max(gain.error, least_error)) / (2 + POWER)
        for place, gain in gains.items()
    }
    middle = sorted(wishes.values())[len(wishes) // 2]
    return {place: min(max(wish - middle, -_FARTHEST), _FARTHEST) for place, wish in wishes.items()}


def _greedy(
    measure: Measure, setting: Setting, limit: float, gains: dict[int, _Gain], say: Callable[[str], None]
) -> Setting:
    """Half an octave coarser, one codec after the other, the cheapest for what it saves first."""
    order = sorted(gains, key=lambda place: gains[place].time / max(gains[place].error, 1e-12), reverse=True)
    for number, place in enumerate(order, 1):
        say(f"single steps {number}/{len(order)}")
        if gains[place].time <= 0:
            continue
        coarser = _with(setting, place, OCTAVE // 2)
        measured = measure(coarser)
        if passes(measured, limit) and measured.time_ns < measure(setting).time_ns:
            setting = coarser
    return setting


def _with(setting: Setting, place: int, by: int) -> Setting:
    k = setting[place]
    assert k is not None
    return (*setting[:place], min(k + by, COARSEST), *setting[place + 1 :])
