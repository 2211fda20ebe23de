"""Networks that sparsetime does not bring along: what a first frame costs, and a frame of which 5 % changes.

    pip install timm ultralytics
    python benchmarks/other_networks.py --json runs/other.json --markdown runs/other.md

Random weights, batch norm set by noise: what is timed is a network's shape. A first frame is computed densely, so the
first column says how far the native kernels are from the fastest dense runtime; what changes in the others is one
square, at a controlled density of operations, as `sparsetime bench network` does it. It goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import sparsetime
from compatibility import FAMILIES
from sparsetime.bench import network
from sparsetime.bench.machine import machine
from sparsetime.files import write_json

NETWORKS = (
    *("resnet26d", "seresnet50", "ecaresnet26t", "resnext50_32x4d", "res2net50_26w_4s", "resnest26d", "densenet121"),
    *("regnetx_008", "regnety_004", "nf_regnet_b0", "repvgg_a0", "cspdarknet53", "dla34", "hrnet_w18_small"),
    *("mobilenetv3_large_100", "mobilenetv4_conv_small", "efficientnet_b0", "tf_efficientnet_lite0", "ghostnet_100"),
    *("mixnet_s", "convnext_atto", "starnet_s1", "inception_v3", "xception41", "mobilevit_xxs", "vit_tiny_patch16_224"),
    *("swin_tiny_patch4_window7_224", "yolov8n", "yolo11n"),
)


def made(name: str) -> tuple[nn.Module, tuple[int, int]]:
    """The network, its batch norm as on noise, and the size of its input."""
    torch.manual_seed(0)
    yolo = name.startswith("yolo")
    module, size = FAMILIES["ultralytics" if yolo else "timm"][0](name)
    size = (320, 320) if yolo else size
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.momentum = None  # means over all calls, of which there is one
    with torch.no_grad():
        module.train()(torch.randn(2, 3, *size))
    return module.eval(), size


def measured(name: str, rounds: int) -> dict[str, Any]:
    """One row."""
    module, size = made(name)
    begin = time.perf_counter()
    plan = sparsetime.compile(module, torch.randn(1, 3, *size))
    seconds = time.perf_counter() - begin
    settings = network.Settings(threads=[1], compiled=False, rounds=rounds)
    case = network.Case(name, size, {})
    (row,) = network.controlled(case, module, patterns=["clustered"], densities=[0.05], settings=settings, tell=print)
    return row | {
        "compile_s": seconds,
        "dense_macs": plan.dense_macs,
        "state_bytes": plan.state_bytes,
        "islands": sorted({op.attributes["target"].split(".")[1] for op in plan.islands}),
    }


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as a table."""
    lines = [
        "| network | GMAC | compile, s | islands | fastest dense, ms | first frame, ms | speed-up | 5 % changes, ms | "
        "speed-up |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        times = {key: value["median"] for key, value in row["time_ms"].items()}
        first, moving = row["speedup_first_frame"], row["speedup"]
        cells = [
            name,
            f"{row['dense_macs'] / 1e9:.2f}",
            f"{row['compile_s']:.0f}",
            ", ".join(row["islands"]) or "-",
            f"{times[row['fastest']]:.1f} ({row['fastest'].split()[0]})",
            f"{times[network.FIRST]:.1f}",
            f"{first['median']:.2f} ({first['low']:.2f}-{first['high']:.2f})",
            f"{times[network.OURS]:.2f}",
            f"{moving['median']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--only", nargs="*", default=NETWORKS)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(), "rows": {}}
    if options.json.exists():
        result = json.loads(options.json.read_text())
    for name in options.only:
        if name not in result["rows"]:
            result["rows"][name] = measured(name, options.rounds)
            write_json(options.json, result)
    text = markdown(result["rows"])
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n")


if __name__ == "__main__":
    main()
