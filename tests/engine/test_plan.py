"""Plans: what they say about themselves, what they refuse, and what a file may do to their reader."""

import dataclasses
import gc
import json
import resource
import struct
import weakref

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import mutate, varied, varied_int8
from random_plans import plans
from tiny_plan import changed, tiny

from sparsetime.engine import InputSpec, Op, Plan, PlanError, StreamError
from sparsetime.engine.planfile import header_of, parse
from sparsetime.engine.statefile import load_state, save_state

VARIED = varied()
VARIED_INT8 = varied_int8()


def test_counts_by_hand():
    plan = tiny()
    # Rows: outputs at 0 and 2 read input rows (-1 0 1) and (1 2 3): 5 inside. Columns: outputs 0 2 4 read (-1 0 1),
    # (1 2 3), (3 4 5): 7 inside. 2 channels in, 3 out.
    assert plan.dense_macs == 5 * 7 * 2 * 3
    assert plan.weight_bytes == 4 * (1 + 54 + 3)
    # Input value 40, conv value 18; sums of 18 terms are computed from values and not kept.
    assert plan.state_bytes == 4 * (40 + 18)
    assert plan.islands == []


def test_a_plan_in_a_line():
    assert repr(tiny()) == "<Plan 'tiny' of 1x2x4x5, float32: 2 operations, weights 0.0 MB>"


def test_file_gives_the_plan_back(tmp_path):
    plan = tiny()
    plan.save(tmp_path / "a.plan")
    again = Plan.load(tmp_path / "a.plan")
    assert header_of(again) == header_of(plan)
    for name, tensor in plan.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], tensor)
    assert [path.name for path in tmp_path.iterdir()] == ["a.plan"]


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(plans())
def test_any_plan_survives_its_header(plan):
    again = parse(json.dumps(header_of(plan)), {k: v.copy() for k, v in plan.tensors.items()})
    assert header_of(again) == header_of(plan)


def test_a_plan_has_one_flat_form():
    plan = tiny()
    flat = plan.flat()
    assert (plan.structure, flat.structure) == ({"output": 0}, [{"output": 0}])
    assert plan.flat() is flat.flat() is flat
    gone = weakref.ref(plan)
    del plan
    assert gone() is None  # neither holds the other for ever


@pytest.mark.parametrize("plan", [VARIED, VARIED_INT8], ids=["float32", "int8"])
def test_other_operations_take_the_tensors_that_they_use(plan):
    assert list(plan.with_ops(plan.ops).tensors) == list(plan.tensors)
    more = {**plan.tensors, "unused": np.zeros(1, np.float32)}
    same = plan.with_ops(plan.ops, more)
    assert header_of(same) == header_of(plan)
    if plan.precision == "float32":  # codes need their steps
        bare = plan.with_ops([dataclasses.replace(op, codec=None) for op in plan.ops])
        assert set(bare.tensors) == {name for op in plan.ops for name in op.tensors.values()}


def test_tensors_of_a_plan_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        tiny().tensors["bias"][0] = 5


