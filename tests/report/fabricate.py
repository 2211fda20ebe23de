"""Run directories made up for the tests of the report: realistic in form, invented in their figures."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsetime.frames import save_frames

DENSITY = {"dense": 0.70, "spatial_l1": 0.30, "delta": 0.15}
ACCURACY = {"dense": 16, "spatial_l1": 15, "delta": 18}
CLASSES = ["handshake", "hug", "kick", "point", "punch", "push", "none"]
PHASES = {
    "dense": [("dense", 12)],
    "spatial_l1": [("warm-up", 5), ("strong", 5), ("weak", 2)],
    "delta": [("warm-up", 5), ("strong", 5), ("weak", 2)],
}


def fabricate(
    path: Path,
    *,
    method: str = "delta",
    network: str = "mobilenet_v1_025",
    data: str = "clips/ut_interaction",
    seed: int = 0,
    right: int | None = None,
    clips: int = 29,
    density: float | None = None,
    penalty: float = 8.0,
    rule: str = "dal",
    split: str = "test",
    blocks: int = 13,
    pictures: bool = True,
) -> Path:
    """Write a whole run directory and return it."""
    random = np.random.default_rng([seed, len(method), len(network)])
    path.mkdir(parents=True)
    right = ACCURACY[method] + seed % 3 - 1 if right is None else right
    density = DENSITY[method] * (1 + 0.05 * (seed % 3 - 1)) if density is None else density
    phases = [
        {"name": name, "share": count / 12, "penalty": 0.0 if name in {"dense", "warm-up"} else penalty}
        for name, count in PHASES[method]
    ]
    write_json(
        path / "config.json",
        {
            "network": network,
            "data": data,
            "method": method,
            "weights": "weights/mobilenet_v1_0.25_128_quant.npz",
            "seed": seed,
            "epochs": 12,
            "phases": phases,
            "lr": 5e-4,
            "rule": rule,
            "granularity": "layer",
            "codec": "exact",
            "classes": CLASSES,
            "left_dense": {"head.pool": "its input does not vary"} if method == "delta" else {},
            "versions": {"sparsetime": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6", "python": "3.11.2"},
            "machine": {"processor": "x86_64", "system": "Linux", "threads": 1, "capability": "AVX512"},
            "command": f"sparsetime train --data {data} --model {network} --method {method} --seed {seed}",
        },
    )
    write_metrics(path / "metrics.csv", method, density, penalty, random)
    write_json(
        path / f"evaluation-{split}.json", evaluation(method, density, right, clips, split, seed, blocks, random)
    )
    if pictures:
        frames, maps = moving_square(density)
        save_frames(path / f"frames-{split}.npz", frames, maps)
    return path


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    """Change some keys of a JSON file; None removes one."""
    value = json.loads(path.read_text(encoding="utf-8")) | changes
    write_json(path, {key: item for key, item in value.items() if item is not None})


def write_metrics(path: Path, method: str, density: float, penalty: float, random: np.random.Generator) -> None:
    names = [name for name, count in PHASES[method] for _ in range(count)]
    with path.open("w", newline="") as file:
        columns = (
            "epoch phase lr penalty_weight train_loss task_loss penalty train_accuracy val_accuracy op_density time_s"
        )
        writer = csv.DictWriter(file, columns.split())
        writer.writeheader()
        for epoch, name in enumerate(names):
            sparse = name not in {"dense", "warm-up"}
            task = 1.9 * np.exp(-0.22 * epoch) + 0.1 * random.random()
            cost = 0.2 * np.exp(-0.2 * epoch) if sparse else 0.0
            writer.writerow(
                {
                    "epoch": epoch,
                    "phase": name,
                    "lr": 5e-4,
                    "penalty_weight": penalty if sparse else 0.0,
                    "train_loss": task + penalty * cost,
                    "task_loss": task,
                    "penalty": cost,
                    "train_accuracy": 1 - 0.85 * np.exp(-0.3 * epoch),
                    "val_accuracy": "",
                    "op_density": density + (0.7 - density) * np.exp(-0.6 * max(0, epoch - 4)) if sparse else 0.7,
                    "time_s": 14.5,
                }
            )


def evaluation(
    method: str,
    density: float,
    right: int,
    clips: int,
    split: str,
    seed: int,
    blocks: int,
    random: np.random.Generator,
) -> dict[str, Any]:
    layers = []
    for i in range(2 * blocks + 2):
        kind = "linear" if i == 2 * blocks + 1 else "conv"
        block, part = (i + 1) // 2, "depthwise" if i % 2 else "pointwise"
        name = "classifier" if kind == "linear" else "features.0.0" if i == 0 else f"features.{block}.{part}.0"
        macs = float(random.integers(2, 60)) * (9_000 if part == "depthwise" else 40_000)
        share = float(np.clip(density * random.uniform(0.4, 1.6), 0, 1))
        layers.append(
            {
                "name": name,
                "kind": kind,
                "dense_macs": macs,
                "effective_macs": macs * share,
                "op_density": share,
                "activation_density": float(np.clip(0.5 + 0.2 * random.normal(), 0, 1)),
                "delta_density": share,
            }
        )
    dense = sum(layer["dense_macs"] for layer in layers)
    counts = [clips // 7 + (i < clips % 7) for i in range(7)]
    return {
        "split": split,
        "method": method,
        "seed": seed,
        "clips": clips,
        "frames": 32 * clips,
        "accuracy": right / clips,
        "op_density": density,
        "op_density_with_first_frame": density + 0.03,
        "activation_density": 0.5,
        "delta_density": density,
        "dense_macs": dense,
        "effective_macs": dense * density,
        "acs": 0.0,
        "state_bytes": 1_820_672 if method == "delta" else 0,
        "weight_bytes": 934_428,
        "not_counted": ["head.softmax: no weights"] if method == "delta" else [],
        "layers": layers,
        "confusion": [[count if i == j else 0 for j in range(7)] for i, count in enumerate(counts)],
        "predictions": [],
        "neurobench": {
            "ActivationSparsity": 1 - density,
            "SynapticOperations": {"Effective_MACs": dense * density, "Effective_ACs": 0.0, "Dense": dense * 0.98},
        },
        "energy": {
            part: {
                name: {"energy_uj": macs * pj * 1e-6, "source": "M. Horowitz, ISSCC 2014: 45 nm, 0.9 V"}
                for name, pj in (("45nm_float32", 4.6), ("45nm_int32", 3.2))
            }
            for part, macs in (("dense", dense), ("remaining", dense * density))
        },
    }


def moving_square(density: float, count: int = 8, size: int = 128) -> tuple[NDArray[np.uint8], dict[str, NDArray[Any]]]:
    """A bright square that moves over a textured ground, with the change maps of two layers that it would make."""
    y, x = np.mgrid[:size, :size]
    ground = (90 + 40 * np.sin(x / 5) * np.cos(y / 7)).astype(np.uint8)
    frames = np.repeat(ground[None, :, :, None], count, axis=0).repeat(3, axis=3)
    maps = {
        "features_0_2": np.zeros((count, size // 2, size // 2), np.float16),
        "features_3_pointwise_2": np.zeros((count, size // 8, size // 8), np.float16),
    }
    for t in range(count):
        left = 8 + 10 * t
        frames[t, 40:72, left : left + 32] = (230, 120, 60)
        for values in maps.values():
            scale = size // values.shape[1]
            values[t, 40 // scale : 72 // scale, left // scale : (left + 32) // scale] = min(1.0, density * 4)
    return frames, maps


def fabricate_stream(path: Path, *, video: str = "street.mp4", layers: int = 30, compared: bool = True) -> Path:
    """A file as `sparsetime run --json` writes it: 4 ms a frame where the dense network takes 10."""
    each = {"codec": "hold", "dense_macs": 1000, "macs": 100.0, "effective_macs": 80.0, "effective_density": 0.08}
    each |= {"events_in": 5.0, "events": 4.0}
    rows = [
        {"name": f"features_{k}", "kind": "conv2d", **each, "op_density": 0.1, "delta_density": 0.05}
        | {"time_ms": 0.1 * (k + 1), "dense_path": 0.25}
        for k in range(layers)
    ]
    rows.append({"name": "flatten", "kind": "reshape", **each, "op_density": None, "delta_density": 0.05})
    figures = {
        **{"plan": "a.plan", "network": "mobilenet_v1_025", "video": f"/videos/{video}", "threads": 1, "frames": 300},
        **{"time_ms": {"first": 12.0, "median": 4.0, "p95": 6.5}, "op_density": 0.1, "state_bytes": 3_000_000},
        **{"weight_bytes": 900_000, "layers": rows, "dense_runtime": None, "time_dense_ms": None},
        **{"speedup_median": None, "quality": None, "quality_frozen": None, "quality_frame_skipping": None},
    }
    if compared:
        figures |= {"dense_runtime": "OpenVINO 1.2", "time_dense_ms": {"median": 10.0}, "speedup_median": 2.5}
        figures["quality"] = {"total_variation": 0.02, "argmax_agreement": 0.97}
        figures["quality_frozen"] = {"total_variation": 0.3, "argmax_agreement": 0.4}
        figures["quality_frame_skipping"] = {"every": 2.5, "total_variation": 0.05, "argmax_agreement": None}
    path.write_text(json.dumps(figures))
    return path
