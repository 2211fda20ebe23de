"""What runs the dense network that a plan stands for, to be timed and compared with.

Where a plan comes from a network trained with quantisers, this is that network without them.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from numpy.typing import NDArray

from sparsetime.engine.dequantise import float32_plan
from sparsetime.engine.frames import FrameReader
from sparsetime.engine.ops import Op
from sparsetime.engine.plan import Plan

if TYPE_CHECKING:
    from sparsetime.run.runtimes import Opponent

__all__ = ["Dense", "candidates", "dense_network", "exported", "native_dense", "pytorch_dense", "without_codecs"]

Array = NDArray[Any]
_TRIALS = 5


class Dense(NamedTuple):
    """A dense network.

    name: what runs it, with its version.
    run: maps a frame, as `Stream` takes it, to the plan's outputs in order.
    """

    name: str
    run: Callable[[Array], list[Array]]


def without_codecs(plan: Plan) -> Plan:
    """The network of a plan without codecs, in float32. Its outputs are a list, in the order of `plan.outputs`."""
    plan = float32_plan(plan).flat()
    return plan.with_ops([_uncoded(op) for op in plan.ops])


def _uncoded(op: Op) -> Op:
    # An identity that only carried a codec has no use any more; a reshape to the same shape is allowed to have none.
    kind = "reshape" if op.kind == "identity" and op.activation is None else op.kind
    return dataclasses.replace(op, kind=kind, codec=None)


@contextmanager
def _torch_threads(number: int) -> Iterator[None]:
    """So many threads of PyTorch for a while; the number is one of the process, which gets its own back."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def native_dense(plan: Plan, threads: int) -> Dense:
    """The dense path of the native engine: every frame is the first of its stream."""
    from sparsetime import __version__

    stream = without_codecs(plan).stream(threads=threads)

    def run(frame: Array) -> list[Array]:
        stream.reset()
        outputs: list[Array] = stream(frame)
        return outputs

    return Dense(f"sparsetime {__version__} dense path", run)


def pytorch_dense(plan: Plan, threads: int) -> Dense:
    """PyTorch, float32, channels-last."""
    import torch

    from sparsetime.run.module import PlanModule

    plain = without_codecs(plan)
    read = FrameReader(plain)
    module = PlanModule(plain).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def run(frame: Array) -> list[Array]:
        x = torch.from_numpy(read(frame))
        with _torch_threads(threads):
            outputs = module(x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x)
        return [y.numpy() for y in (outputs if isinstance(outputs, tuple) else (outputs,))]

    return Dense(f"PyTorch {torch.__version__}", run)


def candidates(plan: Plan, threads: int) -> list[Dense]:
    """What runs the dense network wherever this package is."""
    return [native_dense(plan, threads), pytorch_dense(plan, threads)]


def exported(plan: Plan, frame: Array, threads: int) -> list[Dense]:
    """The network in ONNX Runtime and OpenVINO, where the extra `bench` is installed and the plan has no islands."""
    if plan.islands or any(find_spec(package) is None for package in ("onnxscript", "onnxruntime", "openvino")):
        return []
    from sparsetime.run.module import PlanModule
    from sparsetime.run.runtimes import Network

    plain = without_codecs(plan)
    read = FrameReader(plain)

    def dense(opponent: Opponent) -> Dense:
        def run(picture: Array) -> list[Array]:
            with _torch_threads(threads):
                return opponent.outputs(opponent.run(opponent.prepare(read(picture).copy())))

        return Dense(opponent.name, run)

    with _torch_threads(threads):
        network = Network(PlanModule(plain), [read(frame).copy()])
        return [dense(opponent) for opponent in network.opponents(threads, compiled=False)]


def dense_network(plan: Plan, frame: Array, threads: int) -> Dense:
    """The fastest dense runtime on a frame: each runs once to warm up, then they take turns; medians are compared.

    Args:
        plan: what to run without codecs.
        frame: as `Stream` takes it.
        threads: of each candidate.
    """
    found = candidates(plan, threads) + exported(plan, frame, threads)
    times: list[list[int]] = [[] for _ in found]
    for trial in range(_TRIALS + 1):
        for candidate, taken in zip(found, times, strict=True):
            start = time.perf_counter_ns()
            candidate.run(frame)
            if trial:
                taken.append(time.perf_counter_ns() - start)
    return found[min(range(len(found)), key=lambda k: statistics.median(times[k]))]
