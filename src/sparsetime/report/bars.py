"""Density and share of MACs of every layer, as bars."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparsetime.report.groups import Group
from sparsetime.report.runs import number
from sparsetime.report.svg import counted, decimal, element, percent, share


@dataclass(frozen=True)
class LayerRow:
    """One layer: its name and kind, its share of the network's dense MACs, the two pictures."""

    name: str
    kind: str
    macs_text: str
    density_bars: str
    macs_bar: str


BAR_HEIGHT, BAR_GAP = 7, 2


def layer_rows(groups: Sequence[Group]) -> list[LayerRow]:
    """A row for each layer of a task's groups, in the order of the network; empty without layers."""
    per_group = [group.layers() for group in groups]
    # The group that counted most layers gives their order; what only others have follows.
    names = list(dict.fromkeys(name for layers in sorted(per_group, key=len, reverse=True) for name in layers))
    known = [next(layers[name] for layers in per_group if name in layers) for name in names]
    macs = [number(layer, "dense_macs") for layer in known]
    total = sum(value for value in macs if value is not None)
    largest = max((value for value in macs if value is not None), default=0.0)
    rows = []
    for name, layer, count in zip(names, known, macs, strict=True):
        part = count / total if count is not None and total else None
        rows.append(
            LayerRow(
                name,
                str(layer.get("kind", "")),
                share(part),
                _density_bars([layers.get(name) for layers in per_group], groups),
                _macs_bar(name, count, part, count / largest if count is not None and largest else 0.0),
            )
        )
    return rows


def _density_bars(layers: Sequence[dict[str, Any] | None], groups: Sequence[Group]) -> str:
    parts = []
    for i, (layer, group) in enumerate(zip(layers, groups, strict=True)):
        density = number(layer, "op_density") if layer else None
        if layer is None or density is None:
            continue
        parts.append(
            element(
                "rect",
                x=0,
                y=i * (BAR_HEIGHT + BAR_GAP),
                width=percent(min(density, 1.0)),
                height=BAR_HEIGHT,
                rx=1.5,
                class_=f"bar hit {group.paint}",
                data_tip=_tip(layer, group, density),
                data_value=density,
            )
        )
    height = len(groups) * (BAR_HEIGHT + BAR_GAP) - BAR_GAP
    track = element("rect", x=0, y=0, width="100%", height=height, class_="track")
    return element("svg", track, *parts, class_="bars", width="100%", height=height)


def _tip(layer: dict[str, Any], group: Group, density: float) -> str:
    lines = [f"{layer.get('name', '?')} · {group.label}", f"{decimal(density)} of operations remain"]
    dense, effective = number(layer, "dense_macs"), number(layer, "effective_macs")
    if dense is not None and effective is not None:
        acs = number(layer, "acs")
        added = f" and {counted(acs, 'AC')}" if acs else ""
        lines.append(f"{counted(effective, 'MAC')}{added} of {counted(dense, 'MAC')}")
    for key, word in (("activation_density", "activations"), ("delta_density", "deltas")):
        value = number(layer, key)
        if value is not None:
            lines.append(f"{decimal(value)} of {word} not zero")
    return "\n".join(lines)


def _macs_bar(name: str, count: float | None, part: float | None, width: float) -> str:
    bar = element(
        "rect",
        x=0,
        y=0,
        width=percent(width),
        height=BAR_HEIGHT + 2,
        rx=1.5,
        class_="bar hit macs",
        data_tip=f"{name}\n{counted(count, 'MAC')}, {share(part)} of the network's",
        data_value=part,
    )
    return element("svg", bar, class_="bars", width="100%", height=BAR_HEIGHT + 2)
