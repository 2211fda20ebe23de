"""Streams: frames in, outputs out, state that can be kept and put back, and one thread at a time."""

import math
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from random_plans import frames
from small_modules import Function
from small_modules import clip as small_clip
from tiny_plan import changed, tiny
from torch import nn

from sparsetime.convert.compile import compile
from sparsetime.convert.integers import quantised_plan
from sparsetime.engine import FrameError, InputSpec, Op, Plan, StreamBusyError, StreamError
from sparsetime.engine.flushes import Flushes, Pace
from sparsetime.engine.frames import FrameReader
from sparsetime.engine.statefile import load_state, save_state
from sparsetime.engine.stream import Stream


@pytest.fixture
def stream() -> Stream:
    return tiny().stream(backend="reference")


def clip(count: int = 4) -> list[np.ndarray]:
    return frames(tiny(), count, seed=1)


def test_outputs_are_the_networks(stream):
    plan = tiny()
    weight, bias = (torch.from_numpy(np.array(plan.tensors[k])) for k in ("weight", "bias"))
    for frame in clip():
        x = torch.from_numpy(frame)
        expected = torch.conv2d((x / 0.5).round() * 0.5, weight, bias, 2, 1).relu()
        np.testing.assert_allclose(stream(frame), expected, rtol=1e-5, atol=1e-5)
    assert stream.frames == 4


def test_outputs_come_in_the_frames_own_kind(stream):
    frame = clip(1)[0]
    assert isinstance(stream(frame), np.ndarray)
    assert isinstance(stream(torch.from_numpy(frame)), torch.Tensor)
    for other in (torch.float64, torch.float16, torch.bfloat16):
        tensor = torch.from_numpy(frame).to(other)
        stream.reset()
        output = stream(tensor)
        assert output.dtype == torch.float32
        stream.reset()
        np.testing.assert_array_equal(output, stream(tensor.float().numpy()))


def test_outputs_nest_as_the_module_nested_them():
    plan = tiny()
    nested = Plan(
        plan.name,
        plan.values,
        plan.ops,
        (1, 0),
        {"dict": {"maps": {"tuple": [{"output": 1}, {"constant": None}]}, "rest": [{"output": 0}]}},
        plan.tensors,
    )
    result = nested.stream(backend="reference")(clip(1)[0])
    assert result["maps"][0].shape == (1, 2, 4, 5)
    assert result["maps"][1] is None
    assert result["rest"][0].shape == (1, 3, 2, 3)


def test_outputs_and_frames_share_no_memory_with_the_state(stream):
    first, second = clip(2)
    kept = first.copy()
    output = stream(first)
    output[:] = np.nan
    first[:] = np.nan
    fresh = tiny().stream(backend="reference")
    fresh(kept)
    np.testing.assert_array_equal(stream(second), fresh(second))


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((1, 2, 4, 6), np.float32),
        np.zeros((2, 2, 4, 5), np.float32),
        np.zeros((4, 5), np.float32),
        np.zeros((1, 2, 4, 5), np.int32),
        np.full((1, 2, 4, 5), np.nan, np.float32),
        np.full((1, 2, 4, 5), np.inf, np.float64),
        [[1.0]],
    ],
)
def test_a_bad_frame_leaves_the_stream_as_it_was(stream, frame):
    first, second = clip(2)
    stream(first)
    before = stream.snapshot()
    with pytest.raises(FrameError):
        stream(frame)
    after = stream.snapshot()
    assert stream.frames == 1
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
    stream(second)


def test_layouts_and_colours_of_frames():
    plan = Plan("p", ((1, 3, 4, 5),), (Op("input", "input", (), (0,)),), (0,), {"output": 0}, {},
                InputSpec((1.0, 2.0, 3.0), (2.0, 4.0, 8.0), "bgr"))  # fmt: skip
    rgb = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    # blue, green, red, each with its own mean and std
    expected = np.stack([(rgb[..., 2] - 1.0) / 2, (rgb[..., 1] - 2.0) / 4, (rgb[..., 0] - 3.0) / 8])[None]
    read = FrameReader(plan)
    for frame in (rgb, rgb.transpose(2, 0, 1), rgb.transpose(2, 0, 1)[None], torch.from_numpy(rgb)):
        np.testing.assert_allclose(read(frame), expected, rtol=1e-6)
    own = expected.astype(np.float32)
    assert read(own) is own
    np.testing.assert_array_equal(read(own[0].transpose(1, 2, 0)), own)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("codec", [None, "hold"])
