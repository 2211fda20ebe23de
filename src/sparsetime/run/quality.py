"""How far a stream's answers are from those of the dense network on the same frame, without labels.

By kind of output, over F frames, y the answer and d the dense one:

    anything         relative_error = sqrt( sum |y - d|^2 / sum |d|^2 )
    classification   argmax_agreement = share of frames with argmax y = argmax d
                     total_variation = mean over frames of 1/2 sum_k |softmax(y)_k - softmax(d)_k|
    segmentation     foreground_iou = pixels where both have the same foreground class / pixels where either has one
    detection        boxes_found = share of d's boxes that y has: same class, IoU of at least 0.5, each used once
                     boxes_false = share of y's boxes that d does not have

Sums run over all frames and are divided once. None stands where the denominator is zero.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sparsetime.engine.plan import Plan

__all__ = ["Answer", "Distance", "Reader", "Task", "task_of"]

Array = NDArray[Any]
Task = Literal["classification", "segmentation", "detection", "other"]

IOU = 0.5
_DETECTORS = frozenset({"fastestdet"})  # by the name of the plan; their boxes are decoded by sparsetime.networks
_COARSEST = 4  # pixels of the input to one of a class map


def task_of(plan: Plan) -> tuple[Task, int]:
    """What a plan's outputs mean, and the number of the output that says it.

    FastestDet is known by its name, all else by shape: a vector (1, K) is class scores; a map (1, K, h, w) of at least
    a quarter of the input's height and width is a score of each class for each pixel, class 0 being the background;
    K is at least 2. The first output that fits counts.
    """
    height, width = plan.input_shape[2:] if len(plan.input_shape) == 4 else (0, 0)
    for number, value in enumerate(plan.outputs):
        shape = plan.values[value]
        if plan.name in _DETECTORS and len(shape) == 4 and shape[1] >= 6:
            return "detection", number
        if len(shape) == 2 and shape[1] >= 2:
            return "classification", number
        if len(shape) == 4 and shape[1] >= 2 and shape[2] * _COARSEST >= height and shape[3] * _COARSEST >= width:
            if shape[2:] == (1, 1) and (height, width) != (1, 1):
                return "classification", number
            return "segmentation", number
    return "other", 0


class Boxes(NamedTuple):
    """corners (K, 4) as shares of the frame, labels (K,); the surest first."""

    corners: Array
    labels: Array


class Answer(NamedTuple):
    """What a network says about one frame.

    outputs: as it gave them.
    meaning: probabilities (K,), classes of pixels (h, w), `Boxes`, or None.
    """

    outputs: list[Array]
    meaning: Any


class Reader:
    """Reads answers out of outputs.

    Args:
        plan: whose outputs they are.
    """

    def __init__(self, plan: Plan) -> None:
        self.task, self._number = task_of(plan)

    def __call__(self, outputs: list[Array]) -> Answer:
        """The answer in a plan's outputs, given in the order of `plan.outputs`."""
        output = outputs[self._number]
        match self.task:
            case "classification":
                return Answer(outputs, _probabilities(output.reshape(-1)))
            case "segmentation":
                return Answer(outputs, output[0].argmax(axis=0))
            case "detection":
                return Answer(outputs, _boxes(output))
            case _:
                return Answer(outputs, None)


def _probabilities(scores: Array) -> Array:
    """Softmax of scores; probabilities stay what they are."""
    p = scores.astype(np.float64)
    if (p >= 0).all() and abs(p.sum() - 1) < 1e-4:
        return p
    p = np.exp(p - p.max())
    return np.asarray(p / p.sum())


def _boxes(output: Array) -> Boxes:
    import torch

    from sparsetime.networks import decode_boxes

    found = decode_boxes(torch.from_numpy(np.ascontiguousarray(output)))[0]
    return Boxes(found.corners.numpy(), found.label.numpy())


