"""A plan in ONNX Runtime: the answers and the state of the reference backend, frame by frame."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_plans import EXACT_ACTIVATIONS, MAP_KINDS, examples, frames, plans
from tiny_plan import tiny
from torch import nn

import sparsetime
from sparsetime import networks
from sparsetime.engine import Plan, Snapshot
from sparsetime.engine.ops import LINEAR
from sparsetime.engine.reference import Reference, activate, encode
from sparsetime.neighbours import ExportError
from sparsetime.video.generate import GeneratedClips

onnx = pytest.importorskip("onnx", reason="needs sparsetime[onnx]")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs sparsetime[onnx]")

from sparsetime.neighbours.onnx import build, export, initial_state, step  # noqa: E402 - needs onnx


def session_of(model: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    data = model.SerializeToString() if hasattr(model, "SerializeToString") else str(model)
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def check_equal(plan: Plan, seed: int) -> None:
    """With numbers that float32 does not round, outputs and state agree to the bit, whatever the order of the sums."""
    model = build(plan)
    onnx.checker.check_model(model, full_check=True)
    read = {name for node in model.graph.node for name in node.input}
    assert {array.name for array in model.graph.initializer} <= read  # ONNX Runtime warns of each other one
    session, reference = session_of(model), Reference(plan)
    state = initial_state(session)
    for t, frame in enumerate(frames(plan, 6, seed, dyadic=True)):
        outputs, state = step(session, frame, state)
        for got, expected in zip(outputs, reference.run(frame), strict=True):
            np.testing.assert_array_equal(got, expected, err_msg=f"frame {t}")
        expected_state = reference.state()
        assert state.keys() == {"started", *expected_state}
        for name, expected in expected_state.items():
            np.testing.assert_array_equal(state[name], expected, err_msg=f"frame {t}, {name}")


@pytest.mark.parametrize("kind", sorted(set(MAP_KINDS)))
def test_every_operation_equals_the_reference(kind):
    @examples(6)
    @given(plans(dyadic=True, kinds=(kind, "conv2d", kind), operations=4), st.integers(0, 99))
    def check(plan, seed):
        check_equal(plan, seed)

    check()


@examples(40)
@given(plans(dyadic=True), st.integers(0, 99))
def test_random_plans_equal_the_reference(plan, seed):
    check_equal(plan, seed)


# ------------------------------------------------------------------------------------- numbers that float32 does round


@examples(40)
@given(plans(codecs=(None,)), st.integers(0, 99))
def test_rounding_is_that_of_float32(plan, seed):
    """Without codecs nothing amplifies rounding: against float64, ONNX Runtime errs little more than PyTorch does."""
    session = session_of(build(plan))
    plain, exact, state = Reference(plan), Reference(plan, dtype=torch.float64), initial_state(session)
    for frame in frames(plan, 5, seed):
        _, state = step(session, frame, state)
        plain.run(frame)
        exact.run(frame)
        rounded = plain.state()
        for name, truth in exact.state().items():
            allowed = 2 * np.abs(rounded[name] - truth).max() + 2e-5 * max(1.0, np.abs(truth).max())
            assert np.abs(state[name] - truth).max() <= allowed, name


def check_frame(plan: Plan, frame: Any, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Every operation did what the page says with what the others gave it.

    A code at a tie may round either way, and later ones follow it; so each operation is compared on its own, with
    the inputs that it had.
    """
    meaning, first = Reference(plan), not before["started"].any()
    number_of = {op.output: number for number, op in enumerate(plan.ops)}
    for number, op in enumerate(plan.ops):
        new = [torch.from_numpy(after[f"{number_of[v]}.value"]) for v in op.inputs]
        old = [torch.from_numpy(before[f"{number_of[v]}.value"]) for v in op.inputs]
        value, kept = after[f"{number}.value"], torch.from_numpy(before[f"{number}.value"])
        if op.kind == "input":
            z = torch.from_numpy(frame)
        elif f"{number}.accumulator" in after or op.kind in LINEAR:
            name = f"{number}.accumulator" if f"{number}.accumulator" in after else f"{number}.value"
            changes = new if first else [a - b for a, b in zip(new, old, strict=True)]
            expected = torch.from_numpy(before[name]) + meaning.linear(op, changes, constants=first)
            scale = max(1.0, *(float(t.abs().max()) for t in (expected, *new)))
            np.testing.assert_allclose(after[name], expected, rtol=0, atol=2e-5 * scale, err_msg=op.name)
            z = torch.from_numpy(after[name])
        else:
            z = meaning.recomputed(op, new)
        y = activate(z, op.activation)
        size = plan.step(op)
        v = encode(y, None if first else kept, op.codec, None if size is None else torch.from_numpy(size.copy()))
        if op.activation in EXACT_ACTIVATIONS and op.kind not in ("layer_norm", "group_norm", "softmax", "attention"):
            np.testing.assert_array_equal(value, v, err_msg=op.name)
        else:  # exponentials and deviations differ in the last bits, and codes that are near a tie by a step
            off = ~np.isclose(value, v, rtol=1e-5, atol=1e-6)
            assert off.sum() <= max(1, 0.05 * off.size), op.name
            if op.codec is None:
                assert not off.any(), op.name


