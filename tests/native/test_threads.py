"""Streams in several Python threads: the native engine does not hold the interpreter's lock."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

import sparsetime
from sparsetime.engine import Op, Plan
from sparsetime.engine.cpu import Native
from sparsetime.engine.frames import FrameError


@pytest.fixture
def unhurried() -> Iterator[None]:
    """A thread gives the lock away only where it says so, not because its time is over."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(30)
    yield
    sys.setswitchinterval(before)


def convolution(size: int, channels: int) -> Plan:
    rng = np.random.default_rng(0)
    tensors = {
        "step": np.asarray([0.25], np.float32),
        "weight": rng.standard_normal((channels, channels, 3, 3)).astype(np.float32),
    }
    attributes = {"stride": [1, 1], "padding": [1, 1, 1, 1], "dilation": [1, 1], "groups": 1}
    shape = (1, channels, size, size)
    ops = (
        Op("input", "input", (), (0,), codec={"kind": "exact", "tensor": "step"}),
        Op("conv2d", "conv", (0,), (1,), attributes, {"weight": "weight"}, {"kind": "relu"}),
    )
    return Plan("convolution", (shape, shape), ops, (1,), {"output": 0}, tensors)


def frames(plan: Plan, count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.standard_normal(plan.input_shape).astype(np.float32) for _ in range(count)]


