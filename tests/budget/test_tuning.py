"""A small network tuned on small videos."""

import csv
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import sparsetime
from sparsetime.budget import BudgetError, tune
from sparsetime.budget import tuning as tuning_module
from sparsetime.budget.clips import Clip, answered, clip_places, divided, read_clips, read_labels, video_files
from sparsetime.budget.cost import FLUSH, Layout
from sparsetime.budget.gains import balanced, gains, shaped
from sparsetime.budget.judge import Judge, drop_of
from sparsetime.budget.measure import Measured, _usual, accuracy_drop, measure
from sparsetime.budget.search import Found, shifted
from sparsetime.budget.setting import codecs
from sparsetime.budget.tuning import MARGIN, apart, keeps, proven
from sparsetime.budget.workbench import Workbench
from sparsetime.codec import Codec
from sparsetime.engine import Plan
from sparsetime.run.dense import native_dense
from sparsetime.run.quality import Distance, Reader
from sparsetime.run.sources import Source
from sparsetime.video import write_video

from .conftest import moving

BUDGET = 0.02


def clips_of(video: str, length: int | None, most: int, part: tuple[float, float] = (0.0, 1.0)) -> list[Clip]:
    return read_clips(video, (24, 32), clip_places(video, (24, 32), length, most, part))


def drops(plan: Plan, video: str, start: int, count: int, flush: float) -> float:
    """Mean total variation to the dense network, written down anew."""
    frames = [shot.picture for shot in Source(video, (24, 32))][start : start + count]
    stream, dense = plan.stream(flush=flush), plan.stream(backend="reference")
    found = []
    for frame in frames:
        dense.reset()
        p, d = (torch.from_numpy(net(frame)).double().softmax(1) for net in (stream, dense))
        found.append(0.5 * float((p - d).abs().sum()))
    return float(np.mean(found[1:]))


def test_keeps_the_budget_and_saves(each_plan: Plan, folder: Path, tmp_path: Path) -> None:
    plan = each_plan
    out = tmp_path / "tuned.plan"
    said: list[str] = []
    found = tune(
        plan,
        [str(folder)],
        max_drop=BUDGET,
        out=out,
        clip_frames=8,
        tune_clips=6,
        check_clips=4,
        progress=lambda stage, count: said.append(stage),
    )
    figures = found.figures
    json.dumps(figures, allow_nan=False)
    tuning, check = figures["tuning"], figures["check"]
    assert tuning["drop"] <= BUDGET * (1 - MARGIN) < tuning["drop_frozen"]
    assert tuning["time_model_ms"] <= tuning["as_compiled"]["time_model_ms"]
    assert [clip["clip"].split("/")[-1].split()[0] for clip in check["clips"]] == ["walk2.mkv"] * 2 + ["walk5.mkv"] * 2
    assert not any("walk2" in clip["clip"] or "walk5" in clip["clip"] for clip in tuning["clips"])
    assert check["miss_rate"] == len(check["missed"]) / check["clips_counted"]
    assert [row["drop"] for row in figures["pareto"]] == sorted(
        (row["drop"] for row in figures["pareto"]), reverse=True
    )
    assert {"one threshold for all", "checking"} <= set(said)
    assert tuning["op_density"] < 1
    kinds = {op.codec["kind"] for op in plan.ops if op.codec is not None}
    assert {row["codec"] for row in figures["layers"]} == kinds
    # Clips that the search has not seen are within the budget too.
    names = [clip["clip"] for clip in tuning["clips"]] + figures["proof"]["clips"]
    assert (len(tuning["clips"]), len(set(names))) == (4, 6)
    for name in figures["proof"]["clips"]:
        video, _, span = name.rpartition(" frames ")
        start, end = map(int, span.split("-"))
        assert drops(found.plan, video, start, end - start + 1, 1.0) <= BUDGET * (1 - MARGIN) + 1e-5
    # The figures belong to the plan that was written, flushed as `run` does it.
    assert figures["flush"] == 1
    saved = Plan.load(out)
    for clip in tuning["clips"]:
        video, _, span = clip["clip"].rpartition(" frames ")
        start, end = map(int, span.split("-"))
        assert clip["drop"] == pytest.approx(drops(saved, video, start, end - start + 1, 1.0), abs=1e-5)


