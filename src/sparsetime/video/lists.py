"""Lists of labelled videos: CSV files, class folders, UCF101's official lists; and checks of their splits."""

import csv
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, overload

from sparsetime.video.reader import IMAGE_DECODERS, VIDEO_SUFFIXES

Missing = Literal["error", "skip"]
Allowance = Literal["class_in_one_split", "group_in_splits"]


class ListError(ValueError):
    """A list of videos is incomplete, contradicts itself, or would make the figures measured on it worthless."""


@dataclass(frozen=True)
class Clip:
    """One labelled video.

    Attributes:
        path: the file, or a folder of pictures.
        name: the video as its list names it; unique within a list.
        group: what must not be in two splits: the source film, the scene, the person.
        extra: further columns of the list, as text.
    """

    path: Path
    name: str
    label: str
    group: str
    split: str
    extra: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class ClipList(Sequence[Clip]):
    """Labelled videos. The `from_*` functions check the list, see `check`.

    Attributes:
        clips: the videos that are there.
        missing: those that the list names but that are not there; empty unless asked for with ``missing="skip"``.
    """

    clips: tuple[Clip, ...]
    missing: tuple[Clip, ...] = ()

    @classmethod
    def open(cls, root: str | Path, *, missing: Missing = "error", allow: Collection[Allowance] = ()) -> "ClipList":
        """Read whatever list lies in a folder: ``clips.csv`` with a split column, UCF101's lists, or
        ``split/class/video`` folders.

        Raises:
            ListError: none of them, or as the function that reads it.
        """
        root = Path(root)
        table = root / "clips.csv"
        if table.is_file() and "split" in _columns(table):
            return cls.from_csv(root, missing=missing, allow=allow)
        for lists in (root, root / "lists", root / "ucfTrainTestlist"):
            if (lists / "classInd.txt").is_file():
                return cls.from_ucf101(root, lists, missing=missing, allow=allow)
        if (root / "train").is_dir():
            return cls.from_folders(root, allow=allow)
        if table.is_file():
            return cls.from_csv(root, missing=missing, allow=allow)
        raise ListError(
            f"{root}: expected a clips.csv (columns file, label, group, split), UCF101's classInd.txt with its lists, "
            "or folders train/CLASS and test/CLASS with videos; found none of them"
        )

    @classmethod
    def from_csv(
        cls, root: str | Path, *, file: str = "clips.csv", missing: Missing = "error", allow: Collection[Allowance] = ()
    ) -> "ClipList":
        """Read a table with the columns file (relative to `root`), label, group and split; other columns are kept in
        `Clip.extra`.

        Raises:
            ListError: a column or a value is missing, videos are not there, or a check fails.
        """
        table = Path(root) / file
        columns = _columns(table)
        needed = ("file", "label", "group", "split")
        if absent := [name for name in needed if name not in columns]:
            hint = " For UCF101's official lists call ClipList.from_ucf101." if "split" in absent else ""
            raise ListError(
                f"{table}: expected the columns {', '.join(needed)}; "
                f"{', '.join(absent)} not there (found {', '.join(columns)}).{hint}"
            )
        clips = []
        with table.open(newline="", encoding="utf-8-sig") as stream:
            for row in csv.DictReader(stream):
                values = {name: (row[name] or "").strip() for name in needed}
                if None in row or not all(values.values()):
                    wrong = (
                        "has more fields than the header"
                        if None in row
                        else f"lacks {', '.join(n for n in needed if not values[n])}"
                    )
                    raise ListError(f"{table}: the row of {values['file'] or '(no file)'} {wrong}")
                extra = {name: value or "" for name, value in row.items() if name not in needed}
                clips.append(
                    Clip(
                        Path(root) / values["file"],
                        values["file"],
                        values["label"],
                        values["group"],
                        values["split"],
                        extra,
                    )
                )
        return cls._checked(table, clips, missing, allow)

    @classmethod
    def from_folders(
        cls,
        root: str | Path,
        *,
        split: Callable[[Path], str] | None = None,
        group: Callable[[Path], str] | None = None,
        allow: Collection[Allowance] = (),
    ) -> "ClipList":
        """Read folders named after classes, with a video, or a folder of pictures, for each clip.

        Args:
            root: holds ``class/video`` where `split` is given, ``split/class/video`` where not.
            split: a rule that gives a video's split from its path, for example ``by_share(test=0.25)``.
            group: a rule that gives its group; None: each video is its own.

        Raises:
            ListError: no video is found, or a check fails.
        """
        root = Path(root)
        clips = []
        for folder in sorted(root.glob("*/" if split else "*/*/")):
            for path in sorted(path for path in folder.iterdir() if _is_video(path)):
                where = split(path) if split else folder.parent.name
                clips.append(
                    Clip(
                        path, path.relative_to(root).as_posix(), folder.name, group(path) if group else path.stem, where
                    )
                )
        if not clips:
            layout = (
                "CLASS/VIDEO"
                if split
                else "SPLIT/CLASS/VIDEO (for CLASS/VIDEO pass a split rule, such as split=by_share(test=0.25))"
            )
            raise ListError(f"{root}: expected {layout}, found no video there")
        return cls._checked(root, clips, "error", allow)

    @classmethod
    def from_ucf101(
        cls,
        root: str | Path,
        lists: str | Path,
        *,
        fold: int = 1,
        missing: Missing = "error",
        allow: Collection[Allowance] = (),
    ) -> "ClipList":
        """Read UCF101 by its official lists (``classInd.txt``, ``trainlist01.txt``, ``testlist01.txt``; Soomro et al.
        2012).

        Args:
            root: the videos, in class folders as distributed or all in one.
            lists: folder of the official lists.
            fold: 1, 2 or 3. The group is the gXX in a file's name.

        Raises:
            ListError: a list is absent or malformed, videos are not there, or a check fails.
        """
        root, lists = Path(root), Path(lists)
        numbers = {
            label: number for number, label in _matches(lists / "classInd.txt", r"(\d+)\s+(\S+)", "NUMBER CLASS")
        }
        # The lists write HandstandPushups where classInd.txt has HandStandPushups.
        spelling = {label.lower(): label for label in numbers}
        clips = []
        for split in ("train", "test"):
            listing = lists / f"{split}list{fold:02d}.txt"
            # The number behind a training video says its class a second time.
            for name, folder, file, group, number in _matches(
                listing, r"((\S+?)/(\S+_(g\d+)_c\d+\.\w+))(?:\s+(\d+))?", "CLASS/v_CLASS_gXX_cYY.avi [NUMBER]"
            ):
                label = spelling.get(folder.lower())
                if label is None or (number and numbers[label] != number):
                    raise ListError(f"{listing}: {name}: classInd.txt has no such class, or gives it another number")
                places = [root / name, root / label / file, root / file]
                path = next((place for place in places if place.exists()), places[0])
                clips.append(Clip(path, name, label, group, split))
        return cls._checked(lists, clips, missing, allow)

    @classmethod
    def _checked(cls, source: Path, clips: list[Clip], missing: Missing, allow: Collection[Allowance]) -> "ClipList":
        if not clips:
            raise ListError(f"{source}: the list is empty")
        if twice := [name for name, count in Counter(clip.name for clip in clips).items() if count > 1]:
            raise ListError(f"{source}: listed more than once: {_some(twice)}")
        try:
            cls(tuple(clips)).check(allow)
        except ListError as error:
            raise ListError(f"{source}: {error}") from None
        there = tuple(clip for clip in clips if clip.path.exists())
        absent = tuple(clip for clip in clips if not clip.path.exists())
        if absent and missing == "error":
            raise ListError(
                f"{source}: {len(absent)} of {len(clips)} videos are not there: "
                f"{_some([clip.name for clip in absent])}. To go on without them, pass missing='skip' "
                "(sparsetime train: --missing skip)."
            )
        return cls(there, absent)

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels, sorted."""
        return tuple(sorted({clip.label for clip in self.clips}))

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, sorted."""
        return tuple(sorted({clip.split for clip in self.clips}))

    def split(self, name: str) -> "ClipList":
        """The clips of one split.

        Raises:
            ListError: there is no such split; the message names those there are.
        """
        if name not in self.splits:
            raise ListError(f"split: expected one of {', '.join(self.splits)}; got {name!r}")
        return ClipList(
            tuple(clip for clip in self.clips if clip.split == name),
            tuple(clip for clip in self.missing if clip.split == name),
        )

    def check(self, allow: Collection[Allowance] = ()) -> "ClipList":
        """Refuse a list on which test figures would mean nothing; gives the list itself back.

        Refused, unless named in `allow`: a class that is in one split only while there are several
        (``"class_in_one_split"``), and a group with clips in more than one split (``"group_in_splits"``: the network
        would be tested on scenes it was trained on). The lists as written are judged, videos that are not there
        included.

        Raises:
            ListError: names the classes or groups.
        """
        if unknown := set(allow) - {"class_in_one_split", "group_in_splits"}:
            raise ListError(f"allow: expected 'class_in_one_split' or 'group_in_splits', got {_some(sorted(unknown))}")
        every = self.clips + self.missing
        of_class = _splits_by((clip.label, clip.split) for clip in every)
        of_group = _splits_by((clip.group, clip.split) for clip in every)
        if "class_in_one_split" not in allow and len({clip.split for clip in every}) > 1:
            alone = [f"{label} (in {next(iter(splits))})" for label, splits in of_class.items() if len(splits) == 1]
            if alone:
                raise ListError(
                    f"classes in one split only: {_some(alone)}. To go on all the same, allow 'class_in_one_split' "
                    "(sparsetime train: --allow class_in_one_split)."
                )
        if "group_in_splits" not in allow:
            mixed = [
                f"{group} (in {' and '.join(sorted(splits))})" for group, splits in of_group.items() if len(splits) > 1
            ]
            if mixed:
                raise ListError(
                    f"groups in more than one split: {_some(mixed)}. To go on all the same, allow 'group_in_splits' "
                    "(sparsetime train: --allow group_in_splits)."
                )
        return self

    def __len__(self) -> int:
        return len(self.clips)

    def __iter__(self) -> Iterator[Clip]:
        return iter(self.clips)

    @overload
    def __getitem__(self, index: int) -> Clip: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Clip, ...]: ...
    def __getitem__(self, index: int | slice) -> Clip | tuple[Clip, ...]:
        return self.clips[index]


