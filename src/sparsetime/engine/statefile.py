"""The state of a stream on disk, so that another process can go on in the middle of a video with the same bits.

One safetensors file: the arrays of `Stream.snapshot` by the names of docs/plan.md, and in the metadata a header that
binds them to their plan and to each other:

    {"format": "sparsetime.state", "version": 3, "frames": n, "pace": {"asked": x, "left": n, "next": n, "cut": x},
     "plan": SHA-256, "arrays": SHA-256}

The plan's digest covers what the state depends on: operations, shapes, steps and weights, the frame's normalisation.
Names, producer and the packing of the outputs may differ.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialised

from sparsetime.engine.flushes import CUT, LONGEST, Pace
from sparsetime.engine.ops import PlanError
from sparsetime.engine.plan import Plan
from sparsetime.engine.planfile import header_of, tensors_of
from sparsetime.engine.stream import Snapshot, Stream, StreamError
from sparsetime.files import write_whole

__all__ = ["FORMAT", "VERSION", "load_state", "plan_digest", "save_state"]

FORMAT = "sparsetime.state"
VERSION = 3
_DTYPES = ("F32", "U8", "I64", "BOOL")  # values and accumulators, codes, values between islands
_KEYS = {"format", "version", "frames", "pace", "plan", "arrays"}
_NO_MATTER = ("producer", "name", "structure", "outputs")  # entries of a plan's header that no state depends on


def _digest(text: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 of a text and of arrays: names, types, shapes and bytes."""
    found = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        found.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        found.update(array.data)
    return found.hexdigest()


def plan_digest(plan: Plan) -> str:
    """SHA-256 of what the state of a stream of this plan depends on."""
    header = {key: value for key, value in header_of(plan).items() if key not in _NO_MATTER}
    for op in header["ops"]:
        del op["source"]
    return _digest(json.dumps(header, sort_keys=True), plan.tensors)


def save_state(stream: Stream, path: str | Path) -> None:
    """Write a stream's state to one file, whole or not at all, and put it back into the stream.

    The stream goes on with the same bits as one that loads the file, see `Stream.snapshot`.

    Args:
        stream: of any backend, between two frames.
        path: file to write; one of that name is replaced when the new one is whole.

    Raises:
        StreamBusyError: another thread is using the stream.
        OSError: the file cannot be written.
    """
    kept = stream.snapshot()
    header = {
        "format": FORMAT,
        "version": VERSION,
        "frames": kept.frames,
        "pace": kept.pace._asdict(),
        "plan": plan_digest(stream.plan),
        "arrays": _digest("", kept),
    }
    arrays = {key: np.asarray(array, order="C") for key, array in kept.items()}
    write_whole(path, serialised(arrays, {FORMAT: json.dumps(header)}))


def load_state(stream: Stream, path: str | Path) -> None:
    """Put a state that `save_state` wrote into a stream of the same plan; the stream's next frame is `stream.frames`.

    Args:
        stream: of the plan that the state is of, on the backend that it is to continue on.
        path: file to read; no code in it is run.

    Raises:
        StreamError: no whole state file, or one of another plan; the stream is as it was.
    """
    path = Path(path)
    if not path.is_file():
        raise StreamError(f"{path}: no such file; `run --save-state` and `save_state` write states")
    try:
        # safetensors has checked offsets and sizes against the file's length when this opens.
        with safe_open(path, framework="numpy") as file:
            header = _header((file.metadata() or {}).get(FORMAT), path)
            if header["plan"] != plan_digest(stream.plan):
                raise StreamError(
                    f"{path}: the state is of another plan than '{stream.plan.name}'. Load the plan that it was saved "
                    "with, or start the video anew without it"
                )
            arrays = tensors_of(file, _DTYPES)
    except SafetensorError as error:
        raise StreamError(
            f"{path}: no state, or not a whole one (not a whole safetensors file: {error}). `run --save-state` and "
            "`save_state` write states"
        ) from error
    except PlanError as error:
        raise StreamError(f"{path}: {error}") from error
    if _digest("", arrays) != header["arrays"]:
        raise StreamError(f"{path}: the file is damaged: its arrays are not those that were written")
    if arrays and not header["frames"]:  # the other way round a flush is due
        raise StreamError(f"{path}: {len(arrays)} arrays after {header['frames']} frames cannot be")
    stream.restore(Snapshot(arrays, header["frames"], Pace(**header["pace"])))


def _header(text: str | None, path: Path) -> dict[str, Any]:
    if text is None:
        raise StreamError(f"{path}: a safetensors file, but no state: its metadata has no '{FORMAT}'")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StreamError(f"{path}: the header is no JSON: {error}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise StreamError(f"{path}: the header does not say that its format is '{FORMAT}'")
    if type(header.get("version")) is not int or header["version"] != VERSION:
        raise StreamError(
            f"{path}: version {str(header.get('version'))[:20]} of a state is not known here (this is {VERSION})"
        )
    if set(header) != _KEYS:
        raise StreamError(f"{path}: expected the entries {sorted(_KEYS)}, got {sorted(header)[:8]}")
    if type(header["frames"]) is not int or header["frames"] < 0:
        raise StreamError(f"{path}: frames: expected a number, got {str(header['frames'])[:20]}")
    pace = header["pace"]
    if not isinstance(pace, dict) or set(pace) != set(Pace._fields):
        raise StreamError(f"{path}: pace: expected {sorted(Pace._fields)}, got {str(pace)[:40]}")
    for name, most in (("asked", math.inf), ("cut", CUT)):
        number = pace[name]
        if type(number) is not float or not (math.isfinite(number) and 0 <= number <= most):
            raise StreamError(f"{path}: {name}: expected a number from 0 to {most}, got {str(number)[:20]}")
    for name, least in (("left", 0), ("next", 1)):
        if type(pace[name]) is not int or not least <= pace[name] <= LONGEST:
            raise StreamError(f"{path}: {name}: expected {least} to {LONGEST}, got {str(pace[name])[:20]}")
    return header
