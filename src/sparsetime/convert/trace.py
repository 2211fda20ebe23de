"""From a module to graphs of torch.fx, one for evaluation and one for training.

Nodes know the module and the line that made them. What was made at one place has one *origin* in both graphs, while
names are counted through and differ as soon as one mode does more than the other.
"""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import fx, nn

__all__ = ["Origin", "SparsifyError", "by_origin", "follow_in_place", "is_users", "module_of", "trace", "writes_to"]

Origin = tuple[Any, ...]
"""Modules entered, kind of node, target, line, and how many of the same came before."""

_FOREIGN = (Path(torch.__file__).parent, Path(__file__).parent)


class SparsifyError(ValueError):
    """A network cannot be made sparse as asked; the message says what and where."""


@cache
def is_users(filename: str) -> bool:
    """True for a file that belongs neither to PyTorch nor to tracing."""
    return not any(Path(filename).is_relative_to(folder) for folder in _FOREIGN)


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # what is computed from buffers would otherwise be computed once, while tracing

    def create_proxy(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        proxy = super().create_proxy(*args, **kwargs)
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and not is_users(frame.f_code.co_filename):
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
    training = {module: flag or not flags[model] for module, flag in flags.items()}
    try:
        graphs = {False: _trace_as(model, dict.fromkeys(flags, False)), True: _trace_as(model, training)}
        # What is frozen looks alike in both: would it, were it not frozen?
        thawed = graphs[True] if all(training.values()) else _trace_as(model, dict.fromkeys(flags, True))
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if is_users(f.filename)]
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
        graphs[True] = graphs[False]
    evaluated, trained = (Counter(_part(node) for node in graph.nodes) for graph in (graphs[False], thawed))
    names = {path[-1].partition("@")[0] if path else "" for path, *_ in (evaluated - trained) + (trained - evaluated)}
    return graphs, {name: training[model.get_submodule(name)] for name in sorted(names)}


def _trace_as(model: nn.Module, flags: dict[nn.Module, bool]) -> fx.Graph:
    """Trace with every module in the mode given."""
    for module, flag in flags.items():
        module.training = flag
    graph = _Tracer().trace(model)
    fx.GraphModule(model, graph)  # nodes find their modules through it
    return graph


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
    """The node into whose value this one writes, if it works in place (`x += y` is traced as `x = x + y`)."""
    target = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(target, fx.Node):
        return None
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    named = node.op in ("call_method", "call_function") and name.endswith("_") and not name.endswith("__")
    asked = bool(getattr(module_of(node), "inplace", False) or node.kwargs.get("inplace", False))
    return target if named or asked else None


def follow_in_place(graph: fx.Graph) -> None:
    """Edit a graph: whoever reads a tensor after somebody wrote into it reads the writer. It is the same memory, and
    now the graph says so.
    """
    written: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        for source in node.all_input_nodes:
            last = source
            while last in written:
                last = written[last]
            if last is not source:
                node.replace_input_with(source, last)
        target = writes_to(node)
        if target is not None:
            written[target] = node
