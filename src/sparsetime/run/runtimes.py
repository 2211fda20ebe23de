"""The dense runtimes that a stream is measured against.

All get the same network with batch norm folded, the same float32 frames in the layout that suits them best, a stated
number of threads, and must agree with plain PyTorch before they are timed.
"""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = [
    "LIMITS",
    "RANDOM_LIMITS",
    "DisagreementError",
    "Network",
    "Opponent",
    "Precision",
    "check",
    "distance",
    "prepacked",
]

Array = NDArray[Any]
Precision = Literal["float32", "bfloat16", "int8"]

LIMITS: Mapping[str, float] = {"float32": 1e-4, "bfloat16": 0.1, "int8": 0.5}
"""How far an opponent's outputs may be from PyTorch's float32, see `distance`. Random weights are hard on int8: its
limit only tells a coarse result from a wrong one."""

RANDOM_LIMITS: Mapping[str, float] = {**LIMITS, "int8": 1.5}
"""For deep networks of random weights: some forget what 8 bits leave of their input, and two answers that have nothing
in common are 1.41 apart. FastestDet's come to 1.1."""


class DisagreementError(RuntimeError):
    """A runtime does not compute the network that it was given."""


@dataclass(frozen=True)
class Opponent:
    """One dense runtime, ready to run one network with a number of threads.

    name: with the version.
    prepare: brings a frame, (1, C, H, W) float32, into the layout that it takes; not timed.
    run: what is timed; takes a prepared frame.
    outputs: what `run` gave, as float32 arrays in the network's order; not timed.
    """

    name: str
    precision: Precision
    prepare: Callable[[Array], Any]
    run: Callable[[Any], Any]
    outputs: Callable[[Any], list[Array]]

    @property
    def full_name(self) -> str:
        """The name, and the precision unless it is float32."""
        return self.name if self.precision == "float32" else f"{self.name}, {self.precision}"


def distance(actual: Sequence[Array], expected: Sequence[Array]) -> float:
    """|actual - expected| / |expected|, Euclidean, over all outputs together.

    Infinite where shapes differ, where NaN is, and where something stands for nothing.
    """
    if [a.shape for a in actual] != [e.shape for e in expected]:
        return float("inf")
    error = sum(float(np.square(a.astype(np.float64) - e).sum()) for a, e in zip(actual, expected, strict=True))
    size = sum(float(np.square(e.astype(np.float64)).sum()) for e in expected)
    if error == 0:
        return 0.0
    return float((error / size) ** 0.5) if size > 0 and np.isfinite(error) else float("inf")


def check(opponent: Opponent, frame: Array, expected: Sequence[Array], limits: Mapping[str, float] = LIMITS) -> float:
    """Run an opponent once and compare.

    Returns:
        Its distance from the expected outputs.

    Raises:
        DisagreementError: it is further away than its precision explains.
    """
    found = distance(opponent.outputs(opponent.run(opponent.prepare(frame))), expected)
    limit = limits[opponent.precision]
    if not found <= limit:
        raise DisagreementError(
            f"{opponent.name} ({opponent.precision}) is {found:.2g} away from PyTorch, expected at most {limit:g}: "
            "it is not timed, since it computes something else"
        )
    return found


def _folded(module: nn.Module) -> nn.Module:
    try:
        folded: nn.Module = fuse(module)
    except Exception:  # of the module's own code, which runs on proxies there
        return module
    return folded


def _flat(x: Any) -> list[Tensor]:
    """The tensors of nested outputs, in order."""
    if isinstance(x, Tensor):
        return [x]
    return [t for item in (x.values() if isinstance(x, dict) else x) for t in _flat(item)]


def _arrays(x: Any) -> list[Array]:
    return [t.float().contiguous().numpy() for t in _flat(x)]


def _channels_last(dtype: torch.dtype) -> Callable[[Array], Tensor]:
    def prepare(frame: Array) -> Tensor:
        x = torch.from_numpy(frame).to(dtype)
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x

    return prepare


