"""Frames with change maps: what a run hands to the report."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from sparsetime.frames import change_maps, load_frames, save_frames


def test_change_maps_by_hand() -> None:
    # T = 3, C = 2, one row of two positions.
    codes = np.array(
        [
            [[[0, 1]], [[0, 2]]],  # flush: nothing at the first position, both channels at the second
            [[[0, 1]], [[3, 2]]],  # one of two channels changes at the first position
            [[[1, 0]], [[4, 2]]],  # both at the first, one at the second
        ]
    )
    expected = [[[0.0, 1.0]], [[0.5, 0.0]], [[1.0, 0.5]]]
    maps = change_maps(codes)
    assert maps.dtype == np.float16
    assert maps.tolist() == expected


def test_change_maps_take_values_too() -> None:
    values = np.array([0.25, 0.25, 0.5], np.float32).reshape(3, 1, 1, 1)
    assert change_maps(values).ravel().tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("shape", [(3, 4, 4), (0, 2, 4, 4), (2, 0, 4, 4), (1, 2, 3, 4, 4)])
def test_change_maps_refuse_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(T, C, h, w\)"):
        change_maps(np.zeros(shape))


def test_change_maps_refuse_nan() -> None:
    values = np.zeros((2, 1, 2, 2))
    values[1, 0, 0, 1] = np.nan
    with pytest.raises(ValueError, match="finite"):
        change_maps(values)


def test_saved_frames_load_again(tmp_path: Path) -> None:
    frames = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    maps = {"features.0": np.full((2, 2, 3), 0.25), "input": np.zeros((2, 4, 5), np.float16)}
    save_frames(tmp_path / "frames-test.npz", frames, maps)
    loaded = load_frames(tmp_path / "frames-test.npz")
    assert np.array_equal(loaded.frames, frames)
    assert list(loaded.maps) == ["features.0", "input"]
    assert loaded.maps["features.0"].dtype == np.float16
    assert loaded.maps["features.0"].tolist() == maps["features.0"].tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["frames-test.npz"]


@pytest.mark.parametrize(
    ("frames", "map_", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), np.zeros((2, 2, 2)), "frames are uint8"),
        (
            np.zeros((2, 3, 4, 4), np.uint8),
            np.zeros((2, 2, 2)),
            r"frames are uint8 \(T, H, W, 3\), got uint8 \(2, 3, 4, 4\)",
        ),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros((3, 2, 2)), "layer 'a' .* with T = 2"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 2, 2), np.int64), "floating point"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.full((2, 2, 2), 1.5), r"shares in \[0, 1\]"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.full((2, 2, 2), np.nan), r"shares in \[0, 1\]"),
    ],
)
def test_wrong_arrays_are_refused_and_leave_the_old_file(
    tmp_path: Path, frames: np.ndarray, map_: np.ndarray, message: str
) -> None:
    file = tmp_path / "frames-test.npz"
    save_frames(file, np.zeros((1, 2, 2, 3), np.uint8), {})
    before = file.read_bytes()
    with pytest.raises(ValueError, match=message):
        save_frames(file, frames, {"a": map_})
    assert file.read_bytes() == before


def test_files_that_are_no_frames(tmp_path: Path) -> None:
    file = tmp_path / "frames-test.npz"
    with pytest.raises(ValueError, match="not readable"):
        load_frames(file)
    file.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="not readable"):
        load_frames(file)
    with file.open("wb") as single:
        np.save(single, np.zeros(3))
    with pytest.raises(ValueError, match="single array"):
        load_frames(file)
    np.savez(file, other=np.zeros(3))
    with pytest.raises(ValueError, match="no array 'frames'"):
        load_frames(file)
    np.savez(file, frames=np.zeros((2, 2), np.uint8))
    with pytest.raises(ValueError, match="frames are uint8"):
        load_frames(file)


def test_pickled_arrays_are_not_loaded(tmp_path: Path) -> None:
    file = tmp_path / "frames-test.npz"
    np.savez(file, frames=np.array([{"code": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="not readable"):
        load_frames(file)


def test_a_truncated_archive_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "frames-test.npz"
    save_frames(file, np.zeros((4, 32, 32, 3), np.uint8), {})
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        start = archive.infolist()[0].header_offset + 60
    content[start : start + 8] = b"\xff" * 8
    file.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="not readable"):
        load_frames(file)
    file.write_bytes(bytes(content[: len(content) // 2]))
    with pytest.raises(ValueError, match="not readable"):
        load_frames(file)