def test_a_caller_may_write_every_frame_to_the_same_place(codec, backend):
    tensors = {"scale": np.ones(1, np.float32)} | ({"s": np.ones(1, np.float32)} if codec else {})
    ops = (
        Op("input", "input", (), (0,), codec={"kind": codec, "tensor": "s"} if codec else None),
        Op("affine", "same", (0,), (1,), {}, {"scale": "scale"}),
    )
    stream = Plan("same", ((1, 3, 2, 2),) * 2, ops, (1,), {"output": 0}, tensors).stream(backend=backend)
    frame = np.zeros((1, 3, 2, 2), np.float32)
    for value in (0, 2, 4):
        frame[:] = value
        np.testing.assert_array_equal(stream(frame), np.full(frame.shape, value))


UNUSUAL = {
    "unaligned": lambda x: np.frombuffer(b"." + x.tobytes(), np.float32, x.size, 1).reshape(x.shape),
    "one field of a record": lambda x: np.rec.fromarrays([np.zeros(x.shape, np.uint8), x], names="a,b")["b"],
    "backwards": lambda x: x[:, ::-1, ::-1].copy()[:, ::-1, ::-1],
    "one number everywhere": lambda x: np.broadcast_to(x[:1, :1, :1, :1], x.shape),
    "every second": lambda x: np.repeat(x, 2, axis=3)[..., ::2],
}


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("shape", [(1, 3, 5, 6), (1, 8, 5, 6), (3, 5, 6)])
@pytest.mark.parametrize("name", UNUSUAL)
def test_frames_may_lie_in_memory_as_they_like(name, shape, backend):
    x = np.random.default_rng(0).random(shape, dtype=np.float32)
    given = UNUSUAL[name](x if len(shape) == 4 else x[None])
    plain = np.ascontiguousarray(given)
    given = given if len(shape) == 4 else given[0]
    ops = (Op("input", "input", (), (0,)), Op("identity", "relu", (0,), (1,), {}, {}, {"kind": "relu"}))
    plan = Plan("any", (plain.shape,) * 2, ops, (1,), {"output": 0}, {})
    stream = plan.stream(backend=backend)
    for _ in range(2):
        np.testing.assert_array_equal(stream(given), plain)


def test_restore_continues_to_the_bit(stream):
    video = clip(6)
    for frame in video[:3]:
        stream(frame)
    kept = stream.snapshot()
    ends = [[stream(frame) for frame in video[3:]], stream.snapshot()]
    stream.restore(kept)
    assert stream.frames == 3
    for got, expected in zip([stream(frame) for frame in video[3:]], ends[0], strict=True):
        np.testing.assert_array_equal(got, expected)
    other = tiny().stream(backend="reference")
    other.restore(kept)
    for frame in video[3:]:
        other(frame)
    for name, expected in ends[1].items():
        np.testing.assert_array_equal(other.snapshot()[name], expected)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_value_is_that_of_the_snapshot(backend):
    plan = tiny()
    stream = plan.stream(backend=backend)
    with pytest.raises(StreamError, match="got a new one"):
        stream.value(0)
    for frame in clip(3):
        stream(frame)
        values = [stream.value(op.output) for op in plan.ops]
        values[0] += 1  # a copy
        kept = stream.snapshot()
        np.testing.assert_array_equal(values[0] - 1, kept["0.value"])
        np.testing.assert_array_equal(values[1], kept["1.value"])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_state_may_hold_a_single_number(backend, precision, tmp_path):
    codec = {"kind": "code", "tensor": "s", "zero": 0, "threshold": "t"} if precision == "int8" else None
    tensors = {"i": np.asarray([4], np.int32)}
    if codec:
        tensors |= {"s": np.ones(1, np.float32), "t": np.zeros(1, np.int32)}
    ops = (
        Op("input", "input", (), (0,), codec=codec, precision=precision),
        Op("gather", "one", (0,), (1,), {}, {"index": "i"}, {"kind": "relu"}, codec, precision=precision),
    )
    plan = Plan("one", ((1, 3, 2, 2), ()), ops, (1,), {"output": 0}, tensors, precision=precision)
    first, second, third = (plan.stream(backend=backend) for _ in range(3))
    frame = np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2)
    first(frame)
    assert first.snapshot()["1.value"].shape == ()
    second.restore(first.snapshot())
    save_state(first, tmp_path / "one.state")
    load_state(third, tmp_path / "one.state")
    for stream in (first, second, third):
        np.testing.assert_array_equal(stream(frame), 4)
        assert stream.frames == 2
        assert stream.stats["one"].events == 0


