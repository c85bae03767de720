"""Walk the paths a user named and give every file in them, in a fixed order, one folder at a time."""

from __future__ import annotations

import mimetypes
import os
import re
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from heapq import merge
from itertools import chain, islice, pairwise

SORTED = 20_000
"""Entries of a folder that are sorted in memory, some 3 MB of names; more go through a temporary file."""

READ_AT_ONCE = 16 * 1024
"""Bytes of each sorted run: a folder of a million files has 50."""

LITTER = (".*", "__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini")
"""Globs of files and folders that are no pictures of labelled data: hidden ones, and what systems leave beside
pictures."""

_Entry = tuple[bytes, bool]
"""A name in a folder, and whether it is a folder to be entered."""


@dataclass
class Walk:
    """What is walked and how; after `files` has been used up, what it could not enter.

    A link to a file counts as a file; a link to a folder is entered only with `follow_links`, and then every folder
    once, by whichever way comes first. FIFOs, sockets and devices are never opened, only counted.
    `lost_links` counts links that might have been entered, had they led anywhere: none that is called like a picture.
    With `one_file_system` folders on another one than their root's are not entered, only counted.
    Globs are those of `glob_matcher`. What matches one of `exclude` is left out, folders with all that is in them; with
    any of `include`, files are left out that match none of them.
    """

    recursive: bool = True
    follow_links: bool = False
    one_file_system: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    unreadable_folders: list[tuple[str, str]] = field(default_factory=list)
    special_files: int = 0
    other_file_systems: int = 0
    lost_links: int = 0

    def __post_init__(self) -> None:
        self._included = [glob_matcher(glob) for glob in self.include]
        self._excluded = [glob_matcher(glob) for glob in self.exclude]

    def files(self, roots: Iterable[str]) -> Iterator[str]:
        """Paths as `find` prints them: the root as given, then the names below it, sorted within a folder.

        A root that is not a folder is given as it is, whether or not it exists: its row tells.
        Raises OSError where there is no room for the names of a folder that are too many for memory.
        """
        for root in roots:
            try:
                mode = os.stat(root).st_mode
            except (OSError, ValueError) as error:
                if _is_lost_folder(root):  # perhaps one of pictures whose disk is not mounted
                    reason = getattr(error, "strerror", None) or str(error)
                    self.unreadable_folders.append((root, f"a link that cannot be followed ({reason})"))
                yield root
                continue
            if stat.S_ISDIR(mode):
                yield from self._folder(root)
            else:
                yield root

    def _folder(self, root: str) -> Iterator[str]:
        device = os.stat(root).st_dev if self.one_file_system else None
        entered: set[tuple[int, int]] = set()
        below = len(os.path.join(root, ""))  # where names relative to the root begin
        pending: list[Iterator[str]] = [iter([root])]  # by depth, folders still to be entered
        while pending:
            folder = next(pending[-1], None)
            if folder is None:
                pending.pop()
                continue
            try:
                if not self._is_to_be_entered(folder, device, entered):
                    continue
                entries = _sorted(self._wanted(_listed(folder), below))
            except _FolderError as error:
                self.unreadable_folders.append((folder, str(error)))
                continue
            yield from _paths(folder, entries, folders=False)
            pending.append(_paths(folder, entries, folders=True))

    def _is_to_be_entered(self, folder: str, device: int | None, entered: set[tuple[int, int]]) -> bool:
        if not self.follow_links and device is None:
            return True
        with _folder_errors():
            status = os.stat(folder)
        if device is not None and status.st_dev != device:
            self.other_file_systems += 1
            return False
        if self.follow_links:
            if (status.st_dev, status.st_ino) in entered:
                return False
            entered.add((status.st_dev, status.st_ino))
        return True

    def _wanted(self, found: Iterable[os.DirEntry[str]], below: int) -> Iterator[_Entry]:
        """What of a folder is to be given or entered."""
        filtered = bool(self.include or self.exclude)
        for entry in found:
            if filtered and any(matches(entry.path[below:]) for matches in self._excluded):
                continue
            if self._is_folder(entry):
                if self.recursive and (self.follow_links or not entry.is_symlink()):
                    yield os.fsencode(entry.name), True
                continue
            if self.recursive and self.follow_links and entry.is_symlink():
                self.lost_links += _is_lost_folder(entry.path)
            if filtered and self._included and not any(m(entry.path[below:]) for m in self._included):
                continue
            if self._is_file(entry):
                yield os.fsencode(entry.name), False
            else:
                self.special_files += 1

    @staticmethod
    def _is_folder(entry: os.DirEntry[str]) -> bool:
        try:
            return entry.is_dir()
        except OSError:
            return False

    @staticmethod
    def _is_file(entry: os.DirEntry[str]) -> bool:
        """True for a file, and for a link that points nowhere or cannot be followed: it gets its row."""
        try:
            return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
        except OSError:
            return True


