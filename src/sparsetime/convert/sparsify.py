"""Put delta layers into any network that torch.fx can trace.

Every linear operation should be fed with a tensor that was encoded. So from each one we walk back, through operations
that
keep unchanged elements unchanged (reshapes, slices, zero padding, concatenation, max pooling ...), to the operations
that made
its input: a nonlinearity, an addition, a pooling, the network's input, or another linear operation. Each such *source*
    gets one
delta layer, and every reader of the source reads what the layer gives. Two refinements: a source whose only reader is
a max pool
gets its layer after the pool (less state), and a source that is a clamp (ReLU, ReLU6) is computed by the layer itself.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from sparsetime.codec import Codec
from sparsetime.convert.network import PREFIX, SparseNetwork
from sparsetime.convert.trace import (
    OUT_OF_PLACE,
    Origin,
    SparsifyError,
    by_origin,
    follow_in_place,
    module_of,
    trace,
    writes_to,
)
from sparsetime.fanout import LinearOp, fanout
from sparsetime.nn import DeltaActivation, SpatialL1
from sparsetime.quantize import Granularity, Rule
from sparsetime.watch import LinearCall, OpNames, WatchLinear

__all__ = ["SparsifyError", "sparsify"]

T = TypeVar("T")

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


class _Op(NamedTuple):
    """A linear operation that the network runs: its name, what it is, and the shape that went in."""

    name: str
    op: LinearOp
    shape: tuple[int, ...]


@dataclass
class _Seen:
    """What running the graph on the example showed of each node."""

    batch: int
    value: dict[fx.Node, Any] = field(default_factory=dict)
    calls: dict[fx.Node, list[_Op]] = field(default_factory=dict)
    uncounted: dict[fx.Node, list[str]] = field(default_factory=dict)


class _Look(fx.Interpreter):
    """Runs the graph on the example and notes, per node, its value's shape and the linear operations inside it."""

    def __init__(self, module: fx.GraphModule, names: OpNames, batch: int) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.seen = _Seen(batch)
        self._names = names

    def run_node(self, n: fx.Node) -> Any:
        calls: list[_Op] = []
        uncounted: list[str] = []

        def note(call: LinearCall) -> None:
            calls.append(_Op(self._names(call), call.op, tuple(call.x.shape)))

        with WatchLinear(note, uncounted.append):
            result = super().run_node(n)
        self.seen.calls[n] = calls
        self.seen.uncounted[n] = uncounted
        self.seen.value[n] = torch.empty_like(result, device="meta") if isinstance(result, Tensor) else result
        return result


@dataclass
class _Site:
    """Where a delta layer goes."""

    name: str
    node: fx.Node  # the layer reads this node ...
    origin: Origin
    clamp: str | None  # ... or replaces it, if it is this clamp
    macs: float  # of one frame, caused by what the layer gives
    feeds: list[str]  # linear operations that read it, by name


