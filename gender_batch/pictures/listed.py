"""A CSV file that tells of pictures who is on them, their class, their age: read alike in training and evaluation."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

BYTES = ("path", "group")
"""Columns that may hold any bytes: names of files, and what they are made of."""

ROLES = ("", "path", "label", "group", "split")
"""Columns that tell no attribute: nameless ones, and those that say what a picture is in the data."""


class ListError(Exception):
    """The file cannot be used. The message names it, the line if it is one's fault, and the remedy."""


@dataclass(frozen=True)
class Row:
    """What a line, the last one of a row, says of a picture, by column; an empty value says nothing."""

    line: int
    values: Mapping[str, str]


@dataclass(frozen=True)
class Listed:
    """The rows by their path as it is written, but normalised."""

    path: Path
    columns: tuple[str, ...]
    rows: Mapping[str, Row]

    @property
    def attributes(self) -> tuple[str, ...]:
        """The columns that tell what else is known of the pictures."""
        return tuple(column for column in self.columns if column not in ROLES)

    def rows_of(self, root: Path, names: set[str], complete: bool = False) -> dict[str, Row]:
        """The rows by the name of their picture, one of `names`, whether written relative to the root or to its parent.

        Rows of other pictures are left out, or with `complete` are an error. Raises ListError.
        """
        parent = f"{root.resolve().name}/"
        rows: dict[str, Row] = {}
        for path, row in self.rows.items():
            name = path if path in names else path.removeprefix(parent)
            if name in rows:
                raise ListError(
                    f"{self.path}, line {row.line}: {name} is listed a second time; first in line {rows[name].line}"
                )
            if name in names:
                rows[name] = row
            elif complete:
                raise ListError(
                    f"{self.path}, line {row.line}: no file '{path}' in {root}; correct the path or take the line out"
                )
        if not rows:
            example = f"'{next(iter(self.rows))}' for instance; " if self.rows else ""
            raise ListError(
                f"{self.path}: none of its paths is a picture in {root}; {example}they must be relative to it or to "
                "its parent, with / between folders"
            )
        return rows

    def value(self, rows: Mapping[str, Row], column: str, name: str) -> str:
        """What the column says of the picture, which must be something. Raises ListError."""
        if name not in rows:
            raise ListError(f"{self.path}: no line for {name}; with a column `{column}` every picture needs one")
        value = rows[name].values[column]
        if not value:
            raise ListError(f"{self.path}, line {rows[name].line}: {name} has no {column}; fill it in")
        return value


def read_list(path: Path) -> Listed:
    """Read the file: a column `path`, relative to the data, and any others. Space around names and values is no part
    of them. Raises ListError."""
    rows: dict[str, Row] = {}
    try:
        # A spreadsheet's byte order mark is skipped; a file name need not be UTF-8.
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
            reader = csv.DictReader(lines, strict=True)
            columns = tuple(_column(name) for name in reader.fieldnames or ())
            _check_columns(path, columns)
            reader.fieldnames = columns
            for values in reader:
                if not any(values.values()):
                    continue  # a line that a spreadsheet has emptied
                where = f"{path}, line {reader.line_num}"
                if None in values:
                    raise ListError(f"{where}: more fields than columns; a field with a comma needs quotes")
                written = values.pop("path") or ""
                name = os.path.normpath(written)
                if not written or os.path.isabs(name) or name.split("/")[0] == "..":
                    raise ListError(f"{where}: path {written!r}; it must be relative to the data folder")
                if name in rows:
                    raise ListError(f"{where}: {name} is listed a second time; first in line {rows[name].line}")
                cells = {column: (value or "").strip() for column, value in values.items() if column}
                _check_text(where, (value for column, value in cells.items() if column not in BYTES))
                rows[name] = Row(reader.line_num, cells)
    except OSError as error:
        raise ListError(f"{path}: {error.strerror}; name a CSV file with --labels or --groups") from None
    except csv.Error as error:
        raise ListError(f"{path}, line {reader.line_num + 1}: {error}; is a quote left open? Write plain CSV") from None
    if not rows:
        raise ListError(f"{path}: lists no picture; it needs a line for each")
    return Listed(path, columns, rows)


def _column(written: str) -> str:
    """A role may be written in capitals: `Group`, taken for an attribute, would tell nobody apart."""
    name = written.strip()
    return name.lower() if name.lower() in ROLES else name


def _check_columns(path: Path, columns: tuple[str, ...]) -> None:
    if "path" not in columns:
        raise ListError(
            f"{path}: no column `path`; it has {', '.join(columns) or 'nothing'}; save it as CSV in UTF-8, separated "
            "by commas, with the names of the columns in its first line"
        )
    twice = {name for name in columns if name and columns.count(name) > 1}
    if twice:
        raise ListError(f"{path}: two columns are named {min(twice)!r}; rename one")
    _check_text(f"{path}, line 1", columns)


def _check_text(where: str, texts: Iterable[str]) -> None:
    """Values become names in tables, which are text. Undecodable bytes were read as surrogates (PEP 383)."""
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            told = os.fsencode(text).decode("utf-8", "backslashreplace")
            raise ListError(f"{where}: '{told}' is not UTF-8; save the file as CSV in UTF-8") from None