def test_arrays_that_a_plan_is_made_from_stay_the_callers():
    arrays = {name: tensor.copy() for name, tensor in tiny().tensors.items()}
    dataclasses.replace(tiny(), tensors=arrays)
    assert all(array.flags.writeable for array in arrays.values())


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"kind": "convolve"}, "unknown kind 'convolve'"),
        ({"inputs": (1,)}, "reads value 1, which nothing before it makes"),
        ({"inputs": (0, 0)}, "second input must have the output's shape"),
        ({"outputs": (0,)}, "makes value 0 a second time"),
        ({"outputs": (7,)}, "makes value 7, which has no shape"),
        ({"tensors": {"weight": "none"}}, "'none' that the file does not hold"),
        ({"tensors": {"weight": "weight", "bias": "weight"}}, r"must have shape \(3,\)"),
        ({"tensors": {"weight": "weight", "bias": "bias", "extra": "bias"}}, "unknown entries"),
        ({"attributes": {"stride": [2, 2]}}, "attribute 'dilation' is missing"),
        ({"activation": {"kind": "swish"}}, "unknown activation 'swish'"),
        ({"activation": {"kind": "clamp", "min": 2.0, "max": 1.0}}, "clamp needs min <= max"),
        ({"activation": {"kind": "leaky_relu", "slope": float("nan")}}, "finite slope"),
        ({"activation": {"kind": "elu", "alpha": None}}, "elu needs a finite alpha, got None"),
        ({"codec": {"kind": "exact", "tensor": "weight"}}, "must have one of the shapes"),
        ({"codec": {"kind": "exact", "tensor": "step", "low": 3, "high": 3}}, "low < high"),
        ({"codec": {"kind": "sometimes", "tensor": "step"}}, "unknown codec"),
        ({"crossover": 2.0}, "density from 0 to 1"),
        ({"name": "input"}, "name is taken"),
        (
            {"kind": "linear", "attributes": {}, "tensors": {"weight": "weight"}},
            r"\(1, 2, 4, 5\) is a map, whose last axis a 1x1 conv2d multiplies",
        ),
    ],
)
def test_what_does_not_fit_is_refused(parts, message):
    with pytest.raises(PlanError, match=message):
        changed(**parts)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stride", [0, 1]),
        ("stride", [2]),
        ("stride", [True, 2]),
        ("padding", [1, 1]),
        ("padding", [-1, 1, 1, 1]),
        ("dilation", [1.0, 1]),
        ("groups", 2),
        ("groups", None),
        ("groups", 10**30),
    ],
)
def test_attributes_are_checked(key, value):
    attributes = {**tiny().ops[1].attributes, key: value}
    with pytest.raises(PlanError, match=r"op 1 'conv' \(conv2d\): "):
        changed(attributes=attributes)
    with pytest.raises(PlanError, match=r"op 1 'conv' \(conv2d, net.py:7\): "):
        changed(attributes=attributes, source="net.py:7")


def test_stated_shapes_are_checked():
    with pytest.raises(PlanError, match=r"value 1 must have shape \(1, 3, 2, 3\), the plan says \(1, 3, 2, 4\)"):
        dataclasses.replace(tiny(), values=((1, 2, 4, 5), (1, 3, 2, 4)))


def flat(shape, spec):
    """A plan that hands its frame on."""
    ops = (Op("input", "input", (), (0,)), Op("identity", "relu", (0,), (1,), activation={"kind": "relu"}))
    return Plan("flat", (shape, shape), ops, (1,), {"output": 0}, {}, spec)


@pytest.mark.parametrize("shape", [(1, 2), (1, 2, 3, 2)])
@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_bytes_are_normalised_by_channel_on_both_backends(shape, color):
    plan = flat(shape, InputSpec((1, 2), (3, 4), color))
    frame = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    channels = (1, 2, *(1,) * (len(shape) - 2))
    turned = frame[:, ::-1] if color == "bgr" else frame
    expected = np.maximum((turned - np.reshape([1, 2], channels)) / np.reshape([3, 4], channels), 0)
    for backend in ("reference", "cpu"):
        np.testing.assert_allclose(plan.stream(backend)(frame), expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 2, 2), (1, 2, 2, 2, 2)])
def test_only_maps_and_vectors_have_channels_to_normalise(shape):
    assert flat(shape, None).input_shape == shape
    with pytest.raises(PlanError, match=r"with 'input' a frame must be \(1, C, H, W\) or \(1, C\), got"):
        flat(shape, InputSpec((1, 2), (3, 4)))


