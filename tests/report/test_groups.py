"""Groups of runs, statistics, the finding."""

from pathlib import Path
from typing import Any

import pytest

from sparsetime.report.groups import Group, chance, finding, group_runs, spread
from sparsetime.report.runs import Run, read_runs

from .fabricate import edit_json, fabricate


def made_up(method: str, density: float, accuracy: float, clips: int = 100, **more: Any) -> Group:
    evaluation = {"accuracy": accuracy, "op_density": density, "clips": clips, **more}
    config = {"method": method, "network": "n", "data": "d", "seed": 0}
    return Group((Run(Path("r"), "r", config, (), {"test": evaluation}, {}, ()),), "test")


def test_spread() -> None:
    assert spread([0.2, None, 0.6]) == (0.4, 0.2, 0.6, 2)
    assert spread([None]) is None


def test_runs_that_differ_in_their_seed_are_one_group(tmp_path: Path) -> None:
    paths = [fabricate(tmp_path / f"{m}{s}", method=m, seed=s) for m in ("delta", "dense") for s in (10, 2)]
    groups = group_runs(read_runs(paths), "test")
    assert [(group.label, [run.seed for run in group.runs]) for group in groups] == [
        ("dense", ["2", "10"]),
        ("delta", ["2", "10"]),
    ]
    assert [group.style for group in groups] == [0, 2]


def test_groups_of_one_method_are_named_by_what_differs(tmp_path: Path) -> None:
    paths = [fabricate(tmp_path / f"p{p}", penalty=p, density=d) for p, d in ((1.0, 0.3), (8.0, 0.1))]
    paths.append(fabricate(tmp_path / "other", network="mobilenet_v2"))
    groups = group_runs(read_runs(paths), "test")
    assert [group.label for group in groups] == ["delta (penalty 1)", "delta (penalty 8)", "delta"]
    assert [group.variant for group in groups] == [0, 1, 0]


def test_a_run_that_refines_the_run_of_its_own_seed_is_like_its_fellows(tmp_path: Path) -> None:
    paths = [fabricate(tmp_path / f"delta{seed}", seed=seed) for seed in (0, 1)]
    for seed, path in enumerate(paths):
        edit_json(path / "config.json", weights=f"runs/net1-dense-{seed}")  # with a seed's digit in the name
    assert len(group_runs(read_runs(paths), "test")) == 1
    edit_json(paths[1] / "config.json", weights="runs/other-1")
    assert len(group_runs(read_runs(paths), "test")) == 2


def test_what_a_dense_run_does_not_use_makes_no_group(tmp_path: Path) -> None:
    for method, expected in (("dense", 1), ("delta", 2)):
        paths = [fabricate(tmp_path / f"{method}{seed}", method=method, seed=seed) for seed in (0, 1)]
        for path, codec in zip(paths, ("exact", "hold"), strict=True):
            edit_json(path / "config.json", codec=codec)
        assert len(group_runs(read_runs(paths), "test")) == expected


def test_where_the_data_lies_makes_no_group(tmp_path: Path) -> None:
    paths = [fabricate(tmp_path / d, data=f"{d}/ut_interaction", seed=i) for i, d in enumerate(("x", "y"))]
    assert len(group_runs(read_runs(paths), "test")) == 1


def test_means_over_seeds_by_layer(tmp_path: Path) -> None:
    paths = [fabricate(tmp_path / str(s), seed=s, blocks=1) for s in (0, 1)]
    for path, density in zip(paths, (0.2, 0.4), strict=True):
        edit_json(path / "evaluation-test.json", layers=[{"name": "a", "kind": "conv", "op_density": density}])
    (group,) = group_runs(read_runs(paths), "test")
    assert group.layers() == {"a": {"name": "a", "kind": "conv", "op_density": pytest.approx(0.3)}}


def test_the_finding_is_the_sparsest_within_a_point_of_dense() -> None:
    groups = [
        made_up("dense", 0.70, 0.55),
        made_up("delta", 0.14, 0.545),  # half a point less: good enough
        made_up("delta", 0.05, 0.53),  # two points less
        made_up("spatial_l1", 0.30, 0.60),
    ]
    found = finding(groups)
    assert found is not None
    assert found.sentence == (
        "delta: 0.14 of operations at 54.5 % accuracy; dense: 0.70 at 55.0 %. "
        "That is 5.0 times fewer operations with 0.5 points less accuracy."
    )
    assert found.ratio == pytest.approx(5)
    assert found.chosen_among == 3
    assert found.apart is False


def test_without_a_good_one_the_most_accurate_is_named() -> None:
    found = finding(
        [made_up("dense", 0.5, 0.9, 1000), made_up("delta", 0.1, 0.4, 1000), made_up("delta", 0.2, 0.5, 1000)]
    )
    assert found is not None
    assert found.sentence.startswith("delta: 0.20 of operations at 50.0 % accuracy; dense: 0.50 at 90.0 %.")
    assert found.sentence.endswith("2.5 times fewer operations with 40.0 points less accuracy.")
    assert found.apart is True


def test_of_two_equally_accurate_the_one_with_fewer_operations_is_named() -> None:
    groups = [made_up("dense", 0.5, 0.9), made_up("spatial_l1", 0.3, 0.5), made_up("delta", 0.1, 0.5)]
    found = finding(groups)
    assert found is not None
    assert found.sentence.startswith("delta: 0.10 of operations")


def test_more_operations_than_dense_are_said_so() -> None:
    found = finding([made_up("dense", 0.2, 0.5), made_up("delta", 0.4, 0.5)])
    assert found is not None
    assert found.sentence.endswith("2.0 times as many operations with the same accuracy.")


def test_nothing_to_compare_with() -> None:
    dense, delta = made_up("dense", 0.7, 0.5), made_up("delta", 0.1, 0.5)
    only_dense, only_delta = finding([dense]), finding([delta])
    assert only_dense is not None
    assert only_dense.sentence.endswith("No sparse run to compare it with.")
    assert only_delta is not None
    assert only_delta.sentence.endswith("No dense run to compare it with.")
    assert finding([]) is None


def test_chance_is_the_commonest_true_class() -> None:
    assert chance([made_up("dense", 0.5, 0.5, confusion=[[3, 1], [1, 1]])]) == pytest.approx(4 / 6)
    assert chance([made_up("dense", 0.5, 0.5, confusion=[["x"], []])]) is None
    assert chance([made_up("dense", 0.5, 0.5)]) is None
