"""Where delta layers go: what running a traced network on an example shows, and the sources that feed its operations.

Every linear operation should be fed with a tensor that was encoded. So from each one we walk back, through operations
that keep unchanged elements unchanged (reshapes, slices, zero padding, concatenation, max pooling ...), to the
*sources*: the operations that made its input.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from sparsetime.convert.trace import Origin, SparsifyError, by_origin, module_of, writes_to
from sparsetime.fanout import LinearOp, fanout
from sparsetime.watch import LinearCall, OpNames, WatchLinear

__all__ = ["Op", "Seen", "Site", "find_sites", "label", "look", "macs_of", "may_view"]

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_KEEPING_MODULES = (
    *_DROPOUTS,
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.ZeroPad1d,
    nn.ZeroPad2d,
    nn.ZeroPad3d,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ChannelShuffle,
)
_KEEPING_FUNCTIONS = {
    torch.flatten,
    torch.reshape,
    torch.permute,
    torch.transpose,
    torch.squeeze,
    torch.unsqueeze,
    torch.chunk,
    torch.split,
    torch.unbind,
    torch.cat,
    torch.concat,
    torch.clone,
    torch.channel_shuffle,
    F.channel_shuffle,
    F.dropout,
    F.dropout2d,
    F.pixel_shuffle,
    F.pixel_unshuffle,
    operator.getitem,
}
_KEEPING_METHODS = {
    "view",
    "reshape",
    "flatten",
    "unflatten",
    "permute",
    "transpose",
    "squeeze",
    "unsqueeze",
    "contiguous",
    "clone",
    "chunk",
    "split",
    "unbind",
    "expand",
}
_VIEWING_MODULES = (*_DROPOUTS, nn.Identity, nn.Flatten, nn.Unflatten)
_VIEWING_METHODS = _KEEPING_METHODS - {"clone"}
_VIEWING_FUNCTIONS = _KEEPING_FUNCTIONS - {
    torch.cat,
    torch.concat,
    torch.clone,
    torch.channel_shuffle,
    F.channel_shuffle,
    F.pixel_shuffle,
    F.pixel_unshuffle,
}
_MAX_POOLS = (
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
)
_MAX_POOL_FUNCTIONS = {
    F.max_pool1d,
    F.max_pool2d,
    F.max_pool3d,
    torch.max_pool1d,
    torch.max_pool2d,
    torch.max_pool3d,
    F.adaptive_max_pool1d,
    F.adaptive_max_pool2d,
    F.adaptive_max_pool3d,
}


_CLAMPS = {"relu": (0, None), "relu6": (0, 6)}
"""Bounds of the activations that a delta layer computes itself."""


class Op(NamedTuple):
    """A linear operation that the network runs: its name, what it is, and the shape that went in."""

    name: str
    op: LinearOp
    shape: tuple[int, ...]


@dataclass
class Seen:
    """What running the graph on the example showed of each node."""

    batch: int
    value: dict[fx.Node, Any] = field(default_factory=dict)
    calls: dict[fx.Node, list[Op]] = field(default_factory=dict)
    uncounted: dict[fx.Node, list[str]] = field(default_factory=dict)


class _Look(fx.Interpreter):
    """Runs the graph on the example and notes, per node, its value's shape and the linear operations inside it."""

    def __init__(self, module: fx.GraphModule, names: OpNames, batch: int) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.seen = Seen(batch)
        self._names = names
        self._node = next(iter(module.graph.nodes))

    def note(self, call: LinearCall) -> None:
        self.seen.calls[self._node].append(Op(self._names(call), call.op, tuple(call.x.shape)))

    def note_uncounted(self, name: str) -> None:
        self.seen.uncounted[self._node].append(name)

    def run_node(self, n: fx.Node) -> Any:
        self._node = n
        self.seen.calls[n], self.seen.uncounted[n] = [], []
        result = super().run_node(n)
        self.seen.value[n] = torch.empty_like(result, device="meta") if isinstance(result, Tensor) else result
        return result


@dataclass
class Site:
    """Where a delta layer goes."""

    name: str
    node: fx.Node  # the layer reads this node ...
    origin: Origin
    clamp: str | None  # ... or replaces it, if it is this clamp
    macs: float  # of one frame, caused by what the layer gives
    feeds: list[str]  # linear operations that read it, by name


