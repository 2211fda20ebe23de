"""Pictures as data URIs."""

import base64
import io
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from sparsetime.report.image import photo, png


def decoded(content: bytes) -> NDArray[np.uint8]:
    av = pytest.importorskip("av")
    with av.open(io.BytesIO(content)) as container:
        frame = next(container.decode(video=0))
        return frame.to_ndarray(format="gray" if frame.format.name.startswith("gray") else "rgb24")


@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (6, 4, 3), (33, 1, 3)])
def test_png_is_lossless(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(decoded(png(image)), image)


def test_a_photo_looks_the_same() -> None:
    y, x = np.mgrid[:48, :64]
    image = np.stack([2 * x + y, 255 - 3 * x, 4 * y], axis=-1).clip(0, 255).astype(np.uint8)
    head, _, body = photo(image).partition(",")
    assert head == "data:image/jpeg;base64"
    found = decoded(base64.b64decode(body)).astype(float)
    assert found.shape == image.shape
    assert np.abs(found - image).mean() < 3
    assert np.abs(found - image[:, :, ::-1]).mean() > 30  # swapped colours would show


def test_a_photo_without_pyav_is_a_png(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    monkeypatch.setitem(sys.modules, "av", None)
    assert photo(image).startswith("data:image/png;base64,iVBOR")
