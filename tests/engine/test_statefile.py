"""A stream's state in a file: the same bits in another process, and nothing but a whole state of the same plan."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_plans import frames, plans
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_tensors
from tiny_plan import changed, tiny

from sparsetime.engine import StreamError
from sparsetime.engine.statefile import FORMAT, VERSION, load_state, plan_digest, save_state

CONTINUE = """
import sys
import numpy as np
from sparsetime.engine import Plan
from sparsetime.engine.statefile import load_state
plan, state, clip, out = sys.argv[1:]
stream = Plan.load(plan).stream()
load_state(stream, state)
video = np.load(clip, allow_pickle=False)
np.savez(out, *[output for frame in video[stream.frames:] for output in flat(stream(frame))])
"""
FLAT = "def flat(y): return [y] if not isinstance(y, (list, tuple)) else [a for b in y for a in flat(b)]\n"


def test_another_process_goes_on_with_the_same_bits(tmp_path):
    plan = tiny()
    plan.save(tmp_path / "a.plan")
    video = np.stack(frames(plan, 9, seed=3))
    np.save(tmp_path / "clip.npy", video)
    stream = plan.stream()
    for frame in video[:4]:
        stream(frame)
    save_state(stream, tmp_path / "a.state")
    expected = [stream(frame) for frame in video[4:]]
    files = [str(tmp_path / name) for name in ("a.plan", "a.state", "clip.npy", "out.npz")]
    subprocess.run([sys.executable, "-c", FLAT + CONTINUE, *files], check=True)
    with np.load(tmp_path / "out.npz", allow_pickle=False) as got:
        assert len(got.files) == len(expected) == 5
        for name, output in zip(got.files, expected, strict=True):
            assert got[name].tobytes() == output.tobytes()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=plans(), seed=st.integers(0, 99))
def test_every_plan_goes_on_with_the_same_bits(plan, seed, tmp_path):
    clip = frames(plan, 10, seed)
    plan = plan.flat()
    stream, other = plan.stream(), plan.stream()
    for frame in clip[:5]:
        stream(frame)
    save_state(stream, tmp_path / "a.state")
    other(clip[9])
    load_state(other, tmp_path / "a.state")
    assert other.frames == 5
    for frame in clip[5:]:
        for a, b in zip(stream(frame), other(frame), strict=True):
            assert a.tobytes() == b.tobytes()
    for name, array in stream.snapshot().items():
        np.testing.assert_array_equal(array, other.snapshot()[name])


def test_the_start_of_a_stream_can_be_saved(tmp_path):
    plan = tiny()
    save_state(plan.stream(), tmp_path / "a.state")
    stream = plan.stream()
    first, second = frames(plan, 2, seed=1)
    expected = stream(first)
    stream(second)
    load_state(stream, tmp_path / "a.state")
    assert stream.frames == 0
    np.testing.assert_array_equal(stream(first), expected)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_refresh_comes_when_it_would_have_come(backend, tmp_path):
    plan = tiny()
    clip = frames(plan, 8, seed=2)
    stream, other = plan.stream(backend, refresh=3), plan.stream(backend, refresh=3)
    for frame in clip[:2]:
        stream(frame)
    save_state(stream, tmp_path / "a.state")
    load_state(other, tmp_path / "a.state")
    for frame in clip[2:]:
        np.testing.assert_array_equal(stream(frame), other(frame))
        assert stream.stats["conv"].path == other.stats["conv"].path


def test_the_digest_is_of_what_the_state_depends_on():
    plan = tiny()
    same = dataclasses.replace(plan, name="other", producer="somebody", structure=[{"output": 0}])
    assert plan_digest(same) == plan_digest(plan)
    weight = plan.tensors["weight"].copy()
    weight[0, 0, 0, 0] = np.nextafter(weight[0, 0, 0, 0], 2)
    for other in (
        changed(activation=None),
        changed(crossover=0.25),
        dataclasses.replace(plan, tensors={**plan.tensors, "weight": weight}),
        dataclasses.replace(plan, input=None),
    ):
        assert plan_digest(other) != plan_digest(plan)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    stream = tiny().stream()
    for frame in frames(tiny(), 2, seed=1):
        stream(frame)
    save_state(stream, tmp_path / "a.state")
    return tmp_path / "a.state"


def refused(path: Path, match: str) -> None:
    """The stream says why, and is as it was."""
    stream = tiny().stream()
    first, second = frames(tiny(), 2, seed=5)
    stream(first)
    before = stream.snapshot()
    with pytest.raises(StreamError, match=match) as error:
        load_state(stream, path)
    assert str(path) in str(error.value)
    assert stream.frames == 1
    for name, array in stream.snapshot().items():
        np.testing.assert_array_equal(array, before[name])
    stream(second)


def test_a_state_of_another_plan_is_refused(state):
    other = changed(crossover=0.25).stream()
    with pytest.raises(StreamError, match="another plan than 'tiny'"):
        load_state(other, state)
    assert other.frames == 0


def test_damage_is_refused(state, tmp_path):
    whole = state.read_bytes()
    state.write_bytes(whole[:-3])
    refused(state, "not a whole safetensors file")
    state.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(state, "damaged")
    state.write_bytes(b"")
    refused(state, "not a whole")
    refused(tmp_path / "none.state", "no such file")
    tiny().save(tmp_path / "a.plan")
    refused(tmp_path / "a.plan", "but no state")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("nonsense", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ([], "does not say"),
        ({"format": "sparsetime.plan"}, "does not say"),
        ({"version": VERSION + 1}, "version"),
        ({"version": True}, "version"),
        ({"frames": -1}, "frames"),
        ({"frames": 2.0}, "frames"),
        ({"frames": 0}, "arrays after 0 frames"),
        ({"pace": {"asked": -0.5, "left": 0, "next": 1, "cut": 0.3}}, "asked"),
        ({"pace": {"asked": 1, "left": 0, "next": 1, "cut": 0.3}}, "asked"),
        ({"pace": {"asked": 0.5, "left": 9, "next": 1, "cut": 0.3}}, "left"),
        ({"pace": {"asked": 0.5, "left": 0, "next": True, "cut": 0.3}}, "next"),
        ({"pace": {"asked": 0.5, "left": 0, "next": 0, "cut": 0.3}}, "next"),
        ({"pace": {"asked": 0.5, "left": 0, "next": 1, "cut": 0.31}}, "cut"),
        ({"pace": {"asked": 0.5, "left": 0, "next": 1, "cut": -0.1}}, "cut"),
        ({"pace": {"asked": 0.5, "left": 0, "next": 1, "cut": None}}, "cut"),
        ({"pace": {"asked": 0.5}}, "pace"),
        ({"pace": 0.5}, "pace"),
        ({"more": 1}, "expected the entries"),
        ({"plan": None}, "another plan"),
        ({"arrays": "0"}, "damaged"),
    ],
)
def test_a_wrong_header_is_refused(state, change, match):
    with safe_open(state, framework="numpy") as file:
        header = json.loads(file.metadata()[FORMAT])
    text = (
        change if isinstance(change, str) else json.dumps({**header, **change} if isinstance(change, dict) else change)
    )
    save_file(load_file(state), state, {FORMAT: text})
    refused(state, match)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float16])
def test_types_that_no_state_has_are_refused(state, dtype):
    with safe_open(state, framework="pt") as file:
        metadata, arrays = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    arrays["0.value"] = arrays["0.value"].to(dtype)
    save_tensors(arrays, state, metadata)
    refused(state, "tensor '0.value': expected one of .*'F32'.*got (BF16|F8_E4M3|F16)")


def test_a_file_is_whole_or_not_there(state, tmp_path):
    before = state.read_bytes()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        save_state(tiny().stream(), tmp_path / "folder")
    (tmp_path / "folder").rmdir()
    assert state.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.state"]
