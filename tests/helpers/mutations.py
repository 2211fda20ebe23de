"""Damage to plan files: bytes, header entries and tensors, deterministic by seed.

`python tests/helpers/mutations.py 10000` loads that many and says how many were refused; it fails on anything
else than an error of the right kind or a valid plan.
"""

from __future__ import annotations

import copy
import json
import random
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from sparsetime.convert.integers import quantised_plan
from sparsetime.engine import Op, Plan, PlanError
from sparsetime.engine.planfile import header_and_returned

ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 3, 7, 2**31, 2**63, -(2**63), 10**40, 0.5, -0.0, 1e308, 1e-320),
    *("", "x", "input", "conv2d", "0.weight", "\u0000", [], {}, [[]], [0], [1, 1], [10**9] * 4, {"value": 0}),
    *({"kind": "relu"}, {"output": 0}, {"tuple": []}, {"tensor": "0.weight"}, "aten.relu.default", "a" * 300),
]


def places(x: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything inside JSON data."""
    found = [path] if path else []
    if isinstance(x, dict):
        for key in x:
            found += places(x[key], (*path, key))
    if isinstance(x, list):
        for k in range(len(x)):
            found += places(x[k], (*path, k))
    return found


def change(header: dict[str, Any], rng: random.Random) -> None:
    """One change in one place: another value, an entry less, an entry twice, two exchanged."""
    path = rng.choice(places(header))
    owner: Any = header
    for key in path[:-1]:
        owner = owner[key]
    match rng.randrange(5):
        case 0:
            del owner[path[-1]]
        case 1 if isinstance(owner, list):
            owner.insert(path[-1], copy.deepcopy(owner[path[-1]]))
        case 2 if isinstance(owner[path[-1]], int):
            owner[path[-1]] += rng.choice([-1, 1, 100, 2**20])
        case 3:
            other: Any = header
            for key in rng.choice(places(header)):
                other = other[key]
            owner[path[-1]] = copy.deepcopy(other)
        case _:
            owner[path[-1]] = copy.deepcopy(rng.choice(ODD))


def change_tensor(tensors: dict[str, np.ndarray[Any, Any]], rng: random.Random) -> None:
    """One tensor of another shape, type or content, or none."""
    name = rng.choice(sorted(tensors))
    match rng.randrange(5):
        case 0:
            del tensors[name]
        case 1:
            tensors[name] = tensors[name].reshape(-1)
        case 2:
            tensors[name] = tensors[name].astype(
                rng.choice(["float64", "float16", "int32", "int64", "bool", "uint8", "int8"])
            )
        case 3:
            number = rng.choice([np.nan, np.inf, -1, 0, 1e30, 300])
            with np.errstate(invalid="ignore", over="ignore"):
                tensors[name] = np.full(tensors[name].shape, number).astype(tensors[name].dtype)
        case _:
            tensors[name] = np.zeros((0, 2), np.float32)


def mutate(plan: Plan, path: Path, seed: int) -> None:
    """Write a damaged copy of a plan."""
    rng = random.Random(seed)
    header, returned = header_and_returned(plan)
    header = json.loads(json.dumps(header))
    tensors = {name: np.array(tensor) for name, tensor in (*plan.tensors.items(), *returned.items())}
    kind = rng.randrange(4)
    if kind <= 1:
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            change(header, rng)
    if (kind == 1 and tensors and rng.random() < 0.5) or kind == 2:
        change_tensor(tensors, rng)
    save_file(tensors, path, metadata={"sparsetime.plan": json.dumps(header)})
    if kind == 3:
        content = bytearray(path.read_bytes())
        for _ in range(rng.choice([1, 2, 8, 64])):
            place = rng.randrange(min(len(content), rng.choice([8, 200, len(content)])))
            content[place] = rng.choice([content[place] ^ (1 << rng.randrange(8)), rng.randrange(256)])
        if rng.random() < 0.3:
            content = content[: rng.randrange(len(content))] if rng.random() < 0.5 else content + content[:100]
        path.write_bytes(bytes(content))


def varied() -> Plan:
    """A small plan with an operation of most kinds, an island among them."""
    rows = np.asarray([[0, 2], [2, 4]], np.int32)
    f = np.float32
    tensors = {
        "step": np.asarray([0.5], f),
        "w": np.ones((2, 2, 3, 3), f),
        "d": np.full((2, 2), 4, f),
        "rows": rows,
        "i": np.asarray([1, 0, -1], np.int32),
        "rw": np.full((2, 2), 0.5, f),
        "m": np.ones((3, 8), f),
        "s": np.asarray([2, 3], f),
        "ab": np.zeros((1, 1, 2, 2), f),
    }
    conv = {"stride": [1, 1], "padding": [1, 1, 1, 1], "dilation": [1, 1], "groups": 1}
    exact = {"kind": "exact", "tensor": "step", "low": -9, "high": 9}
    clamp = {"kind": "clamp", "min": 0.0, "max": 6.0}
    softmax = {"target": "aten.softmax.int", "arguments": [{"value": 9}, -1], "keywords": {}, "types": ["float32"]}
    ops = (
        Op("input", "input", (), (0,), codec={"kind": "hold", "tensor": "step"}),
        Op("conv2d", "conv", (0, 0), (1,), conv, {"weight": "w"}, clamp, exact),
        Op("affine", "affine", (1,), (2,), {}, {"scale": "s", "shift": "s"}),
        Op("max_pool2d", "max", (2,), (3,), {"dilation": [1, 1]}, {"rows": "rows", "columns": "rows"}),
        Op("avg_pool2d", "avg", (2,), (4,), {}, {"rows": "rows", "columns": "rows", "divisor": "d"}),
        Op("add", "add", (3, 4), (5,), {"coefficients": [1.0, -0.5]}),
        Op("mul", "mul", (5, 3), (6,), activation={"kind": "silu"}),
        Op("cat", "cat", (6, 5), (7,), {"axis": 2}),
        Op("gather", "gather", (7,), (8,), {}, {"index": "index"}),
        Op("linear", "linear", (8,), (9,), {}, {"weight": "m"}),
        Op("island", "softmax", (9,), (10,), softmax),
        Op("channels", "channels", (7,), (11,), {}, {"index": "i"}),
        Op(
            "resize2d",
            "resize",
            (11,),
            (12,),
            {},
            dict.fromkeys(("rows", "columns"), "rows2") | dict.fromkeys(("row_weights", "column_weights"), "rw"),
        ),
        Op("pad", "pad", (12,), (13,), {"padding": [0, 1, 2, 0], "value": 0.0}),
        Op("layer_norm", "norm", (5,), (14,), {"eps": 0.1}, {"scale": "s", "shift": "s"}),
        Op("reshape", "rows", (5,), (15,)),
        Op("attention", "attention", (15, 15, 15), (16,), {"windows": 2, "heads": 1, "scale": 0.5}, {"bias": "ab"}),
    )
    tensors["index"] = np.arange(8, dtype=np.int32)
    tensors["rows2"] = np.asarray([[0, 1], [1, 0]], np.int32)
    maps = [(1, 2, 4, 4)] * 3 + [(1, 2, 2, 2)] * 4
    shapes = (*maps, (1, 2, 4, 2), (1, 8), (1, 3), (1, 3), (1, 3, 4, 2), (1, 3, 2, 2), (1, 3, 3, 4), (1, 2, 2, 2))
    structure = {"dict": {"a": {"output": 0}, "b": [{"output": 1}, {"constant": None}]}}
    structure["dict"]["c"] = {"array": np.arange(3)}
    return Plan("varied", (*shapes, (1, 4, 2), (1, 4, 2)), ops, (10, 13), structure, tensors)


def varied_int8() -> Plan:
    """A small plan of precision int8: codes from every kind of source, weights of every kind."""
    return quantised_plan(_float32_of_int8(), [np.linspace(-1, 1, 32, dtype=np.float32).reshape(1, 2, 4, 4)])


def _float32_of_int8() -> Plan:
    f = np.float32
    tensors = {
        "step": np.asarray([0.1], f),
        "w": np.linspace(-1, 1, 36, dtype=f).reshape(2, 2, 3, 3),
        "b": np.asarray([1, -1], f),
        "d": np.ones((2, 1, 3, 3), f),
        "t": np.ones((2, 2, 2, 2), f),
        "rows": np.asarray([[0, 4], [4, 8]], np.int32),
        "f": np.full((2, 2), 16, f),
        "m": np.ones((3, 8), f),
    }
    conv = {"stride": [1, 1], "padding": [1, 1, 1, 1], "dilation": [1, 1], "groups": 1}
    up = {"stride": [2, 2], "padding": [0] * 4, "dilation": [1, 1], "groups": 1, "output_padding": [0, 0]}
    hold = {"kind": "hold", "tensor": "step"}
    relu = {"kind": "relu"}
    ops = (
        Op("input", "input", (), (0,), codec=hold),
        Op("conv2d", "conv", (0, 0), (1,), conv, {"weight": "w", "bias": "b"}, relu, hold),
        Op("conv2d", "depthwise", (1,), (2,), {**conv, "groups": 2}, {"weight": "d"}, relu),
        Op("cat", "cat", (1, 2), (3,), {"axis": 1}),
        Op("channels", "channels", (3,), (4,), {}, {"index": "i"}),
        Op("conv_transpose2d", "up", (4,), (5,), up, {"weight": "t"}),
        Op("avg_pool2d", "avg", (5,), (6,), {}, {"rows": "rows", "columns": "rows", "divisor": "f"}),
        Op("reshape", "flat", (6,), (7,)),
        Op("linear", "linear", (7,), (8,), {}, {"weight": "m"}),
    )
    tensors["i"] = np.asarray([3, -1], np.int32)
    maps = [(1, 2, 4, 4)] * 3 + [(1, 4, 4, 4), (1, 2, 4, 4), (1, 2, 8, 8), (1, 2, 2, 2)]
    return Plan("int8", (*maps, (1, 8), (1, 3)), ops, (8,), {"output": 0}, tensors)


def main(count: int) -> None:
    for plan in (varied(), varied_int8()):
        fuzz(plan, count)


def fuzz(plan: Plan, count: int) -> None:
    """Load that many damaged copies of a plan."""
    refused = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mutated.plan")
        plan.save(path)
        Plan.load(path)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for seed in range(count):
            mutate(plan, path, seed)
            try:
                Plan.load(path)
            except PlanError:
                refused += 1
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    kept = f"{refused} refused, {count - refused} still plans, {grown} kB more memory at most"
    print(f"{count} damaged plans of precision {plan.precision}: {kept}")
    if grown > 50_000:
        raise SystemExit("reading damaged plans took more memory than their files warrant")


if __name__ == "__main__":
    main(int(sys.argv[1]))
