"""Commands that train and measure: train, evaluate, report, demo."""

import os
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from sparsetime.cli.common import (
    AcceleratorOption,
    DebugOption,
    JsonOption,
    ThreadsOption,
    WorkersOption,
    check_targets,
    finish,
    guarded,
    say,
)

TRAIN_EXAMPLES = """
Train a network on a folder of labelled videos and write a run directory.

**Examples**

    sparsetime train --data clips --model mobilenet_v1_025 --weights imagenet.npz --method delta --out runs/delta

    sparsetime train --data clips --model mobilenet_v1_025 --weights runs/dense --method delta --out runs/refined

    torchrun --nproc_per_node 2 -m sparsetime train --data clips --model small_cnn --method dense --out runs/dense

DIR holds a `clips.csv` (file, label, group, split), or `train/CLASS/video` and `test/CLASS/video`; the word `generated`
stands for clips made by rule. A run that was stopped goes on from its last whole epoch when the command is given again.
"""

EVALUATE_EXAMPLES = """
Measure accuracy and operations of a run on one split; the result is also kept in the run directory.

**Example**

    sparsetime evaluate runs/delta --data clips --split test --json delta.json
"""

REPORT_EXAMPLES = """
Write one HTML page about one or several runs; it needs no network.

**Example**

    sparsetime report runs/dense runs/spatial_l1 runs/delta --out report.html

    sparsetime report runs/dense runs/delta --stream stream.json --out report.html
"""

DEMO_EXAMPLES = """
The whole way in under three minutes: make clips, train three networks, measure them, write the report.

**Example**

    sparsetime demo --out runs/demo
"""


@guarded
def train(
    data: Annotated[str | None, typer.Option(metavar="DIR", help="Folder of the data set.")] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Network, e.g. mobilenet_v1_025.")] = None,
    out: Annotated[Path, typer.Option(metavar="RUN_DIR", help="Run directory to write.")] = ...,  # type: ignore[assignment]
    method: Annotated[
        Literal["dense", "spatial_l1", "delta"] | None, typer.Option(help="What is penalised.  [default: delta]")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="Weight file, or the directory of an earlier run.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Recipe (.toml or .json); options given here win over it.")
    ] = None,
    start: Annotated[
        Literal["refinement", "vanilla"] | None, typer.Option(help="vanilla has no dense warm-up.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(metavar="N", help="Epochs of all phases together; 0 sets the steps alone.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="S", help="Seed of weights, clips and order.")] = None,
    penalty: Annotated[float | None, typer.Option(help="Weight of the penalty in the strong phase.")] = None,
    clip_length: Annotated[int | None, typer.Option(metavar="T", help="Frames in a training clip.")] = None,
    stride: Annotated[int | None, typer.Option(metavar="N", help="Take every N-th frame.")] = None,
    batch_size: Annotated[int | None, typer.Option(metavar="N", help="Clips in a batch, over all processes.")] = None,
    optimizer: Annotated[Literal["adam", "adamw", "sgd"] | None, typer.Option(help="The optimizer.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate of the weights.")] = None,
    head_lr: Annotated[float | None, typer.Option(help="Peak learning rate of the classifier.")] = None,
    step_lr: Annotated[
        float | None, typer.Option(help="Peak learning rate of the steps, as a share of their size.")
    ] = None,
    codec: Annotated[
        Literal["exact", "hold", "pixel", "residual"] | None,
        typer.Option(help="How layers decide what to send; pixel for networks that will run on a CPU."),
    ] = None,
    levels: Annotated[int | None, typer.Option(metavar="N", help="Steps in a layer's range at the start.")] = None,
    percentile: Annotated[float | None, typer.Option(help="Percentile of an activation that is its range.")] = None,
    validate: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Share of the training groups to hold out and watch.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(metavar="N", help="Stop after N epochs without a better held-out accuracy.")
    ] = None,
    missing: Annotated[
        Literal["error", "skip"] | None, typer.Option(help="What to do about listed videos that are not there.")
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="Accept a list with class_in_one_split or group_in_splits.")
    ] = None,
    accelerator: AcceleratorOption = "auto",
    threads: ThreadsOption = None,
    workers: WorkersOption = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run that is in RUN_DIR.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
    json_file: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    from sparsetime.train import Machine, from_dict, read_recipe
    from sparsetime.train import train as run_training
    from sparsetime.train.fit import leave_group

    given = {
        "data": data,
        "network": model,
        "method": method,
        "weights": weights,
        "start": start,
        "epochs": epochs,
        "seed": seed,
        "penalty": penalty,
        "clip_length": clip_length,
        "stride": stride,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "lr": lr,
        "head_lr": head_lr,
        "step_lr": step_lr,
        "codec": codec,
        "levels": levels,
        "percentile": percentile,
        "validate": validate,
        "patience": patience,
        "missing": missing,
        "allow": allow or None,
    }
    fields = {} if recipe is None else read_recipe(recipe)
    fields |= {name: value for name, value in given.items() if value is not None}
    for name, option in (("data", "--data"), ("network", "--model")):
        if name not in fields:
            raise typer.BadParameter(f"expected {option}, or {name!r} in the --recipe")
    chosen = from_dict(fields, str(recipe or "options"))
    check_targets({"--json": json_file}, out, recipe, chosen.data, chosen.weights)
    machine = Machine(accelerator=accelerator, threads=threads, workers=workers)
    result = run_training(chosen, out, machine=machine, overwrite=overwrite, quiet=quiet)
    if os.environ.get("RANK", "0") == "0":  # under torchrun every process comes here
        finish(result, json_file)
        accuracy = f", training accuracy {result['train_accuracy']:.3f}" if result["epochs"] else ""
        print(f"{result['run']}: {result['epochs']} epochs{accuracy}")
    leave_group()


