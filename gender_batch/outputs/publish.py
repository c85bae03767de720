"""A file that appears whole or not at all, and the lock that keeps two runs from publishing over each other."""

from __future__ import annotations

import fcntl
import io
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_TEMPORARY = ".tmp"
_LOCK = ".lock"


class LockedError(Exception):
    """Another run writes the same output. The message says who."""


@contextmanager
def for_the_owner_alone() -> Iterator[None]:
    """Nobody else may read the files that are made, in whichever folder: they show people."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def published(path: Path, appeared: Callable[[], None] = lambda: None) -> Iterator[BinaryIO]:
    """A binary file that replaces `path` when the block ends well, and leaves it untouched otherwise.

    Written beside its place, synced, renamed over it, and the folder synced: after a crash or a power cut there is
    the old file or the new one, as far as the disk keeps its promises. Readable by its owner alone, since rows are
    personal data. `appeared` is called as soon as it is there for others to see. Raises OSError, which names its file
    also where the system does not.
    """
    descriptor, name = tempfile.mkstemp(prefix=_hidden(path, "."), suffix=_TEMPORARY, dir=path.parent)
    temporary = Path(name)
    try:
        raw = _NamedFile(descriptor, path)
        with io.BufferedWriter(raw) as file:
            yield file
            file.flush()
            raw.sync()
        os.replace(temporary, path)
        appeared()
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def publish_all(places: Mapping[Path, Path]) -> None:
    """Rename finished files to their places on the same disk, in this order: all are synced before the first is.

    What `published` does, for files that other programs have written, and which keep their permissions. Raises OSError.
    """
    for file, place in places.items():
        with file.open("rb") as opened, _naming(place):
            os.fsync(opened.fileno())
    for file, place in places.items():
        os.replace(file, place)
    for folder in dict.fromkeys(place.parent for place in places.values()):
        _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    # What was renamed is there by now, for whoever looks; and some network file systems cannot sync a folder.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class _NamedFile(io.FileIO):
    """Open for writing; its errors say that they are about `path`."""

    def __init__(self, descriptor: int, path: Path) -> None:
        super().__init__(descriptor, "wb")
        self.path = path

    def write(self, data: ReadableBuffer, /) -> int:
        with _naming(self.path):
            return super().write(data)

    def sync(self) -> None:
        with _naming(self.path):
            os.fsync(self.fileno())


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """An OSError within says that it is about `path`, which the system does not of a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path`, for the files that are going to be renamed to it and to others beside it. It is removed
    in the end; and so is first what runs that were killed have left, so only for who holds the lock of `path`.
    Raises OSError."""
    remove_leftovers(path)
    with tempfile.TemporaryDirectory(prefix=_hidden(path, "."), suffix=_TEMPORARY, dir=path.parent) as name:
        yield Path(name)


def remove_leftovers(target: Path) -> None:
    """Remove temporary files and folders of runs that were killed. Only for who holds the lock of `target`.
    Raises OSError."""
    # mkstemp puts no dot there: one more is a `rows.csv`, which another run may be writing beside our `rows`.
    leftover = re.compile(f"{re.escape(_hidden(target, '.'))}[^.]*{re.escape(_TEMPORARY)}")
    for path in target.parent.iterdir():
        if leftover.fullmatch(path.name):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def journal_of(target: Path) -> Path:
    """Where a run keeps what it has done until `target` is published, if no other place is named."""
    return target.with_name(_hidden(target, ".state"))


class OwnFiles:
    """The files that a run writes, their locks and their temporary files: no pictures, if they lie among them.

    `endings` are those of further files beside each of them. `path in own_files` is cheap for any other path.
    """

    def __init__(self, targets: Iterable[Path], endings: Sequence[str] = ()) -> None:
        self._folders: dict[str, set[str]] = {}
        self._temporary: dict[str, set[str]] = {}
        for target in targets:
            folder = os.path.realpath(target.parent)
            for name in (target.name, _hidden(target, _LOCK), *(target.name + ending for ending in endings)):
                self._folders.setdefault(name, set()).add(folder)
            self._temporary.setdefault(_hidden(target, "."), set()).add(folder)

    def __contains__(self, path: str) -> bool:
        _, _, name = path.rpartition("/")
        found = self._folders.get(name)
        if found is None and name.endswith(_TEMPORARY):
            found = next((folders for start, folders in self._temporary.items() if name.startswith(start)), None)
        return found is not None and os.path.realpath(os.path.dirname(path)) in found


def _hidden(path: Path, ending: str) -> str:
    """A hidden name beside `path`, cut so that it stays within the 255 bytes of a name."""
    return os.fsdecode(b"." + os.fsencode(path.name)[:200]) + ending


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of an output for the block. The kernel drops it with the process, so none is ever stale.

    Raises LockedError at once where another process holds it, and OSError.
    """
    lock = path.with_name(_hidden(path, _LOCK))
    while True:
        # Not through a link: who put it there might have another file emptied.
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = file.read().strip() or "an unknown process"
                raise LockedError(f"{path}: another run is writing it: {holder}") from None
            if not _is_named(file.fileno(), lock):
                continue  # its holder removed it between our opening and our locking it
            with _naming(lock):
                file.truncate(0)
                file.write(f"pid {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
                file.flush()
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
