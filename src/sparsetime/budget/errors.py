"""What tuning raises."""

__all__ = ["BudgetError"]


class BudgetError(ValueError):
    """A budget cannot be met, or the videos cannot say whether it is; the message says what mends it."""
