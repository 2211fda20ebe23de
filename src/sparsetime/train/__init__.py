"""Training: recipes, the loop on Lightning Fabric, run directories, evaluation.

Needs the extra ``sparsetime[train]``.
"""

from sparsetime.train.errors import CheckpointError, RecipeError, RunError, TrainingError
from sparsetime.train.evaluate import evaluate
from sparsetime.train.fit import Machine, train
from sparsetime.train.recipe import Phase, Recipe, from_dict, resolve, schedule, to_dict
from sparsetime.train.recipe import read as read_recipe
from sparsetime.train.run import load_run

__all__ = [
    "CheckpointError",
    "Machine",
    "Phase",
    "Recipe",
    "RecipeError",
    "RunError",
    "TrainingError",
    "evaluate",
    "from_dict",
    "load_run",
    "read_recipe",
    "resolve",
    "schedule",
    "to_dict",
    "train",
]
