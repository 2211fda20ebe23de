"""A sparse network as a stream of deltas: the meaning of delta inference, frame by frame, in plain PyTorch.

Every node of the graph holds a value V(t) and hands on its change D(t):

    flush (t = 1)      V(1) = f(V_in(1)),          D(1) = V(1)
    linear, no bias    V(t) = V(t-1) + L D_in(t),  D(t) = L D_in(t)      f(x) = L x + b; b entered at the flush
    delta layer        V(t) = last value sent,     D(t) = V(t) - V(t-1)
    anything else      V(t) = f(V_in(t)),          D(t) = V(t) - V(t-1)

Nothing is skipped and nothing is fast here. Sums are float64 whatever the model is, since those of a long stream would
drift in float32. Up to rounding, the output is what the network gives on frame t alone; a value on the edge between
two codes may fall to either side, and then differs by a step.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from sparsetime.codec import StateError
from sparsetime.convert.network import SparseNetwork
from sparsetime.nn import DeltaActivation, DeltaState, SpatialL1

__all__ = ["DeltaStream"]

_LINEAR_FUNCTIONS = {
    torch.flatten,
    torch.reshape,
    torch.permute,
    torch.transpose,
    torch.cat,
    torch.concat,
    torch.chunk,
    torch.split,
    torch.mean,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
    torch.adaptive_avg_pool1d,
    F.pixel_shuffle,
    operator.getitem,
}
_LINEAR_METHODS = {"view", "reshape", "flatten", "permute", "transpose", "contiguous", "chunk", "split", "mean"}
_LINEAR_MODULES = (
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.Flatten,
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    nn.ZeroPad2d,
    nn.PixelShuffle,
    SpatialL1,
)
_ADDITIONS = {torch.add, torch.sub, operator.add, operator.sub, operator.iadd, operator.isub}


class _Signal(NamedTuple):
    """What a node hands on: its value, and by how much it changed."""

    value: Any
    delta: Any


def _without_bias(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """L of f(x) = L x + b, or None if the module is not linear in evaluation."""
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return lambda d: module._conv_forward(d, module.weight, None)
    if isinstance(module, nn.Linear):
        return lambda d: F.linear(d, module.weight)
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and module.running_var is not None:
        gain = (module.running_var + module.eps).rsqrt() * (1.0 if module.weight is None else module.weight)
        return lambda d: d * gain.view(-1, *(1,) * (d.dim() - 2))
    if isinstance(module, _LINEAR_MODULES):
        return lambda d: module(d)
    return None


class DeltaStream:
    """One video through a sparse network, frame by frame; equations in this module's docstring.

        stream = DeltaStream(model)
        for frame in frames:          # (N, C, H, W)
            output = stream(frame)    # a network of several inputs takes a frame of each

    The stream works on a float64 copy of the model, which must be in evaluation mode.

    Args:
        model: what `sparsify` returned.

    Raises:
        TypeError: another model.
        ValueError: the model is in training mode.
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, SparseNetwork):
            raise TypeError(f"DeltaStream: expected what sparsetime.sparsify returned, got {type(model).__name__}")
        if model.training:
            raise ValueError("DeltaStream: the model is in training mode; call model.eval() first")
        self._model = copy.deepcopy(model).double()
        self._values: dict[str, Any] = {}
        self._layers: dict[str, DeltaState] = {}
        self._kind: list[tuple[tuple[int, ...], torch.dtype, torch.device]] | None = None
        # The first is the number of frames of a clip; those with arguments have defaults.
        inputs = [node for node in model.graphs[False].nodes if node.op == "placeholder"][1:]
        self._inputs = [str(node.target) for node in inputs]
        self._needed = sum(not node.args for node in inputs)

    def reset(self) -> None:
        """Forget the video: the next frame is a flush."""
        self._values, self._layers, self._kind = {}, {}, None

    def __call__(self, *frames: Tensor) -> Any:
        """The network's output for the next frame, (N, C, H, W) in, (N, ...) out; a frame for each of its inputs.

        Raises:
            TypeError: another number of inputs than the network has.
            StateError: another shape, dtype or device than the frames before; the stream stays as it was.
            ValueError: the frame holds NaN or infinite values.
        """
        if not self._needed <= len(frames) <= len(self._inputs):
            raise TypeError(
                f"DeltaStream: expected one frame for each of the inputs {self._inputs}, of which {self._needed} have "
                f"no default, got {len(frames)}"
            )
        kind = [(tuple(frame.shape), frame.dtype, frame.device) for frame in frames]
        if self._kind not in (None, kind):
            raise StateError(
                f"DeltaStream: this stream is for frames {self._kind}, got {kind}. A new video? Call reset()."
            )
        if not all(torch.isfinite(frame).all() for frame in frames):
            raise ValueError("DeltaStream: the frame holds NaN or infinite values; the stream stays as it was")
        with torch.no_grad():
            run = _Run(self._model, self._values, self._layers)
            output = run.run(1, *(frame.double() for frame in frames))
        self._values, self._layers, self._kind = run.values, run.layers, kind
        dtype = frames[0].dtype
        return pytree.tree_map(lambda o: _copy(o.value, dtype) if _is_signal(o) else o, output, is_leaf=_is_signal)


