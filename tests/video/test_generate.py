from pathlib import Path

import numpy as np
import pytest
import torch

from sparsetime.video import (
    ClipDataset,
    ClipList,
    FrameCache,
    GeneratedClips,
    digit_glyphs,
    drift_clips,
    read_frames,
    write_clips,
    write_video,
)


def test_items() -> None:
    clips = GeneratedClips(20, length=6)
    assert len(clips) == 20
    assert len(set(clips.classes)) == 8
    item = clips[9]
    assert item["clip"].shape == (6, 3, 64, 64)
    assert item["clip"].dtype == torch.uint8
    assert (item["label"], item["index"]) == (1, 9)
    assert item["changed"].shape == item["noisy"].shape == (6, 64, 64)
    assert len(GeneratedClips(4, size=(30, 50))[0]["clip"][0, 0]) == 30
    assert sum(1 for _ in clips) == 20


def test_seeds() -> None:
    assert torch.equal(GeneratedClips(5, seed=3)[4]["clip"], GeneratedClips(9, seed=3)[4]["clip"])
    assert not torch.equal(GeneratedClips(5, seed=3)[4]["clip"], GeneratedClips(5, seed=4)[4]["clip"])
    assert not torch.equal(GeneratedClips(16)[0]["clip"], GeneratedClips(16)[8]["clip"])


def test_changed_is_exact_without_noise() -> None:
    for options in ({}, {"shake": 2}, {"flicker": 0.05}):
        for index in range(8):
            item = GeneratedClips(8, noise=0, **options)[index]  # type: ignore[arg-type]
            clip, changed = item["clip"], item["changed"]
            assert changed[0].all()
            assert torch.equal(changed[1:], (clip[1:] != clip[:-1]).any(dim=1))
            assert changed[1:].any(dim=(1, 2)).all()  # something moves in every frame
            assert not item["noisy"].any()


def test_only_the_shape_and_what_it_uncovers_changes() -> None:
    item = GeneratedClips(64, noise=0)[1]  # a square: its box is its shape
    for t in range(1, 8):
        rows, columns = item["changed"][t].nonzero(as_tuple=True)
        # Two fifths of 64 and two pixels further.
        assert rows.max() - rows.min() < 32
        assert columns.max() - columns.min() < 32
    shares = [GeneratedClips(64)[i]["changed"][1:].float().mean().item() for i in range(64)]
    assert 0.02 < np.mean(shares) < 0.12


def test_noise_is_told_apart() -> None:
    clean, noisy = GeneratedClips(4, noise=0)[2], GeneratedClips(4, noise=2.0)[2]
    assert torch.equal(clean["changed"], noisy["changed"])
    assert not (noisy["noisy"] & noisy["changed"]).any()
    differs = (noisy["clip"][1:] != noisy["clip"][:-1]).any(dim=1)
    assert torch.equal(noisy["noisy"][1:], differs & ~noisy["changed"][1:])
    error = noisy["clip"].float() - clean["clip"].float()
    assert abs(error.mean()) < 0.1
    assert 1.9 < error.std() < 2.2  # rounding adds 1/12 to the variance


def test_shake_moves_the_whole_picture() -> None:
    clip = GeneratedClips(1, noise=0, shake=2)[0]["clip"].int()
    inner = clip[:, :, 4:-4, 4:-4]
    for t in range(1, len(clip)):
        # Some shift of the frame before explains all but the shape.
        best = max(
            (torch.roll(clip[t - 1], (dy, dx), (1, 2))[:, 4:-4, 4:-4] == inner[t]).float().mean().item()
            for dy in range(-4, 5)
            for dx in range(-4, 5)
        )
        assert best > 0.75


def test_flicker_scales_the_whole_picture() -> None:
    clip = GeneratedClips(1, noise=0, flicker=0.1)[0]["clip"].float()
    brightness = clip.mean(dim=(1, 2, 3))
    assert brightness.std() / brightness.mean() > 0.03
    still = GeneratedClips(1, noise=0)[0]["clip"].float().mean(dim=(1, 2, 3))
    assert still.std() / still.mean() < 0.02


def test_classes_take_turns_and_can_be_fewer() -> None:
    clips = GeneratedClips(9, classes=3)
    assert [clips[i]["label"] for i in range(9)] == [0, 1, 2] * 3
    for options in ({"classes": 1}, {"classes": 9}, {"noise": -1.0}, {"size": (10, 64)}, {"length": 0}):
        with pytest.raises(ValueError, match="expected"):
            GeneratedClips(4, **options)  # type: ignore[arg-type]
    with pytest.raises(IndexError, match="expected 0 to 8"):
        clips[9]


