"""A sparse network in NeuroBench's own harness (arXiv 2304.04640).

    from neurobench.benchmarks import Benchmark
    from neurobench.metrics.static import Footprint
    from neurobench.metrics.workload import ActivationSparsity, SynapticOperations

    model = DeltaModel(network)                        # network: what sparsetime.sparsify returned
    results = Benchmark(model, loader, [], [], [[Footprint], [ActivationSparsity, SynapticOperations]]).run()

A sample is a clip, (N, T, C, H, W) a batch of them: NeuroBench's operations are per clip, a `Meter`'s per frame.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sparsetime.convert import SparseNetwork
from sparsetime.meter.meter import ACTIVATIONS
from sparsetime.nn import DeltaActivation

try:
    from neurobench.blocks.layer import STATELESS_LAYERS
    from neurobench.models import NeuroBenchModel
except ImportError as error:
    raise ImportError("needs NeuroBench: pip install 'sparsetime[neurobench]'") from error

__all__ = ["DeltaModel"]

Sends = Literal["deltas", "values"]

_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.RReLU, nn.Threshold),
    *(nn.Softsign, nn.LogSigmoid, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh),
    *(nn.Softplus, DeltaActivation),
)


class DeltaModel(NeuroBenchModel):
    """A sparse network as NeuroBench takes it.

    With "deltas" every linear operation whose input is encoded gets what is sent to it, the first frame of a clip and
    then the changes, and adds up what it makes of them:

        z(t) = sum_{s <= t} L (v(s) - v(s-1)) + b,   v(0) = 0

    so SynapticOperations counts what delta inference does: `op_density_with_first_frame` of a `Meter` times its
    `dense_macs` and the frames of a clip, if no weight is zero (NeuroBench leaves those out). With "values" it gets
    the values, as on hardware that skips zeros; the figures are then those of `Meter.summary()["neurobench"]`, times
    the frames of a clip for SynapticOperations. The other metrics are the same for both: activations are what layers
    hold, not what they send.

    NeuroBench sees modules of some classes. What else a network does is in a `Meter`'s figures only; `not_seen` names
    it: linear operations and activations that are called as functions, transposed convolutions.

    Args:
        network: what `sparsetime.sparsify` returned. It is put in evaluation mode, as NeuroBench's own models are.
        sends: "deltas" or "values".

    Raises:
        TypeError: another model.
    """

    def __init__(self, network: nn.Module, sends: Sends = "deltas") -> None:
        super().__init__()
        if not isinstance(network, SparseNetwork):
            raise TypeError(f"DeltaModel: expected what sparsetime.sparsify returned, got {type(network).__name__}")
        if sends not in get_args(Sends):
            raise ValueError(f"DeltaModel: sends must be one of {', '.join(get_args(Sends))}, got {sends!r}")
        self.net = network.eval()
        self.sends: Sends = sends
        # A module under two names has one call name, that of its last parameter, as a meter has it.
        named = {module: name for name, module in network.named_modules(remove_duplicate=False)}
        self._modules = {name: module for module, name in named.items() if isinstance(module, STATELESS_LAYERS)}
        operations = {*network.encoded, *network.left_dense}
        self.not_seen = sorted(name for name in operations if name.partition("#")[0] not in self._modules)
        self.not_seen += [node.name for node in network.graphs[False].nodes if _is_activation(node)]
        for activation in _ACTIVATIONS:
            if activation not in self.activation_modules:
                self.add_activation_module(activation)

    def __net__(self) -> nn.Module:
        return self.net

    def activation_layers(self) -> list[dict[str, Any]]:
        """Modules that compute activations: not the delta layers that only encode, at the input or behind a sum."""
        layers: list[dict[str, Any]] = super().activation_layers()
        return [entry for entry in layers if getattr(entry["layer"], "activation", None) != "identity"]

    def __call__(self, batch: Tensor) -> Any:
        """Run a batch of clips (N, T, C, H, W)."""
        handles: list[Any] = []
        if self.sends == "deltas":
            frames = batch.shape[1] if batch.dim() == self.net.frame_dims + 1 else 1
            for name, module in self._modules.items():
                # Not for longer than the pass: NeuroBench runs copies of the modules, with their hooks, to count.
                call = _Deltas(name, frames, self.net.encoded)
                handles.append(module.register_forward_pre_hook(call.encode, prepend=True))
                handles.append(module.register_forward_hook(call.accumulate, prepend=True))
        try:
            with torch.no_grad():
                return self.net(batch)
        finally:
            for handle in handles:
                handle.remove()


def _is_activation(node: torch.fx.Node) -> bool:
    """Whether a node calls an activation as a function or method."""
    if node.op == "call_method":
        return getattr(Tensor, str(node.target), None) in ACTIVATIONS
    return node.op == "call_function" and node.target in ACTIVATIONS


class _Deltas:
    """One linear operation on deltas, in the clip form (N * T, ...)."""

    def __init__(self, name: str, frames: int, encoded: frozenset[str]) -> None:
        self._name, self._frames, self._encoded = name, frames, encoded
        self._calls = 0

    def _is_encoded(self) -> bool:
        return (self._name if self._calls == 1 else f"{self._name}#{self._calls}") in self._encoded

    def encode(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """The input's first frame and its changes."""
        self._calls += 1
        if not self._is_encoded():
            return inputs
        clip = inputs[0].unflatten(0, (-1, self._frames))
        deltas = torch.cat([clip[:, :1], torch.diff(clip, dim=1)], 1).flatten(0, 1)
        return (deltas, *inputs[1:])

    def accumulate(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """Add up over time what came of the deltas; the bias enters once."""
        if not self._is_encoded():
            return output
        bias: Tensor | float = 0.0
        if isinstance(module.bias, Tensor):
            bias = module.bias if isinstance(module, nn.Linear) else module.bias.view(-1, *(1,) * (output.dim() - 2))
        total: Tensor = (output - bias).unflatten(0, (-1, self._frames)).cumsum(1).flatten(0, 1) + bias
        return total
