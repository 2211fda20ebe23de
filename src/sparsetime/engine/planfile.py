"""Plans on disk: one safetensors file whose metadata holds the header. Format in `docs/plan.md`."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialised

from sparsetime.engine.ops import InputSpec, Op, PlanError
from sparsetime.engine.plan import Plan
from sparsetime.engine.structure import entry_of, rebuilt
from sparsetime.files import write_whole

__all__ = ["FORMAT", "VERSION", "header_and_returned", "header_of", "load", "save", "tensors_of"]

FORMAT = "sparsetime.plan"
VERSION = 1
INT8_VERSION = 2
"""What plans of precision int8 say: a reader that knows version 1 alone would get them wrong. Others still say 1."""
_DTYPES = ("F32", "I32", "I64", "BOOL", "I8")
_HEADER = ("format", "version", "producer", "name", "dtype", "input", "values", "ops", "outputs", "structure")
_PRECISION = {VERSION: "float32", INT8_VERSION: "int8"}
_OP = ("kind", "name", "inputs", "outputs", "attributes", "tensors", "activation", "codec", "source")


def header_of(plan: Plan) -> dict[str, Any]:
    """The header as JSON-able data: everything of a plan but its tensors."""
    return header_and_returned(plan)[0]


def header_and_returned(plan: Plan) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """The header, and by name the arrays that the network returns as they are."""
    returned: dict[str, np.ndarray[Any, Any]] = {}

    def named(leaf: Any) -> Any:
        if "array" not in leaf:
            return leaf
        name = f"returned.{len(returned)}"
        while name in plan.tensors:
            name += "_"
        returned[name] = leaf["array"]
        return {"tensor": name}

    structure = rebuilt(plan.structure, named)
    spec = plan.input
    ops = []
    for op in plan.ops:
        entry: dict[str, Any] = {
            "kind": op.kind,
            "name": op.name,
            "inputs": list(op.inputs),
            "outputs": list(op.outputs),
            "attributes": dict(op.attributes),
            "tensors": dict(op.tensors),
            "activation": None if op.activation is None else dict(op.activation),
            "codec": None if op.codec is None else dict(op.codec),
            "source": op.source,
        }
        if op.crossover is not None:
            entry["crossover"] = op.crossover
        ops.append(entry)
    header = {
        "format": FORMAT,
        "version": VERSION if plan.precision == "float32" else INT8_VERSION,
        "producer": plan.producer,
        "name": plan.name,
        "dtype": plan.precision,
        "input": None if spec is None else {"mean": list(spec.mean), "std": list(spec.std), "color": spec.color},
        "values": [list(shape) for shape in plan.values],
        "ops": ops,
        "outputs": list(plan.outputs),
        "structure": structure,
    }
    return header, returned


def save(plan: Plan, path: Path) -> None:
    """Write a plan; a file of that name is replaced when the new one is whole."""
    header, returned = header_and_returned(plan)
    text = json.dumps(header, allow_nan=False, separators=(",", ":"))
    write_whole(path, serialised(dict(plan.tensors) | returned, metadata={FORMAT: text}))


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of a plan")


def _entries(x: Any, where: str, wanted: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    if not isinstance(x, dict):
        raise PlanError(f"{where}: expected an object, got {type(x).__name__}")
    missing = [key for key in wanted if key not in x]
    extra = [key for key in x if key not in wanted + optional]
    if missing or extra:
        raise PlanError(f"{where}: missing entries {missing}, unknown entries {extra[:5]}")
    return x


def _want(x: Any, kind: type | tuple[type, ...], where: str) -> Any:
    if not isinstance(x, kind) or (isinstance(x, bool) and kind is not bool):
        raise PlanError(f"{where}: got {type(x).__name__} {repr(x)[:60]}")
    return x


def _integers(x: Any, where: str) -> tuple[int, ...]:
    if not isinstance(x, list) or not all(type(i) is int for i in x):
        raise PlanError(f"{where}: expected a list of integers, got {repr(x)[:60]}")
    return tuple(x)


def _strings(x: Any, where: str) -> dict[str, str]:
    if not isinstance(x, dict) or not all(isinstance(v, str) for v in x.values()):
        raise PlanError(f"{where}: expected an object of strings, got {repr(x)[:60]}")
    return x


def _optional(x: Any, kind: type, where: str) -> Any:
    return None if x is None else _want(x, kind, where)


def _op(x: Any, number: int, precision: str) -> Op:
    where = f"op {number}"
    x = _entries(x, where, _OP, ("crossover",))
    return Op(
        kind=_want(x["kind"], str, f"{where}, kind"),
        name=_want(x["name"], str, f"{where}, name"),
        inputs=_integers(x["inputs"], f"{where}, inputs"),
        outputs=_integers(x["outputs"], f"{where}, outputs"),
        attributes=_want(x["attributes"], dict, f"{where}, attributes"),
        tensors=_strings(x["tensors"], f"{where}, tensors"),
        activation=_optional(x["activation"], dict, f"{where}, activation"),
        codec=_optional(x["codec"], dict, f"{where}, codec"),
        source=_optional(x["source"], str, f"{where}, source"),
        crossover=x.get("crossover"),
        precision=precision,
    )


def _input(x: Any) -> InputSpec | None:
    if x is None:
        return None
    x = _entries(x, "input", ("mean", "std", "color"))
    numbers = []
    for key in ("mean", "std"):
        entry = _want(x[key], list, f"input, {key}")
        if not all(type(i) in (int, float) for i in entry):
            raise PlanError(f"input, {key}: expected numbers, got {repr(entry)[:60]}")
        numbers.append(tuple(entry))
    return InputSpec(numbers[0], numbers[1], _want(x["color"], str, "input, color"))


def _structure(structure: Any, tensors: dict[str, np.ndarray[Any, Any]], returned: set[str]) -> Any:
    """The structure with arrays in the place of names, which are added to `returned`; all else is checked later."""

    def found(leaf: Any) -> Any:
        key, entry = entry_of(leaf)
        if key == "array":
            raise PlanError("structure: an array stands in a file as the name of a tensor")
        if key != "tensor":
            return leaf
        if not isinstance(entry, str) or entry not in tensors:
            raise PlanError(f"structure: there is no tensor {repr(entry)[:60]}")
        returned.add(entry)
        return {"array": tensors[entry]}

    return rebuilt(structure, found)


def parse(text: str, tensors: dict[str, np.ndarray[Any, Any]]) -> Plan:
    """Build a plan from a header's text and its tensors.

    Raises:
        PlanError: it is not a header of a known version, or something does not fit.
    """
    try:
        header = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"the header is no JSON: {error}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise PlanError(f"the header does not say that its format is '{FORMAT}'")
    version = header.get("version")
    if type(version) is not int or version not in _PRECISION:
        raise PlanError(
            f"version {repr(version)[:20]} of the plan format is not known here (this is {INT8_VERSION}). "
            "Compile the network again with this version of sparsetime."
        )
    header = _entries(header, "header", _HEADER)
    precision = _PRECISION[version]
    if header["dtype"] != precision:
        raise PlanError(f"dtype: expected '{precision}', got {repr(header['dtype'])[:20]}")
    values = _want(header["values"], list, "values: expected a list")
    ops = _want(header["ops"], list, "ops: expected a list")
    returned: set[str] = set()
    structure = _structure(header["structure"], tensors, returned)
    return Plan(
        name=_want(header["name"], str, "name: expected a string"),
        values=tuple(_integers(shape, f"value {k}") for k, shape in enumerate(values)),
        ops=tuple(_op(op, k, precision) for k, op in enumerate(ops)),
        outputs=_integers(header["outputs"], "outputs"),
        structure=structure,
        tensors={name: tensor for name, tensor in tensors.items() if name not in returned},
        input=_input(header["input"]),
        producer=_want(header["producer"], str, "producer: expected a string"),
        precision=precision,
    )


def tensors_of(file: Any, dtypes: Collection[str]) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of an open safetensors file, by name.

    Args:
        file: as `safe_open` gives it.
        dtypes: which may be in it, by the names of safetensors; it has some that numpy has not.

    Raises:
        PlanError: a tensor of another type.
    """
    tensors = {}
    for name in file.keys():  # noqa: SIM118 - not a dictionary
        dtype = file.get_slice(name).get_dtype()
        if dtype not in dtypes:
            raise PlanError(f"tensor '{name}': expected one of {sorted(dtypes)}, got {dtype}")
        tensors[name] = file.get_tensor(name)
    return tensors


def load(path: Path) -> Plan:
    """Read a plan; see `Plan.load`."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise PlanError(f"{path}: {what}; expected a plan, as `sparsetime compile ... --out FILE.plan` writes it")
    try:
        # safetensors has checked offsets and sizes against the file's length when this opens.
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(FORMAT)
            if text is None:
                raise PlanError(f"a safetensors file, but no plan: its metadata has no '{FORMAT}'")
            return parse(text, tensors_of(file, _DTYPES))
    except SafetensorError as error:
        raise PlanError(
            f"{path}: no plan, or not a whole one (not a whole safetensors file: {error}). `sparsetime compile` writes "
            "plans, and the plan comes in front of the video"
        ) from error
    except RecursionError as error:
        raise PlanError(f"{path}: the header is nested too deep") from error
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from error.__cause__
