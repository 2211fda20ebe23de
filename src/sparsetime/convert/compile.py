"""From a module to a plan: export, lower, fold, place codecs, find their steps."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsetime.convert.draft import CompileError, Draft, DraftOp
from sparsetime.convert.export import export, remembers
from sparsetime.convert.fold import fold
from sparsetime.convert.frame import with_batch
from sparsetime.convert.integers import quantised_plan
from sparsetime.convert.learned import prepared
from sparsetime.convert.lower import lower
from sparsetime.convert.place import Placement, place
from sparsetime.convert.steps import LEVELS, fan_out_factors, ranges
from sparsetime.engine.check import LEAST_STEP
from sparsetime.engine.frames import FrameReader
from sparsetime.engine.ops import PRECISIONS, InputSpec
from sparsetime.engine.plan import Plan
from sparsetime.engine.shapes import channel_axis

__all__ = ["CompileError", "compile"]

_OTHER_SIZE = "Frames in steps= are of the size of the example frame: resize them."

Steps = Mapping[str, float | Tensor] | Tensor | Iterable[Tensor] | float | None


def compile(
    model: nn.Module,
    example_frame: Tensor,
    *,
    steps: Steps = None,
    codec: str | None = None,
    placement: Placement | None = None,
    percentile: float = 99.9,
    levels: float | None = None,
    strict: bool = False,
    precision: str = "float32",
) -> Plan:
    """Compile a network to a plan, for frames of the example's size.

    A network from `sparsetime.sparsify` brings its codecs and learned steps; nothing more is needed. A plain one gets
    codecs behind its nonlinearities, with steps (`exact`) or thresholds (`hold`, `pixel`) of range / levels; a range is
    the percentile of |value| over a short clip; thresholds are coarser where an event costs more, see
    `sparsetime.convert.steps`.

    Args:
        model: any module that `torch.export` takes; left as it was. Its attribute `spec`, if it has one, says what
            uint8 frames become: (frame - spec.mean) / spec.std, a number per channel each, in units of 0 to 255, in the
            order of spec.color ("rgb", "bgr").
        example_frame: (1, C, H, W), or (C, H, W); (1, L, F) or (1, F) of networks that take those.
        steps: of a plain network: frames to calibrate on, (T, C, H, W) or an iterable of (C, H, W), prepared as the
            network wants them or uint8 if it has a `spec`; or one number for all; or a mapping from names of operations
            (`Plan.describe()`) to steps, the others calibrated on the example. None: calibrate on the example frame.
        codec: of a plain network: `exact`, `hold`, `pixel` or `residual`; see `docs/plan.md`. None: `exact`, in
            int8 `pixel`, where it is the faster one.
        placement: of a plain network's codecs, see `sparsetime.convert.place`. None: `every` for `hold` and `pixel`,
            where it costs fewer operations at the same distance from dense, `nonlinear` for the others, which round.
        percentile: see above.
        levels: see above; None for 64 (`exact`, `residual`) or 100 (`hold`, `pixel`).
        strict: raise where an operation would become a dense island.
        precision: `float32`; or `int8`: weights and values of one byte, whose integer sums never drift, see
            `sparsetime.convert.integers`. Its ranges are found on the frames of `steps` (of a network with learned
            steps too), else on the example frame.

    Raises:
        CompileError: the network cannot be a plan, or not without islands (`strict`); names operation and source line.
        ValueError: a frame, steps or a `spec` that do not fit, or in int8 an example of one colour and no other frame
            to find ranges on (in float32 a warning: every change is sent then).
        TypeError: no module, no tensor, or steps of another kind.
    """
    codec = codec or ("pixel" if precision == "int8" else "exact")
    _check_arguments(model, example_frame, codec, precision, levels)
    steps = _number_or_frames(steps)
    frame = with_batch(model, example_frame)
    kept: list[Any] | None = None
    if precision == "int8" and _are_frames(steps):
        steps = kept = list(steps)  # type: ignore[arg-type]  # they are looked at twice
    with prepared(model, frame.detach().float()) as (module, inputs, learned):
        draft = lower(export(module, inputs), _name(model), strict)
        if remembers(module, inputs):
            raise CompileError(
                f"{_name(model)} gives another answer to a frame when another frame came before it, so it keeps "
                "something in its attributes. A plan answers from the frame alone: take that out of forward()"
            )
    spec = _input_spec(model, tuple(frame.shape))  # once it is known that the network takes so many channels
    fold(draft)
    producer = f"sparsetime {version('sparsetime')}"
    if not learned:
        chosen = place(draft, codec, placement or ("every" if codec in ("hold", "pixel") else "nonlinear"))
        _set_steps(draft, chosen, steps, frame, spec, percentile, levels or LEVELS[codec])
    elif steps is not None and not (precision == "int8" and _are_frames(steps)):
        raise ValueError("compile: this network has learned steps; steps= is for plain networks")
    plan = draft.plan(spec, producer)
    if precision == "float32":
        return plan
    if kept is None and _is_blank(frame):
        raise ValueError(
            "compile: ranges of values (int8) are found on the example frame unless frames are given, and this one is "
            "of one colour. Give frames of what the network will see, as steps=..."
        )
    read = FrameReader(plan, _OTHER_SIZE)
    return quantised_plan(plan, (read(x) for x in (kept if kept is not None else [frame])))


def _check_arguments(model: Any, example_frame: Any, codec: str, precision: str, levels: float | None) -> None:
    if codec not in LEVELS:
        raise ValueError(f"codec must be one of {', '.join(LEVELS)}, got {codec!r}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if levels is not None and not 0 < levels < math.inf:
        raise ValueError(f"compile: levels must be a number above 0, got {levels}")
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"compile: expected a torch module, got {type(model).__name__}; sparsetime.networks.create(name, "
            "weights=...) makes the built-in ones"
        )
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if empty := [name for name, tensor in state.items() if tensor.is_meta]:
        raise CompileError(
            f"compile: expected a network with weights, got one on the device meta, where '{empty[0]}' has none. Load "
            "them: model.to_empty(device='cpu'), then model.load_state_dict(...)"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("compile: expected a module that can be traced, got a ScriptModule; give what it was made from")
    if not isinstance(example_frame, Tensor):
        raise TypeError(
            f"compile: expected one example frame as a torch tensor (1, C, H, W), got {type(example_frame).__name__}"
            + ("; torch.from_numpy(frame) makes one" if isinstance(example_frame, np.ndarray) else "")
        )


def _number_or_frames(steps: Any) -> Steps:
    """Numbers of numpy and torch as Python's."""
    if isinstance(steps, np.generic | np.ndarray | Tensor) and steps.ndim == 0:
        return float(steps)
    if isinstance(steps, str) or not isinstance(steps, int | float | Iterable | None):
        raise TypeError(f"compile: steps must be frames, a number, a mapping or None, got {type(steps).__name__}")
    return steps