@guarded
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Directory of a finished run.")],
    data: Annotated[str, typer.Option(metavar="DIR", help="Folder of the data set.")],
    split: Annotated[str, typer.Option(metavar="NAME", help="Split to measure, e.g. test.")],
    window: Annotated[int, typer.Option(min=2, metavar="T", help="Frames in a window.")] = 32,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Measure the first N videos only.")] = None,
    accelerator: AcceleratorOption = "auto",
    threads: ThreadsOption = None,
    workers: WorkersOption = 0,
    json_file: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    from sparsetime.train import evaluate as run_evaluation

    check_targets({"--json": json_file}, run, data)
    result = run_evaluation(
        run, data, split, device=accelerator, window=window, limit=limit, threads=threads, workers=workers
    )
    finish(result, json_file)
    low, high = result["accuracy_interval_95"]
    videos = f"95 % interval {low:.3f} to {high:.3f}, {result['clips']} videos"
    print(f"accuracy            {result['accuracy']:.3f}  ({videos})")
    print(f"operations          {result['op_density']:.3f}  of the dense ones, first frame out")
    print(f"  with first frame  {result['op_density_with_first_frame']:.3f}")
    print(f"activations         {result['activation_density']:.3f}  not zero")
    print(f"deltas              {result['delta_density']:.3f}  not zero")
    for broken in result["broken"]:
        say(f"left out {broken['file']}: {broken['reason']}")


@guarded
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Directories of runs.")],
    out: Annotated[Path, typer.Option(metavar="FILE.html", help="Page to write.")],
    stream: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Time per frame and layer to show: what `sparsetime run --json FILE` wrote."),
    ] = None,
    json_file: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    from sparsetime.report import write_report

    check_targets({"--out": out, "--json": json_file}, *runs, *(stream or ()))
    result = write_report(runs, out, streams=stream or ())
    finish(result, json_file)
    print(out)


@guarded
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for runs and report.")] = Path("runs/demo"),
    threads: ThreadsOption = 1,  # a second one gains little here, and on a busy machine they wait for each other
    workers: WorkersOption = 1,
    json_file: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    from rich.console import Console
    from rich.table import Table

    from sparsetime.report import write_report
    from sparsetime.train import Machine
    from sparsetime.train.demo import run_demo

    started = time.perf_counter()
    page = out / "report.html"
    check_targets({"the report": page, "--json": json_file}, out)
    results = run_demo(out, machine=Machine(threads=threads, workers=workers), tell=say)
    write_report([out / method for method in results], page)
    finish({"runs": results, "report": str(page), "time_s": time.perf_counter() - started}, json_file)
    table = Table("method", "accuracy", "operations left", "activations not zero", "deltas not zero")
    for method, result in results.items():
        keys = ("accuracy", "op_density", "activation_density", "delta_density")
        table.add_row(method, *(f"{result[key]:.3f}" for key in keys))
    Console().print(table)
    print(f"report: {page}  ({time.perf_counter() - started:.0f} s in all)")


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command(help=TRAIN_EXAMPLES)(train)
    app.command(help=EVALUATE_EXAMPLES)(evaluate)
    app.command(help=REPORT_EXAMPLES)(report)
    app.command(help=DEMO_EXAMPLES)(demo)
