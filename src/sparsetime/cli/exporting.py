"""Command that writes plans for other runtimes: export."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sparsetime.cli.common import DebugOption, JsonOption, check_targets, finish, guarded

EXPORT_EXAMPLES = """
Write a plan for another runtime. Its state becomes explicit: one graph is one frame.

**Examples**

    sparsetime export delta.plan --to onnx --out delta.onnx

    sparsetime export delta.plan --to nir --max-code 255 --out delta.nir

The ONNX graph takes a frame and a state and gives outputs and the next state; ONNX Runtime computes it densely. NIR can
say networks with the codec `exact` and bounded activations; what it cannot say is an error with the operation's name.
"""


def export_command(
    plan: Annotated[Path, typer.Argument(metavar="FILE.plan", help="Plan written by `sparsetime compile`.")],
    to: Annotated[Literal["onnx", "nir"], typer.Option(help="Format.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="File to write.")],
    max_code: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="NIR: bound of codes that the network does not bound.")
    ] = None,
    json_file: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    from sparsetime.engine import Plan

    check_targets({"--out": out, "--json": json_file}, plan)
    if max_code is not None and to != "nir":
        raise typer.BadParameter("--max-code belongs to --to nir: ONNX needs no bound")
    loaded = Plan.load(plan)
    if to == "onnx":
        from sparsetime.neighbours import onnx

        onnx.export(loaded, out)
    else:
        from sparsetime.neighbours import nir

        nir.export(loaded, out, max_code=max_code)
    size = out.stat().st_size
    finish({"plan": str(plan), "to": to, "out": str(out), "file_bytes": size}, json_file)
    print(f"{out}: {loaded.name} as {to}, {size / 1e6:.1f} MB")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export", help=EXPORT_EXAMPLES)(guarded(export_command))