def _is_blank(example: Tensor) -> bool:
    return example.numel() > 1 and bool((example == example.flatten()[0]).all())


def _are_frames(steps: Steps) -> bool:
    return isinstance(steps, Iterable) and not isinstance(steps, Mapping)


def _name(model: nn.Module) -> str:
    spec = getattr(model, "spec", None)
    return str(getattr(spec, "name", type(model).__name__))


def _input_spec(model: nn.Module, shape: tuple[int, ...]) -> InputSpec | None:
    """How uint8 frames are normalised, of a network that says so.

    Raises:
        ValueError: its `spec` says it in other words than `compile` reads, or in other units.
    """
    spec = getattr(model, "spec", None)
    has = (lambda key: key in spec) if isinstance(spec, Mapping) else (lambda key: hasattr(spec, key))
    if not has("mean") and not has("std"):
        return None
    found: dict[str, tuple[float, ...]] = {}
    for key in ("mean", "std"):
        value = getattr(spec, key, None)
        try:
            found[key] = tuple(map(float, value))  # type: ignore[arg-type]  # what comes is not known
        except (TypeError, ValueError):
            found[key] = ()
        if len(found[key]) != shape[1]:
            got = f"a {type(spec).__name__}" if isinstance(spec, Mapping) else f"{key} = {value!r}"
            raise ValueError(
                f"compile: {type(model).__name__}.spec must have attributes `mean` and `std`, {shape[1]} numbers each "
                f"(one per channel, in units of 0 to 255), got {got}. They say how uint8 frames are normalised: "
                "model.spec = types.SimpleNamespace(mean=..., std=...), or delete the spec"
            )
    if max(found["std"]) < 1:
        raise ValueError(
            f"compile: {type(model).__name__}.spec.std is {found['std']}, which is of values from 0 to 1; mean and std "
            "are in units of 0 to 255 here: multiply both by 255"
        )
    return InputSpec(found["mean"], found["std"], str(getattr(spec, "color", "rgb")))


