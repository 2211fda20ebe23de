"""Nodes of an exported graph: what they are given, which of them depend on the frame, and how new ones are made."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

__all__ = ["arguments", "bound", "call", "streams_of"]


def bound(node: fx.Node) -> dict[str, Any]:
    """Arguments of a node by the names of its operator's schema, defaults filled in."""
    assert isinstance(node.target, torch._ops.OpOverload)
    bound = {}
    for position, argument in enumerate(node.target._schema.arguments):
        if position < len(node.args):
            bound[argument.name] = node.args[position]
        else:
            bound[argument.name] = node.kwargs.get(argument.name, argument.default_value)
    return bound


def arguments(node: fx.Node, *names: str) -> list[Any]:
    """Some of them."""
    given = bound(node)
    return [given[name] for name in names]


def streams_of(program: ExportedProgram) -> set[fx.Node]:
    """The nodes that depend on the frame."""
    frames = {s.arg.name for s in program.graph_signature.input_specs if s.kind == InputKind.USER_INPUT}
    streams: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.name in frames or streams.intersection(node.all_input_nodes):
            streams.add(node)
    return streams


def call(graph: fx.Graph, like: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """A node that applies an operator, and is said to come from where another one does."""
    made = graph.call_function(target, args, kwargs)
    given = fx.node.map_arg((args, kwargs), lambda node: node.meta["val"])
    made.meta = {**like.meta, "val": target(*given[0], **given[1])}
    return made
