"""The reference backend means what docs/plan.md says: at every frame it equals the dense network."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_plans import FLOAT_KINDS, examples, frames, plans

from sparsetime.engine import Op, Plan
from sparsetime.engine.reference import Reference

EXACT = ("exact", None)  # codecs without memory: what they send depends on the present alone


@examples(200)
@given(plans(codecs=EXACT), st.integers(0, 99))
def test_deltas_equal_the_dense_quantised_network(plan, seed):
    check_against_dense(plan, seed)


@pytest.mark.parametrize("kind", sorted(set(FLOAT_KINDS)))
def test_every_operation_on_deltas_equals_dense(kind):
    @examples(12)
    @given(plans(codecs=EXACT, kinds=(kind, "conv2d", kind), operations=4), st.integers(0, 99))
    def check(plan, seed):
        check_against_dense(plan, seed)

    check()


def check_against_dense(plan, seed):
    # float64: rounding is then far below the distance of any code from its tie
    stream, dense = Reference(plan, dtype=torch.float64), Reference(plan, dtype=torch.float64)
    for frame in frames(plan, 6, seed):
        dense.reset()
        for got, expected in zip(stream.run(frame), dense.run(frame), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)
        for name, expected in dense.state().items():
            np.testing.assert_allclose(stream.state()[name], expected, rtol=1e-9, atol=1e-9, err_msg=name)


@examples(100)
@given(plans(dyadic=True, codecs=EXACT), st.integers(0, 99))
def test_exact_numbers_give_equality_to_the_bit(plan, seed):
    stream, dense = Reference(plan), Reference(plan)
    for frame in frames(plan, 6, seed, dyadic=True):
        dense.reset()
        stream.run(frame)
        dense.run(frame)
        for name, expected in dense.state().items():
            np.testing.assert_array_equal(stream.state()[name], expected, err_msg=name)


@examples(100)
@given(plans(), st.integers(0, 99))
def test_sums_belong_to_the_values_that_were_sent(plan, seed):
    """`hold` and `residual` remember; what holds then is z = op(values of the inputs), always."""
    stream = Reference(plan, dtype=torch.float64)
    for frame in frames(plan, 6, seed):
        stream.run(frame)
        before = stream.state()
        stream.refresh()
        stream.run(frame)
        for name, expected in stream.state().items():
            if name.endswith("accumulator"):
                np.testing.assert_allclose(before[name], expected, rtol=1e-9, atol=1e-9, err_msg=name)


@examples(25)
@given(plans(), st.integers(0, 99))
def test_a_still_frame_sends_nothing(plan, seed):
    stream = Reference(plan, dtype=torch.float64)
    frame = frames(plan, 1, seed)[0]
    stream.run(frame)
    stream.run(frame)
    first = stream.state()
    stream.run(frame)
    # A residual codec sends whole steps only, so it has come to rest after the first frame or never moves again.
    assert sum(entry.macs for entry in stream.stats()) == 0
    for name, value in stream.state().items():
        np.testing.assert_array_equal(value, first[name], err_msg=name)


@pytest.mark.parametrize("shape", [(1, 2, 1, 2), (1, 2, 2)])
def test_layer_norm_by_hand(shape):
    """Two places: channels (1, 5), of mean 3 and variance 4, and (2, 2)."""
    tensors = {"w": np.asarray([2, 3], np.float32), "b": np.asarray([1, 10], np.float32)}
    ops = (
        Op("input", "input", (), (0,)),
        Op("layer_norm", "norm", (0,), (1,), {"eps": 12.0}, {"scale": "w", "shift": "b"}),
        Op("layer_norm", "bare", (0,), (2,), {"eps": 12.0}),
    )
    plan = Plan("norm", (shape,) * 3, ops, (1, 2), {"tuple": [{"output": 0}, {"output": 1}]}, tensors)
    places = np.asarray([[1, 5], [2, 2]], np.float32)  # (place, channel)
    frame = places.T.reshape(shape) if len(shape) == 4 else places.reshape(shape)
    by_hand = [[0, 11.5], [1, 10]], [[-0.5, 0.5], [0, 0]]
    for backend in ("reference", "cpu"):
        for got, expected in zip(plan.stream(backend)(frame), by_hand, strict=True):
            at = np.asarray(expected, np.float32)
            np.testing.assert_array_equal(got, (at.T if len(shape) == 4 else at).reshape(shape), err_msg=backend)


def test_softmax_by_hand():
    """Over two channels of two places, and over the last axis of rows."""
    ops = (
        Op("input", "input", (), (0,)),
        Op("softmax", "map", (0,), (1,)),
        Op("reshape", "rows", (0,), (2,)),
        Op("softmax", "row", (2,), (3,)),
    )
    shapes = (1, 2, 1, 2), (1, 2, 1, 2), (1, 1, 4), (1, 1, 4)
    plan = Plan("softmax", shapes, ops, (1, 3), {"tuple": [{"output": 0}, {"output": 1}]}, {})
    frame = np.log(np.asarray([[[[1, 2]], [[3, 2]]]], np.float32))
    for backend in ("reference", "cpu"):
        by_channel, by_row = plan.stream(backend)(frame)
        np.testing.assert_allclose(by_channel, [[[[1 / 4, 1 / 2]], [[3 / 4, 1 / 2]]]], rtol=1e-6, err_msg=backend)
        np.testing.assert_allclose(by_row, [[[1 / 8, 2 / 8, 3 / 8, 2 / 8]]], rtol=1e-6, err_msg=backend)


def test_group_norm_by_hand():
    """Two groups of two channels of two places: 1, 5, 1, 5 has mean 3 and variance 4; 2, 2, 2, 2 has 2 and 0."""
    tensors = {"w": np.asarray([2, 3, 4, 5], np.float32), "b": np.asarray([1, 10, 0, 7], np.float32)}
    ops = (
        Op("input", "input", (), (0,)),
        Op("group_norm", "norm", (0,), (1,), {"groups": 2, "eps": 12.0}, {"scale": "w", "shift": "b"}),
    )
    plan = Plan("norm", ((1, 4, 1, 2),) * 2, ops, (1,), {"output": 0}, tensors)
    frame = np.asarray([[[[1, 5]], [[1, 5]], [[2, 2]], [[2, 2]]]], np.float32)
    by_hand = [[[[0, 2]], [[8.5, 11.5]], [[0, 0]], [[7, 7]]]]
    for backend in ("reference", "cpu"):
        np.testing.assert_allclose(plan.stream(backend)(frame), by_hand, rtol=1e-6, err_msg=backend)


def test_attention_by_hand():
    """Two windows of two places, two heads of one channel; a key's weight is its e^(scale q k + bias) / their sum.

    Window 1, head 1: keys 0 and ln 3 at scale 1/2. Query 0 weighs both alike, query 2 by 1 : 3. Head 2 has a bias of
    ln 3 for the first key, so 3 : 1 where queries or keys are 0. In window 2 the first key of head 1 is far below the
    other, so that only that one counts.
    """
    ln3 = np.log(3)
    q = [[0, 0], [2, 0], [1, 0], [1, 0]]
    k = [[0, 0], [ln3, 0], [-1000, 0], [1000, 0]]
    v = [[0, 8], [4, 0], [5, 1], [7, 1]]
    tensors = {"bias": np.asarray([[0, 0], [ln3, 0]], np.float32).reshape(1, 2, 1, 2)}
    attributes = {"windows": 2, "heads": 2, "scale": 0.5}
    picks = {name: np.arange(8, dtype=np.int32) + start for name, start in (("q", 0), ("k", 8), ("v", 16))}
    ops = (
        Op("input", "input", (), (0,)),
        *(Op("gather", name, (0,), (n,), {}, {"index": name}) for n, name in enumerate("qkv", 1)),
        Op("attention", "attention", (1, 2, 3), (4,), attributes, {"bias": "bias"}),
    )
    plan = Plan("attention", ((1, 12, 2), *((1, 4, 2),) * 4), ops, (4,), {"output": 0}, tensors | picks)
    frame = np.asarray([*q, *k, *v], np.float32)[None]
    by_hand = np.asarray([[[2, 6], [3, 6], [7, 1], [7, 1]]], np.float32)
    for backend in ("reference", "cpu"):
        np.testing.assert_allclose(plan.stream(backend)(frame), by_hand, rtol=1e-6, err_msg=backend)


def test_comparison_sees_one_wrong_element():
    """The helper above must be able to fail."""
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(np.asarray([1.0, 1.01]), np.asarray([1.0, 1.0]), rtol=1e-9, atol=1e-9)
