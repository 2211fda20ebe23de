"""Put delta layers into any network that torch.fx can trace.

Every linear operation should be fed with a tensor that was encoded. So from each one we walk back, through operations
that keep unchanged elements unchanged (reshapes, slices, zero padding, concatenation, max pooling ...), to the
operations that made its input: a nonlinearity, an addition, a pooling, the network's input, or another linear
operation. Each such *source* gets one delta layer, and every reader of the source reads what the layer gives. Two
refinements: a source whose only reader is a max pool gets its layer after the pool (less state), and a source that is a
clamp (ReLU, ReLU6) is computed by the layer itself.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal, TypeVar

from torch import Tensor, fx, nn

from sparsetime.codec import Codec
from sparsetime.convert.network import PREFIX, SparseNetwork
from sparsetime.convert.sites import Seen, Site, find_sites, label, look, macs_of, may_view
from sparsetime.convert.trace import SparsifyError, by_origin, follow_in_place, trace, writes_to
from sparsetime.nn import DeltaActivation, SpatialL1
from sparsetime.quantize import Granularity, Rule

__all__ = ["SparsifyError", "sparsify"]

T = TypeVar("T")


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
        example: one batch of frames, (N, C, H, W), as the network takes it; several inputs as a sequence, each with the
            frames as its first dimension.
        layer: "delta" for `DeltaActivation`, "spatial_l1" for the baseline (no layer on the input then).
        include, exclude: patterns (`*`, `?`, `[...]`) of layer names; excluded wins. Partial use saves state memory.
        step, rule, granularity, codec: one value, or values by name pattern (the first that fits; a name that fits
            none gets the default). The default rule is "dal", and "fixed" on the input: nothing but the task pulls at
            the input's step, and that makes it shrink to nothing. A camera's noise should fix it.
        copy_model: work on a deep copy, so that `model` stays what it is.

    Returns:
        a `SparseNetwork`. Its parameters have the names they had; `left_dense` says what is not encoded, and why.

    Raises:
        SparsifyError: the model cannot be copied or traced (naming the line), is compiled, has delta layers already,
            has no linear operation, behaves differently in training and evaluation, mixes the frames of a batch, a
            pattern fits nothing, or an input of the example has another number of frames.
    """
    if layer not in ("delta", "spatial_l1"):
        raise SparsifyError(f"sparsify: layer must be 'delta' or 'spatial_l1', got {layer!r}")
    if delta_layers := [name for name, m in model.named_modules() if isinstance(m, DeltaActivation | SpatialL1)]:
        raise SparsifyError(
            f"sparsify: {type(model).__name__} has delta layers already ({', '.join(delta_layers[:3])} ...). "
            "sparsetime.unsparsify(model) gives the network without them."
        )
    if compiled := [name or "the model" for name, m in model.named_modules() if "_orig_mod" in m._modules]:
        raise SparsifyError(
            f"sparsify: {compiled[0]} was compiled by torch.compile, which hides what is in it. Sparsify the module "
            "itself and compile the result: torch.compile(sparsetime.sparsify(model, example))"
        )
    if copy_model:
        try:
            model = copy.deepcopy(model)
        except Exception as error:  # tensors with a gradient's history, as pruning leaves them; locks; open files
            raise SparsifyError(
                f"sparsify: {type(model).__name__} cannot be copied: {error}\nWith copy_model=False it is not, and the "
                "result shares its weights."
            ) from error
    inputs = [example] if isinstance(example, Tensor) else list(example)
    graphs, modes = trace(model)
    _check_example(graphs[False], inputs)
    seen = look(model, graphs[False], inputs)
    for graph in dict.fromkeys(graphs.values()):
        follow_in_place(graph)
    all_sites, left_dense = find_sites(graphs[False], seen)
    if layer == "spatial_l1":
        all_sites = [site for site in all_sites if site.node.op != "placeholder"]
    sites = _select(all_sites, _patterns(include), _patterns(exclude))
    reasons = {label(node): reason for node, reason in left_dense.items()}
    for site in all_sites:
        if site not in sites:
            reasons |= dict.fromkeys(site.feeds, f"fed by {site.name}, which is excluded")
    encoded = {name for site in sites for name in site.feeds if name not in reasons} if layer == "delta" else set()
    settings = {"step": step, "rule": rule, "granularity": granularity, "codec": codec}
    _check_patterns(settings, [site.name for site in sites])

    total = sum(macs_of(op, seen.batch) for ops in seen.calls.values() for op in ops)
    layers: dict[str, nn.Module] = {}
    for site in sites:
        new = _delta_layer(site, seen, settings) if layer == "delta" else SpatialL1()
        new.weight = site.macs / total if total else 0.0
        layers[site.name] = new.to(inputs[0].device)
    modules = _modules(model, graphs, sites, layers, fuse=layer == "delta")
    return SparseNetwork(model, modules, layers, reasons, frozenset(encoded), modes, inputs[0].dim())