def test_a_snapshot_before_the_first_frame_is_empty(stream):
    empty = stream.snapshot()
    assert len(empty) == 0
    first = clip(1)[0]
    expected = stream(first)
    stream(clip(2)[1])
    stream.restore(empty)
    np.testing.assert_array_equal(stream(first), expected)


def test_a_snapshot_cannot_be_changed(stream):
    stream(clip(1)[0])
    with pytest.raises(ValueError, match="read-only"):
        stream.snapshot()["0.value"][:] = 0


def test_a_snapshot_of_another_plan_is_refused(stream):
    stream(clip(1)[0])
    other = changed(activation=None)
    with pytest.raises(StreamError, match="another plan"):
        other.stream(backend="reference").restore(stream.snapshot())


def test_reset_forgets(stream):
    first, second = clip(2)
    expected = stream(first)
    stream(second)
    stream.reset()
    np.testing.assert_array_equal(stream(first), expected)
    assert stream.frames == 1


def test_refresh_takes_rounding_away():
    plan = tiny()
    stream = plan.stream(backend="reference", refresh=5)
    rng = np.random.default_rng(0)
    for k in range(11):
        frame = (rng.standard_normal(plan.input_shape) * 10.0 ** (k % 5)).astype(np.float32)
        stream(frame)
    fresh = plan.stream(backend="reference")
    fresh(frame)  # frame 10 was a refresh
    np.testing.assert_array_equal(stream.snapshot()["1.accumulator"], fresh.snapshot()["1.accumulator"])


def holding(**stream) -> Stream:
    plan = tiny()
    held = replace(plan.ops[0], codec={"kind": "hold", "tensor": "step"})
    return replace(plan, ops=(held, *plan.ops[1:])).stream(**stream)


def gentle(plan: Plan, count: int) -> list[np.ndarray]:
    """Frames of which each moves at most 12 of the 40 elements of the one before, by up to 1: no cut among them."""
    rng = np.random.default_rng(3)
    clip = [rng.standard_normal(plan.input_shape).astype(np.float32)]
    for _ in range(count - 1):
        clip.append(clip[-1].copy())
        clip[-1].flat[rng.choice(40, 12, replace=False)] += rng.uniform(-1, 1, 12).astype(np.float32)
    return clip


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_stream_starts_again_after_the_work_of_a_dense_frame(backend):
    stream, fresh, kept = holding(backend=backend, flush=1.0), holding(backend=backend), holding(backend=backend)
    plan = stream.plan
    flushed, differed, asked = [], 0, 0.0
    for number, frame in enumerate(gentle(plan, 24)):
        if number and asked >= 1:
            flushed.append(number)
            fresh.reset()
        first = not fresh.frames
        np.testing.assert_array_equal(stream(frame), fresh(frame))
        assert stream.flushed == fresh.flushed == first
        # Every element of the input causes as many operations on average, and nothing else causes any.
        asked = 0.0 if first else asked + fresh.stats["input"].events / 40
        for name, expected in fresh.snapshot().items():
            np.testing.assert_array_equal(stream.snapshot()[name], expected)
        kept(frame)
        differed += any((kept.snapshot()[name] != expected).any() for name, expected in fresh.snapshot().items())
    assert stream.frames == 24
    assert len(flushed) >= 2
    assert differed  # or a flush would have nothing to take away
    stream.reset()
    assert not stream.flushed


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_cut_is_a_new_start(backend, precision):
    plan = holding().plan
    still = np.ones(plan.input_shape, np.float32)
    if precision == "int8":
        plan = quantised_plan(plan, [still, -still])
    stream, unflushed, fresh = (plan.stream(backend=backend, flush=f) for f in (100.0, 0.0, 0.0))
    for changes, cut in ((12, False), (13, True), (0, False), (40, True), (1, False)):  # of 40 elements; CUT is 0.3
        for s in (stream, unflushed):
            s.reset()
            s(still)
        frame = still.copy()
        frame.flat[:changes] = -1
        fresh.reset()
        # What is added to old sums in float32 is rounded another way, by 1e-6 of sums of 18 products.
        rounding = 0 if cut or precision == "int8" else 1e-5
        np.testing.assert_allclose(stream(frame), fresh(frame), rtol=rounding, atol=rounding)
        unflushed(frame)
        assert (stream.flushed, unflushed.flushed) == (cut, False), changes
        assert stream.op_density == (1 if cut else unflushed.op_density)
        assert stream.snapshot().pace.asked == (0 if cut else pytest.approx(changes / 40))
        if cut:
            for name, array in fresh.snapshot().items():
                np.testing.assert_array_equal(stream.snapshot()[name], array)