def test_streams_are_flushed_as_they_will_be_run(each_plan: Plan, folder: Path) -> None:
    flat = dataclasses.replace(each_plan, structure=[{"output": 0}])
    judge = Judge(flat)
    clip = clips_of(str(folder / "walk0.mkv"), 20, 1)[0]
    answered([clip], native_dense(flat, 1), judge, lambda: None)
    never, ways, flushes = measure(flat, [clip], judge), {}, 0
    own, counted = measure(flat, [clip], judge, flush=0.5)
    stream = flat.stream(flush=0.5)
    for number, frame in enumerate(clip.frames):
        stream(frame)
        if number:
            ways[number] = stream.flushed
            flushes += stream.flushed
    assert 0 < flushes < len(ways)
    np.testing.assert_array_equal((counted.way == FLUSH).all(axis=1), list(ways.values()))
    np.testing.assert_array_equal((counted.way == FLUSH).any(axis=1), list(ways.values()))
    assert not (never[1].way == FLUSH).any()
    assert own.drops[0] == pytest.approx(drops(each_plan, clip.video, 0, 20, 0.5), abs=1e-5)
    assert own.error < never[0].error


def test_time_of_a_frame_is_a_mean_of_two_medians() -> None:
    assert _usual([10, 12, 5000, 30, 40], [False, False, False, True, True]) == (3 * 12 + 2 * 35) / 5
    assert _usual([10, 12, 5000], [False] * 3) == 12


def test_goes_on_where_it_stopped(plan: Plan, folder: Path, tmp_path: Path) -> None:
    videos, out = [str(folder)], tmp_path / "tuned.plan"
    counts: list[int] = []

    class StopError(Exception):
        pass

    def stop_at_20(stage: str, count: int) -> None:
        if count >= 20:
            raise StopError

    options = {"max_drop": BUDGET, "out": out, "clip_frames": 8, "tune_clips": 3, "check_clips": 2}
    with pytest.raises(StopError):
        tune(plan, videos, progress=stop_at_20, **options)
    assert not out.exists()
    first = json.loads((tmp_path / "tuned.plan.tune.json").read_text())
    assert len(first["measured"]) >= 20
    tune(plan, videos, progress=lambda stage, count: counts.append(count), **options)
    assert min(count for count in counts if count) >= 20
    whole = out.read_bytes()
    # Once more: nothing is left to measure, and the same plan comes out.
    again = tune(plan, videos, **options).figures
    assert out.read_bytes() == whole
    assert again["settings_measured"] == len(json.loads((tmp_path / "tuned.plan.tune.json").read_text())["measured"])
    # What was measured on other clips is not taken.
    with pytest.raises(BudgetError, match=r"state of another search \(other clips\); remove it"):
        tune(plan, videos, **{**options, "clip_frames": 9})
    with pytest.raises(BudgetError, match=r"state of another search \(other flush\); remove it"):
        tune(plan, videos, flush=0.0, **options)
    (tmp_path / "tuned.plan.tune.json").write_text('{"format": 1}')
    with pytest.raises(BudgetError, match="not the state of a search"):
        tune(plan, videos, **options)


def test_a_still_video_is_refused_by_name(plan: Plan, folder: Path) -> None:
    still = str(folder / "still" / "still.mkv")
    with pytest.raises(BudgetError, match=r"still\.mkv: too still to tune on: .* frozen"):
        tune(plan, [still], max_drop=BUDGET, clip_frames=8)
    with pytest.raises(BudgetError, match=r"still\.mkv: too still to tune on"):
        tune(plan, [str(folder / "walk0.mkv"), still, str(folder / "walk1.mkv")], max_drop=BUDGET, clip_frames=8)
    # And a budget so large that frozen keeps it makes every clip too still.
    with pytest.raises(BudgetError, match="too still"):
        tune(plan, [str(folder / "walk0.mkv")], max_drop=1.0, clip_frames=8)


