"""Clamp, quantizer and penalty in one node against the composition of their parts."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparsetime import _quantize
from sparsetime.codec import encode_clip
from sparsetime.nn import ACTIVATIONS
from sparsetime.nn._fused import clamp_hold, clamp_quantize
from sparsetime.quantize import quantize

PLAIN = {"identity": lambda x: x, "relu": F.relu, "relu6": F.relu6}
HALF_FLOOR = torch.finfo(torch.float16).tiny
ISAS = ["", *_quantize.instruction_sets()]


def plain(x: Tensor, step: Tensor, activation: str, frames: int) -> tuple[Tensor, Tensor]:
    """What the fused form claims to be."""
    value = quantize(PLAIN[activation](x), step, "dal")[0]
    if frames < 2:
        return value, x.new_zeros(())
    return value, torch.diff(value.unflatten(0, (-1, frames)), dim=1).abs().mean()


def fused(x: Tensor, step: Tensor, activation: str, frames: int, isa: str = "") -> tuple[Tensor, Tensor]:
    return clamp_quantize(x, step, *ACTIVATIONS[activation], frames, isa)


def data(shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(shape, generator=generator, dtype=torch.float64) * 3).to(dtype)
    return x.contiguous(memory_format=layout).requires_grad_()


def compare(
    shape: tuple[int, ...],
    step: Tensor,
    activation: str,
    frames: int,
    *,
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = torch.contiguous_format,
    isa: str = "",
    weights: tuple[float, float] = (1.0, 3.0),
) -> None:
    """Values to the bit; penalty and gradients within rounding. `weights`: of value and penalty in the loss."""
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-13}
    cotangent = torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype)
    results = []
    for function in (plain, lambda *a: fused(*a, isa)):
        x, q = data(shape, dtype, layout), step.clone().requires_grad_()
        value, penalty = function(x, q, activation, frames)
        ((value * cotangent).sum() * weights[0] + penalty * weights[1]).backward()
        results.append((value.detach(), penalty.detach(), x.grad, q.grad))
    (value, penalty, grad_x, grad_q), (value_f, penalty_f, grad_x_f, grad_q_f) = results
    assert torch.equal(value, value_f)
    torch.testing.assert_close(penalty_f, penalty, **tolerance)
    torch.testing.assert_close(grad_x_f, grad_x, **tolerance)
    # A sum over all elements: rounding grows with their number.
    scale = max(float((value.abs() * cotangent.abs()).sum() / step.abs().min()), 1.0)
    torch.testing.assert_close(grad_q_f, grad_q, rtol=tolerance["rtol"], atol=tolerance["atol"] * scale)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize(
    ("shape", "frames", "layout"),
    [
        ((6, 3, 5, 7), 3, torch.contiguous_format),
        ((6, 3, 5, 7), 3, torch.channels_last),
        ((4, 5, 1, 1), 2, torch.channels_last),
        ((4, 1, 3, 3), 4, torch.channels_last),
        ((8, 10), 4, torch.contiguous_format),
        ((1, 1), 1, torch.contiguous_format),
        ((2, 1), 2, torch.contiguous_format),
        ((3, 17), 1, torch.contiguous_format),
        ((6, 1025), 3, torch.contiguous_format),  # a block and one
        ((2, 4, 31, 33), 2, torch.channels_last),  # several blocks
    ],
)
def test_native_equals_the_composition(
    shape: tuple[int, ...], frames: int, layout: torch.memory_format, activation: str, isa: str
) -> None:
    compare(shape, torch.tensor(0.37), activation, frames, layout=layout, isa=isa)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("step_shape", [(), (3, 1, 1), (3, 5, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_granularity_equals_the_composition(
    dtype: torch.dtype, step_shape: tuple[int, ...], layout: torch.memory_format, activation: str
) -> None:
    step = torch.rand(step_shape, generator=torch.Generator().manual_seed(3)) * 0.5 + 0.1
    compare((6, 3, 5, 7), step.to(dtype), activation, 3, dtype=dtype, layout=layout)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("step_shape", [(), (10,)])
def test_features_equal_the_composition(step_shape: tuple[int, ...], activation: str) -> None:
    step = torch.rand(step_shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 0.5 + 0.1
    compare((12, 10), step, activation, 4, dtype=torch.float64)


@pytest.mark.parametrize("step", [torch.tensor(-0.37), torch.tensor(1e-12, dtype=torch.float64)])
def test_negative_steps_and_steps_below_the_floor(step: Tensor) -> None:
    compare((6, 4), step, "relu", 3, dtype=torch.float64 if step.dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 3.0), (2.0, -1.0)])
def test_parts_of_the_loss(weights: tuple[float, float], dtype: torch.dtype) -> None:
    compare((6, 3, 5, 7), torch.tensor(0.37, dtype=dtype), "relu", 3, weights=weights, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("part", [0, 1])
def test_a_part_that_is_in_no_loss_has_no_part_in_the_gradient(part: int, dtype: torch.dtype) -> None:
    x, step = data((6, 4), dtype, torch.contiguous_format), torch.tensor(0.37, dtype=dtype, requires_grad=True)
    expected_x, expected_step = torch.autograd.grad(plain(x, step, "relu", 3)[part].sum(), [x, step])
    got_x, got_step = torch.autograd.grad(fused(x, step, "relu", 3)[part].sum(), [x, step])
    torch.testing.assert_close(got_x, expected_x)
    torch.testing.assert_close(got_step, expected_step)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_input_or_a_step_without_gradient(dtype: torch.dtype) -> None:
    x = data((6, 4), dtype, torch.contiguous_format)
    step = torch.tensor(0.37, dtype=dtype, requires_grad=True)
    full_x, full_step = torch.autograd.grad(sum(t.sum() for t in fused(x, step, "relu", 3)), [x, step])
    (only_step,) = torch.autograd.grad(sum(t.sum() for t in fused(x.detach(), step, "relu", 3)), [step])
    (only_x,) = torch.autograd.grad(sum(t.sum() for t in fused(x, step.detach(), "relu", 3)), [x])
    assert torch.equal(only_step, full_step)
    assert torch.equal(only_x, full_x)
    assert not fused(x.detach(), step.detach(), "relu", 3)[0].requires_grad


def test_gradients_by_hand() -> None:
    """Two frames of three elements, step 0.5, ReLU, loss = 10 sum(value) + penalty.

    x      [-1, 0.6, 2]  [0.7, 0.6, 0.9]
    value  [ 0, 0.5, 2]  [0.5, 0.5, 1.0]      codes [0, 1, 4]  [1, 1, 2]
    change               [0.5, 0.0, -1 ]      penalty (0.5 + 0 + 1) / 3
    d/dx:  10, and -+ 1/3 where the value changed, 0 where x < 0
    d/dq:  -10 (0 + 1 + 4 + 1 + 1 + 2) - (1 + 0 + 2) / 3
    """
    x = torch.tensor([[-1.0, 0.6, 2.0], [0.7, 0.6, 0.9]], requires_grad=True)
    step = torch.tensor(0.5, requires_grad=True)
    value, penalty = fused(x, step, "relu", 2)
    assert value.tolist() == [[0.0, 0.5, 2.0], [0.5, 0.5, 1.0]]
    assert penalty.item() == 0.5
    (10 * value.sum() + penalty).backward()
    w = 1 / 3
    assert x.grad is not None
    assert step.grad is not None
    assert x.grad.flatten().tolist() == pytest.approx([0, 10, 10 + w, 10 + w, 10, 10 - w])
    assert step.grad.item() == pytest.approx(-90 - 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_passes_strictly_inside_the_clamp(dtype: torch.dtype) -> None:
    x = torch.tensor([[-0.1, 0.0, 0.1, 5.9, 6.0, 6.1]], dtype=dtype, requires_grad=True)
    (grad,) = torch.autograd.grad(fused(x, torch.tensor(0.5, dtype=dtype), "relu6", 1)[0].sum(), x)
    assert grad.tolist() == [[0, 0, 1, 1, 0, 0]]


def test_clips_do_not_touch_each_other() -> None:
    """The last frame of a clip and the first of the next are no neighbours."""
    x = torch.tensor([[1.0], [1.0], [9.0], [9.0]], requires_grad=True)
    _, penalty = fused(x, torch.tensor(0.5), "relu", 2)
    assert penalty.item() == 0
    penalty.backward()
    assert x.grad is not None
    assert not x.grad.any()


@pytest.mark.parametrize("isa", ISAS)
def test_halves_and_values_that_are_not_finite(isa: str) -> None:
    x = torch.tensor([[0.25, 0.75, 1.25, math.inf, -math.inf, math.nan, -0.0, 1e-30]])
    value, _ = fused(x, torch.tensor(0.5), "relu", 1, isa)
    assert value[0, :5].tolist() == [0.0, 1.0, 1.0, math.inf, 0.0]
    assert math.isnan(value[0, 5])
    assert value[0, 6:].tolist() == [0.0, 0.0]


def test_a_nan_shows_in_penalty_and_gradients() -> None:
    x = torch.tensor([[1.0, 1.0], [math.nan, 1.0]], requires_grad=True)
    step = torch.tensor(0.5, requires_grad=True)
    value, penalty = fused(x, step, "identity", 2)
    assert math.isnan(penalty.item())
    (value.sum() + penalty).backward()
    assert step.grad is not None
    assert math.isnan(step.grad.item())


@pytest.mark.parametrize("make", [lambda x: x[:, ::2], lambda x: x.transpose(2, 3), lambda x: x[::1, :, 1:]])
def test_inputs_with_gaps_or_other_orders_in_memory(make: object) -> None:
    base = torch.randn(6, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    x = make(base)  # type: ignore[operator]
    step = torch.tensor(0.37)
    expected = plain(x.contiguous(), step, "relu", 3)
    got = fused(x, step, "relu", 3)
    assert torch.equal(got[0], expected[0])
    torch.testing.assert_close(got[1], expected[1])


def test_gradients_with_gaps_or_other_orders_in_memory() -> None:
    x = data((6, 3, 4, 4), torch.float32, torch.channels_last)
    step = torch.tensor(0.37)
    for cotangent in (torch.ones(()).expand(6, 3, 4, 4), torch.randn(6, 4, 4, 3).permute(0, 3, 2, 1)):
        value, _ = fused(x, step, "identity", 3)
        (grad,) = torch.autograd.grad(value, x, cotangent)
        assert torch.equal(grad, cotangent)


def test_channels_last_stays_channels_last() -> None:
    x = data((4, 3, 5, 5), torch.float32, torch.channels_last)
    assert fused(x, torch.tensor(0.37), "relu", 2)[0].is_contiguous(memory_format=torch.channels_last)


def test_the_input_is_not_modified_nor_aliased() -> None:
    x = torch.randn(4, 6)
    before = x.clone()
    value, _ = fused(x, torch.tensor(0.37), "relu", 2)
    value += 1
    assert torch.equal(x, before)


def test_bfloat16_equals_the_composition() -> None:
    x = torch.randn(4, 6).bfloat16()
    assert torch.equal(fused(x, torch.tensor(0.5), "relu", 2)[0], plain(x, torch.tensor(0.5), "relu", 2)[0])


def test_float16_has_a_floor_of_its_own() -> None:
    x = torch.tensor([[0.0, 1e-4], [2e-4, -1e-4]], dtype=torch.float16)
    step = torch.tensor(1e-9, requires_grad=True)
    value, _ = fused(x, step, "relu", 2)
    assert torch.equal(value, plain(x, step, "relu", 2)[0])
    assert value.tolist() == [[0, 2 * HALF_FLOOR], [3 * HALF_FLOOR, 0]]
    value.sum().backward()
    assert step.grad.item() == -5  # the codes


@pytest.mark.parametrize("step_shape", [(), (40,)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_over_many_elements_of_a_half_type(dtype: torch.dtype, step_shape: tuple[int, ...]) -> None:
    """Of more than 65504, where float16 ends, and of more than 256 elements, where bfloat16 stops to count."""
    x = torch.cat([torch.zeros(4000, 1, 40), torch.full((4000, 1, 40), 2.0)], 1).flatten(0, 1)
    results = {}
    for kind in (torch.float32, dtype):
        step = torch.full(step_shape, 0.5, requires_grad=True)
        value, penalty = clamp_quantize(x.to(kind), step, 0.0, math.inf, 2)
        (value.sum(dtype=torch.float32) + penalty.float()).backward()
        results[kind] = [penalty.float(), step.grad]
        assert penalty.dtype == kind
    torch.testing.assert_close(results[dtype], results[torch.float32], rtol=2e-3, atol=0)


@pytest.mark.parametrize("shape", [(2, 300_007), (6, 70_001), (9, 5, 40, 41)])
def test_any_number_of_threads_gives_the_same_bits(shape: tuple[int, ...]) -> None:
    """Penalty and gradient of the step are sums over everything: their order must not depend on who adds."""
    frames = 3 if shape[0] % 3 == 0 else 2
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            x, step = data(shape, torch.float32, torch.contiguous_format), torch.tensor(0.37, requires_grad=True)
            value, penalty = fused(x, step, "relu", frames)
            (value.square().sum() + 1e4 * penalty).backward()
            assert x.grad is not None
            assert step.grad is not None
            results.append((value.detach(), penalty.detach(), x.grad, step.grad))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for expected, got in zip(results[0], other, strict=True):
            assert torch.equal(expected, got)


def in_a_process(code: str) -> str:
    """What a program prints that has a process, and so its threads, to itself."""
    code = (
        "import os, torch\nfrom torch.utils.data import DataLoader\nfrom sparsetime.nn._fused import clamp_quantize\n"
        "torch.set_num_threads(2)\nfused = lambda x: clamp_quantize(x, torch.tensor(0.37), 0.0, 6.0, 2)\n"
        "tasks = lambda: len(os.listdir('/proc/self/task'))\nx = torch.randn(2, 300_007)\n" + code
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads as Linux lists them")
def test_threads_are_pytorchs_own() -> None:
    """Two threads work, and PyTorch's next operation starts none: one pool, not two that fight for the cores."""
    found = in_a_process("n = tasks(); fused(x); m = tasks(); x.exp(); fused(x); print(m - n, tasks() - m)")
    assert found == "1 0"


