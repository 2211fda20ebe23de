"""Command tune."""

import math
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsetime.cli.common import (
    DebugOption,
    FlushOption,
    JsonOption,
    StatusLine,
    check_targets,
    finish,
    guarded,
    say,
)

TUNE_EXAMPLES = """
Find a step or threshold for each layer: the least time within a budget of accuracy.

**Examples**

    sparsetime tune detector.plan --video street.mp4 --max-drop 10% --out tuned.plan

    sparsetime tune runs/delta --video clips/ --labels labels.csv --max-drop 0.5% --out tuned.plan --json figures.json

    sparsetime tune detector.plan --video monday.mp4 --video tuesday.mp4 --video friday.mp4 --max-drop 5%
    --max-state 32MiB --out tuned.plan

With `--labels` (a CSV file with the columns file and label) the budget is what accuracy may fall by. Without, the plan
is compared with the dense network on the same frames, and all that differs counts against it: the total variation of
the probabilities, 1 - IoU of the foreground, 1 - F1 of the boxes, or the relative error, of the worst clip.

Every third video is held back, of a single one the last third, and the result is checked there. Clips on which the
first answer, frozen, is within the budget too are left out; a video with no others is refused. What was measured is
kept in `FILE.plan.tune.json`: the same command goes on from there after Ctrl-C, and so does one with another budget.
Both begin with the plan that was given, so it is never replaced.
"""


def tune_command(
    plan: Annotated[
        Path, typer.Argument(metavar="PLAN_OR_RUN", help="Plan, or directory of `sparsetime train`, compiled first.")
    ],
    video: Annotated[
        list[str],
        typer.Option("--video", "--videos", metavar="VIDEO", help="File or folder; again for each further one."),
    ],
    max_drop: Annotated[str, typer.Option(metavar="SHARE", help="Budget: 0.5%, or 0.005.")],
    out: Annotated[Path, typer.Option(metavar="FILE.plan", help="Plan to write, another than PLAN.")],
    labels: Annotated[Path | None, typer.Option(metavar="FILE.csv", help="Classes of the videos.")] = None,
    max_state: Annotated[
        str | None, typer.Option(metavar="BYTES", help="State of a stream at most, such as 32MiB.  [default: no limit]")
    ] = None,
    clip_frames: Annotated[int, typer.Option(min=4, metavar="N", help="Length of a clip without labels.")] = 48,
    tune_clips: Annotated[int, typer.Option(min=1, metavar="N", help="Clips to tune on, at most.")] = 8,
    check_clips: Annotated[int, typer.Option(min=1, metavar="N", help="Held-back clips to check on, at most.")] = 16,
    threads: Annotated[int, typer.Option(min=1, metavar="N", help="Threads of the network.")] = 1,
    flush: FlushOption = None,
    json_file: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    from sparsetime.budget import tune

    memo = Path(f"{out}.tune.json")
    check_targets({"--out": out, "the state of the search": memo, "--json": json_file}, plan, *video, labels)
    budget, limit = parse_share(max_drop), None if max_state is None else parse_bytes(max_state)

    def progress(stage: str, measured: int) -> None:
        if line.due:
            line.show(f"{stage}, {measured} settings measured")

    try:
        with StatusLine() as line:
            found = tune(
                plan,
                video,
                max_drop=budget,
                labels=labels,
                max_state=limit,
                out=out,
                clip_frames=clip_frames,
                tune_clips=tune_clips,
                check_clips=check_clips,
                threads=threads,
                flush=flush,
                progress=progress,
            )
    except KeyboardInterrupt:
        say(f"sparsetime: stopped. Give the same command again to go on from {memo}")
        raise typer.Exit(130) from None
    finish(found.figures, json_file)
    for text in summary(found.figures):
        print(text)
    check = found.figures["check"]
    if check["time_ms"] > check["time_dense_ms"]:
        say(
            f"slower than dense: {check['time_ms']:.2f} ms a frame, the dense network "
            f"({found.figures['dense_runtime']}) {check['time_dense_ms']:.2f} ms. Allow a larger --max-drop, or run "
            "the plan with --fallback"
        )


def parse_share(text: str) -> float:
    """A share of `0.5%` or `0.005`.

    >>> parse_share("0.5%"), parse_share("0.005")
    (0.005, 0.005)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*(%?)", text.strip())
    share = math.nan if found is None else float(found[1]) / (100 if found[2] else 1)
    if not 0 < share <= 1:
        raise typer.BadParameter(f"expected --max-drop as a share above 0, such as 0.5% or 0.005, got {text!r}")
    return share


def parse_bytes(text: str) -> int:
    """Bytes of `32MiB`, `500kB` or a number.

    >>> parse_bytes("32MiB"), parse_bytes(".5kB"), parse_bytes("1e10")
    (33554432, 500, 10000000000)
    """
    units = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    found = re.fullmatch(r"((?:\d+(?:\.\d+)?|\.\d+)(?:e\d+)?)\s*([A-Za-z]*)", text.strip())
    size = math.nan if found is None else float(found[1]) * units.get(found[2], math.nan)
    if not math.isfinite(size):
        raise typer.BadParameter(f"expected --max-state as bytes, such as 32MiB or 500kB, got {text!r}")
    return round(size)


def summary(figures: dict[str, Any]) -> list[str]:
    """What `tune` prints."""

    def share(x: float | None) -> str:
        return "none" if x is None else f"{x:.2%}"

    lines = [
        f"{figures['network']}: drop of {figures['measure']}, at most {share(figures['max_drop'])} "
        f"({share(figures['limit_in_search'])} while searching), {figures['settings_measured']} settings measured",
        f"{'':22s} {'drop':>9s} {'frozen':>9s} {'skipping':>9s} {'operations':>11s} {'time':>9s} {'dense':>9s}",
    ]
    for name, key in (("clips tuned on", "tuning"), ("clips held back", "check")):
        own, before = figures[key], figures[key]["as_compiled"]
        lines += [
            f"{name:22s} {share(own['drop']):>9s} {share(own['drop_frozen']):>9s} "
            f"{share(own['drop_frame_skipping']):>9s} {own['op_density']:>11.3f} {own['time_ms']:>6.2f} ms "
            f"{own['time_dense_ms']:>6.2f} ms",
            f"{'  as compiled':22s} {share(before['drop']):>9s} {'':9s} {'':9s} {before['op_density']:>11.3f} "
            f"{before['time_ms']:>6.2f} ms",
        ]
    check = figures["check"]
    lines.append(
        f"over the budget        {len(check['missed'])} of {check['clips_counted']} held-back clips"
        + (f": {', '.join(check['missed'])}" if check["missed"] else "")
    )
    if figures["kept"]:
        lines.append("kept as compiled       it is within the budget, and nothing quicker was found")
    if figures["tuning"]["too_still"]:
        lines.append(f"too still to tune on   {', '.join(figures['tuning']['too_still'])}")
    lines.append(f"state                  {figures['state_bytes'] / 2**20:.1f} MiB a stream")
    return lines


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command("tune", help=TUNE_EXAMPLES)(guarded(tune_command))
