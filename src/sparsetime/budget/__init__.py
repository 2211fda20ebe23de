"""An accuracy budget instead of thresholds: `tune` finds what each codec of a plan may leave unsent."""

from sparsetime.budget.errors import BudgetError
from sparsetime.budget.tuning import Tuned, tune

__all__ = ["BudgetError", "Tuned", "tune"]