@pytest.mark.parametrize("std", [0, -1, 1e-50, 1e-40])
def test_bytes_stay_finite(std):
    """In float32, in which they are divided: there 1e-50 is 0, and 255 / 1e-40 infinite."""
    with pytest.raises(PlanError, match="input 'std' must be > 0, and bytes stay finite"):
        flat((1, 2), InputSpec((0, 0), (1, std)))
    (x,) = flat((1, 1), InputSpec((0,), (1e-36,))).stream("cpu")(np.full((1, 1), 255, np.uint8)).ravel()
    assert x == np.float32(255) / np.float32(1e-36)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_single_number_has_no_pixels(precision):
    def plan(shape):
        code = {"kind": "code", "tensor": "s", "zero": 0, "threshold": "t"}
        first, second = (
            (code, {**code, "pixel": True}) if precision == "int8" else (None, {"kind": "pixel", "tensor": "s"})
        )
        tensors = {"s": np.ones(1, np.float32), "i": np.zeros(1, np.int32)}
        if precision == "int8":
            tensors["t"] = np.zeros(1, np.int32)
        ops = (
            Op("input", "input", (), (0,), codec=first, precision=precision),
            Op("gather", "one", (0,), (1,), {}, {"index": "i"}, {"kind": "relu"}, second, precision=precision),
        )
        return Plan("one", ((1, 3, 2, 2), shape), ops, (1,), {"output": 0}, tensors, precision=precision)

    for backend in ("reference", "cpu"):
        np.testing.assert_array_equal(plan((1,)).stream(backend)(np.full((1, 3, 2, 2), 3, np.float32)), [3])
    with pytest.raises(PlanError, match=r"op 1 'one' \(gather\): 'pixel' needs a value with channels"):
        plan(())


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_product_has_outputs(precision):
    tensors = {"w": np.zeros((0, 3), precision)}
    codec, roles = None, {"weight": "w"}
    if precision == "int8":
        tensors |= {"s": np.ones(1, np.float32), "t": np.zeros(1, np.int32), "ws": np.zeros(0, np.float32)}
        codec, roles = {"kind": "code", "tensor": "s", "zero": 0, "threshold": "t"}, {**roles, "weight_step": "ws"}
    ops = (
        Op("input", "input", (), (0,), codec=codec, precision=precision),
        Op("linear", "none", (0,), (1,), {}, roles, precision=precision),
    )
    with pytest.raises(PlanError, match=r"op 1 'none' \(linear\): weight \(0, 3\) has no outputs"):
        Plan("none", ((1, 3), (1, 1)), ops, (1,), {"output": 0}, tensors, precision=precision)


def test_an_island_makes_a_value_once():
    attributes = {
        "target": "aten.softmax.int",
        "arguments": [{"value": 0}, 1],
        "keywords": {},
        "types": ["float32", "float32"],
    }
    ops = (Op("input", "input", (), (0,)), Op("island", "twice", (0,), (1, 1), attributes))
    with pytest.raises(PlanError, match=r"op 1 'twice' \(island\): makes value 1 a second time"):
        Plan("twice", ((1, 3), (1, 3)), ops, (1,), {"output": 0}, {})


def test_weights_must_be_finite():
    tensors = {**tiny().tensors, "weight": np.full((3, 2, 3, 3), np.nan, np.float32)}
    with pytest.raises(PlanError, match="not finite"):
        dataclasses.replace(tiny(), tensors=tensors)


@pytest.mark.parametrize("kind", ["exact", "residual", "hold", "pixel"])
@pytest.mark.parametrize("step", [0, 1e-40, 1e-13])
def test_frames_over_steps_stay_finite_and_thresholds_may_be_anything(kind, step):
    def plan(step):
        codec = {"kind": kind, "tensor": "step"}
        ops = (dataclasses.replace(tiny().ops[0], codec=codec), tiny().ops[1])
        return dataclasses.replace(tiny(), ops=ops, tensors={**tiny().tensors, "step": np.asarray([step], np.float32)})

    if kind in ("exact", "residual"):
        with pytest.raises(PlanError, match=r"'input'.*steps must be at least 1e-12, got"):
            plan(step)
        step = 1e-12
    frames = [np.full((1, 2, 4, 5), x, np.float32) for x in (1e6, -1e6)]
    for backend in ("reference", "cpu"):
        stream = plan(step).stream(backend)
        assert all(np.isfinite(stream(frame)).all() for frame in frames)