def look(model: nn.Module, graph: fx.Graph, inputs: list[Tensor]) -> Seen:
    """Run the graph on the example.

    Raises:
        SparsifyError: the model does not run, computes something else when it is traced, or mixes the frames of a
            batch.
    """
    name = type(model).__name__
    flags = {module: module.training for module in model.modules()}
    devices = [i.device for i in inputs if i.device.type == "cuda"]
    try:
        model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            try:
                # Two frames at least, so that the batch is told from other dimensions of size one.
                batch = [(i if i.shape[0] > 1 else i.expand(2, *i.shape[1:])).clone() for i in inputs]
                watcher = _Look(fx.GraphModule(model, graph), OpNames(model), len(batch[0]))
                seed = torch.random.seed()
                expected = model(*(i.clone() for i in batch))
                torch.random.manual_seed(seed)
                with WatchLinear(watcher.note, watcher.note_uncounted):
                    got = watcher.run(*batch)
            except Exception as error:
                shape = tuple(inputs[0].shape)
                if shape[0] == 1 and _runs(model, inputs):
                    raise SparsifyError(
                        f"sparsify: {name} runs on the example {shape}, but not on a batch of two such frames, and "
                        f"all frames of a clip are one batch: {error}\nTake the batch from the input, as in "
                        "x.reshape(x.shape[0], -1)."
                    ) from error
                raise SparsifyError(f"sparsify: the model does not run on the example {shape}: {error}") from error
            for one, other in zip(pytree.tree_leaves(got), pytree.tree_leaves(expected), strict=True):
                if isinstance(one, Tensor) and one.is_floating_point() and not _agree(one, other):
                    raise SparsifyError(
                        f"sparsify: {name} computes something else when it is traced. Does it write with an operator "
                        "like += into a tensor that it reads under another name, or keep what it computed before? "
                        "Write x = x + y."
                    )
            try:
                where = _where_frames_mix(model, graph, inputs)
            except Exception as error:
                raise SparsifyError(
                    f"sparsify: {name} runs on the example {tuple(inputs[0].shape)}, but not on one frame of it or on "
                    f"another frame: {error}\nClips have any number of frames, so it must take a batch of any size."
                ) from error
            if where is not None:
                raise SparsifyError(
                    f"sparsify: {name} mixes the frames of a batch{where}: two frames together give other results "
                    "than each alone. All frames of a clip are one batch, so training would see what no stream of "
                    "frames does. Compute over the dimensions of a frame alone, as in x.amax((1, 2, 3), keepdim=True) "
                    "in place of x.max(), and keep the batch as first dimension of what is reshaped."
                )
    finally:
        for module, flag in flags.items():
            module.training = flag
    return watcher.seen


def _runs(model: nn.Module, inputs: list[Tensor]) -> bool:
    try:
        model(*(i.clone() for i in inputs))
    except Exception:
        return False
    return True


