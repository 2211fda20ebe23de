"""One figure for how much worse a stream is than the dense network on a clip, and one that adds up over layers.

    with labels          drop = accuracy of the dense network - accuracy of the stream, over all clips
    classification       drop = mean over frames of the total variation of the probabilities
    segmentation         drop = 1 - foreground IoU
    detection            drop = 1 - F1,  F1 = 2 matched / (boxes of the stream + boxes of the dense network)
    anything else        drop = relative error

The distances are those of `sparsetime.run.quality`; without labels the dense network itself drops by 0, and whatever
differs from it counts against the stream.

The *error* is what a search steers by: squared, smooth, and about the sum of what each layer contributes alone, where
F1 of a few boxes jumps:

    error = sum |s - s_dense|^2 / sum |s_dense|^2        s: see `sparsetime.budget.signature`

A setting is accepted by its drop alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsetime.budget.signature import Signature
from sparsetime.engine.plan import Plan
from sparsetime.run.quality import Answer, Reader, Task

__all__ = ["MEASURES", "Judge", "drop_of"]

Array = NDArray[Any]

MEASURES: dict[Task, str] = {
    "classification": "total variation of the probabilities",
    "segmentation": "1 - foreground IoU",
    "detection": "1 - F1 of the boxes",
    "other": "relative error",
}
"""What `drop` is without labels."""


def drop_of(task: Task, figures: Mapping[str, float | int | None]) -> float | None:
    """The drop in the figures of `sparsetime.run.quality.Distance`; None where there was nothing to compare."""
    match task:
        case "classification":
            return figures["total_variation"]
        case "segmentation":
            iou = figures["foreground_iou"]
            return None if iou is None else 1 - iou
        case "detection":
            given, dense, found = figures["boxes"], figures["boxes_dense"], figures["boxes_found"]
            assert given is not None
            assert dense is not None
            return 1 - 2 * (found or 0.0) * dense / (given + dense) if given + dense else None
        case _:
            return figures["relative_error"]


class Judge:
    """Answers, kept small, and their signatures.

    Args:
        plan: whose outputs they are read from.
    """

    def __init__(self, plan: Plan) -> None:
        self._reader = Reader(plan)
        self._signature = Signature(plan)

    @property
    def task(self) -> Task:
        """What the outputs mean."""
        return self._reader.task

    def __call__(self, outputs: list[Array]) -> tuple[Answer, Array]:
        """What the outputs say, and their signature. Where they have a meaning, the outputs themselves are let go."""
        answer = self._reader(outputs)
        signature = self._signature([torch.from_numpy(y) for y in outputs]).numpy()
        match self.task:
            case "other":
                return answer, signature
            case "segmentation" if int(answer.meaning.max(initial=0)) < 256:
                return Answer([], answer.meaning.astype(np.uint8)), signature
            case _:
                return Answer([], answer.meaning), signature
