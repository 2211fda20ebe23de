"""What a run shows while it goes on: a bar on a terminal, a line an epoch everywhere."""

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from sparsetime.train.data import TrainingData
from sparsetime.train.recipe import Recipe, schedule


class Progress:
    """Lines and, on a terminal, a bar, on stderr; standard output stays free for results."""

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not (enabled and self.console.is_terminal),
        )
        self.task = self.bar.add_task("", total=None)
        self.epochs = 0

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.stop()

    def line(self, text: str) -> None:
        """Print one line."""
        if self.enabled:
            self.console.print(text, markup=False)

    def decoded(self, done: int, total: int) -> None:
        """Videos decoded so far; a line at the end."""
        if done == total:
            self.line(f"{total} videos decoded")

    def start(self, recipe: Recipe, data: TrainingData, resumed: int) -> None:
        """Say what begins."""
        self.epochs = recipe.epochs or 0
        broken = f", {len(data.broken)} broken left out" if data.broken else ""
        held_out = f", {len(data.held_out)} held out" if data.held_out else ""
        self.line(
            f"{recipe.network} {recipe.method}: {len(data.clips)} videos, {len(data.classes)} classes{held_out}{broken}"
            + "; "
            + (", ".join(f"{span.name} {span.end - span.first}" for span in schedule(recipe)) or "steps alone, 0")
            + f" epochs; seed {recipe.seed}"
        )
        if resumed:
            self.line(f"going on after epoch {resumed - 1}")

    def batch(self, epoch: int, done: int, total: int, loss: float) -> None:
        """Move the bar."""
        text = f"epoch {epoch + 1}/{self.epochs} loss {loss:.3f}"
        self.bar.update(self.task, description=text, completed=done, total=total)

    def epoch(self, row: dict[str, Any]) -> None:
        """One line for a finished epoch."""
        shown = [
            f"epoch {row['epoch'] + 1}/{self.epochs} {row['phase']}",
            f"loss {row['train_loss']:.4f} (task {row['task_loss']:.4f}, penalty {row['penalty']:.4f})",
            f"accuracy {row['train_accuracy']:.3f}",
        ]
        if row["val_accuracy"] is not None:
            shown.append(f"held out {row['val_accuracy']:.3f}")
        if row["op_density"] is not None:
            shown.append(f"operations {row['op_density']:.3f}")
        self.line(", ".join([*shown, f"{row['time_s']:.1f} s"]))
