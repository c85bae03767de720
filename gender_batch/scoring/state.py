"""What is known of the pictures, in an SQLite file that any end of the program leaves consistent."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from gender_batch.prediction import Person, Prediction, Reason, Status

APPLICATION_ID = 0x47426174  # "GBat", where `file` and SQLite look for it
SCHEMA_VERSION = 2

COMMIT_ROWS = 1000
COMMIT_SECONDS = 0.1
"""Most outcomes, and the longest time, that a crash can cost."""

LEAST_FREE = 64 * 1024 * 1024
"""Bytes that must stay free on the state's volume: the run stops before it fills the disk for everybody."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system calls a file that may not grow: the disk is full, or this user's share of it, or the file's limit."""

MOST_AHEAD = 512
"""Pictures that are read ahead at most."""

_BEHIND_ALL = b"\xff"
"""Every path begins with a slash."""

FILES = ("", "-wal", "-shm", "-journal")
"""What SQLite adds to the name of the state for the files beside it."""

_SCHEMA = """
CREATE TABLE models (id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE);
CREATE TABLE pictures (
    id INTEGER PRIMARY KEY,       -- rises in the order in which pictures were found
    path BLOB NOT NULL UNIQUE,    -- absolute, the bytes of the name
    size INTEGER,
    mtime_ns INTEGER,
    content BLOB,                 -- SHA-256, where it was asked for
    model INTEGER REFERENCES models,  -- what the picture was scored with; NULL: not yet
    status TEXT, label TEXT, probabilities TEXT, faces INTEGER, width INTEGER, height INTEGER, error TEXT,
    box TEXT, reason TEXT,
    others TEXT                   -- of the picture's other faces, where every face is answered
);
CREATE INDEX pictures_of_content ON pictures (content) WHERE content IS NOT NULL;
"""

_FROM_VERSION_1 = """
ALTER TABLE pictures ADD COLUMN box TEXT;
ALTER TABLE pictures ADD COLUMN reason TEXT;
ALTER TABLE pictures ADD COLUMN others TEXT;
"""

_ANSWER = "status, label, probabilities, faces, width, height, error, box, reason, others"

_AHEAD = """
SELECT path, id, size, mtime_ns, content, model, status FROM pictures WHERE path >= ? ORDER BY path LIMIT ?
"""
_EXPECT = "INSERT OR IGNORE INTO pictures (size, mtime_ns, path) VALUES (?, ?, ?)"
_EXPECT_AGAIN = "UPDATE pictures SET size = ?, mtime_ns = ?, content = NULL, model = NULL WHERE path = ?"
_ID = "SELECT id FROM pictures WHERE path = ?"  # RETURNING is of SQLite 3.35, and there are Pythons with an older one
_RECORD = f"""
UPDATE pictures SET (model, content, {_ANSWER}) = (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
WHERE id = ?
"""  # noqa: S608 - of constants
_RECORDED = f"SELECT model, content, {_ANSWER} FROM pictures WHERE id = ?"  # noqa: S608 - of constants
_ROWS = f"""
SELECT id, path, {_ANSWER} FROM pictures
WHERE id IN (SELECT value FROM json_each(?)) AND model IS NOT NULL
"""  # noqa: S608 - of constants
_PAGE = "SELECT id FROM pictures WHERE id > ? ORDER BY id LIMIT ?"
_OF_CONTENT = ", ".join(f"'{status}'" for status in Status if status.tells_of_content)
_SAME_CONTENT = f"""
SELECT id FROM pictures WHERE content = ? AND model = ? AND status IN ({_OF_CONTENT})
"""  # noqa: S608 - of constants


class StateError(Exception):
    """The state cannot be used. The message names the file, the cause and the remedy."""


class Stamp(NamedTuple):
    """What tells cheaply whether a file has changed: bytes, and nanoseconds since 1970."""

    size: int
    mtime_ns: int


Answer = tuple[Any, ...]
"""A row without its path: what follows the path in a Prediction."""


class Known(NamedTuple):
    """What the state holds of a picture. `current`: it was scored, with the model that is in use now."""

    id: int
    stamp: Stamp
    content: bytes | None
    current: bool
    status: Status | None

    @property
    def failed(self) -> bool:
        return self.status is not None and self.status.failed

    @property
    def tells_of_content(self) -> bool:
        return self.status is not None and self.status.tells_of_content


