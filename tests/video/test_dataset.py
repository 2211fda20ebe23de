import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from sparsetime.video import (
    Augment,
    ClipDataset,
    ClipList,
    EvalDataset,
    FrameCache,
    ListError,
    read_frames,
)

from .conftest import encode, gradient_frames

MakeSet = Callable[..., Path]
LENGTHS = {"a": 20, "b": 9, "c": 5, "d": 30}
SIZE = (24, 32)


def dataset(root: Path, **options: Any) -> ClipDataset:
    clips = ClipList.from_csv(root)
    return ClipDataset(
        clips, clips.classes, **{"size": SIZE, "length": 8, "cache": FrameCache(root / "cache"), **options}
    )


def test_items(make_set: MakeSet) -> None:
    data = dataset(make_set(LENGTHS))
    assert len(data) == 4
    assert data.lengths == (20, 9, 5, 30)
    assert data.classes == ("x", "y")
    for index, label in enumerate([0, 1, 0, 1]):
        item = data[index]
        assert item["clip"].shape == (8, 3, *SIZE)
        assert item["clip"].dtype == torch.uint8
        assert (item["label"], item["index"]) == (label, index)
    assert next(iter(DataLoader(data, batch_size=4)))["clip"].shape == (4, 8, 3, *SIZE)


def test_clips_are_frames_of_the_video(make_set: MakeSet) -> None:
    root = make_set(LENGTHS)
    frames = torch.from_numpy(read_frames(root / "a.mkv")).permute(0, 3, 1, 2)
    assert torch.equal(dataset(root, train=False)[0]["clip"], frames[6:14])
    assert torch.equal(dataset(root, train=False, stride=2)[0]["clip"], frames[2:17:2])
    data = dataset(root, augment=None)
    starts = set()
    for epoch in range(30):
        data.set_epoch(epoch)
        clip = data[0]["clip"]
        (start,) = [s for s in range(13) if torch.equal(clip, frames[s : s + 8])]
        starts.add(start)
    assert len(starts) > 6


def test_items_depend_on_seed_and_epoch_alone(make_set: MakeSet) -> None:
    root = make_set(LENGTHS)
    data, same, other = dataset(root, seed=1), dataset(root, seed=1), dataset(root, seed=2)
    first = data[3]["clip"]
    assert torch.equal(first, data[3]["clip"])
    assert torch.equal(first, same[3]["clip"])
    assert not torch.equal(first, other[3]["clip"])
    data.set_epoch(1)
    assert not torch.equal(first, data[3]["clip"])
    data.set_epoch(0)
    assert torch.equal(first, data[3]["clip"])


def test_any_number_of_workers_gives_the_same(make_set: MakeSet, tmp_path: Path) -> None:
    data = dataset(make_set(LENGTHS), cache=FrameCache(tmp_path / "cache"), workers=2)
    # Workers that outlive the epoch must see the next one's number.
    loader = DataLoader(data, batch_size=1, num_workers=2, persistent_workers=True)
    for epoch in range(3):
        data.set_epoch(epoch)
        for index, batch in enumerate(loader):
            assert torch.equal(batch["clip"][0], data[index]["clip"])


def test_making_a_data_set_leaves_the_global_generators_alone(make_set: MakeSet) -> None:
    root = make_set(LENGTHS)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    dataset(root)[0]
    assert torch.equal(torch.rand(1), expected)


def test_broken_videos_are_named_counted_and_left_out(make_set: MakeSet, caplog: pytest.LogCaptureFixture) -> None:
    root = make_set(LENGTHS)
    (root / "empty.avi").touch()
    (root / "text.avi").write_text("no video\n" * 100)
    (root / "short.avi").touch()
    encode(root / "short.avi", gradient_frames(1), "mpeg4")
    cut = encode(root / "cut.avi", gradient_frames(30), "mpeg4")
    cut.write_bytes(cut.read_bytes()[:-2000])
    with (root / "clips.csv").open("a") as table:
        table.writelines(f"{name}.avi,x,{name},train\n" for name in ("empty", "text", "short", "cut"))
    with caplog.at_level(logging.WARNING, "sparsetime.video"):
        data = dataset(root)
    assert len(data) == 4
    assert [broken.clip.name for broken in data.broken] == ["empty.avi", "text.avi", "short.avi", "cut.avi"]
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 4
    for line, name, reason in zip(
        lines,
        ("empty", "text", "short", "cut"),
        ("the file is empty", "no video", "has 1 frames", "the file is cut off"),
        strict=True,
    ):
        assert f"{root / name}.avi: " in line
        assert reason in line
        assert "\n" not in line
    assert data.summary().startswith("4 videos of 2 classes, 4 left out\n")
    assert data.summary().count("\n") == 4
    # All the rest is trained on.
    assert {int(batch["index"]) for batch in DataLoader(data, batch_size=1)} == {0, 1, 2, 3}
    # Worker processes come to the same answer.
    again = dataset(root, cache=FrameCache(root / "cache"), workers=2)
    assert [(b.clip.name, b.reason) for b in again.broken] == [(b.clip.name, b.reason) for b in data.broken]


