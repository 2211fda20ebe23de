"""What was measured so far, kept in a file: a search that is given again goes on from there."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from sparsetime.budget.cost import CostModel
from sparsetime.budget.errors import BudgetError
from sparsetime.budget.measure import Measured
from sparsetime.budget.setting import Setting
from sparsetime.files import write_json

__all__ = ["Memo"]

_FORMAT = "sparsetime.tune"
_VERSION = 2
_EVERY_S = 5.0


class Memo:
    """Measurements by setting, and the cost model they were made with. JSON.

    The search asks the same questions in the same order, so that this is all it takes to go on.

    Args:
        file: to read if it is there, and to write.
        identity: of plan, clips and what else the measurements depend on. Not of the budget: another one asks some of
            the same questions.

    Raises:
        BudgetError: the file belongs to another search, or is none of ours.
    """

    def __init__(self, file: Path, identity: dict[str, Any]) -> None:
        self._file, self._identity = file, identity
        self._written = time.monotonic()
        self.cost: CostModel | None = None
        self.measured: dict[Setting, Measured] = {}
        if file.exists():
            self._read()

    def _read(self) -> None:
        try:
            content = json.loads(self._file.read_text(encoding="utf-8"))
            if (content["format"], content["version"]) != (_FORMAT, _VERSION):
                raise KeyError("format")
            identity = dict(content["identity"])
            cost = None if content["cost"] is None else CostModel(content["cost"])
            measured = {tuple(key): Measured.from_json(entry) for key, entry in content["measured"]}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BudgetError(
                f"{self._file}: not the state of a search ({error!r}); remove it to start anew"
            ) from error
        odd = sorted(key for key in {*identity, *self._identity} if identity.get(key) != self._identity.get(key))
        if odd:
            raise BudgetError(
                f"{self._file} is the state of another search (other {', '.join(odd)}); remove it to start anew, or "
                "give another --out"
            )
        self.cost, self.measured = cost, measured

    def put(self, setting: Setting, measured: Measured) -> None:
        """Keep a measurement; the file follows every few seconds."""
        self.measured[setting] = measured
        if time.monotonic() - self._written > _EVERY_S:
            self.save()

    def save(self) -> None:
        """Write the file, whole or not at all."""
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "identity": self._identity,
            "cost": None if self.cost is None else self.cost.lines.tolist(),
            "measured": [[list(key), entry.to_json()] for key, entry in self.measured.items()],
        }
        write_json(self._file, content, indent=None)
        self._written = time.monotonic()
