"""A stream that goes on from another one's state."""

import numpy as np
from numpy.typing import NDArray

from sparsetime.engine import OpStats, Plan
from sparsetime.engine.cpu import Native


def check_goes_on(plan: Plan, clip: list[NDArray[np.float32]], values: tuple[int, ...] = ()) -> list[list[OpStats]]:
    """After four frames of six another stream, which saw the last frame alone, takes over and does the same.

    Args:
        values: of the plan, that are the same right behind the restore.

    Returns:
        what every operation did in each of the last two frames.
    """
    native, other = Native(plan), Native(plan)
    for frame in clip[:4]:
        native.run(frame)
    other.run(clip[5])
    other.restore(native.state())
    for value in values:
        np.testing.assert_array_equal(other.value(value), native.value(value))
    found = []
    for frame in clip[4:]:
        for got, expected in zip(other.run(frame), native.run(frame), strict=True):
            np.testing.assert_array_equal(got, expected)
        assert [entry.events for entry in other.stats()] == [entry.events for entry in native.stats()]
        found.append(native.stats())
    return found