def by_share(test: float = 0.25, *, seed: int = 0, group: Callable[[Path], str] | None = None) -> Callable[[Path], str]:
    """A split rule: about the share `test` of the groups (None: of the videos) is ``"test"``, the rest ``"train"``.

    It hashes names, so a video keeps its place when others come or go.
    """

    def rule(path: Path) -> str:
        digest = hashlib.sha256(f"{seed}/{group(path) if group else path.stem}".encode()).digest()
        return "test" if int.from_bytes(digest[:8], "big") < test * 2**64 else "train"

    return rule


def _is_video(path: Path) -> bool:
    if path.is_dir():
        return any(file.suffix.lower() in IMAGE_DECODERS for file in path.iterdir())
    return path.suffix.lower() in VIDEO_SUFFIXES


def _columns(table: Path) -> list[str]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            return next(csv.reader(stream), [])
    except FileNotFoundError:
        raise ListError(f"{table}: there is no such file") from None
    except UnicodeDecodeError:
        raise ListError(f"{table}: expected a table in UTF-8") from None


def _matches(file: Path, pattern: str, meaning: str) -> Iterator[tuple[str, ...]]:
    """The groups of `pattern` in each line of an official list; every line has to match."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise ListError(
            f"{file}: there is no such file; the official lists are classInd.txt, trainlist01.txt, testlist01.txt"
        ) from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = re.fullmatch(pattern, line.strip())
        if not match:
            raise ListError(f"{file}: line {number}: expected {meaning}, got {line!r}")
        yield match.groups()


def _splits_by(pairs: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    found: defaultdict[str, set[str]] = defaultdict(set)
    for name, split in pairs:
        found[name].add(split)
    return found


def _some(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