def _set_steps(
    draft: Draft,
    chosen: list[DraftOp],
    steps: Steps,
    example: Tensor,
    spec: InputSpec | None,
    percentile: float,
    levels: float,
) -> None:
    """Give every codec that has been placed its step."""
    stated = dict(steps) if isinstance(steps, Mapping) else {}
    unknown = set(stated) - {op.name for op in chosen}
    if unknown:
        raise ValueError(f"steps: no codec stands at {sorted(unknown)}; codecs stand at {[op.name for op in chosen]}")
    if isinstance(steps, int | float):
        stated = {op.name: float(steps) for op in chosen}
    plain = draft.plan(spec, "")  # codecs have no steps yet, so it is the network without them
    for op in chosen:
        if op.name in stated:
            assert op.codec is not None
            op.codec.step = _step_array(op, stated[op.name], draft.shapes[op.output])
    rest = [op for op in chosen if op.name not in stated]
    if not rest:
        return
    numbers = {op.name: op.output for op in plain.ops if op.name in {o.name for o in chosen}}
    if _are_frames(steps) or not _is_blank(example):
        frames: Iterable[Tensor] = steps if _are_frames(steps) else [example]  # type: ignore[assignment]
        read = FrameReader(plain, _OTHER_SIZE)
        found = ranges(plain, [numbers[op.name] for op in rest], (read(frame) for frame in frames), percentile)
    else:
        warnings.warn(
            "compile: steps are found on the example frame unless frames are given, and this one is of one colour: "
            "every change will be sent. Give frames of what the network will see, as steps=...",
            stacklevel=3,
        )
        found = dict.fromkeys(numbers.values(), 0.0)
    factors = fan_out_factors(plain, numbers.values())
    for op in rest:
        assert op.codec is not None
        # Of a value that is zero on all frames every change is sent: what it will be is unknown.
        step = found[numbers[op.name]] / levels
        if op.codec.kind in ("hold", "pixel"):
            step *= factors[numbers[op.name]]
        else:
            step = max(step, LEAST_STEP)
        op.codec.step = np.asarray([step], np.float32)


def _step_array(op: DraftOp, step: float | Tensor, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    array = torch.as_tensor(step).detach().to("cpu", torch.float32, copy=True).numpy()
    if not (array >= 0).all():
        raise ValueError(f"steps: '{op.name}' must have steps of at least 0, got {array.min():g}")
    if array.size == 1:
        return array.reshape(1)
    axis = channel_axis(shape)
    if array.size == shape[axis]:
        return array.reshape(-1)
    if array.shape == shape[1:]:
        return array
    raise ValueError(f"steps: '{op.name}' has the shape {shape}, its steps must be one, {shape[axis]} or {shape[1:]}")
