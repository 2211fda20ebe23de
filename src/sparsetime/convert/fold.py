"""Join operations of a draft that one can do: constants into weights, activations and additions into their makers.

Every pass keeps the meaning; `fold` repeats them until nothing is left to join.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsetime.convert.branches import branches_into_one
from sparsetime.convert.draft import Draft, DraftOp
from sparsetime.engine.ops import WEIGHTED
from sparsetime.engine.shapes import shaped_to_weight

__all__ = ["fold"]

Array = NDArray[Any]


def _narrow(x: NDArray[np.float64]) -> Array:
    return np.ascontiguousarray(x.astype(np.float32))


def _scalar_or_channels(array: Array | None, channels: int) -> bool:
    return array is None or array.shape in ((1,), (channels,))


def _scale_weights(op: DraftOp, scale: NDArray[np.float64], axis: int) -> None:
    """Multiply the weights of every channel of an axis by its entry of `scale`."""
    weight = op.tensors["weight"].astype(np.float64)
    op.tensors["weight"] = _narrow(weight * shaped_to_weight(scale, weight.shape, axis, op.attributes.get("groups", 1)))


def _affine_into_weights(draft: Draft, op: DraftOp) -> bool:
    """conv, then x * scale + shift: W' = W scale, b' = b scale + shift."""
    if op.kind != "affine" or not op.inputs:
        return False
    maker = draft.producer(op.inputs[0])
    if maker.kind not in WEIGHTED or not maker.bare or len(maker.inputs) != 1:
        return False
    if draft.only_consumer(maker.output) is not op:
        return False
    shape = draft.shapes[op.output]
    if maker.kind == "linear" and len(shape) not in (2, 3):
        return False
    channels = shape[1] if maker.kind != "linear" else shape[-1]
    scale, shift = op.tensors.get("scale"), op.tensors.get("shift")
    if not _scalar_or_channels(scale, channels) or not _scalar_or_channels(shift, channels):
        return False
    _scale_outputs(maker, scale, shift, channels)
    maker.activation, maker.codec = op.activation, op.codec
    draft.bypass(op, maker.output)
    return True


def _scale_outputs(op: DraftOp, scale: Array | None, shift: Array | None, channels: int) -> None:
    """Multiply an operation's output channels and add to them."""
    factor = np.ones(channels) * (1.0 if scale is None else scale.astype(np.float64))
    bias = op.tensors.get("bias")
    total = np.zeros(channels) if bias is None else bias.astype(np.float64) * factor
    if shift is not None:
        total = total + shift.astype(np.float64)
    if scale is not None:
        _scale_weights(op, factor, axis=int(op.kind == "conv_transpose2d"))
    if bias is not None or shift is not None:
        op.tensors["bias"] = _narrow(total)


def _joined(draft: Draft, op: DraftOp) -> list[DraftOp]:
    """The bare convolutions whose channels an operation's input joins, if nothing else reads any of it; else none."""
    cat = draft.producer(op.inputs[0])
    if cat.kind != "cat" or not cat.bare or cat.attributes["axis"] != 1 or draft.only_consumer(cat.output) is not op:
        return []
    makers = [draft.producer(value) for value in cat.inputs]
    fit = all(
        m.kind in ("conv2d", "conv_transpose2d")
        and m.bare
        and len(m.inputs) == 1
        and draft.only_consumer(m.output) is cat
        for m in makers
    )
    return makers if fit and len(set(cat.inputs)) == len(makers) else []


def _affine_into_joined(draft: Draft, op: DraftOp) -> bool:
    """Convolutions side by side, then x * scale + shift: each takes its channels' part."""
    if op.kind != "affine" or not op.bare:
        return False
    makers = _joined(draft, op)
    scale, shift = op.tensors.get("scale"), op.tensors.get("shift")
    channels = sum(draft.shapes[maker.output][1] for maker in makers)
    if not makers or not _scalar_or_channels(scale, channels) or not _scalar_or_channels(shift, channels):
        return False
    first = 0
    for maker in makers:
        count = draft.shapes[maker.output][1]
        own = slice(first, first + count)
        parts = [a if a is None or a.shape == (1,) else a[own] for a in (scale, shift)]
        _scale_outputs(maker, parts[0], parts[1], count)
        first += count
    draft.bypass(op, op.inputs[0])
    return True


def _activation_into_joined(draft: Draft, op: DraftOp) -> bool:
    """Convolutions side by side, then an activation: each has it itself."""
    if op.kind != "identity" or op.activation is None or op.codec is not None:
        return False
    makers = _joined(draft, op)
    for maker in makers:
        maker.activation = op.activation
    if makers:
        draft.bypass(op, op.inputs[0])
    return bool(makers)


