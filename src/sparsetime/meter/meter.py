"""The meter: watches a model run and counts, without changing a bit of what it computes."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsetime.convert import SparseNetwork
from sparsetime.fanout import LinearOp, fanout
from sparsetime.meter.counts import Counts, OpCounts, Skips
from sparsetime.nn import DeltaActivation
from sparsetime.watch import LinearCall, WatchLinear

__all__ = ["Meter"]

_ACTIVATIONS = {
    F.relu,
    F.relu_,
    F.relu6,
    F.hardtanh,
    F.leaky_relu,
    F.prelu,
    F.elu,
    F.gelu,
    F.silu,
    F.mish,
    F.hardswish,
    F.hardsigmoid,
    F.sigmoid,
    F.tanh,
    F.softplus,
    torch.relu,
    torch.relu_,
    torch.sigmoid,
    torch.tanh,
    Tensor.relu,
    Tensor.relu_,
    Tensor.sigmoid,
    Tensor.tanh,
}


class Meter:
    """Counts what a model does while the `with` block runs; see `Counts` for what and `summary` for the figures.

        with Meter(model) as meter:
            model(clip)
        meter.summary()["op_density"]

    Meters add: `a + b` is the meter of both runs. What is read is the actual input of every linear operation, whatever
    class or function called it; operations with multiplications that cannot be described are named in `not_counted`.

    Args:
        model: what `sparsify` returned, which knows the frames of a clip from its input; or a per-frame network.
        frames: T, for a per-frame network that is fed (N * T, ...). Without it, each frame is a clip of its own.
        skips: what counts as skipped; by default deltas where the model has delta layers that are enabled, else zeros.
    """

    def __init__(self, model: nn.Module, frames: int | None = None, skips: Skips | None = None) -> None:
        layers = [m for m in model.modules() if isinstance(m, DeltaActivation)]
        if skips is None:
            skips = "deltas" if any(layer.enabled for layer in layers) else "activations"
        self.counts = Counts(skips=skips)
        self._model = model
        self._given_frames = frames
        self._frames = frames or 1
        self._delta_layers = layers
        self._names = {id(p): name for name, p in model.named_parameters(remove_duplicate=False)}
        self._fanouts: dict[tuple[str, tuple[int, ...], LinearOp], Tensor] = {}
        self._calls: dict[str, int] = {}
        self._references: dict[int, int] = {}
        self._handles: list[Any] = []
        self._watch: WatchLinear | None = None

    def __enter__(self) -> Meter:
        model = self._model
        self._handles = [model.register_forward_pre_hook(self._start, prepend=True)]
        self._handles += [layer.register_forward_hook(self._on_delta_layer) for layer in self._delta_layers]
        self._watch = WatchLinear(self._on_linear, self.counts.not_counted.add, self._on_output)
        self._watch.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._watch is not None
        self._watch.__exit__(kind, error, trace)
        for handle in self._handles:
            handle.remove()

    def __add__(self, other: Meter) -> Meter:
        result = Meter(self._model, self._given_frames, self.counts.skips)
        result.counts = self.counts + other.counts
        return result

    def summary(self) -> dict[str, Any]:
        """The figures, plain data; see `Counts.summary`."""
        return self.counts.summary()

    def _start(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        """A forward pass begins."""
        x = args[0]
        if isinstance(model, SparseNetwork):
            self._frames = x.shape[1] if x.dim() == model.frame_dims + 1 else 1
            clips = x.shape[0]
        else:
            if x.shape[0] % self._frames:
                raise ValueError(
                    f"Meter: {x.shape[0]} frames do not divide into clips of {self._frames}; see Meter(frames=)"
                )
            clips = x.shape[0] // self._frames
        self._calls.clear()
        self.counts.clips += clips
        self.counts.weight_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
        self.counts.element_bytes = x.element_size() if x.is_floating_point() else 4

    def _name(self, call: LinearCall) -> str:
        """The weight's module name, `module#2` for its second call in one pass."""
        name = self._names.get(id(call.weight), f"{call.op.kind} {tuple(call.weight.shape)}")
        name = name.removesuffix(".weight")
        self._calls[name] = self._calls.get(name, 0) + 1
        return name if self._calls[name] == 1 else f"{name}#{self._calls[name]}"

    def _on_linear(self, call: LinearCall) -> None:
        t = self._frames
        x = call.x.detach()
        if x.shape[0] % t:
            self.counts.not_counted.add(f"{call.op.kind} whose first dimension {x.shape[0]} is not the frames'")
            return
        name = self._name(call)
        frame = tuple(x.shape[1:])
        maps = self._fanout(name, call, frame)
        clip = x.unflatten(0, (-1, t))
        nonzero = clip != 0
        changed = clip[:, 1:] != clip[:, :-1]
        first, later = _sum_clips(nonzero[:, :1]), _sum_clips(nonzero[:, 1:])
        delta = _sum_clips(changed)
        dense = float(maps[0].expand(frame).sum() if call.op.kind == "linear" else maps[0].sum())
        nb = float(((first + later) * maps[1]).sum())
        ternary = bool((x.abs() == nonzero.flatten(0, 1)).all())
        frames = x.shape[0]
        counts = OpCounts(
            call.op.kind,
            elements=int(x[0].numel()),
            output_elements=int(call.output[0].numel()),
            dense_macs=dense,
            frames_first=frames // t,
            frames_later=frames - frames // t,
            nonzero_first=int(first.sum()),
            nonzero_later=int(later.sum()),
            changed_later=int(delta.sum()),
            macs_first=float((first * maps[0]).sum()),
            macs_later=float((later * maps[0]).sum()),
            delta_macs_later=float((delta * maps[0]).sum()),
            nb_macs=0.0 if ternary else nb,
            nb_acs=nb if ternary else 0.0,
            nb_dense=dense * frames,
        )
        ops = self.counts.ops
        ops[name] = ops[name] + counts if name in ops else counts

    def _fanout(self, name: str, call: LinearCall, frame: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Fan-out of all weights, and of those that are not zero."""
        key = (name, frame, call.op)
        if key not in self._fanouts:
            self._fanouts[key] = fanout(call.op, frame).to(call.x.device)
        full = self._fanouts[key]
        if bool((call.weight != 0).all()):
            return full, full
        return full, fanout(call.op, frame, call.weight).to(call.x.device)

    def _on_output(self, function: Any, output: Any) -> None:
        if function in _ACTIVATIONS and isinstance(output, Tensor):
            self._count_activation(output)

    def _on_delta_layer(self, layer: DeltaActivation, args: tuple[Any, ...], output: Tensor) -> None:
        if layer.activation != "identity":
            self._count_activation(output)
        if layer.enabled and id(layer) not in self._references:
            self._references[id(layer)] = output[0].numel()
            self.counts.reference_elements = sum(self._references.values())

    def _count_activation(self, output: Tensor) -> None:
        self.counts.activations += output.numel()
        self.counts.activations_nonzero += int(torch.count_nonzero(output))


def _sum_clips(mask: Tensor) -> Tensor:
    """Sum over clips and frames, (N, T, ...) -> (...), float64 so that it multiplies with a fan-out."""
    return mask.sum((0, 1), dtype=torch.float64)
