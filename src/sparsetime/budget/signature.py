"""What of a network's outputs its answer hangs on, as a vector: smooth, and of moderate size.

    classification   the probabilities
    segmentation     the probabilities of pixels
    detection        how surely each cell has a box, and where: p and p (x / w, y / h, log w, log h), the units of an
                     IoU, p = sigmoid((score - 1/2) / 0.1) soft where `sparsetime.networks.decode_boxes` cuts
    anything else    the outputs

Of large maps the same places, chosen once at random.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparsetime.engine.plan import Plan
from sparsetime.run.quality import task_of

__all__ = ["Signature"]

_PIXELS = 4096
_ELEMENTS = 65536


class Signature:
    """Maps outputs, in the order of `plan.outputs`, to a vector; PyTorch can differentiate it.

    Args:
        plan: whose outputs they are.
    """

    def __init__(self, plan: Plan) -> None:
        self.task, self._number = task_of(plan)
        shapes = [plan.values[value] for value in plan.outputs]
        draw = torch.Generator().manual_seed(0)
        if self.task == "segmentation":
            sizes, most = [math.prod(shapes[self._number][2:])], _PIXELS
        else:
            sizes, most = [math.prod(shape) for shape in shapes], _ELEMENTS
        self._places = [torch.randperm(size, generator=draw)[:most] for size in sizes]

    def __call__(self, outputs: list[Tensor]) -> Tensor:
        """The signature, float32 (S,)."""
        output = outputs[self._number]
        match self.task:
            case "classification":
                scores = output.flatten()
                sums = abs(float(scores.detach().sum()) - 1) < 1e-4 and float(scores.detach().min()) >= 0
                return scores if sums else scores.softmax(0)
            case "segmentation":
                return output[0].flatten(1)[:, self._places[0]].softmax(0).flatten()
            case "detection":
                return _boxes(output[0])
            case _:
                return torch.cat([y.flatten()[at] for y, at in zip(outputs, self._places, strict=True)])


def _boxes(output: Tensor) -> Tensor:
    """Of FastestDet's raw output (5 + num_classes, h, w)."""
    height, width = output.shape[1:]
    o, a, b, c, d = output[:5]
    score = o.sigmoid() ** 0.6 * output[5:].softmax(0).amax(0) ** 0.4
    w, h = c.sigmoid(), d.sigmoid()
    sure = ((score - 0.5) / 0.1).sigmoid()
    place = torch.stack([a.tanh() / (width * w), b.tanh() / (height * h), w.log(), h.log()])
    return torch.cat([sure[None], sure * place]).flatten()
