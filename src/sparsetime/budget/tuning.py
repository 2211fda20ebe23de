"""From a plan, videos and a budget to a plan that keeps within the budget in less time."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sparsetime.budget.clips import (
    SHORTEST,
    Clip,
    answered,
    clip_places,
    digest,
    divided,
    read_clips,
    read_labels,
    video_files,
)
from sparsetime.budget.errors import BudgetError
from sparsetime.budget.gains import balanced, gains, shaped
from sparsetime.budget.judge import MEASURES, Judge
from sparsetime.budget.measure import Control, Measured, frozen, guess, skipping
from sparsetime.budget.memo import Memo
from sparsetime.budget.search import FINEST, passes, search, shifted
from sparsetime.budget.setting import OCTAVE, Setting, apply, codecs
from sparsetime.budget.workbench import Say, Workbench, one, or_none
from sparsetime.engine import Plan
from sparsetime.files import ready
from sparsetime.run.dense import Dense, dense_network
from sparsetime.run.flush import flush_of

__all__ = ["MARGIN", "Sources", "Tuned", "apart", "keeps", "lively", "proven", "tune"]

MARGIN = 0.25
"""Share of the budget that is left unused on the tuning clips, for what other clips will need."""

_GAIN_FRAMES = 8


class Tuned(NamedTuple):
    """plan: with its codecs tuned. figures: JSON-able, see `docs/tune.md`."""

    plan: Plan
    figures: dict[str, Any]


def tune(
    plan: Plan | Path | str,
    videos: Iterable[str],
    *,
    max_drop: float,
    labels: Path | str | None = None,
    max_state: int | None = None,
    out: Path | str | None = None,
    clip_frames: int = 48,
    tune_clips: int = 8,
    check_clips: int = 16,
    threads: int = 1,
    flush: float | None = None,
    progress: Say | None = None,
) -> Tuned:
    """Find a step or threshold for each codec of a plan such that it takes the least time within a budget of quality.

    Every third of the videos is held back, of a single one the last third. Of the clips of the others the search sees
    two thirds (with labels all), and leaves `MARGIN` of the budget unused there; what it finds is made finer until it
    does so on the last third, too, the proof, and is then checked on what was held back. A plan that keeps within as
    much as it came, and takes no more time than what was found, is kept. A clip on which the answer to
    its first frame is good enough for all of it is neither tuned on nor counted.

    Args:
        plan: to tune, or a file with one, or the directory of a training run, which is compiled first.
        videos: files, folders of pictures, or folders of video files.
        max_drop: the budget, in (0, 1]. With labels the loss of accuracy; without, see `sparsetime.budget.judge`.
        labels: CSV file with the columns `file` and `label`, for a classifier. A clip is then a whole video.
        max_state: bytes of state of a stream at most; None for no limit.
        out: file for the plan. Its state is kept beside it, in `OUT.tune.json`, and the search goes on from there.
        clip_frames: length of a clip.
        tune_clips: to tune on at most, spread over the videos.
        check_clips: to check on at most, likewise.
        threads: of the stream and of the dense network.
        flush: of the stream, see `Stream`: that with which the plan will be run. None: as `sparsetime.run.flush` says.
        progress: told what is being done, and how many settings have been measured.

    Raises:
        BudgetError: the budget cannot be met, or the clips cannot say so: too still, too short, one video twice.
        PlanError, RunError, SourceError: plan, run or videos cannot be read.
        TargetError: `out` cannot be written.
    """
    _check_numbers(max_drop, tune_clips=tune_clips, check_clips=check_clips, threads=threads, clip_frames=clip_frames)
    if out is not None:
        ready(out)
    say = progress or (lambda stage, measured: None)
    say("reading", 0)
    plan, classes = _loaded(plan)
    flush = flush_of(plan, flush)
    judge = Judge(plan)
    names = video_files(videos)
    known = None
    if labels is not None:
        known = read_labels(Path(labels), names, classes, _class_count(plan, judge))
    sources = Sources(plan, judge, names, known, clip_frames, tune_clips, check_clips, threads)
    clips = sources.tuning(lambda: say("dense network", 0))
    clips, still = lively(judge, clips, max_drop)
    clips, proof = apart(clips, known is not None)

    identity = {"plan": _identity(plan), "clips": digest(clips), "threads": threads, "flush": flush}
    memo = None if out is None else Memo(Path(f"{out}.tune.json"), identity)
    say("gains", 0)
    sensed = gains(plan, [clip.frames[len(clip.frames) // 2] for clip in clips[:_GAIN_FRAMES]])
    compiled = plan.flat()
    work = Workbench(shaped(compiled, sensed), clips, judge, threads, flush, memo, say)
    limit = max_drop * (1 - MARGIN)
    try:
        result = _searched(work, compiled, balanced(plan, sensed, work.layout), (clips, proof), limit, max_state, say)
    finally:
        work.save()

    flat = compiled if result.kept else apply(work.plan, result.best)
    tuned = dataclasses.replace(flat, structure=plan.structure)
    say("checking", work.count)
    held = sources.held(lambda: say("checking", work.count))

    def check(candidate: Plan) -> dict[str, Any]:
        return _figures(judge, held, work.of(candidate, held), max_drop)

    figures = {
        "network": plan.name,
        "measure": "accuracy" if known is not None else MEASURES[judge.task],
        "max_drop": max_drop,
        "limit_in_search": limit,
        "dense_runtime": sources.dense.name,
        "threads": threads,
        "flush": flush,
        "settings_measured": work.count,
        "state_bytes": tuned.state_bytes,
        "kept": result.kept,
        "proof": {"clips": [clip.name for clip in proof], "finer": _octaves(result.found, result.best)},
        "tuning": _figures(judge, clips, result.before if result.kept else work(result.best), max_drop)
        | {"too_still": [clip.name for clip in still], "as_compiled": one(result.before)},
        "check": check(flat) | {"as_compiled": check(compiled)},
        "pareto": work.pareto(),
        "layers": work.layers(flat, (0,) * len(result.best) if result.kept else result.best),
    }
    if out is not None:
        tuned.save(out)
    return Tuned(tuned, figures)


def _check_numbers(max_drop: float, **counts: int) -> None:
    if not 0 < max_drop <= 1:
        raise BudgetError(f"max_drop: expected a share in (0, 1], such as 0.005 for 0.5 %, got {max_drop}")
    for name, count in counts.items():
        if count < (least := SHORTEST if name == "clip_frames" else 1):
            raise BudgetError(f"{name}: expected {least} or more, got {count}")


class _Result(NamedTuple):
    """What a search came to.

    found: by the search. best: the same as much finer as the proof asks for. before: of the plan as it came, on the
    clips of the search. kept: whether that one stays.
    """

    found: Setting
    best: Setting
    before: Measured
    kept: bool


def _searched(
    work: Workbench,
    compiled: Plan,
    balance: Setting,
    clips: tuple[list[Clip], list[Clip]],
    limit: float,
    max_state: int | None,
    say: Say,
) -> _Result:
    """Search from one threshold for all and from a balance, and prove what is found.

    Args:
        work: measures on the clips of the search.
        compiled: the plan as it came, its outputs as a list.
        balance: see `balanced`.
        clips: of the search and of the proof.
        limit, max_state, say: of the drop, of the bytes, and whom to tell.
    """
    start: Setting = (0,) * len(balance) if max_state is None else work.within(max_state)
    balance = tuple(None if k is None else own for k, own in zip(start, balance, strict=True))
    found = search(work, [start, balance], limit, lambda stage: say(stage, work.count)).best
    say("proof", work.count)
    tuning, proof = clips
    best = proven(work, found, proof, limit)
    before = work.of(compiled, tuning)
    fits = max_state is None or compiled.state_bytes <= max_state
    kept = fits and keeps(before, work(best), work.of(compiled, proof) if proof else None, limit)
    for by in (-2 * OCTAVE, -OCTAVE, 0, OCTAVE, 2 * OCTAVE):
        say("Pareto curve", work.count)
        work(shifted(best, by))
    return _Result(found, best, before, kept)


def apart(clips: list[Clip], labelled: bool) -> tuple[list[Clip], list[Clip]]:
    """Clips for the search, and for the proof: every third. With labels, whose budget is one of all clips, none."""
    proof = [] if labelled or len(clips) < 3 else clips[1::3]
    return [clip for clip in clips if clip not in proof], proof


def proven(work: Workbench, setting: Setting, clips: list[Clip], limit: float) -> Setting:
    """A setting, all codecs as much finer as it takes on clips that the search has not seen.

    Raises:
        BudgetError: the finest of all is over the budget there.
    """
    if not clips:
        return setting
    for by in range(0, FINEST - 1, -1):  # step by step: few are needed, and drops do not rise all the way
        finer = shifted(setting, by)
        if passes(work.of(apply(work.plan, finer), clips), limit):
            return finer
    raise BudgetError(
        f"{', '.join(clip.name for clip in clips)}: over the budget with the finest thresholds of all, though the "
        f"other clips are not; allow a --max-drop larger than {limit / (1 - MARGIN):.2%}"
    )


def keeps(own: Measured, found: Measured, proof: Measured | None, limit: float) -> bool:
    """Whether a plan is kept as it came: within the limit on all clips, and by the cost model no slower than another.

    Args:
        own, found: of the plan and of the other, on the clips of the search.
        proof: of the plan on the clips of the proof, where there are any.
        limit: what no drop may exceed.
    """
    within = passes(own, limit) and (proof is None or passes(proof, limit))
    return within and own.time_ns <= found.time_ns


def _octaves(found: Setting, best: Setting) -> float:
    """How much finer the one is that was proven."""
    shifts = [(a - b) / OCTAVE for a, b in zip(found, best, strict=True) if a is not None and b is not None]
    return max(shifts, default=0.0)


def _loaded(plan: Plan | Path | str) -> tuple[Plan, tuple[str, ...]]:
    """A plan that can be tuned, and the names of its classes where a run says them."""
    classes: tuple[str, ...] = ()
    if not isinstance(plan, Plan):
        plan, classes = _compiled(Path(plan)) if Path(plan).is_dir() else (Plan.load(plan), ())
    if plan.precision != "float32":
        raise BudgetError(
            f"plan '{plan.name}' is of precision {plan.precision}: tune the plan of float32 that the same network gives"
        )
    if not codecs(plan):
        raise BudgetError(
            f"plan '{plan.name}' has no codec, so there is nothing to tune; compile it with --codec pixel"
        )
    return plan, classes


def _compiled(run: Path) -> tuple[Plan, tuple[str, ...]]:
    """The plan of a training run, and its classes."""
    from sparsetime.run.planning import compile_file

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "run.plan")
        compile_file(str(run), file)
        config = json.loads((run / "config.json").read_text(encoding="utf-8"))
        return Plan.load(file), tuple(config["classes"])


def _class_count(plan: Plan, judge: Judge) -> int:
    if judge.task != "classification":
        raise BudgetError(
            f"--labels is for classifiers; the outputs of '{plan.name}' are judged by nearness to the dense network "
            f"({MEASURES[judge.task]})"
        )
    return next(plan.values[v][1] for v in plan.outputs if math.prod(plan.values[v]) == plan.values[v][1] > 1)


def _identity(plan: Plan) -> str:
    found = hashlib.sha256(repr((plan.values, plan.ops, plan.outputs, plan.input)).encode())
    for name in sorted(plan.tensors):
        found.update(np.ascontiguousarray(plan.tensors[name]).data)
    return found.hexdigest()


class Sources:
    """The clips of videos: those to tune on, those to check on. All videos are decoded once to see that they do.

    Args:
        plan, judge: whose dense network answers, and who keeps its answers.
        videos, labels: files, and with labels their classes. A clip is then a whole video.
        length: of a clip without labels.
        tune_clips, check_clips: without labels, how many clips at most.
        threads: of the dense network.

    Raises:
        BudgetError, SourceError: see `clip_places`; labels for a single video.
    """

    def __init__(
        self,
        plan: Plan,
        judge: Judge,
        videos: list[str],
        labels: Mapping[str, int] | None,
        length: int,
        tune_clips: int,
        check_clips: int,
        threads: int,
    ) -> None:
        self._plan, self._judge, self._labels, self._threads = plan, judge, labels, threads
        _, _, height, width = plan.input_shape
        self._size = height, width
        self._dense: Dense | None = None
        parts = (0.0, 1.0), (0.0, 1.0)
        if len(videos) > 1:
            tuned, held = divided(videos)
        elif labels is not None:
            raise BudgetError("--labels needs several videos: accuracy is a figure of many clips; give more --video")
        else:
            tuned = held = videos
            parts = (0.0, 2 / 3), (2 / 3, 1.0)
        self._tuned = self._places(tuned, tune_clips, length, parts[0])
        self._held = self._places(held, check_clips, length, parts[1])

    def _places(self, videos: list[str], most: int, length: int, part: tuple[float, float]) -> dict[str, list[range]]:
        """Where the clips are in each video, of those from which there are any."""
        if self._labels is not None:
            return {video: clip_places(video, self._size, None, 1, part) for video in videos}
        chosen = Counter(videos[k * len(videos) // most] for k in range(most))
        return {video: clip_places(video, self._size, length, count, part) for video, count in chosen.items()}

    @property
    def dense(self) -> Dense:
        """The dense network; there once clips were read."""
        assert self._dense is not None
        return self._dense

    def tuning(self, said: Callable[[], None]) -> list[Clip]:
        """The clips to tune on, answered by the dense network; `said` is called after each."""
        return self._clips(self._tuned, said)

    def held(self, said: Callable[[], None]) -> list[Clip]:
        """The clips that were held back, likewise."""
        return self._clips(self._held, said)

    def _clips(self, places: Mapping[str, list[range]], said: Callable[[], None]) -> list[Clip]:
        clips: list[Clip] = []
        for video, own in places.items():
            found = read_clips(video, self._size, own)
            if self._dense is None:
                self._dense = dense_network(self._plan, found[0].frames[0], self._threads)
            for clip in found:
                clip.label = None if self._labels is None else self._labels[video]
            answered(found, self._dense, self._judge, said)
            clips += found
        return clips


def lively(judge: Judge, clips: list[Clip], max_drop: float) -> tuple[list[Clip], list[Clip]]:
    """Clips that can tell a good stream from a frozen one, and the others.

    Raises:
        BudgetError: a video has none of the first kind; with labels, the frozen network passes on all videos together.
    """
    control = frozen(judge, clips)
    if control.right:
        if control.drop <= max_drop:
            raise BudgetError(
                f"{', '.join(sorted({clip.video for clip in clips}))}: too still to tune on: the answers to their "
                f"first frames, frozen, lose {control.drop:.2%} of accuracy, {max_drop:.2%} are allowed. Give videos "
                "whose class does not show in the first frame"
            )
        return clips, []
    alive = [clip for clip, drop in zip(clips, control.drops, strict=True) if drop > max_drop]
    for video in dict.fromkeys(clip.video for clip in clips):
        if all(clip.video != video for clip in alive):
            figures = [
                "nothing to judge" if math.isnan(drop) else f"drops by {drop:.2%}"
                for clip, drop in zip(clips, control.drops, strict=True)
                if clip.video == video
            ]
            raise BudgetError(
                f"{video}: too still to tune on: the answer to the first frame of each clip, frozen for all of it, "
                f"passes too ({MEASURES[judge.task]}: {', '.join(figures[:4])}; {max_drop:.2%} are allowed). Leave it "
                "out, or give --clip-frames more"
            )
    return alive, [clip for clip in clips if clip not in alive]


def _figures(judge: Judge, clips: list[Clip], found: Measured, max_drop: float) -> dict[str, Any]:
    """A setting on clips, beside the two controls."""
    still, skipped = frozen(judge, clips), skipping(judge, clips, found.wall_ns)
    dense_ns = statistics.median(clip.dense_ns for clip in clips)
    return (
        one(found)
        | {
            "time_dense_ms": dense_ns / 1e6,
            "drop_frozen": or_none(still.drop),
            "drop_frame_skipping": or_none(skipped.drop),
            "mean_drop": or_none(found.mean_drop),
            "mean_drop_frozen": or_none(still.mean_drop),
            "mean_drop_frame_skipping": or_none(skipped.mean_drop),
            "every": skipped.every,
        }
        | _misses(clips, found, still, skipped, max_drop)
    )


def _misses(clips: list[Clip], found: Measured, still: Control, skipped: Control, max_drop: float) -> dict[str, Any]:
    """How many clips exceed the budget, of those on which the frozen network does.

    With labels a clip is missed where the dense network is right and the stream is not; one whose frozen answer is
    right counts too, since the budget is one of all clips together.
    """
    rows: list[dict[str, Any]] = []
    if found.right:
        for clip, right in zip(clips, found.right, strict=True):
            dense = guess([answer for answer, _ in clip.dense]) == clip.label
            rows.append({"clip": clip.name, "right": right, "right_dense": dense})
        counted = len(rows)
        missed = [str(row["clip"]) for row in rows if row["right_dense"] and not row["right"]]
    else:
        for clip, drop, frozen_drop, skipped_drop in zip(clips, found.drops, still.drops, skipped.drops, strict=True):
            row = {"drop": drop, "drop_frozen": frozen_drop, "drop_frame_skipping": skipped_drop}
            rows.append({"clip": clip.name, **{key: or_none(value) for key, value in row.items()}})
        # A clip without anything to find is missed where the stream finds something all the same.
        alive = [row for row in rows if row["drop_frozen"] is None or row["drop_frozen"] > max_drop]
        alive = [row for row in alive if row["drop"] is not None]
        counted = len(alive)
        missed = [str(row["clip"]) for row in alive if row["drop"] > max_drop]
    return {
        "clips": rows,
        "clips_counted": counted,
        "missed": missed,
        "miss_rate": len(missed) / counted if counted else None,
    }
