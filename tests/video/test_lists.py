from pathlib import Path

import pytest

from sparsetime.video import Clip, ClipList, ListError, by_share

GOOD = """\
file,label,group,split,camera
a.avi,x,1,train,static
b.avi,y,2,train,moving
c.avi,x,3,test,static
d.avi,y,4,test,static
"""


def write_table(folder: Path, text: str, files: str = "abcd") -> Path:
    (folder / "clips.csv").write_text(text)
    for name in files:
        (folder / f"{name}.avi").write_bytes(b"-")
    return folder


def test_csv(tmp_path: Path) -> None:
    clips = ClipList.from_csv(write_table(tmp_path, GOOD))
    assert len(clips) == 4
    assert clips.classes == ("x", "y")
    assert clips.splits == ("test", "train")
    assert clips[1] == Clip(tmp_path / "b.avi", "b.avi", "y", "2", "train", {"camera": "moving"})
    assert [clip.name for clip in clips.split("test")] == ["c.avi", "d.avi"]
    assert ClipList.open(tmp_path) == clips
    with pytest.raises(ListError, match="expected one of test, train; got 'val'"):
        clips.split("val")


def test_csv_as_spreadsheets_write_it(tmp_path: Path) -> None:
    (tmp_path / "clips.csv").write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    for name in "abcd":
        (tmp_path / f"{name}.avi").touch()
    assert len(ClipList.from_csv(tmp_path)) == 4


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("file,label,group\na.avi,x,1\n", "split not there"),
        ("", "file, label, group, split not there"),
        ("file,label,group,split\n", "the list is empty"),
        (GOOD + "e.avi,,5,train,static\n", r"the row of e\.avi lacks label"),
        (GOOD + "e.avi,x,5,train,static,more\n", r"the row of e\.avi has more fields"),
        (GOOD + ",x,5,train,static\n", r"the row of \(no file\) lacks file"),
        (GOOD + "a.avi,x,1,train,static\n", r"listed more than once: a\.avi"),
        (GOOD + "e.avi,x,5,train,static\n", r"1 of 5 videos are not there: e\.avi"),
        (
            GOOD.replace("d.avi,y", "d.avi,z"),
            r"classes in one split only: y \(in train\), z \(in test\).*--allow class_in",
        ),
        (GOOD.replace("c.avi,x,3", "c.avi,x,1"), r"groups in more than one split: 1 \(in test and train\).*--allow gr"),
    ],
)
def test_csv_that_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ListError, match=complaint) as error:
        ClipList.from_csv(write_table(tmp_path, text))
    assert "clips.csv" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_refused_can_be_allowed(tmp_path: Path) -> None:
    alone = write_table(tmp_path, GOOD.replace("d.avi,y", "d.avi,z"))
    assert len(ClipList.from_csv(alone, allow=["class_in_one_split"])) == 4
    with pytest.raises(ListError, match="classes in one split only"):
        ClipList.from_csv(alone, allow=["group_in_splits"])
    mixed = write_table(tmp_path, GOOD.replace("c.avi,x,3", "c.avi,x,1"))
    assert len(ClipList.from_csv(mixed, allow=["group_in_splits"])) == 4
    with pytest.raises(ListError, match="allow: expected"):
        ClipList.from_csv(mixed, allow=["everything"])  # type: ignore[list-item]


def test_a_list_with_one_split_has_no_class_in_one_split_only(tmp_path: Path) -> None:
    assert ClipList.from_csv(write_table(tmp_path, GOOD.replace("train", "test"))).splits == ("test",)


def test_missing_videos_are_named_and_kept_apart(tmp_path: Path) -> None:
    clips = ClipList.from_csv(write_table(tmp_path, GOOD, files="abc"), missing="skip")
    assert [clip.name for clip in clips] == ["a.avi", "b.avi", "c.avi"]
    assert [clip.name for clip in clips.missing] == ["d.avi"]
    assert [clip.name for clip in clips.split("test").missing] == ["d.avi"]
    assert clips.split("train").missing == ()


def test_no_list_at_all(tmp_path: Path) -> None:
    with pytest.raises(ListError, match=r"clips\.csv: there is no such file"):
        ClipList.from_csv(tmp_path)
    with pytest.raises(ListError, match="found none of them"):
        ClipList.open(tmp_path)
    (tmp_path / "clips.csv").write_bytes(b"file,label,group,split\n\xff\xfe\xe4")
    with pytest.raises(ListError, match="UTF-8"):
        ClipList.from_csv(tmp_path)


