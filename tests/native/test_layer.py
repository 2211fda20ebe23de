"""Native layers against PyTorch in float64: every path, every instruction set, odd sizes, all densities."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sparsetime import _native

PATHS = ("dense", "pixels", "elements")
DENSITIES = (0.0, 0.02, 0.1, 0.5, 1.0)


def close(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> bool:
    """Equal within `tolerance` of the largest expected magnitude; NaN is never equal."""
    assert actual.shape == expected.shape
    if expected.size == 0:
        return True
    return bool((np.abs(actual - expected) <= tolerance * max(1.0, float(np.abs(expected).max()))).all())


@pytest.mark.parametrize("wrong", [1.01, 2.0, np.nan])
def test_close_refuses_wrong_answers(wrong: float) -> None:
    right = np.linspace(-1, 1, 20).reshape(4, 5)
    assert close(right, right, 1e-6)
    assert not close(right * wrong, right, 1e-6)
    one = right.copy()
    one[3, 4] *= wrong
    assert not close(one, right, 1e-6)


def conv64(x: np.ndarray, weight: np.ndarray, case: dict[str, Any]) -> np.ndarray:
    """(H, W, C) through the convolution of `case` in float64, without bias."""
    top, bottom, left, right = case["padding"]
    image = torch.from_numpy(x.astype(np.float64)).permute(2, 0, 1)[None]
    w = torch.from_numpy(weight.astype(np.float64))
    if case["transposed"]:
        full = F.conv_transpose2d(
            image, w, None, case["stride"], 0, case["output_padding"], case["groups"], case["dilation"]
        )
        h, wide = full.shape[2], full.shape[3]
        y = full[:, :, top : h - bottom, left : wide - right]
    else:
        y = F.conv2d(
            F.pad(image, (left, right, top, bottom)), w, None, case["stride"], 0, case["dilation"], case["groups"]
        )
    return y[0].permute(1, 2, 0).contiguous().numpy()


def make(
    size: tuple[int, int], channels: int, out: int, kernel: int | tuple[int, int], **changes: Any
) -> dict[str, Any]:
    kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
    case: dict[str, Any] = {
        "size": size, "channels": channels, "out": out, "kernel": (kh, kw), "stride": (1, 1),
        "padding": (kh // 2, kh // 2, kw // 2, kw // 2), "dilation": (1, 1), "groups": 1, "transposed": False,
        "output_padding": (0, 0),
    }  # fmt: skip
    return case | changes


CASES = {
    "3x3": make((9, 11), 20, 24, 3),
    "3x3 wide": make((13, 70), 5, 70, 3),
    "3x3 large": make((61, 90), 5, 33, 3),
    "3x3 deep": make((6, 7), 72, 20, 3),
    "3x3 stride 2, deep": make((6, 7), 72, 20, 3, stride=(2, 2)),
    "3x3 stride 2": make((9, 11), 17, 33, 3, stride=(2, 2)),
    "3x3 stride 2, even, low": make((8, 12), 16, 16, 3, stride=(2, 2), padding=(0, 1, 0, 1)),
    "3x3 stride 3 1": make((11, 7), 8, 9, 3, stride=(3, 1)),
    "3x3 dilation": make((12, 9), 6, 16, 3, dilation=(2, 3), padding=(2, 2, 3, 3)),
    "3x3 far dilation": make((61, 30), 6, 256, 3, dilation=(18, 1), padding=(18, 18, 1, 1)),
    "3x3 stride, dilation": make((12, 9), 6, 16, 3, dilation=(2, 2), stride=(2, 3), padding=(1, 2, 0, 3)),
    "3x3 no padding": make((7, 7), 8, 8, 3, padding=(0, 0, 0, 0)),
    "3x3 more padding": make((4, 5), 8, 8, 3, padding=(3, 4, 2, 3)),
    "3x3 one pixel": make((1, 1), 40, 7, 3),
    "1x1": make((6, 7), 30, 65, 1),
    "1x1 deep": make((3, 3), 800, 10, 1),
    "1x1 stride 2": make((7, 6), 12, 20, 1, stride=(2, 2)),
    "1x1 padded": make((3, 4), 12, 20, 1, padding=(1, 0, 0, 2)),
    "linear": make((1, 1), 100, 37, 1),
    "one channel": make((5, 6), 1, 1, 3),
    "narrow out": make((5, 6), 20, 3, 3),
    "1x1 narrow out": make((5, 6), 20, 3, 1),
    "stem": make((23, 21), 3, 40, 7, stride=(2, 2)),
    "5x5": make((9, 8), 7, 18, 5),
    "5x5 stride 4": make((13, 14), 5, 8, 5, stride=(4, 4)),
    "1x7": make((9, 8), 7, 18, (1, 7)),
    "stride beyond kernel": make((9, 8), 16, 16, 1, stride=(3, 4)),
    "2x2 stride 2": make((9, 8), 16, 16, 2, stride=(2, 2), padding=(0, 0, 0, 0)),
    "depthwise": make((9, 8), 24, 24, 3, groups=24),
    "depthwise stride 2": make((9, 8), 40, 40, 3, groups=40, stride=(2, 2)),
    "depthwise 5x5": make((9, 8), 24, 24, 5, groups=24),
    "depthwise 5x5 stride 2": make((9, 19), 24, 24, 5, groups=24, stride=(2, 2)),
    "depthwise 7x7": make((9, 8), 24, 24, 7, groups=24),
    "depthwise 9x9": make((13, 18), 24, 24, 9, groups=24),
    "depthwise 11x11 larger than the map": make((5, 6), 40, 40, 11, groups=40),
    "depthwise one row": make((5, 30), 24, 24, (1, 11), groups=24),
    "depthwise one column of taps": make((18, 7), 24, 24, (9, 1), groups=24),
    "depthwise stride 3": make((9, 31), 24, 24, 3, groups=24, stride=(3, 3)),
    "depthwise 5x5 dilation 3": make((9, 31), 24, 24, 5, groups=24, dilation=(3, 3), padding=(6, 6, 6, 6)),
    "depthwise 4x4": make((9, 19), 24, 24, 4, groups=24),
    "depthwise cropped": make((9, 19), 24, 24, 9, groups=24, padding=(4, 0, 0, 9)),
    "depthwise transposed": make((5, 6), 24, 24, 3, transposed=True, groups=24, stride=(2, 2), padding=(1, 1, 1, 1)),
    "depthwise dilation 2": make((9, 8), 24, 24, 3, groups=24, dilation=(2, 2), padding=(2, 2, 2, 2)),
    "depthwise dilation 4": make((9, 13), 24, 24, 3, groups=24, dilation=(4, 4), padding=(4, 4, 4, 4)),
    "depthwise dilation 1 2": make((9, 13), 24, 24, 3, groups=24, dilation=(1, 2), padding=(0, 1, 3, 2)),
    "depthwise one column": make((5, 1), 80, 80, 3, groups=80),
    "depthwise two columns": make((5, 2), 24, 24, 5, groups=24),
    "depthwise far padding": make((4, 5), 24, 24, 3, groups=24, padding=(3, 4, 2, 3)),
    "depthwise narrow": make((9, 8), 3, 3, 3, groups=3),
    "depthwise multiplier": make((9, 8), 6, 18, 3, groups=6),
    "grouped": make((9, 8), 24, 36, 3, groups=4),
    "transposed": make((5, 6), 12, 20, 3, transposed=True, padding=(0, 0, 0, 0)),
    "transposed stride 2": make(
        (5, 6), 12, 20, 3, transposed=True, stride=(2, 2), padding=(1, 1, 1, 1), output_padding=(1, 1)
    ),
    "transposed stride 4": make(
        (3, 4), 12, 20, 2, transposed=True, stride=(4, 5), padding=(0, 0, 0, 0), output_padding=(1, 3)
    ),
    "transposed 4x4": make((5, 6), 8, 8, 4, transposed=True, stride=(2, 2), padding=(1, 1, 1, 1)),
    "transposed grouped": make((5, 6), 8, 12, 3, transposed=True, groups=4, dilation=(2, 1), padding=(1, 2, 0, 1)),
}  # fmt: skip


def arrays(case: dict[str, Any], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    fan_in, fan_out = (case["channels"], case["out"] // case["groups"])
    if not case["transposed"]:
        fan_in, fan_out = case["out"], case["channels"] // case["groups"]
    weight = rng.normal(size=(fan_in, fan_out, *case["kernel"])).astype(np.float32)
    return weight, rng.normal(size=case["out"]).astype(np.float32)


def delta_like(case: dict[str, Any], density: float, pattern: str, rng: np.random.Generator) -> np.ndarray:
    h, w = case["size"]
    c = case["channels"]
    d = rng.normal(size=(h, w, c)).astype(np.float32)
    if pattern == "elements":
        return d * (rng.random((h, w, c)) < density)
    if pattern == "pixels":
        return d * (rng.random((h, w, 1)) < density)
    block = np.zeros((h, w, 1), np.float32)
    block[: int(np.ceil(h * density)), w - int(np.ceil(w * density)) :] = 1
    return d * block


def layer_of(case: dict[str, Any], weight: np.ndarray, bias: np.ndarray | None, **codec: Any) -> _native.Layer:
    keys = ("stride", "padding", "dilation", "groups", "transposed", "output_padding")
    return _native.Layer(case["size"], weight, bias, **{k: case[k] for k in keys}, **codec)


@pytest.mark.parametrize("name", CASES)
def test_sums(isa: str, name: str) -> None:
    """Without codec the value is the convolution of the accumulated input, whatever path each frame takes."""
    case = CASES[name]
    rng = np.random.default_rng(0)
    weight, bias = arrays(case, rng)
    layer = layer_of(case, weight, bias)
    total = np.zeros((*case["size"], case["channels"]))
    frame = delta_like(case, 1.0, "elements", rng)
    layer.set_input(frame)
    layer.run("dense")
    total += frame
    before = conv64(total, weight, case) + bias
    assert close(layer.value(), before, 2e-6 * np.sqrt(weight[0].size))
    paths = PATHS if not (case["groups"] == case["channels"] == case["out"] > 4) else ("dense",)
    for density in DENSITIES:
        for pattern in ("elements", "pixels", "block"):
            for path in paths:
                delta = delta_like(case, density, pattern, rng)
                layer.set_input(delta)
                layer.run(path)
                total += delta
                after = conv64(total, weight, case) + bias
                where = f"{name}, {path}, {pattern} at {density}"
                assert close(layer.value(), after, 3e-6 * np.sqrt(weight[0].size)), where
                assert close(layer.delta(), after - before, 3e-6 * np.sqrt(weight[0].size)), where
                listed = np.zeros_like(after).reshape(-1, case["out"])
                events = layer.events()
                listed[events[:, 0].astype(int), events[:, 1].astype(int)] = events[:, 2]
                assert len(events) == np.count_nonzero(listed), where
                np.testing.assert_array_equal(listed.reshape(after.shape), layer.delta(), where)
                assert layer.active == sorted(layer.active)
                before = after


def test_macs() -> None:
    """By true fan-out: in a 3x3 map each corner reaches 4 outputs, an edge 6, the middle 9."""
    layer = _native.Layer((3, 3), np.zeros((5, 1, 3, 3), np.float32), padding=(1, 1, 1, 1))
    assert layer.dense_macs == 5 * (4 * 4 + 4 * 6 + 9)
    delta = np.zeros((3, 3, 1), np.float32)
    delta[0, 0] = delta[1, 1] = 1
    layer.set_input(delta)
    assert layer.macs == 5 * (4 + 9)


def test_strides_may_be_larger_than_the_map() -> None:
    """Only phases that an input has are packed: of this stride there would be four thousand million."""
    weight = np.arange(1, 7, dtype=np.float32).reshape(2, 3, 1, 1)
    layer = _native.Layer((2, 3), weight, stride=(65535, 65535))
    frame = np.arange(18, dtype=np.float32).reshape(2, 3, 3)
    for path in PATHS:
        layer.set_input(frame)
        layer.run(path)
        frame = -frame
    np.testing.assert_array_equal(layer.value(), (weight[..., 0, 0] @ np.arange(3)).reshape(1, 1, 2))


@pytest.mark.parametrize("kernel", [3, 7])
def test_a_depthwise_layer_has_no_path_event_by_event(isa: str, kernel: int) -> None:
    case = make((9, 8), 24, 24, kernel, groups=24)
    layer = layer_of(case, *arrays(case, np.random.default_rng(0)))
    assert not layer.has_elements
    layer.set_input(np.ones((9, 8, 24), np.float32))
    with pytest.raises(RuntimeError, match="event by event"):
        layer.run("elements")
    with pytest.raises(RuntimeError, match="is computed from values"):
        layer.run("pixels")
    case = make((9, 8), 24, 25, kernel)
    assert layer_of(case, *arrays(case, np.random.default_rng(0))).has_elements


def test_an_unknown_path_is_refused() -> None:
    layer = _native.Layer((3, 3), np.zeros((5, 1, 3, 3), np.float32))
    with pytest.raises(ValueError, match="unknown path 'dens'"):
        layer.run("dens")


def test_an_unchanged_code_sends_nothing(isa: str) -> None:
    """q n is rounded before the difference is taken: no step but a power of two would keep still otherwise."""
    rng = np.random.default_rng(3)
    same, step = np.eye(20, dtype=np.float32)[:, :, None, None], np.full(20, 0.1, np.float32)
    layer = _native.Layer((5, 7), same, codec="exact", step=step)
    codes = rng.integers(-9, 9, (5, 7, 20))
    frame = (codes * 0.1).astype(np.float32)
    layer.set_input(frame)
    layer.run("dense")
    np.testing.assert_array_equal(layer.value(), np.float32(0.1) * codes.astype(np.float32))
    for path in PATHS:
        layer.set_input(rng.uniform(0.01, 0.02, frame.shape).astype(np.float32))
        layer.run(path)
        assert len(layer.events()) == 0
        layer.set_input(-layer.accumulator() + frame)
        layer.run("dense")


@pytest.mark.parametrize("name", [*_native.available(), "v9"])
def test_instruction_set_by_environment(name: str) -> None:
    """Without PyTorch in the process, too."""
    code = "import sys, sparsetime._native as n; print(n.isa(), 'torch' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "SPARSETIME_ISA": name},
        capture_output=True,
        text=True,
        check=False,
    )
    if name == "v9":
        assert run.returncode != 0
        assert "SPARSETIME_ISA=v9" in run.stderr
    else:
        assert run.stdout.split() == [name, "False"], run.stderr
