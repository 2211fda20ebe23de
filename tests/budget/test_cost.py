"""Lines through times, and densities counted by hand."""

import numpy as np
import pytest
from tiny_plan import tiny

from sparsetime.budget.cost import DENSE, FLUSH, SPARSE, CostModel, Counted, Layout
from sparsetime.engine import OpStats


def counted(work: list[int], time: list[float], way: list[int]) -> Counted:
    """One operation."""
    column = np.asarray(work)[:, None]
    return Counted(column, column, column, np.asarray(way)[:, None], np.asarray(time)[:, None])


def test_finds_a_line_for_each_way_in_spite_of_other_programs() -> None:
    work = list(range(0, 6000, 100))
    time = [500 + 2.0 * w for w in work]
    time[7] *= 900  # something else had the core
    time[40] *= 50
    fitted = CostModel.fit(counted(work + [6000] * 5, time + [9000.0] * 5, [SPARSE] * 60 + [DENSE] * 5))
    sparse = fitted(counted([1000], [0.0], [SPARSE]))
    np.testing.assert_allclose(sparse, [2500], rtol=0.02)
    np.testing.assert_allclose(fitted(counted([6000], [0.0], [DENSE])), [9000], rtol=1e-6)
    # The mean over frames of both paths.
    np.testing.assert_allclose(fitted(counted([1000, 6000], [0, 0], [SPARSE, DENSE])), [(2500 + 9000) / 2], rtol=0.02)
    np.testing.assert_array_equal(CostModel(fitted.lines.tolist()).lines, fitted.lines)


def test_a_way_that_did_not_occur_costs_as_another() -> None:
    fitted = CostModel.fit(counted([0, 10, 20], [5.0, 15.0, 25.0], [SPARSE] * 3))
    for way in (DENSE, FLUSH):
        np.testing.assert_allclose(fitted(counted([10], [0.0], [way])), [15.0])
    fitted = CostModel.fit(counted([0, 20, 50, 50], [5.0, 25.0, 30.0, 30.0], [SPARSE, SPARSE, DENSE, DENSE]))
    np.testing.assert_allclose(fitted(counted([50], [0.0], [FLUSH])), [30.0])


def test_a_flush_has_a_time_of_its_own() -> None:
    ways = [SPARSE, SPARSE, DENSE, DENSE, FLUSH, FLUSH]
    fitted = CostModel.fit(counted([0, 10, 90, 90, 90, 90], [5.0, 15.0, 70.0, 70.0, 40.0, 40.0], ways))
    np.testing.assert_allclose(fitted(counted([10, 90, 90], [0.0] * 3, [SPARSE, DENSE, FLUSH])), [(15 + 70 + 40) / 3])


def test_time_never_falls_with_work() -> None:
    fitted = CostModel.fit(counted([0, 10, 20, 30], [40.0, 30.0, 20.0, 10.0], [SPARSE] * 4))
    assert fitted(counted([1000], [0.0], [SPARSE])) == fitted(counted([0], [0.0], [SPARSE])) == [25.0]
    through_zero = CostModel.fit(counted([10, 20], [5.0, 25.0], [SPARSE] * 2))
    assert through_zero.lines[0, 0, 0] == 0
    assert through_zero.lines[0, 0, 1] > 0


def test_work_is_macs_or_events_in() -> None:
    stats = {"input": OpStats(7, 3, 0, 0, 11, "sparse"), "conv": OpStats(3, 2, 50, 40, 13, "dense")}
    found = Counted.of([stats, stats], [False, True])
    np.testing.assert_array_equal(found.work, [[7, 50]] * 2)
    np.testing.assert_array_equal(found.events, [[3, 2]] * 2)
    np.testing.assert_array_equal(found.way, [[SPARSE, DENSE], [FLUSH, FLUSH]])
    np.testing.assert_array_equal(found.time_ns, [[11, 13]] * 2)


def test_densities_of_the_tiny_plan() -> None:
    # 40 inputs; the convolution's dense multiply-accumulates are asked for by all 40, so 4 events ask for a tenth.
    plan = tiny()
    layout = Layout(plan)
    stats = {"input": OpStats(40, 4, 0, 0, 1, "sparse"), "conv": OpStats(4, 3, plan.dense_macs // 2, 9, 1, "sparse")}
    found = Counted.of([stats, stats], [False, False])
    assert layout.event_density(found) == pytest.approx(0.1)
    assert layout.op_density(found) == pytest.approx(0.5)
