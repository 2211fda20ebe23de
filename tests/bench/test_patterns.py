"""Controlled changes: the stated share, in the stated form."""

import numpy as np
import pytest

from sparsetime.bench.patterns import Pattern, change, there_and_back

SHAPE = (1, 5, 20, 30)


@pytest.mark.parametrize("pattern", ["clustered", "pixels", "elements"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.25, 1.0])
def test_share(pattern: Pattern, share: float) -> None:
    d = change(SHAPE, pattern, share, np.random.default_rng(0))
    assert d.dtype == np.float32
    assert d.shape == SHAPE
    found = (d != 0).mean()
    # A square has whole rows and columns.
    assert found == pytest.approx(share, abs=0.25 * share if pattern == "clustered" else 1 / 600)
    assert (np.abs(d[d != 0]) >= 0.5).all()
    assert (np.abs(d) <= 1).all()


def test_forms() -> None:
    rng = np.random.default_rng(0)
    for pattern in ("clustered", "pixels"):
        active = (change(SHAPE, pattern, 0.1, rng) != 0)[0]
        assert (active == active[:1]).all(), "whole pixels"
        rows, columns = np.flatnonzero(active[0].any(1)), np.flatnonzero(active[0].any(0))
        area = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        assert (area == active[0].sum()) == (pattern == "clustered")
    elements = (change(SHAPE, "elements", 0.1, rng) != 0)[0]
    assert (elements != elements[:1]).any()


@pytest.mark.parametrize("pattern", ["clustered", "pixels", "elements"])
def test_there_and_back(pattern: Pattern) -> None:
    frames = there_and_back(SHAPE, pattern, 0.05, changes=3)
    assert len(frames) == 6
    places = []
    for k, frame in enumerate(frames):
        moved = frame != frames[k - 1]
        assert moved.mean() == pytest.approx(0.05, abs=0.01)
        places.append(moved)
        if k % 2 == 0:
            np.testing.assert_array_equal(frame, frames[0])
    assert (places[1] != places[3]).any(), "elsewhere every time"
    again = there_and_back(SHAPE, pattern, 0.05, changes=3)
    np.testing.assert_array_equal(np.stack(frames), np.stack(again))
