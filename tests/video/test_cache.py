import logging
import os
from pathlib import Path

import numpy as np
import pytest

from sparsetime.video import FrameCache, VideoError, read_frames, write_video

from .conftest import gradient_frames, save_picture

SIZE = (16, 16)
ENTRY = 10 * 16 * 16 * 3


def write_videos(folder: Path, count: int = 3) -> list[Path]:
    paths = [folder / f"{number}.mkv" for number in range(count)]
    for number, path in enumerate(paths):
        write_video(path, gradient_frames(10, 24, 32, seed=number))
    return paths


def test_gives_what_the_reader_gives_and_decodes_once(tmp_path: Path) -> None:
    (path,) = write_videos(tmp_path, 1)
    expected = read_frames(path, size=SIZE)
    cache = FrameCache(tmp_path / "cache")
    first = cache.frames(path, SIZE)
    np.testing.assert_array_equal(first, expected)
    assert not first.flags.writeable
    # The same name, size and time: only a second decoding could tell.
    state = path.stat()
    path.write_bytes(b"x" * state.st_size)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    np.testing.assert_array_equal(cache.frames(path, SIZE), expected)


def test_a_changed_file_or_another_size_is_decoded_anew(tmp_path: Path) -> None:
    (path,) = write_videos(tmp_path, 1)
    cache = FrameCache(tmp_path / "cache")
    cache.frames(path, SIZE)
    assert cache.frames(path, (8, 12)).shape == (10, 8, 12, 3)
    write_video(path, gradient_frames(4, 24, 32))
    assert len(cache.frames(path, SIZE)) == 4
    path.unlink()
    with pytest.raises(VideoError, match="there is no such file"):
        cache.frames(path, SIZE)


def test_pictures_in_a_folder_are_watched_too(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    picture = gradient_frames(1, 24, 32)[0]
    save_picture(folder / "0.png", picture)
    cache = FrameCache(tmp_path / "cache")
    assert len(cache.frames(folder, SIZE)) == 1
    save_picture(folder / "1.png", picture)
    assert len(cache.frames(folder, SIZE)) == 2


def test_the_bound_holds_and_the_oldest_goes_first(tmp_path: Path) -> None:
    paths = write_videos(tmp_path)
    cache = FrameCache(tmp_path / "cache", max_bytes=2 * ENTRY + 4400)
    cache.frames(paths[0], SIZE)
    held = cache.frames(paths[1], SIZE)
    cache.frames(paths[0], SIZE)  # used again: now 1 is the oldest
    cache.frames(paths[2], SIZE)
    assert 2 * ENTRY <= cache.size_bytes() <= cache.max_bytes
    # What was evicted stays usable for whom it was given to.
    np.testing.assert_array_equal(held, read_frames(paths[1], size=SIZE))
    state = paths[0].stat()
    paths[0].write_bytes(b"x" * state.st_size)
    os.utime(paths[0], ns=(state.st_atime_ns, state.st_mtime_ns))
    assert len(cache.frames(paths[0], SIZE)) == 10  # still there
    cache.clear()
    assert cache.size_bytes() == 0


def test_a_video_larger_than_the_bound_is_given_but_not_kept(tmp_path: Path) -> None:
    (path,) = write_videos(tmp_path, 1)
    cache = FrameCache(tmp_path / "cache", max_bytes=ENTRY // 2)
    assert len(cache.frames(path, SIZE)) == 10
    assert cache.size_bytes() == 0


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00v\x00{'descr': 'garbage'", None, "shape"])
def test_a_torn_entry_is_written_anew(tmp_path: Path, damage: bytes | str | None) -> None:
    (path,) = write_videos(tmp_path, 1)
    cache = FrameCache(tmp_path / "cache")
    expected = np.array(cache.frames(path, SIZE))
    (entry,) = (tmp_path / "cache").glob("*.npy")
    whole = entry.read_bytes()
    if damage == "shape":
        np.save(entry, np.zeros((2, 3), np.uint8))
    else:
        entry.write_bytes(whole[:-100] if damage is None else damage)  # type: ignore[arg-type]
    np.testing.assert_array_equal(cache.frames(path, SIZE), expected)
    assert entry.read_bytes() == whole


def test_an_unfinished_entry_of_a_killed_process_does_no_harm(tmp_path: Path) -> None:
    (path,) = write_videos(tmp_path, 1)
    cache = FrameCache(tmp_path / "cache")
    cache.folder.mkdir()
    (cache.folder / "unfinished").write_bytes(b"half of an entry")
    assert len(cache.frames(path, SIZE)) == 10
    assert sorted(file.suffix for file in cache.folder.iterdir()) == ["", ".npy"]  # the lock and the entry


def test_a_folder_that_cannot_be_written_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = write_videos(tmp_path, 2)
    (tmp_path / "file").write_text("no folder")
    cache = FrameCache(tmp_path / "file")
    with caplog.at_level(logging.WARNING, "sparsetime.video"):
        for path in paths:
            assert len(cache.frames(path, SIZE)) == 10
    assert len(caplog.records) == 1
    assert str(tmp_path / "file") in caplog.text


def test_broken_videos_leave_no_entry(tmp_path: Path) -> None:
    (tmp_path / "a.avi").write_bytes(b"no video at all")
    cache = FrameCache(tmp_path / "cache")
    with pytest.raises(VideoError):
        cache.frames(tmp_path / "a.avi", SIZE)
    assert cache.size_bytes() == 0


def test_the_usual_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert FrameCache().folder == tmp_path / "sparsetime" / "frames"
    assert not FrameCache().folder.exists()