def test_the_pace_of_flushes_by_hand():
    """40 elements of the input cause all operations: a flush every two frames' worth."""
    plan = tiny()
    flushes = Flushes(plan, 2.0)
    busy, calm = (np.array([n, 0]) for n in (20, 10))
    assert flushes.cut == 0.3
    for events, asked in ((calm, 0.25), (busy, 0.75), (busy, 1.25), (busy, 1.75), (calm, 2.0)):
        assert not flushes.due
        flushes.after(False, lambda events=events: events)
        assert flushes.pace == (asked, 0, 1, 0.3)  # 0.35 of the input would ask for 0.35
    assert flushes.due
    assert not flushes.again
    flushes.after(True, lambda: calm)
    assert flushes.pace == (0.0, 0, 1, 0.3)


def test_what_events_ask_for_says_what_a_cut_is():
    """210 operations of a convolution and 72 of the next: 5.25 for each of 40 elements, 4 for each of 18."""
    plan = tiny()
    head = Op(
        "conv2d",
        "head",
        (1,),
        (2,),
        {**plan.ops[1].attributes, "stride": [1, 1], "padding": [0] * 4},
        {"weight": "head"},
    )
    plan = replace(
        plan,
        values=(*plan.values, (1, 4, 2, 3)),
        ops=(*plan.ops, head),
        outputs=(2,),
        tensors={**plan.tensors, "head": np.ones((4, 3, 1, 1), np.float32)},
    )
    flushes = Flushes(plan, 100.0)
    for sent, cut in (
        ((10, 9, 5), 0.35 * 0.25 / ((52.5 + 36) / 282)),
        ((0, 0, 0), 0.35 * 0.25 / ((52.5 + 36) / 282)),  # a still picture says nothing
        ((2, 18, 9), 0.35 * 0.05 / ((10.5 + 72) / 282)),
        ((10, 0, 0), 0.3),
    ):
        flushes.after(False, lambda sent=sent: np.array(sent))
        assert flushes.pace.cut == flushes.cut == pytest.approx(cut, rel=1e-12), sent
    for pace in (Pace(cut=0.1), Pace(asked=100.0, cut=0.1), Pace(left=2, cut=0.1)):  # a cut, and flushes that were due
        flushes.pace = pace
        flushes.after(True, lambda: np.array((40, 18, 24)))
        assert flushes.cut == 0.1, pace
    assert Flushes(plan, 0).cut == math.inf


