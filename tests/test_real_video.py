"""What the figures of `benchmarks/real_video.py` depend on: how clips are divided, how intervals are drawn."""

import csv
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def real_video() -> ModuleType:
    file = Path(__file__).parents[1] / "benchmarks" / "real_video.py"
    spec = importlib.util.spec_from_file_location("real_video", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["real_video"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def rows(groups: int, split: str = "train") -> list[dict[str, str]]:
    """Every group has two clips of one class and one of the other."""
    return [
        {"file": f"{split}{g}-{i}.avi", "label": "ab"[(g + (i == 2)) % 2], "group": f"{split}{g}", "split": split}
        for g in range(groups)
        for i in range(3)
    ]


def test_folds_keep_groups_whole_and_have_every_clip_once(real_video: ModuleType) -> None:
    clips = rows(8)
    folds = real_video.divide(clips, 4)
    assert sorted(row["file"] for fold in folds for row in fold) == sorted(row["file"] for row in clips)
    assert [len({row["group"] for row in fold}) for fold in folds] == [2, 2, 2, 2]
    assert sum(len({row["group"] for row in fold}) for fold in folds) == 8  # none is in two folds
    with pytest.raises(SystemExit, match="8 groups cannot be divided into 9 parts"):
        real_video.divide(clips, 9)


@pytest.mark.parametrize(("within", "count"), [("train", 12), (None, 18)])
def test_a_fold_is_tested_on_groups_that_it_does_not_train_on(
    real_video: ModuleType, tmp_path: Path, within: str | None, count: int
) -> None:
    with (tmp_path / "clips.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["file", "label", "group", "split"])
        writer.writeheader()
        writer.writerows(rows(4) + rows(2, "test"))
    tested: list[str] = []
    for fold in range(2):
        real_video.write_fold(tmp_path, tmp_path / str(fold), fold, 2, within)
        with (tmp_path / str(fold) / "clips.csv").open(newline="") as stream:
            found = list(csv.DictReader(stream))
        assert len(found) == count
        train, test = ({row["group"] for row in found if row["split"] == split} for split in ("train", "test"))
        assert train
        assert train.isdisjoint(test)
        tested += [row["file"] for row in found if row["split"] == "test"]
    assert len(tested) == len(set(tested)) == count
    assert all(Path(file).is_absolute() for file in tested)


def test_the_interval_is_over_groups(real_video: ModuleType) -> None:
    # Ten clips of two groups, all right or all wrong: of draws of two groups a quarter has none, a quarter all.
    two = {(group, f"{group}{i}"): share for group, share in (("a", 0.0), ("b", 1.0)) for i in range(5)}
    assert real_video.interval(two) == (0.0, 1.0)
    assert real_video.interval(dict.fromkeys(two, 0.25)) == (0.25, 0.25)
    # As many clips, each a group of its own: the binomial of 10 draws at 1/2, of which 95 % lie within 2..8.
    ten = {(file, file): share for (_, file), share in two.items()}
    assert real_video.interval(ten) == (pytest.approx(0.2), pytest.approx(0.8))


def test_shares_are_means_over_seeds(real_video: ModuleType) -> None:
    results = [{"right": [("g", "x", True), ("g", "y", False)]}, {"right": [("g", "x", False), ("g", "y", False)]}]
    assert real_video.shares_right(results) == {("g", "x"): 0.5, ("g", "y"): 0.0}