def _affine_into_affine(draft: Draft, op: DraftOp) -> bool:
    """Two in a row: scale' = s1 s2, shift' = t1 s2 + t2."""
    if op.kind != "affine":
        return False
    maker = draft.producer(op.inputs[0])
    if maker.kind != "affine" or not maker.bare or draft.only_consumer(maker.output) is not op:
        return False

    def entry(o: DraftOp, role: str, default: float) -> NDArray[np.float64]:
        array = o.tensors.get(role)
        return np.asarray([default]) if array is None else array.astype(np.float64)

    parts = [entry(o, role, default) for o in (maker, op) for role, default in (("scale", 1.0), ("shift", 0.0))]
    if len({p.shape for p in parts if p.shape != (1,)}) > 1:
        return False
    first_scale, first_shift, scale, shift = parts
    op.tensors = {"scale": _narrow(first_scale * scale), "shift": _narrow(first_shift * scale + shift)}
    draft.bypass(maker, maker.inputs[0])
    return True


def _scale_into_next(draft: Draft, op: DraftOp) -> bool:
    """x * scale, then convolutions: the scale goes into their input channels. A shift would miss the border."""
    if op.kind != "affine" or not op.bare or "shift" in op.tensors or op.output in draft.outputs:
        return False
    readers = draft.consumers(op.output)
    shape, scale = draft.shapes[op.output], op.tensors["scale"].astype(np.float64)
    if not readers or len(shape) not in (2, 4) or not _scalar_or_channels(scale, shape[1]):
        return False
    if any(
        r.kind not in ("conv2d", "linear") or r.inputs.count(op.output) > 1 or r.inputs[0] != op.output for r in readers
    ):
        return False
    if any(r.kind == "linear" and len(shape) != 2 for r in readers):
        return False
    full = np.ones(shape[1]) * scale
    for reader in readers:
        _scale_weights(reader, full, axis=1)
    draft.bypass(op, op.inputs[0])
    return True


def _pad_into_conv(draft: Draft, op: DraftOp) -> bool:
    """A border of zeros in front of convolutions becomes their padding."""
    if op.kind != "pad" or not op.bare or op.attributes["value"] != 0 or op.output in draft.outputs:
        return False
    readers = draft.consumers(op.output)
    if not readers or any(r.kind != "conv2d" or r.inputs[0] != op.output or len(r.inputs) > 1 for r in readers):
        return False
    for reader in readers:
        old, border = reader.attributes["padding"], op.attributes["padding"]
        reader.attributes["padding"] = [a + b for a, b in zip(old, border, strict=True)]
    draft.bypass(op, op.inputs[0])
    return True


def _is_affine(op: DraftOp, scale: float, shift: float) -> bool:
    if op.kind != "affine" or not op.bare:
        return False
    found = [float(a[0]) if (a := op.tensors.get(r, default)).shape == (1,) else None for r, default in _NEUTRAL]
    return all(x is not None and abs(x - y) < 1e-6 for x, y in zip(found, (scale, shift), strict=True))


_NEUTRAL = (("scale", np.ones(1, np.float32)), ("shift", np.zeros(1, np.float32)))


def _only_activation(op: DraftOp, **activation: Any) -> bool:
    return op.kind == "identity" and op.codec is None and op.activation == activation


def _spelled_hardsigmoid(draft: Draft, op: DraftOp) -> bool:
    """clamp(x + 3, 0, 6) / 6, written out."""
    if not _is_affine(op, 1 / 6, 0):
        return False
    clamp = draft.producer(op.inputs[0])
    if not _only_activation(clamp, kind="clamp", min=0.0, max=6.0) or draft.only_consumer(clamp.output) is not op:
        return False
    plus = draft.producer(clamp.inputs[0])
    if not _is_affine(plus, 1, 3) or draft.only_consumer(plus.output) is not clamp:
        return False
    op.kind, op.tensors, op.activation = "identity", {}, {"kind": "hardsigmoid"}
    draft.bypass(clamp, plus.output)
    draft.bypass(plus, plus.inputs[0])
    return True


def _spelled_gate(draft: Draft, op: DraftOp) -> bool:
    """x sigmoid(x) and x hardsigmoid(x), written out: silu and hardswish."""
    if op.kind != "mul" or not op.bare:
        return False
    for x, y in (op.inputs, op.inputs[::-1]):
        gate = draft.producer(y)
        for inner, outer in (("sigmoid", "silu"), ("hardsigmoid", "hardswish")):
            if _only_activation(gate, kind=inner) and gate.inputs[0] == x and draft.only_consumer(y) is op:
                draft.ops.remove(gate)
                op.kind, op.inputs, op.activation = "identity", [x], {"kind": outer}
                return True
    return False