def _delta_layer(site: Site, seen: Seen, settings: Mapping[str, Any]) -> DeltaActivation:
    """The layer of a site, with the settings that fit its name."""
    defaults = {
        "step": 1 / 16,
        "rule": "fixed" if site.node.op == "placeholder" else "dal",
        "granularity": "layer",
        "codec": "exact",
    }
    chosen: dict[str, Any] = {what: _pick(settings[what], site.name, default) for what, default in defaults.items()}
    shape = tuple(seen.value[site.node].shape[1:])
    return DeltaActivation(shape, activation=site.clamp or "identity", **chosen)


def _modules(
    model: nn.Module, graphs: dict[bool, fx.Graph], sites: list[Site], layers: dict[str, nn.Module], *, fuse: bool
) -> dict[bool, fx.GraphModule]:
    """The graphs with their layers, by mode; one object where they do not differ."""
    made: dict[fx.Graph, fx.GraphModule] = {}
    for graph in dict.fromkeys(graphs[mode] for mode in (False, True)):
        _insert(graph, sites, fuse=fuse)
        holder = nn.Module()  # torch.fx looks modules up on this root; the network's own are only read
        holder.__dict__.update(model.__dict__)
        holder._modules = dict(model._modules) | {PREFIX: nn.ModuleDict(layers)}
        made[graph] = fx.GraphModule(holder, graph, class_name=f"Sparse{type(model).__name__}")
        made[graph].graph.lint()
    return {mode: made[graph] for mode, graph in graphs.items()}


def _check_example(graph: fx.Graph, inputs: list[Tensor]) -> None:
    """Every input has the frames as its first dimension; one frame may stand for all of them."""
    frames = inputs[0].shape[:1]
    names = [node.target for node in graph.nodes if node.op == "placeholder"]
    for name, value in zip(names, inputs, strict=False):
        if value.shape[:1] not in (frames, (1,)):
            raise SparsifyError(
                f"sparsify: expected {frames.numel()} frames as the first dimension of each input of the example, as "
                f"of the first, got shape {tuple(value.shape)} for {name!r}. What is the same in all frames may be a "
                "buffer of the network, or value.expand(N, ...)."
            )


def _insert(graph: fx.Graph, sites: list[Site], *, fuse: bool) -> None:
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


def _spare(graph: fx.Graph) -> None:
    """Nobody may write into what a delta layer gives: it is kept for the layer's backward pass."""
    nodes = list(graph.nodes)
    layers = {node for node in nodes if node.op == "call_module" and str(node.target).startswith(f"{PREFIX}.")}
    for index, node in enumerate(nodes):
        target = base = None if node in layers else writes_to(node)
        while base is not None and base not in layers and may_view(base):
            base = base.all_input_nodes[0]
        if target is None or base is None or base not in layers:
            continue
        views = {base}
        views.update(n for n in nodes[:index] if n not in layers and may_view(n) and n.all_input_nodes[0] in views)
        if any(user in nodes[index + 1 :] for view in views for user in view.users):
            raise SparsifyError(
                f"sparsify: {label(node)} ({node.meta.get('line', '')}) works in place on a view of what "
                f"{base.target} gives, and others read that afterwards; let it work out of place (inplace=False)"
            )
        with graph.inserting_before(node):
            node.replace_input_with(target, graph.call_method("clone", (target,)))


def _patterns(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _select(sites: list[Site], include: list[str], exclude: list[str]) -> list[Site]:
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
    return next((v for pattern, v in value.items() if fnmatchcase(name, pattern)), default)
