"""A refresh is exact: it leaves what a network computed from scratch would have, to the bit."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from random_plans import examples, frames, plans

from sparsetime.engine import Plan
from sparsetime.engine.cpu import Native


def drifted(plan: Plan, clip: list[np.ndarray]) -> Native:
    """A stream whose sums have seen numbers of very different size, so that rounding is in them."""
    native = Native(plan)
    for t, frame in enumerate(clip):
        native.run(frame * np.float32(10.0 ** (t % 4)))
    return native


@examples(60)
@given(plans(codecs=("exact", None)), st.integers(0, 99))
def test_with_the_exact_codec_it_equals_a_new_stream(plan: Plan, seed: int) -> None:
    *clip, last = frames(plan, 9, seed)
    native, fresh = drifted(plan, clip), Native(plan)
    native.refresh()
    for output, expected in zip(native.run(last), fresh.run(last), strict=True):
        np.testing.assert_array_equal(output, expected)
    state = native.state()
    for name, expected in fresh.state().items():
        np.testing.assert_array_equal(state[name], expected, err_msg=name)


@examples(60)
@given(plans(), st.integers(0, 99))
def test_what_was_sent_stays_sent(plan: Plan, seed: int) -> None:
    """Of any codec: a frame's own values are those without a refresh; a second one finds nothing to change."""
    *clip, last = frames(plan, 9, seed)
    native, plain = drifted(plan, clip), drifted(plan, clip)
    native.refresh()
    native.run(last)
    plain.run(last)
    state = native.state()
    np.testing.assert_array_equal(state["0.value"], plain.state()["0.value"])
    native.refresh()
    native.run(last)
    for name, again in native.state().items():
        np.testing.assert_array_equal(again, state[name], err_msg=name)
    native.run(last)
    assert sum(entry.macs for entry in native.stats()) == 0
