"""The native backend equals the reference: every operation, every instruction set, one thread and several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gathers import GATHERS, gather_plan
from hypothesis import given
from hypothesis import strategies as st
from random_plans import FLOAT_KINDS, MAP_KINDS, examples, frames, plans
from restored import check_goes_on
from torch import nn

import sparsetime
from sparsetime import _native
from sparsetime.engine import FrameError, InputSpec, Op, Plan
from sparsetime.engine.cpu import Native
from sparsetime.engine.reference import Reference


def leave_traces(native: Native, plan: Plan, seed: int) -> None:
    """Fill the memory that values share with what has no business there."""
    native.run(10 + frames(plan, 1, seed + 1)[0], keep=False)
    native.reset()


def check_equal(plan: Plan, seed: int, threads: int = 1) -> None:
    """With numbers that float32 does not round, every accumulator, value and count agrees to the bit."""
    native, reference = Native(plan, threads), Reference(plan)
    leave_traces(native, plan, seed)
    for t, frame in enumerate(frames(plan, 7, seed, dyadic=True)):
        for got, expected in zip(native.run(frame), reference.run(frame), strict=True):
            np.testing.assert_array_equal(got, expected)
        state = native.state()
        assert state.keys() == reference.state().keys()
        for name, expected in reference.state().items():
            np.testing.assert_array_equal(state[name], expected, err_msg=f"frame {t}, {name}")
        for op, got, expected in zip(plan.ops, native.stats(), reference.stats(), strict=True):
            assert got[:2] == expected[:2], (t, op.name)
            assert got.effective_macs == expected.effective_macs, (t, op.name)
            if got.path == expected.path:
                assert got.macs == expected.macs, (t, op.name)
        if t == 4:
            native.refresh()
            reference.refresh()


@pytest.mark.parametrize("kind", sorted(set(MAP_KINDS)))
def test_every_operation_equals_the_reference(isa, kind):
    @examples(10)
    @given(plans(dyadic=True, kinds=(kind, "conv2d", kind), operations=4), st.integers(0, 99))
    def check(plan, seed):
        check_equal(plan, seed)

    check()


@examples(120)
@given(plans(dyadic=True), st.integers(0, 99))
def test_networks_equal_the_reference(plan, seed):
    check_equal(plan, seed)


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize(
    ("place", "caused", "done"),  # outputs that the pixel reaches; inputs that these read: 4, 6 or 9 each
    [((0, 0), 4, 4 + 6 + 6 + 9), ((0, 4), 6, 3 * 6 + 3 * 9), ((3, 3), 9, 81), ((7, 7), 4, 25)],
)
def test_multiplications_are_counted_by_what_caused_them_and_by_what_was_done(precision, place, caused, done):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()).eval()
    clip = torch.rand(2, 3, 8, 8)
    plan = sparsetime.compile(module, clip[:1], steps=clip, codec="hold", precision=precision)
    frame = clip[0].numpy()
    moved = frame.copy()
    moved[:, place[0], place[1]] = 1.5 - moved[:, place[0], place[1]]
    for backend in ("cpu", "reference"):
        stream = plan.stream(backend=backend)
        stream(frame)
        first = stream.stats[plan.ops[1].name]
        assert first.macs == first.effective_macs == plan.dense_macs == 22 * 22 * 3 * 8
        stream(moved)
        entry = stream.stats[plan.ops[1].name]
        assert entry.effective_macs == caused * 3 * 8
        assert entry.macs == (done if entry.path == "dense" else caused) * 3 * 8
    assert (backend, entry.path) == ("reference", "sparse")


@examples(40)
@given(plans(dyadic=True), st.integers(0, 99))
def test_threads_change_nothing(plan, seed):
    check_equal(plan, seed, threads=3)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_frame_that_leaves_no_state_has_the_same_outputs(isa, threads):
    @examples(60)
    @given(plans(), st.integers(0, 99))
    def check(plan, seed):
        native, fresh = Native(plan, threads), Native(plan, threads)
        for number, frame in enumerate(frames(plan, 6, seed)):
            if number != 4:
                native.reset()
                fresh.reset()
            keep = number in (0, 3, 4)
            for got, expected in zip(native.run(frame, keep), fresh.run(frame), strict=True):
                np.testing.assert_array_equal(got, expected)
            state = native.state()
            assert bool(state) == keep
            for name, array in state.items():
                np.testing.assert_array_equal(array, fresh.state()[name], err_msg=name)

    check()


@pytest.mark.parametrize("kind", sorted(set(FLOAT_KINDS)))
def test_a_frame_that_leaves_no_state_sees_nothing_of_what_memory_held(isa, kind):
    """Bare operations, most of which hand on what they read, in memory that had values and deltas of other frames."""

    @examples(25)
    @given(plans(kinds=(kind, "conv2d", kind), codecs=(None,), activations=[None]), st.integers(0, 99))
    def check(plan, seed):
        native, fresh = Native(plan), Native(plan)
        leave_traces(native, plan, seed)
        *clip, last = frames(plan, 4, seed)
        for frame in clip:
            native.run(frame)
        native.reset()
        for got, expected in zip(native.run(last, keep=False), fresh.run(last), strict=True):
            np.testing.assert_array_equal(got, expected)

    check()


@pytest.mark.parametrize("name", GATHERS)
@pytest.mark.parametrize("codec", [True, False])
def test_gathers_of_every_form_equal_the_reference(isa, name, codec):
    check_equal(gather_plan(name, codec), seed=1, threads=2)


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 16, 23, 40, 150])
def test_layer_norm_over_more_and_less_than_vectors(isa, channels):
    """What lies behind the last channel does not count, in frames that leave no state either."""
    rng = np.random.default_rng(channels)
    shape = (1, channels, 3, 5)
    tensors = {role: rng.standard_normal(channels).astype(np.float32) for role in "wb"}
    ops = (
        Op("input", "input", (), (0,)),
        Op("affine", "double", (0,), (1,), {}, {"scale": "two", "shift": "two"}),
        Op("layer_norm", "norm", (1,), (2,), {"eps": 1e-5}, {"scale": "w", "shift": "b"}, {"kind": "silu"}),
    )
    plan = Plan("norm", (shape,) * 3, ops, (2,), {"output": 0}, {**tensors, "two": np.full(1, 2, np.float32)})
    native, exact = Native(plan), Reference(plan, dtype=torch.float64)
    leave_traces(native, plan, seed=1)
    for number, frame in enumerate(frames(plan, 6, seed=2)):
        if number in (2, 4):
            native.reset()
            exact.reset()
        (got,), (expected,) = native.run(frame, keep=number != 2), exact.run(frame)
        if number == 2:
            exact.reset()
        # Of two channels a difference of d is divided by about d / 2: its rounding grows with 1 / d.
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_the_mean_of_a_large_map_is_as_good_as_pytorchs(isa):
    """What squeezes a map to one number is magnified by what reads it."""
    shape, tables = (
        (1, 20, 96, 128),
        {"rows": np.asarray([[0, 96]], np.int32), "columns": np.asarray([[0, 128]], np.int32)},
    )
    tensors = tables | {"divisor": np.full((1, 1), 96 * 128, np.float32)}
    ops = (Op("input", "input", (), (0,)), Op("avg_pool2d", "mean", (0,), (1,), {}, {role: role for role in tensors}))
    plan = Plan("mean", (shape, (1, 20, 1, 1)), ops, (1,), {"output": 0}, tensors)
    frame = np.random.default_rng(0).random(shape, np.float32)
    (got,) = Native(plan).run(frame)
    # One after the other 12,288 numbers gather 40 eps here; rows of 128 and sums of 96 such rows a few.
    np.testing.assert_allclose(got.ravel(), frame.mean((0, 2, 3), np.float64), rtol=8 * np.finfo(np.float32).eps)


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (4, 2), (5, 5), (16, 1), (24, 3), (40, 40), (150, 5)])
@pytest.mark.parametrize("size", [(1, 1), (7, 13), (40, 30)])
def test_group_norm_of_maps_far_from_zero(isa, channels, groups, size):
    rng = np.random.default_rng(channels)
    shape = (1, channels, *size)
    tensors = {role: rng.standard_normal(channels).astype(np.float32) for role in "wb"}
    attributes, roles = {"groups": groups, "eps": 1e-2}, {"scale": "w", "shift": "b"}
    ops = (
        Op("input", "input", (), (0,)),
        Op("group_norm", "norm", (0,), (1,), attributes, roles, {"kind": "relu"}),
        Op("softmax", "softmax", (1,), (2,)),
    )
    plan = Plan("norm", (shape,) * 3, ops, (1, 2), {"tuple": [{"output": 0}, {"output": 1}]}, tensors)
    native, exact = Native(plan, threads=2), Reference(plan, dtype=torch.float64)
    leave_traces(native, plan, seed=1)
    # x scale + shift, each ten deviations from zero; a hundred where a group is one number.
    limit = 2e-4 if channels * np.prod(size) == groups else 2e-5
    for number, frame in enumerate(frames(plan, 5, seed=2)):
        shifted = frame + np.float32(10)
        if number in (0, 2):
            native.reset()
            exact.reset()
        for got, expected in zip(native.run(shifted, keep=number != 2), exact.run(shifted), strict=True):
            np.testing.assert_allclose(got, expected, rtol=0, atol=limit)
        if number == 2:
            exact.reset()


@pytest.mark.parametrize(
    ("windows", "heads", "queries", "keys", "depth", "width"),
    [
        (1, 1, 1, 1, 1, 1),
        (1, 3, 19, 19, 8, 8),
        (2, 1, 7, 40, 16, 5),
        (3, 2, 6, 33, 3, 17),
        (1, 2, 5, 150, 20, 24),
        (4, 4, 13, 13, 64, 64),
    ],
)
@pytest.mark.parametrize("bias", [None, (0, 0, 0), (1, 1, 1), (0, 1, 0), (1, 0, 1)])
def test_attention_over_more_and_less_than_vectors(isa, windows, heads, queries, keys, depth, width, bias):
    """Frames in which queries, keys of one window, or nothing changes; and one that leaves no state."""
    rng = np.random.default_rng(keys)
    rows = [(windows * queries, heads * depth), (windows * keys, heads * depth), (windows * keys, heads * width)]
    ends = np.cumsum([0, *(n * c for n, c in rows)])
    tensors = {name: np.arange(*ends[k : k + 2], dtype=np.int32) for k, name in enumerate("qkv")}
    shapes = [(1, int(ends[-1])), *((1, *shape) for shape in rows), (1, rows[0][0], rows[2][1])]
    roles = {}
    if bias is not None:
        extents = [n if own else 1 for n, own in zip((windows, heads, queries), bias, strict=True)]
        tensors["b"], roles = rng.standard_normal((*extents, keys)).astype(np.float32), {"bias": "b"}
    attributes = {"windows": windows, "heads": heads, "scale": depth**-0.5}
    ops = (
        Op("input", "input", (), (0,)),
        *(Op("gather", name, (0,), (n,), {}, {"index": name}) for n, name in enumerate("qkv", 1)),
        Op("attention", "attention", (1, 2, 3), (4,), attributes, roles),
    )
    plan = Plan("attention", tuple(shapes), ops, (4,), {"output": 0}, tensors)
    native, exact = Native(plan, threads=2), Reference(plan, dtype=torch.float64)
    leave_traces(native, plan, seed=1)
    frame = rng.standard_normal(shapes[0]).astype(np.float32)
    for number, first in enumerate([0, ends[0], ends[1], ends[2], ends[3], 0]):
        frame = frame.copy()
        frame[:, first : first + depth] += 1
        if number in (0, 5):
            native.reset()
            exact.reset()
        (got,), (expected,) = native.run(frame, keep=number != 5), exact.run(frame)
        # Means of numbers of size 1, by weights whose exponents are sums of `depth` products.
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_attention_is_computed_again_only_in_windows_that_changed():
    shape = (1, 6, 2)
    ops = (
        Op("input", "input", (), (0,)),
        Op("attention", "attention", (0, 0, 0), (1,), {"windows": 3, "heads": 1, "scale": 1.0}),
    )
    plan = Plan("attention", (shape, shape), ops, (1,), {"output": 0}, {})
    stream, frame = plan.stream(), np.arange(12, dtype=np.float32).reshape(shape) / 10
    stream(frame)
    frame[0, 2] += 0.5
    stream(frame)
    assert stream.stats["attention"].events == 4  # two places of two channels


@pytest.mark.parametrize("activation", [{"kind": "elu", "alpha": 0.7}, {"kind": "mish"}])
def test_activations_from_the_least_numbers_to_the_largest(isa, activation):
    x = np.concatenate([[0], np.logspace(-30, 1.9, 500), [88, 90, 1e4, 1e19, 3e38]]).astype(np.float32)
    x = np.concatenate([x, -x])[None]
    ops = (Op("input", "input", (), (0,)), Op("identity", "activation", (0,), (1,), activation=activation))
    plan = Plan("activation", (x.shape,) * 2, ops, (1,), {"output": 0}, {})
    (got,), (expected,) = Native(plan).run(x), Reference(plan, dtype=torch.float64).run(x)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-34)


@pytest.mark.parametrize("channels", [3, 8, 40])
def test_channels_of_zeros_are_zeros_in_a_frame_that_leaves_no_state(isa, channels):
    index = np.full(2 * channels, -1, np.int32)
    index[channels // 2] = 0
    tensors = {"s": np.ones(1, np.float32), "i": index, "w": np.ones((5, 2 * channels, 1, 1), np.float32)}
    conv = {"stride": [1, 1], "padding": [0] * 4, "dilation": [1, 1], "groups": 1}
    ops = (
        Op("input", "input", (), (0,), codec={"kind": "hold", "tensor": "s"}),
        Op("identity", "relu", (0,), (1,), {}, {}, {"kind": "relu"}),
        Op("channels", "zeros", (1,), (2,), {}, {"index": "i"}),
        Op("conv2d", "conv", (2,), (3,), conv, {"weight": "w"}, {"kind": "relu"}),
    )
    small = (1, channels, 4, 4)
    plan = Plan("zeros", (small, small, (1, 2 * channels, 4, 4), (1, 5, 4, 4)), ops, (3,), {"output": 0}, tensors)
    native, frame = Native(plan), np.full(small, 3, np.float32)
    for factor in (2, 3, 4):
        native.run(factor * frame)
    native.reset()
    np.testing.assert_array_equal(native.run(frame, keep=False)[0], np.full((1, 5, 4, 4), 3))


@pytest.mark.parametrize("later", _native.available())
def test_channels_are_picked_with_the_kernels_that_they_were_laid_out_for(isa, later):
    index = np.concatenate([np.arange(0, 64, 2), np.arange(1, 64, 2)]).astype(np.int32)
    ops = (
        Op("input", "input", (), (0,), codec={"kind": "hold", "tensor": "s"}),
        Op("channels", "halves", (0,), (1,), {}, {"index": "i"}),
    )
    shape = (1, 64, 3, 3)
    tensors = {"s": np.full(1, 1e-3, np.float32), "i": index}
    native = Native(Plan("halves", (shape, shape), ops, (1,), {"output": 0}, tensors))
    _native.select(later)
    rng = np.random.default_rng(0)
    for _ in range(3):
        frame = rng.random(shape, dtype=np.float32)
        np.testing.assert_allclose(native.run(frame)[0], frame[:, index], atol=2e-3)  # twice the threshold


@examples(60)
@given(plans(codecs=(None,)), st.integers(0, 99))
def test_rounding_is_that_of_float32(plan, seed):
    """Without codecs nothing amplifies rounding: against float64, native errs little more than PyTorch does."""
    native, plain, exact = Native(plan), Reference(plan), Reference(plan, dtype=torch.float64)
    for frame in frames(plan, 5, seed):
        native.run(frame)
        plain.run(frame)
        exact.run(frame)
        state, rounded = native.state(), plain.state()
        for name, truth in exact.state().items():
            scale = max(1.0, np.abs(truth).max())
            allowed = 2 * np.abs(rounded[name] - truth).max() + 2e-5 * scale
            assert np.abs(state[name] - truth).max() <= allowed, name


@examples(30)
@given(plans(), st.integers(0, 99))
def test_restore_is_exact(plan, seed):
    native = Native(plan)
    clip = frames(plan, 6, seed)
    for frame in clip[:3]:
        native.run(frame)
    kept = native.state()
    first = [native.run(frame) for frame in clip[3:]]
    last = native.state()
    native.reset()
    native.run(clip[5])
    native.restore(kept)
    for name, expected in native.state().items():
        np.testing.assert_array_equal(expected, kept[name], err_msg=name)
    for frame, expected in zip(clip[3:], first, strict=True):
        for a, b in zip(native.run(frame), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert native.state().keys() == last.keys()


@examples(40)
@given(plans(), st.integers(0, 99))
def test_a_reset_forgets_everything(plan, seed):
    """Which paths the frames before took decides how sums are rounded: it is not to be told behind a reset."""
    native, fresh = Native(plan), Native(plan)
    *before, first, second, third = frames(plan, 7, seed)
    for frame in before:
        native.run(frame)
    native.reset()
    for frame in (first, second, third):
        for got, expected in zip(native.run(frame), fresh.run(frame), strict=True):
            np.testing.assert_array_equal(got, expected)
        for name, array in fresh.state().items():
            np.testing.assert_array_equal(native.state()[name], array, err_msg=name)


def test_a_reset_forgets_what_convolutions_needed():
    """Where everything changes they need no deltas; in a new stream, one changed pixel is added event by event."""
    rng = np.random.default_rng(0)
    plan = sparsetime.compile(nn.Conv2d(8, 8, 3, padding=1).eval(), torch.zeros(1, 8, 24, 24), codec="hold", steps=0.1)
    native, fresh = Native(plan), Native(plan)
    *before, first = rng.standard_normal((4, 1, 8, 24, 24)).astype(np.float32)
    for frame in before:
        native.run(frame)
    assert native.stats()[1].path == "dense"
    native.reset()
    second = first.copy()
    second[0, 0, 12, 12] += 1
    for executor in (native, fresh):
        executor.run(first)
        executor.run(second)
        assert executor.stats()[1].path == "sparse"


@examples(40)
@given(plans(dyadic=True), st.integers(0, 99))
def test_a_flush_forgets_the_state(plan, seed):
    native, reference = Native(plan), Reference(plan)
    for number, frame in enumerate(frames(plan, 8, seed, dyadic=True)):
        if number in (3, 4, 6):
            native.flush()
            reference.flush()
        for got, expected in zip(native.run(frame), reference.run(frame), strict=True):
            np.testing.assert_array_equal(got, expected)
        assert native.flushed == reference.flushed == (number in (0, 3, 4, 6))
        for name, array in reference.state().items():
            np.testing.assert_array_equal(native.state()[name], array, err_msg=name)


@examples(20)
@given(plans(), st.integers(0, 99))
def test_a_still_frame_costs_nothing(plan, seed):
    native = Native(plan)
    frame = frames(plan, 1, seed)[0]
    for _ in range(3):
        native.run(frame)
    assert sum(entry.macs for entry in native.stats()) == 0
    assert sum(entry.events for entry in native.stats()) == 0


@pytest.mark.parametrize("crossover", [0.0, 1.0])
def test_a_stated_crossover_changes_the_path_alone(crossover):
    @examples(25)
    @given(plans(dyadic=True, kinds=("conv2d", "depthwise")), st.integers(0, 99))
    def check(plan, seed):
        ops = tuple(replace(op, crossover=crossover) if op.kind == "conv2d" else op for op in plan.ops)
        check_equal(replace(plan, ops=ops), seed)

    check()


@pytest.mark.parametrize("codec", ["hold", "pixel"])
@pytest.mark.parametrize("crossover", [None, 0.0, 1.0])
@pytest.mark.parametrize(
    ("channels", "out", "groups", "kernel", "stride"),
    [
        # Groups of less than a vector, of one and a half, of more than a block of channels; half vectors of outputs.
        *((96, 96, 24, 3, 1), (72, 72, 3, 3, 1), (144, 96, 3, 3, 2), (40, 120, 5, 1, 1)),
        *((36, 72, 36, 3, 1), (128, 16, 4, 5, 1), (4, 8, 2, 3, 1), (66, 22, 11, 2, 2)),
    ],
)
def test_groups_equal_the_reference(isa, channels, out, groups, kernel, stride, crossover, codec):
    rng = np.random.default_rng(channels + out)
    tensors = {
        "s": np.asarray([0.25], np.float32),
        "w": (rng.integers(-2, 3, (out, channels // groups, kernel, kernel)) / 2).astype(np.float32),
    }
    conv = {"stride": [stride] * 2, "padding": [kernel // 2] * 4, "dilation": [1, 1], "groups": groups}
    sides = [(n + 2 * (kernel // 2) - kernel) // stride + 1 for n in (7, 9)]
    ops = (
        Op("input", "input", (), (0,), codec={"kind": codec, "tensor": "s"}),
        Op("conv2d", "conv", (0,), (1,), conv, {"weight": "w"}, {"kind": "relu"}, crossover=crossover),
    )
    plan = Plan("groups", ((1, channels, 7, 9), (1, out, *sides)), ops, (1,), {"output": 0}, tensors)
    for threads in (1, 2):
        check_equal(plan, seed=1, threads=threads)


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("crossover", [0.0, 0.5, 1.0])
def test_a_stated_crossover_of_a_depthwise_convolution_changes_nothing(isa, kernel, crossover):
    rng = np.random.default_rng(kernel)
    tensors = {
        "s": np.asarray([0.25], np.float32),
        "w": (rng.integers(-2, 3, (16, 1, kernel, kernel)) / 2).astype(np.float32),
    }
    conv = {"stride": [1, 1], "padding": [kernel // 2] * 4, "dilation": [1, 1], "groups": 16}
    ops = (
        Op("input", "input", (), (0,), codec={"kind": "hold", "tensor": "s"}),
        Op("conv2d", "conv", (0,), (1,), conv, {"weight": "w"}, {"kind": "relu"}, crossover=crossover),
    )
    check_equal(Plan("depthwise", ((1, 16, 12, 12),) * 2, ops, (1,), {"output": 0}, tensors), seed=1)


def test_a_convolution_whose_events_would_take_gigabytes_of_scratch_equals_the_reference():
    """2^18 columns of sums of 2^14 channels: 2^32 floats in one row."""
    wide, taps, channels = 2**17, 17, 2**14
    rng = np.random.default_rng(0)
    tensors = {
        "s": np.asarray([0.25], np.float32),
        "w": rng.integers(-2, 3, (channels, 3, 1, taps)).astype(np.float32),
    }
    conv = {"stride": [1, 1], "padding": [0, 0, 0, 1], "dilation": [1, 2**13], "groups": 1}
    ops = (
        Op("input", "input", (), (0,), codec={"kind": "hold", "tensor": "s"}),
        Op("conv2d", "conv", (0,), (1,), conv, {"weight": "w"}, {"kind": "relu"}, crossover=1.0),
    )
    plan = Plan("vast", ((1, 3, 1, wide), (1, channels, 1, 1)), ops, (1,), {"output": 0}, tensors)
    native = Native(plan)
    frame = np.ones((1, 3, 1, wide), np.float32)
    native.run(frame)
    frame[0, 1, 0, 2**13] = 5
    (got,) = native.run(frame)
    inside = tensors["w"][..., : taps - 1]  # the last tap lies in the padding
    expected = np.maximum(inside.sum((1, 2, 3)) + 4 * inside[:, 1, 0, 1], 0)
    np.testing.assert_array_equal(got.ravel(), expected)
    assert native.memory_bytes < 2**26


@pytest.mark.parametrize("crossover", [None, 0.0, 1.0])
@pytest.mark.parametrize(("kernel", "stride"), [((1, 1), (2, 2)), ((1, 3), (2, 1)), ((3, 1), (1, 2))])
def test_a_convolution_none_of_whose_taps_meets_the_input_adds_its_residual(isa, kernel, stride, crossover):
    """One pixel and a border: of the even axes the taps lie beside it, and so no sum is of the input."""
    channels = 64
    tensors = {"s": np.asarray([0.25], np.float32), "w": np.ones((16, channels, *kernel), np.float32)}
    tensors["i"] = np.arange(16, dtype=np.int32)
    sides = [1 if k == 3 else 2 for k in kernel]
    padding = [p for k in kernel for p in (1, 1)]
    conv = {"stride": list(stride), "padding": padding, "dilation": [1, 1], "groups": 1}
    border = {"padding": [0, sides[0] - 1, 0, sides[1] - 1], "value": 0.0}
    ops = (
        Op("input", "input", (), (0,), codec={"kind": "exact", "tensor": "s"}),
        Op("channels", "some", (0,), (1,), {}, {"index": "i"}),
        Op("pad", "border", (1,), (2,), border),
        Op("conv2d", "conv", (0, 2), (3,), conv, {"weight": "w"}, {"kind": "relu"}, crossover=crossover),
    )
    out = (1, 16, *sides)
    plan = Plan("beside", ((1, channels, 1, 1), (1, 16, 1, 1), out, out), ops, (3,), {"output": 0}, tensors)
    native, reference = Native(plan), Reference(plan)
    frame = np.ones(plan.input_shape, np.float32)
    for channel in (0, 3, 40, 15):
        frame[0, channel] += 8
        np.testing.assert_array_equal(native.run(frame)[0], reference.run(frame.copy())[0])
    assert native.stats()[3].path == ("dense" if crossover == 0 else "sparse")


@pytest.mark.parametrize(("right", "bottom"), [(40, 1), (1, 40), (40, 40)])
def test_a_residual_may_touch_outputs_that_no_tap_reaches(isa, right, bottom):
    """Far right of the map and below it, in padding: everywhere the residual is the first element of the input."""
    rng = np.random.default_rng(0)
    out = (1, 16, 6 + bottom - 1, 18 + right - 1)
    tensors = {
        "s": np.asarray([0.25], np.float32),
        "w": (rng.integers(-2, 3, (16, 5, 3, 3)) / 2).astype(np.float32),
        "i": np.zeros(np.prod(out), np.int32),
    }
    conv = {"stride": [1, 1], "padding": [1, bottom, 1, right], "dilation": [1, 1], "groups": 1}
    ops = (
        Op("input", "input", (), (0,)),
        Op("gather", "first", (0,), (1,), {}, {"index": "i"}),
        Op("conv2d", "conv", (0, 1), (2,), conv, {"weight": "w"}, {"kind": "relu"}, {"kind": "exact", "tensor": "s"},
           crossover=1.0),
    )  # fmt: skip
    plan = Plan("far", ((1, 5, 6, 18), out, out), ops, (2,), {"output": 0}, tensors)
    native, reference = Native(plan), Reference(plan)
    frame = np.zeros(plan.input_shape, np.float32)
    for value in (0, 1, 2, 3):
        frame[0, 0, 0, 0] = value
        np.testing.assert_array_equal(native.run(frame)[0], reference.run(frame.copy())[0])
    assert native.stats()[2].path == "sparse"
    check_equal(plan, seed=1)


def test_an_overflow_leaves_nothing_to_the_layers_behind_it(isa):
    """Of three sums a vector, infinite changes times zeros in its other lanes: scratch is shared by all layers."""
    f = np.float32
    tensors = {"s": np.asarray([0.25], f), "big": np.full(1, 1e38, f)}
    tensors |= {"few": np.ones((2, 64, 3, 3), f), "many": np.ones((16, 64, 3, 3), f)}
    conv = {"stride": [1, 1], "padding": [1] * 4, "dilation": [1, 1], "groups": 1}
    ops = (
        Op("input", "input", (), (0,), codec={"kind": "hold", "tensor": "s"}),
        Op("affine", "large", (0,), (1,), {}, {"scale": "big"}, {"kind": "leaky_relu", "slope": 1.0}),
        Op("conv2d", "overflows", (1,), (2,), conv, {"weight": "few"}, {"kind": "relu"}, crossover=1.0),
        Op("conv2d", "sound", (0,), (3,), conv, {"weight": "many"}, {"kind": "relu"}, crossover=1.0),
    )
    shapes = tuple((1, channels, 8, 8) for channels in (64, 64, 2, 16))
    plan = Plan("overflow", shapes, ops, (3,), {"output": 0}, tensors)
    native, reference = Native(plan), Reference(plan)
    frame = np.ones(plan.input_shape, f)
    for value in (1, 100, 2, 3):
        frame[0, 3, 4, 4] = value
        np.testing.assert_array_equal(native.run(frame)[0], reference.run(frame.copy())[0])
    assert native.stats()[3].path == "sparse"


def test_an_overflow_does_not_silence_pixels_of_another_layer(isa):
    f = np.float32
    tensors = {"s": np.asarray([0.25], f), "w": np.full((32, 40, 1, 1), 3e38, f), "i": np.arange(17, dtype=np.int32)}
    conv = {"stride": [1, 1], "padding": [0] * 4, "dilation": [1, 1], "groups": 1}
    bounds = {"kind": "clamp", "min": 0.0, "max": 6.0}
    ops = (
        Op("input", "input", (), (0,), codec={"kind": "hold", "tensor": "s"}),
        Op("conv2d", "overflows", (0,), (1,), conv, {"weight": "w"}, bounds, {"kind": "exact", "tensor": "s"}),
        Op("channels", "sound", (0,), (2,), {}, {"index": "i"}, {"kind": "relu"}, {"kind": "pixel", "tensor": "s"}),
    )
    shapes = tuple((1, channels, 4, 4) for channels in (40, 32, 17))
    plan = Plan("overflow", shapes, ops, (2, 1), {"tuple": [{"output": 0}, {"output": 1}]}, tensors)
    native = Native(plan)
    for value in (2, 3, 4):
        sound, bounded = native.run(np.full(plan.input_shape, value, f))
        np.testing.assert_array_equal(sound, np.full(shapes[2], value))
        np.testing.assert_array_equal(bounded, np.full(shapes[1], 6))


def camera_plan(channels: int, color: str, codec: str | None) -> Plan:
    """An input of 20 x 37 and nothing else."""
    spec = InputSpec((3.0, 5.5, 7.0, 9.0)[:channels], (2.0, 3.0, 7.0, 11.0)[:channels], color)
    step = np.full(channels, 0.7, np.float32)
    entry = None if codec is None else {"kind": codec, "tensor": "step"}
    ops = (Op("input", "input", (), (0,), codec=entry),)
    return Plan("camera", ((1, channels, 20, 37),), ops, (0,), {"output": 0}, {"step": step} if codec else {}, spec)


def depthwise_plan(width: int, kernel: int, stride: int, dilation: int, channels: int, bounds: Any) -> Plan:
    """A depthwise convolution of a map of 6 rows, and one of single pixels, to which it is added."""
    rng = np.random.default_rng(width + kernel)
    before = dilation * (kernel // 2)
    after = before - (stride - 1)
    conv = {"stride": [stride] * 2, "padding": [before, after] * 2, "dilation": [dilation] * 2, "groups": channels}
    point = {"stride": [1, 1], "padding": [0] * 4, "dilation": [1, 1], "groups": 1}
    codec = {"kind": "pixel", "tensor": "step"}
    tensors = {
        "kernel": rng.integers(-2, 3, (channels, 1, kernel, kernel)) / 2,
        "mix": rng.integers(-1, 2, (channels, channels, 1, 1)) / 2,
        "bias": rng.integers(-2, 3, channels) / 2,
        "step": rng.choice([0.5, 1.0, 2.0], channels),
    }
    ops = (
        Op("input", "input", (), (0,), codec=codec),
        Op("conv2d", "depthwise", (0,), (1,), conv, {"weight": "kernel", "bias": "bias"},
           {"kind": "clamp", "min": bounds[0], "max": bounds[1]}, codec),
        Op("conv2d", "mix", (1, 1), (2,), point, {"weight": "mix"}, None, codec),
    )  # fmt: skip
    small = (1, channels, 6 // stride, width // stride)
    values = ((1, channels, 6, width), small, small)
    return Plan("depthwise", values, ops, (2,), {"output": 0}, {k: v.astype(np.float32) for k, v in tensors.items()})


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"),
    [
        *((3, 1, 1), (3, 2, 1), (5, 1, 1), (5, 2, 1), (7, 1, 1), (7, 2, 1), (3, 1, 2), (3, 1, 4)),
        *((3, 1, 3), (5, 2, 2), (9, 1, 1), (11, 2, 1)),
    ],
)
def test_depthwise_convolutions_compare_as_the_reference_does(isa, kernel, stride, dilation):
    """At the borders, in maps narrower than the kernel, in runs of all lengths, where a bound fills padding."""
    for width in (2, 3, 4, 7, 12, 19):
        for channels, bounds in ((20, (0.0, 6.0)), (70, (0.5, 3.0)), (16, (0.0, None))):
            plan = depthwise_plan(width, kernel, stride, dilation, channels, bounds)
            check_equal(plan, seed=width, threads=1 + width % 2)


def resized_plan(channels: int, row_taps: int, column_taps: int) -> Plan:
    """A map of 7 x 9 that is resized to 12 x 21, which only the caller reads."""
    rng = np.random.default_rng(channels)
    tensors: dict[str, Any] = {}
    for role, weights, size, n, taps in (
        ("rows", "row_weights", 7, 12, row_taps),
        ("columns", "column_weights", 9, 21, column_taps),
    ):
        tensors[role] = np.sort(rng.integers(0, size, (n, taps)), axis=0).astype(np.int32)
        tensors[weights] = (rng.integers(-2, 5, (n, taps)) / 4).astype(np.float32)
    ops = (
        Op("input", "input", (), (0,)),
        Op("affine", "affine", (0,), (1,), {}, {"scale": "scale"}),
        Op("resize2d", "resize", (1,), (2,), {}, {role: role for role in tensors}),
    )
    values = ((1, channels, 7, 9), (1, channels, 7, 9), (1, channels, 12, 21))
    return Plan("resized", values, ops, (2, 2), {"tuple": [{"output": 0}, {"output": 1}]},
                {**tensors, "scale": np.ones(1, np.float32)})  # fmt: skip


@pytest.mark.parametrize("taps", [(1, 1), (2, 2), (4, 4), (5, 3)])
@pytest.mark.parametrize("channels", [1, 3, 21])
def test_a_resized_map_that_only_the_caller_reads_equals_the_reference(isa, channels, taps):
    for threads in (1, 3):
        check_equal(resized_plan(channels, *taps), seed=5, threads=threads)


def test_a_resized_map_that_only_the_caller_reads_goes_on_from_a_restored_state():
    plan = resized_plan(3, 2, 2)
    for stats in check_goes_on(plan, frames(plan, 6, 3, dyadic=True), values=(2,)):
        assert 0 < stats[2].events < 3 * 12 * 21  # partly changed: a wrong state before it would show


def test_outputs_that_somebody_holds_are_never_written_again():
    plan = resized_plan(3, 2, 2)
    stream = plan.stream()
    clip = frames(plan, 8, 0)
    held = [stream(frame)[0] for frame in clip]
    copies = [output.copy() for output in held]
    views = [held.pop(0)[0, 1], torch.from_numpy(held.pop(0)), memoryview(held.pop(0))]
    for frame in clip:
        stream(frame)
    for got, expected in zip([views[0][None], *views[1:], *held], [copies[0][:, 1], *copies[1:]], strict=True):
        np.testing.assert_array_equal(got, expected)


def test_memory_of_dropped_outputs_is_used_again():
    plan = resized_plan(3, 2, 2)
    stream = plan.stream()
    frame = frames(plan, 1, 0)[0]
    outputs = stream(frame)
    first = {output.ctypes.data for output in outputs}
    assert len(first) == 2
    del outputs
    assert {output.ctypes.data for output in stream(frame)} == first
    outputs = stream(frame)
    del stream
    np.testing.assert_array_equal(outputs[0], outputs[1])  # still there when the stream is not


def shuffled_plan(channels: int) -> Plan:
    """Halves of an input that are joined, shuffled, joined and shuffled again, with a convolution behind."""
    rng = np.random.default_rng(channels)
    both = 2 * channels
    shuffle = np.arange(both).reshape(2, channels).T.ravel()
    distant = rng.permutation(both)
    distant[0] = -1  # a channel of zeros
    tensors: dict[str, Any] = {
        "left": shuffle[:channels], "right": shuffle[channels:], "far": distant,
        "weight": rng.integers(-2, 3, (5, both, 1, 1)) / 2, "step": np.asarray([0.5]),
    }  # fmt: skip
    tensors = {
        name: array.astype(np.int32 if array.dtype == np.int64 else np.float32) for name, array in tensors.items()
    }
    conv = {"stride": [1, 1], "padding": [0, 0, 0, 0], "dilation": [1, 1], "groups": 1}
    ops = (
        Op("input", "input", (), (0,)),
        Op("channels", "left", (0,), (1,), {}, {"index": "left"}),
        Op("channels", "right", (0,), (2,), {}, {"index": "right"}),
        Op("max_pool2d", "still", (2,), (3,), {"dilation": [1, 1]}, {"rows": "rows", "columns": "columns"}),
        Op("cat", "joined", (1, 3), (4,), {"axis": 1}),  # read by the next two alone: not kept
        Op("channels", "again left", (4,), (5,), {}, {"index": "left"}),
        Op("channels", "again far", (4,), (6,), {}, {"index": "far"}),
        Op("cat", "kept", (5, 1), (7,), {"axis": 1}),
        Op("conv2d", "conv", (7,), (8,), conv, {"weight": "weight"}, codec={"kind": "exact", "tensor": "step"}),
        Op("conv2d", "far conv", (6,), (9,), conv, {"weight": "weight"}, codec={"kind": "exact", "tensor": "step"}),
        Op("cat", "out", (8, 6), (10,), {"axis": 1}),  # read by the caller alone: not kept
    )
    for name, n in (("rows", 11), ("columns", 13)):
        tensors[name] = np.stack([np.maximum(np.arange(n) - 1, 0), np.minimum(np.arange(n) + 2, n)], 1).astype(np.int32)
    counts = (both, channels, channels, channels, both, channels, both, both, 5, 5, 5 + both)
    values = tuple((1, n, 11, 13) for n in counts)
    return Plan("shuffled", values, ops, (10, 4, 7), {"tuple": [{"output": k} for k in range(3)]}, tensors)


@pytest.mark.parametrize("crossover", [0.0, 1.0])  # what the moves hand on is wanted as rows, and as events
@pytest.mark.parametrize("channels", [2, 3, 24, 40])
def test_moves_of_channels_equal_the_reference(isa, channels, crossover):
    plan = shuffled_plan(channels)
    ops = tuple(replace(op, crossover=crossover) if op.kind == "conv2d" else op for op in plan.ops)
    for threads in (1, 3):
        check_equal(replace(plan, ops=ops), seed=2, threads=threads)


class Joined(nn.Module):
    """A convolution behind six channels that are joined, of which the first three are the input's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(6, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.conv(torch.cat([x, x.relu()], 1))
        return y, self.last(y.relu().mean((2, 3)))