class _Run(fx.Interpreter):
    """One frame. Reads the state before it and builds the state after it."""

    def __init__(self, model: SparseNetwork, values: dict[str, Any], layers: dict[str, DeltaState]) -> None:
        super().__init__(model, graph=model.graphs[False])
        self._flush = not values
        self._before = values
        self._layers_before = layers
        self.values: dict[str, Any] = {}
        self.layers: dict[str, DeltaState] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "output":
            args, _ = self.fetch_args_kwargs_from_env(n)
            return args[0]
        if n.op == "placeholder":
            value = super().run_node(n)
            if not isinstance(value, Tensor):
                return value  # the number of frames
            return self._remember(n, value.clone())
        if n.op == "get_attr":
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if not _signals((args, kwargs)):
            return super().run_node(n)
        module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        if isinstance(module, DeltaActivation) and module.enabled:
            value, state = module.step_stream(args[0].value, self._layers_before.get(n.name))
            self.layers[n.name] = state
            return self._remember(n, value)
        if not self._flush and (linear := self._linear(n, module, args, kwargs)) is not None:
            deltas = pytree.tree_map(_change_of, (args, kwargs), is_leaf=_is_signal)
            change = linear(*deltas[0], **deltas[1])
            value = pytree.tree_map(lambda v, d: v + d, self._before[n.name], change)
            self.values[n.name] = value
            return _Signal(value, change)
        values = pytree.tree_map(_value_of, (args, kwargs), is_leaf=_is_signal)
        value = getattr(self, n.op)(n.target, *values)
        if not any(isinstance(v, Tensor) for v in pytree.tree_leaves(value)):
            return value  # a shape
        return self._remember(n, value)

    def _remember(self, n: fx.Node, value: Any) -> _Signal:
        """Keep the value for the next frame; what changed is the difference to the kept one."""
        before = self._before.get(n.name)
        self.values[n.name] = value
        if before is None:
            return _Signal(value, value)
        change = pytree.tree_map(lambda v, b: v - b if _is_float(v) else v, value, before)
        return _Signal(value, change)

    def _linear(
        self, n: fx.Node, module: nn.Module | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Callable[..., Any] | None:
        """The node as a linear function of its streams, or None."""
        # Booleans and integers have no change that could be added.
        if not all(_is_float(v) for s in _signals((args, kwargs)) for v in pytree.tree_leaves(s.value)):
            return None
        if n.target in _ADDITIONS and len(args) == 2 and all(map(_is_signal, args)):
            return n.target
        if _signals((args[1:], kwargs)):
            return None  # linear in the first argument alone: an index that depends on the frame is no stream
        if module is not None:
            return _without_bias(module)
        if n.op == "call_method":
            name = str(n.target)
            return (lambda x, *a, **k: getattr(x, name)(*a, **k)) if name in _LINEAR_METHODS else None
        if n.target in _LINEAR_FUNCTIONS:
            return n.target
        if not callable(n.target):
            return None
        padding = n.target is F.pad and n.kwargs.get("mode", "constant") == "constant" and len(n.args) <= 2
        if padding and not n.kwargs.get("value"):
            return n.target
        return None


def _is_signal(value: Any) -> bool:
    return isinstance(value, _Signal)


def _signals(arguments: Any) -> list[_Signal]:
    return [a for a in pytree.tree_leaves(arguments, is_leaf=_is_signal) if isinstance(a, _Signal)]


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _value_of(argument: Any) -> Any:
    """A copy of the value: what works in place must not write into what is kept."""
    return pytree.tree_map_only(Tensor, torch.clone, argument.value) if _is_signal(argument) else argument


def _change_of(argument: Any) -> Any:
    """A copy of the change; that of a constant is zero."""
    if _is_signal(argument):
        return pytree.tree_map_only(Tensor, torch.clone, argument.delta)
    return torch.zeros_like(argument) if isinstance(argument, Tensor) else argument


def _copy(value: Any, dtype: torch.dtype) -> Any:
    """Outputs share no memory with the state."""
    return pytree.tree_map_only(Tensor, lambda v: v.to(dtype if _is_float(v) else v.dtype, copy=True), value)
