"""On what, with what and how a benchmark was run."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sparsetime import _native

__all__ = ["machine"]

_PACKAGES = ("sparsetime", "torch", "numpy", "onnxruntime", "openvino", "onnx")


def _processor() -> str:
    """The name that the processor gives itself, where Linux says it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """Machine, versions, load and command as plain data. Versions are None for what is not installed."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return {
        "processor": _processor(),
        "cores": len(cores),
        "instruction_set": _native.isa(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in _PACKAGES},
        "load": list(os.getloadavg()),
        "command": " ".join(["sparsetime", *sys.argv[1:]]),
    }
