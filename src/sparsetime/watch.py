"""Watch the linear operations that a model runs, whatever way they are called.

Modules, functions and methods all end in a few torch functions. A `TorchFunctionMode` sees these, so that counting
needs no particular module classes, and says which operations with multiplications it could not count.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from sparsetime.fanout import LinearOp

__all__ = ["LinearCall", "OpNames", "WatchLinear"]

_CONVS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3, F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}
_TRANSPOSED = {
    torch.conv_transpose1d: 1,
    torch.conv_transpose2d: 2,
    torch.conv_transpose3d: 3,
    F.conv_transpose1d: 1,
    F.conv_transpose2d: 2,
    F.conv_transpose3d: 3,
}
_PRODUCTS = {
    spelling: name
    for name in (
        *("matmul", "mm", "bmm", "baddbmm", "addmm", "addbmm", "addmm_activation", "addmv", "mv", "addr", "ger"),
        *("outer", "dot", "vdot", "vecdot", "inner", "kron", "tensordot", "einsum", "multi_dot", "chain_matmul"),
        *("matrix_power", "cdist", "cov", "corrcoef", "sparse_mm", "sparse_addmm", "sspaddmm", "smm", "hspmm"),
        *("linear", "mkldnn_linear", "bilinear", "trilinear", "conv_tbc", "convolution", "mkldnn_convolution"),
        *("cudnn_convolution", "miopen_convolution"),
        *(f"conv{kind}{dims}d" for kind in ("", "_transpose") for dims in (1, 2, 3)),
        *("scaled_dot_product_attention", "multi_head_attention_forward"),
        *(f"{kind}{cell}" for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu") for cell in ("", "_cell")),
    )
    for spelling in (name, f"{name}_", f"_{name}", f"linalg_{name}", f"__{name}__", f"__r{name}__")
}
"""Functions that multiply, by torch's names for them: as functions, as methods, in place, as operators, private."""


class LinearCall:
    """One call of a linear operation: what it is, what went in, its weight, and what came out. Zeros that `F.pad` put
    around the input of a convolution are part of the operation.
    """

    def __init__(self, op: LinearOp, x: Tensor, weight: Tensor, output: Tensor) -> None:
        self.op = op
        self.x = x
        self.weight = weight
        self.output = output


def _per_dim(value: Any, dims: int) -> tuple[int, ...]:
    if isinstance(value, Iterable) and not isinstance(value, str):
        values = tuple(int(v) for v in value)
        return values * dims if len(values) == 1 else values
    return (int(value),) * dims


def _bind(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any], defaults: dict[str, Any]) -> list[Any]:
    given = dict(zip(names, args, strict=False)) | kwargs
    return [given.get(name, defaults.get(name)) for name in names]


def _zero_padded(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, tuple[int, ...]] | None:
    """The input of `F.pad` and its amounts, last dimension first, if it adds zeros and nothing else."""
    x, pad, mode, value = _bind(("input", "pad", "mode", "value"), args, kwargs, {"mode": "constant"})
    return None if mode != "constant" or value or min(pad) < 0 else (x, tuple(pad))


class _Padded(NamedTuple):
    """What a tensor was padded from, and the versions that both had then."""

    source: Tensor
    pad: tuple[int, ...]
    versions: tuple[int | None, int | None]


def _version(x: Tensor) -> int | None:
    """How often a tensor was written into; None in inference mode, where PyTorch does not count."""
    return None if x.is_inference() else x._version


def _source(x: Tensor, padded: WeakTensorKeyDictionary) -> tuple[Tensor, tuple[int, ...]] | None:
    """What x is with zeros around it, if neither was written into since."""
    if x not in padded:
        return None
    source, pad, versions = padded[x]
    if (_version(source), _version(x)) != versions:
        return None
    if None in versions and not torch.equal(F.pad(source, pad), x):
        return None
    return source, pad


def _product(function: Any) -> str | None:
    """The name of a function that multiplies, else None."""
    return _PRODUCTS.get(getattr(function, "__name__", "").partition(".")[0])  # aten.mm.default is mm.default