class State:
    """The pictures that were found, and their rows. A context manager; what was recorded is kept however it ends.

    `digest` stands for all that decides an answer: rows of another one are not current. Only one process may have a
    state open: the caller locks. Raises StateError when made and from every method; within `errors` so does what else
    is done to files beside it.
    """

    def __init__(self, path: Path, digest: str) -> None:
        self.path = path
        self.errors = _Errors(path)
        with self.errors:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite's own files take over its mode
            self._check_disk()
            self._database = sqlite3.connect(path, isolation_level=None)
            try:
                self._prepare()
                self._model = self._model_id(digest)
            except BaseException:
                self._database.close()
                raise
        self._uncommitted, self._committed = 0, time.monotonic()
        self._ahead: dict[bytes, Known] = {}
        self._first, self._last, self._reach, self._used = b"\1", b"\0", 8, 8

    def _prepare(self) -> None:
        run = self._database.execute
        (version,) = run("PRAGMA user_version").fetchone()
        (application,) = run("PRAGMA application_id").fetchone()
        (tables,) = run("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and application != APPLICATION_ID:
            raise StateError(f"{self.path}: a database of another program; name another file with --state")
        if version > SCHEMA_VERSION:
            raise StateError(
                f"{self.path}: a state of version {version}, this program knows {SCHEMA_VERSION}; "
                "update gender-batch, or start over with --fresh"
            )
        if tables and version == 1:
            self._database.executescript(f"BEGIN; {_FROM_VERSION_1} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        if not tables:  # before WAL, so that the file itself says what it is from its first moment
            self._database.executescript(
                f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; "
                f"PRAGMA application_id = {APPLICATION_ID}; COMMIT;"
            )
        run("PRAGMA journal_mode = WAL")
        # A power cut may take the last transactions, never the file: SQLite's documentation of WAL and synchronous.
        run("PRAGMA synchronous = NORMAL")

    def _model_id(self, digest: str) -> int:
        self._database.execute("INSERT OR IGNORE INTO models (digest) VALUES (?)", (digest,))
        found: int = self._database.execute("SELECT id FROM models WHERE digest = ?", (digest,)).fetchone()[0]
        return found

    def __enter__(self) -> State:
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(sqlite3.Error):  # a full disk, of which is told already
            self._commit()
        self._database.close()

    def find(self, path: bytes) -> Known | None:
        """Cheap where pictures are asked for in the order of their names: the next ones are read ahead.

        What changes after that is not seen: a path that is asked for twice may seem unknown twice.
        """
        if not self._first <= path <= self._last:
            self._look_ahead(path)
        found = self._ahead.get(path)
        self._used += found is not None
        return found

    def _look_ahead(self, path: bytes) -> None:
        # A folder's subfolders lie among its files: what was read in vain is not read so far ahead again.
        self._reach = min(MOST_AHEAD, 2 * self._reach) if 2 * self._used >= self._reach else max(8, self._reach // 4)
        with self.errors:
            rows = self._database.execute(_AHEAD, (path, self._reach)).fetchall()
        with self._values_checked():
            self._ahead = {name: self._known(*columns) for name, *columns in rows}
        self._first, self._last, self._used = path, rows[-1][0] if len(rows) == self._reach else _BEHIND_ALL, 0

    def _known(
        self, identifier: int, size: int, mtime_ns: int, content: bytes | None, model: int | None, status: str | None
    ) -> Known:
        current = model == self._model
        return Known(identifier, Stamp(size, mtime_ns), content, current, None if status is None else Status(status))

    def expect(self, path: bytes, stamp: Stamp | None) -> int:
        """Make a place for the row of a picture that is going to be scored; its id."""
        with self.errors:
            self._begin()
            values = (*(stamp or (None, None)), path)
            inserted = self._database.execute(_EXPECT, values)
            if inserted.rowcount and inserted.lastrowid is not None:
                return inserted.lastrowid
            self._database.execute(_EXPECT_AGAIN, values)
            identifier: int = self._database.execute(_ID, (path,)).fetchone()[0]
        return identifier

    def record(self, identifier: int, row: Prediction, content: bytes | None = None) -> None:
        """The row of the picture, whose path is not kept twice."""
        with self.errors:
            self._begin()
            self._database.execute(_RECORD, (self._model, content, *_to_columns(row), identifier))
            self._changed()

    def same_content(self, content: bytes) -> int | None:
        """The id of a picture with this content whose row is current and tells of nothing but the content."""
        with self.errors:
            row = self._database.execute(_SAME_CONTENT, (content, self._model)).fetchone()
        return row[0] if row else None

    def copy(self, source: int, path: bytes, stamp: Stamp | None) -> int:
        """Give a picture the row of `source`, whose content it has; its id. The two may be the same picture."""
        with self.errors:
            recorded = self._database.execute(_RECORDED, (source,)).fetchone()
        identifier = self.expect(path, stamp)
        with self.errors:
            self._database.execute(_RECORD, (*recorded, identifier))
            self._changed()
        return identifier

    def rows(self, identifiers: Iterable[int]) -> dict[int, tuple[bytes, Answer]]:
        """Paths and answers by id, of pictures that were scored."""
        with self.errors:
            found = self._database.execute(_ROWS, (json.dumps(list(identifiers)),)).fetchall()
        with self._values_checked():
            return {identifier: (path, _answer(columns)) for identifier, path, *columns in found}

    def count(self) -> int:
        with self.errors:
            count: int = self._database.execute("SELECT count(*) FROM pictures").fetchone()[0]
        return count

    def keep_only(self, seen: bytearray) -> None:
        """Forget every picture whose id is no index of a true value in `seen`."""
        with self.errors:
            last = 0
            while page := self._database.execute(_PAGE, (last, COMMIT_ROWS)).fetchall():
                gone = [(one,) for (one,) in page if one >= len(seen) or not seen[one]]
                if gone:
                    self._begin()
                    self._database.executemany("DELETE FROM pictures WHERE id = ?", gone)
                    self._commit()
                (last,) = page[-1]

    @contextmanager
    def _values_checked(self) -> Iterator[None]:
        """What stands in the file and can be no row was not written by this program."""
        try:
            yield
        except (ValueError, TypeError) as error:
            raise StateError(_damaged(self.path, error)) from None

    def _begin(self) -> None:
        if not self._database.in_transaction:
            self._database.execute("BEGIN IMMEDIATE")

    def _changed(self) -> None:
        """Another row is complete; commits from time to time."""
        self._uncommitted += 1
        if self._uncommitted >= COMMIT_ROWS or time.monotonic() - self._committed > COMMIT_SECONDS:
            self._commit()
            self._check_disk()

    def _commit(self) -> None:
        if self._database.in_transaction:
            self._database.execute("COMMIT")
        self._uncommitted, self._committed = 0, time.monotonic()

    def _check_disk(self) -> None:
        volume = os.statvfs(self.path)
        free = volume.f_bavail * volume.f_frsize
        if free < LEAST_FREE:
            raise StateError(
                f"{self.path}: only {free / 1e6:.0f} MB are free on its volume {volume_of(self.path)}; "
                "make room, and the same command goes on where it stopped"
            )


def _to_columns(row: Prediction) -> tuple[Any, ...]:
    """The values of _ANSWER."""
    others = [(person.label, person.probabilities, person.box, person.reason) for person in row.others]
    return (
        row.status, row.label, json.dumps(row.probabilities), row.faces, row.width, row.height, row.error,
        json.dumps(row.box) if row.box else None, row.reason, json.dumps(others) if others else None,
    )  # fmt: skip


def _answer(columns: Sequence[Any]) -> Answer:
    """Of the values of _ANSWER."""
    status, label, shares, faces, width, height, error, box, reason, others = columns
    return (
        Status(status), label, tuple(json.loads(shares)), faces, width, height, error,
        tuple(json.loads(box)) if box else None, _reason(reason),
        _others(others) if others else (),
    )  # fmt: skip


def _others(text: str) -> tuple[Person, ...]:
    return tuple(Person(name, tuple(shares), tuple(box), _reason(why)) for name, shares, box, why in json.loads(text))


def _reason(text: str | None) -> Reason | None:
    return Reason(text) if text else None


class _Errors:
    """Turns what SQLite and the system raise into a StateError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, sqlite3.DatabaseError):
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # without what extends it
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise StateError(f"{self.path}: another program has it open ({error}); close that first") from None
            if isinstance(error, sqlite3.OperationalError) and code != sqlite3.SQLITE_ERROR:
                raise StateError(self._no_room(error)) from None
            raise StateError(_damaged(self.path, error)) from None  # such as a table that is not there
        if isinstance(error, OSError):
            if error.errno in NO_ROOM:
                raise StateError(self._no_room(error.strerror)) from None
            raise StateError(f"{self.path}: {error.strerror}; name a file that can be written with --state") from None

    def _no_room(self, cause: object) -> str:
        return (
            f"{self.path}: {cause}; is there room on its volume {volume_of(self.path)}, and may this user write there?"
        )


def _damaged(path: Path, cause: object) -> str:
    return f"{path}: no state, or a damaged one ({cause}); name another file with --state, or remove this one"


def volume_of(path: Path) -> Path:
    """Where the file system that a file is on, or would be on, is mounted."""
    place = Path(os.path.realpath(path))
    return next((folder for folder in (place, *place.parents) if os.path.ismount(folder)), Path("/"))


def remove_state(path: Path) -> None:
    """Remove a state and what SQLite keeps beside it. Raises StateError for a file that is something else."""
    try:
        with path.open("rb") as file:
            header = file.read(72)
    except FileNotFoundError:
        header = b""
    if header and header[:16] != b"SQLite format 3\0":
        raise StateError(f"{path}: no state of gender-batch; name another file with --state")
    if header and len(header) < 72:
        raise StateError(f"{path}: cut short after {len(header)} bytes, so whose it was cannot be told; remove it")
    if header and header[68:72] != APPLICATION_ID.to_bytes(4, "big"):
        raise StateError(f"{path}: a database of another program; name another file with --state")
    for ending in reversed(FILES):
        Path(f"{path}{ending}").unlink(missing_ok=True)