def test_forked_workers_run_it_after_their_parent_has() -> None:
    found = in_a_process(
        "class Data:\n"
        "    def __len__(self): return 4\n"
        "    def __getitem__(self, i): return fused(x + i)[1]\n"
        "here = torch.stack([fused(x + i)[1] for i in range(4)])\n"
        "there = torch.cat(list(DataLoader(Data(), num_workers=2, multiprocessing_context='fork')))\n"
        "print(torch.equal(here, there))"
    )
    assert found == "True"


def test_without_a_parallel_runtime_the_calling_thread_does_it() -> None:
    code = (
        "import array, sys, importlib.machinery as m, importlib.util as u\n"
        f"loader = m.ExtensionFileLoader('_quantize', {_quantize.__file__!r})\n"
        "q = u.module_from_spec(u.spec_from_loader('_quantize', loader)); loader.exec_module(q)\n"
        "x = array.array('f', [0.3, 1.2] * 50_000); v = array.array('f', bytes(400_000))\n"
        "change = q.forward(x.buffer_info()[0], v.buffer_info()[0], 0, 1, 2, 50_000, 0.5, 0.0, 6.0, 2)\n"
        "print(change, set(v), 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "0.0 {0.5, 1.0} False"


def test_an_empty_batch() -> None:
    value, penalty = fused(torch.zeros(0, 4), torch.tensor(0.5), "relu", 2)
    assert value.shape == (0, 4)
    assert penalty.item() == 0


def test_an_unknown_instruction_set() -> None:
    with pytest.raises(ValueError, match="no instruction set sse9 on this machine"):
        fused(torch.zeros(2, 4), torch.tensor(0.5), "relu", 2, "sse9")


def test_a_gradient_of_the_gradient_is_refused() -> None:
    x = data((4, 3), torch.float32, torch.contiguous_format)
    (grad,) = torch.autograd.grad(fused(x, torch.tensor(0.5), "relu", 2)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("wrong", [1.01, 2.0, math.nan])
def test_the_comparison_itself_can_fail(wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fused

    def broken(x: Tensor, step: Tensor, activation: str, frames: int, isa: str = "") -> tuple[Tensor, Tensor]:
        value, penalty = real(x, step, activation, frames, isa)
        return value, penalty * wrong

    monkeypatch.setitem(globals(), "fused", broken)
    with pytest.raises(AssertionError):
        compare((6, 3, 5, 7), torch.tensor(0.37), "relu", 3)


def plain_hold(x: Tensor, threshold: Tensor, activation: str, frames: int) -> tuple[Tensor, Tensor]:
    """What `clamp_hold` claims to be."""
    value = encode_clip(PLAIN[activation](x).unflatten(0, (-1, frames)), None, threshold, "hold")[1]
    change = torch.diff(value, dim=1).abs().mean() if frames > 1 else x.new_zeros(())
    return value.flatten(0, 1), change


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("weights", [(1.0, 3.0), (0.0, 3.0), (1.0, 0.0)])
@pytest.mark.parametrize(
    ("shape", "frames", "layout"),
    [
        ((6, 3, 5, 7), 3, torch.contiguous_format),
        ((8, 3, 5, 7), 4, torch.channels_last),
        ((3, 17), 1, torch.contiguous_format),
        ((6, 4097), 6, torch.contiguous_format),  # a block of the backward pass and one
        ((2, 4, 65, 67), 2, torch.channels_last),  # several blocks
    ],
)
def test_hold(
    shape: tuple[int, ...],
    frames: int,
    layout: torch.memory_format,
    weights: tuple[float, float],
    activation: str,
    isa: str,
) -> None:
    cotangent = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    results = []
    for function in (plain_hold, lambda x, q, name, t: clamp_hold(x, q, *ACTIVATIONS[name], t, isa)):
        x = data(shape, torch.float32, layout)
        value, penalty = function(x, torch.tensor(-2.5), activation, frames)
        ((value * cotangent).sum() * weights[0] + penalty * weights[1]).backward()
        results.append((value.detach(), penalty.detach(), x.grad))
    (value, penalty, grad), (value_f, penalty_f, grad_f) = results
    assert torch.equal(value, value_f)
    if frames > 1 and value.numel() > 100:
        held = (torch.diff(value.unflatten(0, (-1, frames)), dim=1) == 0).double().mean()
        assert 0.1 < held < 0.95  # some are sent, some held
    torch.testing.assert_close(penalty_f, penalty, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad_f, grad, rtol=1e-5, atol=1e-6)  # sums over the frames held, in another order


def test_hold_by_hand() -> None:
    x = torch.tensor([[1.0], [1.4], [1.6], [9.0], [-1.0]], requires_grad=True)  # threshold 0.5, ReLU6
    value, penalty = clamp_hold(x, torch.tensor(0.5), 0.0, 6.0, 5)
    assert value.flatten().tolist() == [1.0, 1.0, torch.tensor(1.6).item(), 6.0, 0.0]
    assert penalty.item() == pytest.approx((0.6 + 4.4 + 6.0) / 4)
    (value * torch.tensor([[1.0], [2.0], [4.0], [8.0], [16.0]])).sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [3.0, 0.0, 4.0, 0.0, 0.0]  # the last two lie outside of the clamp
