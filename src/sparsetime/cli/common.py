"""What the commands share: options, and how they end."""

import functools
import itertools
import math
import os.path
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, ParamSpec, Self

import typer

from sparsetime.files import TargetError, ready, write_json

P = ParamSpec("P")


def _target(file: Path | None) -> Path | None:
    """Refuse a file that cannot be written before the work is done."""
    try:
        return None if file is None else ready(file)
    except TargetError as error:
        raise typer.BadParameter(str(error)) from error


JsonOption = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write the result as JSON to FILE.", callback=_target),
]
DebugOption = Annotated[
    bool, typer.Option("--debug", envvar="SPARSETIME_DEBUG", help="Show where an error comes from.")
]
FlushOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        metavar="X",
        help="Start again once changes asked for X dense frames' operations; 0: never.  [default: 1; exact: 0]",
    ),
]
AcceleratorOption = Annotated[
    Literal["auto", "cpu", "cuda", "mps"], typer.Option(help="auto takes a CUDA GPU where there is one.")
]
ThreadsOption = Annotated[int | None, typer.Option(min=1, metavar="N", help="Threads of PyTorch.  [default: its own]")]
WorkersOption = Annotated[int, typer.Option(min=0, metavar="N", help="Processes that decode and load clips.")]


def parse_size(text: str | None) -> tuple[int, int] | None:
    """(H, W) of `HxW`.

    >>> parse_size("256x320")
    (256, 320)
    """
    if text is None:
        return None
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if found is None:
        raise typer.BadParameter(f"expected --size HxW, such as 224x224, got {text!r}")
    return int(found[1]), int(found[2])


_PARTS = {"config.json", "model.safetensors", "metrics.csv", "last.ckpt", "clips.csv"}
"""Of run directories and data sets, besides pictures, videos and evaluations."""


def check_targets(targets: Mapping[str, Path | None], *sources: Path | str | None) -> None:
    """Refuse to overwrite what a command uses, or one of its results with another. To be called before the work.

    Args:
        targets: files to write, by the option that names them.
        sources: files and folders that are used. Those that are not there, such as an address, are passed over.

    Raises:
        TargetError: a target is a source, a part of one that is a folder, or another target.
    """
    given = [(option, file) for option, file in targets.items() if file is not None]
    for (option, file), (other, second) in itertools.combinations(given, 2):
        if one_file(file, second):
            raise TargetError(f"{option} {file} and {other} {second} are the same file; expected two: name another one")
    used = [Path(source) for source in sources if source is not None]
    for (option, file), source in itertools.product(given, used):
        if (one_file(file, source) and file.exists()) or _is_part(file, source):
            raise TargetError(f"{option} {file} would overwrite what this command uses ({source}); name another file")


def one_file(a: Path, b: Path) -> bool:
    """Whether two names are of one file, be it there or not."""
    if os.path.realpath(a) == os.path.realpath(b):
        return True
    with suppress(OSError):  # one of them is not there
        return a.samefile(b)
    return False


def _is_part(file: Path, folder: Path) -> bool:
    """Whether a file is one of those that are used where a folder is given; others may well be written there."""
    entry = Path(os.path.realpath(file.parent), file.name)  # what is replaced, be it a link
    if Path(os.path.realpath(folder)) not in entry.parents:
        return False
    from sparsetime.video.reader import IMAGE_DECODERS, VIDEO_SUFFIXES, image_files

    suffix = entry.suffix.lower()
    if suffix in VIDEO_SUFFIXES:  # beside pictures a video is none of the frames
        return folder.is_dir() and not image_files(folder)
    evaluation = entry.name.startswith(("evaluation-", "frames-")) and entry.with_name("config.json").exists()
    return evaluation or suffix in IMAGE_DECODERS or entry.name in _PARTS


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """End with one line on stderr and a code: 1 for an error, 130 for Ctrl-C."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            again = (
                ". Give the same command again to go on from the last whole epoch"
                if command.__name__ == "train"
                else ""
            )
            say(f"sparsetime: stopped{again}")
            raise typer.Exit(130) from None
        except (typer.Exit, typer.BadParameter):
            raise
        except Exception as error:
            if kwargs.get("debug"):
                traceback.print_exc()
            say(f"sparsetime: error: {one_line(error)}")
            raise typer.Exit(1) from None

    return run


def say(text: str) -> None:
    """A line on stderr; stdout is for results."""
    print(text, file=sys.stderr)


def one_line(error: Exception) -> str:
    """An error as one line. Errors of this package and of the system speak for themselves, others are named."""
    text = " ".join(str(error).split()) or "no message"
    speaks = type(error).__module__.startswith("sparsetime") or isinstance(error, OSError | ValueError)
    return text if speaks and " " in text else f"{type(error).__name__}: {text}"


def finish(result: dict[str, Any], file: Path | None) -> None:
    """Write a result to the --json file, whole or not at all."""
    if file is not None:
        write_json(file, result)


class CtrlC:
    """While this context is open Ctrl-C asks to end after the frame; a second one ends at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


class StatusLine:
    """How it goes, on stderr: one line that is rewritten on a terminal, new ones elsewhere. Use as a context manager.

    Args:
        terminal_s, elsewhere_s: seconds from one to the next.

    Attributes:
        every_s: that of the two which holds.
    """

    def __init__(self, terminal_s: float = 0.2, elsewhere_s: float = 5.0) -> None:
        self._terminal = sys.stderr.isatty()
        self.every_s = terminal_s if self._terminal else elsewhere_s
        self._shown = -math.inf
        self._open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the line as it is, and begin another."""
        if self._open:
            print(file=sys.stderr)

    @property
    def due(self) -> bool:
        """Whether it is time for the next."""
        return time.monotonic() - self._shown >= self.every_s

    def show(self, text: str) -> None:
        """Say this now."""
        line, end = (f"\r{text[:100]}\x1b[K", "") if self._terminal else (text, "\n")
        print(line, end=end, file=sys.stderr, flush=True)
        self._shown = time.monotonic()
        self._open = self._terminal
