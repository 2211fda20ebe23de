"""Commands around plans: compile, run."""

import time
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
    one_file,
    parse_size,
    say,
)

COMPILE_EXAMPLES = """
Compile a network to a plan: one file of plain data that `sparsetime run` runs.

**Examples**

    sparsetime compile runs/delta --out delta.plan

    sparsetime compile mobilenet_v2 --weights imagenet.npz --calibrate street.mp4 --out mobilenet.plan

    sparsetime compile mobilenet_v2 --weights imagenet.npz --calibrate street.mp4 --precision int8 --out int8.plan

    sparsetime compile mypackage.networks:detector --size 256x320 --calibrate street.mp4 --out detector.plan

MODEL is the run directory of `sparsetime train`, a built-in network with `--weights`, or `package.module:function`, a
function that returns a torch module in which `spec.mean` and `spec.std` (0..255 units, per channel) say how frames are
normalised; without them it is given RGB values of 0 to 255. A run of the method delta brings its steps. All others need
a short clip to find them (the training videos of a run will do), and get the codec `pixel` unless one is given.
"""

RUN_EXAMPLES = """
Run a plan over a video, a folder of pictures, a camera or an RTSP address.

**Examples**

    sparsetime run delta.plan street.mp4 --compare dense --json figures.json

    sparsetime run delta.plan frames/ --out-video recomputed.mp4

    sparsetime run delta.plan 0 --threads 2

    sparsetime run delta.plan dashcam.mp4 --fallback

    sparsetime run delta.plan rtsp://camera.local/stream --frames 1000

    sparsetime run delta.plan street.mp4 --resume-state street.state --save-state street.state

Frames are stretched to the size that the plan was compiled for. Times are of the network alone. With `--compare dense`
the same network runs densely on the same frames, and two controls are measured beside the stream: the first answer held
for ever, and the dense network on every k-th frame, with k such that it takes the stream's time. Ctrl-C ends with the
figures so far. Where some frames do not decode, the others are run, the damage is named, and the exit status is 1.
"""


def compile_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Run directory, network or package.module:function.")],
    out: Annotated[Path, typer.Option(metavar="FILE.plan", help="Plan to write.")],
    weights: Annotated[Path | None, typer.Option(metavar="FILE", help="Weights of a built-in network.")] = None,
    calibrate: Annotated[
        str | None, typer.Option(metavar="VIDEO", help="Short clip without labels to find the steps of a network on.")
    ] = None,
    codec: Annotated[
        Literal["exact", "hold", "pixel", "residual"] | None,
        typer.Option(help="How changes are sent.  [default: the run's; pixel for a plain network]"),
    ] = None,
    levels: Annotated[
        float | None,
        typer.Option(
            min=1, help="A step or threshold is this part of its layer's range.  [default: by codec, 64 or 100]"
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Size of the network's input, height first.  [default: its own]")
    ] = None,
    precision: Annotated[
        Literal["float32", "int8"],
        typer.Option(
            help="int8: weights and values of one byte, sums that never drift; a run too may need --calibrate."
        ),
    ] = "float32",
    json_file: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    from sparsetime.run.planning import compile_file

    run = model if Path(model).is_dir() else None  # else a network's name, which a plan may have too
    check_targets({"--out": out, "--json": json_file}, run, weights, calibrate)
    result = compile_file(
        model,
        out,
        weights=weights,
        calibrate=calibrate,
        codec=codec,
        levels=levels,
        size=parse_size(size),
        precision=precision,
    )
    finish(result, json_file)
    if not result["normalised"]:
        say("the network says no mean and std in its `spec`: it will be given RGB values of 0 to 255")
    for island in result["islands"]:
        say(f"dense island: {island['name']} ({island['operator']}, {island['at']}) will be computed by PyTorch")
    height, width = result["input_size"]
    print(
        f"{out}: {result['network']} at {height}x{width}, codec {result['codec']}, {result['precision']}, "
        f"{result['operations']} operations, {result['dense_macs'] / 1e6:.0f} million multiply-accumulates a frame, "
        f"{result['file_bytes'] / 1e6:.1f} MB"
    )


def run_command(
    plan: Annotated[Path, typer.Argument(metavar="FILE.plan", help="Plan written by `sparsetime compile`.")],
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="File, folder of pictures, camera number or rtsp://.")],
    threads: Annotated[int, typer.Option(min=1, metavar="N", help="Threads of the network.")] = 1,
    flush: FlushOption = None,
    compare: Annotated[Literal["dense"] | None, typer.Option(help="Run this network beside the stream.")] = None,
    fallback: Annotated[
        bool, typer.Option("--fallback", help="Leave the stream for the dense network while that is faster.")
    ] = False,
    frames: Annotated[int | None, typer.Option(min=1, metavar="N", help="Stop after N frames.")] = None,
    out_video: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Video to write: the frames, with what was recomputed drawn over them."),
    ] = None,
    save_state: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the state at the end, to go on from another time.")
    ] = None,
    resume_state: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Go on from a state, at the frame of the video behind it.")
    ] = None,
    json_file: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    from sparsetime.run import run_file

    goes_on = resume_state is not None and save_state is not None and one_file(resume_state, save_state)
    state = None if goes_on else resume_state
    check_targets({"--out-video": out_video, "--save-state": save_state, "--json": json_file}, plan, video, state)
    with CtrlC() as interrupt, Progress() as progress:
        result = run_file(
            plan,
            video,
            threads=threads,
            flush=flush,
            compare=compare == "dense",
            fallback=fallback,
            frames=frames,
            out_video=out_video,
            resume_state=resume_state,
            save_state=save_state,
            progress=progress.frame,
            stop=lambda: interrupt.asked,
        )
    for line in summary(result):  # first: a full disk takes no file
        print(line)
    if result["frames_not_finite"]:
        say(
            f"sparsetime: warning: the answers to {result['frames_not_finite']} of {result['frames']} frames hold NaN "
            "or infinity; does the network itself give them there?"
        )
    if (result["speedup"] or 1) < 1 and not fallback:
        say("slower than the dense runtime here: --fallback leaves the stream while that is so")
    if not result["frames"] and result["first_frame"] and not result["stopped"]:
        seen = result["first_frame"]
        say(f"{resume_state} has seen {seen} frames, and {result['video']} has no more: nothing was run")
    if result["damage"]:
        say(f"sparsetime: error: {result['video']}: {'; '.join(result['damage'])}. The other frames were run")
    if result["state_error"]:
        say(f"sparsetime: error: {result['state_error']}. The figures are whole; name another --save-state")
    finish(result, json_file)
    if result["damage"] or result["state_error"]:
        raise typer.Exit(1)


