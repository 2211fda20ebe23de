"""Decoding of boxes against values worked out by hand."""

import math

import pytest
import torch

from sparsetime.networks import box_iou, decode_boxes


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def raw(h: int = 4, w: int = 5, classes: int = 3) -> torch.Tensor:
    """A raw output in which no cell is sure of anything."""
    output = torch.zeros(1, 5 + classes, h, w, dtype=torch.float64)
    output[:, 0] = -20
    return output


def put(output: torch.Tensor, i: int, j: int, objectness: float, size: tuple[float, float], label: int) -> None:
    width, height = size
    output[0, :5, i, j] = torch.tensor([logit(objectness), 0, 0, logit(width), logit(height)])
    output[0, 5 + label, i, j] = 50  # softmax 1


def test_box_iou_by_hand() -> None:
    a = torch.tensor([[0.0, 0, 2, 2], [0, 0, 0, 0]])
    b = torch.tensor([[1.0, 1, 3, 3], [0, 0, 2, 1], [2, 0, 4, 2], [5, 5, 4, 4]])
    assert box_iou(a, b).tolist() == [[pytest.approx(1 / 7), 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]


def test_decode_one_box_by_hand() -> None:
    output = raw()
    put(output, 2, 3, objectness=0.8, size=(0.25, 0.5), label=1)
    output[0, 1:3, 2, 3] = torch.tensor([math.atanh(0.5), math.atanh(-0.5)])
    output[0, 5:, 2, 3] = torch.tensor([0.0, math.log(2), 0.0])  # softmax 1/4, 1/2, 1/4
    (boxes,) = decode_boxes(output, threshold=0.1)
    # centre ((3 + 0.5) / 5, (2 - 0.5) / 4) = (0.7, 0.375)
    torch.testing.assert_close(boxes.corners, torch.tensor([[0.575, 0.125, 0.825, 0.625]], dtype=torch.float64))
    assert boxes.score.tolist() == [pytest.approx(0.8**0.6 * 0.5**0.4)]
    assert boxes.label.tolist() == [1]


def test_the_surer_of_two_overlapping_boxes_of_a_class_remains() -> None:
    output = raw()
    put(output, 1, 1, objectness=0.7, size=(0.9, 0.9), label=0)
    put(output, 1, 2, objectness=0.9, size=(0.9, 0.9), label=0)
    put(output, 2, 1, objectness=0.8, size=(0.9, 0.9), label=2)
    put(output, 3, 4, objectness=0.6, size=(0.05, 0.05), label=0)
    (boxes,) = decode_boxes(output)
    assert boxes.label.tolist() == [0, 2, 0]
    assert boxes.score.tolist() == [pytest.approx(p**0.6) for p in (0.9, 0.8, 0.6)]
    (everything,) = decode_boxes(output, overlap=1.0)
    assert len(everything.score) == 4


def test_a_suppressed_box_suppresses_nothing() -> None:
    output = raw(1, 10)
    for j, objectness in ((0, 0.9), (2, 0.8), (4, 0.7)):
        put(output, 0, j, objectness, size=(0.5, 0.5), label=0)
    # Neighbours overlap by 3/7, the outer two by 1/9.
    (boxes,) = decode_boxes(output, overlap=0.4)
    assert boxes.score.tolist() == [pytest.approx(p**0.6) for p in (0.9, 0.7)]


def test_frames_are_decoded_apart_and_may_be_empty() -> None:
    output = torch.cat([raw(), raw()])
    put(output[1:], 0, 0, objectness=0.9, size=(0.5, 0.5), label=0)
    empty, one = decode_boxes(output)
    assert empty.corners.shape == (0, 4)
    assert len(one.score) == 1


@pytest.mark.parametrize("shape", [(8, 4, 4), (1, 5, 4, 4)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="decode_boxes: expected"):
        decode_boxes(torch.zeros(shape))
