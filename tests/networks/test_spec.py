import pytest
import torch

from sparsetime.networks import NetworkSpec

SPEC = NetworkSpec("n", (1, 1), (10.0, 20.0, 30.0), (1.0, 2.0, 4.0), "rgb", 2)


def test_normalise_by_hand() -> None:
    rgb = torch.tensor([12, 24, 38], dtype=torch.uint8).view(1, 3, 1, 1)
    assert SPEC.normalise(rgb).flatten().tolist() == [2.0, 2.0, 2.0]
    bgr = NetworkSpec("n", (1, 1), (10.0, 20.0, 30.0), (1.0, 2.0, 4.0), "bgr", 2)
    # The mean and deviation are in the network's order: blue first.
    assert bgr.normalise(rgb).flatten().tolist() == [28.0, 2.0, -4.5]


def test_normalise_takes_clips_and_keeps_floating_point() -> None:
    clip = torch.rand(2, 5, 3, 4, 6, dtype=torch.float64)
    out = SPEC.normalise(clip)
    assert out.dtype == torch.float64
    assert torch.equal(out[1, 2], SPEC.normalise(clip[1, 2]))


@pytest.mark.parametrize("shape", [(3, 4), (1, 4, 4), (2, 4, 4, 3)])
def test_normalise_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected RGB frames"):
        SPEC.normalise(torch.zeros(shape))