def write(path, header: bytes, data: bytes = b"") -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a whole safetensors file"),
        (b"12345", "not a whole safetensors file"),
        (struct.pack("<Q", 2**62) + b"{}", "not a whole safetensors file"),
        (struct.pack("<Q", 2) + b"{}", "no plan"),
        (b"\x80\x04\x95pickle", "not a whole safetensors file"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "a.plan").write_bytes(content)
    with pytest.raises(PlanError, match=message):
        Plan.load(tmp_path / "a.plan")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PlanError, match=r"nothing\.plan: no such file"):
        Plan.load(tmp_path / "nothing.plan")


def header_file(tmp_path, text: str):
    path = tmp_path / "a.plan"
    write(path, json.dumps({"__metadata__": {"sparsetime.plan": text}}).encode())
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "no JSON"),
        ('{"version": NaN}', "no JSON"),
        ("[]", "does not say that its format"),
        ('{"format": "sparsetime.plan", "version": 3}', "version 3 .* not known"),
        ('{"format": "sparsetime.plan", "version": true}', "not known"),
        ('{"format": "sparsetime.plan", "version": 1}', "missing entries"),
    ],
)
def test_headers_are_read_with_distrust(tmp_path, text, message):
    with pytest.raises(PlanError, match=message):
        Plan.load(header_file(tmp_path, text))


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        ([{"output": 0}, {"tensor": "absent"}], "structure: there is no tensor 'absent'"),
        ([{"output": 0}, {"tensor": ["more"]}], "structure: there is no tensor"),
        ([{"output": 0}, {"array": [1, 2]}], "an array stands in a file as the name of a tensor"),
        ([{"output": 0}, {"tensor": "bytes"}], "structure: expected an output, tuple, dict, list, array or constant"),
        ([{"output": 0}, {"tensor": "weight"}], "weight"),
        ([{"output": 0}, {"tensor": "more"}], r"no operation uses the tensors \['bytes'\]"),
        ([[[[[[[[[[[[[[[[[[[{"tensor": "more"}]]]]]]]]]]]]]]]]]]], "nested more than 16 deep"),
    ],
)
def test_tensors_that_a_network_returns_are_read_with_distrust(structure, message):
    plan = tiny()
    text = json.dumps(header_of(plan) | {"structure": structure})
    tensors = dict(plan.tensors) | {"more": np.arange(3), "bytes": np.zeros(3, np.int8)}
    with pytest.raises(PlanError, match=message):
        parse(text, tensors)


def test_a_truncated_file_is_refused(tmp_path):
    tiny().save(tmp_path / "a.plan")
    whole = (tmp_path / "a.plan").read_bytes()
    for length in range(0, len(whole), 37):
        (tmp_path / "a.plan").write_bytes(whole[:length])
        with pytest.raises(PlanError):
            Plan.load(tmp_path / "a.plan")


