"""From a module to a functional ATen graph, with quantisers as one operator each."""

from __future__ import annotations

import io
import logging
import re
import sys
import traceback
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from sparsetime.convert.draft import CompileError
from sparsetime.convert.trace import is_users

__all__ = ["export", "remembers"]

_CONTAINERS = (dict, list, deque)


@torch.library.custom_op("sparsetime::codec", mutates_args=())
def _codec(x: Tensor, step: Tensor, kind: str, low: int, high: int) -> Tensor:
    """Mark in an exported graph: here a codec stands. low = high = 0 stands for codes without bounds."""
    return x.clone()


@_codec.register_fake
def _(x: Tensor, step: Tensor, kind: str, low: int, high: int) -> Tensor:
    return torch.empty_like(x)


@contextmanager
def _quiet() -> Iterator[None]:
    """What PyTorch says on stderr about what it cannot trace, at length, stays unsaid where an error says it."""
    loggers = [x for x in logging.root.manager.loggerDict.values() if isinstance(x, logging.Logger)]
    own = {handler for x in loggers if x.name.partition(".")[0] == "torch" for handler in x.handlers}
    handlers = [(handler, handler.level) for handler in own]
    for handler in own:
        handler.setLevel(logging.CRITICAL + 1)
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            yield
    finally:
        for handler, level in handlers:
            handler.setLevel(level)
    sys.stderr.write(said.getvalue())


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and layers that do not overwrite their input, for a while; afterwards all attributes are as they
    were, those too that the module assigns to itself."""
    before = {m: dict(vars(m)) for m in module.modules()}
    held = [(x, copy(x)) for kept in before.values() for x in kept.values() if isinstance(x, _CONTAINERS)]
    module.eval()
    overwriting: list[Any] = [m for m in before if getattr(m, "inplace", None) is True]
    for m in overwriting:
        m.inplace = False
    try:
        yield
    finally:
        for m, kept in before.items():
            vars(m).clear()
            vars(m).update(kept)
        for container, content in held:
            container.clear()
            (container.update if isinstance(container, dict) else container.extend)(content)


def remembers(module: nn.Module, inputs: tuple[object, ...]) -> bool:
    """Whether a module's answer depends on what came before: it is another one once another frame came between.

    Args:
        module: one that changes no buffers and draws no random numbers; it is left as it was.
        inputs: a frame, and constants.
    """

    def answer(*given: object) -> list[Tensor]:
        return [y.double() for y in pytree.tree_leaves(module(*given)) if isinstance(y, Tensor)]

    with _evaluating(module), torch.no_grad():
        first = answer(*inputs)
        answer(*(x.flip(-1) + 1 if isinstance(x, Tensor) else x for x in inputs))
        again = answer(*inputs)
    return not all(torch.allclose(y, z, 1e-4, 1e-6, equal_nan=True) for y, z in zip(first, again, strict=True))


def _overwrites(program: ExportedProgram) -> bool:
    """Whether an operation of the graph, or of a block in it, changes one of its arguments."""
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, fx.GraphModule)]
    targets = (node.target for graph in graphs for node in graph.nodes)
    return any(isinstance(t, torch._ops.OpOverload) and t._schema.is_mutable for t in targets)


def _inline(module: fx.GraphModule) -> None:
    """Put the content of blocks of `torch.no_grad()`, `torch.enable_grad()` and `torch.autocast()` in their places."""
    blocks = torch.ops.higher_order.wrap_with_set_grad_enabled, torch.ops.higher_order.wrap_with_autocast
    graph = module.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in blocks:
            continue
        at = next(k for k, x in enumerate(node.args) if isinstance(x, fx.Node) and x.op == "get_attr")
        device, dtype, enabled = ("", None, False) if node.target is blocks[0] else node.args[:3]
        if enabled and device == "cpu" and dtype not in (None, torch.float32):
            raise CompileError(
                f"a block of torch.autocast computes in {dtype} on the CPU, and a plan in float32: leave the block "
                "out, or compile(..., precision='int8') for smaller numbers"
            )
        inner = getattr(module, str(node.args[at].target))
        _inline(inner)
        places = [x for x in inner.graph.nodes if x.op == "placeholder"]
        with graph.inserting_before(node):
            made = graph.graph_copy(inner.graph, dict(zip(places, node.args[at + 1 :], strict=True)))
        for user in list(node.users):  # each takes one of the outputs
            user.replace_all_uses_with(made[user.args[1]])  # type: ignore[index]
            graph.erase_node(user)
        block = node.args[at]
        graph.erase_node(node)
        if not block.users:
            graph.erase_node(block)


def _where(error: Exception) -> str:
    """The innermost line that is the network's own, in words."""
    frames = [f"{f.filename}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__) if is_users(f.filename)]
    own = [f for f in frames if not f.startswith(("<", str(Path(traceback.__file__).parent))) or "-packages" in f]
    return f" at {own[-1]}" if own else ""


def _depends_on_data(error: Exception) -> bool:
    return "DataDependent" in type(error).__name__ or "data-dependent" in str(error)


def _hint(module: nn.Module, inputs: tuple[object, ...], error: Exception) -> str:
    """What mends it, where that is known."""
    if _depends_on_data(error):
        return "\nA network must not branch on the values of its input."
    frame = next(x for x in inputs if isinstance(x, Tensor))
    shape = ", ".join(map(str, frame.shape))
    if found := re.search(rf"expected input\[{shape}\] to have (\d+) channels", str(error)):
        wanted = int(found[1])
        hint = f"\nThis network takes {wanted} channel{'s' * (wanted != 1)}, the frame has {frame.shape[1]}"
        if frame.shape[1] != 3:
            return f"{hint}."
        example = ", as x.mean(1, keepdim=True) does" if wanted == 1 else ""
        return f"{hint}, and so have those of videos: let the module make {wanted} of 3 first{example}."
    if re.search(r"broadcast|must match the size|size mismatch|shapes cannot be multiplied", str(error)):
        return (
            "\nWas it made for frames of another size? Then compile it with one of that size, with --size HxW on the "
            "command line."
        )
    dtypes = {str(p.dtype).removeprefix("torch.") for p in module.parameters() if p.is_floating_point()} - {"float32"}
    if dtypes:
        return f"\nFrames are float32, this network's parameters {', '.join(sorted(dtypes))}: call model.float() first."
    return ""


def export(module: nn.Module, inputs: tuple[object, ...]) -> ExportedProgram:
    """Trace a module with `torch.export`; in-place operations become functional ones, everything else stays as it is.

    Args:
        module: any module; it is left as it was.
        inputs: an example frame, and constants.

    Raises:
        CompileError: torch.export cannot trace it; with what it says, where, and what mends it if that is known.
    """
    with _evaluating(module), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's own, about its own internals
        try:
            with _quiet():
                program: ExportedProgram = torch.export.export(module, inputs, strict=False)
                if _overwrites(program):  # traces everything again, which takes longer than all else here
                    program = program.run_decompositions({})
            _inline(program.graph_module)
        except CompileError:
            raise
        except Exception as error:
            # Of what depends on data PyTorch says at length how its own tools would look into it.
            said = str(error).strip().partition("\n")[0] if _depends_on_data(error) else error
            raise CompileError(
                f"{type(module).__name__} cannot be compiled, torch.export says{_where(error)}: {said}"
                f"{_hint(module, inputs, error)}"
            ) from error
    return program