def _describe(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor, padded: WeakTensorKeyDictionary
) -> LinearCall | None:
    defaults = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    if function is F.linear:
        x, weight, _ = _bind(("input", "weight", "bias"), args, kwargs, {})
        if x.dim() < 2:
            return None  # no batch: nothing here feeds those
        return LinearCall(LinearOp("linear", tuple(weight.shape)), x, weight, output)
    names: tuple[str, ...]
    if function in _CONVS:
        dims = _CONVS[function]
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        x, weight, _, stride, padding, dilation, groups = _bind(names, args, kwargs, defaults)
        dilations = _per_dim(dilation, dims)
        if padding == "same":  # stride 1; the odd element goes to the end
            padding = [d * (k - 1) // 2 for d, k in zip(dilations, weight.shape[2:], strict=True)]
        elif padding == "valid":
            padding = 0
        padding = _per_dim(padding, dims)
        source = _source(x, padded)
        if source is not None and len(source[1]) <= 2 * dims:  # zeros that the convolution could not add itself
            x, pad = source
            before = (0,) * (dims - len(pad) // 2) + pad[::2][::-1]
            padding = tuple(map(operator.add, padding, before))
        kind = "conv"
    elif function in _TRANSPOSED:
        dims = _TRANSPOSED[function]
        names = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
        x, weight, _, stride, padding, _, groups, dilation = _bind(names, args, kwargs, defaults)
        dilations = _per_dim(dilation, dims)
        kind = "conv_transpose"
    else:
        return None
    if x.dim() != dims + 2:
        return None  # an unbatched frame: nothing here feeds those
    op = LinearOp(
        kind,
        tuple(weight.shape),
        stride=_per_dim(stride, dims),
        padding=_per_dim(padding, dims),
        dilation=dilations,
        output_shape=tuple(output.shape[2:]),
        groups=int(groups),
    )
    return LinearCall(op, x, weight, output)


def _running() -> Iterator[nn.Module]:
    """The modules whose methods run, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_varnames[:1] == ("self",) and isinstance(frame.f_locals.get("self"), nn.Module):
            yield frame.f_locals["self"]
        frame = frame.f_back


class OpNames:
    """Names of the linear operations of a model: their weight's module, `module#2` for its second call in one pass.

    A weight that is no parameter, since pruning or a parametrisation computes it, is its module's all the same. Other
    weights are named by kind and shape, `conv (8, 3, 3, 3)`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._weights = {id(p): name for name, p in model.named_parameters(remove_duplicate=False)}
        self._modules = {module: name for name, module in model.named_modules()}
        self._calls: dict[str, int] = {}

    def restart(self) -> None:
        """A forward pass begins."""
        self._calls.clear()

    def __call__(self, call: LinearCall) -> str:
        """The name of this call; calls are named in the order in which they are made."""
        known = self._weights.get(id(call.weight)) or self._computed(call.weight)
        name = (known or f"{call.op.kind} {tuple(call.weight.shape)}").removesuffix(".weight")
        self._calls[name] = self._calls.get(name, 0) + 1
        return name if self._calls[name] == 1 else f"{name}#{self._calls[name]}"

    def _computed(self, weight: Tensor) -> str | None:
        """The name of the module that runs, if it makes this weight anew in each pass."""
        module = next((module for module in _running() if module in self._modules), None)
        if module is None:
            return None
        hooked = module.__dict__.get("weight") is weight  # by a forward hook, as pruning's
        return self._modules[module] or "weight" if hooked or is_parametrized(module, "weight") else None


class WatchLinear(TorchFunctionMode):
    """Calls `on_linear` after every linear operation, and `on_uncounted` with the name of those it cannot describe.

    The functions run as they would without it, on the same tensors; what torch.compile has compiled runs as it was
    written, since compiled code calls none of them.

    Args:
        on_linear: receives a `LinearCall`.
        on_uncounted: receives the name of a function that multiplies but is not a `LinearOp`; not where a
            parametrisation computes a weight, which is no operation on frames.
        on_output: receives every function and its output.
    """

    def __init__(
        self,
        on_linear: Callable[[LinearCall], None],
        on_uncounted: Callable[[str], None] | None = None,
        on_output: Callable[[Any, Any], None] | None = None,
    ) -> None:
        super().__init__()
        self._on_linear = on_linear
        self._on_uncounted = on_uncounted
        self._on_output = on_output
        self._padded = WeakTensorKeyDictionary()
        self._uncompiled = ExitStack()

    def __enter__(self) -> WatchLinear:
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and this would import it
            self._uncompiled.enter_context(torch.compiler.set_stance("force_eager"))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._uncompiled.close()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func is F.pad and (source := _zero_padded(args, kwargs)) is not None:
            x, pad = source
            self._padded[output] = _Padded(x, pad, (_version(x), _version(output)))
        call = _describe(func, args, kwargs, output, self._padded) if isinstance(output, Tensor) else None
        if call is not None:
            self._on_linear(call)
        elif (
            self._on_uncounted is not None
            and (name := _product(func)) is not None
            and not any(isinstance(module, ParametrizationList) for module in _running())
        ):
            self._on_uncounted(name)
        if self._on_output is not None:
            self._on_output(func, output)
        return output