def test_a_stream_goes_on_while_another_is_inside_a_long_call(unhurried: None) -> None:
    large, small = convolution(96, 192), convolution(6, 8)
    long_frame, short_frames = frames(large, 1)[0], frames(small, 8)
    expected = Native(large).run(long_frame)[0]
    alone = Native(small)
    wanted = [alone.run(frame)[0] for frame in short_frames]

    done = 0
    gained: list[int] = []
    results: list[np.ndarray] = []

    def work() -> None:
        native = Native(large)
        for _ in range(50):  # a busy machine may not let the other thread run in the first call
            native.reset()
            before = done
            output = native.run(long_frame)[0]
            gained.append(done - before)
            results.append(output)
            if gained[-1]:
                break

    worker = threading.Thread(target=work)
    native = Native(small)
    found = []
    worker.start()
    while worker.is_alive():
        found.append(native.run(short_frames[done % 8])[0])
        done += 1
        if done % 8 == 0:
            native.reset()
    worker.join()
    assert gained[-1] > 0
    np.testing.assert_array_equal(results[-1], expected)
    for output, right in zip(found, wanted * (len(found) // 8 + 1), strict=False):
        np.testing.assert_array_equal(output, right)


def test_many_streams_of_one_plan_do_not_disturb_each_other() -> None:
    plan = convolution(17, 24)
    clips = [frames(plan, 12)[::-1] if i % 2 else frames(plan, 12) for i in range(4)]

    def play(clip: list[np.ndarray]) -> list[np.ndarray]:
        stream = plan.stream(threads=2)
        return [stream(frame) for frame in clip]

    expected = [play(clip) for clip in clips]
    found: dict[int, list[np.ndarray]] = {}
    workers = [threading.Thread(target=lambda i=i: found.update({i: play(clips[i])})) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for i, outputs in enumerate(expected):
        for right, output in zip(outputs, found[i], strict=True):
            np.testing.assert_array_equal(output, right)


@pytest.mark.parametrize("kind", ["hold", "pixel"])
@pytest.mark.parametrize("share", [0.02, 0.2, 1.0])
def test_threads_that_share_the_channels_of_few_pixels_compute_the_same(kind: str, share: float) -> None:
    """96 channels are two panels of weights, and 49 pixels too few to be shared: each thread has a panel."""
    plan = convolution(7, 96)
    codec = {"kind": kind, "tensor": "step"}
    plan = replace(plan, ops=tuple(replace(op, codec=codec) for op in plan.ops))
    one, two, reference = Native(plan, threads=1), Native(plan, threads=2), plan.stream("reference")
    rng = np.random.default_rng(2)
    frame, before = frames(plan, 1)[0], np.zeros(plan.values[1], np.float32)
    for _ in range(5):
        alone, shared, meant = one.run(frame)[0].copy(), two.run(frame)[0].copy(), reference(frame)
        np.testing.assert_array_equal(shared, alone)
        # Sums of 864 products in another order; a value at its threshold may be decided the other way.
        assert np.mean(np.abs(shared - meant) > 1e-4 * np.abs(meant).max()) < 0.01
        assert not np.array_equal(shared, before)
        before = shared
        moved = rng.random((1, 1, 7, 7)) < share
        moved[0, 0, 3, 3] = True
        frame = np.where(moved, 3 * rng.standard_normal(frame.shape), frame).astype(np.float32)


@pytest.mark.parametrize(
    ("precision", "codec"),
    [("float32", "exact"), ("float32", "hold"), ("float32", "pixel"), ("int8", "hold"), ("int8", "pixel")],
)
@pytest.mark.parametrize("kind", ["floats", "bytes"])
def test_threads_that_share_the_rows_of_a_frame_compute_the_same(precision: str, codec: str, kind: str) -> None:
    """101 x 90 pixels are worth two threads: nothing new, one square, scattered pixels, another picture, a cut."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 5), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 1))
    rng = np.random.default_rng(0)
    clip = [rng.integers(0, 256, (1, 3, 101, 90)).astype(np.float32) for _ in range(2)]
    steps = [torch.from_numpy(x) for x in clip]
    plan = sparsetime.compile(model.eval(), steps[0], steps=steps, codec=codec, precision=precision)
    pictures = [clip[0], clip[0], clip[0].copy(), clip[0].copy(), clip[1], clip[0]]
    pictures[2][:, :, 30:70, 20:60] = 200
    pictures[3][:, :, rng.random((101, 90)) < 0.02] = 90
    pictures[3][:, 1, rng.random((101, 90)) < 0.02] = 90
    streams = [plan.stream(threads=threads, flush=flush) for threads in (1, 2) for flush in (0.0, 1.0)]
    meant = plan.stream("reference")
    for picture in pictures:
        frame = picture.astype(np.uint8) if kind == "bytes" else picture
        found = [np.asarray(stream(frame)) for stream in streams]
        states = [stream.snapshot() for stream in streams]
        expected = meant(frame)
        if precision == "int8":
            np.testing.assert_array_equal(found[0], expected)
        for one, two in ((0, 2), (1, 3)):
            np.testing.assert_array_equal(found[two], found[one])
            counted, counts = ({n: (e.events, e.macs) for n, e in streams[k].stats.items()} for k in (two, one))
            assert counted == counts
            for name, array in states[one].items():
                np.testing.assert_array_equal(states[two][name], array, name)
    assert [stream.flushed for stream in streams] == [False, True, False, True]


def test_a_frame_that_is_refused_by_one_of_the_threads_leaves_the_stream_as_it_was() -> None:
    plan = convolution(96, 3)
    first, second = frames(plan, 2)
    broken = second.copy()
    broken[0, 1, 90, 5] = np.nan
    streams = [plan.stream(threads=2) for _ in range(2)]
    for stream in streams:
        stream(first)
    with pytest.raises(FrameError, match="NaN"):
        streams[0](broken)
    np.testing.assert_array_equal(streams[0](second), streams[1](second))
    assert streams[0].stats["input"].events == streams[1].stats["input"].events > 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
@pytest.mark.parametrize("awake", [True, False])
def test_a_forked_process_goes_on_without_the_threads_of_its_parent(awake: bool) -> None:
    """Whether they sleep or wait for work when it forks; the stream ends in both processes."""
    code = (
        "import os, signal, time, numpy as np, torch, sparsetime\n"
        "model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.ReLU()).eval()\n"
        "frames = [np.random.default_rng(k).random((1, 3, 96, 96), dtype=np.float32) for k in range(3)]\n"
        "plan = sparsetime.compile(model, torch.from_numpy(frames[0]))\n"
        "expected = [plan.stream()(f) for f in frames]\n"
        "stream = plan.stream(threads=2)\n"
        f"stream(frames[0]); time.sleep({0 if awake else 0.2})\n"
        "pid = os.fork()\n"
        "signal.alarm(0 if pid else 20)\n"
        "for f, e in zip(frames[1:], expected[1:]):\n"
        "    stream.reset(); np.testing.assert_array_equal(stream(f), e)\n"
        "del stream\n"
        "np.testing.assert_array_equal(plan.stream(threads=2)(frames[1]), expected[1])\n"
        "if not pid: os._exit(0)\n"
        "print(os.waitpid(pid, 0)[1])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "0"
