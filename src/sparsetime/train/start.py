"""The network at the start of a run: fresh, from a weight file, or from an earlier run."""

from pathlib import Path

import torch

from sparsetime import networks
from sparsetime.networks import Network
from sparsetime.train.errors import RunError
from sparsetime.train.recipe import Recipe
from sparsetime.train.run import read_config, read_weights


def build(recipe: Recipe, classes: tuple[str, ...]) -> tuple[Network, bool]:
    """The plain network at the start of a run.

    Returns:
        The network; and whether its weights already solve this task, that is, come from a run on the same classes.

    Raises:
        RunError: the weights are those of a run with another network.
        WeightsError: they do not fit.
    """
    torch.manual_seed(recipe.seed)
    source = None if recipe.weights is None else Path(recipe.weights)
    if source is None or not source.is_dir():
        network = networks.create(
            recipe.network, num_classes=len(classes), input_size=recipe.input_size, weights=source
        )
        return network, False
    return _from_run(recipe, classes, source)


def _from_run(recipe: Recipe, classes: tuple[str, ...], source: Path) -> tuple[Network, bool]:
    config = read_config(source)
    if config["network"] != recipe.network:
        raise RunError(f"weights: {source} holds a {config['network']}, expected the recipe's network {recipe.network}")
    size = recipe.input_size or tuple(config["spec"]["input_size"])
    network = networks.create(
        recipe.network, num_classes=len(classes), input_size=(size[0], size[1]), norm=config["spec"]["norm"]
    )
    state = read_weights(source)
    same = tuple(config["classes"]) == classes
    wanted = network.state_dict()
    for key in wanted:
        if key not in state:
            raise RunError(f"weights: {source} has no parameter {key!r}")
        if same or not key.startswith(network.classifier_name):
            wanted[key] = state[key]
    network.load_state_dict(wanted)
    return network, same
