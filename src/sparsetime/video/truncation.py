"""Has a video or a picture been cut off? Compare what its file promises with the bytes that are there.

Decoders do not tell: a file cut between two packets decodes without complaint, and frame counts in headers are wrong in
good files too (J-HMDB's say 48 where 40 frames were written). Sizes of the outermost parts are reliable, so those are
read: the RIFF chunk of AVI, the boxes of MP4/MOV (ISO/IEC 14496-12), the Segment of Matroska/WebM (RFC 9559).
"""

from pathlib import Path
from typing import BinaryIO


def missing_bytes(path: Path) -> int:
    """How many bytes the container's outermost sizes promise beyond the end of the file; 0 where nothing can be said.

    Bytes behind the promised end are no damage: recorders leave them (UT-Interaction's files have some).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] == b"RIFF":
            end = 8 + int.from_bytes(head[4:8], "little")
        elif head[4:8] == b"ftyp":
            end = _last_box_end(file, size)
        elif head[:4] == b"\x1a\x45\xdf\xa3":
            end = _segment_end(file, size)
        else:
            return 0
    return max(0, end - size)


def is_cut_jpeg(data: bytes) -> bool:
    """Whether a JPEG picture has no end marker (ITU-T T.81, B.1.1.3) behind its first scan.

    Decoders fill in what is missing. In the segments before, a thumbnail may have an end marker of its own.
    """
    position = 2
    while (marker := data[position : position + 2]) and marker != b"\xff\xda" and marker[:1] == b"\xff":
        fill = marker == b"\xff\xff"
        position += 1 if fill else 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return marker == b"\xff\xda" and b"\xff\xd9" not in data[position:]


def _last_box_end(file: BinaryIO, size: int) -> int:
    position = 0
    while position + 8 <= size:
        file.seek(position)
        length, kind = int.from_bytes(file.read(4), "big"), file.read(4)
        if not kind.isalnum():
            return position  # what follows are no boxes
        if length == 1:  # a 64-bit size follows
            length = int.from_bytes(file.read(8), "big")
        elif length == 0:  # up to the end of the file
            return size
        if length < 8:
            return position
        position += length
    return position


def _segment_end(file: BinaryIO, size: int) -> int:
    file.seek(4)  # behind the identifier of the EBML header
    header = _ebml_size(file)
    if header is None:
        return 0
    file.seek(header, 1)
    if file.read(4) != b"\x18\x53\x80\x67":
        # A file that ends inside its header: RFC 9559 puts the Segment right behind.
        return max(file.tell(), size + 1) if file.tell() >= size else 0
    length = _ebml_size(file)
    return 0 if length is None else file.tell() + length


def _ebml_size(file: BinaryIO) -> int | None:
    """A size of variable length (RFC 8794, 4); None where it is unknown.

    The zeros that lead the first byte count the bytes that follow; all ones mean unknown.
    """
    first = file.read(1)
    if not first or not first[0]:
        return None
    extra = 8 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & ((1 << (7 - extra)) - 1)]) + file.read(extra), "big")
    return None if value == (1 << (7 * (extra + 1))) - 1 else value
