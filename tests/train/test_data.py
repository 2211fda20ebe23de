"""Batches and hold-out."""

import shutil
from pathlib import Path

import pytest

from sparsetime.train import TrainingError, schedule
from sparsetime.train.data import EpochBatches, TrainingData, hold_out, open_clips
from sparsetime.train.recipe import Phase, resolve
from sparsetime.video import Clip, ListError, VideoError

from .conftest import small_recipe


def batches(count: int, size: int, epoch: int = 0, rank: int = 0, world_size: int = 1) -> list[list[int]]:
    sampler = EpochBatches(count, size, seed=5, rank=rank, world_size=world_size)
    sampler.epoch = epoch
    return list(sampler)


def test_an_epoch_has_each_clip_at_most_once_and_only_full_batches() -> None:
    made = batches(10, 3)
    assert [len(batch) for batch in made] == [3, 3, 3]
    seen = [i for batch in made for i in batch]
    assert len(set(seen)) == 9
    assert set(seen) < set(range(10))


def test_the_order_follows_from_the_epoch() -> None:
    assert batches(10, 3, epoch=2) == batches(10, 3, epoch=2)
    assert batches(10, 3, epoch=2) != batches(10, 3, epoch=3)


def test_processes_share_every_batch() -> None:
    whole = batches(10, 4)
    shares = [batches(10, 4, rank=rank, world_size=2) for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*shares, strict=True)] == [sorted(batch) for batch in whole]


def test_fewer_clips_than_a_batch_make_one_batch() -> None:
    assert [sorted(batch) for batch in batches(3, 8)] == [[0, 1, 2]]
    with pytest.raises(TrainingError, match="a batch of 1 clips cannot be divided among 2 processes"):
        batches(1, 8, world_size=2)


def clip(name: str, group: str, label: str = "label") -> Clip:
    return Clip(Path(name), name, label, group, "train")


def test_hold_out_keeps_groups_together() -> None:
    clips = [clip(f"{group}{i}", group) for group in "abcd" for i in range(3)]
    train, held_out = hold_out(clips, 0.25, seed=0)
    assert len(held_out) == 3
    assert {c.group for c in train}.isdisjoint({c.group for c in held_out})
    assert hold_out(clips, 0.0, seed=0) == (clips, [])


def test_one_group_cannot_be_divided() -> None:
    with pytest.raises(TrainingError, match="1 groups cannot be divided"):
        hold_out([clip("a", "g"), clip("b", "g")], 0.5, seed=0)


def test_a_class_that_is_held_out_whole_is_an_error() -> None:
    clips = [clip("a", "g", "kick"), clip("b", "g", "point"), clip("c", "h", "hug")]
    for seed in range(4):
        with pytest.raises(TrainingError, match=f"seed {seed} every video of (kick, point|hug) is.*another seed"):
            hold_out(clips, 0.5, seed)
    clips += [clip("d", "i", "hug"), clip("e", "i", "kick"), clip("f", "i", "point")]
    train, held_out = hold_out(clips, 0.3, seed=0)
    assert {c.label for c in train} == {"kick", "point", "hug"}
    assert held_out


def test_no_folder() -> None:
    with pytest.raises(TrainingError, match="data: no folder nowhere; expected one with"):
        open_clips("nowhere")


def test_a_list_without_a_training_split(clips: Path, tmp_path: Path) -> None:
    shutil.copytree(clips, tmp_path / "clips")
    table = tmp_path / "clips" / "clips.csv"
    table.write_text("\n".join(line for line in table.read_text().splitlines() if ",train" not in line))
    with pytest.raises(ListError, match="no split 'train', only test"):
        TrainingData.decode(open_clips(str(tmp_path / "clips")), small_recipe(clips), (32, 32))


def test_every_video_is_seen_for_as_many_frames_in_every_phase(clips: Path) -> None:
    recipe = resolve(small_recipe(clips, clip_length=4, frames_per_video=8), trained=False)
    data = TrainingData.decode(open_clips(str(clips)), recipe, (32, 32))
    frames = []
    for span in schedule(recipe):
        loader = data.loader(span, workers=0)
        frames.append(sum(batch["clip"].shape[0] * batch["clip"].shape[1] for batch in loader.epoch(0)))
    assert frames == [12 * 8] * 3


def test_held_out_videos_keep_their_numbers_when_one_is_damaged_later(clips: Path, tmp_path: Path) -> None:
    shutil.copytree(clips, tmp_path / "clips")
    recipe = small_recipe(clips, validate=0.25)
    data = TrainingData.decode(open_clips(str(tmp_path / "clips")), recipe, (32, 32))
    seen = {}
    for batch in data.windows():
        seen |= dict(zip(batch["video"].tolist(), batch["label"].tolist(), strict=True))
    assert seen == {n: data.classes.index(clip.label) for n, clip in enumerate(data.held_out)}
    assert len(seen) == 3
    data.held_out[0].path.write_bytes(b"not a video")
    with pytest.raises(VideoError, match=data.held_out[0].name):
        list(data.windows())


def test_held_out_videos_that_are_all_damaged_are_an_error(clips: Path, tmp_path: Path) -> None:
    shutil.copytree(clips, tmp_path / "clips")
    recipe = small_recipe(clips, validate=0.25)
    listed = open_clips(str(tmp_path / "clips"))
    train, held_out = hold_out(listed.split("train"), recipe.validate, recipe.seed)
    for clip in (*held_out[1:], train[0]):
        clip.path.write_bytes(b"not a video")
    data = TrainingData.decode(listed, recipe, (32, 32))
    assert (data.clips, data.held_out) == (train[1:], (held_out[0],))
    assert [broken.clip for broken in data.broken] == [train[0], *held_out[1:]]
    held_out[0].path.write_bytes(b"not a video")
    with pytest.raises(TrainingError, match=f"validate: of the videos held out none of the 3 .*{held_out[0].name}"):
        TrainingData.decode(listed, recipe, (32, 32))


def test_clips_longer_than_every_video_forth_and_back_are_an_error(clips: Path) -> None:
    listed = open_clips(str(clips))  # videos of ten frames, five at this stride
    recipe = small_recipe(clips, stride=2, clip_length=10)
    data = TrainingData.decode(listed, recipe, (32, 32))
    assert data.dataset(10)[0]["clip"].shape == (10, 3, 32, 32)
    with pytest.raises(TrainingError, match=r"clips of 11 frames .* longest video has 5 frames at stride 2.*at most 5"):
        TrainingData.decode(listed, recipe.replace(clip_length=11), (32, 32))
    with pytest.raises(TrainingError, match="clips of 20 frames"):
        TrainingData.decode(listed, recipe.replace(phases=(Phase("long", clip_length=2.0),)), (32, 32))


def test_workers_see_the_epoch(clips: Path) -> None:
    recipe = resolve(small_recipe(clips), trained=False)
    data = TrainingData.decode(open_clips(str(clips)), recipe, (32, 32))
    span = schedule(recipe)[0]
    alone, helped = data.loader(span, workers=0), data.loader(span, workers=1)
    sums = []
    for epoch in (0, 1, 0):
        a = [(int(b["clip"].sum()), b["index"].tolist()) for b in alone.epoch(epoch)]
        assert a == [(int(b["clip"].sum()), b["index"].tolist()) for b in helped.epoch(epoch)]
        sums.append(a)
    assert sums[0] == sums[2] != sums[1]