@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32 - 1))
def test_a_mutated_file_is_an_error_or_a_plan(tmp_path_factory, seed):
    path = tmp_path_factory.getbasetemp() / "mutated.plan"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mutate(VARIED if seed % 2 else VARIED_INT8, path, seed)
    try:
        plan = Plan.load(path)
    except PlanError:
        plan = None
    if plan is not None:
        assert plan.ops[0].kind == "input"
    # kilobytes: a file of two thousand bytes has no business with megabytes
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([{"value": 9}, "x"], "cannot take what the plan gives it"),
        ([{"value": 9}, -1, {"dtype": "bool"}], "cannot take|the plan says"),
        ([{"value": 9}, 7], "cannot take what the plan gives it"),
    ],
)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_an_island_that_cannot_run_says_so(arguments, message, backend):
    ops = list(VARIED.ops)
    ops[10] = dataclasses.replace(ops[10], attributes={**ops[10].attributes, "arguments": arguments})
    plan = dataclasses.replace(VARIED, ops=tuple(ops))
    with pytest.raises(PlanError, match=message):
        plan.stream(backend=backend)(np.ones(plan.input_shape, np.float32))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"tensor": "m"}, "takes the tensor 'm', which is not among its own"),
        (float("inf"), r"an argument must be .*, got inf"),
    ],
)
def test_arguments_of_an_island_are_its_own_and_finite(argument, message):
    ops = list(VARIED.ops)
    arguments = [{"value": 9}, argument]
    ops[10] = dataclasses.replace(ops[10], attributes={**ops[10].attributes, "arguments": arguments})
    with pytest.raises(PlanError, match=message):
        dataclasses.replace(VARIED, ops=tuple(ops))


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_constants_are_finite_numbers(number):
    with pytest.raises(PlanError, match=rf"structure: expected .*, got {{'constant': {number}}}"):
        dataclasses.replace(tiny(), structure=[{"output": 0}, {"constant": number}])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_frame_that_an_island_fails_on_leaves_nothing_behind(backend, tmp_path):
    tensors = {"step": np.full(1, 0.1, np.float32), "weight": np.ones((1, 2), np.float32)}
    inverse = {"target": "aten.linalg_inv.default", "arguments": [{"value": 1}], "keywords": {}, "types": ["float32"]}
    ops = (
        Op("input", "input", (), (0,), codec={"kind": "hold", "tensor": "step"}),
        Op("reshape", "square", (0,), (1,)),
        Op("island", "inverse", (1,), (2,), inverse),
        Op("linear", "summed", (2,), (3,), {}, {"weight": "weight"}),
    )
    plan = Plan("inverse", ((1, 4), (2, 2), (2, 2), (2, 1)), ops, (3,), {"output": 0}, tensors)
    stream, fresh = plan.stream(backend=backend), plan.stream(backend=backend)
    good, singular, other = (np.array([x], np.float32) for x in ([1, 2, 3, 5], [1, 1, 1, 1], [1.05, 1, 0, 1]))
    stream(good)
    with pytest.raises(PlanError, match="inverse"):
        stream(singular)
    for number in range(len(plan.values)):
        with pytest.raises(StreamError, match="expected a stream that has seen a frame"):
            stream.value(number)
    save_state(stream, tmp_path / "state")
    load_state(stream, tmp_path / "state")
    assert stream.frames == 1
    np.testing.assert_array_equal(stream(other), fresh(other))  # and not what `hold` would keep of the frames before
    assert stream.flushed


@pytest.mark.parametrize(
    "target", ["aten.relu_.default", "aten.rand.default", "aten.nothing.default", "aten.from_file.default"]
)
def test_operators_with_effects_are_no_islands(target):
    ops = list(VARIED.ops)
    ops[10] = dataclasses.replace(ops[10], attributes={**ops[10].attributes, "target": target})
    plan = dataclasses.replace(VARIED, ops=tuple(ops))
    with pytest.raises(PlanError, match=target.replace(".", r"\.")):
        plan.stream(backend="reference")(np.ones(plan.input_shape, np.float32))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_stream_that_nobody_holds_is_gone(backend):
    stream = VARIED.stream(backend=backend)
    stream(np.ones(VARIED.input_shape, np.float32))
    gone = weakref.ref(stream._executor)
    del stream
    gc.collect()
    assert gone() is None


def test_a_norm_of_a_single_number_is_refused_by_its_name():
    ops = (
        Op("input", "input", (), (0,)),
        Op("reshape", "number", (0,), (1,)),
        Op("layer_norm", "norm", (1,), (2,), {"eps": 1e-5}),
    )
    with pytest.raises(PlanError, match=r"op 2 'norm' \(layer_norm\): layer_norm needs a value with channels"):
        Plan("number", ((1, 1), (), ()), ops, (2,), {"output": 0}, {})
