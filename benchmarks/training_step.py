"""What does a training step with delta activations cost, against the same network without?

Time: both networks take turns in one process, the ratio is taken per round, the median over rounds counts. Memory: the
peak resident memory of a process of its own per network, less what it held before its first step.

    python benchmarks/training_step.py --json training_step.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsetime
from sparsetime import networks

CLIP = {"mobilenet_v2": (2, 4), "resnet18": (2, 4)}  # N, T


def build(name: str, method: str) -> tuple[nn.Module, Tensor, Tensor]:
    """The network in training mode, a clip whose frames differ little, labels."""
    torch.manual_seed(0)
    model = networks.create(name, num_classes=10).to(memory_format=torch.channels_last)
    n, t = CLIP[name]
    clip = torch.randn(n, 1, 3, *model.spec.input_size).expand(n, t, -1, -1, -1).clone()
    clip[:, 1:, :, :64, :64] += torch.randn(n, t - 1, 3, 64, 64)
    if method == "delta":
        model = sparsetime.sparsify(model, clip[:, 0])
        sparsetime.calibrate(model, clip)
    return model.train(), clip, torch.arange(n)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, clip: Tensor, labels: Tensor) -> None:
    """One training step, input conversion included."""
    n, t = clip.shape[:2]
    x = clip.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    if isinstance(model, sparsetime.SparseNetwork):
        logits = model(x.unflatten(0, (n, t)))
    else:
        logits = model(x).unflatten(0, (n, t))
    loss = F.nll_loss(logits.softmax(-1).mean(1).log(), labels)
    if isinstance(model, sparsetime.SparseNetwork):
        loss = loss + sparsetime.penalty(model)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def status_kib(key: str) -> int:
    """A figure of this process from Linux's own accounting (a child's ru_maxrss would start at its parent's)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def peak_mib(name: str, method: str) -> float:
    """Peak memory of a few steps in a process of its own."""
    code = (
        "import torch, training_step as b;"
        f"torch.set_num_threads({torch.get_num_threads()});"
        f"parts = b.build({name!r}, {method!r}); model, clip, labels = parts;"
        "optimizer = torch.optim.SGD(model.parameters(), 1e-3);"
        "before = b.status_kib('VmRSS');"
        "[b.step(model, optimizer, clip, labels) for _ in range(3)];"
        "print(b.status_kib('VmHWM') - before)"
    )
    folder = Path(__file__).parent
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return int(result.stdout) / 1024


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Ratios delta / plain for one network."""
    runs = {}
    for method in ("plain", "delta"):
        model, clip, labels = build(name, method)
        runs[method] = (model, torch.optim.SGD(model.parameters(), 1e-3), clip, labels)
        step(*runs[method])
    times: dict[str, list[float]] = {"plain": [], "delta": []}
    for i in range(rounds):
        for method in ("plain", "delta") if i % 2 else ("delta", "plain"):
            start = time.perf_counter()
            step(*runs[method])
            times[method].append(time.perf_counter() - start)
    ratios = sorted(d / p for d, p in zip(times["delta"], times["plain"], strict=True))
    memory = {method: peak_mib(name, method) for method in ("plain", "delta")}
    return {
        "network": name,
        "clip": CLIP[name],
        "plain_ms": statistics.median(times["plain"]) * 1e3,
        "delta_ms": statistics.median(times["delta"]) * 1e3,
        "time_ratio": statistics.median(ratios),
        "time_ratio_range": [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]],
        "plain_mib": memory["plain"],
        "delta_mib": memory["delta"],
        "memory_ratio": memory["delta"] / memory["plain"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [measure(name, args.rounds) for name in CLIP]
    for row in rows:
        print(
            f"{row['network']}: time x{row['time_ratio']:.3f} (quartiles {row['time_ratio_range'][0]:.3f}-"
            f"{row['time_ratio_range'][1]:.3f}; {row['plain_ms']:.0f} -> {row['delta_ms']:.0f} ms), "
            f"memory x{row['memory_ratio']:.3f} ({row['plain_mib']:.0f} -> {row['delta_mib']:.0f} MiB)"
        )
    if args.json:
        machine = {"processor": platform.processor() or platform.machine(), "threads": args.threads}
        result = {"machine": machine, "torch": torch.__version__, "rounds": args.rounds, "results": rows}
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
