"""What another format cannot say."""

from sparsetime.engine.plan import Plan

__all__ = ["ExportError", "need_float32"]


class ExportError(ValueError):
    """A network holds something that the other format cannot say; names the operation and what would help."""


def need_float32(plan: Plan, form: str) -> None:
    """Refuse plans of other precisions.

    Raises:
        ExportError: the plan is one.
    """
    if plan.precision != "float32":
        raise ExportError(
            f"plan '{plan.name}' is of precision {plan.precision}, and the export to {form} writes float32 alone: "
            "compile the network without --precision"
        )
