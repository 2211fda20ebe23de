"""Frames as JPEG."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from sparsetime.video.reader import Frames, import_av

__all__ = ["jpeg"]

_MOST = 640  # pixels along the longer side: enough for a phone and for a look, little enough to send 30 times a second
_QUALITY = "4"  # quantiser scale of FFmpeg, 2 (best) to 31


def jpeg(frame: Frames) -> bytes:
    """One frame as a JPEG picture, scaled down to at most 640 pixels along its longer side.

    Args:
        frame: (H, W, 3) uint8 RGB.
    """
    av = import_av()
    height, width = frame.shape[:2]
    scale = min(1.0, _MOST / max(height, width))
    # Even numbers, since colour is kept for every second row and column.
    height, width = (max(2, round(extent * scale / 2) * 2) for extent in (height, width))
    image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    image = image.reformat(width, height, format="yuvj420p")
    context = av.CodecContext.create("mjpeg", "w")
    context.width, context.height, context.pix_fmt = width, height, "yuvj420p"
    context.time_base = Fraction(1, 25)
    context.options = {"qmin": _QUALITY, "qmax": _QUALITY}
    return b"".join(bytes(packet) for packet in (*context.encode(image), *context.encode(None)))
