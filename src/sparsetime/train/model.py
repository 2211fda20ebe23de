"""From a recipe to a model, and from frames to logits."""

import math
from typing import Literal, cast

import torch
from torch import Tensor, nn

import sparsetime
from sparsetime.networks import Network, NetworkSpec
from sparsetime.train.recipe import Recipe


class ClipClassifier(nn.Module):
    """A network on clips of camera frames: normalise, run, give the logits of every frame.

    Args:
        model: a sparsified network, which takes clips, or a plain one, which takes frames.
        spec: what the network expects.
        per_frame: the model is a plain one.
    """

    def __init__(self, model: nn.Module, spec: NetworkSpec, *, per_frame: bool) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        self.per_frame = per_frame

    def forward(self, clip: Tensor) -> Tensor:
        """Map RGB clips (N, T, 3, H, W), values 0..255, to logits (N, T, K)."""
        n, t = clip.shape[:2]
        x = self.spec.normalise(clip.flatten(0, 1)).contiguous(memory_format=torch.channels_last)
        logits = self.model(x).unflatten(0, (n, t)) if self.per_frame else self.model(x.unflatten(0, (n, t)))
        return cast(Tensor, logits)


def log_mean_softmax(logits: Tensor) -> Tensor:
    """Logarithm of the mean over time of the class probabilities.

    log p(k) = log( 1/T sum_t softmax(z(t))_k )        [arXiv 2107.07305: CE(mean_t softmax(z(t)), y)]

    Args:
        logits: z, (N, T, K).

    Returns:
        (N, K).
    """
    return logits.log_softmax(-1).logsumexp(1) - math.log(logits.shape[1])


def make_sparse(network: Network, recipe: Recipe) -> nn.Module:
    """Insert the layers of the recipe's method; the network itself for ``dense``."""
    if recipe.method == "dense":
        return network
    layer: Literal["delta", "spatial_l1"] = recipe.method
    assert recipe.codec is not None, "resolve(recipe) puts it in"
    model = sparsetime.sparsify(
        network,
        torch.zeros(1, 3, *network.spec.input_size),
        layer=layer,
        include=recipe.include,
        exclude=recipe.exclude,
        rule=recipe.rule,
        granularity=recipe.granularity,
        codec=recipe.codec,
        copy_model=False,
    )
    if recipe.freeze_input_step:
        for name, part in sparsetime.delta_layers(model).items():
            if isinstance(part, sparsetime.DeltaActivation) and name.startswith("input"):
                part.step.requires_grad_(False)
    return model
