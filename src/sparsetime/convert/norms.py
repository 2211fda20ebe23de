"""Layer norms that a network writes out, as one operation each.

    (x - mean) / sqrt(mean((x - mean)^2) + eps)

over one axis, in the spellings that PyTorch code has: a division or a product with rsqrt or a power, the square as a
power or a product, or the variance as `var` without correction.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import fx
from torch.export import ExportedProgram

from sparsetime.convert.draft import Draft
from sparsetime.convert.nodes import arguments, call
from sparsetime.engine.check import LEAST_STEP
from sparsetime.engine.shapes import channel_axis

__all__ = ["affine_into_norms", "join_norms"]

aten = torch.ops.aten


def affine_into_norms(draft: Draft) -> None:
    """Give layer norms the scales and shifts behind them: s' = s scale, t' = t scale + shift."""
    for op in list(draft.ops):
        norm = draft.producer(op.inputs[0]) if op.kind == "affine" else op
        if norm.kind != "layer_norm" or draft.only_consumer(norm.output) is not op:
            continue
        shape = draft.shapes[op.output]
        entries = {role: op.tensors.get(role) for role in ("scale", "shift")}
        fit = all(x is None or x.shape in ((1,), (shape[channel_axis(shape)],)) for x in entries.values())
        if not fit:
            continue
        ones = np.ones(shape[channel_axis(shape)])
        scale, shift = (d if (x := entries[role]) is None else x * ones for role, d in (("scale", ones), ("shift", 0)))
        norm.tensors = {
            "scale": (norm.tensors.get("scale", ones) * scale).astype(np.float32),
            "shift": (norm.tensors.get("shift", 0 * ones) * scale + shift).astype(np.float32),
        }
        draft.bypass(op, norm.output)


class _Over(NamedTuple):
    """A statistic of x over an axis that is kept."""

    x: fx.Node
    axis: int


def join_norms(program: ExportedProgram) -> None:
    """Replace every layer norm of an exported graph that is written out, in place."""
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        found = _norm(node)
        if found is None:
            continue
        (x, axis), eps = found
        with graph.inserting_before(node):
            last = call(graph, node, aten.movedim.int, x, axis, -1)
            made = call(graph, node, aten.layer_norm.default, last, [last.meta["val"].shape[-1]], None, None, eps)
            node.replace_all_uses_with(call(graph, node, aten.movedim.int, made, -1, axis))
    graph.eliminate_dead_code()


def _norm(node: fx.Node) -> tuple[_Over, float] | None:
    """What a node normalises, and eps."""
    if node.target not in (aten.div.Tensor, aten.mul.Tensor):
        return None
    for difference, factor in (node.args, node.args[::-1]):
        root = _root(factor)
        if root is None or root[2] != (node.target is aten.mul.Tensor):
            continue
        variance, eps, _ = root
        over = _variance(variance)
        if over is not None and over == _centred(difference) and eps >= LEAST_STEP:
            return over, eps
        if node.target is aten.div.Tensor:
            break
    return None


def _root(node: Any) -> tuple[Any, float, bool] | None:
    """Of (v + eps)^(1/2) or its inverse: v, eps, and whether it is the inverse."""
    if not isinstance(node, fx.Node):
        return None
    powers: dict[Any, Any] = {aten.sqrt.default: 0.5, aten.rsqrt.default: -0.5}
    power = node.args[1] if node.target is aten.pow.Tensor_Scalar else powers.get(node.target)
    total = node.args[0] if power in (0.5, -0.5) else None
    if not isinstance(total, fx.Node) or total.target is not aten.add.Tensor:
        return None
    variance, eps = total.args
    if not isinstance(eps, int | float) or total.kwargs:
        return None
    return variance, float(eps), bool(power == -0.5)


def _variance(node: Any) -> _Over | None:
    if not isinstance(node, fx.Node):
        return None
    if node.target in (aten.var.correction, aten.var.dim):
        dims, unbiased, keep = arguments(
            node, "dim", "unbiased" if node.target is aten.var.dim else "correction", "keepdim"
        )
        return _over(node.args[0], dims) if keep and unbiased is not None and unbiased == 0 else None
    over = _mean(node)
    if over is None:
        return None
    square = over.x
    squared = (square.target is aten.pow.Tensor_Scalar and square.args[1] == 2) or square.target is aten.square.default
    if not squared and not (square.target is aten.mul.Tensor and square.args[0] is square.args[1]):
        return None
    centred = _centred(square.args[0])
    return centred if centred is not None and centred.axis == over.axis else None


def _centred(node: Any) -> _Over | None:
    """x - mean."""
    if not isinstance(node, fx.Node) or node.target is not aten.sub.Tensor or node.kwargs or len(node.args) != 2:
        return None
    over = _mean(node.args[1])
    return over if over is not None and over.x is node.args[0] else None


def _mean(node: Any) -> _Over | None:
    if not isinstance(node, fx.Node) or node.target is not aten.mean.dim:
        return None
    dims, keep, dtype = arguments(node, "dim", "keepdim", "dtype")
    return _over(node.args[0], dims) if keep and dtype is None else None


def _over(x: Any, dims: Any) -> _Over | None:
    if not isinstance(x, fx.Node) or x.meta["val"].dtype != torch.float32 or not dims or len(dims) != 1:
        return None
    return _Over(x, dims[0] % x.meta["val"].dim())
