"""The three formats of a list of rows, each written as it comes, none held in memory."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from gender_batch.outputs.privacy import spreadsheet_safe
from gender_batch.prediction import Value


class RowWriter(Protocol):
    """Takes rows in the order of the columns. `close` completes the format, not the file."""

    def write(self, values: Sequence[Value]) -> None: ...

    def close(self) -> None: ...


class CsvRows:
    """RFC 4180: commas, CRLF, quotes where needed. Missing values are empty.

    The bytes of a file name go out as they are, whether or not they are UTF-8: read with
    `open(..., newline="", encoding="utf-8", errors="surrogateescape")` to have them back exactly.
    """

    dialect: type[csv.Dialect] = csv.excel

    def __init__(self, file: BinaryIO, columns: Sequence[str]) -> None:
        self._text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        self._csv = csv.writer(self._text, self.dialect)
        self._csv.writerow(columns)

    def write(self, values: Sequence[Value]) -> None:
        self._csv.writerow(values)

    def close(self) -> None:
        self._text.detach()  # which flushes it, and leaves the file open


class _Quoted(csv.excel):
    quoting = csv.QUOTE_NONNUMERIC


class SpreadsheetRows(CsvRows):
    """The same for a spreadsheet: no text is taken for a formula, and each is quoted. Where a list's separator is a
    semicolon, as in much of Europe, what follows one in a name would be a cell of its own otherwise."""

    dialect = _Quoted

    def write(self, values: Sequence[Value]) -> None:
        super().write(spreadsheet_safe(values))


class JsonLines:
    """One JSON object per line, in ASCII. An undecodable byte of a name is a lone surrogate escape, as Python's
    json reads it back; `os.fsencode` then gives the name's bytes."""

    def __init__(self, file: BinaryIO, columns: Sequence[str]) -> None:
        self._file = file
        self._columns = columns

    def write(self, values: Sequence[Value]) -> None:
        self._file.write(self._object(values) + b"\n")

    def close(self) -> None:
        pass

    def _object(self, values: Sequence[Value]) -> bytes:
        return json.dumps(dict(zip(self._columns, values, strict=True))).encode("ascii")


class JsonArray(JsonLines):
    """One JSON array of the same objects, one per line."""

    def __init__(self, file: BinaryIO, columns: Sequence[str]) -> None:
        super().__init__(file, columns)
        self._before = b"[\n"

    def write(self, values: Sequence[Value]) -> None:
        self._file.write(self._before + self._object(values))
        self._before = b",\n"

    def close(self) -> None:
        self._file.write(b"[]\n" if self._before == b"[\n" else b"\n]\n")


FORMATS: dict[str, Callable[[BinaryIO, Sequence[str]], RowWriter]] = {
    ".csv": CsvRows,
    ".json": JsonArray,
    ".jsonl": JsonLines,
}


def format_of(path: Path) -> str:
    """The suffix that decides the format. Raises ValueError, saying which there are."""
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"{path}: the suffix says the format and must be one of {', '.join(FORMATS)}")
    return suffix


@contextmanager
def write_rows(file: BinaryIO, suffix: str, columns: Sequence[str], spreadsheet: bool = False) -> Iterator[RowWriter]:
    """A writer of the format for `suffix` on an open binary file; completed unless an error leaves the block.
    A CSV may be made safe for a `spreadsheet`."""
    form = SpreadsheetRows if spreadsheet and suffix == ".csv" else FORMATS[suffix]
    writer = form(file, columns)
    yield writer
    writer.close()
