"""The command line, `sparsetime COMMAND`; one file a group of commands.

Nothing heavy is imported before a command runs, so that `--help` is quick.
"""

import typer

from sparsetime.cli import benching, exporting, running, training, tuning, watching

app = typer.Typer(
    name="sparsetime",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

HELP = """
Train video networks so that little changes from frame to frame, measure it, show it, and run them at the cost of what
changed.

**Examples**

    sparsetime demo

    sparsetime train --data clips --model mobilenet_v1_025 --weights imagenet.npz --method delta --out runs/delta

    sparsetime evaluate runs/delta --data clips --split test

    sparsetime report runs/delta --out report.html

    sparsetime compile runs/delta --out delta.plan

    sparsetime run delta.plan street.mp4 --compare dense

    sparsetime watch delta.plan street.mp4

    sparsetime many delta.plan north.mp4 south.mp4 rtsp://camera.local/stream
"""


@app.callback(help=HELP)
def options() -> None:
    """What all commands share: nothing."""


training.register(app)
running.register(app)
watching.register(app)
tuning.register(app)
exporting.register(app)
benching.register(app)


def main() -> None:
    """Entry point of the command line."""
    app()
