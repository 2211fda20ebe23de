"""Plans and their streams.

Needs numpy and safetensors; PyTorch is imported by the reference backend and by islands only.
"""

from sparsetime.engine.executor import OpStats
from sparsetime.engine.frames import FrameError
from sparsetime.engine.ops import InputSpec, Op, PlanError
from sparsetime.engine.plan import Plan
from sparsetime.engine.stream import Snapshot, Stream, StreamBusyError, StreamError

__all__ = [
    "FrameError",
    "InputSpec",
    "Op",
    "OpStats",
    "Plan",
    "PlanError",
    "Snapshot",
    "Stream",
    "StreamBusyError",
    "StreamError",
]