@pytest.mark.parametrize("codec", ["exact", "hold"])
def test_joined_channels_end_with_the_last_one(codec):
    """Values share memory for deltas, and what another one left behind a row is no event."""
    for seed in range(8):
        torch.manual_seed(seed)
        frame = torch.randn(1, 3, 12, 14)
        plan = sparsetime.compile(Joined().eval(), frame, codec=codec, levels=16)
        native, reference = plan.stream(), plan.stream(backend="reference")
        for share in (0, 0.02, 0.5, 0.02, 0.3):
            moved = torch.rand(frame.shape) < share
            frame = torch.where(moved, torch.randn(frame.shape), frame)
            for got, expected in zip(native(frame), reference(frame), strict=True):
                np.testing.assert_allclose(got, expected, atol=1e-5)  # sums of 54 products of about 1
            stats = native.stats
            assert stats["cat"].events == stats["conv"].events_in == reference.stats["cat"].events


def test_moves_of_channels_go_on_from_a_restored_state():
    plan = shuffled_plan(24)
    check_goes_on(plan, frames(plan, 6, 3, dyadic=True))


@pytest.mark.parametrize("crossover", [0.0, 1.0])
@pytest.mark.parametrize("codec", [None, "exact", "hold", "residual"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_what_a_wide_input_sends_equals_the_reference(isa, channels, codec, crossover):
    """Rows of more pixels than a vector has lanes, and rests of rows, read as rows and as events."""
    rng = np.random.default_rng(channels)
    tensors = {
        "step": np.full(channels, 0.5, np.float32),
        "coarse": np.asarray([0.5], np.float32),
        "weight": (rng.integers(-2, 3, (5, channels, 3, 3)) / 2).astype(np.float32),
    }
    conv = {"stride": [1, 1], "padding": [1, 1, 1, 1], "dilation": [1, 1], "groups": 1}
    ops = (
        Op("input", "input", (), (0,), codec=None if codec is None else {"kind": codec, "tensor": "step"}),
        Op("conv2d", "conv", (0,), (1,), conv, {"weight": "weight"}, None, {"kind": "exact", "tensor": "coarse"},
           crossover=crossover),
    )  # fmt: skip
    if codec is None:
        del tensors["step"]
    plan = Plan("wide", ((1, channels, 9, 53), (1, 5, 9, 53)), ops, (1,), {"output": 0}, tensors)
    check_equal(plan, seed=7)


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "pixels": lambda x: x,
    "planes": lambda x: np.ascontiguousarray(x.transpose(2, 0, 1)),
    "floats": lambda x: np.ascontiguousarray(x.transpose(2, 0, 1)[None].astype(np.float32)),
    "float pixels": lambda x: x.astype(np.float32),
    "part of a larger frame": lambda x: np.pad(x, ((2, 3), (4, 1), (0, 0)))[2:-3, 4:-1],
    "columns first": np.asfortranarray,
}


@pytest.mark.parametrize("codec", [None, "exact", "hold", "pixel", "residual"])
@pytest.mark.parametrize("color", ["rgb", "bgr"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_frames_of_every_layout_equal_the_reference(isa, channels, color, codec):
    rng = np.random.default_rng(channels)
    plan = camera_plan(channels, color, codec)
    native, reference = plan.stream(), plan.stream("reference")
    video = [rng.integers(0, 256, (20, 37, channels), dtype=np.uint8)]
    for k in range(11):
        after = video[-1].copy()
        y, x, size = int(rng.integers(0, 18)), int(rng.integers(0, 30)), (0, 1, 3, 20)[k % 4]
        after[y : y + size, x : x + size] = rng.integers(0, 256, after[y : y + size, x : x + size].shape)
        video.append(after)
    for name in [*LAYOUTS, "pixels", "planes"]:
        for frame in video:
            got, expected = native(LAYOUTS[name](frame)), reference(LAYOUTS[name](frame))
            np.testing.assert_array_equal(got, expected, err_msg=name)
            assert native.stats["input"].events == reference.stats["input"].events, name


@pytest.mark.parametrize(("channels", "color"), [(1, "rgb"), (2, "rgb"), (3, "rgb"), (3, "bgr"), (4, "rgb")])
def test_a_noisy_camera_is_sent_as_the_reference_sends_it(isa, channels, color):
    """Bytes that drift by about their thresholds; in between frames of floats, planes and a restored state."""
    rng = np.random.default_rng(channels)
    plan = camera_plan(channels, color, "pixel")
    native, reference = plan.stream(), plan.stream("reference")
    frame = rng.integers(20, 230, (20, 37, channels))
    sent = 0
    for t in range(60):
        frame = np.clip(frame + rng.integers(-2, 3, frame.shape) * (rng.random(frame.shape) < 0.6), 0, 255)
        if t % 10 == 7:
            frame[3:9, 20:33] = rng.integers(0, 256, (6, 13, channels))
        given = frame.astype(np.uint8)
        if t % 20 == 13:
            given = given.astype(np.float32).transpose(2, 0, 1) / 4  # no bytes
        if t % 20 == 16:
            given = np.ascontiguousarray(given.transpose(2, 0, 1))
        got, expected = native(given), reference(given)
        np.testing.assert_array_equal(got, expected, err_msg=f"frame {t}")
        assert native.stats["input"].events == reference.stats["input"].events, t
        sent += native.stats["input"].events
        if t % 20 == 4:
            native.restore(native.snapshot())
        if t == 30:
            native.reset()
            reference.reset()
    assert 0.05 < sent / (60 * frame.size) < 0.9  # or the thresholds were not at work


@pytest.mark.parametrize("codec", [None, "hold", "pixel"])
@pytest.mark.parametrize("layout", ["pixels", "planes", "floats"])
def test_frames_that_differ_everywhere_and_then_hardly(layout, codec):
    """For a while frames are not compared with the one before; nothing must be compared with an older one then."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (3, 20, 37, 3), dtype=np.uint8)
    plan = camera_plan(3, "rgb", codec)
    native, reference = plan.stream(), plan.stream("reference")
    for number in (0, 1, *(2, 0) * 3, 2, 1, 1, 1, 0, *(2, 0) * 3, 2, 0, 0, 0) * 2:
        frame = pictures[number].copy()
        y, x = rng.integers(0, 20), rng.integers(0, 37)
        frame[y, x] = 255 - frame[y, x] if number == 1 else frame[y, x]
        np.testing.assert_array_equal(native(LAYOUTS[layout](frame)), reference(LAYOUTS[layout](frame)))
        assert native.stats["input"].events == reference.stats["input"].events


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("layout", ["floats", "float pixels", "part of a larger frame"])
def test_a_frame_that_is_not_finite_leaves_the_stream_as_it_was(isa, wrong, layout):
    plan = camera_plan(3, "rgb", "hold")
    stream = plan.stream()
    frame = np.random.default_rng(0).random((20, 37, 3), dtype=np.float32)
    first = stream(LAYOUTS[layout](frame))
    bad = frame + 1
    bad[11, 5, 2] = wrong
    with pytest.raises(FrameError, match="NaN or infinity"):
        stream(LAYOUTS[layout](bad))
    np.testing.assert_array_equal(stream.snapshot()["0.value"], first)
    for added in range(2, 7):  # a frame that differs everywhere is not compared with the one before
        np.testing.assert_array_equal(stream(LAYOUTS[layout](frame + added)), frame.transpose(2, 0, 1)[None] + added)
        with pytest.raises(FrameError, match="NaN or infinity"):
            stream(LAYOUTS[layout](bad))
        np.testing.assert_array_equal(stream.snapshot()["0.value"], frame.transpose(2, 0, 1)[None] + added)


@pytest.mark.parametrize("codec", ["hold", "pixel"])
@pytest.mark.parametrize("channels", [32, 40, 100])
def test_a_first_frame_of_sums_in_several_passes_over_their_terms(isa, codec, channels):
    """Numbers of few bits, so that no order of 7200 terms rounds."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 800, 1), nn.ReLU(), nn.Conv2d(800, channels, 3, 1, 1), nn.ReLU6(), nn.Conv2d(channels, 800, 1)
    ).eval()
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -2, 2)
        parameter.data.round_().div_(4)
    plan = sparsetime.compile(module, torch.zeros(1, 3, 5, 7), codec=codec, steps=0.5)
    native, reference = Native(plan), Reference(plan)
    for frame in frames(plan, 3, seed=1, dyadic=True):
        native.reset()
        reference.reset()
        for got, expected in zip(native.run(frame), reference.run(frame), strict=True):
            np.testing.assert_array_equal(got, expected)
        for name, expected in reference.state().items():
            np.testing.assert_array_equal(native.state()[name], expected, err_msg=name)
