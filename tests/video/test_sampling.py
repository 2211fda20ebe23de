import numpy as np
import pytest

from sparsetime.video import eval_windows, train_window


def test_middle_window_by_hand() -> None:
    assert train_window(10, 4).tolist() == [3, 4, 5, 6]
    assert train_window(10, 4, 2).tolist() == [1, 3, 5, 7]
    assert train_window(4, 4).tolist() == [0, 1, 2, 3]


def test_short_videos_are_played_forth_and_back() -> None:
    assert train_window(3, 8).tolist() == [0, 1, 2, 1, 0, 1, 2, 1]
    assert train_window(2, 5).tolist() == [0, 1, 0, 1, 0]
    # Frames 0, 3, 6 of seven; then back.
    assert train_window(7, 6, 3).tolist() == [0, 3, 6, 3, 0, 3]
    # Never two equal frames in a row: a clip does not stand still because it was short.
    for frames in range(2, 12):
        for stride in range(1, frames):
            window = train_window(frames, 9, stride, np.random.default_rng(0))
            assert (np.diff(window) != 0).all()
            assert window.min() >= 0
            assert window.max() < frames


def test_random_windows_cover_the_video_evenly() -> None:
    rng = np.random.default_rng(0)
    starts = [int(train_window(20, 5, 2, rng)[0]) for _ in range(1200)]
    counts = np.bincount(starts, minlength=12)  # 20 - (4 * 2 + 1) = 11 is the last start
    assert len(counts) == 12
    assert counts.min() > 60


def test_evaluation_windows_by_hand() -> None:
    def lists(*arguments: int, **options: int) -> list[list[int]]:
        return [window.tolist() for window in eval_windows(*arguments, **options)]

    assert lists(8, 4) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert lists(7, 4) == [[0, 1, 2, 3], [4, 5, 6]]
    assert lists(6, 4) == [[0, 1, 2, 3], [4, 5]]
    assert lists(5, 4) == [[0, 1, 2, 3], [3, 4]]  # one frame is no clip: it takes its neighbour along
    assert lists(3, 4) == [[0, 1, 2]]
    assert lists(8, 4, overlap=2) == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]]
    assert lists(10, 3, stride=2) == [[0, 2, 4], [6, 8]]
    assert lists(5) == [[0, 1, 2, 3, 4]]
    assert lists(5, stride=2) == [[0, 2, 4]]


def test_evaluation_windows_cover_every_frame() -> None:
    for frames in range(2, 40):
        for length in range(2, 9):
            for overlap in range(length):
                windows = eval_windows(frames, length, overlap=overlap)
                assert sorted(set(np.concatenate(windows).tolist())) == list(range(frames))
                assert all(2 <= len(window) <= length for window in windows)
                assert all(len(window) == length for window in windows[:-1])


def test_what_makes_no_clip() -> None:
    for function in (train_window, eval_windows):
        with pytest.raises(ValueError, match="at least 2 frames"):
            function(1, 4)
        with pytest.raises(ValueError, match="two at stride 4"):
            function(4, 4, stride=4)
        with pytest.raises(ValueError, match="length >= 2"):
            function(10, 1)
        with pytest.raises(ValueError, match="stride >= 1"):
            function(10, 4, stride=0)
    with pytest.raises(ValueError, match="overlap"):
        eval_windows(10, 4, overlap=4)
