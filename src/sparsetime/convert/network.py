"""A network with delta layers in it, that still is the network it was made from."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

__all__ = ["SparseNetwork", "unsparsify"]

PREFIX = "delta"


class SparseNetwork(nn.Module):
    """What `sparsify` returns: the original's children, parameters and buffers under their own names, and `delta`.

    Takes clips (N, T, ...) and gives (N, T, ...): the network runs frame by frame, all frames of a clip at once, and
    only the delta layers see the time. Frames (N, ...) are taken as clips of one frame each. Inputs may be given by
    name; further ones are clips, or frames, as the first is.

    torch.export does not take it, since delta layers look at the values of their steps: `sparsetime.compile` makes a
    plan of it, and `unsparsify` gives a module that torch.export takes.

    Attributes:
        delta: the delta layers by name.
        left_dense: linear operations whose input is not encoded, with the reason.
        encoded: linear operations whose input is encoded, by the names that a meter gives them.
        frame_dims: dimensions of a frame with its batch, 4 for (N, C, H, W).
        graphs: the traced graphs by mode, {True: training, False: evaluation}; one object where both are the same.
        original: the module it was made from. It shares everything but the delta layers; not a child.
    """

    def __init__(
        self,
        original: nn.Module,
        graphs: dict[bool, torch.fx.GraphModule],
        layers: dict[str, nn.Module],
        left_dense: dict[str, str],
        encoded: frozenset[str],
        modes: dict[str, bool],
        frame_dims: int,
    ) -> None:
        super().__init__()
        own = (PREFIX, "original", "left_dense", "encoded", "graphs", "frame_dims")
        taken = [name for name in own if hasattr(original, name)]
        if taken:
            raise ValueError(
                f"sparsify: {type(original).__name__} has attributes named {', '.join(taken)}, which a SparseNetwork "
                "needs for itself; rename them"
            )
        self.__dict__["original"] = original
        self._modules.update(original._modules)
        self._parameters.update(original._parameters)
        self._buffers.update(original._buffers)
        self._non_persistent_buffers_set |= original._non_persistent_buffers_set
        self.delta = nn.ModuleDict(layers)
        self.left_dense = left_dense
        self.encoded = encoded
        self._modes = modes
        self.frame_dims = frame_dims
        self.graphs = {mode: graph_module.graph for mode, graph_module in graphs.items()}
        self._input_names = [str(n.target) for n in self.graphs[False].nodes if n.op == "placeholder"][1:]
        self._run: dict[bool, Callable[..., Any]] = {mode: type(g).forward for mode, g in graphs.items()}
        self.register_load_state_dict_pre_hook(_accept_original_checkpoint)
        # Not train(): parts of the original may be frozen in evaluation mode.
        self.training = original.training
        self.delta.train(original.training)

    def __getstate__(self) -> dict[str, Any]:
        """All but generated code, which has no name that pickle could find it by."""
        state = {key: value for key, value in self.__dict__.items() if key != "_run"}
        return state | {"graphs": _retargeted(self.graphs, _named)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.graphs = _retargeted(self.graphs, _found)
        run = {graph: type(torch.fx.GraphModule(self, graph)).forward for graph in self.graphs.values()}
        self._run = {mode: run[graph] for mode, graph in self.graphs.items()}

    def __getattr__(self, name: str) -> Any:
        # What else the original has: its own attributes, tensors made while tracing.
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "original" in self.__dict__ and hasattr(self.__dict__["original"], name):
                return getattr(self.__dict__["original"], name)
            raise

    def first_input(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """The clip, or frames, among what the network is called with; None where it is not there."""
        return inputs[0] if inputs else named.get(self._input_names[0])

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Run a clip (N, T, ...) or frames (N, ...).

        Raises:
            ValueError: another number of dimensions, an empty clip, values that are not finite, another input that is
                no clip where the first one is, or a part of the network that is in another mode than it was traced for.
            TypeError: no clip.
        """
        x = self.first_input(inputs, named)
        if not isinstance(x, Tensor):
            raise TypeError(
                f"SparseNetwork: expected a clip as first input or as {self._input_names[0]!r}, got {type(x).__name__}"
            )
        if x.dim() not in (self.frame_dims, self.frame_dims + 1):
            raise ValueError(
                f"SparseNetwork: expected a clip of {self.frame_dims + 1} dimensions (N, T, ...) or frames of "
                f"{self.frame_dims} (N, ...), got shape {tuple(x.shape)}"
            )
        if x.numel() == 0:
            raise ValueError(f"SparseNetwork: the clip is empty, shape {tuple(x.shape)}")
        has_values = x.device.type == "cpu" and not torch.compiler.is_exporting()
        if x.is_floating_point() and has_values and not torch.isfinite(x).all():
            bad = (~torch.isfinite(x)).flatten(1).any(1).nonzero().flatten().tolist()
            raise ValueError(f"SparseNetwork: the input holds NaN or infinite values (in elements {bad} of the batch)")
        for name, training in self._modes.items():
            if self.get_submodule(name).training != (training and self.training):
                raise ValueError(
                    f"SparseNetwork: {name!r} was frozen or thawed after sparsify, which its traced code cannot "
                    "follow. Set its mode before sparsify, and again after each model.train()."
                )
        run = self._run[self.training]
        if x.dim() == self.frame_dims:
            return run(self, 1, *inputs, **named)
        n, t = x.shape[:2]

        def frames(name: str, value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if value.shape[:2] != (n, t):
                raise ValueError(
                    f"SparseNetwork: expected a clip ({n}, {t}, ...) as {name!r}, like the first input, got shape "
                    f"{tuple(value.shape)}; what is the same in all frames: value.expand({n}, {t}, ...)"
                )
            return value.flatten(0, 1)

        names = self._input_names + self._input_names[-1:] * len(inputs)  # the last one may be *args
        output = run(self, t, *map(frames, names, inputs), **{key: frames(key, value) for key, value in named.items()})
        return pytree.tree_map_only(Tensor, lambda o: o.unflatten(0, (n, t)) if o.shape[:1] == (n * t,) else o, output)

    def extra_repr(self) -> str:
        return f"{len(self.delta)} delta layers, {len(self.left_dense)} linear operations left dense"


@dataclass(frozen=True)
class _Name:
    """Stands for a function that is another one's local, as F.max_pool2d is in PyTorch, while a graph is pickled."""

    module: str
    name: str

    def __call__(self) -> None:  # torch.fx wants targets that can be called
        raise NotImplementedError


def _named(target: Any) -> Any:
    local = "<locals>" in getattr(target, "__qualname__", "")
    return _Name(target.__module__, target.__name__) if local else target


def _found(target: Any) -> Any:
    return getattr(importlib.import_module(target.module), target.name) if isinstance(target, _Name) else target


def _retargeted(graphs: dict[bool, torch.fx.Graph], change: Callable[[Any], Any]) -> dict[bool, torch.fx.Graph]:
    """Copies of graphs, with other functions; one graph for both modes stays one."""
    made = {}
    for graph in set(graphs.values()):
        copied = copy.deepcopy(graph)
        for node in copied.nodes:
            if node.op == "call_function":
                node.target = change(node.target)
        made[graph] = copy.deepcopy(copied)  # a graph looks nodes up by the targets that they were made with
    return {mode: made[graph] for mode, graph in graphs.items()}


def _accept_original_checkpoint(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """A checkpoint of the original network has no delta layers: they keep their steps. Part missing is an error."""
    prefix = f"{prefix}{PREFIX}."
    if not any(key.startswith(prefix) for key in state_dict):
        state_dict.update(module.get_submodule(PREFIX).state_dict(prefix=prefix))


def unsparsify(model: nn.Module) -> nn.Module:
    """The original module back, with children and weights as they are now; it shares them with `model`.

    Raises:
        TypeError: the model does not come from `sparsify`.
    """
    if not isinstance(model, SparseNetwork):
        raise TypeError(f"unsparsify: expected what sparsetime.sparsify returned, got {type(model).__name__}")
    original: nn.Module = model.__dict__["original"]
    # What the root holds is held twice: a new head, or a buffer moved to another device, is in `model` alone.
    for kind in ("_modules", "_parameters", "_buffers"):
        getattr(original, kind).clear()
        getattr(original, kind).update(getattr(model, kind))
    del original._modules[PREFIX]
    original.training = model.training
    return original
