"""How the outputs of a plan nest in what the module returned: lists, tuples and dictionaries, and leaves in them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from sparsetime.engine.ops import PlanError

__all__ = ["entry_of", "rebuilt"]

_DEEPEST = 16


def entry_of(x: Any) -> tuple[Any, Any]:
    """Key and entry of {key: entry}; None and None for anything else."""
    return next(iter(x.items())) if isinstance(x, dict) and len(x) == 1 else (None, None)


def rebuilt(structure: Any, leaf: Callable[[Any], Any], plain: bool = False, depth: int = 0) -> Any:
    """A structure as docs/plan.md writes it, with `leaf(x)` in the place of each leaf x.

    Args:
        structure: to walk; what is neither list, tuple nor dictionary is a leaf, whether it may be one or not.
        leaf: from a leaf, such as {"output": 0}, to what stands in its place.
        plain: whether {"tuple": ...} and {"dict": ...} become a tuple and a dictionary, or stay written so.

    Raises:
        PlanError: it is nested too deep.
    """
    if depth > _DEEPEST:
        raise PlanError(f"structure: nested more than {_DEEPEST} deep")
    again = partial(rebuilt, leaf=leaf, plain=plain, depth=depth + 1)
    key, entry = entry_of(structure)
    if isinstance(structure, list):
        return [again(item) for item in structure]
    if key == "tuple" and isinstance(entry, list):
        items = [again(item) for item in entry]
        return tuple(items) if plain else {key: items}
    if key == "dict" and isinstance(entry, dict):
        named = {name: again(item) for name, item in entry.items()}
        return named if plain else {key: named}
    return leaf(structure)
