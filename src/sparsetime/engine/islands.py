"""Dense islands: single ATen operators that PyTorch computes on whole values.

A plan names the operator; nothing in it is code. Only operators of the `aten` namespace are taken, and of these only
such as change none of their arguments and take a tensor, so none that reads or writes files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsetime.engine.executor import NotFiniteError
from sparsetime.engine.ops import Op, PlanError

if TYPE_CHECKING:
    from sparsetime.engine.plan import Plan

__all__ = ["DTYPES", "Watch", "operator", "run_island"]

DTYPES = {"float32": torch.float32, "int64": torch.int64, "bool": torch.bool}


def operator(target: str) -> Callable[..., Any]:
    """The ATen operator that `target` (`aten.softmax.int`) names.

    Raises:
        PlanError: this PyTorch has no such operator, or it is not one that an island may use.
    """
    _, name, overload = target.split(".")
    packet = getattr(torch.ops.aten, name, None)
    found = getattr(packet, overload, None)
    if not isinstance(found, torch._ops.OpOverload):
        raise PlanError(f"island: PyTorch {torch.__version__} has no operator {target}")
    schema = found._schema
    takes_tensor = any("Tensor" in str(argument.type) for argument in schema.arguments)
    if schema.is_mutable or not takes_tensor:
        raise PlanError(f"island: {target} changes its arguments or takes no tensor, so a plan may not use it")
    return found


def run_island(
    op: Op, values: Callable[[int], Tensor], tensors: Mapping[str, Tensor], shapes: Sequence[tuple[int, ...]]
) -> list[Tensor]:
    """Compute one island: its outputs in order, of the types that the plan states.

    Args:
        op: an operation of kind `island`.
        values: gives the current value of a number.
        tensors: the plan's tensors.
        shapes: of the outputs, as the plan states them.

    Raises:
        PlanError: the operator cannot take what the plan gives it, or does not give what the plan states.
    """

    def build(x: Any) -> Any:
        if isinstance(x, list):
            return [build(item) for item in x]
        if isinstance(x, dict):
            ((key, entry),) = x.items()
            if key == "value":
                return values(entry)
            if key == "float":
                return float(entry)
            return tensors[entry] if key == "tensor" else DTYPES[entry]
        return x

    a = op.attributes
    call = operator(a["target"])
    try:
        result = call(*build(a["arguments"]), **{k: build(v) for k, v in a["keywords"].items()})
    except (RuntimeError, TypeError, IndexError, ValueError) as error:
        raise PlanError(f"island '{op.name}': {a['target']} cannot take what the plan gives it: {error}") from error
    outputs = list(result) if isinstance(result, tuple | list) else [result]
    if len(outputs) != len(op.outputs):
        raise PlanError(f"island '{op.name}': {a['target']} gave {len(outputs)} values, not {len(op.outputs)}")
    for output, stated, shape in zip(outputs, a["types"], shapes, strict=True):
        if not isinstance(output, Tensor) or output.dtype != DTYPES[stated] or tuple(output.shape) != shape:
            found = f"{tuple(output.shape)} {output.dtype}" if isinstance(output, Tensor) else type(output).__name__
            raise PlanError(f"island '{op.name}': {a['target']} gave {found}, the plan says {shape} {stated}")
    return [output.contiguous() for output in outputs]


class Watch:
    """Keeps NaN and infinity out of a stream's sums: they would never leave again.

    A kept sum may lie where the exact one cannot, by rounding, and an island may then give NaN (the root of -1e-9). The
    dense network knows whether that is rounding: such a frame is the first of a new stream, and so is the one behind it
    if the network's own answer is not finite either. What islands alone read may be infinite, as masks are; and
    int8 plans have no sums that round.

    Args:
        plan: of the stream.
    """

    def __init__(self, plan: Plan) -> None:
        made = {v for op in plan.islands for k, v in enumerate(op.outputs) if plan.value_type(op, k) == "float32"}
        sent = {v for op in plan.ops if op.kind != "island" for v in op.inputs} | set(plan.outputs)
        self._sent = made & sent if plan.precision == "float32" else set()
        self._infinite: set[int] = set()

    def check(self, op: Op, outputs: Sequence[Tensor], flush: bool) -> None:
        """What an island gave in this frame.

        Raises:
            NotFiniteError: changes from or to what is not finite, which no sum can take.
        """
        for value, output in zip(op.outputs, outputs, strict=True):
            if value not in self._sent:
                continue
            # A sum shows NaN and infinity in one pass; it may overflow, too.
            finite = math.isfinite(output.sum().item()) or bool(output.isfinite().all())
            if not flush and (not finite or value in self._infinite):
                raise NotFiniteError(op.name)
            (self._infinite.discard if finite else self._infinite.add)(value)

    def restored(self, values: Callable[[int], Tensor]) -> None:
        """The state is another one, whose values these are."""
        self._infinite = {value for value in self._sent if not values(value).isfinite().all()}