def test_the_pace_behind_cuts_by_hand():
    """One cut says nothing of the next frame, cuts behind each other do."""
    plan = tiny()
    flushes = Flushes(plan, 100.0)
    calm = np.array([10, 0])
    due, again = [], []
    for _ in range(17):  # a camera that moves: each frame that is no flush is a cut
        due.append(flushes.due)
        again.append(flushes.again)
        flushes.after(True, lambda: calm)
    assert due == [False, False, True, False, True, True, True, False, *[True] * 7, False, True]
    assert again == [False, False, False, False, True, True, False, False, *[True] * 6, False, False, True]
    for _ in range(6):
        flushes.after(True, lambda: calm)
    assert flushes.pace == (0.0, 0, 8, 0.3)
    flushes.after(False, lambda: calm)
    flushes.after(True, lambda: calm)
    assert flushes.pace == (0.0, 0, 2, 0.3)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_while_much_moves_frames_are_flushes(backend, monkeypatch):
    monkeypatch.setattr("sparsetime.engine.flushes.BUSY", 0.1)  # 4 of 40 elements, once it is known what they ask for
    stream, other, unflushed = (holding(backend=backend, flush=f) for f in (100.0, 100.0, 0.0))
    moving = gentle(stream.plan, 16)  # from frame to frame 12 of 40 elements, but for those that move too little
    clip = [*moving, *[moving[-1]] * 8]
    flushed = []
    for number, frame in enumerate(clip):
        if number == 9:
            other.restore(stream.snapshot())
        output = stream(frame)
        unflushed(frame)
        assert not unflushed.flushed or not number
        flushed.append(stream.flushed)
        if number >= 9:
            np.testing.assert_array_equal(other(frame), output)
            assert other.flushed == stream.flushed
            assert other.snapshot().pace == stream.snapshot().pace
    assert sum(flushed[:16]) > 4
    assert not any(flushed[-3:])  # a still picture is none, once the flushes that were due are over
    assert not all(flushed[:16])


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_between_two_flushes_there_is_no_state(backend, precision, tmp_path):
    plan = holding().plan
    rng = np.random.default_rng(0)
    moving = [rng.standard_normal(plan.input_shape).astype(np.float32) for _ in range(9)]  # cuts
    if precision == "int8":
        plan = quantised_plan(plan, moving)
    stream, fresh = plan.stream(backend=backend, flush=100.0), plan.stream(backend=backend)
    stateless = []
    for number, frame in enumerate(moving):
        fresh.reset()
        np.testing.assert_array_equal(stream(frame), fresh(frame))
        assert stream.flushed
        if number % 2:  # asked for or not, the stream goes on in the same way
            for value in range(len(plan.values)):
                np.testing.assert_array_equal(stream.value(value), fresh.value(value))
        snapshot = stream.snapshot()
        if snapshot:
            assert snapshot.keys() == fresh.snapshot().keys()
        else:
            stateless.append(number)
    assert stateless == [6]  # of the flushes 3, 5, 6 and 7; the value of 5 was asked for

    other = plan.stream(backend=backend, flush=100.0)
    for frame in moving[:7]:
        other(frame)
    with pytest.raises(FrameError, match="shape"):
        other(moving[0][..., :-1])
    save_state(other, tmp_path / "state")
    third = plan.stream(backend=backend, flush=100.0)
    load_state(third, tmp_path / "state")
    assert third.frames == 7
    with pytest.raises(StreamError, match="seen a frame"):
        third.value(0)
    for frame in (moving[7], moving[8], moving[8]):
        np.testing.assert_array_equal(third(frame), other(frame))
        assert third.snapshot().pace == other.snapshot().pace
        np.testing.assert_array_equal(third.value(1), other.value(1))


