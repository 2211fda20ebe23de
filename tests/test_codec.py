"""Codecs: tables worked out by hand, and what a pure function with explicit state has to keep."""

import math
from typing import get_args

import pytest
import torch

from sparsetime.codec import Codec, CodecState, StateError, encode, encode_clip
from sparsetime.engine.shapes import channel_axis
from sparsetime.quantize import FLOOR

CODECS = get_args(Codec)

# (x, delta, reference) per frame, step 1. Halves go to even; hold sends what is *more* than the step away.
TABLES = {
    "exact": [(0.5, 0, 0), (1.25, 1, 1), (1.5, 1, 2), (2.5, 0, 2), (-1.75, -4, -2)],
    "hold": [(0.5, 0.5, 0.5), (1.25, 0, 0.5), (1.5, 0, 0.5), (1.75, 1.25, 1.75), (1.0, 0, 1.75), (0.5, -1.25, 0.5)],
    "pixel": [(0.5, 0.5, 0.5), (1.25, 0, 0.5), (1.5, 0, 0.5), (1.75, 1.25, 1.75), (1.0, 0, 1.75), (0.5, -1.25, 0.5)],
    "residual": [(0.5, 0.5, 0.5), (1.25, 0, 0.5), (1.5, 1, 1.5), (3.75, 2, 3.5), (2.75, 0, 3.5), (2.25, -1, 2.5)],
}


