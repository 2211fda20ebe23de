"""Counts are sums: they add over clips, processes and machines, and are divided once, in `Counts.summary`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from sparsetime.meter.energy import estimate_energy

__all__ = ["Counts", "OpCounts", "Skips"]

Skips = Literal["deltas", "activations"]


@dataclass
class OpCounts:
    """Sums for one linear operation. "First" is the first frame of every clip, "later" all others.

    Attributes:
        kind: conv, conv_transpose or linear.
        encoded: its input comes from delta layers, so that elements that did not change can be told and skipped.
        frames_first, frames_later: frames that went in.
        elements: input elements of one frame.
        output_elements: output elements of one frame.
        dense_macs: multiply-accumulates of one frame by exact fan-out, padding's zeros not counted.
        nonzero_first, nonzero_later: input elements that are not zero.
        changed_later: input elements that differ from the frame before.
        macs_first, macs_later: fan-out of the elements that are not zero.
        delta_macs_later: fan-out of the elements that changed.
        acs_later, delta_acs_later: the part of the two before it from calls in which all inputs, or all changes, are
            -1, 0 or 1: accumulates, nothing is multiplied.
        nb_macs, nb_acs, nb_dense: synaptic operations after NeuroBench: weights that are zero count for nothing, and a
            call whose inputs are all -1, 0 or 1 counts as accumulates.
    """

    kind: str
    encoded: bool = True
    elements: int = 0
    output_elements: int = 0
    dense_macs: float = 0.0
    frames_first: int = 0
    frames_later: int = 0
    nonzero_first: int = 0
    nonzero_later: int = 0
    changed_later: int = 0
    macs_first: float = 0.0
    macs_later: float = 0.0
    delta_macs_later: float = 0.0
    acs_later: float = 0.0
    delta_acs_later: float = 0.0
    nb_macs: float = 0.0
    nb_acs: float = 0.0
    nb_dense: float = 0.0

    def __add__(self, other: OpCounts) -> OpCounts:
        same = ("kind", "encoded", "elements", "output_elements", "dense_macs")
        for name in same:
            if getattr(self, name) != getattr(other, name):
                raise ValueError(
                    f"counts of different operations do not add: {name} is {getattr(self, name)} and "
                    f"{getattr(other, name)}"
                )
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self) if f.name not in same}
        return OpCounts(**{name: getattr(self, name) for name in same}, **sums)


def _share(part: float, whole: float) -> float | None:
    """part / whole; None where there was nothing to count."""
    return part / whole if whole else None


@dataclass
class Counts:
    """Everything a `Meter` counted.

    Attributes:
        ops: by name of the operation.
        skips: what the network can skip: elements that did not change ("deltas", where they are encoded), or that are
            zero ("activations").
        clips: clips seen.
        activations, activations_nonzero: outputs of activation functions, and how many are not zero.
        reference_elements: last values sent, per stream.
        weight_bytes, buffer_bytes: parameters, and what else a checkpoint holds.
        weights, weights_zero: weights of the operations (those of a shared one once), and how many are zero.
        element_bytes: size of one number of state.
        not_counted: names of operations with multiplications that are in no count.
    """

    ops: dict[str, OpCounts] = field(default_factory=dict)
    skips: Skips = "activations"
    clips: int = 0
    activations: int = 0
    activations_nonzero: int = 0
    reference_elements: int = 0
    weight_bytes: int = 0
    buffer_bytes: int = 0
    weights: int = 0
    weights_zero: int = 0
    element_bytes: int = 4
    not_counted: set[str] = field(default_factory=set)

    def __add__(self, other: Counts) -> Counts:
        for name in ("skips", "reference_elements", "weight_bytes", "element_bytes"):
            if self.clips and other.clips and getattr(self, name) != getattr(other, name):
                raise ValueError(
                    f"counts of different networks do not add: {name} is {getattr(self, name)} and "
                    f"{getattr(other, name)}"
                )
        model = self if self.clips else other
        ops = dict(self.ops)
        for name, op in other.ops.items():
            ops[name] = ops[name] + op if name in ops else op
        return Counts(
            ops=ops,
            skips=model.skips,
            clips=self.clips + other.clips,
            activations=self.activations + other.activations,
            activations_nonzero=self.activations_nonzero + other.activations_nonzero,
            reference_elements=model.reference_elements,
            weight_bytes=model.weight_bytes,
            buffer_bytes=model.buffer_bytes,
            weights=model.weights,
            weights_zero=model.weights_zero,
            element_bytes=model.element_bytes,
            not_counted=self.not_counted | other.not_counted,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data, for another process or machine."""
        return asdict(self) | {"not_counted": sorted(self.not_counted)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Counts:
        """What `to_json` gave."""
        ops = {name: OpCounts(**op) for name, op in data["ops"].items()}
        return Counts(**{**data, "ops": ops, "not_counted": set(data["not_counted"])})

    def summary(self) -> dict[str, Any]:
        """The figures. Densities are None where nothing was counted (no later frames, say); MACs are means per frame.

        op_density: operations that remain / dense MACs, first frames out; by `skips`. With its two forms by name:
            op_density_deltas and op_density_activations.
        effective_macs, acs: the operations that remain, each in one of the two: accumulates where all that a call is
            given (its changes by deltas, else its inputs) is -1, 0 or 1, else multiply-accumulates. So
            effective_macs + acs = op_density * dense_macs. NeuroBench's Effective_MACs and Effective_ACs are divided in
            the same way, but are of inputs, with first frames and without weights that are zero.
        energy: of all operations as multiply-accumulates, and of those that remain, see `estimate_energy`.
        op_density_with_first_frame: the same with the first frame of each clip, which is computed from nothing.
        activation_density, delta_density: shares of input elements of linear operations that are not zero (all
            frames), and that changed (later frames).
        state_bytes: of one stream: last values sent and one accumulator per output of a linear operation that is fed
            with deltas; 0 without deltas.
        """
        layers = []
        total: defaultdict[str, float] = defaultdict(float)
        accumulators = 0
        for name, op in self.ops.items():
            by_delta = self.skips == "deltas" and op.encoded
            row = _row(op, by_delta=by_delta)
            for key, value in row.items():
                total[key] += value
            accumulators += op.output_elements if by_delta else 0
            layers.append(
                {
                    "name": name,
                    "kind": op.kind,
                    "encoded": op.encoded,
                    "dense_macs": op.dense_macs,
                    "effective_macs": _share(row["remaining"] - row["acs"], op.frames_later),
                    "acs": _share(row["acs"], op.frames_later),
                    "elements": op.elements,
                    **_densities(row),
                }
            )
        frames = max((op.frames_first + op.frames_later for op in self.ops.values()), default=0)
        dense = sum(op.dense_macs for op in self.ops.values())
        effective = _share(dense * (total["remaining"] - total["acs"]), total["later"])
        accumulates = _share(dense * total["acs"], total["later"])
        return {
            "skips": self.skips,
            "clips": self.clips,
            "frames": frames,
            **_densities(total),
            "dense_macs": dense,
            "effective_macs": effective,
            "acs": accumulates,
            "state_bytes": (self.reference_elements + accumulators) * self.element_bytes,
            "weight_bytes": self.weight_bytes,
            "neurobench": self._neurobench(frames),
            "energy": {
                "dense": estimate_energy(dense, 0.0),
                "remaining": estimate_energy(dense if effective is None else effective, accumulates or 0.0),
            },
            "not_counted": sorted(self.not_counted),
            "layers": layers,
        }

    def _neurobench(self, frames: int) -> dict[str, Any]:
        """NeuroBench's definitions (arXiv 2304.04640), a frame being a sample.

        ActivationSparsity: zeros / elements over the outputs of all activation functions and all samples.
        SynapticOperations: per sample; operations on inputs and weights that are not zero, Dense with those that are.
        Footprint: bytes of parameters and buffers. What a stream keeps is `state_bytes`, and not in it.
        ConnectionSparsity: zeros / weights of the operations.
        """
        density = _share(self.activations_nonzero, self.activations)
        return {
            "Footprint": self.weight_bytes + self.buffer_bytes,
            "ConnectionSparsity": _share(self.weights_zero, self.weights),
            "ActivationSparsity": None if density is None else 1 - density,
            "SynapticOperations": {
                "Effective_MACs": _share(sum(op.nb_macs for op in self.ops.values()), frames),
                "Effective_ACs": _share(sum(op.nb_acs for op in self.ops.values()), frames),
                "Dense": _share(sum(op.nb_dense for op in self.ops.values()), frames),
            },
        }


def _row(op: OpCounts, *, by_delta: bool) -> dict[str, float]:
    """What adds over operations: the parts and wholes of all shares."""
    frames = op.frames_first + op.frames_later
    return {
        "later": op.dense_macs * op.frames_later,
        "all": op.dense_macs * frames,
        "first": op.macs_first,
        "remaining": op.delta_macs_later if by_delta else op.macs_later,
        "acs": op.delta_acs_later if by_delta else op.acs_later,
        "act_later": op.macs_later,
        "delta_later": op.delta_macs_later,
        "nonzero": float(op.nonzero_first + op.nonzero_later),
        "elements": float(op.elements * frames),
        "changed": float(op.changed_later),
        "elements_later": float(op.elements * op.frames_later),
    }


def _densities(row: Mapping[str, float]) -> dict[str, float | None]:
    return {
        "op_density": _share(row["remaining"], row["later"]),
        "op_density_with_first_frame": _share(row["first"] + row["remaining"], row["all"]),
        "op_density_deltas": _share(row["delta_later"], row["later"]),
        "op_density_activations": _share(row["act_later"], row["later"]),
        "activation_density": _share(row["nonzero"], row["elements"]),
        "delta_density": _share(row["changed"], row["elements_later"]),
    }
