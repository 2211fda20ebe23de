"""A stream that computes something else is found out, by the name of the operation."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch

import sparsetime
from sparsetime.bench import network
from sparsetime.bench.density import with_density
from sparsetime.bench.patterns import there_and_back
from sparsetime.bench.verify import verify
from sparsetime.engine import Snapshot, Stream
from sparsetime.run.runtimes import DisagreementError

SHAPE = (1, 3, 32, 32)
FRAMES = there_and_back(SHAPE, "elements", 0.1)


@pytest.fixture(params=["hold", "pixel"])
def stream(request: pytest.FixtureRequest) -> Stream:
    module = network.made("small_cnn", SHAPE[2:])
    plan = sparsetime.compile(module, torch.zeros(SHAPE), codec=request.param, steps=1.0)
    made = with_density(plan, FRAMES, 0.1).stream()
    for frame in FRAMES:
        made(frame)
    return made


def test_a_right_one_passes(stream: Stream) -> None:
    for frame in FRAMES:
        assert verify(stream, frame) < 1e-5


@pytest.mark.parametrize("codec", ["exact", "pixel", "residual"])
def test_other_codecs(codec: str) -> None:
    module = network.made("small_cnn", SHAPE[2:])
    made = sparsetime.compile(module, torch.from_numpy(FRAMES[0]), codec=codec).stream()
    for frame in FRAMES[:3]:
        made(frame)
    assert verify(made, FRAMES[3]) < 1e-5


def _scaled(by: float) -> Callable[[np.ndarray], None]:
    def change(x: np.ndarray) -> None:
        x *= by

    return change


def _one(x: np.ndarray) -> None:
    x.flat[x.size // 2] += 0.1 * np.abs(x).max()


@pytest.mark.parametrize("wrong", [_scaled(1.01), _scaled(2.0), _scaled(np.nan), _one])
@pytest.mark.parametrize("kind", ["accumulator", "value"])
def test_wrong_ones_do_not(
    stream: Stream, monkeypatch: pytest.MonkeyPatch, wrong: Callable[[np.ndarray], None], kind: str
) -> None:
    number = next(n for n, op in enumerate(stream.plan.ops) if op.has_accumulator and n > 2)
    taken = 0

    def snapshot() -> Mapping[str, np.ndarray]:
        nonlocal taken
        taken += 1
        state = {name: array.copy() for name, array in Stream.snapshot(stream).items()}
        if taken == 2:  # the state after the frame
            wrong(state[f"{number}.{kind}"])
        return Snapshot(state, stream.frames)

    monkeypatch.setattr(stream, "snapshot", snapshot)
    with pytest.raises(DisagreementError, match="away from its meaning") as caught:
        verify(stream, FRAMES[0])
    assert stream.plan.ops[number].name in str(caught.value)