def test_arrays_alone_are_no_snapshot(stream):
    stream(clip(1)[0])
    with pytest.raises(TypeError, match=r"expected what `snapshot\(\)` gave, got dict"):
        stream.restore(dict(stream.snapshot()))
    assert stream.frames == 1


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_frame_that_is_refused_changes_no_statistics(backend):
    stream = holding(backend=backend)
    first, second = gentle(stream.plan, 2)
    first[..., 0] = 0  # in a first frame these elements count, too
    for frame in (first, second):
        stream(frame)
        before = stream.stats
        with pytest.raises(FrameError, match="NaN"):
            stream(np.full(stream.plan.input_shape, np.nan, np.float32))
        assert stream.stats == before
    assert 0 < stream.stats["conv"].effective_macs < stream.plan.dense_macs


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_refresh_that_was_asked_for_outlives_a_snapshot(backend):
    stream = holding(backend=backend)
    first, second = gentle(stream.plan, 2)
    stream(first)
    stream.refresh()
    stream.snapshot()
    stream(second)
    assert stream.stats["conv"].path == "dense"
    assert stream.op_density == 1


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_still_picture_is_not_flushed(backend):
    stream = holding(backend=backend, flush=0.01)
    for _ in range(5):
        stream(clip(1)[0])
        last = stream.op_density
    assert last == 0


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_flush_comes_when_it_would_have_come(backend):
    stream, other = holding(backend=backend, flush=0.8), holding(backend=backend, flush=0.8)
    paths = []
    for number, frame in enumerate(gentle(stream.plan, 24)):
        if number == 4:
            other.restore(stream.snapshot())
        y = stream(frame)
        if number >= 4:
            np.testing.assert_array_equal(other(frame), y)
            paths.append((stream.op_density, other.op_density))
    assert all(a == b for a, b in paths)
    assert any(a == 1 for a, _ in paths)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_frame_that_is_refused_does_not_flush(backend):
    stream = holding(backend=backend, flush=0.25)
    first, second = (np.zeros(stream.plan.input_shape, np.float32) for _ in range(2))
    second.flat[:12] = 9
    stream(first)
    stream(second)
    before = stream.snapshot()
    assert before.pace.asked == pytest.approx(0.3)  # the next frame is a flush
    with pytest.raises(FrameError, match="NaN"):
        stream(np.full(stream.plan.input_shape, np.nan, np.float32))
    after = stream.snapshot()
    assert (after.frames, after.pace.asked, set(after)) == (2, before.pace.asked, set(before))
    for name, expected in before.items():
        np.testing.assert_array_equal(after[name], expected)


def test_statistics_by_hand():
    plan = tiny()
    stream = plan.stream(backend="reference")
    frame = np.zeros(plan.input_shape, np.float32)
    stream(frame)
    first = stream.stats["conv"]
    assert (first.macs, first.path) == (plan.dense_macs, "dense")
    assert stream.op_density == 1
    frame = frame.copy()
    frame[0, 0, 1, 1] = 1.0  # row 1 is read by both output rows, column 1 by two of three output columns; 3 channels
    frame[0, 1, 0, 0] = 0.2  # rounds to 0: no event
    stream(frame)
    conv = stream.stats["conv"]
    assert (stream.stats["input"].events, conv.events_in, conv.macs, conv.path) == (1, 1, 2 * 2 * 3, "sparse")
    assert stream.op_density == 12 / plan.dense_macs
    # The snapshot has the accumulator that the native executor does not keep.
    assert stream.state_bytes == plan.state_bytes == sum(a.nbytes for a in stream.snapshot().values()) - 4 * 18


def test_memory_is_what_a_stream_takes():
    """Seventeen channels are padded to whole vectors; of the reference it is the state alone."""
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(17 if k else 3, 17, 3, padding=1) for k in range(3)]
    module = torch.nn.Sequential(*(part for layer in layers for part in (layer, torch.nn.ReLU()))).eval()
    frame = torch.rand(1, 3, 64, 64)
    plan = compile(module, frame, codec="hold")
    native, reference = plan.stream(), plan.stream(backend="reference")
    assert reference.memory_bytes == 0
    before = native.memory_bytes
    native(frame)
    reference(frame)
    assert reference.memory_bytes == sum(a.nbytes for a in reference.snapshot().values())
    maps = 64 * 64 * 4
    assert plan.state_bytes == maps * (
        3 + 3 * 17 + 2 * 17
    )  # the last convolution's sums, without a codec, are its value
    # Values, sums and, of two maps at a time, rows of deltas and events of eight bytes; all that grows is small.
    assert before > maps * (3 + 5 * 20 + 2 * 3 * 20)
    assert before <= native.memory_bytes < 1.2 * before


