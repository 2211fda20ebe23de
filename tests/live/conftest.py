"""A small plan and video on disk, and the command that shows them."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from square_video import save_plan, save_square

COMMAND = "import typer; from sparsetime.cli.watching import register; app = typer.Typer(); register(app); app()"


@pytest.fixture(scope="session")
def square(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 300 frames, 48x64, 20 frames a second."""
    return save_square(tmp_path_factory.mktemp("videos") / "square.mkv", 300)


@pytest.fixture(scope="session")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 6 frames."""
    return save_square(tmp_path_factory.mktemp("videos") / "short.mkv", 6)


@pytest.fixture(scope="session")
def small_plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier for 24x32 frames, codec hold."""
    return save_plan(tmp_path_factory.mktemp("plans") / "small.plan")


class Watch:
    """`sparsetime watch` in a process of its own, on a free port."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, "-c", COMMAND, "watch", *map(str, arguments), "--port", "0"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        assert self.address.startswith("http://"), self.process.communicate(timeout=30)

    def interrupt(self) -> tuple[int, str, str]:
        """Ctrl-C; exit status, stdout and stderr."""
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=120)
        return self.process.returncode, out, err


@pytest.fixture(scope="module")
def watch() -> Iterator[Callable[..., Watch]]:
    """Starts the command; ends it with the tests of the file."""
    started: list[Watch] = []

    def start(*arguments: object) -> Watch:
        started.append(Watch(*arguments))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.communicate(timeout=30)
