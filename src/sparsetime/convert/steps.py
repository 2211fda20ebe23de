"""Steps and thresholds for a plain network, from a short unlabelled clip."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsetime.engine.plan import Plan
from sparsetime.engine.reference import Reference

__all__ = ["LEVELS", "ranges"]

LEVELS = {"exact": 64.0, "hold": 100.0, "residual": 64.0}
"""Into how many parts the range of a value is divided: steps for `exact` and `residual`, thresholds for `hold`."""

_SAMPLES = 65536


def ranges(plan: Plan, numbers: Iterable[int], frames: Iterable[NDArray[Any]], percentile: float) -> dict[int, float]:
    """The range of values: the percentile of |v| over the frames, by number of the value.

    Args:
        plan: the network without codecs.
        numbers: values to look at.
        frames: as `Reference.run` takes them, at least one.
        percentile: of the magnitudes, zeros included, in (0, 100].

    Raises:
        ValueError: no frame, or a percentile out of range.
    """
    if not 0 < percentile <= 100:
        raise ValueError(f"expected a percentile in (0, 100], got {percentile}")
    numbers = list(numbers)
    collected: dict[int, list[NDArray[Any]]] = {number: [] for number in numbers}
    reference = Reference(plan)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for frame in frames:
            reference.reset()
            reference.run(frame)
            for number in numbers:
                magnitude = np.abs(reference.value(number)).ravel()
                if magnitude.size > _SAMPLES:
                    magnitude = rng.choice(magnitude, _SAMPLES, replace=False)
                collected[number].append(magnitude)
    if any(not samples for samples in collected.values()):
        raise ValueError("steps are calibrated from frames, and there was none")
    return {number: float(np.percentile(np.concatenate(s), percentile)) for number, s in collected.items()}
