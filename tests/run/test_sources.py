"""Where frames come from, and what is said about those that do not come."""

from pathlib import Path

import numpy as np
import pytest

from sparsetime.run.sources import _LOG, Source, SourceError, _Log, _ranges, _without_login
from sparsetime.video import read_frames

from .conftest import moving_square


def save_pictures(folder: Path, count: int) -> None:
    from sparsetime.report.image import png

    folder.mkdir()
    for number, frame in enumerate(moving_square(count)):
        (folder / f"{number}.png").write_bytes(png(frame))


def test_a_file_gives_what_read_frames_gives(square: Path) -> None:
    source = Source(str(square), (24, 32), show=True)
    shots = list(source)
    np.testing.assert_array_equal([s.picture for s in shots], read_frames(square, size=(24, 32)))
    np.testing.assert_array_equal([s.shown for s in shots], moving_square(10))
    np.testing.assert_allclose([s.time_s for s in shots], np.arange(10) / 20)
    assert (source.damage, source.live, source.rate, source.name) == ([], False, 20, str(square))


def test_frames_as_they_are_only_where_asked_for(square: Path) -> None:
    assert next(iter(Source(str(square), (24, 32)))).shown is None


def test_pictures_that_do_not_decode_are_named_and_passed(tmp_path: Path) -> None:
    save_pictures(tmp_path / "p", 12)
    (tmp_path / "p" / "3.png").write_bytes(b"nonsense")
    (tmp_path / "p" / "7.png").write_bytes(b"")
    whole = (tmp_path / "p" / "9.png").read_bytes()
    (tmp_path / "p" / "9.png").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "p" / "note.txt").write_text("no picture")
    source = Source(str(tmp_path / "p"), (48, 64))
    expected = np.delete(moving_square(12), [3, 7, 9], axis=0)
    shots = list(source)
    np.testing.assert_array_equal([s.picture for s in shots], expected)
    assert {s.time_s for s in shots} == {None}
    assert [text.split(":")[0] for text in source.damage] == ["3.png", "7.png", "9.png"]


def test_a_file_that_is_cut_off(square: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(square.read_bytes()[: square.stat().st_size * 6 // 10])
    source = Source(str(cut), (48, 64))
    frames = [shot.picture for shot in source]
    assert 3 <= len(frames) < 10
    np.testing.assert_array_equal(frames, moving_square(10)[: len(frames)])
    assert "the file is cut off" in source.damage[-1]


def test_damage_between_packets_is_named(square: Path, tmp_path: Path) -> None:
    data = bytearray(square.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(400)
    bad = tmp_path / "bad.mkv"
    bad.write_bytes(bytes(data))
    source = Source(str(bad), (48, 64))
    good = len(list(source))
    assert 0 < good < 10
    assert "damage at about frame" in source.damage[0]


def test_two_videos_at_a_time(square: Path, tmp_path: Path) -> None:
    """What is heard of one is not said of the other, and the log is left as it was."""
    import av.logging

    data = bytearray(square.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    bad = tmp_path / "bad.mkv"
    bad.write_bytes(bytes(data))
    level = av.logging.get_level()
    sources = [Source(str(path), (8, 8)) for path in (square, bad)]
    first, second = (iter(source) for source in sources)
    for _ in range(2):
        next(second), next(first)
    assert (len(list(second)) < 8, len(list(first))) == (True, 8)
    assert sources[0].damage == []
    assert sources[1].damage
    assert av.logging.get_level() == level


def test_a_camera_that_is_down_is_not_heard_as_damage_of_a_file() -> None:
    import av.logging

    with _LOG.listening(av.logging) as heard, pytest.raises(SourceError, match="Connection refused"):
        next(iter(Source("rtsp://127.0.0.1:9/x", (8, 8))))
    assert heard == []
    with _LOG.listening(av.logging) as heard:
        av.logging.log(av.logging.ERROR, "test", "after it")
    assert [text for _, _, text in heard] == ["after it"]


def test_a_camera_that_decodes_is_not_heard_either_and_one_that_waits_deafens_nobody(
    square: Path, tmp_path: Path
) -> None:
    import av.logging

    data = bytearray(square.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    (tmp_path / "bad.mkv").write_bytes(bytes(data))
    camera = Source("rtsp://host/x", (8, 8))
    camera._address, camera._options = str(tmp_path / "bad.mkv"), {}  # as if it came from there
    frames = iter(camera)
    with _LOG.listening(av.logging) as heard:
        next(frames)
    assert heard == []
    with _LOG.listening(av.logging) as heard:
        av.logging.log(av.logging.ERROR, "test", "of a file")
    assert [text for _, _, text in heard] == ["of a file"]
    with _LOG.listening(av.logging) as heard:
        list(frames)
    assert heard == []


def test_what_is_heard_while_two_decode_is_said_of_neither() -> None:
    import av.logging as log

    def say(text: str) -> None:
        log.log(log.ERROR, "test", text)

    level = log.get_level()
    ears = _Log()
    first, second, third = (ears.listening(log) for _ in range(3))
    heard = [first.__enter__()]
    say("of the first")
    heard.append(second.__enter__())
    say("of one of two")
    first.__exit__(None, None, None)  # not the last that came
    heard.append(third.__enter__())
    say("of the second or third")
    second.__exit__(None, None, None)
    third.__exit__(None, None, None)
    assert heard == [[], [], []]
    with ears.listening(log) as alone:
        say("of the only one")
    assert [text for _, _, text in alone] == ["of the only one"]
    assert log.get_level() == level


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ("absent.mp4", "absent.mp4: there is no such file or folder; expected .* rtsp://"),
        ("http://host/video", "no such file or folder"),
        ("rtsp://user:secret@127.0.0.1:9/live", "^rtsp://127.0.0.1:9/live: .*refused"),
        ("77", r"^camera 77 \(.*77\): "),
        ("empty", "the folder holds no picture"),
        ("text.mp4", "text.mp4: no video"),
        ("nothing.mp4", "nothing.mp4: the file is empty"),
    ],
)
def test_no_frame_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, video: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("text.mp4").write_text("no video")
    Path("nothing.mp4").touch()
    with pytest.raises(SourceError, match=message) as caught:
        list(Source(video, (8, 8)))
    assert "secret" not in str(caught.value)


def test_only_damaged_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nonsense")
    with pytest.raises(SourceError, match=r"no frame of it decodes.*a\.png"):
        list(Source(str(tmp_path), (8, 8)))


def test_a_file_whose_name_is_a_number_is_no_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_pictures(tmp_path / "0", 2)
    monkeypatch.chdir(tmp_path)
    assert len(list(Source("0", (8, 8)))) == 2


@pytest.mark.parametrize(
    ("numbers", "words"), [([], ""), ([4], "4"), ([0, 1], "0-1"), ([1, 3, 4, 5, 9], "1, 3-5, 9"), ([2, 4], "2, 4")]
)
def test_numbers_in_words(numbers: list[int], words: str) -> None:
    assert _ranges(numbers) == words


def test_login_is_left_out() -> None:
    assert _without_login("rtsp://a:b@c@host:554/x?y=1") == "rtsp://host:554/x?y=1"
    assert _without_login("rtsps://host/x") == "rtsps://host/x"
