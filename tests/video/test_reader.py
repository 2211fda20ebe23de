import re
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from sparsetime.video import VideoError, iter_frames, read_frames, salvage_frames, write_video
from sparsetime.video.reader import image_files

from .conftest import encode, gradient_frames, save_picture

FORMATS = [("a.avi", "mpeg4"), ("b.mp4", "libx264"), ("c.mkv", "libx264"), ("d.mov", "mpeg4"), ("e.webm", "libvpx")]


@pytest.mark.parametrize(("name", "codec"), FORMATS)
def test_all_frames_in_order(tmp_path: Path, name: str, codec: str) -> None:
    # 37 frames: libx264 holds several back (B frames), which must come out at the end.
    # Six bars show the frame's number in binary: a frame lost, doubled or out of order is seen through any codec.
    bars = np.array([[number >> bit & 1 for bit in range(6)] for number in range(37)])
    frames = np.zeros((37, 48, 96, 3), np.uint8)
    frames[:] = 255 * np.repeat(bars, 16, axis=1)[:, None, :, None]
    read = read_frames(encode(tmp_path / name, frames, codec))
    assert read.shape == frames.shape
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read[:, 24, 8::16, 1] > 127, bars)


@pytest.mark.parametrize(("height", "width"), [(21, 35), (1, 1), (17, 16), (16, 17)])
def test_odd_sizes(tmp_path: Path, height: int, width: int) -> None:
    frames = gradient_frames(3, height, width)
    write_video(tmp_path / "odd.mkv", frames)
    np.testing.assert_array_equal(read_frames(tmp_path / "odd.mkv"), frames)


def test_odd_size_with_halved_colour(tmp_path: Path) -> None:
    frames = gradient_frames(4, 21, 35)
    path = encode(tmp_path / "odd.avi", frames, "mpeg4")
    assert read_frames(path).shape == (4, 21, 35, 3)
    assert np.abs(read_frames(path).astype(int) - frames).mean() < 8
    assert read_frames(path, size=(13, 7)).shape == (4, 13, 7, 3)


