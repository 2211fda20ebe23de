"""The network as it was before it was made sparse, and the distance of the sparse one from it.

Few labels say little about how a network may change. What the classifier saw before says much: the sparse network is
trained to show it the same,

    distance = sum (f - f0)^2 / sum f0^2        [hint of FitNets, arXiv 1412.6550, made unit-free]

f being the classifier's input in every frame, f0 the same without quantizers and with the weights of before.
"""

import copy

import torch
from torch import Tensor, nn

import sparsetime
from sparsetime.train.errors import TrainingError


class Tap:
    """Keeps the input of a module's last call.

    Args:
        model: the module is a part of it.
        prefix: of the module's name; where it holds others, the first of them.

    Raises:
        TrainingError: no module of that name.
    """

    def __init__(self, model: nn.Module, prefix: str) -> None:
        self.value: Tensor | None = None
        inside = [
            module
            for name, module in model.named_modules()
            if f"{name}.".startswith(f"{prefix}.") and not list(module.children())
        ]
        if not inside:
            raise TrainingError(f"distill: the network has no module {prefix!r}")
        inside[0].register_forward_pre_hook(self._keep)

    def _keep(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.value = args[0]

    def take(self) -> Tensor:
        """The input of the last call; forgets it."""
        value, self.value = self.value, None
        assert value is not None, "the network has not run"
        return value


class Teacher:
    """A copy of a network from before its quantizers are turned on.

    Args:
        model: what is trained, on clips.
        classifier: prefix of the name of its classifier.
    """

    def __init__(self, model: nn.Module, classifier: str) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        sparsetime.enable(self.model, False)
        self.student, self.own = Tap(model, classifier), Tap(self.model, classifier)

    def distance(self, clip: Tensor) -> Tensor:
        """Distance of the network's last pass, which was on `clip`, from what this one makes of it; a scalar."""
        f = self.student.take()
        with torch.no_grad():
            self.model(clip)
        f0 = self.own.take()
        return (f - f0).square().sum() / f0.square().sum()
