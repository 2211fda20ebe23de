"""Commands that show a plan at work, and run it over many videos: watch, many."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sparsetime.cli.common import (
    CtrlC,
    DebugOption,
    FlushOption,
    JsonOption,
    StatusLine,
    check_targets,
    finish,
    guarded,
    say,
)

WATCH_EXAMPLES = """
Show a plan at work on a video, in a page that this machine serves.

**Examples**

    sparsetime watch delta.plan street.mp4

    sparsetime watch delta.plan 0 --host 0.0.0.0

The page shows the video with what was recomputed at a layer of your choice, the frames per second of the stream and of
the dense network, the density of every layer, and the operations saved so far; it pauses, steps and starts again. VIDEO
is what `sparsetime run` takes. Only this machine can open the page, unless --host says another address of it: then the
printed address has a token in it, and only who has the token can open it. Ctrl-C ends.
"""

MANY_EXAMPLES = """
Run a plan over many videos at the same time, on a pool of threads.

**Examples**

    sparsetime many delta.plan a.mp4 b.mp4 c.mp4 --threads 2 --json figures.json

    sparsetime many delta.plan 0 rtsp://door.local/stream rtsp://yard.local/stream --policy drop-oldest

Each video has its own state and its own queue; all share the plan. A camera that goes away is looked for again, after 1
s, 2 s, 4 s and so on up to a minute, and holds nobody up. Where frames may be dropped, files come at their own rate, as
cameras do; otherwise as fast as they are computed. Ctrl-C ends with the figures so far.
"""

HostOption = Annotated[
    str, typer.Option(metavar="ADDRESS", help="Address of this machine to listen on; another asks for a token.")
]


def watch_command(
    plan: Annotated[Path, typer.Argument(metavar="FILE.plan", help="Plan written by `sparsetime compile`.")],
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="File, folder of pictures, camera number or rtsp://.")],
    host: HostOption = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="0 takes any that is free.")] = 8765,
    threads: Annotated[int, typer.Option(min=1, metavar="N", help="Threads of the network.")] = 1,
    flush: FlushOption = None,
    json_file: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    from sparsetime.live.player import Player
    from sparsetime.live.server import serve

    check_targets({"--json": json_file}, plan, video)
    player = Player(plan, video, threads=threads, flush=flush)
    result = serve(player, host=host, port=port, ready=lambda address: print(address, flush=True))
    finish(result, json_file)
    if result["frames"]:
        print(f"{result['frames']} frames, {result['saved']:.0%} of the operations saved", flush=True)
    if player.busy:  # trying runtimes in native code, which must not see the interpreter go
        os._exit(0)


def many_command(
    plan: Annotated[Path, typer.Argument(metavar="FILE.plan", help="Plan written by `sparsetime compile`.")],
    videos: Annotated[list[str], typer.Argument(metavar="VIDEO...", help="As `sparsetime run` takes them.")],
    threads: Annotated[int, typer.Option(min=1, metavar="N", help="Threads that compute.")] = 1,
    flush: FlushOption = None,
    policy: Annotated[
        Literal["drop-oldest", "drop-newest", "block"] | None,
        typer.Option(help="When a queue is full.  [default: drop-oldest for cameras, block for files]"),
    ] = None,
    queue: Annotated[int, typer.Option(min=1, metavar="N", help="Frames of each video that wait at most.")] = 4,
    retries: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Attempts to find a camera again.  [default: for ever]"),
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, metavar="N", help="Of each video at most.")] = None,
    json_file: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    from sparsetime.many import run_many

    check_targets({"--json": json_file}, plan, *videos)
    with CtrlC() as interrupt, StatusLine(1.0, 10.0) as status:
        result = run_many(
            plan,
            videos,
            threads=threads,
            flush=flush,
            policy=policy,
            queue=queue,
            retries=retries,
            frames=frames,
            progress=lambda streams: status.show(standing(streams)),
            every_s=status.every_s,
            stop=lambda: interrupt.asked,
        )
    finish(result, json_file)
    for line in table(result):
        print(line)
    bad = [s for s in result["streams"] if s["error"] or s["damage"]]
    for stream in bad:
        found = filter(None, (stream["error"], *stream["damage"]))
        reasons = dict.fromkeys(reason.removeprefix(f"{stream['video']}: ") for reason in found)
        say(f"sparsetime: error: {stream['video']}: {'; '.join(reasons)}")
    if bad:
        raise typer.Exit(1)


def standing(streams: list[dict[str, Any]]) -> str:
    """How it goes, in one line."""
    running = sum(s["state"] == "running" for s in streams)
    away = [s["video"] for s in streams if s["state"] == "waiting"]
    text = (
        f"{sum(s['frames'] for s in streams)} frames, {sum(s['dropped'] for s in streams)} dropped, {running} running"
    )
    return text + (f", looking for {', '.join(away)}" if away else "")


def table(result: dict[str, Any]) -> list[str]:
    """What `many` prints."""

    def number(x: float | None, form: str) -> str:
        return "-" if x is None else format(x, form)

    width = max(5, *(len(s["video"]) for s in result["streams"]))
    lines = [f"{'video':{width}s}  state    frames dropped  frames/s  operations  time ms  waited ms"]
    for s in result["streams"]:
        lines.append(
            f"{s['video']:{width}s}  {s['state']:8s} {s['frames']:5d} {s['dropped']:7d} {number(s['fps'], '9.1f'):>9s} "
            f"{number(s['op_density'], '.3f'):>11s} {number(s['time_ms']['median'], '.1f'):>8s} "
            f"{number(s['wait_ms']['median'], '.1f'):>10s}"
        )
    stopped = " (stopped)" if result["stopped"] else ""
    lines.append(f"{result['frames']} frames in {result['time_s']:.1f} s, {result['fps']:.1f} frames/s{stopped}")
    return lines


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("watch", help=WATCH_EXAMPLES)(guarded(watch_command))
    app.command("many", help=MANY_EXAMPLES)(guarded(many_command))