def test_every_third_clip_is_for_the_proof(folder: Path) -> None:
    clips = clips_of(str(folder / "walk0.mkv"), 4, 6, (0.0, 1.0))
    assert [clips.index(clip) for clip in apart(clips, labelled=False)[1]] == [1, 4]
    assert apart(clips, labelled=False)[0] == [clips[k] for k in (0, 2, 3, 5)]
    assert apart(clips, labelled=True) == (clips, [])
    assert apart(clips[:2], labelled=False) == (clips[:2], [])


def test_what_the_proof_does_not_bear_is_made_finer(plan: Plan, folder: Path) -> None:
    judge = Judge(plan)
    clips = clips_of(str(folder / "walk1.mkv"), 8, 2, (0.0, 1.0))
    answered(clips, native_dense(plan, 1), judge, lambda: None)
    work = Workbench(plan, clips, judge, 1, 1.0, None, lambda stage, count: None)
    coarse = (12,) * len(codecs(plan))
    limit = work(shifted(coarse, -9)).drop
    assert work(coarse).drop > limit
    found = proven(work, coarse, clips, limit)
    shift = found[0] - coarse[0]
    assert found == shifted(coarse, shift)
    assert -9 <= shift < 0
    assert all(work(shifted(coarse, by)).drop > limit for by in range(shift + 1, 1))
    assert work(found).drop <= limit
    assert proven(work, coarse, clips, 1.0) == coarse  # what passes stays
    assert proven(work, coarse, [], limit) == coarse
    with pytest.raises(BudgetError, match=r"walk1.*over the budget with the finest"):
        proven(work, coarse, clips, -1.0)


