"""Sums in Einstein's notation as products of matrices, which plans know."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from sparsetime.convert.nodes import call

__all__ = ["products_of_sums"]

aten = torch.ops.aten


def products_of_sums(program: ExportedProgram) -> None:
    """Replace every `einsum` of an exported graph that is one product of matrices, in place.

    That is `b...ik, b...kj -> b...ij` with the letters in any order: one is summed over, one is of the first factor
    alone, one of the second alone, and all others stand for the same in both.
    """
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is not aten.einsum.default or len(node.args[1]) != 2:
            continue
        found = _matrices(str(node.args[0]))
        if found is None:
            continue
        *orders, back = found
        with graph.inserting_before(node):
            factors = [_ordered(graph, node, x, order) for x, order in zip(node.args[1], orders, strict=True)]
            made = call(graph, node, aten.matmul.default, *factors)
            node.replace_all_uses_with(_ordered(graph, node, made, back))
    graph.eliminate_dead_code()


def _matrices(equation: str) -> tuple[list[int], list[int], list[int]] | None:
    """How the axes of both factors are ordered for a product of matrices, and then its own."""
    terms, _, result = equation.replace(" ", "").partition("->")
    first, _, second = terms.partition(",")
    if not (first + second + result).isalpha() or any(len(set(x)) < len(x) for x in (first, second, result)):
        return None
    shared = [x for x in first if x in second]
    batch, summed = [x for x in shared if x in result], [x for x in shared if x not in result]
    rows, columns = [x for x in first if x not in second], [x for x in second if x not in first]
    if len(summed) != 1 or len(rows) != 1 or len(columns) != 1 or set(result) != {*batch, *rows, *columns}:
        return None
    product = [*batch, *rows, *columns]
    orders = [*batch, *rows, *summed], [*batch, *summed, *columns], list(result)
    return tuple([of.index(x) for x in order] for of, order in zip((first, second, product), orders, strict=True))  # type: ignore[return-value]


def _ordered(graph: fx.Graph, like: fx.Node, x: Any, order: list[int]) -> fx.Node:
    return x if order == sorted(order) else call(graph, like, aten.permute.default, x, order)