_TORCH = f"PyTorch {torch.__version__}"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Network:
    """A network as its opponents run it.

    Args:
        module: any module; not changed. Batch norm behind a convolution is folded into it where torch.fx can trace the
            module; elsewhere the runtimes do what they can.
        frames: examples, (1, C, H, W) float32. The first is exported and compared with, all calibrate int8.
        limits: how far answers may be from PyTorch's, by precision.
    """

    def __init__(self, module: nn.Module, frames: Sequence[Array], limits: Mapping[str, float] = LIMITS) -> None:
        self._limits = limits
        module = copy.deepcopy(module).eval()
        self.module = _folded(module) if any(isinstance(m, _BatchNorm) for m in module.modules()) else module
        self.frames = list(frames)
        with torch.inference_mode():
            self.expected = _arrays(self.module(torch.from_numpy(self.frames[0])))

    def opponents(
        self, threads: int, precisions: Sequence[Precision] = ("float32",), *, compiled: bool = True
    ) -> list[Opponent]:
        """All opponents in all precisions that they have, checked.

        Args:
            threads: of each runtime. PyTorch's number is global: call `torch.set_num_threads` before timing too.
            precisions: which to make.
            compiled: PyTorch compiled as well, which needs a C++ compiler and half a minute.

        Raises:
            DisagreementError: see `check`.
            ModuleNotFoundError: the extra `bench` is not installed.
        """
        torch.set_num_threads(threads)
        made: list[Opponent] = []
        for precision in precisions:
            if precision != "int8":
                made.append(self._eager(precision))
                if compiled:
                    made.append(self._compiled(precision))
            if precision != "bfloat16":
                made.append(self._onnxruntime(precision, threads))
            made.append(self._openvino(precision, threads))
        for opponent in made:
            check(opponent, self.frames[0], self.expected, self._limits)
        return made

    def _copy(self, dtype: torch.dtype) -> nn.Module:
        module = copy.deepcopy(self.module).to(dtype)
        return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def _eager(self, precision: Precision) -> Opponent:
        dtype = _DTYPES[precision]
        module = self._copy(dtype)

        def run(x: Tensor) -> Any:
            with torch.inference_mode():
                return module(x)

        return Opponent(f"{_TORCH} channels-last", precision, _channels_last(dtype), run, _arrays)

    def _compiled(self, precision: Precision) -> Opponent:
        import torch._inductor.config as inductor

        dtype = _DTYPES[precision]
        call = torch.compile(self._copy(dtype))
        prepare = _channels_last(dtype)

        def run(x: Tensor) -> Any:
            with torch.no_grad():
                return call(x)

        # Frozen weights can be packed for oneDNN once. The first call compiles.
        with inductor.patch(freezing=True), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run(prepare(self.frames[0]))
        return Opponent(f"{_TORCH} compiled", precision, prepare, run, _arrays)

    @cached_property
    def _onnx(self) -> bytes:
        """The network as an ONNX file, which both other runtimes read."""
        _need("onnx", "onnxscript")
        with warnings.catch_warnings(), _quiet("torch.onnx"):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                self.module, (torch.from_numpy(self.frames[0]),), dynamo=True, verbose=False, optimize=True
            )
        assert program is not None
        return bytes(program.model_proto.SerializeToString())

    @cached_property
    def _onnx_int8(self) -> bytes:
        """The same with 8-bit weights per channel and 8-bit activations, calibrated on the frames (QDQ form)."""
        _need("onnxruntime")
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

        model = onnx.load_from_string(self._onnx)
        name = model.graph.input[0].name

        class Frames(CalibrationDataReader):
            def __init__(self, frames: Sequence[Array]) -> None:
                self.left: Iterator[Array] = iter(frames)

            def get_next(self) -> dict[str, Array] | None:
                frame = next(self.left, None)
                return None if frame is None else {name: frame}

        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), _quiet(None):
            warnings.simplefilter("ignore")
            target = Path(folder) / "int8.onnx"
            quantize_static(
                model,
                target,
                Frames(self.frames[:8]),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
            return target.read_bytes()

    def _onnxruntime(self, precision: Precision, threads: int) -> Opponent:
        _need("onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        model = self._onnx if precision == "float32" else self._onnx_int8
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return Opponent(
            f"ONNX Runtime {onnxruntime.__version__}",
            precision,
            np.ascontiguousarray,
            lambda x: session.run(None, {name: x}),
            list,
        )

    def _openvino(self, precision: Precision, threads: int) -> Opponent:
        _need("openvino")
        import openvino

        core = _core()
        model = core.read_model(self._onnx if precision != "int8" else self._onnx_int8)
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            # Where a processor has bfloat16, OpenVINO takes it unasked.
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
        }
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        version = openvino.__version__.partition("-")[0]
        return Opponent(
            f"OpenVINO {version}",
            precision,
            np.ascontiguousarray,
            lambda x: request.infer({0: x}, share_inputs=True, share_outputs=True),
            lambda result: [np.array(a, np.float32) for a in result.to_tuple()],
        )


def prepacked(conv: nn.Conv2d, frame: Array, precision: Precision = "float32") -> Opponent:
    """One convolution as PyTorch's compiler runs it with frozen weights: weights in oneDNN's own order, channels last.

    Faster than `F.conv2d`, which looks at plain weights anew at every call.
    """
    dtype = _DTYPES[precision]
    prepare = _channels_last(dtype)
    x = prepare(frame)
    padding, stride, dilation = list(conv.padding), list(conv.stride), list(conv.dilation)
    weight = conv.weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
    bias = None if conv.bias is None else conv.bias.detach().to(dtype)
    packed = torch._C._nn.mkldnn_reorder_conv2d_weight(  # type: ignore[call-arg]
        weight.to_mkldnn(), padding, stride, dilation, conv.groups, list(x.shape)
    )
    call = torch.ops.mkldnn._convolution_pointwise

    def run(x: Tensor) -> Any:
        with torch.inference_mode():
            return call(x, packed, bias, padding, stride, dilation, conv.groups, "none", [], "")

    return Opponent(f"{_TORCH} prepacked", precision, prepare, run, _arrays)


@cache
def _core() -> Any:
    """The one OpenVINO core of this process.

    OpenVINO's CPU plugin gives the calling thread a stack for signals. With two cores, of which the older goes first,
    the newer puts back the older's stack, which is gone by then (2026.4.1): the next signal, Ctrl-C or the end of a
    data worker, ended the process with SIGSEGV.
    """
    import openvino

    return openvino.Core()


def _need(*packages: str) -> None:
    """Say which extra is missing, instead of which module."""
    from importlib.util import find_spec

    for package in packages:
        if find_spec(package) is None:
            raise ModuleNotFoundError(
                f"the dense runtimes need {package}: pip install 'sparsetime[bench]'", name=package
            )


class _quiet:  # noqa: N801 - reads as a word after `with`
    """Silence a logger: exporters tell at length what they find."""

    def __init__(self, name: str | None) -> None:
        self._logger = logging.getLogger(name)

    def __enter__(self) -> None:
        self._level = self._logger.level
        self._logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        self._logger.setLevel(self._level)