@pytest.mark.parametrize("codec", ["exact", "hold", "pixel", "residual"])
def test_every_codec_decides_as_the_reference_does(codec):
    @examples(20)
    @given(plans(codecs=(codec,)), st.integers(0, 99))
    def check(plan, seed):
        session = session_of(build(plan))
        state = initial_state(session)
        for frame in frames(plan, 6, seed):
            before = state
            _, state = step(session, frame, before)
            check_frame(plan, frame, before, state)

    check()


# ------------------------------------------------------------------------------------------------------ whole networks


class Small(nn.Module):
    """Depthwise convolutions, a residual sum, a linear bottleneck, max and average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.bottleneck = nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 16, 3, 1, 1)
        self.classify = nn.Linear(16, 5)
        generator = torch.Generator().manual_seed(1)
        for p in self.parameters():  # sixteenths: sums of their products with codes are exact in float32
            p.data = torch.randint(-8, 9, p.shape, generator=generator) / 16

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = nn.functional.max_pool2d(x, 3, 2, 1)
        x = x + self.bottleneck(nn.functional.relu6(self.depthwise(x)))
        return self.classify(torch.relu(self.last(x)).mean((2, 3)))


def dyadic_plan(network: nn.Module, clip: torch.Tensor) -> Plan:
    """A plan whose steps are powers of two."""
    plan = sparsetime.compile(network.eval(), clip[:1], steps=clip, codec="exact", placement="every")
    steps = {op.codec["tensor"] for op in plan.ops if op.codec is not None}
    tensors = {k: np.exp2(np.round(np.log2(t))) if k in steps else t for k, t in plan.tensors.items()}
    return dataclasses.replace(plan, tensors={k: t.astype(plan.tensors[k].dtype) for k, t in tensors.items()})


def video(length: int) -> torch.Tensor:
    """A moving shape seen by a noisy camera, eighths of a level."""
    clip = GeneratedClips(1, size=(64, 64), length=length)[0]["clip"]
    return (torch.as_tensor(clip).float() - 128) / 64


def test_a_network_gives_the_same_answers_over_a_clip():
    clip = video(24)
    plan = dyadic_plan(Small(), clip[:8])
    session, stream = session_of(build(plan)), plan.stream(backend="reference")
    state, changed = initial_state(session), 0
    for frame in clip:
        outputs, state = step(session, frame[None].numpy(), state)
        expected = stream(frame).numpy()
        np.testing.assert_array_equal(outputs[0], expected)
        assert outputs[0].argmax() == expected.argmax()
        for name, array in stream.snapshot().items():
            np.testing.assert_array_equal(state[name], array, err_msg=name)
        changed += stream.frames > 1 and stream.op_density > 0
    assert changed == 23  # a clip in which something happened


def test_a_stream_goes_on_in_onnx_runtime_and_comes_back():
    clip = video(9)
    plan = dyadic_plan(Small(), clip)
    session, stream, other = session_of(build(plan)), plan.stream(), plan.stream()
    expected = [stream(frame).numpy() for frame in clip]
    for frame in clip[:3]:
        other(frame)
    state = {"started": np.ones(1, np.float32), **other.snapshot()}
    for frame, answer in zip(clip[3:6], expected[3:6], strict=True):
        outputs, state = step(session, frame[None].numpy(), state)
        np.testing.assert_array_equal(outputs[0], answer)
    del state["started"]
    other.restore(Snapshot(state, frames=6))
    for frame, answer in zip(clip[6:], expected[6:], strict=True):
        np.testing.assert_array_equal(other(frame).numpy(), answer)


@pytest.mark.data
def test_mobilenet_on_a_video(shared_data: Path):
    """Thresholds found on the video; answers differ by decisions at a threshold, which are few."""
    av = pytest.importorskip("av", reason="needs sparsetime[video]")
    network = networks.create("mobilenet_v2", weights=shared_data / "weights/imagenet/mobilenet_v2_1.0_224_quant.npz")
    with av.open(str(shared_data / "static_videos/bottles_table.mp4")) as container:
        pictures = [f.to_ndarray(format="rgb24") for f, _ in zip(container.decode(video=0), range(8), strict=False)]
    clip = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()
    clip = network.spec.normalise(nn.functional.interpolate(clip, size=(224, 224), mode="bilinear", antialias=True))
    plan = sparsetime.compile(network.eval(), clip[:1], steps=clip, codec="hold")
    session, stream = session_of(build(plan)), plan.stream(backend="reference")
    state = initial_state(session)
    for frame in clip:
        before = state
        outputs, state = step(session, frame[None].numpy(), before)
        check_frame(plan, frame[None].numpy(), before, state)
        expected = stream(frame[None]).numpy()
        assert np.abs(outputs[0] - expected).max() <= 0.03 * np.abs(expected).max()
        assert outputs[0].argmax() == expected.argmax()


# ------------------------------------------------------------------------------------------------------------ the file


def test_the_example_of_the_docs_needs_onnxruntime_alone(tmp_path: Path):
    page = (Path(__file__).parents[2] / "docs" / "neighbours.md").read_text()
    code = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "onnxruntime" in block)
    clip = video(5)
    plan = dyadic_plan(Small(), clip)
    export(plan, tmp_path / "plan.onnx")
    np.save(tmp_path / "clip.npy", clip[:, None].numpy())
    alone = "\nimport sys\nassert not {'sparsetime', 'onnx', 'torch'} & set(sys.modules)\nprint(*answer.flatten())\n"
    setup = "import warnings; warnings.simplefilter('error')\nimport numpy as np\nframes = np.load('clip.npy')\n"
    ran = subprocess.run([sys.executable, "-c", setup + code + alone], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    stream = plan.stream(backend="reference")
    expected = [stream(frame).numpy() for frame in clip][-1]
    np.testing.assert_array_equal(np.asarray(ran.stdout.split(), np.float32), expected.flatten())


def test_the_file_says_how_frames_are_prepared_and_outputs_nested(tmp_path: Path):
    export(tiny(), tmp_path / "tiny.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.onnx"]
    metadata = session_of(tmp_path / "tiny.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(metadata["sparsetime.input"]) == {"mean": [1, 2], "std": [3, 4], "color": "rgb"}
    assert json.loads(metadata["sparsetime.structure"]) == {"output": 0}


def test_what_does_not_depend_on_the_frame_is_an_output_like_the_others():
    class Anchored(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.arange(5), super().forward(x)

    plan = sparsetime.compile(Anchored(3, 2, 1), torch.rand(1, 3, 4, 4))
    model = build(plan)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["sparsetime.structure"]) == {"tuple": [{"output": 1}, {"output": 0}]}
    session = session_of(model)
    answers, _ = step(session, np.zeros((1, 3, 4, 4), np.float32), initial_state(session))
    np.testing.assert_array_equal(answers[1], np.arange(5))


def test_an_island_is_named(tmp_path: Path):
    class Softmax(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x).sin()

    plan = sparsetime.compile(Softmax(), torch.zeros(1, 3, 4, 4))
    with pytest.raises(ExportError, match=r"onnx: operation \d 'sin.*' \(aten\.\w*sin.*island"):
        export(plan, tmp_path / "plan.onnx")
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------- the comparisons above can fail


@pytest.mark.parametrize("wrong", ["bias", "weight", "step"])
def test_a_wrong_graph_is_seen(wrong):
    plan = tiny()
    tensors = plan.tensors | {wrong: (plan.tensors[wrong] * np.float32(1.01))}
    session = session_of(build(dataclasses.replace(plan, tensors=tensors)))
    frame = frames(plan, 1, 0)[0]
    before = initial_state(session)
    _, after = step(session, frame, before)
    with pytest.raises(AssertionError):
        check_frame(plan, frame, before, after)