class _Values(fx.Interpreter):
    """Runs the graph and keeps what every node gave."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.value: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.value[n] = result.clone() if isinstance(result, Tensor) else result  # others may write into it
        return result


def _another(x: Tensor) -> Tensor:
    """A frame of another range and another mean than x, within its extent; whole numbers are those of x."""
    if not x.is_floating_point():
        return x.flip(tuple(range(1, x.dim())))
    largest = float(x.abs().max()) or 1.0
    return 0.25 * x + 0.5 * largest * torch.rand_like(x)


def _where_frames_mix(model: nn.Module, graph: fx.Graph, inputs: list[Tensor]) -> str | None:
    """Run two different frames as one batch and each alone: None if that gives the same, else where it does not, in
    words ("" where that is not known).
    """
    first = [i[:1] for i in inputs]
    second = [_another(i) for i in first]
    both = [torch.cat(pair) for pair in zip(first, second, strict=True)]
    module = fx.GraphModule(model, graph)
    together, *alone = (module(*(i.clone() for i in frames)) for frames in (both, first, second))
    again = module(*(i.clone() for i in first))
    leaves = [pytree.tree_leaves(x) for x in (together, *alone, again)]
    if any(not _near(a, c) for _, a, _, c in zip(*leaves, strict=True)):
        return None  # it draws random numbers, so nothing can be compared
    if all(_is_number(whole) or _near(*_paired(whole, a, b)) for whole, a, b, _ in zip(*leaves, strict=True)):
        return None
    runs = [_Values(module) for _ in range(3)]
    for run, frames in zip(runs, (both, first, second), strict=True):
        run.run(*(i.clone() for i in frames))
    for node in module.graph.nodes:
        if node.op != "output" and not _near(*_paired(*(run.value[node] for run in runs))):
            return f", at {label(node)} ({node.meta.get('line', '')})"
    return ""


def _is_number(x: Any) -> bool:
    """True for an output such as a loss, which is one for the batch in any case."""
    return isinstance(x, Tensor) and x.dim() == 0


def _paired(together: Any, first: Any, second: Any) -> tuple[Any, Any]:
    """What two frames together gave, and what it should be."""
    if not all(isinstance(x, Tensor) for x in (together, first, second)):
        return None, None
    if first.dim() and first.shape == second.shape and together.shape == (2 * first.shape[0], *first.shape[1:]):
        return together, torch.cat([first, second])  # windows of frames too, (N * windows, ...)
    return together, first  # what does not vary with the frame, such as anchors


def _near(one: Any, other: Any) -> bool:
    """True if two results differ by at most 1e-3 of their length, or by some roundings of a coarser data type. Not
    element by element: where rounding turns a code of a quantised network, a few elements differ by a whole step.
    """
    if not isinstance(one, Tensor) or not one.is_floating_point():
        return True
    if one.shape != other.shape:
        return False
    tolerance = max(1e-3, 4 * torch.finfo(one.dtype).eps)
    one, other = one.nan_to_num().float(), other.nan_to_num().float()
    return bool((one - other).norm() <= tolerance * other.norm())


def _agree(one: Tensor, other: Tensor) -> bool:
    """True if two results are equal up to rounding."""
    if one.shape != other.shape or other.numel() == 0:
        return one.shape == other.shape
    return torch.allclose(one, other, rtol=0, atol=1e-3 * float(other.nan_to_num().abs().max()), equal_nan=True)


def macs_of(call: Op, batch: int) -> float:
    """Dense MACs of one frame."""
    times = math.prod(call.shape[:-1]) if call.op.kind == "linear" else call.shape[0]
    return float(fanout(call.op, call.shape[1:]).sum()) * times / batch


def _shares(call: Op, data: fx.Node, sources: list[fx.Node], seen: Seen) -> list[float]:
    """The MACs of one frame that each source causes: the fan-out of the elements that come from it."""
    macs = macs_of(call, seen.batch)
    if len(sources) == 1:
        return [macs]
    while seen.value[data].shape != call.shape and _pads_zeros(data):  # that is counted as a part of the operation
        data = data.all_input_nodes[0]
    # A convolution that pads by itself, with something else than zeros, sees a larger input: elements weigh alike then.
    fan: Any = 1.0
    if seen.value[data].shape == call.shape:
        fan = torch.from_numpy(fanout(call.op, call.shape[1:]))
    parts = [float((_marks(data, source, sources, seen, {}) * fan).sum()) for source in sources]
    return [macs * part / (sum(parts) or 1.0) for part in parts]


def _marks(node: fx.Node, source: fx.Node, sources: list[fx.Node], seen: Seen, known: dict[fx.Node, Any]) -> Any:
    """The value of a node that keeps elements: 1 where they come from `source`, else 0."""
    if node in known:
        return known[node]
    value = seen.value[node]
    result: Any
    if node in sources or node.op == "get_attr":
        result = torch.full(value.shape, float(node is source), dtype=torch.float64)
    elif not _holds_tensors(value):
        result = value
    elif isinstance(module_of(node), _DROPOUTS):
        result = _marks(node.all_input_nodes[0], source, sources, seen, known)
    else:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: _marks(n, source, sources, seen, known))
        function = module_of(node) or (getattr(args[0], str(node.target)) if node.op == "call_method" else node.target)
        result = function(*(args[1:] if node.op == "call_method" else args), **kwargs)  # type: ignore[operator]
    known[node] = result
    return result


def label(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _is_max_pool(node: fx.Node) -> bool:
    module = module_of(node)
    return isinstance(module, _MAX_POOLS) or (node.op == "call_function" and node.target in _MAX_POOL_FUNCTIONS)


def _keeps(node: fx.Node) -> bool:
    """True if an element that did not change going in leaves unchanged what it becomes, and zeros stay zeros."""
    module = module_of(node)
    if module is not None:
        nearest = isinstance(module, nn.Upsample) and module.mode == "nearest"
        return isinstance(module, _KEEPING_MODULES) or nearest or _is_max_pool(node)
    if node.op == "call_method":
        return node.target in _KEEPING_METHODS
    if node.op != "call_function":
        return False
    if node.target is F.pad:
        return _pads_zeros(node)
    if node.target is F.interpolate:
        return bool(_argument(node, 3, "mode", "nearest") == "nearest")
    return node.target in _KEEPING_FUNCTIONS or _is_max_pool(node)


def _pads_zeros(node: fx.Node) -> bool:
    if isinstance(module_of(node), nn.ZeroPad1d | nn.ZeroPad2d | nn.ZeroPad3d):
        return True
    constant = node.target is F.pad and _argument(node, 2, "mode", "constant") == "constant"
    return constant and not _argument(node, 3, "value", None)


def may_view(node: fx.Node) -> bool:
    """True if the value of the node may lie in the memory of its input."""
    if not node.all_input_nodes or _is_max_pool(node):
        return False
    if node.op == "call_module":
        return isinstance(module_of(node), _VIEWING_MODULES)
    return node.target in (_VIEWING_METHODS if node.op == "call_method" else _VIEWING_FUNCTIONS)


def _clamp_name(node: fx.Node) -> str | None:
    """The name in `ACTIVATIONS` that this node computes, if any; not where it overwrites what others read."""
    module = module_of(node)
    base = writes_to(node)
    while base is not None and may_view(base):  # others may read the tensor behind it
        base = base.all_input_nodes[0]
        if len(base.users) > 1:
            return None
    bounds: tuple[Any, Any] | None = None
    if isinstance(module, nn.ReLU6):
        bounds = (0, 6)
    elif isinstance(module, nn.Hardtanh):
        bounds = (module.min_val, module.max_val)
    elif isinstance(module, nn.ReLU) or (
        node.op == "call_function" and node.target in (F.relu, torch.relu, torch.relu_, F.relu_)
    ):
        bounds = (0, None)
    elif node.op == "call_function" and node.target is F.relu6:
        bounds = (0, 6)
    elif node.op == "call_function" and node.target is F.hardtanh:
        bounds = (_argument(node, 1, "min_val", -1.0), _argument(node, 2, "max_val", 1.0))
    elif node.op == "call_method" and node.target in ("relu", "relu_"):
        bounds = (0, None)
    elif (node.op == "call_function" and node.target is torch.clamp) or (
        node.op == "call_method" and node.target in ("clamp", "clamp_")
    ):
        bounds = (_argument(node, 1, "min", None), _argument(node, 2, "max", None))
    return next((name for name, (low, high) in _CLAMPS.items() if bounds == (low, high)), None)


def _sources(node: fx.Node, seen: Seen) -> list[fx.Node]:
    """The nodes whose values reach `node` unchanged, each where its delta layer would go."""
    if not _keeps(node):
        return [node]
    inputs = [n for n in node.all_input_nodes if _holds_tensors(seen.value[n])]
    if _is_max_pool(node) and len(inputs) == 1 and len(inputs[0].users) == 1 and not _keeps(inputs[0]):
        return [node]
    one_of_several = node.target is operator.getitem and inputs and not isinstance(seen.value[inputs[0]], Tensor)
    if one_of_several and not _keeps(inputs[0]):
        return [node]
    return list(dict.fromkeys(s for n in inputs for s in _sources(n, seen)))


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, tuple | list) and any(isinstance(v, Tensor) for v in value))


def find_sites(graph: fx.Graph, seen: Seen) -> tuple[list[Site], dict[fx.Node, str]]:
    """One site per source that feeds a linear operation, in the order of the graph; and the operations that cannot
    be fed so.
    """
    nodes = list(graph.nodes)
    macs: dict[fx.Node, float] = {}
    feeds: dict[fx.Node, list[str]] = {}
    left: dict[fx.Node, str] = {}
    for node in nodes:
        if seen.uncounted[node]:
            left[node] = (
                f"{', '.join(sorted(set(seen.uncounted[node])))}: not a product of a batch of frames and weights"
            )
        if not seen.calls[node]:
            continue
        data = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else node.kwargs.get("input")
        if len(seen.calls[node]) > 1 or not isinstance(data, fx.Node):
            left[node] = "a module with several linear operations inside, which tracing does not open"
            continue
        sources = [s for s in _sources(data, seen) if s.op != "get_attr"]
        bad = [
            s
            for s in sources
            if not isinstance(seen.value[s], Tensor)
            or seen.value[s].shape[:1] != (seen.batch,)
            or not seen.value[s].is_floating_point()
        ]
        if bad or not sources:
            left[node] = (
                "its input has not the batch of frames as first dimension" if bad else "its input does not vary"
            )
            continue
        call = seen.calls[node][0]
        for source, share in zip(sources, _shares(call, data, sources, seen), strict=True):
            macs[source] = macs.get(source, 0.0) + share
            feeds.setdefault(source, []).append(call.name)
    if not macs:
        raise SparsifyError(
            "sparsify: no linear operation (convolution, linear layer) was found that can be fed with deltas"
            + "".join(f"; {label(n)}: {reason}" for n, reason in left.items())
        )
    placeholders = [n for n in nodes if n.op == "placeholder" and isinstance(seen.value[n], Tensor)]
    origins = {node: origin for origin, node in by_origin(graph).items()}
    sites: list[Site] = []
    taken = set(dir(nn.ModuleDict()))
    for node in nodes:
        if node not in macs:
            continue
        name = node.name
        if node.op == "placeholder":
            name = "input" if len(placeholders) == 1 else f"input_{node.name}"
        while name in taken:
            name += "_"
        taken.add(name)
        sites.append(Site(name, node, origins[node], _clamp_name(node), macs[node], feeds[node]))
    return sites, left
