"""The meter: watches a model run and counts, without changing a bit of what it computes."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from sparsetime.convert import SparseNetwork
from sparsetime.fanout import LinearOp, fanout
from sparsetime.meter.counts import Counts, OpCounts, Skips
from sparsetime.nn import DeltaActivation
from sparsetime.watch import LinearCall, OpNames, WatchLinear

__all__ = ["ACTIVATIONS", "Meter"]

ACTIVATIONS = {
    F.relu,
    F.relu_,
    F.relu6,
    F.hardtanh,
    F.leaky_relu,
    F.prelu,
    F.elu,
    F.selu,
    F.celu,
    F.rrelu,
    F.threshold,
    F.softsign,
    F.logsigmoid,
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
"""Functions whose outputs are activations."""


class Meter:
    """Counts what a model does while the `with` block runs; see `Counts` for what and `summary` for the figures.

        with Meter(model) as meter:
            model(clip)
        meter.summary()["op_density"]

    Meters add: `a + b` is the meter of both runs. What is read is the actual input of every linear operation, whatever
    class or function called it; operations with multiplications that cannot be described are named in `not_counted`,
    and so is what is not seen: modules of torch.jit, and a pass in which weights are there but no linear operation is.
    An operation of a sparse network whose input was left without a delta layer skips zeros, not deltas, and so does one
    beside the sparse networks of a larger model.

    The model computes what it computes without a meter, to the bit, with one exception: in evaluation PyTorch's
    attention and transformer modules leave their fused path when they are watched, and round differently.

    Args:
        model: what `sparsify` returned, which knows the frames of a clip from its input; a model with one or more of
            these inside; or a per-frame network.
        frames: T, for a per-frame network that is fed (N * T, ...). Without it, each frame is a clip of its own.
        skips: what counts as skipped; by default deltas where the model has delta layers that are enabled and give
            values, else zeros (what a layer that gives deltas does not send is zero).
        clips: the model is fed clips (N, T, ...), as one with delta layers put in by hand may be. Its operations are
            fed (N * T, ...); linear layers may be fed (N, T, F).

    Attributes:
        counts: what was counted so far; goes to another process or machine with `Counts.to_json`.

    Raises:
        ValueError: frames below 1, or frames and clips; in a forward pass, frames that do not divide into clips,
            frames for a sparse network that is to be fed clips, no clip, or no tensor at all.
    """

    def __init__(
        self, model: nn.Module, frames: int | None = None, skips: Skips | None = None, *, clips: bool = False
    ) -> None:
        if frames is not None and frames < 1:
            raise ValueError(f"Meter: frames must be at least 1, got {frames}")
        if frames is not None and clips:
            raise ValueError("Meter: clips (N, T, ...) say how many frames they have; leave out frames, or clips")
        layers = [m for m in model.modules() if isinstance(m, DeltaActivation)]
        if skips is None:
            skips = "deltas" if any(layer.enabled and layer.output == "value" for layer in layers) else "activations"
        self.counts = Counts(skips=skips)
        self._model = model
        self._given_frames = frames
        self._fed_clips = clips
        self._frames = frames or 1
        self._batch: int | None = None  # frames in the forward pass that runs; None before they are known
        self._delta_layers = layers
        self._seen = False  # whether this pass had an operation with multiplications
        self._inside = 0  # delta layers that run: they are counted by what they give
        self._names = OpNames(model)
        self._networks = _sparse_networks(model)
        self._network: SparseNetwork | None = None  # the one that runs
        self._depth = 0  # of the forward passes that are watched, one in another
        self._clips: Counter[nn.Module] = Counter()  # that each was fed in this pass
        self._fanouts: dict[tuple[str, tuple[int, ...], LinearOp], Tensor] = {}
        self._references: dict[int, int] = {}
        self._weights: dict[str, tuple[int, int]] = {}  # by operation: how many, and how many are zero
        self._handles: list[Any] = []
        self._watch: WatchLinear | None = None

    def __enter__(self) -> Meter:
        self.counts.not_counted |= _compiled(self._model)
        if not isinstance(self._model, torch.jit.ScriptModule):  # that takes no hooks, and shows nothing
            for module in dict.fromkeys((self._model, *self._networks)):
                self._handles += [
                    module.register_forward_pre_hook(self._start, prepend=True, with_kwargs=True),
                    module.register_forward_hook(self._end, always_call=True),
                ]
        for layer in self._delta_layers:
            self._handles.append(layer.register_forward_pre_hook(self._enter_delta_layer))
            self._handles.append(layer.register_forward_hook(self._on_delta_layer, with_kwargs=True))
        self._watch = WatchLinear(self._on_linear, self._on_uncounted, self._on_output)
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
        result = Meter(self._model, self._given_frames, self.counts.skips, clips=self._fed_clips)
        result.counts = self.counts + other.counts
        return result

    def summary(self) -> dict[str, Any]:
        """The figures, plain data; see `Counts.summary`."""
        return self.counts.summary()

    def _start(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pass begins, or a sparse network in it; its first tensor is the clip or the frames."""
        if not self._depth:
            self._begin()
        self._depth += 1
        frames, fed_clips = self._given_frames or 1, self._fed_clips
        if not isinstance(model, SparseNetwork) and self._networks and not fed_clips:
            return  # the sparse networks in it know the frames
        given = [model.first_input(args, kwargs)] if isinstance(model, SparseNetwork) else [*args, *kwargs.values()]
        x = next((value for value in given if isinstance(value, Tensor)), None)
        if x is None:
            raise ValueError(f"Meter: {type(model).__name__} was called without a tensor; give it its frames as one")
        if isinstance(model, SparseNetwork):
            self._network = model
            self._networks[model][1].restart()
            frames, fed_clips = 1, x.dim() == model.frame_dims + 1
            frames_given = self._given_frames or 1
            if frames_given > 1 and not fed_clips:
                raise ValueError(
                    f"Meter: frames={frames_given}, but the sparse network was fed frames {tuple(x.shape)}, each of "
                    f"which it takes for a clip of its own; give it clips: x.unflatten(0, (-1, {frames_given}))"
                )
        if fed_clips:
            if x.dim() < 3:
                raise ValueError(f"Meter: clips=True, but {type(model).__name__} was fed shape {tuple(x.shape)}")
            clips, frames = x.shape[:2]
        elif x.shape[0] % frames:
            raise ValueError(
                f"Meter: {x.shape[0]} frames do not divide into clips of {frames}; see Meter(frames=), and "
                "Meter(clips=) for a model that is fed clips (N, T, ...)"
            )
        else:
            clips = x.shape[0] // frames
        self._frames, self._batch = frames, clips * frames
        self._clips[model] += clips
        self.counts.element_bytes = x.element_size() if x.is_floating_point() else 4

    def _begin(self) -> None:
        self._names.restart()
        self._clips.clear()
        self._frames, self._batch = self._given_frames or 1, None
        self._inside = 0
        self._seen = False
        self.counts.weight_bytes = sum(p.numel() * p.element_size() for p in self._model.parameters())
        self.counts.buffer_bytes = sum(b.numel() * b.element_size() for b in self._model.buffers())

    def _end(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A forward pass is over, or a sparse network in it; where it failed, there is no output."""
        self._depth -= 1
        if model is self._network:
            self._network = None
        if self._depth:
            return
        self.counts.clips += max(self._clips.values(), default=0)
        if output is not None and not self._seen and any(p.dim() > 1 for p in model.parameters()):
            self.counts.not_counted.add(f"{type(model).__name__} (no linear operation was seen in a forward pass)")

    def _on_uncounted(self, name: str) -> None:
        self._seen = True
        self.counts.not_counted.add(name)

    def _on_linear(self, call: LinearCall) -> None:
        self._seen = True
        t = self._frames
        x, output = call.x.detach(), call.output
        name, encoded = self._named(call)
        if self._batch is None and self._networks and self._given_frames is None:
            self.counts.not_counted.add(f"{name} (runs before the frames of a clip are known; see Meter(clips=))")
            return
        if self._are_clips(call):
            x, output = x.flatten(0, 1), output.flatten(0, 1)
        if x.shape[0] % t or self._batch not in (None, x.shape[0]):
            self.counts.not_counted.add(f"{name} (the first dimension of its input is not that of the frames)")
            return
        frame = tuple(x.shape[1:])
        maps = self._fanout(name, call, frame)
        clip = x.unflatten(0, (-1, t))
        nonzero = clip != 0
        changed = clip[:, 1:] != clip[:, :-1]
        first, later = _sum_clips(nonzero[:, :1]), _sum_clips(nonzero[:, 1:])
        delta = _sum_clips(changed)
        dense = float(maps[0].expand(frame).sum() if call.op.kind == "linear" else maps[0].sum())
        nb = float(((first + later) * maps[1]).sum())
        macs_later, delta_macs_later = float((later * maps[0]).sum()), float((delta * maps[0]).sum())
        ternary = _ternary(x)
        frames = x.shape[0]
        counts = OpCounts(
            call.op.kind,
            encoded,
            elements=int(x[0].numel()),
            output_elements=int(output[0].numel()),
            dense_macs=dense,
            frames_first=frames // t,
            frames_later=frames - frames // t,
            nonzero_first=int(first.sum()),
            nonzero_later=int(later.sum()),
            changed_later=int(delta.sum()),
            macs_first=float((first * maps[0]).sum()),
            macs_later=macs_later,
            delta_macs_later=delta_macs_later,
            acs_later=macs_later if ternary else 0.0,
            delta_acs_later=delta_macs_later if _ternary_changes(clip) else 0.0,
            nb_macs=0.0 if ternary else nb,
            nb_acs=nb if ternary else 0.0,
            nb_dense=dense * frames,
        )
        ops = self.counts.ops
        ops[name] = ops[name] + counts if name in ops else counts
        # A second call of a module has its weight; weights that are no module's may be others each time.
        self._count_weights(name if f"{call.op.kind} (" in name else name.partition("#")[0], call.weight)

    def _named(self, call: LinearCall) -> tuple[str, bool]:
        """The name of an operation, and whether its input is encoded."""
        if self._network is None:
            return self._names(call), not self._networks
        prefix, names = self._networks[self._network]
        name = names(call)
        return prefix + name, name in self._network.encoded

    def _are_clips(self, call: LinearCall) -> bool:
        """Whether a linear layer is fed clips (N, T, F) between operations that are fed (N * T, ...)."""
        if self._network is not None or self._batch is None or not (self._networks or self._fed_clips):
            return False
        shape, t = call.x.shape, self._frames
        return call.op.kind == "linear" and len(shape) > 2 and t > 1 and shape[:2] == (self._batch // t, t)

    def _count_weights(self, name: str, weight: Tensor) -> None:
        if name not in self._weights:
            self._weights[name] = (weight.numel(), weight.numel() - int(torch.count_nonzero(weight)))
            self.counts.weights, self.counts.weights_zero = map(sum, zip(*self._weights.values(), strict=True))

    def _fanout(self, name: str, call: LinearCall, frame: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Fan-out of all weights, and of those that are not zero."""
        key = (name, frame, call.op)
        if key not in self._fanouts:
            self._fanouts[key] = _integers(fanout(call.op, frame)).to(call.x.device)
        full = self._fanouts[key]
        alive = call.weight.detach() != 0
        if bool(alive.all()):
            return full, full
        return full, _integers(fanout(call.op, frame, alive.cpu().numpy())).to(call.x.device)

    def _on_output(self, function: Any, output: Any) -> None:
        if function in ACTIVATIONS and isinstance(output, Tensor) and not self._inside:
            self._count_activation(output)

    def _enter_delta_layer(self, layer: DeltaActivation, args: tuple[Any, ...]) -> None:
        self._inside += 1

    def _on_delta_layer(
        self, layer: DeltaActivation, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> None:
        self._inside -= 1
        if layer.activation != "identity":
            self._count_activation(output)
        if layer.enabled and id(layer) not in self._references:
            is_clip = len(args) == 1 and kwargs.get("frames") is None
            self._references[id(layer)] = output[0, 0].numel() if is_clip else output[0].numel()
            self.counts.reference_elements = sum(self._references.values())

    def _count_activation(self, output: Tensor) -> None:
        self.counts.activations += output.numel()
        self.counts.activations_nonzero += int(torch.count_nonzero(output))


def _integers(fanouts: NDArray[np.float64]) -> Tensor:
    """Fan-outs, which are whole numbers, as int64: exact on every device, and not all have float64."""
    return torch.from_numpy(fanouts.astype(np.int64))


def _sparse_networks(model: nn.Module) -> dict[SparseNetwork, tuple[str, OpNames]]:
    """The sparse networks in a model: what to put before the names of their operations, and these names.

    Nothing is put before them where one network has all weights: what is around it is a wrapper.
    """
    networks = {m: name for name, m in model.named_modules() if isinstance(m, SparseNetwork)}
    inside = {id(p) for network in networks for p in network.parameters()}
    alone = len(networks) == 1 and all(p.dim() < 2 or id(p) in inside for p in model.parameters())
    return {m: (f"{name}." if name and not alone else "", OpNames(m)) for m, name in networks.items()}


def _compiled(model: nn.Module) -> set[str]:
    """Modules of torch.jit: nothing shows what runs in them."""
    found: set[str] = set()
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and not (inside and name.startswith(inside)):
            found.add(f"{name or type(model).__name__} (compiled by torch.jit)")
            inside += (f"{name}." if name else "",)
    return found


def _sum_clips(mask: Tensor) -> Tensor:
    """Sum over clips and frames, (N, T, ...) -> (...), int64 so that it multiplies with a fan-out."""
    frames = mask.flatten(0, 1).view(torch.uint8)
    total = torch.zeros(mask.shape[2:], dtype=torch.int64, device=mask.device)
    for start in range(0, len(frames), 255):  # bytes add sixty at a time, and hold a sum of 255 of them
        count = frames[start].clone()
        for frame in frames[start + 1 : start + 255]:
            count += frame
        total += count
    return total


def _ternary_changes(clip: Tensor) -> bool:
    """Whether all changes from frame to frame are -1, 0 or 1."""
    frames = clip.to(torch.promote_types(clip.dtype, torch.float32)).unbind(1)
    return all(_ternary(new - old) for old, new in pairwise(frames))  # frame by frame: most say no at once


def _ternary(x: Tensor) -> bool:
    """Whether all values are -1, 0 or 1; a sample answers for most tensors that are not."""
    for values in (x.flatten()[:4096] if x.is_contiguous() else x[0], x):
        if not bool(((values == 0) | (values.abs() == 1)).all()):
            return False
    return True
