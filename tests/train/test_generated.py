"""The data set that is made by rule: whole or not there."""

import os
from pathlib import Path

import pytest
import torch

from sparsetime.train import generated
from sparsetime.train.generated import write_generated
from sparsetime.video import ClipList, GeneratedClips, read_frames


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated, "SPLITS", {"train": (3, 1), "test": (3, 2)})


@pytest.mark.usefixtures("few")
def test_the_clips_are_those_that_were_drawn(tmp_path: Path) -> None:
    folder = write_generated(tmp_path / "cache" / "clips")
    clips = ClipList.open(folder)
    for split, (count, seed) in generated.SPLITS.items():
        drawn = GeneratedClips(count, seed=seed, size=generated.SIZE, length=generated.LENGTH)
        written = clips.split(split).clips
        assert len(written) == count
        for item, clip in zip((drawn[i] for i in range(count)), written, strict=True):
            assert clip.label == drawn.classes[item["label"]]
            frames = torch.from_numpy(read_frames(clip.path))
            assert torch.equal(frames, item["clip"].permute(0, 2, 3, 1))
    before = (folder / "clips.csv").stat().st_mtime_ns
    assert write_generated(folder) == folder
    assert (folder / "clips.csv").stat().st_mtime_ns == before


@pytest.mark.usefixtures("few")
def test_what_stops_while_they_are_made_leaves_nothing_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(generated, "SPLITS", {"train": (3, 1), "test": (-1, 2)})  # refused when the first split is done
        with pytest.raises(ValueError, match="count >= 0"):
            write_generated(tmp_path / "clips")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / f".clips.{os.getpid()}.part").mkdir()  # of a process that was killed and had this one's number
    assert len(ClipList.open(write_generated(tmp_path / "clips")).clips) == 6