def _spelled_hardswish(draft: Draft, op: DraftOp) -> bool:
    """x clamp(x + 3, 0, 6) / 6 with the division last."""
    if not _is_affine(op, 1 / 6, 0):
        return False
    product = draft.producer(op.inputs[0])
    if product.kind != "mul" or not product.bare or draft.only_consumer(product.output) is not op:
        return False
    for x, y in (product.inputs, product.inputs[::-1]):
        clamp = draft.producer(y)
        if not _only_activation(clamp, kind="clamp", min=0.0, max=6.0) or draft.only_consumer(y) is not product:
            continue
        plus = draft.producer(clamp.inputs[0])
        if _is_affine(plus, 1, 3) and plus.inputs[0] == x and draft.only_consumer(plus.output) is clamp:
            for gone in (plus, clamp, product):
                draft.ops.remove(gone)
            op.kind, op.inputs, op.tensors, op.activation = "identity", [x], {}, {"kind": "hardswish"}
            return True
    return False


def _follower_into_maker(draft: Draft, op: DraftOp) -> bool:
    """An activation or a codec goes to the operation whose value nothing else reads."""
    if op.kind != "identity":
        return False
    maker = draft.producer(op.inputs[0])
    if draft.only_consumer(maker.output) is not op or len(maker.outputs) > 1 or maker.codec is not None:
        return False
    if op.activation is not None and (maker.activation is not None or maker.kind in ("input", "island")):
        return False
    if maker.kind == "identity" and op.activation is not None:
        return False
    maker.activation = op.activation if maker.activation is None else maker.activation
    maker.codec = op.codec
    draft.bypass(op, maker.output)
    return True


def _addition_into_conv(draft: Draft, op: DraftOp) -> bool:
    """conv(x) + r: both add into one accumulator. The convolution takes the addition's place."""
    if op.kind != "add" or op.inputs[0] == op.inputs[1]:
        return False
    position = draft.ops.index
    found: list[tuple[int, DraftOp, int]] = []
    for mine, other in ((0, 1), (1, 0)):
        maker = draft.producer(op.inputs[mine])
        fits = maker.kind in ("conv2d", "linear") and maker.bare and len(maker.inputs) == 1
        if fits and op.attributes["coefficients"][other] == 1 and draft.only_consumer(maker.output) is op:
            found.append((position(maker), maker, mine))
    if not found:
        return False
    _, maker, mine = max(found, key=lambda entry: entry[0])
    factor = float(op.attributes["coefficients"][mine])
    if factor != 1:
        for role, array in maker.tensors.items():
            maker.tensors[role] = _narrow(array.astype(np.float64) * factor)
    maker.inputs.append(op.inputs[1 - mine])
    maker.outputs, maker.activation, maker.codec = [op.output], op.activation, op.codec
    draft.ops.remove(maker)
    draft.ops[position(op)] = maker
    return True


def _moves_in_a_row(draft: Draft, op: DraftOp) -> bool:
    """A reshape of a reshape is one reshape; one that changes nothing is none."""
    if op.kind != "reshape" or not op.bare:
        return False
    if draft.shapes[op.inputs[0]] == draft.shapes[op.output]:
        draft.bypass(op, op.inputs[0])
        return True
    maker = draft.producer(op.inputs[0])
    if maker.kind == "reshape" and maker.bare:
        op.inputs = list(maker.inputs)
        return True
    return False


_Pass = Callable[[Draft, DraftOp], bool]
_PASSES: tuple[_Pass, ...] = (
    _moves_in_a_row,
    _spelled_hardsigmoid,
    _spelled_hardswish,
    _spelled_gate,
    _affine_into_affine,
    _affine_into_weights,
    _affine_into_joined,
    _scale_into_next,
    _pad_into_conv,
)
# An activation that has found its maker hides it from the passes above, so these come when those are done.
_LATE: tuple[_Pass, ...] = (_addition_into_conv, branches_into_one, _activation_into_joined, _follower_into_maker)


def _sweep(draft: Draft, passes: tuple[_Pass, ...]) -> bool:
    """Try every pass on every operation once. Returns whether one found something."""
    draft.remove_dead()
    changed = False
    for op in list(draft.ops):
        for step in passes:
            if op in draft.ops and step(draft, op):
                changed = True
    return changed


def fold(draft: Draft) -> None:
    """Run all passes on a draft, in place, until none finds anything."""
    for passes in (_PASSES, _LATE):
        while _sweep(draft, passes):
            pass
    draft.remove_dead()
