"""Which labelled pictures there are: class folders or a labels.csv; who is on them, and the splits that are given."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gender_batch.pictures.find import Walk

SPLITS = ("train", "val", "test")


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
    """What the user gave. Without `given` there are no splits yet, and every picture is under `train`."""

    labels: tuple[str, ...]
    splits: dict[str, list[Sample]]
    given: bool
    notes: tuple[str, ...]


def find_samples(root: Path, group_by: str | None, labels_file: Path | None) -> Found:
    """Every labelled picture below `root`; no file is opened but `labels_file`.

    The classes and splits come from the column `label` and, if it is there, `split` of `labels_file`. Without a
    column `label` they come from the folders: `train/<class>/...` with optional `val/` and `test/`, or
    `<class>/...` alone, which a column `split` may still divide. The group is the first group of the regular
    expression `group_by`, or the column `group`, or the picture itself.

    Raises DatasetError.
    """
    listed = _read(labels_file) if labels_file else None
    if group_by is not None and listed and "group" in listed.columns:
        raise DatasetError(f"{listed.path} has a column `group`, and --group-by is given; leave one of them out")
    if listed and "label" in listed.columns:
        labels, found, rows, notes = _listed(root, listed)
    else:
        labels, found = _in_folders(root)
        rows, notes = _rows_of(root, listed, {name for name, _, _ in found}) if listed else {}, ()
    if listed and "split" in listed.columns and not any(split for _, _, split in found):
        found = [(name, label, _column(listed, rows, "split", name)) for name, label, _ in found]

    group = _grouping(group_by)
    attributes = _attributes(listed, rows, {name: label for name, label, _ in found})
    splits: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    for name, label, split in found:
        who = _column(listed, rows, "group", name) if listed and "group" in listed.columns else group(name)
        sample = Sample(name, labels.index(label), who, attributes.get(name, {}))
        splits[split or "train"].append(sample)
    given = any(split for _, _, split in found)
    if given and not splits["train"]:
        raise DatasetError(f"{root}: no picture is in the split train; there is nothing to train on")
    return Found(labels, splits, given, notes)


# --- folders ---


def _in_folders(root: Path) -> tuple[tuple[str, ...], list[tuple[str, str, str]]]:
    """The classes, and (name, class, split) of every file in them; the split is empty where no folder gives it."""
    folders = [name for name in SPLITS if (root / name).is_dir()]
    if "train" not in folders:
        classes = _classes(root)
        return classes, [(name, label, "") for name, label in _in_classes(root, root, classes)]
    classes = _classes(root / "train")
    return classes, [
        (name, label, split) for split in folders for name, label in _in_classes(root, root / split, classes)
    ]


def _classes(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; it must hold one folder of pictures per class")
    labels = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    if len(labels) < 2:
        raise DatasetError(
            f"{folder}: {len(labels)} class folder(s) found ({', '.join(labels) or 'none'}); "
            "two or more are needed, each named after its class"
        )
    return labels


def _in_classes(root: Path, folder: Path, classes: tuple[str, ...]) -> list[tuple[str, str]]:
    unknown = {entry.name for entry in folder.iterdir() if entry.is_dir()} - set(classes)
    if unknown:
        raise DatasetError(f"{folder}: class folder(s) {', '.join(sorted(unknown))} are not among {', '.join(classes)}")
    return [(name, label) for label in classes if (folder / label).is_dir() for name in _files(root, folder / label)]


def _files(root: Path, folder: Path) -> list[str]:
    """Names of all files below the folder, relative to the root."""
    return [str(Path(path).relative_to(root)) for path in Walk().files([str(folder)])]


# --- labels.csv ---


@dataclass(frozen=True)
class _Row:
    line: int
    values: dict[str, str]


@dataclass(frozen=True)
class _LabelsFile:
    """The rows by their path as it is written, but normalised."""

    path: Path
    columns: tuple[str, ...]
    rows: dict[str, _Row]


def _read(path: Path) -> _LabelsFile:
    rows: dict[str, _Row] = {}
    try:
        # A spreadsheet's byte order mark is skipped; a file name need not be UTF-8.
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
            reader = csv.DictReader(lines)
            columns = tuple(reader.fieldnames or ())
            if "path" not in columns:
                raise DatasetError(f"{path}: no column `path`; it has {', '.join(columns) or 'nothing'}")
            twice = {name for name in columns if columns.count(name) > 1}
            if twice:
                raise DatasetError(f"{path}: two columns are named {min(twice)!r}; rename one")
            for values in reader:
                where = f"{path}, line {reader.line_num}"
                if None in values:
                    raise DatasetError(f"{where}: more fields than columns; a field with a comma needs quotes")
                written = values.pop("path") or ""
                name = os.path.normpath(written)
                if not written or os.path.isabs(name) or name.split("/")[0] == "..":
                    raise DatasetError(f"{where}: path {written!r}; it must be relative to the data folder")
                if name in rows:
                    raise DatasetError(f"{where}: {name} is listed a second time; first in line {rows[name].line}")
                cells = {column: (value or "").strip() for column, value in values.items() if column}
                if cells.get("split", "train") not in SPLITS:
                    raise DatasetError(f"{where}: split {cells['split']!r}; it must be one of {', '.join(SPLITS)}")
                if not cells.get("label", "any"):
                    raise DatasetError(f"{where}: {name} has no label; fill it in or take the line out")
                rows[name] = _Row(reader.line_num, cells)
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}; name a CSV file with --labels") from None
    except csv.Error as error:
        raise DatasetError(f"{path}, line {reader.line_num}: {error}; write the file as plain CSV") from None
    if not rows:
        raise DatasetError(f"{path}: lists no picture; it needs a line for each")
    return _LabelsFile(path, columns, rows)


def _rows_of(root: Path, listed: _LabelsFile, names: set[str], complete: bool = False) -> dict[str, _Row]:
    """The rows by the name of their picture, whether written relative to the root or to its parent.

    Rows of other pictures are left out, or with `complete` are an error.
    """
    parent = f"{root.resolve().name}/"
    rows: dict[str, _Row] = {}
    for path, row in listed.rows.items():
        name = path if path in names else path.removeprefix(parent)
        if name in rows:
            raise DatasetError(
                f"{listed.path}, line {row.line}: {name} is listed a second time; first in line {rows[name].line}"
            )
        if name in names:
            rows[name] = row
        elif complete:
            raise DatasetError(
                f"{listed.path}, line {row.line}: no file {path} in {root}; correct the path or take the line out"
            )
    if not rows:
        raise DatasetError(
            f"{listed.path}: none of its paths is a picture in {root}; they must be relative to it or to its parent"
        )
    return rows


def _listed(
    root: Path, listed: _LabelsFile
) -> tuple[tuple[str, ...], list[tuple[str, str, str]], dict[str, _Row], tuple[str, ...]]:
    """The classes, (name, class, split) of every row, the rows by name, and a note on the files that have none."""
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder; it must hold the pictures that {listed.path} lists")
    files = set(_files(root, root))
    rows = _rows_of(root, listed, files, complete=True)
    # A test/ folder stays the test also where the file gives only the classes.
    by_folder = "split" not in listed.columns and (root / "train").is_dir()
    found = []
    for name, row in rows.items():
        split = name.split("/")[0] if by_folder else row.values.get("split", "")
        if by_folder and split not in SPLITS:
            raise DatasetError(
                f"{listed.path}, line {row.line}: {name} is in none of the folders {', '.join(SPLITS)}; "
                "move it, or add a column `split`"
            )
        found.append((name, row.values["label"], split))
    classes = tuple(sorted({label for _, label, _ in found}))
    if len(classes) < 2:
        raise DatasetError(
            f"{listed.path}: its pictures are of {len(classes)} class(es) ({', '.join(classes) or 'none'}); "
            "two or more are needed"
        )
    rest = {name for name in files - rows.keys() if (root / name).resolve() != listed.path.resolve()}
    note = f"{len(rest)} file(s) in {root} are not listed in {listed.path} and are left out, {min(rest, default='')}"
    return classes, found, rows, (f"{note} among them",) if rest else ()


def _column(listed: _LabelsFile, rows: Mapping[str, _Row], column: str, name: str) -> str:
    """What the column says of the picture, which must be something."""
    if name not in rows:
        raise DatasetError(f"{listed.path}: no line for {name}; with a column `{column}` every picture needs one")
    value = rows[name].values[column]
    if not value:
        raise DatasetError(f"{listed.path}, line {rows[name].line}: {name} has no {column}; fill it in")
    return value


def _attributes(
    listed: _LabelsFile | None, rows: Mapping[str, _Row], label_of: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """The other columns by picture, but those that only say the class again."""
    if listed is None:
        return {}
    columns = [
        column
        for column in listed.columns
        if column not in ("", "path", "label", "group", "split")
        and any(row.values[column].casefold() != label_of[name].casefold() for name, row in rows.items())
    ]
    return {name: {column: row.values[column] for column in columns} for name, row in rows.items()}


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
        if match is None or match.group(1) is None:
            raise DatasetError(f"--group-by {group_by!r} does not match {name}")
        return match.group(1)

    return group
