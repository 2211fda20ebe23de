"""int8 plans: the native backend equals the reference to the bit, the reference dense integer inference, for ever."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from gathers import GATHERS, gather_plan
from hypothesis import given
from hypothesis import strategies as st
from random_plans import ROUNDED_KINDS, examples, frames, int8_plans
from restored import check_goes_on

import sparsetime
from sparsetime import _native
from sparsetime.convert.integers import quantised_plan
from sparsetime.engine import InputSpec, Op, Plan, PlanError
from sparsetime.engine.cpu import Native
from sparsetime.engine.integers import IntegerReference


def check_equal(plan: Plan, seed: int, threads: int = 1, count: int = 7, cut: float = math.inf) -> None:
    """Every value and every count of events, after every frame."""
    native, reference = Native(plan, threads), IntegerReference(plan)
    for executor in (native, reference):
        executor.set_cut(cut)
    for t, frame in enumerate(frames(plan, count, seed)):
        for got, expected in zip(native.run(frame), reference.run(frame), strict=True):
            np.testing.assert_array_equal(got, expected)
        assert native.flushed == reference.flushed
        state, wanted = native.state(), reference.state()
        assert state.keys() == wanted.keys()
        for name, expected in wanted.items():
            assert state[name].dtype == expected.dtype, name
            np.testing.assert_array_equal(state[name], expected, err_msg=f"frame {t}, {name}")
        for op, got, expected in zip(plan.ops, native.stats(), reference.stats(), strict=True):
            assert got[:2] == expected[:2], (t, op.name)
            assert got.effective_macs == expected.effective_macs, (t, op.name)
        if t == 4:
            native.refresh()
            reference.refresh()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["attention", "group_norm", "softmax"])
@pytest.mark.usefixtures("isa")
def test_rounded_functions_give_the_same_bits_on_every_instruction_set(kind, threads):
    @examples(15)
    @given(int8_plans(kinds=(kind, "conv2d"), codecs=("hold", "pixel", None)), st.integers(0, 99))
    def check(plan, seed):
        clip, answers = frames(plan, 4, seed), []
        for name in _native.available():
            _native.select(name)
            stream = Native(plan, threads)
            answers.append([stream.run(frame) for frame in clip])
        for other in answers[1:]:
            for got, expected in zip(other, answers[0], strict=True):
                for x, y in zip(got, expected, strict=True):
                    np.testing.assert_array_equal(x, y)

    check()


@pytest.mark.parametrize("kind", sorted(set(ROUNDED_KINDS)))
def test_every_operation_equals_the_reference(isa, kind):
    @examples(8)
    @given(int8_plans(kinds=(kind, "conv2d", kind), operations=4), st.integers(0, 99))
    def check(plan, seed):
        check_equal(plan, seed)

    check()


@examples(120)
@given(int8_plans(), st.integers(0, 99), st.sampled_from([math.inf, 0.3]))
def test_networks_equal_the_reference(plan, seed, cut):
    check_equal(plan, seed, cut=cut)


@examples(60)
@given(int8_plans(), st.integers(0, 99), st.booleans())
def test_a_flush_finds_nothing_of_what_was_before(plan, seed, forget):
    native, fresh = Native(plan), Native(plan)
    *before, last = frames(plan, 4, seed)
    for frame in before:
        native.run(frame)
    (native.reset if forget else native.flush)()
    for got, expected in zip(native.run(last), fresh.run(last), strict=True):
        np.testing.assert_array_equal(got, expected)
    for value in range(len(plan.values)):
        np.testing.assert_array_equal(native.value(value), fresh.value(value), err_msg=str(value))


@examples(30)
@given(int8_plans(), st.integers(0, 99))
def test_threads_change_nothing(plan, seed):
    check_equal(plan, seed, threads=3)


def wide_plan(
    channels: int,
    out: int,
    kernel: int,
    groups: int = 1,
    stride: int = 1,
    size: tuple[int, int] = (9, 13),
    codec: str = "hold",
) -> Plan:
    """Two convolutions of many channels, with a residual: more than one block of every kernel."""
    torch.manual_seed(channels + out)

    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Conv2d(3, channels, 1)
            self.second = torch.nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups)
            self.third = torch.nn.Conv2d(out, out, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.second(torch.relu(self.first(x)))
            return torch.nn.functional.relu6(self.third(torch.relu(y)) + y)

    clip = torch.randn(2, 3, 9, 13)
    return sparsetime.compile(Two().eval(), clip[0], steps=clip, codec=codec, levels=100, precision="int8")


@pytest.mark.parametrize("codec", ["hold", "pixel"])
@pytest.mark.parametrize(
    ("channels", "out", "kernel", "groups", "stride"),
    [
        *((16, 64, 1, 1, 1), (70, 130, 3, 1, 1), (64, 48, 3, 1, 2), (5, 33, 5, 1, 1), (96, 96, 3, 96, 1)),
        *((96, 96, 3, 96, 2), (144, 144, 5, 144, 1), (20, 20, 3, 20, 3), (64, 128, 3, 4, 1), (24, 12, 3, 12, 1)),
        *((96, 96, 3, 24, 1), (40, 40, 9, 40, 1), (72, 72, 11, 72, 2), (24, 24, 13, 24, 1)),
    ],
)
def test_wide_layers_equal_the_reference(isa, channels, out, kernel, groups, stride, codec):
    check_equal(wide_plan(channels, out, kernel, groups, stride, codec=codec), seed=1, count=6)


@pytest.mark.parametrize("name", GATHERS)
@pytest.mark.parametrize("codec", [True, False])
def test_gathers_of_every_form_equal_the_reference(isa, name, codec):
    plan = gather_plan(name, codec)
    coded = quantised_plan(plan, frames(plan, 2, seed=3))
    assert coded.codings.keys() == ({0, 1} if codec else set())
    check_equal(coded, seed=1, threads=2)


@pytest.mark.parametrize("channels", [3, 24, 150])
def test_moves_of_many_channels_equal_the_reference(isa, channels):
    """Parts, every second channel, another order, joining and pooling: over several blocks and at the edges."""
    torch.manual_seed(channels)

    class Moves(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = torch.nn.Conv2d(3, 2 * channels, 1), torch.nn.Conv2d(3 * channels, 8, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(self.first(x))
            even, odd, upper = y[:, ::2], y[:, 1::2], y[:, channels:]
            y = torch.cat([torch.nn.functional.pad(even, (1, 0, 0, 1)), torch.nn.functional.pad(odd, (0, 1, 1, 0))], 1)
            y = torch.nn.functional.max_pool2d(y, 3, 2, 1)
            upper = torch.nn.functional.max_pool2d(torch.flip(upper, [1]), 5, 2, 2)
            return self.last(torch.cat([y, torch.nn.functional.pad(upper, (0, y.shape[3] - upper.shape[3], 0, 0))], 1))

    clip = torch.randn(2, 3, 9, 12)
    plan = sparsetime.compile(Moves().eval(), clip[0], steps=clip, codec="hold", levels=100, precision="int8")
    moved = {op.kind for op in plan.ops if op.precision == "int8" and op.kind not in ("input", "conv2d")}
    assert {"cat", "channels", "max_pool2d", "pad"} <= moved
    check_equal(plan, seed=2, count=6)


@pytest.mark.parametrize("channels", [3, 21, 150])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_resizes_equal_the_reference(isa, channels, mode):
    """Of maps whose values are encoded, and of one that only the caller reads; some taps have a weight of 0."""
    torch.manual_seed(channels)

    class Resized(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = torch.nn.Conv2d(3, channels, 1), torch.nn.Conv2d(channels, channels, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            align = True if mode == "bilinear" else None
            y = torch.nn.functional.interpolate(torch.relu(self.first(x)), (8, 16), mode=mode, align_corners=align)
            return torch.nn.functional.interpolate(self.last(y), (15, 28), mode=mode, align_corners=align)

    clip = torch.randn(2, 3, 5, 11)
    plan = sparsetime.compile(Resized().eval(), clip[0], steps=clip, codec="hold", levels=100, precision="int8")
    assert [op.kind for op in plan.ops].count("resize2d") == 2
    check_equal(plan, seed=3, count=6)


def resized_plan(channels: int, row_taps: int, column_taps: int) -> Plan:
    """Codes of a map of 7 x 9, resized to 12 x 21 and kept as codes, then to 30 x 25, which only the caller reads."""
    rng = np.random.default_rng(channels)
    one = {"kind": "code", "tensor": "s", "zero": 128, "threshold": "t"}
    tensors = {"s": np.asarray([0.03], np.float32), "t": np.asarray([2], np.int32)}
    ops = [Op("input", "input", (), (0,), codec=one, precision="int8")]
    values = [(1, channels, 7, 9), (1, channels, 12, 21), (1, channels, 30, 25)]
    for k in (1, 2):
        roles = {}
        for role, weights, axis, taps in (
            ("rows", "row_weights", 2, row_taps),
            ("columns", "column_weights", 3, column_taps),
        ):
            n, size = values[k][axis], values[k - 1][axis]
            tensors[f"{role}{k}"] = np.sort(rng.integers(0, size, (n, taps)), axis=0).astype(np.int32)
            tensors[f"{weights}{k}"] = rng.choice([0, 0.1, 0.3, 0.7, -0.2, 1], (n, taps)).astype(np.float32)
            roles |= {role: f"{role}{k}", weights: f"{weights}{k}"}
        ops.append(
            Op("resize2d", f"resize{k}", (k - 1,), (k,), {}, roles, None, one if k == 1 else None, precision="int8")
        )
    structure = {"tuple": [{"output": 0}, {"output": 1}, {"output": 2}]}
    return Plan("resized", tuple(values), tuple(ops), (2, 1, 2), structure, tensors, precision="int8")


@pytest.mark.parametrize("taps", [(1, 1), (2, 2), (4, 4), (5, 3)])
@pytest.mark.parametrize("channels", [1, 3, 21, 70])
def test_resizes_of_any_taps_equal_the_reference(isa, channels, taps):
    for threads in (1, 3):
        check_equal(resized_plan(channels, *taps), seed=5, threads=threads, cut=0.4)


def test_a_resized_map_that_only_the_caller_reads_goes_on_from_a_restored_state():
    plan = resized_plan(3, 2, 2)
    stats = check_goes_on(plan, frames(plan, 6, 3))[-1]
    assert 0 < stats[2].events < 3 * 30 * 25  # partly changed: a wrong state before it would show


@pytest.mark.parametrize("codec", ["exact", "hold"])
def test_two_thousand_frames_do_not_drift(codec):
    """Against dense integer inference: with `exact` of the frame alone, with `hold` of the codes that are held."""
    torch.manual_seed(1)
    module = torch.nn.Sequential(
        *(torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.ReLU6(), torch.nn.Conv2d(16, 16, 3, padding=1, groups=16)),
        *(torch.nn.ReLU(), torch.nn.Conv2d(16, 24, 1), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten()),
        torch.nn.Linear(96, 5),
    ).eval()
    clip = torch.randn(4, 3, 7, 6)
    plan = sparsetime.compile(module, clip[0], steps=clip, codec=codec, precision="int8")
    rng = np.random.default_rng(0)
    native, reference, dense = Native(plan), IntegerReference(plan), IntegerReference(plan)
    frame = rng.standard_normal(plan.input_shape).astype(np.float32)
    moved = 0
    for t in range(2000):
        frame = np.where(rng.random(frame.shape) < rng.choice([0, 0.05, 0.5]), rng.standard_normal(frame.shape), frame)
        frame = frame.astype(np.float32)
        (got,), (expected,) = native.run(frame), reference.run(frame)
        np.testing.assert_array_equal(got, expected, err_msg=str(t))
        moved += native.stats()[-1].events
        if codec == "exact":
            dense.reset()
            dense.run(frame)
            for name, value in dense.state().items():
                np.testing.assert_array_equal(reference.state()[name], value, err_msg=f"{t}, {name}")
    for name, value in reference.state().items():
        np.testing.assert_array_equal(native.state()[name], value, err_msg=name)
    assert moved > 2000


@examples(40)
@given(int8_plans(codecs=("exact", None)), st.integers(0, 99))
def test_thresholds_of_zero_give_dense_inference(plan, seed):
    """The state follows from the frame alone: nothing of the frames before is left in it."""
    zero = {name: np.zeros_like(t) if name.endswith(".threshold") else t for name, t in plan.tensors.items()}
    plan = replace(plan, tensors=zero)
    stream, dense = Native(plan), IntegerReference(plan)
    for frame in frames(plan, 6, seed):
        dense.reset()
        stream.run(frame)
        dense.run(frame)
        for name, expected in dense.state().items():
            np.testing.assert_array_equal(stream.state()[name], expected, err_msg=name)


@examples(30)
@given(int8_plans(), st.integers(0, 99))
def test_restore_is_exact(plan, seed):
    stream, other = plan.stream(), plan.stream()
    clip = frames(plan, 7, seed)
    for frame in clip[:3]:
        stream(frame)
    other(clip[5])
    other.restore(stream.snapshot())
    for frame in clip[3:]:
        for a, b in zip(stream(frame), other(frame), strict=True):
            np.testing.assert_array_equal(a, b)
        for name, expected in stream.snapshot().items():
            np.testing.assert_array_equal(other.snapshot()[name], expected, err_msg=name)
        assert [s.events for s in stream.stats.values()] == [s.events for s in other.stats.values()]


@examples(15)
@given(int8_plans(), st.integers(0, 99))
def test_a_still_frame_costs_nothing(plan, seed):
    native = Native(plan)
    frame = frames(plan, 1, seed)[0]
    for _ in range(2):
        native.run(frame)
    assert sum(entry.macs + entry.events for entry in native.stats()) == 0


def one_layer(threshold: int = 0) -> Plan:
    """1x1, two channels to two, ReLU; steps 0.5 and 0.25, zeros 128 and 0."""
    f, i = np.float32, np.int32
    tensors = {
        "s0": np.asarray([0.5], f),
        "t0": np.zeros(1, i),
        "w": np.asarray([[2, -1], [-3, 4]], np.int8).reshape(2, 2, 1, 1),
        "ws": np.asarray([0.5, 0.25], f),
        "b": np.asarray([1, -1], f),
        "s1": np.asarray([0.25], f),
        "t1": np.full(1, threshold, i),
    }
    attributes = {"stride": [1, 1], "padding": [0, 0, 0, 0], "dilation": [1, 1], "groups": 1}
    codes = [{"kind": "code", "tensor": f"s{k}", "zero": z, "threshold": f"t{k}"} for k, z in ((0, 128), (1, 0))]
    roles = {"weight": "w", "weight_step": "ws", "bias": "b"}
    ops = (
        Op("input", "input", (), (0,), codec=codes[0], precision="int8"),
        Op("conv2d", "conv", (0,), (1,), attributes, roles, {"kind": "relu"}, codes[1], precision="int8"),
    )
    return Plan("one", ((1, 2, 1, 1),) * 2, ops, (1,), {"output": 0}, tensors, precision="int8")


# frame, codes of the input, codes sent, output. For (3, -1): codes 128 + 6 and 128 - 2;
# sums 2*6 - 1*(-2) = 14 and -3*6 + 4*(-2) = -26; z = 14 * (0.5 * 0.5) + 1 = 4.5 and -26 * (0.5 * 0.25) - 1 < 0;
# codes 4.5 / 0.25 = 18 and 0.
TABLE = [
    ((3.0, -1.0), (134, 126), (18, 0), (4.5, 0.0)),
    ((3.2, -1.1), (134, 126), (18, 0), (4.5, 0.0)),  # 6.4 and -2.2 round to the same codes
    ((3.0, -0.5), (134, 127), (17, 0), (4.25, 0.0)),  # sum 13, z = 4.25
]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_one_layer_by_hand(backend):
    stream = one_layer().stream(backend)
    for frame, codes, sent, output in TABLE:
        got = stream(np.asarray(frame, np.float32).reshape(1, 2, 1, 1))
        np.testing.assert_array_equal(got.ravel(), np.asarray(output, np.float32))
        state = stream.snapshot()
        np.testing.assert_array_equal(state["0.value"].ravel(), codes)
        np.testing.assert_array_equal(state["1.value"].ravel(), sent)
    # Bounds: -128 and 127 give the sums -383 and 892, z = 892 / 8 - 1 = 110.5, code 442: there is none.
    assert stream(np.asarray([-70, 70], np.float32).reshape(1, 2, 1, 1)).ravel().tolist() == [0.0, 255 * 0.25]
    assert stream.snapshot()["0.value"].ravel().tolist() == [0, 255]


@pytest.mark.parametrize("channels", [3, 64])
@pytest.mark.parametrize(
    ("low", "high", "zero", "code"), [(-20.0, -10.0, 0, 0), (300.0, 400.0, 0, 255), (10.0, 20.0, 255, 255)]
)
def test_bounds_beyond_all_codes_are_the_last_code(isa, channels, low, high, zero, code):
    tensors = {
        "s": np.ones(1, np.float32),
        "t": np.zeros(1, np.int32),
        "w": np.ones((channels, 4, 1, 1), np.int8),
        "ws": np.full(channels, 0.5, np.float32),
    }
    codes = [{"kind": "code", "tensor": "s", "zero": z, "threshold": "t"} for z in (0, zero)]
    attributes = {"stride": [1, 1], "padding": [0, 0, 0, 0], "dilation": [1, 1], "groups": 1}
    activation = {"kind": "clamp", "min": low, "max": high}
    roles = {"weight": "w", "weight_step": "ws"}
    ops = (
        Op("input", "input", (), (0,), codec=codes[0], precision="int8"),
        Op("conv2d", "conv", (0,), (1,), attributes, roles, activation, codes[1], precision="int8"),
    )
    plan = Plan("far", ((1, 4, 2, 2), (1, channels, 2, 2)), ops, (1,), {"output": 0}, tensors, precision="int8")
    native, frame = Native(plan), np.full(plan.input_shape, 5, np.float32)
    for value in (5, 9):
        np.testing.assert_array_equal(native.run(value + frame)[0], np.full(plan.values[1], code - zero))
    check_equal(plan, seed=0)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_threshold_holds_codes(backend):
    stream = one_layer(threshold=1).stream(backend)
    x = np.zeros((1, 2, 1, 1), np.float32)

    def sent(*frame: float) -> list[int]:
        x[:] = np.asarray(frame).reshape(x.shape)
        stream(x)
        return stream.snapshot()["1.value"].ravel().tolist()

    assert sent(3, -1) == [18, 0]
    assert sent(3, -0.5) == [18, 0]  # 17 is one away
    assert sent(3, 0) == [16, 0]  # 16 is two away


def test_codes_take_no_memory_for_deltas():
    """An average of single pixels, of the floats of a value that has codes too: 4 bytes and 1, then 1."""
    side, channels = 64, 64
    code = {"kind": "code", "tensor": "s", "zero": 0, "threshold": "t"}
    one = np.stack([np.arange(side), np.arange(side) + 1], 1).astype(np.int32)
    tensors = {"s": np.ones(1, np.float32), "t": np.zeros(1, np.int32), "one": one}
    tensors["d"] = np.ones((side, side), np.float32)
    roles = {"rows": "one", "columns": "one", "divisor": "d"}
    ops = (
        Op("input", "input", (), (0,), codec=code, precision="int8"),
        Op("avg_pool2d", "pool", (0,), (1,), {}, roles, None, code, precision="int8"),
    )
    plan = Plan("pool", ((1, channels, side, side),) * 2, ops, (1,), {"output": 0}, tensors, precision="int8")
    native = Native(plan)
    native.run(np.ones(plan.input_shape, np.float32))
    pixels = side * side
    lists = (
        2 * (1 + 4 + 4) + 1 + 4 + 4 + 2
    )  # by pixel: mask, active and tally of two values; touched ones, all, places looked at
    assert native.memory_bytes < (6 * channels + lists) * pixels + 2**17


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_maximum_of_a_whole_map_takes_little_memory(isa, outputs):
    side, channels = 256, 8
    code = {"kind": "code", "tensor": "s", "zero": 3, "threshold": "t"}
    tensors = {"s": np.ones(1, np.float32), "t": np.zeros(1, np.int32), "all": np.asarray([[0, side]], np.int32)}
    tensors["columns"] = np.asarray([[0, side]] * outputs, np.int32)
    roles = {"rows": "all", "columns": "columns"}
    ops = (
        Op("input", "input", (), (0,), codec=code, precision="int8"),
        Op("max_pool2d", "pool", (0,), (1,), {"dilation": [1, 1]}, roles, precision="int8"),
    )
    shapes = ((1, channels, side, side), (1, channels, 1, outputs))
    plan = Plan("pool", shapes, ops, (1,), {"output": 0}, tensors, precision="int8")
    native, rng = Native(plan), np.random.default_rng(0)
    for _ in range(3):
        frame = rng.integers(0, 200, plan.input_shape).astype(np.float32)
        expected = np.broadcast_to(frame.max((2, 3))[..., None, None], plan.values[1])
        np.testing.assert_array_equal(native.run(frame)[0], expected)
    # By pixel: 16 codes, 26 bytes of lists, and one pointer.
    assert native.memory_bytes < (16 + 26 + 8) * side * side + 2**17


def test_overflow_is_refused():
    """2^31 / (127 * 255) = 66311.2: so many weights of 127 cannot be sure of their sum, one less can."""
    torch.manual_seed(0)

    def plan(inputs: int) -> Plan:
        module = torch.nn.Linear(inputs, 2)
        with torch.no_grad():
            module.weight[1] = 1.0
        frame = torch.rand(1, inputs)
        return sparsetime.compile(module.eval(), frame, steps=0.01, codec="exact", precision="int8")

    assert plan(66311).ops[1].kind == "linear"
    with pytest.raises(PlanError, match=r"'.*' \(linear\): output channel 1 has weights of 8421624 in all.*2147483647"):
        plan(66312)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_largest_sum_there_is(backend):
    """All codes 255 times weights of 127 up to the bound: no wrap."""
    n = 66311
    f = np.float32
    tensors = {
        "s": np.ones(1, f),
        "t": np.zeros(1, np.int32),
        "w": np.stack([np.full(n, 127), np.full(n, -127)]).astype(np.int8),
        "ws": np.ones(2, f),
    }
    code = {"kind": "code", "tensor": "s", "zero": 0, "threshold": "t"}
    ops = (
        Op("input", "input", (), (0,), codec=code, precision="int8"),
        Op("linear", "linear", (0,), (1,), {}, {"weight": "w", "weight_step": "ws"}, precision="int8"),
    )
    plan = Plan("large", ((1, n), (1, 2)), ops, (1,), {"output": 0}, tensors, precision="int8")
    out = plan.stream(backend)(np.full((1, n), 1000, f))
    assert out.ravel().tolist() == [float(f(n * 127 * 255)), float(f(-n * 127 * 255))]


@pytest.mark.parametrize(("channels", "kernel"), [(35, 1), (64, 1), (3, 3), (20, 3)])
def test_products_of_two_inputs_are_added_exactly(isa, channels, kernel):
    """Every second weight as large as it can be, those between so small that two together are 128; codes 0 and 255."""
    f, rng, out = np.float32, np.random.default_rng(channels), 70
    weight = rng.choice([-127, 127], (out, channels, kernel, kernel))
    weight[:, 1::2] = rng.choice([-1, 0, 1], weight[:, 1::2].shape)
    weight[:, -1] = rng.choice([-128, 0, 127], weight[:, -1].shape)
    tensors = {
        "s": np.ones(1, f),
        "t": np.zeros(1, np.int32),
        "w": weight.astype(np.int8),
        "ws": np.ones(out, f),
    }
    code = {"kind": "code", "tensor": "s", "zero": 0, "threshold": "t"}
    attributes = {"stride": [1, 1], "padding": [kernel // 2] * 4, "dilation": [1, 1], "groups": 1}
    ops = (
        Op("input", "input", (), (0,), codec=code, precision="int8"),
        Op("conv2d", "conv", (0,), (1,), attributes, {"weight": "w", "weight_step": "ws"}, precision="int8"),
    )
    shapes = ((1, channels, 5, 7), (1, out, 5, 7))
    stream = Plan("pairs", shapes, ops, (1,), {"output": 0}, tensors, precision="int8").stream("cpu")
    for frame in (np.full(shapes[0], 255), rng.choice([0, 255], shapes[0]), rng.integers(0, 256, shapes[0])):
        expected = torch.nn.functional.conv2d(
            torch.tensor(frame, dtype=torch.float64), torch.tensor(weight, dtype=torch.float64), padding=kernel // 2
        )
        np.testing.assert_array_equal(stream(frame.astype(f)), expected.numpy().astype(f))


def changed(**parts) -> Plan:
    """`one_layer` with its convolution changed."""
    plan = one_layer()
    return replace(plan, ops=(plan.ops[0], replace(plan.ops[1], **parts)))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"precision": "float32"}, "is of precision float32, its plan of int8"),
        ({"tensors": {"weight": "w"}}, "'weight_step' is missing"),
        ({"tensors": {"weight": "w", "weight_step": "s0"}}, r"'weight_step' must have shape \(2,\)"),
        ({"tensors": {"weight": "ws", "weight_step": "ws"}}, "'weight' must be int8"),
        ({"codec": {"kind": "hold", "tensor": "s1"}}, "in an int8 plan all codecs are 'code'"),
        ({"codec": {"kind": "code", "tensor": "s1", "zero": 0}}, "has entries"),
        ({"codec": {"kind": "code", "tensor": "s1", "zero": 256, "threshold": "t1"}}, "'zero' must be an integer"),
        ({"codec": {"kind": "code", "tensor": "b", "zero": 0, "threshold": "t1"}}, r"must have shape \(1,\)"),
        ({"codec": {"kind": "code", "tensor": "s1", "zero": 0, "threshold": "s1"}}, "'threshold' must be int32"),
    ],
)
def test_what_does_not_fit_is_refused(parts, message):
    with pytest.raises(PlanError, match=message):
        changed(**parts)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("s1", np.asarray([0], np.float32), "step of codes must be from"),
        ("s1", np.asarray([np.nan], np.float32), "not finite"),
        ("ws", np.asarray([0.5, 0], np.float32), "'weight_step' must hold numbers"),
        ("t1", np.asarray([256], np.int32), "thresholds must be from 0 to 255"),
        ("t1", np.asarray([1, 2, 3], np.int32), "one of the shapes"),
        ("b", np.asarray([1e35, 0], np.float32), "'bias' must not leave"),
    ],
)
def test_numbers_are_checked(name, array, message):
    plan = one_layer()
    with pytest.raises(PlanError, match=message):
        replace(plan, tensors={**plan.tensors, name: array})


def test_weights_need_codes():
    plan = one_layer()
    tensors = {name: tensor for name, tensor in plan.tensors.items() if name not in ("s0", "t0")}
    with pytest.raises(PlanError, match="weights of int8 need an input of codes"):
        replace(plan, ops=(replace(plan.ops[0], codec=None), plan.ops[1]), tensors=tensors)


def test_a_file_gives_the_plan_back(tmp_path):
    plan = one_layer(3)
    plan.save(tmp_path / "a.plan")
    again = Plan.load(tmp_path / "a.plan")
    assert again.precision == "int8"
    assert again.ops == plan.ops
    assert again.codings == plan.codings
    for name, tensor in plan.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], tensor)


def test_one_byte_a_value_and_a_weight():
    plan = one_layer()
    assert plan.state_bytes == 2 + 2
    assert plan.weight_bytes == 4 + 4 * (2 + 2 + 2 + 2)  # weights; their steps, bias, steps of codes, thresholds
    state = plan.stream()
    state(np.zeros((1, 2, 1, 1), np.float32))
    assert [a.dtype for a in state.snapshot().values()] == [np.uint8] * 2


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_frames_of_bytes(isa, channels, color):
    """Camera bytes of any layout, as the reference reads them."""
    rng = np.random.default_rng(channels)
    spec = InputSpec((3.0, 5.5, 7.0, 9.0)[:channels], (2.0, 3.0, 7.0, 11.0)[:channels], color)
    code = {"kind": "code", "tensor": "s", "zero": 3, "threshold": "t"}
    tensors = {"s": np.asarray([0.51], np.float32), "t": rng.integers(0, 3, channels).astype(np.int32)}
    ops = (Op("input", "input", (), (0,), codec=code, precision="int8"),)
    plan = Plan("camera", ((1, channels, 20, 37),), ops, (0,), {"output": 0}, tensors, spec, precision="int8")
    native, reference = plan.stream(), plan.stream("reference")
    frame = rng.integers(0, 256, (20, 37, channels), dtype=np.uint8)
    for k in range(8):
        y, x, size = int(rng.integers(0, 18)), int(rng.integers(0, 30)), (0, 1, 3, 20)[k % 4]
        frame = frame.copy()
        frame[y : y + size, x : x + size] = rng.integers(0, 256, frame[y : y + size, x : x + size].shape)
        for layout in (
            frame,
            np.ascontiguousarray(frame.transpose(2, 0, 1)),
            frame.transpose(2, 0, 1).astype(np.float32),
        ):
            np.testing.assert_array_equal(native(layout), reference(layout))
            assert native.stats["input"].events == reference.stats["input"].events


def test_values_of_islands_are_coded():
    class Sine(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Conv2d(3, 8, 1), torch.nn.Conv2d(8, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.sin(self.first(x)))

    clip = torch.randn(3, 3, 5, 6)
    plan = sparsetime.compile(Sine().eval(), clip[0], steps=clip, precision="int8")
    assert [op.name for op in plan.islands]
    native, reference = plan.stream(), plan.stream("reference")
    for frame in clip:
        np.testing.assert_array_equal(native(frame), reference(frame))


def test_residual_codecs_are_refused():
    with pytest.raises(ValueError, match="residual"):
        sparsetime.compile(
            torch.nn.Conv2d(3, 4, 1), torch.rand(1, 3, 4, 4), steps=0.1, codec="residual", precision="int8"
        )


def test_calibration_needs_frames():
    plan = sparsetime.compile(torch.nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 4, 4), steps=0.1)
    with pytest.raises(ValueError, match="needs frames"):
        quantised_plan(plan, [])