def test_two_threads_at_once_are_refused(stream):
    entered, go = threading.Event(), threading.Event()

    class Slow:
        flushed = False

        def run(self, frame, keep):
            entered.set()
            go.wait(10)
            return [np.zeros((1, 3, 2, 3), np.float32)]

        def set_cut(self, share):
            assert share == math.inf

        def events(self):
            raise AssertionError("only streams that are flushed count")

    stream._executor = Slow()
    frame = clip(1)[0]
    worker = threading.Thread(target=stream, args=(frame,))
    worker.start()
    entered.wait(10)
    try:
        for call in (lambda: stream(frame), stream.reset, stream.snapshot, stream.refresh, lambda: stream.stats):
            with pytest.raises(StreamBusyError, match="its own"):
                call()
    finally:
        go.set()
        worker.join()
    stream(frame)


def test_arguments_are_checked():
    for arguments in ({"threads": 0}, {"refresh": -1}, {"flush": -1}, {"flush": float("nan")}, {"backend": "gpu"}):
        with pytest.raises(ValueError, match=r"threads|backend"):
            tiny().stream(**{"backend": "reference", **arguments})


def test_the_engine_does_without_torch(tmp_path):
    import subprocess

    tiny().save(tmp_path / "a.plan")
    program = (
        "import sys, sparsetime.engine as e; p = e.Plan.load(sys.argv[1]); assert p.dense_macs; "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.plan")], check=True)


def logarithm(m, x):
    """Of a maximum that may be 0, where weights read minus infinity: the network's own answer is NaN."""
    return m.last(F.relu(m.stem(x)).amax((2, 3), keepdim=True).log().expand(-1, -1, 3, 3))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_what_is_not_finite_stays_in_no_sum(backend):
    torch.manual_seed(0)
    m = Function(logarithm, stem=nn.Conv2d(3, 4, 3), last=nn.Conv2d(4, 2, 3)).eval()
    bright, dim, dark = torch.ones(1, 3, 9, 9), torch.full((1, 3, 9, 9), 0.5), torch.full((1, 3, 9, 9), -9.0)
    nn.init.constant_(m.stem.weight, 0.5)
    stream = compile(m, bright, steps=1e-6).stream(backend)
    for frame, flushed in [
        *((bright, True), (dim, False), (dark, True), (dark, False), (bright, True), (dim, False)),
        *((dark, True), (dim, True), (bright, False)),
    ]:
        expected = m(frame).detach()
        torch.testing.assert_close(stream(frame), expected, rtol=1e-5, atol=1e-5, equal_nan=True)
        assert stream.flushed == flushed
        assert torch.isfinite(expected).all() == (frame is not dark)
        stream.restore(stream.snapshot())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_infinity_between_islands_is_no_flush(backend):
    def masked(m, x):
        y = m.stem(x)
        return m.last(y.masked_fill(y < -1, -math.inf).softmax(3))

    m = Function(masked, stem=nn.Conv2d(3, 4, 3), last=nn.Conv2d(4, 2, 3))
    frames = small_clip((1, 3, 9, 9))
    plan = compile(m, frames[0], steps=1e-6)
    assert [op.attributes["target"] for op in plan.islands] == [
        "aten.lt.Scalar",
        "aten.masked_fill.Scalar",
        "aten.softmax.int",
    ]
    stream = plan.stream(backend)
    for k, frame in enumerate(frames):
        torch.testing.assert_close(stream(frame), m(frame).detach(), rtol=1e-4, atol=1e-4)
        assert stream.flushed == (k == 0)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_root_of_what_rounding_left_is_a_new_start(backend):
    torch.manual_seed(0)
    m = Function(lambda m, x: m.stem(x).sqrt(), stem=nn.Conv2d(1, 1, 3, bias=False))
    nn.init.constant_(m.stem.weight, 1.0)
    plan = compile(m, torch.rand(1, 1, 8, 8), codec="hold", steps=0.0)
    # On deltas, however many there are.
    plan = replace(plan, ops=tuple(replace(op, crossover=1.0) if op.kind == "conv2d" else op for op in plan.ops))
    stream, flushes = plan.stream(backend), 0
    for k in range(40):  # one pixel after the other goes dark
        frame = 100 * torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        frame.view(-1)[: 2 * k] = 0
        assert torch.isfinite(stream(frame)).all()
        flushes += stream.flushed
    assert 1 < flushes < 20