def test_written_clips_come_back_as_they_were(tmp_path: Path) -> None:
    train, test = GeneratedClips(8, seed=0), GeneratedClips(8, seed=1)
    write_clips(train, tmp_path, "train")
    write_clips(test, tmp_path, "test")
    clips = ClipList.open(tmp_path)
    assert (len(clips.split("train")), len(clips.split("test"))) == (8, 8)
    assert clips.classes == tuple(sorted(train.classes))
    cache = FrameCache(tmp_path / "cache")
    data = ClipDataset(clips.split("test"), train.classes, size=(64, 64), length=8, train=False, cache=cache)
    for index in range(8):
        assert torch.equal(data[index]["clip"], test[index]["clip"])
        assert data[index]["label"] == test[index]["label"]
    with pytest.raises(FileExistsError):
        write_clips(test, tmp_path, "test")


def test_write_video(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 21, 35, 3), dtype=np.uint8)
    write_video(tmp_path / "a.mkv", frames, rate=29.97)
    np.testing.assert_array_equal(read_frames(tmp_path / "a.mkv"), frames)
    for name, bad in [("a.avi", frames), ("b.mkv", frames[0]), ("b.mkv", frames.astype(float))]:
        with pytest.raises(ValueError, match=r"expected a \.mkv file"):
            write_video(tmp_path / name, bad)


def test_digit_glyphs() -> None:
    glyphs, labels = digit_glyphs(200, seed=0)
    assert glyphs.shape == (200, 8, 8)
    assert glyphs.dtype == np.float32
    assert glyphs.min() == 0
    assert glyphs.max() == 1
    assert np.bincount(labels).tolist() == [20] * 10
    np.testing.assert_array_equal(digit_glyphs(50, seed=0)[0], glyphs[:50])
    assert not np.array_equal(digit_glyphs(200, seed=1)[0], glyphs)
    assert digit_glyphs(0)[0].shape == (0, 8, 8)
    # The nearest mean of other drawings tells most digits apart, and no two drawings are the same.
    means = np.stack([glyphs[:100][labels[:100] == digit].mean(0) for digit in range(10)])
    nearest = ((glyphs[100:, None] - means) ** 2).sum((2, 3)).argmin(1)
    assert 0.7 < (nearest == labels[100:]).mean() <= 1
    assert len(np.unique(glyphs.reshape(200, -1), axis=0)) == 200


def test_drift_clips_hold_their_description() -> None:
    glyphs, labels = digit_glyphs(30)
    clips, of_clip = drift_clips(60, glyphs, labels, seed=1, noise=0)
    assert clips.shape == (60, 6, 1, 12, 12)
    assert clips.dtype == torch.float32
    assert torch.equal(of_clip, torch.from_numpy(np.tile(labels, 2)))
    moves = set()
    for clip, glyph in zip(clips.numpy()[:, :, 0], np.tile(glyphs, (2, 1, 1)), strict=True):
        # It moves in frames 2 and 4 only.
        np.testing.assert_array_equal(clip[[0, 2, 4]], clip[[1, 3, 5]])
        places = []
        for frame in clip[::2]:
            # Where the glyph is full, the frame is too, and nowhere is the frame less than the glyph.
            (fits,) = [
                [(y, x) for y in range(5) for x in range(5) if (frame[y : y + 8, x : x + 8] >= glyph - 1e-7).all()]
            ]
            assert fits
            places.append(fits)
        if all(len(fits) == 1 for fits in places):
            (first,), (second,), (third,) = places
            step = np.subtract(second, first)
            assert np.abs(step).max() <= 1
            expected = np.clip(np.add(second, step), 0, 4)
            assert tuple(expected) == third or 0 in second or 4 in second
            moves.add(tuple(step.tolist()))
        rest = np.ones((12, 12), bool)
        for fits in places:
            for y, x in fits:
                rest[y : y + 8, x : x + 8] = False
        # The ground stands still and is at most 0.3.
        assert (clip[:, rest] == clip[:1, rest]).all()
        assert clip[:, rest].max(initial=0) <= 0.3
    assert len(moves) >= 6


def test_drift_clip_noise() -> None:
    glyphs, labels = digit_glyphs(20)
    clean, _ = drift_clips(20, glyphs, labels, length=24, noise=0)
    again, _ = drift_clips(20, glyphs, labels, length=24, noise=0)
    assert torch.equal(clean, again)
    noisy, _ = drift_clips(20, glyphs, labels, length=2, noise=0.02)
    still = noisy[:, 1] - noisy[:, 0]
    assert still.std().item() == pytest.approx(0.02 * 2**0.5, rel=0.05)
    assert not torch.equal(noisy, drift_clips(20, glyphs, labels, length=2, seed=1)[0])


def test_drift_clips_refuse_what_does_not_fit() -> None:
    glyphs, labels = digit_glyphs(5)
    for bad_glyphs, bad_labels in [(glyphs, labels[:3]), (glyphs[0], labels), (glyphs[:0], labels[:0])]:
        with pytest.raises(ValueError, match="expected glyphs"):
            drift_clips(4, bad_glyphs, bad_labels)
    with pytest.raises(ValueError, match="no larger than 7"):
        drift_clips(4, glyphs, labels, canvas=7)
