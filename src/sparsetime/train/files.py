"""Files that are either whole or not there."""

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_atomic(path: Path, content: bytes) -> None:
    """Replace a file in one step: write beside it, flush to the disk, rename.

    A full disk, a kill or a power cut leaves the old file as it was.

    Raises:
        OSError: the content could not be written; nothing of it is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_json(path: Path, data: Any) -> None:
    """Write plain data as indented JSON, in one step.

    Raises:
        ValueError: the data has NaN or infinity, which JSON does not know.
    """
    write_atomic(path, (json.dumps(data, indent=2, allow_nan=False) + "\n").encode())


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows under a header, in one step; None becomes an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue().encode())
