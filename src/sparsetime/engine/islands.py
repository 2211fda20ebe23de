"""Dense islands: single ATen operators that PyTorch computes on whole values.

A plan names the operator; nothing in it is code. Only operators of the `aten` namespace are taken, and of these only
such as change none of their arguments and take a tensor, so none that reads or writes files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sparsetime.engine.plan import Op, PlanError

__all__ = ["DTYPES", "operator", "run_island"]

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


def run_island(op: Op, values: Callable[[int], Tensor], tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Compute one island: its outputs in order, of the types that the plan states.

    Args:
        op: an operation of kind `island`.
        values: gives the current value of a number.
        tensors: the plan's tensors.

    Raises:
        PlanError: the operator does not give what the plan states.
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
    result = operator(a["target"])(*build(a["arguments"]), **{k: build(v) for k, v in a["keywords"].items()})
    outputs = list(result) if isinstance(result, tuple | list) else [result]
    outputs = outputs[: len(op.outputs)]
    for output, stated in zip(outputs, a["types"], strict=True):
        if not isinstance(output, Tensor) or output.dtype != DTYPES[stated]:
            raise PlanError(f"island '{op.name}': {a['target']} gave {type(output).__name__}, the plan says {stated}")
    return [output.contiguous() for output in outputs]