def clip(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """A random walk, so that some elements move less than a step and some more."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(*shape, generator=generator, dtype=torch.float64) * 0.4
    return steps.cumsum(1).to(dtype)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("step", [1.0, -1.0])
def test_table(codec: Codec, step: float) -> None:
    state = None
    for x, delta, reference in TABLES[codec]:
        sent, state = encode(torch.tensor([[x]]), state, torch.tensor(step), codec)
        assert (sent.item(), state.reference.item()) == (delta, reference)


@pytest.mark.parametrize("codec", CODECS)
def test_table_as_a_clip(codec: Codec) -> None:
    x, delta, reference = (torch.tensor([column]).unsqueeze(-1) for column in zip(*TABLES[codec], strict=True))
    deltas, references, state = encode_clip(x, None, torch.tensor(1.0), codec)
    assert torch.equal(deltas, delta.float())
    assert torch.equal(references, reference.float())
    assert torch.equal(state.reference, reference[:, -1].float())


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("shape", "step_shape"), [((2, 7, 5), (5,)), ((2, 7, 3, 4, 5), (3, 1, 1)), ((1, 1, 3), ())])
def test_clip_form_is_that_many_calls_to_the_bit(
    codec: Codec, dtype: torch.dtype, shape: tuple[int, ...], step_shape: tuple[int, ...]
) -> None:
    x = clip(*shape, dtype=dtype)
    step = torch.rand(step_shape, generator=torch.Generator().manual_seed(1)) * 0.5 + 0.1
    state, deltas, references = None, [], []
    for frame in x.unbind(1):
        delta, state = encode(frame, state, step, codec)
        deltas.append(delta)
        references.append(state.reference)
    all_deltas, all_references, last = encode_clip(x, None, step, codec)
    assert all_deltas.dtype == all_references.dtype == last.reference.dtype == dtype
    assert torch.equal(all_deltas, torch.stack(deltas, 1))
    assert torch.equal(all_references, torch.stack(references, 1))
    assert torch.equal(last.reference, references[-1])
    assert (all_deltas[:, 1:] == 0).any() or x.shape[1] == 1


@pytest.mark.parametrize("codec", CODECS)
def test_a_clip_goes_on_where_the_last_one_ended(codec: Codec) -> None:
    x, step = clip(2, 9, 4, 3, 3), torch.tensor(0.3)
    whole, references, end = encode_clip(x, None, step, codec)
    first, _, state = encode_clip(x[:, :4], None, step, codec)
    second, later, last = encode_clip(x[:, 4:], state, step, codec)
    assert torch.equal(torch.cat([first, second], 1), whole)
    assert torch.equal(later, references[:, 4:])
    assert torch.equal(last.reference, end.reference)


@pytest.mark.parametrize("codec", CODECS)
def test_the_receiver_that_adds_up_holds_the_reference(codec: Codec) -> None:
    deltas, references, _ = encode_clip(clip(2, 50, 6, dtype=torch.float64), None, torch.tensor(0.3), codec)
    torch.testing.assert_close(deltas.cumsum(1), references, rtol=0, atol=1e-13)


def test_pixel_sends_all_channels_of_a_place_or_none() -> None:
    """Thresholds 1 and 2, C = 2: sums of squares (0.25 + 1), (1 + 1), (1 + 1.5625), and (0 + 4) of a single channel."""
    frames = torch.tensor([[[0.0, 0.0], [0.5, 2.0], [1.0, 2.0], [1.0, 2.5], [1.0, 6.5]]])
    deltas, references, _ = encode_clip(frames, None, torch.tensor([1.0, 2.0]), "pixel")
    assert references[0].tolist() == [[0, 0], [0, 0], [0, 0], [1, 2.5], [1, 6.5]]
    assert deltas[0].tolist() == [[0, 0], [0, 0], [0, 0], [1, 2.5], [0, 4]]


def test_pixel_decides_for_each_place_by_itself() -> None:
    still = torch.zeros(1, 3, 2, 2)
    _, state = encode(still, None, torch.tensor(1.0), "pixel")
    frame = still.clone()
    frame[0, 0, 0, 1] = 1.75  # 3.0625 > 3
    frame[0, 0, 1, 0] = 1.5  # 2.25
    frame[0, 1, 0, 1] = 0.125  # sent with the rest of its pixel
    delta, state = encode(frame, state, torch.tensor(1.0), "pixel")
    assert delta.nonzero().tolist() == [[0, 0, 0, 1], [0, 1, 0, 1]]
    assert state.reference[0, :, 0, 1].tolist() == [1.75, 0.125, 0]
    assert state.reference[0, :, 1, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("shape", [(1, 3, 4, 5), (1, 4, 3), (1, 6), (1, 2, 3, 4, 5)])
def test_channels_are_those_of_a_plan(shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape)
    _, state = encode(x, None, torch.tensor(1.0), "pixel")
    enough = math.sqrt(shape[channel_axis(shape)])  # in one of so many channels
    for change, sent in ((enough - 0.01, 0), (enough + 0.01, 1)):
        x.view(-1)[0] = change
        delta, _ = encode(x, state, torch.tensor(1.0), "pixel")
        assert int(delta.count_nonzero()) == sent


@pytest.mark.parametrize("codec", ["hold", "residual"])
def test_the_reference_stays_within_a_step_of_the_frame(codec: Codec) -> None:
    x = clip(2, 50, 6, dtype=torch.float64)
    _, references, _ = encode_clip(x, None, torch.tensor(0.3, dtype=torch.float64), codec)
    assert (x - references).abs().max() <= 0.3 + 1e-12
    assert (x - references).abs().max() > 0.2


def test_exact_is_the_change_of_the_quantised_value() -> None:
    x = clip(2, 9, 6, dtype=torch.float64)
    deltas, _, _ = encode_clip(x, None, torch.tensor(0.25), "exact")  # a power of two: no rounding in the products
    value = torch.round(x * 4) / 4
    assert torch.equal(deltas[:, :1], value[:, :1])
    assert torch.equal(deltas[:, 1:], value[:, 1:] - value[:, :-1])


@pytest.mark.parametrize("codec", ["hold", "pixel"])
def test_with_threshold_zero_every_change_is_sent(codec: Codec) -> None:
    x = clip(2, 5, 6)
    _, references, _ = encode_clip(x, None, torch.tensor(0.0), codec)
    assert torch.equal(references, x)


@pytest.mark.parametrize("codec", CODECS)
def test_equal_frames_send_nothing(codec: Codec) -> None:
    x = clip(2, 1, 6).expand(2, 5, 6)
    deltas, _, _ = encode_clip(x, None, torch.tensor(0.1), codec)
    assert deltas[:, 0].any()
    assert not deltas[:, 1:].any()


@pytest.mark.parametrize("codec", CODECS)
def test_streams_of_a_batch_do_not_touch(codec: Codec) -> None:
    x = clip(3, 6, 4)
    together, _, _ = encode_clip(x, None, torch.tensor(0.3), codec)
    for i in range(3):
        assert torch.equal(encode_clip(x[i : i + 1], None, torch.tensor(0.3), codec)[0], together[i : i + 1])


@pytest.mark.parametrize("codec", CODECS)
def test_the_function_is_pure(codec: Codec) -> None:
    """Arguments keep their values; outputs, state and arguments lie in different memory."""
    x, step = clip(2, 3, 4), torch.tensor(0.3)
    before = x.clone()
    delta, state = encode(x[:, 0], None, step, codec)
    kept = state.reference.clone()
    later, new = encode(x[:, 1], state, step, codec)
    assert torch.equal(x, before)
    assert torch.equal(state.reference, kept)
    again, _ = encode(x[:, 1], state, step, codec)
    assert torch.equal(later, again)
    for mine in (delta, later):
        mine.fill_(99.0)
    x.fill_(77.0)
    assert torch.equal(state.reference, kept)
    assert not (new.reference == 99).any()
    assert not (new.reference == 77).any()


@pytest.mark.parametrize("codec", CODECS)
def test_the_clip_form_is_pure(codec: Codec) -> None:
    x, step = clip(2, 3, 4), torch.tensor(0.3)
    before = x.clone()
    deltas, references, state = encode_clip(x, None, step, codec)
    kept, sent = state.reference.clone(), references.clone()
    assert torch.equal(x, before)
    deltas.fill_(99.0)
    assert torch.equal(references, sent)
    references.fill_(88.0)
    x.fill_(77.0)
    assert torch.equal(state.reference, kept)
    old = state.reference.clone()
    encode_clip(clip(2, 3, 4, seed=1), state, step, codec)
    assert torch.equal(state.reference, old)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    ("other", "words"),
    [
        (torch.zeros(3, 4), r"state is for \(2, 4\) torch.float32 on cpu, got a frame \(3, 4\)"),
        (torch.zeros(2, 4, dtype=torch.float64), "torch.float64"),
        (torch.zeros(4, 2), r"\(4, 2\)"),
    ],
)
def test_a_state_of_other_frames_is_refused(codec: Codec, other: torch.Tensor, words: str) -> None:
    _, state = encode(torch.zeros(2, 4), None, torch.tensor(0.3), codec)
    with pytest.raises(StateError, match=words + r".*A new stream\? Start again with state=None"):
        encode(other, state, torch.tensor(0.3), codec)
    with pytest.raises(StateError, match=words):
        encode_clip(other.unsqueeze(1), state, torch.tensor(0.3), codec)


def test_a_state_broadcasts_to_nothing() -> None:
    """A state of one stream must not serve a batch of several."""
    _, state = encode(torch.zeros(1, 4), None, torch.tensor(0.3), "hold")
    with pytest.raises(StateError):
        encode(torch.zeros(2, 4), state, torch.tensor(0.3), "hold")


def test_other_words_are_refused() -> None:
    with pytest.raises(ValueError, match="exact, hold, pixel, residual, got 'delta'"):
        encode(torch.zeros(1, 1), None, torch.tensor(0.3), "delta")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="exact, hold, pixel, residual, got 'delta'"):
        encode_clip(torch.zeros(1, 1, 1), None, torch.tensor(0.3), "delta")  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(3,), (2, 0, 4)])
def test_a_clip_needs_a_frame(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"clip \(N, T, ...\) with T >= 1, got shape"):
        encode_clip(torch.zeros(shape), None, torch.tensor(0.3), "exact")


@pytest.mark.parametrize("codec", CODECS)
def test_an_empty_batch(codec: Codec) -> None:
    deltas, references, state = encode_clip(torch.zeros(0, 3, 4), None, torch.tensor(0.3), codec)
    assert deltas.shape == references.shape == (0, 3, 4)
    assert state.reference.shape == (0, 4)


@pytest.mark.parametrize("codec", ["exact", "residual"])
def test_steps_have_a_floor(codec: Codec) -> None:
    _, state = encode(torch.zeros(1, 1, dtype=torch.float64), None, torch.tensor(0.0), codec)
    delta, _ = encode(torch.full((1, 1), 2.6 * FLOOR, dtype=torch.float64), state, torch.tensor(0.0), codec)
    assert delta.item() == pytest.approx((3 if codec == "exact" else 2) * FLOOR)


@pytest.mark.parametrize("codec", ["exact", "residual"])
def test_float16_in_which_the_floor_is_zero_has_its_own(codec: Codec) -> None:
    least = torch.finfo(torch.float16).tiny
    clip = torch.tensor([[[0.0, 0.0], [0.0, 2.6 * least]]], dtype=torch.float16)
    deltas, references, _ = encode_clip(clip, None, torch.tensor(1e-9), codec)
    assert deltas.tolist() == references.tolist() == [[[0, 0], [0, (3 if codec == "exact" else 2) * least]]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_with_threshold_zero_pixel_sends_a_pixel_of_which_one_channel_changed(dtype: torch.dtype) -> None:
    still = torch.zeros(1, 2, 1, 2, dtype=dtype)
    moved = still.clone()
    moved[0, 0, 0, 1] = 0.25
    _, state = encode(still, None, torch.tensor(0.0), "pixel")
    delta, _ = encode(moved, state, torch.tensor(0.0), "pixel")
    assert torch.equal(delta, moved)


@pytest.mark.parametrize("codec", ["exact", "residual"])
def test_a_value_that_is_not_finite_is_not_swallowed(codec: Codec) -> None:
    """`hold` compares, and NaN is never above the threshold: frames are checked before, see SparseNetwork."""
    _, state = encode(torch.zeros(1, 1), None, torch.tensor(0.3), codec)
    delta, state = encode(torch.full((1, 1), math.nan), state, torch.tensor(0.3), codec)
    assert math.isnan(delta.item())
    assert math.isnan(state.reference.item())


@pytest.mark.parametrize("codec", ["hold", "pixel"])
def test_gradients_go_to_the_frame_that_was_sent(codec: Codec) -> None:
    x = torch.tensor([[[0.0], [0.25], [2.0], [2.25]]], requires_grad=True)
    _, references, _ = encode_clip(x, None, torch.tensor(1.0), codec)
    references.backward(torch.tensor([[[1.0], [10.0], [100.0], [1000.0]]]))
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [11.0, 0.0, 1100.0, 0.0]


def test_residual_passes_gradients_straight_through() -> None:
    x = torch.tensor([[[0.0], [0.25], [2.0], [2.25]]], requires_grad=True)
    _, references, _ = encode_clip(x, None, torch.tensor(1.0), "residual")
    references.backward(torch.tensor([[[1.0], [10.0], [100.0], [1000.0]]]))
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [1.0, 10.0, 100.0, 1000.0]


@pytest.mark.parametrize("codec", CODECS)
def test_the_step_receives_no_gradient(codec: Codec) -> None:
    step = torch.tensor(0.3, requires_grad=True)
    deltas, references, _ = encode_clip(clip(1, 4, 3).requires_grad_(), None, step, codec)
    total = deltas.sum() + references.sum()
    if total.requires_grad:
        total.backward()
    assert step.grad is None


def test_a_state_is_a_plain_tuple_of_tensors() -> None:
    _, state = encode(torch.ones(1, 2), None, torch.tensor(0.3), "exact")
    assert isinstance(state, CodecState)
    assert state._fields == ("reference",)
