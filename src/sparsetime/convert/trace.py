"""From a module to graphs of torch.fx, one for evaluation and one for training.

Nodes know the module and the line that made them. What was made at one place has one *origin* in both graphs, while
names are counted through and differ as soon as one mode does more than the other.
"""

from __future__ import annotations

import operator
import sys
import traceback
from collections import Counter
from collections.abc import Container
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import fx, nn

__all__ = ["OUT_OF_PLACE", "Origin", "SparsifyError", "by_origin", "follow_in_place", "module_of", "trace", "writes_to"]

Origin = tuple[Any, ...]
"""Modules entered, kind of node, target, line, and how many of the same came before."""

OUT_OF_PLACE: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
"""Python's operators in place, and what they do otherwise."""

_FOREIGN = (Path(torch.__file__).parent, Path(__file__).parent)


class SparsifyError(ValueError):
    """A network cannot be made sparse as asked; the message says what and where."""


@cache
def _is_users(filename: str) -> bool:
    """True for a file that belongs neither to PyTorch nor to tracing."""
    return not any(Path(filename).is_relative_to(folder) for folder in _FOREIGN)


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # what is computed from buffers would otherwise be computed once, while tracing

    def create_proxy(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        proxy = super().create_proxy(*args, **kwargs)
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and not _is_users(frame.f_code.co_filename):
            frame = frame.f_back
        proxy.node.meta["line"] = "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
        return proxy


def trace(model: nn.Module) -> tuple[dict[bool, fx.Graph], dict[str, bool]]:
    """Trace a module in both modes.

    Returns:
        the graphs, {True: training, False: evaluation}, one object where they do not differ; and by name the modules
        whose part differs, with their mode in the training graph: what is frozen while the model trains is traced so.

    Raises:
        SparsifyError: the module cannot be traced; the message names the line.
    """
    flags = {module: module.training for module in model.modules()}
    graphs = {}
    try:
        for mode in (False, True):
            for module, flag in flags.items():
                module.training = mode and (flag or not flags[model])
            graphs[mode] = _Tracer().trace(model)
            fx.GraphModule(model, graphs[mode])  # nodes find their modules through it
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_users(f.filename)]
        where = f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else "unknown line"
        raise SparsifyError(
            f"sparsify: {type(model).__name__} cannot be traced, at {where}\n  {error}\n"
            "Control flow that depends on values must leave the traced part: wrap that part in a module of its own and "
            "sparsify what lies before and after it, or put delta layers in by hand (sparsetime.nn.DeltaActivation)."
        ) from error
    finally:
        for module, flag in flags.items():
            module.training = flag
    code = {mode: graph.python_code("self").src for mode, graph in graphs.items()}
    if code[True] == code[False]:
        return dict.fromkeys((False, True), graphs[False]), {}
    parts = {mode: Counter(_part(node) for node in graph.nodes) for mode, graph in graphs.items()}
    different = (parts[True] - parts[False]) + (parts[False] - parts[True])
    names = {path[-1].partition("@")[0] if path else "" for path, *_ in different}
    return graphs, {name: flags[model.get_submodule(name)] or not flags[model] for name in sorted(names)}


def _part(node: fx.Node) -> tuple[Any, ...]:
    """A node without names: where it was made, what it does, and its constants."""
    path = tuple(node.meta.get("nn_module_stack", ()))
    constants = fx.map_arg((node.args, node.kwargs), lambda n: None)
    return path, node.op, str(node.target), node.meta.get("line", ""), str(constants)


def by_origin(graph: fx.Graph) -> dict[Origin, fx.Node]:
    """The nodes of a graph by their origin."""
    count: Counter[Origin] = Counter()
    nodes = {}
    for node in graph.nodes:
        origin = _part(node)[:4]
        nodes[*origin, count[origin]] = node
        count[origin] += 1
    return nodes


def module_of(node: fx.Node) -> nn.Module | None:
    """The module that a node calls, if it calls one."""
    root = node.graph.owning_module
    return root.get_submodule(str(node.target)) if node.op == "call_module" and root is not None else None


def writes_to(node: fx.Node) -> fx.Node | None:
    """The node into whose value this one writes, if it works in place."""
    target = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(target, fx.Node):
        return None
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    named = node.op in ("call_method", "call_function") and name.endswith("_") and not name.endswith("__")
    asked = bool(getattr(module_of(node), "inplace", False) or node.kwargs.get("inplace", False))
    return target if named or asked or node.target in OUT_OF_PLACE else None


def follow_in_place(graph: fx.Graph, tensors: Container[Origin]) -> None:
    """Whoever reads a tensor after somebody wrote into it reads the writer: the same memory, and now the graph says so.

    Args:
        graph: edited.
        tensors: origins of the nodes whose value is a tensor; `+=` on a number writes into nothing.
    """
    written: dict[fx.Node, fx.Node] = {}
    for origin, node in by_origin(graph).items():
        for source in node.all_input_nodes:
            last = source
            while last in written:
                last = written[last]
            if last is not source:
                node.replace_input_with(source, last)
        target = writes_to(node)
        if target is not None and origin in tensors:
            written[target] = node