def sparsify(
    model: nn.Module,
    example: Tensor | Sequence[Tensor],
    *,
    layer: Literal["delta", "spatial_l1"] = "delta",
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
    step: float | Mapping[str, float] = 1 / 16,
    rule: Rule | Mapping[str, Rule] | None = None,
    granularity: Granularity | Mapping[str, Granularity] = "layer",
    codec: Codec | Mapping[str, Codec] = "exact",
    copy_model: bool = True,
) -> SparseNetwork:
    """Insert delta layers into a per-frame network; see this module's docstring for where.

    Args:
        model: any module that torch.fx traces.
        example: one batch of frames, (N, C, H, W), as the network takes it; several inputs as a sequence.
        layer: "delta" for `DeltaActivation`, "spatial_l1" for the baseline (no layer on the input then).
        include, exclude: patterns (`*`, `?`, `[...]`) of layer names; excluded wins. Partial use saves state memory.
        step, rule, granularity, codec: one value, or values by name pattern (the first that fits; a name that fits
            none gets the default). The default rule is "dal", and "fixed" on the input: nothing but the task pulls at
            the input's step, and that makes it shrink to nothing. A camera's noise should fix it.
        copy_model: work on a deep copy, so that `model` stays what it is.

    Returns:
        a `SparseNetwork`. Its parameters have the names they had; `left_dense` says what is not encoded, and why.

    Raises:
        SparsifyError: the model cannot be traced (naming the line), has delta layers already, has no linear operation,
            behaves differently in training and evaluation, or a pattern fits nothing.
    """
    if layer not in ("delta", "spatial_l1"):
        raise SparsifyError(f"sparsify: layer must be 'delta' or 'spatial_l1', got {layer!r}")
    if delta_layers := [name for name, m in model.named_modules() if isinstance(m, DeltaActivation | SpatialL1)]:
        raise SparsifyError(
            f"sparsify: {type(model).__name__} has delta layers already ({', '.join(delta_layers[:3])} ...). "
            "sparsetime.unsparsify(model) gives the network without them."
        )
    if copy_model:
        model = copy.deepcopy(model)
    inputs = [example] if isinstance(example, Tensor) else list(example)
    graphs, modes = trace(model)
    seen = _look(model, graphs[False], inputs)
    tensors = {origin for origin, node in by_origin(graphs[False]).items() if isinstance(seen.value[node], Tensor)}
    for graph in dict.fromkeys(graphs.values()):
        follow_in_place(graph, tensors)
    sites, left_dense = _find_sites(graphs[False], seen)
    total = sum(_macs(op, seen.batch) for ops in seen.calls.values() for op in ops)
    if layer == "spatial_l1":
        sites = [site for site in sites if site.node.op != "placeholder"]
    all_sites = sites
    sites = _select(sites, _patterns(include), _patterns(exclude))
    reasons = {_label(node): reason for node, reason in left_dense.items()}
    for site in all_sites:
        if site not in sites:
            reasons |= dict.fromkeys(site.feeds, f"fed by {site.name}, which is excluded")
    encoded = {name for site in sites for name in site.feeds if name not in reasons} if layer == "delta" else set()
    settings = {"step": step, "rule": rule, "granularity": granularity, "codec": codec}
    _check_patterns(settings, [site.name for site in sites])

    layers: dict[str, nn.Module] = {}
    for site in sites:
        new: DeltaActivation | SpatialL1
        if layer == "delta":
            new = DeltaActivation(
                tuple(seen.value[site.node].shape[1:]),
                activation=site.clamp or "identity",
                step=_pick(step, site.name, 1 / 16),
                rule=_pick(rule, site.name, "fixed" if site.node.op == "placeholder" else "dal"),
                granularity=_pick(granularity, site.name, "layer"),
                codec=_pick(codec, site.name, "exact"),
            )
        else:
            new = SpatialL1()
        new.weight = site.macs / total if total else 0.0
        layers[site.name] = new.to(inputs[0].device)
    modules: dict[bool, fx.GraphModule] = {}
    for mode in (False, True):
        if mode and graphs[True] is graphs[False]:
            modules[True] = modules[False]
            continue
        _insert(graphs[mode], sites, fuse=layer == "delta")
        holder = nn.Module()  # torch.fx looks modules up on this root; the network's own are only read
        holder.__dict__.update(model.__dict__)
        holder._modules = dict(model._modules) | {PREFIX: nn.ModuleDict(layers)}
        modules[mode] = fx.GraphModule(holder, graphs[mode], class_name=f"Sparse{type(model).__name__}")
        modules[mode].graph.lint()
    return SparseNetwork(model, modules, layers, reasons, frozenset(encoded), modes, inputs[0].dim())


def _spare(graph: fx.Graph) -> None:
    """Nobody may write into what a delta layer gives: it is kept for the layer's backward pass."""
    layers = {node for node in graph.nodes if node.op == "call_module" and str(node.target).startswith(f"{PREFIX}.")}
    for node in [node for node in graph.nodes if node not in layers]:
        target = base = writes_to(node)
        while base is not None and base not in layers and _keeps(base) and base.all_input_nodes:
            base = base.all_input_nodes[0]
        if target is None or base not in layers:
            continue
        if node.target in OUT_OF_PLACE:
            node.target = OUT_OF_PLACE[node.target]
            continue
        with graph.inserting_before(node):
            node.replace_input_with(target, graph.call_method("clone", (target,)))


def _look(model: nn.Module, graph: fx.Graph, inputs: list[Tensor]) -> _Seen:
    # Two frames at least, so that the batch is told from other dimensions of size one.
    batch = [(i if i.shape[0] > 1 else i.expand(2, *i.shape[1:])).clone() for i in inputs]
    flags = {module: module.training for module in model.modules()}
    try:
        model.eval()
        look = _Look(fx.GraphModule(model, graph), OpNames(model), len(batch[0]))
        with torch.no_grad():
            look.run(*batch)
    except Exception as error:
        raise SparsifyError(
            f"sparsify: the model does not run on the example {tuple(inputs[0].shape)}: {error}"
        ) from error
    finally:
        for module, flag in flags.items():
            module.training = flag
    return look.seen


def _macs(call: _Op, batch: int) -> float:
    """Dense MACs of one frame."""
    times = math.prod(call.shape[:-1]) if call.op.kind == "linear" else call.shape[0]
    return float(fanout(call.op, call.shape[1:]).sum()) * times / batch