def test_sets_that_cannot_be_used(make_set: MakeSet) -> None:
    root = make_set(LENGTHS)
    clips = ClipList.from_csv(root)
    with pytest.raises(ListError, match="not there: y"):
        ClipDataset(clips, ["x"], size=SIZE, length=8, cache=FrameCache(root / "cache"))
    with pytest.raises(ListError, match=r"none of the 4 videos can be used; the first: .*a\.mkv: has 20 frames"):
        dataset(root, stride=40)
    with pytest.raises(ListError, match="none of the 0 videos"):
        ClipDataset([], ["x"], size=SIZE, length=8, cache=FrameCache(root / "cache"))
    with pytest.raises(ValueError, match="length >= 2"):
        dataset(root, length=1)
    with pytest.raises(ValueError, match="overlap"):
        EvalDataset(clips, clips.classes, size=SIZE, length=4, overlap=4, cache=FrameCache(root / "cache"))


def test_progress(make_set: MakeSet) -> None:
    told: list[tuple[int, int]] = []
    dataset(make_set(LENGTHS), progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_evaluation_covers_every_frame_once(make_set: MakeSet) -> None:
    root = make_set(LENGTHS)
    clips = ClipList.from_csv(root)
    data = EvalDataset(clips, clips.classes, size=SIZE, length=8, cache=FrameCache(root / "cache"))
    assert [len(window) for _, window in data.windows] == [8, 8, 4, 8, 2, 5, 8, 8, 8, 6]
    for video, clip in enumerate(data.clips):
        items = [data[i] for i in range(len(data)) if data[i]["video"] == video]
        frames = read_frames(clip.path)
        if clip.name == "b.mkv":  # nine frames: the last clip takes frame 7 along
            assert [item["start"] for item in items] == [0, 7]
        else:
            assert [item["start"] for item in items] == [0, 8, 16, 24][: len(items)]
            whole = torch.cat([item["clip"] for item in items]).permute(0, 2, 3, 1).numpy()
            np.testing.assert_array_equal(whole, frames)
    assert data[len(data) - 1]["label"] == 1
    whole = EvalDataset(clips, clips.classes, size=SIZE, cache=FrameCache(root / "cache"))
    assert [tuple(item["clip"].shape) for item in (whole[0], whole[3])] == [(20, 3, *SIZE), (30, 3, *SIZE)]


def test_evaluation_batches_hold_clips_of_one_length(make_set: MakeSet) -> None:
    root = make_set(LENGTHS)
    clips = ClipList.from_csv(root)
    data = EvalDataset(clips, clips.classes, size=SIZE, length=8, cache=FrameCache(root / "cache"))
    assert data.by_length() == {8: [0, 1, 3, 6, 7, 8], 4: [2], 2: [4], 5: [5], 6: [9]}
    batches = data.batches(4)
    assert sorted(index for batch in batches for index in batch) == list(range(len(data)))
    shapes = [batch["clip"].shape for batch in DataLoader(data, batch_sampler=batches)]
    assert [shape[:2] for shape in shapes] == [(4, 8), (2, 8), (1, 6), (1, 5), (1, 4), (1, 2)]


def test_training_frames_are_kept_larger_than_the_input(make_set: MakeSet) -> None:
    # A crop of 1 / 1.15 of the side is the input's size: nothing is scaled up, and the picture stays sharp.
    root = make_set({"a": 4, "b": 4})
    cache = FrameCache(root / "cache")
    dataset(root, size=(20, 24), length=2, cache=cache, augment=Augment())
    assert cache.size_bytes() == 2 * (4 * 23 * 28 * 3 + 128)  # with the header of .npy


@pytest.mark.data
def test_real_clips(shared_data: Path, tmp_path: Path) -> None:
    clips = ClipList.from_csv(shared_data / "jhmdb")
    some = clips.split("train")[::60]
    data = ClipDataset(some, clips.classes, size=(64, 64), length=16, cache=FrameCache(tmp_path))
    assert data.lengths == tuple(int(clip.extra["frames"]) for clip in some)
    batch = next(iter(DataLoader(data, batch_size=len(some))))
    assert batch["clip"].shape == (len(some), 16, 3, 64, 64)
    assert 20 < batch["clip"].float().mean() < 235
