"""The training loop, on Lightning Fabric: devices, processes and precision are Fabric's, the order of things is here.

An epoch is a function of (weights, optimizer, seed, epoch): random generators are seeded anew at its start; clips,
order and learning rate follow from the epoch's number. So a run that goes on from the checkpoint of the last whole
epoch gives the same figures as one that was never stopped.
"""

import io
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

import sparsetime
from sparsetime.files import check_archive, write_whole
from sparsetime.meter import Meter
from sparsetime.objective import step_rate
from sparsetime.train.data import PhaseLoader, TrainingData
from sparsetime.train.errors import CheckpointError, TrainingError
from sparsetime.train.model import ClipClassifier, log_mean_softmax
from sparsetime.train.recipe import Recipe, Span, schedule
from sparsetime.train.teacher import Teacher

COLUMNS = (
    "epoch",
    "phase",
    "lr",
    "penalty_weight",
    "train_loss",
    "task_loss",
    "penalty",
    "distance",
    "train_accuracy",
    "val_accuracy",
    "op_density",
    "time_s",
)

Row = dict[str, Any]


@dataclass
class Watch:
    """What the loop tells while it runs; each may be replaced.

    Attributes:
        batch: (epoch, batches done, batches, loss of the last).
        epoch: the row of metrics.csv that was just finished.
    """

    batch: Callable[[int, int, int, float], None] = field(default=lambda *_: None)
    epoch: Callable[[Row], None] = field(default=lambda _: None)


def lr_factor(recipe: Recipe, spans: tuple[Span, ...], progress: float) -> float:
    """Share of the peak learning rate at a place in the run.

    Rises linearly, then falls as (1 + cos) / 2. The dense warm-up and what follows it have a cycle each, since the
    quantizer starts another problem.

    Args:
        recipe: gives the rise, ``warmup``, as a share of the cycle.
        spans: the phases.
        progress: epochs done, with the fraction of the current one.
    """
    epoch = min(int(progress), spans[-1].end - 1)
    quantize = next(span.quantize for span in spans if span.first <= epoch < span.end)
    cycle = [span for span in spans if span.quantize == quantize]
    done = (progress - cycle[0].first) / (cycle[-1].end - cycle[0].first)
    if done < recipe.warmup:
        return 0.1 + 0.9 * done / recipe.warmup
    return 0.5 * (1 + math.cos(math.pi * (done - recipe.warmup) / (1 - recipe.warmup)))


def resolved_rates(recipe: Recipe) -> tuple[float, float]:
    """Peak learning rates of the weights and of the classifier."""
    if recipe.lr is None or recipe.head_lr is None:
        raise TrainingError("the recipe leaves its learning rates to the method; call resolve(recipe) first")
    return recipe.lr, recipe.head_lr


def make_optimizer(model: nn.Module, recipe: Recipe, classifier: str) -> torch.optim.Optimizer:
    """The optimizer of the recipe, with the steps and the classifier in groups of their own."""
    lr, head_lr = resolved_rates(recipe)
    groups = sparsetime.parameter_groups(model, lr, recipe.step_lr, recipe.weight_decay)
    head = {id(p) for name, p in model.named_parameters() if name.startswith(f"{classifier}.")}
    weights = groups[0]
    groups.append(weights | {"params": [p for p in weights["params"] if id(p) in head], "name": "classifier"})
    groups[-1]["lr"] = head_lr
    weights["params"] = [p for p in weights["params"] if id(p) not in head]
    for group in groups:
        group["peak_lr"] = group["lr"]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9)
    return (torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam)(groups)


def seed_epoch(seed: int, epoch: int, rank: int) -> None:
    """Seed every global random generator from the place in the run."""
    state = int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)  # noqa: NPY002  a user's layer may draw from it
    torch.manual_seed(state)