def fill(root: Path, names: list[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"-")


def test_class_folders_with_a_rule(tmp_path: Path) -> None:
    names = [f"{label}/{label}_{number:02d}.avi" for label in ("jump", "run") for number in range(40)]
    fill(tmp_path, [*names, "README.md", "run/notes.txt", "walk/w0/1.jpg", "walk/w0/2.jpg"])
    clips = ClipList.from_folders(tmp_path, split=by_share(0.25), allow=["class_in_one_split"])
    assert len(clips) == 81
    assert clips.classes == ("jump", "run", "walk")
    assert {clip.name for clip in clips} == {*names, "walk/w0"}
    assert 10 <= len(clips.split("test")) <= 32
    # The rule depends on names alone, and on its seed.
    again = ClipList.from_folders(tmp_path, split=by_share(0.25), allow=["class_in_one_split"])
    other = ClipList.from_folders(tmp_path, split=by_share(0.25, seed=1), allow=["class_in_one_split"])
    assert clips == again
    assert clips != other


def test_a_rule_by_groups_keeps_groups_together(tmp_path: Path) -> None:
    def person(path: Path) -> str:
        return path.stem.split("_")[0]

    fill(tmp_path, [f"{label}/p{number}_{take}.avi" for label in "xy" for number in range(20) for take in range(3)])
    clips = ClipList.from_folders(tmp_path, split=by_share(0.4, group=person), group=person)
    assert len(clips) == 120
    assert len({clip.group for clip in clips}) == 20


def test_split_folders(tmp_path: Path) -> None:
    fill(tmp_path, ["train/x/a.avi", "train/y/b.mp4", "test/x/c.mkv", "test/y/d.webm"])
    clips = ClipList.open(tmp_path)
    assert [(clip.split, clip.label, clip.group) for clip in clips] == [
        ("test", "x", "c"),
        ("test", "y", "d"),
        ("train", "x", "a"),
        ("train", "y", "b"),
    ]
    with pytest.raises(ListError, match="pass a split rule"):
        ClipList.from_folders(tmp_path / "train")


def ucf_lists(folder: Path, train: str, test: str) -> Path:
    folder.mkdir()
    (folder / "classInd.txt").write_text("1 Archery\r\n2 Diving\r\n")
    (folder / "trainlist01.txt").write_text(train)
    (folder / "testlist01.txt").write_text(test)
    return folder


TRAIN = "Archery/v_Archery_g08_c01.avi 1\nDiving/v_Diving_g09_c02.avi 2\n"
TEST = "Archery/v_Archery_g01_c01.avi\nDiving/v_Diving_g02_c02.avi\n"


def test_ucf101_as_distributed(tmp_path: Path) -> None:
    lists = ucf_lists(tmp_path / "lists", TRAIN, TEST)
    fill(tmp_path, [line.split()[0] for line in (TRAIN + TEST).splitlines()])
    clips = ClipList.from_ucf101(tmp_path, lists)
    assert [(clip.label, clip.group, clip.split) for clip in clips] == [
        ("Archery", "g08", "train"),
        ("Diving", "g09", "train"),
        ("Archery", "g01", "test"),
        ("Diving", "g02", "test"),
    ]
    assert ClipList.open(tmp_path) == clips


@pytest.mark.parametrize(
    ("train", "complaint"),
    [
        ("Archery/v_Archery_g08_c01.avi 2\n", "gives it another number"),
        ("Juggling/v_Juggling_g08_c01.avi 1\n", "no such class"),
        ("Archery/v_Archery.avi 1\n", "line 1: expected CLASS/v_CLASS_gXX_cYY"),
        (TRAIN.replace("g08_c01", "g01_c02"), r"groups in more than one split: g01 \(in test and train\)"),
    ],
)
def test_ucf101_lists_that_are_refused(tmp_path: Path, train: str, complaint: str) -> None:
    with pytest.raises(ListError, match=complaint):
        ClipList.from_ucf101(tmp_path, ucf_lists(tmp_path / "lists", train, TEST), missing="skip")


def test_ucf101_classes_are_spelt_as_in_their_own_list(tmp_path: Path) -> None:
    lists = ucf_lists(tmp_path / "lists", TRAIN.replace("Diving/", "diving/"), TEST.replace("Diving/", "dIVING/"))
    fill(tmp_path, ["Archery/v_Archery_g08_c01.avi", "Archery/v_Archery_g01_c01.avi", "Diving/v_Diving_g09_c02.avi"])
    (tmp_path / "v_Diving_g02_c02.avi").touch()  # all in one folder
    clips = ClipList.from_ucf101(tmp_path, lists)
    assert clips.classes == ("Archery", "Diving")
    assert clips[1].path == tmp_path / "Diving/v_Diving_g09_c02.avi"


@pytest.mark.data
def test_the_real_lists(shared_data: Path) -> None:
    jhmdb = ClipList.from_csv(shared_data / "jhmdb")
    assert (len(jhmdb), len(jhmdb.classes), len(jhmdb.split("train")), len(jhmdb.split("test"))) == (271, 8, 190, 81)
    interaction = ClipList.open(shared_data / "ut_interaction")
    assert (len(interaction), len(interaction.classes), len(interaction.split("test"))) == (104, 7, 29)
    assert interaction[0].extra["width"] == "400"


@pytest.mark.data
def test_the_real_ucf101_lists_with_seventeen_of_their_videos(shared_data: Path) -> None:
    root = shared_data / "ucf101"
    clips = ClipList.from_ucf101(root, root / "lists", missing="skip")
    assert len(clips) == 17
    assert len(clips.missing) == 13320 - 17
    assert len(clips.split("train")) + len(clips.split("train").missing) == 9537
    assert clips.classes[0] == "ApplyEyeMakeup"
    assert len(clips.classes) == 14
    assert all(clip.path.is_file() for clip in clips)
    assert ClipList.open(root, missing="skip") == clips
    with pytest.raises(
        ListError,
        match=r"13303 of 13320 videos are not there: .* and 13298 more\. .* missing='skip' .*--missing skip",
    ):
        ClipList.open(root)
    with pytest.raises(ListError, match=r"split not there .*ClipList\.from_ucf101"):
        ClipList.from_csv(root)
