"""Attention that a network writes out, as one operation.

    softmax(scale (q k^T) + mask) v

over two products of matrices, in the spellings that PyTorch code has: factors before or behind the first product, a
constant added to it, a dropout that does nothing, and all of it transposed.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.export import ExportedProgram

from sparsetime.convert.nodes import arguments, call, streams_of

__all__ = ["join_attention"]

aten = torch.ops.aten

_PRODUCTS = (aten.matmul.default, aten.bmm.default)
_VIEWS = (aten.view.default, aten.reshape.default)
_NOTHING = (
    *(aten.dropout.default, aten.clone.default, aten.contiguous.default, aten.alias.default),
    *(aten.to.dtype, aten.to.dtype_layout, aten.type_as.default),
)
"""Operators that hand on what they read, if it stays float32 and nothing is drawn."""


def join_attention(program: ExportedProgram) -> None:
    """Replace every attention of an exported graph that is written out, in place."""
    graph = program.graph_module.graph
    streams = streams_of(program)
    for node in list(graph.nodes):
        if node.target not in _PRODUCTS or len(node.args) != 2:
            continue
        weights, values = _handed_on(node.args[0]), node.args[1]
        turned = not _is_softmax(weights)
        if turned:  # v p^T
            weights, values = _handed_on(_transposed(node.args[1])), node.args[0]
        scores = _scores(weights, streams) if _is_softmax(weights) else None
        if scores is None or not isinstance(values, fx.Node):
            continue
        q, k, scale, masks = scores
        shapes = [x.meta["val"].shape[:-2] for x in (q, k, values)]
        if len(shapes[0]) not in (1, 2) or shapes != shapes[:1] * 3:
            continue
        with graph.inserting_before(node):
            v = call(graph, node, aten.transpose.int, values, -2, -1) if turned else values
            keys = call(graph, node, aten.transpose.int, k, -2, -1)
            mask = None
            for part, spread, shape in masks:
                if spread != shape:
                    part = call(graph, node, aten.expand.default, part, spread)
                    part = call(graph, node, aten.reshape.default, part, shape)
                mask = part if mask is None else call(graph, node, aten.add.Tensor, mask, part)
            made = call(graph, node, aten.scaled_dot_product_attention.default, q, keys, v, mask, scale=scale)
            if turned:
                made = call(graph, node, aten.transpose.int, made, -2, -1)
        node.replace_all_uses_with(made)
        if node in streams:
            streams.add(made)
    graph.eliminate_dead_code()


def _handed_on(node: Any) -> Any:
    """What a node hands on, or itself."""
    while isinstance(node, fx.Node) and node.target in _NOTHING:
        draws = node.target is aten.dropout.default and all(arguments(node, "p", "train"))
        if draws or node.meta["val"].dtype != torch.float32 or node.args[0].meta["val"].dtype != torch.float32:  # type: ignore[union-attr]
            break
        node = node.args[0]
    return node


def _transposed(node: Any) -> Any:
    """What a node is the transposed one of, in its last two axes; or None."""
    if not isinstance(node, fx.Node):
        return None
    if node.target is aten.mT.default:
        return node.args[0]
    if node.target is not aten.transpose.int:
        return None
    rank = node.meta["val"].dim()
    axes = {k % rank for k in node.args[1:] if isinstance(k, int)}
    return node.args[0] if axes == {rank - 2, rank - 1} else None


def _is_softmax(node: Any) -> bool:
    """Whether a node is a softmax over the last axis."""
    if not isinstance(node, fx.Node) or node.target not in (aten.softmax.int, aten._softmax.default):
        return False
    (axis,) = arguments(node, "dim")
    return axis in (-1, node.meta["val"].dim() - 1) and node.meta["val"].dtype == torch.float32


class _Mask(NamedTuple):
    """A constant that is added to the scores: in which shape that is done, and which one they have before and after."""

    added: fx.Node
    spread: list[int]
    shape: list[int]


def _scores(softmax: fx.Node, streams: set[fx.Node]) -> tuple[fx.Node, fx.Node, float, list[_Mask]] | None:
    """What a softmax reads, as scale q k^T + masks: q, k^T, scale, masks."""
    node, scale = _handed_on(softmax.args[0]), 1.0
    masks: list[_Mask] = []
    while isinstance(node, fx.Node) and node.target not in _PRODUCTS:
        shape = list(node.meta["val"].shape)
        # The mask of shifted windows is added where these stand on an axis of their own.
        viewed = node.target in _VIEWS
        total = _handed_on(node.args[0]) if viewed else node
        if not isinstance(total, fx.Node) or len(total.args) != 2 or total.kwargs:
            return None
        x, y = total.args
        if total.target is aten.add.Tensor and scale == 1:
            summed, added = (x, y) if isinstance(x, fx.Node) and x in streams else (y, x)
            summed = _handed_on(summed)
            if viewed:
                if not isinstance(summed, fx.Node) or summed.target not in _VIEWS:
                    return None
                summed = summed.args[0]
            if not isinstance(added, fx.Node) or added in streams or not isinstance(summed, fx.Node):
                return None
            spread = list(total.meta["val"].shape)
            if added.meta["val"].dtype != torch.float32 or list(summed.meta["val"].shape) != shape:
                return None
            masks.append(_Mask(added, spread, shape))
            node = summed
        elif viewed:
            return None
        elif total.target in (aten.mul.Tensor, aten.div.Tensor) and isinstance(y, int | float) and y:
            scale, node = (scale * y if total.target is aten.mul.Tensor else scale / y), x
        else:
            return None
        node = _handed_on(node)
    if not isinstance(node, fx.Node) or not math.isfinite(scale):
        return None
    q, k = node.args
    return (q, k, scale, masks) if isinstance(q, fx.Node) and isinstance(k, fx.Node) else None