def _ratio(part: float, whole: float) -> float | None:
    """part / whole, or None where that is no number."""
    ratio = part / whole if whole else math.nan
    return ratio if math.isfinite(ratio) else None


class _Sums(Protocol):
    def add(self, y: Any, d: Any) -> None:
        """Count one frame."""

    def summary(self) -> dict[str, float | int | None]:
        """The figures of all frames."""


class _Classes:
    def __init__(self) -> None:
        self.frames, self.agreed, self.variation = 0, 0, 0.0

    def add(self, y: Array, d: Array) -> None:
        self.frames += 1
        self.agreed += int(y.argmax() == d.argmax())
        self.variation += 0.5 * float(np.abs(y - d).sum())

    def summary(self) -> dict[str, float | int | None]:
        return {
            "argmax_agreement": _ratio(self.agreed, self.frames),
            "total_variation": _ratio(self.variation, self.frames),
        }


class _Pixels:
    def __init__(self) -> None:
        self.both, self.either = 0, 0

    def add(self, y: Array, d: Array) -> None:
        self.both += int(((y == d) & (d != 0)).sum())
        self.either += int(((y != 0) | (d != 0)).sum())

    def summary(self) -> dict[str, float | int | None]:
        return {"foreground_iou": _ratio(self.both, self.either)}


class _Found:
    def __init__(self) -> None:
        self.dense, self.given, self.matched = 0, 0, 0

    def add(self, y: Boxes, d: Boxes) -> None:
        self.dense += len(d.labels)
        self.given += len(y.labels)
        self.matched += matches(y, d)

    def summary(self) -> dict[str, float | int | None]:
        return {
            "boxes_found": _ratio(self.matched, self.dense),
            "boxes_false": _ratio(self.given - self.matched, self.given),
            "boxes": self.given,
            "boxes_dense": self.dense,
        }


def matches(y: Boxes, d: Boxes) -> int:
    """How many boxes of y and d belong together: same class, IoU of at least `IOU`, the surest of y choosing first."""
    free = np.ones(len(d.labels), bool)
    count = 0
    for corners, label in zip(y.corners, y.labels, strict=True):
        overlap = np.where(free & (d.labels == label), _iou(corners, d.corners), 0.0)
        if overlap.size and overlap.max() >= IOU:
            free[overlap.argmax()] = False
            count += 1
    return count


def _iou(box: Array, others: Array) -> Array:
    """Intersection over union of one box (4,) with others (K, 4): (K,)."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = sides.clip(min=0).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).clip(min=0).prod(axis=1) + (box[2:] - box[:2]).clip(min=0).prod()
    return np.asarray(shared / np.maximum(areas - shared, np.finfo(np.float64).tiny))


_SUMS: dict[Task, type[_Classes] | type[_Pixels] | type[_Found]] = {
    "classification": _Classes,
    "segmentation": _Pixels,
    "detection": _Found,
}


class Distance:
    """Sums over frames of the distances in this file's heading; `summary` divides."""

    def __init__(self, task: Task) -> None:
        self.frames = 0
        self._error, self._size = 0.0, 0.0
        self._sums: _Sums | None = _SUMS[task]() if task in _SUMS else None

    def add(self, answer: Answer, dense: Answer) -> None:
        """Count one frame."""
        self.frames += 1
        for y, d in zip(answer.outputs, dense.outputs, strict=True):
            self._error += float(np.square(y.astype(np.float64) - d).sum())
            self._size += float(np.square(d, dtype=np.float64).sum())
        if self._sums is not None:
            self._sums.add(answer.meaning, dense.meaning)

    def summary(self) -> dict[str, float | int | None]:
        """The figures, and how many frames they are of."""
        squared = _ratio(self._error, self._size)
        figures: dict[str, float | int | None] = {"frames": self.frames}
        figures |= {} if self._sums is None else self._sums.summary()
        figures["relative_error"] = None if squared is None else math.sqrt(squared)
        return figures
