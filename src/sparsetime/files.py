"""Files that are either whole or not there."""

import csv
import io
import itertools
import json
import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["TargetError", "check_archive", "part_of", "ready", "settle", "write_csv", "write_json", "write_whole"]

_number = itertools.count()


class TargetError(OSError):
    """A file cannot be written where it is to be: its name and why."""


def ready(path: str | Path) -> Path:
    """Make the folder of a file that is to be written, so that what cannot be is known before the work.

    Raises:
        TargetError: the path is a folder, or its folder cannot be made.
    """
    path = Path(path)
    if path.is_dir():
        raise TargetError(f"{path} is a folder; expected the file to write: name one in it, such as {path / 'out'}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TargetError(f"{path}: its folder cannot be made: {error.strerror}; name a file elsewhere") from error
    return path


def check_archive(path: Path) -> None:
    """Compare a zip file with its checksums, which `torch.load` does not look at.

    Raises:
        zipfile.BadZipFile: it is no zip file, or names the entry that is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        if entry := archive.testzip():
            raise zipfile.BadZipFile(f"the file is damaged in {entry}")


def part_of(path: Path) -> Path:
    """The file beside a file into which it is written until it is whole: no other process's or thread's."""
    return path.with_name(f".{path.name}.{os.getpid()}.{next(_number)}.part")


def settle(part: Path, path: Path) -> None:
    """Give a part that is whole its name, in one step, once it is on the disk."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)


def write_whole(path: str | Path, content: bytes) -> None:
    """Replace a file in one step: write beside it, flush to the disk, rename. Folders that are not there are made.

    A full disk, a kill or a power cut leaves the old file as it was.

    Raises:
        TargetError: see `ready`.
        OSError: the content could not be written; nothing of it is left behind.
    """
    path = ready(path)
    part = part_of(path)
    try:
        with part.open("xb") as file:
            file.write(content)
        settle(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_json(path: str | Path, data: Any, *, indent: int | None = 2) -> None:
    """Write plain data as JSON, in one step.

    Raises:
        ValueError: the data has NaN or infinity, which JSON does not know.
        OSError: see `write_whole`.
    """
    write_whole(path, (json.dumps(data, indent=indent, allow_nan=False) + "\n").encode())


def write_csv(path: str | Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows under a header, in one step; None becomes an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode())