class Progress(StatusLine):
    """Frames per second and density since the last line."""

    def __init__(self) -> None:
        super().__init__()
        self._shown = time.monotonic()
        self._frames = self._unsaid = 0
        self._time_ns = self._dense_ns = 0
        self._density = 0.0

    def __exit__(self, *_: object) -> None:
        if self._unsaid:
            self._say()
        super().__exit__()

    def frame(self, time_ns: int, dense_ns: int, density: float) -> None:
        """One more frame.

        Args:
            time_ns: that it took.
            dense_ns: that the dense network took, 0 without one.
            density: share of the operations that were done.
        """
        self._frames += 1
        if self._frames == 1:  # dense by nature
            return
        self._unsaid += 1
        self._time_ns += time_ns
        self._dense_ns += dense_ns
        self._density += density
        if self.due:
            self._say()

    def _say(self) -> None:
        text = f"{self._frames} frames, {self._unsaid * 1e9 / max(self._time_ns, 1):.1f} frames/s"
        if self._dense_ns:
            text += f" (dense {self._unsaid * 1e9 / self._dense_ns:.1f})"
        self.show(f"{text}, operations {self._density / self._unsaid:.3f}")
        self._unsaid = self._time_ns = self._dense_ns = 0
        self._density = 0.0


def summary(result: dict[str, Any]) -> list[str]:
    """What `run` prints."""

    def number(x: float | None, form: str) -> str:
        return "none" if x is None else format(x, form)

    stopped = " (stopped)" if result["stopped"] else ""
    lines = [
        f"frames              {result['frames']}{stopped}",
        f"speed               {number(result['fps'], '.1f')} frames/s",
        f"operations          {number(result['op_density'], '.3f')}  of the dense ones, first frame out",
        f"  with first frame  {number(result['op_density_with_first_frame'], '.3f')}",
        f"state               {result['state_bytes'] / 1e6:.1f} MB, weights {result['weight_bytes'] / 1e6:.1f} MB",
    ]
    lines += [
        f"dense island        {island['name']} ({island['operator']}): "
        f"{number(island['time_share'], '.0%')} of the time"
        for island in result["islands"]
    ]
    if result["flushes"] is not None:
        lines.insert(4, f"flushes             {result['flushes']} of {result['frames']} frames")
    if result["dense_frames"]:
        lines.append(f"dense frames        {result['dense_frames']} of them by {result['dense_runtime']}")
    if result["quality"] is None:
        return lines
    lines[1] += (
        f", dense {number(result['fps_dense'], '.1f')} ({result['dense_runtime']}): {number(result['speedup'], '.2f')}x"
    )
    skipping = result["quality_frame_skipping"]
    every = "never again" if skipping["every"] is None else f"every {skipping['every']:.1f}"
    lines.append(f"{'distance to dense':19s} {'stream':>12s} {'frozen':>12s} {every:>12s}")
    for key in result["quality"]:
        figures = (result[q][key] for q in ("quality", "quality_frozen", "quality_frame_skipping"))
        form = "d" if isinstance(result["quality"][key], int) else ".4f"
        lines.append(f"  {key:17s} " + " ".join(f"{number(x, form):>12s}" for x in figures))
    return lines


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("compile", help=COMPILE_EXAMPLES)(guarded(compile_command))
    app.command("run", help=RUN_EXAMPLES)(guarded(run_command))
