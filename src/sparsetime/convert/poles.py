"""Which sums of an exported graph must be computed from values, since what reads them has a pole or an edge at zero.

A sum that is kept from frame to frame holds what rounding left in it: the mean of what was bright and is dark now may
be -1e-9, where no mean of numbers >= 0 can be. A convolution does not mind. A square root makes NaN of it, a third root
1e-3, a division anything. Sums of this kind are therefore islands, and so begin with the values of every frame.

From every argument in which an operator has a pole or an edge we walk back to the operations with weights. Everything
linear on the way is meant, except what adds to a sum of weights: that one is kept, whoever reads it.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import fx
from torch.export import ExportedProgram

from sparsetime.convert.nodes import streams_of

__all__ = ["read_at_poles"]

_POLES = {
    **dict.fromkeys(("sqrt", "rsqrt", "log", "log2", "log10", "log1p", "reciprocal", "pow", "float_power"), "self"),
    **dict.fromkeys(("acos", "asin", "acosh", "atanh", "logit", "lgamma", "digamma"), "self"),
    **dict.fromkeys(("div", "divide", "true_divide", "floor_divide", "fmod", "remainder", "xlogy"), "other"),
}
"""The argument in which an operator is undefined, or infinitely steep, somewhere."""

_LINEAR = frozenset(
    (
        *("add", "sub", "rsub", "neg", "mul", "div", "mean", "sum"),
        *("avg_pool2d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d"),
        *("upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_bilinear2d", "upsample_bicubic2d"),
    )
)
"""Sums without weights. Of products and quotients those with a constant."""

_PASSING = frozenset(("cat", "concat", "concatenate", "stack", "pad", "constant_pad_nd", "to", "_to_copy", "type_as"))
_WEIGHTED = frozenset(
    (
        *("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        *("linear", "addmm", "mm", "matmul"),
        *("batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm", "cudnn_batch_norm"),
    )
)


def read_at_poles(program: ExportedProgram, moves: Collection[str]) -> set[fx.Node]:
    """The nodes of linear operations without weights whose rounding a pole would magnify.

    Args:
        program: as `export` gives it.
        moves: names of the operators that put elements in other places.
    """
    streams = streams_of(program)
    weighed: set[fx.Node] = set()  # of these, bare sums of weights
    for node in program.graph.nodes:
        read = streams.intersection(node.all_input_nodes)
        name = _name(node)
        weighs = name in _WEIGHTED and len(read) < len(node.all_input_nodes)
        passes = _is_linear(name, read) or name in moves or name in _PASSING
        if weighs or (passes and read & weighed):
            weighed.add(node)
    left = [argument for node in streams for argument in _at_pole(node) if argument in streams]
    found: set[fx.Node] = set()
    seen: set[fx.Node] = set()
    while left:
        node = left.pop()
        if node in seen or node in weighed:
            continue
        seen.add(node)
        read = streams.intersection(node.all_input_nodes)
        if _is_linear(_name(node), read):
            found.add(node)
        left.extend(read)
    return found


def _name(node: fx.Node) -> str:
    target = node.target
    return target._schema.name.split("::")[1] if isinstance(target, torch._ops.OpOverload) else ""


def _is_linear(name: str, read: Collection[fx.Node]) -> bool:
    return name in _LINEAR and (name not in ("mul", "div") or len(read) == 1)


def _at_pole(node: fx.Node) -> list[fx.Node]:
    name = _name(node)
    if name not in _POLES:
        return []
    assert isinstance(node.target, torch._ops.OpOverload)
    if name in ("pow", "float_power") and isinstance(node.args[1], int | float):
        exponent = node.args[1]
        if exponent >= 0 and exponent == int(exponent):
            return []
    names = [argument.name for argument in node.target._schema.arguments]
    found = node.args[names.index(_POLES[name])] if _POLES[name] in names else None
    return [found] if isinstance(found, fx.Node) else []
