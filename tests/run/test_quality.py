"""Distances to the dense network, worked out by hand."""

import dataclasses
import math

import numpy as np
import pytest
import torch

import sparsetime
from sparsetime.run.quality import Answer, Boxes, Distance, Reader, matches, task_of

from .conftest import small_network


def plan_with(shapes: list[tuple[int, ...]], name: str = "net", size: tuple[int, int] = (32, 32)):
    """A plan whose input and outputs have these shapes; only that is looked at."""

    @dataclasses.dataclass
    class Shapes:
        name: str
        values: list[tuple[int, ...]]
        outputs: list[int]
        input_shape: tuple[int, ...]

    return Shapes(name, shapes, list(range(len(shapes))), (1, 3, *size))


@pytest.mark.parametrize(
    ("shapes", "task"),
    [
        ([(1, 10)], ("classification", 0)),
        ([(1, 10, 1, 1)], ("other", 0)),  # a map of one pixel: too coarse to be one of classes
        ([(1, 1)], ("other", 0)),
        ([(1, 21, 32, 32)], ("segmentation", 0)),
        ([(1, 21, 8, 8)], ("segmentation", 0)),
        ([(1, 21, 4, 4)], ("other", 0)),
        ([(1, 1, 32, 32)], ("other", 0)),
        ([(1, 64, 4, 4), (1, 5)], ("classification", 1)),
        ([(1, 7, 12)], ("other", 0)),
    ],
)
def test_the_kind_of_output_by_its_shape(shapes, task) -> None:
    assert task_of(plan_with(shapes)) == task


def test_fastestdet_is_known_by_its_name() -> None:
    assert task_of(plan_with([(1, 85, 2, 2)], "fastestdet")) == ("detection", 0)
    assert task_of(plan_with([(1, 85, 2, 2)])) == ("other", 0)


def test_classification() -> None:
    reader = Reader(sparsetime.compile(small_network(3), torch.zeros(1, 3, 8, 8), steps=1.0))
    assert reader.task == "classification"
    distance = Distance(reader.task)
    log = np.log(np.asarray([[[0.7, 0.2, 0.1]], [[0.2, 0.7, 0.1]]], np.float32))
    distance.add(reader([log[0]]), reader([log[0] + 5]))  # softmax does not see the shift
    distance.add(reader([log[0]]), reader([log[1]]))
    found = distance.summary()
    assert found["frames"] == 2
    assert found["argmax_agreement"] == 0.5
    assert found["total_variation"] == pytest.approx((0 + 0.5) / 2, abs=1e-6)
    squares = 3 * 25 + 2 * math.log(3.5) ** 2, float(((log[0] + 5) ** 2).sum() + (log[1] ** 2).sum())
    assert found["relative_error"] == pytest.approx(math.sqrt(squares[0] / squares[1]), rel=1e-5)


def test_probabilities_are_not_softened_again() -> None:
    reader = Reader(sparsetime.compile(small_network(3), torch.zeros(1, 3, 8, 8), steps=1.0))
    p = np.asarray([[0.7, 0.2, 0.1]], np.float32)
    np.testing.assert_allclose(reader([p]).meaning, p[0])


def test_segmentation() -> None:
    distance = Distance("segmentation")
    dense = np.asarray([[0, 1, 1], [2, 2, 0]])
    other = np.asarray([[0, 1, 2], [2, 0, 1]])  # two right, one of another class, one lost, one too many
    distance.add(Answer([], other), Answer([], dense))
    assert distance.summary()["foreground_iou"] == 2 / 5
    distance.add(Answer([], dense), Answer([], dense))
    assert distance.summary()["foreground_iou"] == 6 / 9
    assert distance.summary()["relative_error"] is None


def test_only_background_is_no_agreement() -> None:
    distance = Distance("segmentation")
    distance.add(Answer([], np.zeros((2, 2))), Answer([], np.zeros((2, 2))))
    assert distance.summary()["foreground_iou"] is None


def boxes(*entries: tuple[float, float, float, float, int]) -> Boxes:
    array = np.asarray(entries, np.float64).reshape(-1, 5)
    return Boxes(array[:, :4], array[:, 4].astype(int))


SQUARE = (0.0, 0.0, 0.4, 0.4)


@pytest.mark.parametrize(
    ("given", "expected", "count"),
    [
        (boxes((*SQUARE, 1)), boxes((*SQUARE, 1)), 1),
        (boxes((*SQUARE, 1)), boxes((*SQUARE, 2)), 0),  # another class
        (boxes((0, 0, 0.4, 0.2, 1)), boxes((*SQUARE, 1)), 1),  # IoU 0.5
        (boxes((0, 0, 0.4, 0.19, 1)), boxes((*SQUARE, 1)), 0),
        (boxes((*SQUARE, 1), (*SQUARE, 1)), boxes((*SQUARE, 1)), 1),  # each is used once
        (boxes((*SQUARE, 1)), boxes(), 0),
        (boxes(), boxes((*SQUARE, 1)), 0),
        # The second best place is taken when the best is gone.
        (boxes((*SQUARE, 1), (0, 0, 0.4, 0.38, 1)), boxes((*SQUARE, 1), (0, 0, 0.4, 0.3, 1)), 2),
    ],
)
def test_boxes_that_belong_together(given: Boxes, expected: Boxes, count: int) -> None:
    assert matches(given, expected) == count


def test_detection() -> None:
    distance = Distance("detection")
    far = (0.5, 0.5, 0.9, 0.9, 1)
    distance.add(Answer([], boxes((*SQUARE, 1), far)), Answer([], boxes((*SQUARE, 1))))
    distance.add(Answer([], boxes()), Answer([], boxes(far, (*SQUARE, 2))))
    found = distance.summary()
    assert (found["boxes_found"], found["boxes_false"]) == (1 / 3, 1 / 2)
    assert (found["boxes"], found["boxes_dense"]) == (2, 3)


def test_boxes_are_decoded() -> None:
    output = np.full((1, 6, 2, 2), -9.0, np.float32)
    output[0, 0, 1, 0] = 9  # an object in the lower left cell
    output[0, 1:5, 1, 0] = 0  # in its corner, half as wide and high as the frame
    found = Reader(plan_with([(1, 6, 2, 2)], "fastestdet"))([output]).meaning
    np.testing.assert_allclose(found.corners, [[-0.25, 0.25, 0.25, 0.75]], atol=1e-6)
    assert found.labels.tolist() == [0]


def test_several_outputs_count_together() -> None:
    distance = Distance("other")
    y, d = [np.ones(2), np.zeros(3)], [np.ones(2), np.full(3, 2.0)]
    distance.add(Answer(y, None), Answer(d, None))
    assert distance.summary() == {"frames": 1, "relative_error": math.sqrt(12 / 14)}


def test_no_number_is_none() -> None:
    distance = Distance("other")
    distance.add(Answer([np.asarray([np.nan])], None), Answer([np.ones(1)], None))
    assert distance.summary()["relative_error"] is None
    assert Distance("other").summary() == {"frames": 0, "relative_error": None}
