"""Counts: sums that add, and the figures made of them, by hand."""

import json
from dataclasses import replace

import pytest

from sparsetime.meter import Counts, OpCounts

# One clip of four frames. 10 MACs a frame in "a", 30 in "b".
A = OpCounts(
    "conv",
    elements=5,
    output_elements=2,
    dense_macs=10.0,
    frames_first=1,
    frames_later=3,
    nonzero_first=4,
    nonzero_later=9,
    changed_later=6,
    macs_first=8.0,
    macs_later=18.0,
    delta_macs_later=12.0,
    nb_macs=20.0,
    nb_acs=0.0,
    nb_dense=40.0,
)
B = OpCounts(
    "linear",
    elements=6,
    output_elements=5,
    dense_macs=30.0,
    frames_first=1,
    frames_later=3,
    nonzero_first=3,
    nonzero_later=9,
    changed_later=3,
    macs_first=15.0,
    macs_later=45.0,
    delta_macs_later=15.0,
    acs_later=45.0,
    delta_acs_later=15.0,
    nb_macs=0.0,
    nb_acs=60.0,
    nb_dense=120.0,
)


def counts(**changes: object) -> Counts:
    base = Counts(
        ops={"a": A, "b": B},
        skips="deltas",
        clips=1,
        activations=100,
        activations_nonzero=30,
        reference_elements=11,
        weight_bytes=400,
        buffer_bytes=24,
        weights=80,
        weights_zero=20,
        element_bytes=4,
        not_counted={"matmul"},
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def test_figures_by_deltas() -> None:
    figures = counts().summary()
    assert figures["op_density"] == pytest.approx(27 / 120)  # (12 + 15) / (3 * 40)
    assert figures["op_density_with_first_frame"] == pytest.approx((8 + 15 + 27) / 160)
    assert figures["op_density_deltas"] == pytest.approx(27 / 120)
    assert figures["op_density_activations"] == pytest.approx(63 / 120)
    assert figures["activation_density"] == pytest.approx((4 + 9 + 3 + 9) / (20 + 24))
    assert figures["delta_density"] == pytest.approx(9 / (15 + 18))
    assert figures["dense_macs"] == 40
    assert (figures["effective_macs"], figures["acs"]) == (pytest.approx(12 / 3), pytest.approx(15 / 3))
    assert figures["state_bytes"] == (11 + 2 + 5) * 4
    assert figures["weight_bytes"] == 400
    assert (figures["clips"], figures["frames"]) == (1, 4)
    assert figures["not_counted"] == ["matmul"]
    assert figures["energy"]["dense"]["45nm_int8"]["energy_uj"] == pytest.approx(40 * 0.23e-6)
    assert figures["energy"]["remaining"]["45nm_int8"]["energy_uj"] == pytest.approx((4 * 0.23 + 5 * 0.03) * 1e-6)


def test_figures_by_activations() -> None:
    figures = counts(skips="activations").summary()
    assert figures["op_density"] == pytest.approx(63 / 120)
    assert figures["op_density_with_first_frame"] == pytest.approx((8 + 15 + 63) / 160)
    assert figures["op_density_deltas"] == pytest.approx(27 / 120)
    assert (figures["effective_macs"], figures["acs"]) == (pytest.approx(18 / 3), pytest.approx(45 / 3))
    assert figures["state_bytes"] == 44  # what layers keep; no accumulators


def test_an_operation_that_is_not_encoded_skips_zeros_and_has_no_accumulator() -> None:
    figures = counts(ops={"a": A, "b": replace(B, encoded=False)}).summary()
    assert figures["op_density"] == pytest.approx((12 + 45) / 120)
    assert figures["op_density_with_first_frame"] == pytest.approx((8 + 15 + 12 + 45) / 160)
    assert figures["op_density_deltas"] == pytest.approx(27 / 120)
    assert figures["state_bytes"] == (11 + 2) * 4
    rows = {row["name"]: row for row in figures["layers"]}
    assert (rows["a"]["encoded"], rows["b"]["encoded"]) == (True, False)
    assert rows["b"]["op_density"] == pytest.approx(45 / 90)
    assert (rows["b"]["effective_macs"], rows["b"]["acs"]) == (0, 15)


def test_figures_of_a_layer() -> None:
    row = counts().summary()["layers"][0]
    assert (row["name"], row["kind"], row["dense_macs"], row["elements"]) == ("a", "conv", 10.0, 5)
    assert (row["effective_macs"], row["acs"]) == (4, 0)
    assert row["op_density"] == pytest.approx(12 / 30)
    assert row["op_density_with_first_frame"] == pytest.approx(20 / 40)
    assert row["activation_density"] == pytest.approx(13 / 20)
    assert row["delta_density"] == pytest.approx(6 / 15)


def test_neurobench_by_hand() -> None:
    figures = counts().summary()["neurobench"]
    assert figures["ActivationSparsity"] == pytest.approx(0.7)
    assert figures["SynapticOperations"] == {"Effective_MACs": 5.0, "Effective_ACs": 15.0, "Dense": 40.0}
    assert figures["Footprint"] == 424
    assert figures["ConnectionSparsity"] == 0.25


def test_two_clips_add() -> None:
    both = counts() + counts()
    assert both.clips == 2
    assert both.ops["a"] == replace(
        A,
        **{
            name: 2 * getattr(A, name)
            for name in (
                *("frames_first", "frames_later", "nonzero_first", "nonzero_later", "changed_later"),
                *(
                    "macs_first",
                    "macs_later",
                    "delta_macs_later",
                    "acs_later",
                    "delta_acs_later",
                    "nb_macs",
                    "nb_acs",
                    "nb_dense",
                ),
            )
        },
    )
    one, two = counts().summary(), both.summary()
    assert (two.pop("clips"), two.pop("frames")) == (2, 8)
    assert (one.pop("clips"), one.pop("frames")) == (1, 4)
    assert one == two  # means and ratios of equal clips are those of one


def test_sums_do_not_change_their_parts() -> None:
    a, b = counts(), counts(not_counted={"lstm"})
    total = a + b
    assert a == counts()
    assert total.not_counted == {"matmul", "lstm"}
    assert b.not_counted == {"lstm"}


def test_an_operation_that_ran_in_one_part_only() -> None:
    total = counts(ops={"a": A}) + counts(ops={"b": B})
    assert set(total.ops) == {"a", "b"}


def test_the_sum_begins_with_nothing() -> None:
    total = Counts() + counts()
    assert total == counts()
    assert counts() + Counts() == counts()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"skips": "activations"}, "different networks do not add: skips is deltas and activations"),
        ({"weight_bytes": 1}, "weight_bytes is 400 and 1"),
        ({"reference_elements": 1}, "reference_elements is 11 and 1"),
        ({"element_bytes": 8}, "element_bytes is 4 and 8"),
        ({"ops": {"a": replace(A, dense_macs=11.0)}}, "different operations do not add: dense_macs is 10.0 and 11.0"),
        ({"ops": {"a": replace(A, kind="linear")}}, "kind is conv and linear"),
        ({"ops": {"a": replace(A, encoded=False)}}, "encoded is True and False"),
    ],
)
def test_what_does_not_belong_together_does_not_add(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        counts() + counts(**changes)


def test_nothing_counted_is_none_and_not_zero() -> None:
    figures = Counts().summary()
    for name in (
        "op_density",
        "op_density_with_first_frame",
        "activation_density",
        "delta_density",
        "effective_macs",
        "acs",
    ):
        assert figures[name] is None
    assert figures["neurobench"]["ActivationSparsity"] is None
    assert figures["neurobench"]["ConnectionSparsity"] is None
    assert figures["frames"] == 0
    single = counts(ops={"a": replace(A, frames_later=0, nonzero_later=0, changed_later=0, macs_later=0.0)}).summary()
    assert single["op_density"] is None
    assert single["op_density_with_first_frame"] is not None


def test_json_goes_round_and_adds_across_machines() -> None:
    text = json.dumps(counts().to_json())
    back = Counts.from_json(json.loads(text))
    assert back == counts()
    assert back + counts() == counts() + counts()
    json.dumps(counts().summary())
