from pathlib import Path

import pytest

from sparsetime.video.truncation import missing_bytes


def box(kind: bytes, size: int, *, wide: bool = False) -> bytes:
    head = (1).to_bytes(4, "big") + kind + size.to_bytes(8, "big") if wide else size.to_bytes(4, "big") + kind
    return head.ljust(size, b"\0") if size else head


EBML = b"\x1a\x45\xdf\xa3\x84abcd"
SEGMENT = b"\x18\x53\x80\x67"

WHOLE = {
    "avi": b"RIFF" + (20).to_bytes(4, "little") + b"AVI " + bytes(16),
    "mp4": box(b"ftyp", 16) + box(b"moov", 24) + box(b"mdat", 40),
    "mp4 with a 64-bit size": box(b"ftyp", 16) + box(b"mdat", 40, wide=True),
    "mkv": EBML + SEGMENT + b"\x8a" + bytes(10),
    "mkv with a long size": EBML + SEGMENT + b"\x01" + (10).to_bytes(7, "big") + bytes(10),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_counts_the_bytes_that_are_missing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    for cut in (0, 1, 7):
        path.write_bytes(WHOLE[kind][: len(WHOLE[kind]) - cut])
        assert missing_bytes(path) == cut


@pytest.mark.parametrize("kind", WHOLE)
def test_bytes_behind_the_end_do_not_matter(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(WHOLE[kind] + b"\x80\xff\0\1" * 5)
    assert missing_bytes(path) == 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"RI",
        b"\xff\xd8\xff\xe0 a picture",
        box(b"ftyp", 16) + box(b"mdat", 0) + bytes(30),  # size 0: up to the end
        EBML + SEGMENT + b"\x01" + b"\xff" * 7 + bytes(10),  # all ones: unknown, as a live recording has it
        EBML + SEGMENT + b"\xff" + bytes(10),
    ],
)
def test_says_nothing_where_nothing_is_promised(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert missing_bytes(path) == 0


def test_a_matroska_file_that_ends_in_its_header(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(EBML[:7])
    assert missing_bytes(path) > 0
