"""Change maps over real frames: the data that the page's script draws."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsetime.frames import Frames, load_frames
from sparsetime.report.groups import Group
from sparsetime.report.image import data_uri, photo, png
from sparsetime.report.runs import Run

MAX_FRAMES = 24
MAX_SIDE = 320
# The page stays below 3 MB: what does not fit in here is left out, and the page says so.
MAX_BYTES = 1_500_000


@dataclass(frozen=True)
class Panel:
    """The pictures of one run.

    Attributes:
        group: the group it stands for.
        run: its name.
        strip: which of the page's strips has its frames.
        count: how many frames those are.
        maps: layer to height, width, strip of maps, and the mean share of each frame.
    """

    group: Group
    run: str
    strip: int
    count: int
    maps: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class TaskMaps:
    """The panels of one task, the union of their layers, and the layer and frame to begin with."""

    task: str
    panels: list[Panel]
    layers: list[str]
    first: str
    start: int


@dataclass
class ChangeMaps:
    """Pictures of all tasks.

    Attributes:
        tasks: those that have pictures.
        strips: frames below one another, as data URIs; runs that saw the same clip share one.
        notes: what was left out and why.
    """

    tasks: list[TaskMaps] = field(default_factory=list)
    strips: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def payload(self) -> dict[str, Any]:
        """What the page's script needs, as plain data."""
        tasks = [
            {
                "task": entry.task,
                "panels": [
                    {"label": panel.group.label, "frames": panel.strip, "count": panel.count, "maps": panel.maps}
                    for panel in entry.panels
                ],
            }
            for entry in self.tasks
        ]
        return {"tasks": tasks, "strips": self.strips}


def collect_maps(tasks: Mapping[str, Sequence[Group]], max_bytes: int = MAX_BYTES) -> ChangeMaps:
    """Read the pictures of one run of each group.

    Args:
        tasks: name of a task to its groups.
        max_bytes: groups whose pictures would exceed this, in bytes of text, are left out.
    """
    result = ChangeMaps()
    used = 0
    for task, groups in tasks.items():
        panels: list[Panel] = []
        for group in groups:
            found = _first_readable(group, result.notes)
            if found is None:
                continue
            run, frames = found
            if not frames.maps:
                result.notes.append(f"{run.name}: frames-{group.split}.npz has no change maps.")
                continue
            strip = photo(_strip(_shrink(frames.frames[:MAX_FRAMES], MAX_SIDE)))
            # A delta layer stands behind an activation of the plain network: its name has "_" where that has ".".
            maps = {name.replace(".", "_"): _map(values[:MAX_FRAMES]) for name, values in frames.maps.items()}
            size = sum(len(entry["strip"]) for entry in maps.values()) + (strip not in result.strips) * len(strip)
            if used + size > max_bytes:
                result.notes.append(f"{group.label} on {task}: change maps left out to keep the page small.")
                continue
            used += size
            if strip not in result.strips:
                result.strips.append(strip)
            count = min(len(frames.frames), MAX_FRAMES)
            panels.append(Panel(group, run.name, result.strips.index(strip), count, maps))
        if panels:
            result.tasks.append(_task(task, panels))
    return result


def _task(task: str, panels: list[Panel]) -> TaskMaps:
    """Begin with a layer that all panels have, from the middle, and its frame of most change but the first."""
    layers = list(dict.fromkeys(name for panel in panels for name in panel.maps))
    shared = [name for name in layers if all(name in panel.maps for panel in panels)] or layers
    first = shared[len(shared) // 2]
    means = next(panel.maps[first]["mean"] for panel in panels if first in panel.maps)
    start = max(range(1, len(means)), key=lambda t: means[t], default=0)
    return TaskMaps(task, panels, layers, first, start)


def _first_readable(group: Group, notes: list[str]) -> tuple[Run, Frames] | None:
    """The first run of a group whose pictures can be read."""
    for run in group.runs:
        file = run.frames.get(group.split or "")
        if file is None:
            continue
        try:
            return run, load_frames(file)
        except ValueError as error:
            notes.append(f"{run.name}: {error}.")
    if group.evaluations():
        notes.append(f"{group.label} on {' · '.join(group.task)}: no readable frames-{group.split}.npz.")
    return None


def _map(values: NDArray[np.float16]) -> dict[str, Any]:
    """A layer's maps below one another, 0 to 255 for shares of 0 to 1, and the mean share of each frame."""
    exact = values.astype(np.float32)
    # 32 levels: as many as the eye tells apart, in half the bytes.
    strip = np.rint(np.rint(31 * exact) * (255 / 31)).astype(np.uint8).reshape(-1, values.shape[2])
    return {
        "height": values.shape[1],
        "width": values.shape[2],
        "strip": data_uri(png(strip), "image/png"),
        "mean": [round(float(mean), 4) for mean in exact.mean(axis=(1, 2))],
    }


def _strip(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return frames.reshape(-1, *frames.shape[2:])


def _shrink(frames: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Every k-th pixel of frames whose longer side exceeds ``side``."""
    step = -(-max(frames.shape[1:3]) // side)
    return np.ascontiguousarray(frames[:, ::step, ::step])