def rotate(path: Path, clockwise: int) -> Path:
    """Write a turn into the display matrix of an MP4 file (ISO/IEC 14496-12, 8.3.2), as telephones do."""
    matrix = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[clockwise]
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 44
    for offset, value in zip((0, 4, 12, 16), matrix, strict=True):
        data[place + offset : place + offset + 4] = (value << 16).to_bytes(4, "big", signed=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("clockwise", [90, 180, 270])
def test_rotation_is_applied(tmp_path: Path, clockwise: int) -> None:
    path = encode(tmp_path / "turned.mp4", gradient_frames(3, 32, 64), "libx264")
    upright = read_frames(path)
    turned = np.rot90(upright, -clockwise // 90, axes=(1, 2))
    rotate(path, clockwise)
    np.testing.assert_array_equal(read_frames(path), turned)
    # The size asked for is that of the turned picture.
    small = read_frames(path, size=(turned.shape[1] // 2, turned.shape[2] // 2)).astype(int)
    assert np.abs(small - turned.reshape(3, turned.shape[1] // 2, 2, turned.shape[2] // 2, 2, 3).mean((2, 4))).max() < 8


def test_slices_are_those_of_the_whole(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", gradient_frames(20), "libx264")
    whole = read_frames(path)
    for start, stop, stride in [(0, None, 3), (5, 12, 1), (7, 8, 1), (18, 99, 1), (3, 17, 5)]:
        part = read_frames(path, start=start, stop=stop, stride=stride)
        np.testing.assert_array_equal(part, whole[start:stop:stride])
    with pytest.raises(VideoError, match=r"a\.mp4: no frame lies in 20:"):
        read_frames(path, start=20)


def test_resizing_averages_what_it_drops(tmp_path: Path) -> None:
    # One-pixel checks: picking pixels would give black or white, averaging gives grey.
    board = np.indices((64, 64)).sum(0) % 2 * 255
    frames = np.repeat(board.astype(np.uint8)[None, :, :, None], 3, axis=-1)
    write_video(tmp_path / "checks.mkv", frames)
    small = read_frames(tmp_path / "checks.mkv", size=(16, 16)).astype(int)
    assert np.abs(small - 127).max() < 12


def test_the_whole_picture_is_stretched(tmp_path: Path) -> None:
    write_video(tmp_path / "wide.mkv", gradient_frames(2, 32, 64))
    small = read_frames(tmp_path / "wide.mkv", size=(32, 32))
    assert small[0, 0, 0, 0] < 50  # red is 40 at the left border and 240 at the right one
    assert small[0, 0, -1, 0] > 230
    assert read_frames(tmp_path / "wide.mkv", size=(21, 17)).shape == (2, 21, 17, 3)


def test_colours_follow_the_standard_that_the_file_names(tmp_path: Path) -> None:
    # Y'CbCr (120, 90, 180), limited range, by the matrices of BT.709 and BT.601 (Kr, Kb = .2126, .0722 and .299, .114).
    for colorspace, expected in [(1, (214, 101, 41)), (5, (204, 94, 44))]:
        path = tmp_path / f"{colorspace}.mp4"
        frame = av.VideoFrame(32, 32, "yuv420p")
        for plane, value in zip(frame.planes, (120, 90, 180), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        frame.colorspace = colorspace
        frame.color_range = 1
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"crf": "0"})
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
            stream.codec_context.colorspace = colorspace
            stream.codec_context.color_range = 1
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
        assert np.abs(read_frames(path)[0].astype(int) - expected).max() <= 3


@pytest.mark.parametrize(
    ("name", "codec"), [("a.avi", "mpeg4"), ("b.mp4", "libx264"), ("c.mkv", "libx264"), ("d.avi", "mjpeg")]
)
@pytest.mark.parametrize("share", [0.97, 0.6])
def test_cut_off_files_are_named(tmp_path: Path, name: str, codec: str, share: float) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (40, 48, 64, 3), dtype=np.uint8)
    path = encode(tmp_path / name, frames, codec, "yuvj420p" if codec == "mjpeg" else "yuv420p")
    whole = read_frames(path)
    assert len(whole) == 40
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(VideoError, match=rf"{name}: .*cut off: \d+ bytes are missing") as error:
        read_frames(path)
    assert "\n" not in str(error.value)
    if name == "b.mp4":
        return  # its index was at the end: nothing decodes
    good, damage = salvage_frames(path)
    assert damage is not None
    assert f"{len(good)} frames decode" in damage
    assert 10 < len(good) <= 40
    np.testing.assert_array_equal(good, whole[: len(good)])


def test_an_undamaged_file_is_salvaged_whole(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.avi", gradient_frames(6), "mpeg4")
    frames, damage = salvage_frames(path)
    assert damage is None
    np.testing.assert_array_equal(frames, read_frames(path))


def test_a_damaged_frame_in_the_middle_is_named_and_left_out(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.avi", gradient_frames(10), "mjpeg", "yuvj420p")
    whole = read_frames(path)
    data = bytearray(path.read_bytes())
    places = [found.start() for found in re.finditer(b"\xff\xd8\xff", data)]
    assert len(places) == 10
    data[places[4] + 2 : places[5] - 16] = b"\x55" * (places[5] - places[4] - 18)
    path.write_bytes(data)
    with pytest.raises(VideoError, match=r"a\.avi: 1 damaged frames, the first is 4"):
        read_frames(path)
    good, _ = salvage_frames(path)
    np.testing.assert_array_equal(good, np.delete(whole, 4, axis=0))
    # The other frames keep their numbers, and a slice before the damage is whole.
    np.testing.assert_array_equal(salvage_frames(path, start=5)[0], whole[5:])
    np.testing.assert_array_equal(read_frames(path, stop=4), whole[:4])


def test_damage_is_found_where_frames_are_reordered(tmp_path: Path) -> None:
    """A frame comes packets after its own: the damaged one is left out, not one that happens to come with the mark."""
    noise = np.random.default_rng(0).integers(0, 255, (10, 48, 64, 3), dtype=np.uint8)
    path = encode(tmp_path / "a.ts", noise, "mpeg2video", options={"bf": "2"})
    data, whole = path.read_bytes(), read_frames(path)
    with av.open(str(path)) as container:
        times = [packet.pts for packet in container.demux(video=0) if packet.pts is not None]
    assert times != sorted(times)
    tried = set()
    for start in range(0, len(data), 188):  # without one packet of the transport stream
        path.write_bytes(data[:start] + data[start + 188 :])
        with av.open(str(path)) as container:
            decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        if len(decoded) != len(whole):
            continue
        wrong = [k for k, (one, other) in enumerate(zip(decoded, whole, strict=True)) if (one != other).any()]
        if len(wrong) != 1:  # damage of a frame that others build on goes on in these, unmarked
            continue
        tried.update(wrong)
        good, damage = salvage_frames(path)
        assert damage is not None
        kept = [k for k in range(len(whole)) if any((picture == whole[k]).all() for picture in good)]
        assert len(kept) == len(good) >= len(whole) - 2
    assert len(tried) > 4


def test_bytes_behind_the_end_are_no_damage(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.avi", gradient_frames(5), "mpeg4")
    with path.open("ab") as file:
        file.write(b"\0" * 1000)
    assert len(read_frames(path)) == 5


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "there is no such file"),
        (b"", "the file is empty"),
        (b"Dear reader,\n" * 50, "no video"),
        (b"RIFF", "the file is cut off"),
    ],
)
def test_what_is_no_video(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    path = tmp_path / "broken.avi"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VideoError, match=rf"broken\.avi: {complaint}"):
        read_frames(path)
    with pytest.raises(VideoError, match=complaint):
        salvage_frames(path)


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match="holds no video stream"):
        read_frames(tmp_path / "sound.mkv")


def test_names_are_not_read_as_addresses_or_patterns(tmp_path: Path) -> None:
    for name in ("concat:a.mkv", "a%02d.mkv", "ä b.mkv"):
        write_video(tmp_path / name, gradient_frames(2))
        assert len(read_frames(tmp_path / name)) == 2


def test_folder_of_pictures_in_natural_order(tmp_path: Path) -> None:
    frames = gradient_frames(12, 21, 35)
    for number, picture in enumerate(frames):
        save_picture(tmp_path / f"frame{number}.png", picture)
    (tmp_path / "notes.txt").write_text("not a picture")
    assert [file.name for file in image_files(tmp_path)][9:11] == ["frame9.png", "frame10.png"]
    np.testing.assert_array_equal(read_frames(tmp_path), frames)
    np.testing.assert_array_equal(read_frames(tmp_path, start=3, stop=11, stride=4), frames[3:11:4])


def test_folder_of_jpeg_pictures(tmp_path: Path) -> None:
    frames = gradient_frames(3)
    for number, picture in enumerate(frames):
        save_picture(tmp_path / f"{number}.JPG", picture)
    assert np.abs(read_frames(tmp_path).astype(int) - frames).mean() < 6


def test_a_picture_taken_sideways_is_turned(tmp_path: Path) -> None:
    path = tmp_path / "0.jpg"
    save_picture(path, gradient_frames(1, 32, 64)[0])
    upright = read_frames(tmp_path)
    # Exif with one entry: orientation (0x0112) 6, "the 0th row is the right-hand side".
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:])
    np.testing.assert_array_equal(read_frames(tmp_path), np.rot90(upright, -1, axes=(1, 2)))


def test_folders_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="the folder holds no picture"):
        read_frames(tmp_path)
    save_picture(tmp_path / "0.png", gradient_frames(1)[0])
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(VideoError, match=r"1\.png: no png picture: Invalid data"):
        read_frames(tmp_path)
    assert len(salvage_frames(tmp_path)[0]) == 1
    save_picture(tmp_path / "1.png", gradient_frames(1, 20, 20)[0])
    with pytest.raises(VideoError, match="the frame size changes midway"):
        read_frames(tmp_path)
    assert read_frames(tmp_path, size=(16, 16)).shape == (2, 16, 16, 3)


def test_a_jpeg_picture_that_is_cut_off_is_named_wherever_it_ends(tmp_path: Path) -> None:
    """FFmpeg fills in what is missing with grey, and gives the picture as a whole one."""
    path = tmp_path / "0.jpg"
    save_picture(path, np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8))
    assert read_frames(tmp_path).shape == (1, 24, 40, 3)
    data = path.read_bytes()
    for end in range(len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(VideoError, match=r"0\.jpg: "):
            read_frames(tmp_path)


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "0.jpg"
    save_picture(path, gradient_frames(1)[0])
    data = path.read_bytes()
    thumbnail = b"\xff\xff\xfe" + (2 + len(data)).to_bytes(2, "big") + data  # in a comment, behind a fill byte
    path.write_bytes(data[:2] + thumbnail + data[2:] + b"behind the end")
    assert read_frames(tmp_path).shape == (1, 48, 64, 3)
    path.write_bytes(data[:2] + thumbnail + data[2:-2])
    with pytest.raises(VideoError, match=r"0\.jpg: the picture is cut off: its end is missing"):
        read_frames(tmp_path)


def test_a_png_picture_with_a_wrong_checksum_is_named(tmp_path: Path) -> None:
    save_picture(tmp_path / "0.png", gradient_frames(1)[0])
    data = bytearray((tmp_path / "0.png").read_bytes())
    data[data.index(b"IEND") - 5] ^= 1  # the last byte of the checksum before
    (tmp_path / "0.png").write_bytes(data)
    with pytest.raises(VideoError, match=r"0\.png: no png picture: Invalid data"):
        read_frames(tmp_path)


def test_arguments_are_checked(tmp_path: Path) -> None:
    for arguments in ({"start": -1}, {"stride": 0}, {"start": 5, "stop": 3}, {"size": (0, 4)}):
        with pytest.raises(ValueError, match="expected"):
            next(iter_frames(tmp_path / "a.avi", **arguments))  # type: ignore[arg-type]


def test_the_package_loads_without_av() -> None:
    code = "import sys; sys.modules['av'] = None; import sparsetime.video as v; next(v.iter_frames('a.avi'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: reading video needs PyAV: pip install 'sparsetime[video]'" in done.stderr


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "frames", "height", "width"),
    [
        # The header of the first says 48 frames.
        ("jhmdb/brush_hair/Aussie_Brunette_Brushing_Long_Hair_brush_hair_u_nm_np1_ba_med_3.avi", 40, 240, 320),
        ("ut_interaction/uti_set1_seq01_000_punch.avi", 108, 296, 400),
        ("ucf101/v_ApplyEyeMakeup_g01_c01.avi", 164, 240, 320),
        ("static_videos/corridor_shop.avi", 157, 144, 192),
        ("static_videos/escalator.avi", 198, 130, 160),
        ("image_sequences/highway", 200, 240, 320),
    ],
)
def test_real_videos(shared_data: Path, name: str, frames: int, height: int, width: int) -> None:
    read = read_frames(shared_data / name)
    assert read.shape == (frames, height, width, 3)
    assert 20 < read.mean() < 235
