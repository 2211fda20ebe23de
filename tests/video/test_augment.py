import numpy as np
import pytest
import torch
from torch import Tensor

from sparsetime.video import Augment

SIZE = (24, 32)
NONE = Augment(scale=(1, 1), ratio=(1, 1), flip=0, brightness=0, contrast=0)


def still_clip(frames: int = 4, height: int = 28, width: int = 37) -> Tensor:
    picture = torch.randint(
        0, 256, (1, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return picture.repeat(frames, 1, 1, 1)


@pytest.mark.parametrize("augment", [Augment(), Augment(rotation=15)])
def test_what_stands_still_stays_still(augment: Augment) -> None:
    for seed in range(20):
        out = augment(still_clip(), SIZE, np.random.default_rng(seed))
        assert out.shape == (4, 3, *SIZE)
        assert out.dtype == torch.uint8
        assert torch.equal(out, out[:1].expand_as(out))


def test_a_moving_clip_is_changed_alike_in_all_frames() -> None:
    clip = torch.cat([still_clip(3), 255 - still_clip(1)])
    whole = Augment(rotation=10, contrast=0, brightness=0)(clip, SIZE, np.random.default_rng(3))
    first = Augment(rotation=10, contrast=0, brightness=0)(clip[:1], SIZE, np.random.default_rng(3))
    assert torch.equal(whole[:1], first)
    # The negative of a picture, turned, is the negative of the picture turned (to rounding).
    assert (whole[3].int() - (255 - whole[0].int())).abs().max() <= 2


def test_draws_depend_on_the_generator_alone() -> None:
    clip = still_clip()
    first = Augment()(clip, SIZE, np.random.default_rng(1))
    assert torch.equal(first, Augment()(clip, SIZE, np.random.default_rng(1)))
    assert not torch.equal(first, Augment()(clip, SIZE, np.random.default_rng(2)))


def test_nothing_asked_for_nothing_done() -> None:
    clip = still_clip(2, *SIZE)
    assert torch.equal(NONE(clip, SIZE, np.random.default_rng(0)), clip)


def test_mirror() -> None:
    clip = still_clip(2, *SIZE)
    always = Augment(scale=(1, 1), ratio=(1, 1), flip=1, brightness=0, contrast=0)
    assert torch.equal(always(clip, SIZE, np.random.default_rng(0)), clip.flip(-1))


def test_brightness_and_contrast_by_hand() -> None:
    clip = torch.tensor([50, 100, 150], dtype=torch.uint8).view(1, 1, 1, 3).expand(2, 3, 1, 3).contiguous()
    rng = np.random.default_rng(5)
    out = Augment(scale=(1, 1), ratio=(1, 1), flip=0, brightness=0.1, contrast=0.5)(clip, (1, 3), rng)
    values = out[0, 0, 0].tolist()
    assert values == out[1, 2, 0].tolist()
    # Steps of 50 become steps of 50 * gain, the mean (100) is moved by the shift alone.
    gain, shift = (values[2] - values[0]) / 100, values[1] - 100
    assert 0.5 <= gain <= 1.5
    assert abs(shift) <= 26
    assert (gain, shift) != (1, 0)


def test_crop_keeps_the_share_asked_for() -> None:
    y, x = torch.meshgrid(torch.arange(200), torch.arange(200), indexing="ij")
    clip = torch.stack([y, x, x]).to(torch.uint8)[None]
    augment = Augment(scale=(0.25, 0.25), ratio=(1, 1), flip=0, brightness=0, contrast=0)
    corners = set()
    for seed in range(40):
        out = augment(clip, (100, 100), np.random.default_rng(seed)).int()
        assert (out[0, 0, -1, 0] - out[0, 0, 0, 0]).item() == 99
        assert (out[0, 1, 0, -1] - out[0, 1, 0, 0]).item() == 99
        corners.add((out[0, 0, 0, 0].item(), out[0, 1, 0, 0].item()))
    assert len(corners) > 30


def test_rotation_turns_counterclockwise_and_keeps_squares() -> None:
    from sparsetime.video.augment import _rotate

    clip = still_clip(1, 20, 20)
    assert torch.equal(_rotate(clip, 90.0), torch.rot90(clip, 1, (-2, -1)))
    # A dot right of the centre of a wide picture goes up by the same distance in pixels.
    wide = torch.zeros(1, 3, 41, 81, dtype=torch.uint8)
    wide[..., 20, 50] = 255
    assert _rotate(wide, 90.0)[0, 0].nonzero().tolist() == [[10, 40]]


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="scale"):
        Augment(scale=(0, 1))
    with pytest.raises(ValueError, match="ratio"):
        Augment(ratio=(2, 1))
    with pytest.raises(ValueError, match="expected uint8"):
        Augment()(still_clip().float(), SIZE, np.random.default_rng(0))