class Loop:
    """Trains one model; see the module for what makes it resumable.

    Args:
        model: on its way to the device.
        recipe: a resolved one.
        data: decoded videos.
        fabric: launched.
        workers: processes that load clips.
    """

    def __init__(
        self, model: ClipClassifier, recipe: Recipe, data: TrainingData, fabric: Fabric, *, workers: int
    ) -> None:
        self.recipe, self.data, self.fabric, self.workers = recipe, data, fabric, workers
        self.spans = schedule(recipe)
        self.rows: list[Row] = []
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = make_optimizer(model.model, recipe, str(model.model.classifier_name))
        self.wrapped, self.optimizer = fabric.setup(self.model, optimizer)
        self.sparse = recipe.method != "dense"
        self.teacher: Teacher | None = None

    @property
    def epochs_done(self) -> int:
        return len(self.rows)

    def run(self, checkpoint: Path, watch: Watch) -> list[Row]:
        """Train to the end, from where the checkpoint left off if there is one.

        Returns:
            One row an epoch, see ``COLUMNS``; none where the recipe has no epochs and only steps are set.

        Raises:
            TrainingError: the loss is not finite; names the epoch and the step.
            CheckpointError: a checkpoint cannot be written; the one before is whole.
        """
        sample = self._sample()
        if not self.spans:
            self._calibrate(sample)
        for span in self.spans:
            loader: PhaseLoader | None = None
            for epoch in range(max(span.first, self.epochs_done), span.end):
                if self._stop(span):
                    break
                if loader is None:
                    loader = self.data.loader(
                        span, workers=self.workers, rank=self.fabric.global_rank, world_size=self.fabric.world_size
                    )
                    self._enter(span, epoch, sample)
                row = self._epoch(span, epoch, loader, watch)
                row["op_density"] = self._op_density(sample)
                self.rows.append(row)
                self.save(checkpoint)
                watch.epoch(row)
        return self.rows

    def _enter(self, span: Span, epoch: int, sample: Tensor) -> None:
        if not self.sparse:
            return
        if span.quantize and self.recipe.distill and self.teacher is None:
            self.teacher = self._make_teacher()
        if span.quantize and epoch == next(s.first for s in self.spans if s.quantize):
            self._calibrate(sample)
            for group in self.optimizer.param_groups:
                if group["name"] == "step":
                    group["peak_lr"] = step_rate(group["params"][0], self.recipe.step_lr)
        sparsetime.enable(self.model.model, span.quantize)

    def _calibrate(self, sample: Tensor) -> None:
        x = self.model.spec.normalise(sample.flatten(0, 1)).contiguous(memory_format=torch.channels_last)
        clips = x.unflatten(0, sample.shape[:2])
        assert self.recipe.levels is not None, "resolve(recipe) puts it in"
        sparsetime.calibrate(
            self.model.model, clips.split(1), percentile=self.recipe.percentile, levels=self.recipe.levels
        )

    def _make_teacher(self) -> Teacher:
        return Teacher(self.model, f"model.{self.model.model.classifier_name}")

    def _epoch(self, span: Span, epoch: int, loader: PhaseLoader, watch: Watch) -> Row:
        started = time.perf_counter()
        seed_epoch(self.recipe.seed, epoch, self.fabric.global_rank)
        self.wrapped.train()
        sums = torch.zeros(5, dtype=torch.float64)  # clips, task loss, penalty, distance, right
        labels = self.recipe.labels if self.sparse and span.quantize else 1.0
        for step, batch in enumerate(loader.epoch(epoch)):
            progress = epoch + step / len(loader)
            for group in self.optimizer.param_groups:
                phase = span.lr if group["name"] == "weights" else 1.0
                group["lr"] = group["peak_lr"] * phase * lr_factor(self.recipe, self.spans, progress)
            clip = batch["clip"].to(self.fabric.device, non_blocking=True)
            label = batch["label"].to(self.fabric.device, non_blocking=True)
            log_p = log_mean_softmax(self.wrapped(clip))
            task = F.nll_loss(log_p, label)
            penalty = sparsetime.penalty(self.model.model) if span.penalty else task.new_zeros(())
            distance = self.teacher.distance(clip) if self.teacher and span.quantize else task.new_zeros(())
            loss = labels * task + span.penalty * penalty + (self.recipe.distill or 0.0) * distance
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss.item()} (task {task.item()}, penalty {penalty.item()}) in epoch {epoch}, step "
                    f"{step}; the checkpoint of the epoch before is kept. A lower --lr may help"
                )
            self.optimizer.zero_grad()
            self.fabric.backward(loss)
            if self.recipe.clip_gradient:
                self.fabric.clip_gradients(self.wrapped, self.optimizer, max_norm=self.recipe.clip_gradient)
            self.optimizer.step()
            right = (log_p.argmax(1) == label).sum()
            n = len(label)
            parts = [right.new_tensor(n), task * n, penalty * n, distance * n, right]
            sums += torch.stack(parts).detach().cpu().double()  # in this order: MPS has no float64
            watch.batch(epoch, step + 1, len(loader), loss.item())
        clips, task_sum, penalty_sum, distance_sum, right_sum = self._total(sums).tolist()
        return {
            "epoch": epoch,
            "phase": span.name,
            "lr": resolved_rates(self.recipe)[0] * span.lr * lr_factor(self.recipe, self.spans, epoch),
            "penalty_weight": span.penalty,
            "train_loss": (labels * task_sum + span.penalty * penalty_sum + (self.recipe.distill or 0.0) * distance_sum)
            / clips,
            "task_loss": task_sum / clips,
            "penalty": penalty_sum / clips,
            "distance": distance_sum / clips,
            "train_accuracy": right_sum / clips,
            "val_accuracy": self._validate(),
            "op_density": None,
            "time_s": time.perf_counter() - started,
        }

    def _total(self, sums: Tensor) -> Tensor:
        """Sums, float64, over all processes."""
        if self.fabric.world_size == 1:
            return sums
        total = self.fabric.all_reduce(sums.to(self.fabric.device), reduce_op="sum")
        assert isinstance(total, Tensor)
        return total.cpu()

    def _validate(self) -> float | None:
        """Accuracy on the held-out videos, from the mean of the probabilities over all their frames."""
        if not self.data.held_out:
            return None
        self.wrapped.eval()
        sums = torch.zeros(len(self.data.held_out), len(self.data.classes), dtype=torch.float64)
        with torch.inference_mode():
            for batch in self.data.windows(self.fabric.global_rank, self.fabric.world_size):
                p = self.model(batch["clip"].to(self.fabric.device)).cpu().double().softmax(-1).sum(1)
                sums.index_add_(0, batch["video"], p)
        index = {name: i for i, name in enumerate(self.data.classes)}
        labels = torch.tensor([index[clip.label] for clip in self.data.held_out])
        return (self._total(sums).argmax(1) == labels).double().mean().item()

    def _sample(self) -> Tensor:
        """A few training clips, always the same: for the steps and for the density in metrics.csv; (M, T, 3, H, W)."""
        dataset = self.data.sample(self.recipe.calibration_clips, self.recipe.clip_length)
        return torch.stack([dataset[i]["clip"] for i in range(len(dataset))]).to(self.fabric.device)

    def _op_density(self, sample: Tensor) -> float | None:
        """Operations that remain on the sample, first frames out: by deltas where layers quantize, else by zeros."""
        if not self.fabric.is_global_zero:
            return None
        self.model.eval()
        with torch.inference_mode(), Meter(self.model.model, frames=sample.shape[1]) as meter:
            for clip in sample.split(1):
                self.model(clip)
        density: float = meter.summary()["op_density"]
        return density

    def _stop(self, span: Span) -> bool:
        """Whether the last phase has gone on for `patience` epochs without a better accuracy on the held-out part."""
        if not self.recipe.patience or span is not self.spans[-1]:
            return False
        seen = [row["val_accuracy"] for row in self.rows[span.first :]]
        return len(seen) > self.recipe.patience and max(seen[-self.recipe.patience :]) <= max(
            seen[: -self.recipe.patience]
        )

    def save(self, path: Path) -> None:
        """Write the checkpoint of the epoch that just ended, in one step.

        Raises:
            CheckpointError: it cannot be written; the one before is untouched.
        """
        if not self.fabric.is_global_zero:
            return
        buffer = io.BytesIO()
        content = {
            "model": self.model.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rows": self.rows,
            "teacher": self.teacher.model.state_dict() if self.teacher else None,
        }
        torch.save(content, buffer)
        try:
            write_whole(path, buffer.getvalue())
        except OSError as error:
            before = f"that of epoch {self.epochs_done - 2} is whole" if path.is_file() else "there was none before"
            raise CheckpointError(
                f"checkpoint {path} of epoch {self.epochs_done - 1} could not be written: {error.strerror or error}; "
                f"{before}. Make room and give the same command again: the run goes on from there"
            ) from error

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointError: it is damaged or another model's.
        """
        try:
            check_archive(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # of which kind depends on where in the file the damage is
            raise CheckpointError(
                f"checkpoint {path} cannot be used: it is damaged ({type(error).__name__}). Start anew with --overwrite"
            ) from error
        try:
            self.model.model.load_state_dict(content["model"])
            self.optimizer.load_state_dict(content["optimizer"])
            if content["teacher"] is not None:
                self.teacher = self._make_teacher()
                self.teacher.model.load_state_dict(content["teacher"])
            self.rows = list(content["rows"])
        except (RuntimeError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"checkpoint {path} cannot be used: {error}. Start anew with --overwrite") from error
