"""Which labelled pictures there are: class folders or a labels.csv; who is on them, and the splits that are given."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gender_batch.pictures.find import LITTER, Walk, glob_matcher
from gender_batch.pictures.listed import Listed, ListError, Row, read_list
from gender_batch.prediction import UNCERTAIN

SPLITS = ("train", "val", "test")

RUNS = "runs"
"""A folder of this name in DATA is not of the data: there `train` puts its runs, if it is started in DATA."""


class DatasetError(Exception):
    """The labelled data cannot be trained on. The message names the folder or the file, and the remedy."""


@dataclass(frozen=True)
class Sample:
    """One labelled picture. `name` is its path relative to the data; `group` is the person, or the picture itself.

    `attributes` are what else the labels file says of it, for the report: {"age": "20-29"}.
    """

    name: str
    label: int
    group: str
    attributes: Mapping[str, str] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Found:
    """What the user gave. Without `given` there are no splits yet, and every picture is under `train`.

    `repeating` are columns of the labels file that only say the class again; they are no attributes.
    """

    labels: tuple[str, ...]
    splits: dict[str, list[Sample]]
    given: bool
    notes: tuple[str, ...]
    repeating: tuple[str, ...] = ()


def find_samples(root: Path, group_by: str | None, labels_file: Path | None) -> Found:
    """Every labelled picture below `root`; no file is opened but `labels_file`.

    The classes come from the column `label` of `labels_file` or, without one, from the folders: `train/<class>/...`
    with optional `val/` and `test/`, or `<class>/...` alone. The splits come from the column `split` or, without one,
    from the folders. The group is the first group of the regular expression `group_by`, or the column `group`, or the
    picture itself.

    Raises DatasetError.
    """
    try:
        return _found(root, group_by, read_list(labels_file) if labels_file else None)
    except ListError as error:
        raise DatasetError(str(error)) from None


def _found(root: Path, group_by: str | None, listed: Listed | None) -> Found:
    if listed:
        _check_roles(listed)
    if group_by is not None and listed and "group" in listed.columns:
        raise DatasetError(f"{listed.path} has a column `group`, and --group-by is given; leave one of them out")
    if listed and "label" in listed.columns:
        labels, found, rows, notes = _listed(root, listed)
    else:
        labels, found = _in_folders(root)
        rows, notes = listed.rows_of(root, {name for name, _, _ in found}) if listed else {}, ()
    if len({label.casefold() for label in labels}) < len(labels):
        raise DatasetError(f"{root}: of the classes {', '.join(labels)} two differ in case alone; write them alike")
    if UNCERTAIN in labels:
        raise DatasetError(
            f"{root}: a class is called {UNCERTAIN!r}, as is the answer where none is probable; give it another name"
        )
    if listed and "split" in listed.columns:
        found = [(name, label, listed.value(rows, "split", name)) for name, label, _ in found]

    group = _grouping(group_by)
    attributes, repeating = _attributes(listed, rows, {name: label for name, label, _ in found})
    splits: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    for name, label, split in found:
        who = listed.value(rows, "group", name) if listed and "group" in listed.columns else group(name)
        sample = Sample(name, labels.index(label), who, attributes.get(name, {}))
        splits[split or "train"].append(sample)
    given = any(split for _, _, split in found)
    if given and not splits["train"]:
        raise DatasetError(f"{root}: no picture is in the split train; there is nothing to train on")
    return Found(labels, splits, given, notes, repeating)


# --- folders ---


def _in_folders(root: Path) -> tuple[tuple[str, ...], list[tuple[str, str, str]]]:
    """The classes, and (name, class, split) of every file in them; the split is empty where no folder gives it."""
    folders = _split_folders(root)
    if not folders:
        classes = _classes(root, besides=RUNS)
        return classes, [(name, label, "") for name, label in _in_classes(root, root, classes)]
    others = set(_folders(root)) - {*SPLITS, RUNS}
    if others:
        raise DatasetError(
            f"{root}: {', '.join(sorted(others))} beside train is none of the folders {', '.join(SPLITS)}; "
            "rename what is for validation to val, and move anything else out of it"
        )
    classes = _classes(root / "train")
    return classes, [
        (name, label, split) for split in folders for name, label in _in_classes(root, root / split, classes)
    ]


def _split_folders(root: Path) -> list[str]:
    """Those of the folders train, val and test that are there. Raises DatasetError where train is not among them."""
    folders = [name for name in SPLITS if (root / name).is_dir()]
    if folders and "train" not in folders:
        raise DatasetError(
            f"{root}: {', '.join(folders)} without train; put what is to be trained on into {root / 'train'}, or give "
            f"the folder another name than {', '.join(SPLITS)}"
        )
    return folders


def _classes(folder: Path, besides: str = "") -> tuple[str, ...]:
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; it must hold one folder of pictures per class")
    labels = tuple(name for name in _folders(folder) if name != besides)
    for name in labels:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DatasetError(
                f"{folder}: the name of the class folder {name!r} is not UTF-8, or the locale is not; rename it, or "
                "set LC_ALL=C.UTF-8"
            ) from None
    if len(labels) < 2:
        raise DatasetError(
            f"{folder}: {len(labels)} class folder(s) found ({', '.join(labels) or 'none'}); "
            "two or more are needed, each named after its class"
        )
    return labels


def _folders(folder: Path) -> list[str]:
    """Names of the folders that may be classes or splits, sorted."""
    litter = [glob_matcher(glob) for glob in LITTER]
    names = (entry.name for entry in folder.iterdir() if entry.is_dir())
    return sorted(name for name in names if not any(matches(name) for matches in litter))


def _in_classes(root: Path, folder: Path, classes: tuple[str, ...]) -> list[tuple[str, str]]:
    unknown = set(_folders(folder)) - {*classes, RUNS}
    if unknown:
        raise DatasetError(f"{folder}: class folder(s) {', '.join(sorted(unknown))} are not among {', '.join(classes)}")
    return [(name, label) for label in classes if (folder / label).is_dir() for name in _files(root, folder / label)]


def _files(root: Path, folder: Path) -> list[str]:
    """Names of all files below the folder but litter, relative to the root; behind links to folders those that are not
    met without. Raises DatasetError where a folder cannot be read."""
    paths = list(Walk(exclude=LITTER).files([str(folder)]))
    walk = Walk(follow_links=True, exclude=LITTER)
    linked = sorted(set(walk.files([str(folder)])) - set(paths))
    if walk.unreadable_folders:
        unreadable, reason = walk.unreadable_folders[0]
        raise DatasetError(f"{unreadable}: {reason}; make the folder readable, or move it out of {root}")
    if linked:
        met = {os.path.realpath(path) for path in paths}
        paths += [path for path in linked if os.path.realpath(path) not in met]
    return [str(Path(path).relative_to(root)) for path in paths]


# --- labels.csv ---


def _listed(
    root: Path, listed: Listed
) -> tuple[tuple[str, ...], list[tuple[str, str, str]], dict[str, Row], tuple[str, ...]]:
    """The classes, (name, class, split) of every row, the rows by name, and a note on the files that have none."""
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder; it must hold the pictures that {listed.path} lists")
    files = set(_files(root, root))
    rows = listed.rows_of(root, files, complete=True)
    # A test/ folder stays the test also where the file gives only the classes.
    by_folder = "split" not in listed.columns and bool(_split_folders(root))
    found = []
    for name, row in rows.items():
        split = name.split("/")[0] if by_folder else ""
        if by_folder and split not in SPLITS:
            raise DatasetError(
                f"{listed.path}, line {row.line}: {name} is in none of the folders {', '.join(SPLITS)}; "
                "move it, or add a column `split`"
            )
        found.append((name, row.values["label"], split))
    classes = tuple(sorted({label for _, label, _ in found}))
    if len(classes) < 2:
        raise DatasetError(
            f"{listed.path}: its pictures are of {len(classes)} class(es) ({', '.join(classes)}); "
            "two or more are needed"
        )
    rest = {name for name in files - rows.keys() if (root / name).resolve() != listed.path.resolve()}
    note = f"{len(rest)} file(s) in {root} are not listed in {listed.path} and are left out, {min(rest, default='')}"
    return classes, found, rows, (f"{note} among them",) if rest else ()


def _check_roles(listed: Listed) -> None:
    """The columns that say what a picture is here must say it."""
    for name, row in listed.rows.items():
        where = f"{listed.path}, line {row.line}"
        if row.values.get("split", "train") not in SPLITS:
            raise DatasetError(f"{where}: split {row.values['split']!r}; it must be one of {', '.join(SPLITS)}")
        if not row.values.get("label", "any"):
            raise DatasetError(f"{where}: {name} has no label; fill it in or take the line out")


def _attributes(
    listed: Listed | None, rows: Mapping[str, Row], label_of: Mapping[str, str]
) -> tuple[dict[str, dict[str, str]], tuple[str, ...]]:
    """The other columns by picture, and the names of those that are none, since they only say the class again."""
    if listed is None:
        return {}, ()

    def repeats(column: str) -> bool:
        return all(row.values[column].casefold() == label_of[name].casefold() for name, row in rows.items())

    kept = [column for column in listed.attributes if not repeats(column)]
    repeating = tuple(
        column for column in ("label", *listed.attributes) if column in listed.columns and repeats(column)
    )
    return {name: {column: row.values[column] for column in kept} for name, row in rows.items()}, repeating


# --- groups ---


def _grouping(group_by: str | None) -> Callable[[str], str]:
    if group_by is None:
        return lambda name: name
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise DatasetError(f"--group-by {group_by!r} is not a regular expression: {error}") from None
    if pattern.groups < 1:
        raise DatasetError(f"--group-by {group_by!r} has no group; put the part that names the person in ( )")

    def group(name: str) -> str:
        match = pattern.search(name)
        if not (match and match.group(1)):  # nobody is called nothing
            raise DatasetError(f"--group-by {group_by!r} finds no person in {name}")
        return match.group(1)

    return group