def test_a_plan_within_the_budget_is_not_made_slower(
    plan: Plan, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Found([], (-12,) * len(codecs(plan)))
    monkeypatch.setattr(tuning_module, "search", lambda *_: slow)
    options = {"clip_frames": 8, "tune_clips": 6, "check_clips": 2, "out": tmp_path / "tuned.plan"}
    found = tune(plan, [str(folder)], max_drop=BUDGET, **options)
    assert found.figures["kept"]
    assert {row["multiple"] for row in found.figures["layers"]} == {1.0}
    before = found.figures["tuning"]["as_compiled"]
    for key in ("drop", "time_model_ms", "op_density"):
        assert found.figures["tuning"][key] == before[key]
    plan.save(tmp_path / "given.plan")
    assert (tmp_path / "tuned.plan").read_bytes() == (tmp_path / "given.plan").read_bytes()
    tight = before["drop"] / (1 - MARGIN) * 0.9  # the plan is over it
    assert not tune(plan, [str(folder)], max_drop=tight, **options).figures["kept"]
    (tmp_path / "tuned.plan.tune.json").unlink()
    assert not tune(plan, [str(folder)], max_drop=BUDGET, **options, max_state=plan.state_bytes - 1).figures["kept"]


def test_what_is_kept() -> None:
    def does(drop: float, time: float) -> Measured:
        return Measured([0.0, drop], [], 0.0, time, 0.0, 1.0, 1.0)

    found = does(0.2, 10.0)
    assert keeps(does(0.2, 10.0), found, does(0.2, 99.0), 0.2)
    assert keeps(does(0.2, 10.0), found, None, 0.2)
    assert not keeps(does(0.2, 10.1), found, None, 0.2)
    assert not keeps(does(0.3, 5.0), found, None, 0.2)
    assert not keeps(does(0.1, 5.0), found, does(0.3, 5.0), 0.2)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"tune_clips": 0}, "tune_clips: expected 1 or more, got 0"),
        ({"check_clips": -1}, "check_clips: expected 1 or more, got -1"),
        ({"clip_frames": 0}, "clip_frames: expected 4 or more, got 0"),
        ({"threads": 0}, "threads: expected 1 or more, got 0"),
    ],
)
def test_numbers_are_checked_before_anything_is_read(plan: Plan, option: dict[str, int], message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        tune(plan, ["no such video"], max_drop=BUDGET, **option)


def test_held_back_videos_are_looked_at_before_the_search(plan: Plan, folder: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "short.mkv", moving(3))
    said: list[str] = []
    with pytest.raises(BudgetError, match=r"short\.mkv: 3 frames to tune or check on; expected 4 or more"):
        tune(
            plan,
            [str(folder / "walk0.mkv"), str(tmp_path / "short.mkv")],
            max_drop=BUDGET,
            clip_frames=8,
            progress=lambda stage, count: said.append(stage),
        )
    assert said == ["reading"]


def test_one_video_is_divided_by_its_frames(plan: Plan, folder: Path) -> None:
    figures = tune(plan, [str(folder / "walk0.mkv")], max_drop=BUDGET, clip_frames=8, tune_clips=2).figures
    assert [clip["clip"].rpartition(" ")[2] for clip in figures["tuning"]["clips"]] == ["0-7", "8-15"]
    assert [clip["clip"].rpartition(" ")[2] for clip in figures["check"]["clips"]] == ["16-23"]


def test_state(plan: Plan, folder: Path) -> None:
    whole = plan.state_bytes
    options = {"max_drop": BUDGET, "clip_frames": 8, "tune_clips": 2, "check_clips": 1}
    with pytest.raises(BudgetError, match=r"--max-state .* cannot be met"):
        tune(plan, [str(folder)], max_state=whole // 4, **options)
    assert tune(plan, [str(folder)], max_state=whole, **options).figures["state_bytes"] <= whole


def labelled(folder: Path, path: Path, plan: Plan, *, wrong: int = 0) -> Path:
    """Labels that the dense network gives, all but the first few."""
    with path.open("w", newline="") as lines:
        rows = csv.writer(lines)
        rows.writerow(["file", "label"])
        for number, video in enumerate(sorted(folder.glob("*.mkv"))):
            stream = plan.stream(backend="reference")
            mean = []
            for shot in Source(str(video), (24, 32)):
                stream.reset()
                mean.append(torch.from_numpy(stream(shot.picture)).softmax(1))
            label = int(torch.cat(mean).mean(0).argmax())
            rows.writerow([video.name, (label + 1) % 4 if number < wrong else label])
    return path


def test_accuracy_that_a_frozen_network_also_has_is_refused(plan: Plan, folder: Path, tmp_path: Path) -> None:
    # All the videos look alike on average, so some class is right throughout; how many first frames are is what counts.
    labels = labelled(folder, tmp_path / "labels.csv", plan)
    with pytest.raises(BudgetError, match=r"too still to tune on: the answers to their first frames, frozen, lose"):
        tune(plan, [str(folder)], max_drop=1.0, labels=labels)
    with pytest.raises(BudgetError, match="several videos"):
        tune(plan, [str(folder / "walk0.mkv")], max_drop=0.5, labels=labels)


def test_accuracy_within_a_budget(plan: Plan, folder: Path, tmp_path: Path) -> None:
    labels = labelled(folder, tmp_path / "labels.csv", plan)
    figures = tune(plan, [str(folder)], max_drop=0.1, labels=labels).figures
    assert figures["measure"] == "accuracy"
    assert len(figures["tuning"]["clips"]) == 4
    # Four clips: a drop of at most 0.075 is none.
    assert figures["tuning"]["drop"] <= 0
    assert figures["tuning"]["drop_frozen"] >= 0.25
    assert all(row["right"] for row in figures["tuning"]["clips"])
    assert figures["check"]["clips_counted"] == 2
    # Times are what it makes smaller; operations nearly always follow, but need not.
    assert figures["tuning"]["time_model_ms"] <= figures["tuning"]["as_compiled"]["time_model_ms"]


def test_reads_labels(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("file,label\na.mkv,1\nfolder/b.mkv,walk\nc.mkv,9\n")
    assert read_labels(file, ["x/a.mkv"], (), 3) == {"x/a.mkv": 1}
    assert read_labels(file, ["folder/b.mkv"], ("sit", "walk"), 2) == {"folder/b.mkv": 1}
    for video, message in (("b.mkv", "no row for b.mkv"), ("c.mkv", "label '9'"), ("folder/b.mkv", "need the run dir")):
        with pytest.raises(BudgetError, match=message):
            read_labels(file, [video], (), 3)
    file.write_text("name,class\n")
    with pytest.raises(BudgetError, match="columns file and label"):
        read_labels(file, ["a.mkv"], (), 3)
    with pytest.raises(BudgetError, match="missing"):
        read_labels(tmp_path / "missing.csv", ["a.mkv"], (), 3)


def test_accuracy_drop() -> None:
    assert accuracy_drop([True, False, False, True], [True, True, False, True]) == 0.25
    assert accuracy_drop([True, True], [True, False]) == -0.5


def test_divides_videos() -> None:
    assert divided(["a", "b"]) == (["a"], ["b"])
    assert divided(["a", "b", "c"]) == (["a", "b"], ["c"])
    assert divided(list("abcdef")) == (list("abde"), list("cf"))


def test_finds_videos(folder: Path) -> None:
    assert len(video_files([str(folder)])) == 6
    with pytest.raises(BudgetError, match="given twice"):
        video_files([str(folder), str(folder / "walk1.mkv")])
    with pytest.raises(BudgetError, match="no video"):
        video_files([])


def test_clips_are_spread_and_do_not_overlap(folder: Path) -> None:
    video = str(folder / "walk1.mkv")
    clips = clips_of(video, 5, 3, (0.0, 2 / 3))
    assert [(clip.start, len(clip.frames)) for clip in clips] == [(0, 5), (5, 5), (11, 5)]
    np.testing.assert_array_equal(clips[2].frames, moving(24, start=3)[11:16])
    assert len(clips_of(video, None, 9)) == 1
    with pytest.raises(BudgetError, match="3 frames"):
        clip_places(video, (24, 32), 3, 1)


def test_drops_by_task() -> None:
    boxes = {"boxes": 3, "boxes_dense": 5, "boxes_found": 0.4}
    assert drop_of("detection", boxes) == pytest.approx(1 - 2 * 2 / 8)
    assert drop_of("detection", {"boxes": 2, "boxes_dense": 0, "boxes_found": None}) == 1
    assert drop_of("detection", {"boxes": 0, "boxes_dense": 0, "boxes_found": None}) is None
    assert drop_of("segmentation", {"foreground_iou": 0.75}) == 0.25
    assert drop_of("segmentation", {"foreground_iou": None}) is None
    assert drop_of("classification", {"total_variation": 0.1}) == 0.1
    assert drop_of("other", {"relative_error": 0.2}) == 0.2


def test_the_judge_keeps_what_distances_need(plan: Plan) -> None:
    frames = moving(3)
    stream = dataclasses.replace(plan, structure=[{"output": 0}]).stream()
    judge, reader = Judge(plan), Reader(plan)
    outputs = [stream(frame) for frame in frames]
    whole, kept = Distance("classification"), Distance("classification")
    for y in outputs[1:]:
        whole.add(reader(y), reader(outputs[0]))
        kept.add(judge(y)[0], judge(outputs[0])[0])
    assert kept.summary()["total_variation"] == whole.summary()["total_variation"] != 0
    np.testing.assert_allclose(judge(outputs[0])[1], reader(outputs[0]).meaning, atol=1e-6)


@pytest.mark.parametrize(("codec", "power"), [("hold", 1 / 2.7), ("pixel", 1 / 2)])
def test_gains_are_squared_slopes(codec: Codec, power: float) -> None:
    # s = W v with v the last value: gain of channel c = mean over elements of sum_k W_kc^2, signs apart.
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.ReLU(), torch.nn.Conv2d(3, 1, 1)).eval()
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([4.0, 1.0, 0.0]).reshape(1, 3, 1, 1))
    net = sparsetime.compile(model, torch.randn(1, 2, 6, 6), codec=codec)
    found = gains(net, [np.random.default_rng(0).standard_normal((2, 6, 6)).astype(np.float32)])
    np.testing.assert_allclose(found[-1], [16.0, 1.0, 0.0], rtol=1e-6)
    tuned = shaped(net, found)
    thresholds = tuned.step(tuned.ops[1]).ravel()
    np.testing.assert_allclose(thresholds[1] / thresholds[0], 16**power, rtol=1e-5)
    before = net.step(net.ops[1]).item()
    np.testing.assert_allclose(np.exp(np.log(thresholds).mean()), before, rtol=1e-5)
    shift = balanced(net, found, Layout(net))
    assert len(shift) == len(found)
    assert math.isclose(np.mean(shift), 0, abs_tol=1)