def _is_lost_folder(path: str) -> bool:
    """Whether it is a link that leads nowhere, perhaps once to a folder: the name is not that of a picture."""
    # Of the name alone: guess_type takes a path for a URL.
    kind = mimetypes.guess_type(os.path.basename(path), strict=False)[0] or ""
    return os.path.islink(path) and not os.path.exists(path) and not kind.startswith("image/")


def counting(walk: Walk, roots: Sequence[str]) -> Callable[[], int]:
    """A function that tells how many files the walk gives in all, 0 until that is known.

    It is counted by another walk, in a thread, from the first question on: a listing costs a thousandth of the scoring.
    """
    counts: list[int] = []
    other = replace(walk, unreadable_folders=[], special_files=0, other_file_systems=0, lost_links=0)

    def count() -> None:
        with suppress(OSError):  # the walk itself tells
            counts.append(sum(1 for _ in other.files(roots)))

    thread = threading.Thread(target=count, daemon=True)

    def told() -> int:
        if thread.ident is None:
            thread.start()
        return counts[0] if counts else 0

    return told


class _FolderError(Exception):
    """A folder cannot be read. No OSError: those of a temporary file are no folder's."""


@contextmanager
def _folder_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _FolderError(error.strerror or type(error).__name__) from None


def _listed(folder: str) -> Iterator[os.DirEntry[str]]:
    with _folder_errors(), os.scandir(folder) as found:
        yield from found


def _paths(folder: str, entries: Iterable[_Entry], folders: bool) -> Iterator[str]:
    """The paths of the folders, or of the files, among the entries of a folder."""
    start = os.path.join(folder, "")
    return (start + os.fsdecode(name) for name, is_folder in entries if is_folder is folders)


def _sorted(entries: Iterator[_Entry]) -> Iterable[_Entry]:
    """The entries by the bytes of their names, to be gone through as often as one likes. Raises what they raise, and
    OSError."""
    run = sorted(islice(entries, SORTED))
    return run if len(run) < SORTED else _Merged(chain(run, entries))


class _Merged:
    """Entries of a folder that are too many for memory: sorted runs of them in a nameless file, merged as they are
    read. Raises OSError, which says where the file was to be."""

    def __init__(self, entries: Iterator[_Entry]) -> None:
        self._ends = [0]
        try:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this object
            while run := sorted(islice(entries, SORTED)):
                self._file.writelines(name + (b"/d\0" if is_folder else b"/f\0") for name, is_folder in run)
                self._ends.append(self._file.tell())
            self._file.flush()
        except OSError as error:
            why = f"{error.strerror} in TMPDIR, where names are kept that are too many for memory"
            raise OSError(error.errno, why, tempfile.gettempdir()) from None

    def __iter__(self) -> Iterator[_Entry]:
        return merge(*(self._run(start, end) for start, end in pairwise(self._ends)))

    def _run(self, start: int, end: int) -> Iterator[_Entry]:
        rest = b""
        while start < end:
            block = os.pread(self._file.fileno(), min(READ_AT_ONCE, end - start), start)
            start += len(block)
            *items, rest = (rest + block).split(b"\0")
            yield from ((item[:-2], item.endswith(b"d")) for item in items)


def glob_matcher(glob: str) -> Callable[[str], bool]:
    """Whether a glob matches a path relative to its root: one without a slash the last name in it, one with a slash
    the whole, which `./` may begin; a slash at the end says nothing.

    `*` stands for anything but a slash, `**/` for any folders or none, `?` for one letter, `[a-z]` and `[!a-z]` for one
    of those; case counts. A leading dot is a letter like others. Raises re.error.
    """
    glob = glob.rstrip("/")
    if not glob:
        raise re.error("no name matches it", glob)
    try:
        pattern = re.compile(_expression(glob.removeprefix("./").lstrip("/")), re.DOTALL)
    except re.error as error:
        raise re.error(error.msg, glob) from None
    if "/" in glob:
        return lambda path: pattern.fullmatch(path) is not None
    return lambda path: pattern.fullmatch(path, path.rfind("/") + 1) is not None


def _expression(glob: str) -> str:
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[!?\]?[^]]*\])", glob)
    return "".join(_PARTS.get(part) or _letters(part) for part in parts)


_PARTS = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def _letters(part: str) -> str:
    """A set in brackets, or plain letters."""
    if not (part.startswith("[") and part.endswith("]") and len(part) > 2):
        return re.escape(part)
    inner = part[1:-1].replace("\\", r"\\").replace("[", r"\[").replace("^", r"\^")
    negated = inner.startswith("!")
    inner = inner.removeprefix("!")
    if inner.startswith("]"):
        inner = "\\" + inner
    return f"(?!/)[{'^' if negated else ''}{inner}]"
