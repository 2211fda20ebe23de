"""What can go wrong in a training run, as one family of exceptions."""


class TrainingError(RuntimeError):
    """A run cannot start, go on or be read; the message says which and what mends it."""


class RecipeError(TrainingError, ValueError):
    """A recipe with an unknown key, a missing one or a value that makes no sense."""


class RunError(TrainingError):
    """A run directory that is absent, unfinished, damaged or another one's."""


class CheckpointError(TrainingError, OSError):
    """A checkpoint could not be written or read."""