def _shares(call: _Op, data: fx.Node, sources: list[fx.Node], seen: _Seen) -> list[float]:
    """The MACs of one frame that each source causes: the fan-out of the elements that come from it."""
    if len(sources) == 1:
        return [_macs(call, seen.batch)]
    fan = fanout(call.op, call.shape[1:])
    return [float((_marks(data, source, sources, seen, {}) * fan).sum()) / seen.batch for source in sources]


def _marks(node: fx.Node, source: fx.Node, sources: list[fx.Node], seen: _Seen, known: dict[fx.Node, Any]) -> Any:
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


def _label(node: fx.Node) -> str:
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
        return _argument(node, 2, "mode", "constant") == "constant" and not _argument(node, 3, "value", None)
    if node.target is F.interpolate:
        return bool(_argument(node, 3, "mode", "nearest") == "nearest")
    return node.target in _KEEPING_FUNCTIONS or _is_max_pool(node)


def _clamp_name(node: fx.Node) -> str | None:
    """The name in `ACTIVATIONS` that this node computes, if any; not where it overwrites what others read."""
    module = module_of(node)
    base = writes_to(node)
    while base is not None and _keeps(base) and base.all_input_nodes:  # a view: others may see the tensor behind it
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


def _sources(node: fx.Node, seen: _Seen) -> list[fx.Node]:
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


def _find_sites(graph: fx.Graph, seen: _Seen) -> tuple[list[_Site], dict[fx.Node, str]]:
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
            + "".join(f"; {_label(n)}: {reason}" for n, reason in left.items())
        )
    placeholders = [n for n in nodes if n.op == "placeholder" and isinstance(seen.value[n], Tensor)]
    origins = {node: origin for origin, node in by_origin(graph).items()}
    sites: list[_Site] = []
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
        sites.append(_Site(name, node, origins[node], _clamp_name(node), macs[node], feeds[node]))
    return sites, left


def _insert(graph: fx.Graph, sites: list[_Site], *, fuse: bool) -> None:
    """Edit the graph: a first placeholder, the number of frames, and one call per site. Sites are found by where they
    were made, so any mode's graph will do.
    """
    by = by_origin(graph)
    nodes = [by.get(site.origin) for site in sites]
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    name = "frames"
    while name in (placeholder.target for placeholder in placeholders):
        name += "_"
    with graph.inserting_before(placeholders[0]):
        frames = graph.placeholder(name)
    for site, node in zip(sites, nodes, strict=True):
        if node is None:
            raise SparsifyError(
                f"sparsify: the network does something else in training than in evaluation, at {site.name} "
                f"({site.node.meta.get('line', '')}); it may look at self.training only where the operations stay the "
                "same"
            )
        clamp = site.clamp if fuse else None
        source = (node.args[0] if node.args else node.kwargs["input"]) if clamp else node
        with graph.inserting_after(placeholders[-1] if node.op == "placeholder" else node):
            new = graph.create_node("call_module", f"{PREFIX}.{site.name}", (source, frames))
        node.replace_all_uses_with(new, delete_user_cb=partial(operator.is_not, new))
        if clamp:
            graph.erase_node(node)
    _spare(graph)


def _patterns(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _select(sites: list[_Site], include: list[str], exclude: list[str]) -> list[_Site]:
    names = [site.name for site in sites]
    for pattern in include + exclude:
        if not _fits_any(names, pattern):
            raise SparsifyError(f"sparsify: pattern {pattern!r} fits no layer; layers are: {', '.join(names)}")
    chosen = [s for s in sites if _fits(s.name, include) and not _fits(s.name, exclude)]
    if not chosen:
        raise SparsifyError(f"sparsify: include and exclude leave no layer of: {', '.join(names)}")
    return chosen


def _fits_any(names: Sequence[str], pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


def _check_patterns(settings: Mapping[str, Any], names: list[str]) -> None:
    for what, value in settings.items():
        for pattern in value if isinstance(value, Mapping) else ():
            if not _fits_any(names, pattern):
                raise SparsifyError(
                    f"sparsify: {what}: pattern {pattern!r} fits no layer; layers are: {', '.join(names)}"
                )


def _pick(value: T | Mapping[str, T] | None, name: str, default: T) -> T:
    if value is None:
        return default
    if not isinstance(value, Mapping):
        return value
    fitting: Callable[[str], bool] = lambda pattern: fnmatchcase(name, pattern)  # noqa: E731
    return next((v for pattern, v in value.items() if fitting(pattern)), default)
