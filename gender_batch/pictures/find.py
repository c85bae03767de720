"""Walk the paths a user named and give every file in them, in a fixed order, one folder at a time."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field


@dataclass
class Walk:
    """What is walked and how; after `files` has been used up, what it could not enter.

    A link to a file counts as a file; a link to a folder is entered only with `follow_links`, and then every folder
    once, by whichever way comes first. FIFOs, sockets and devices are never opened, only counted.
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

    def __post_init__(self) -> None:
        self._included = [glob_matcher(glob) for glob in self.include]
        self._excluded = [glob_matcher(glob) for glob in self.exclude]

    def files(self, roots: Iterable[str]) -> Iterator[str]:
        """Paths as `find` prints them: the root as given, then the names below it, sorted within a folder.

        A root that is not a folder is given as it is, whether or not it exists: its row tells.
        """
        for root in roots:
            try:
                mode = os.stat(root).st_mode
            except (OSError, ValueError):
                yield root
                continue
            if stat.S_ISDIR(mode):
                yield from self._folder(root)
            else:
                yield root

    def _folder(self, root: str) -> Iterator[str]:
        device = os.stat(root).st_dev if self.one_file_system else None
        entered: set[tuple[int, int]] = set()
        filtered = bool(self.include or self.exclude)
        below = len(os.path.join(root, ""))  # where names relative to the root begin
        stack = [root]  # folders still to be entered, the next one last
        while stack:
            folder = stack.pop()
            try:
                if self.follow_links or device is not None:
                    status = os.stat(folder)
                    if device is not None and status.st_dev != device:
                        self.other_file_systems += 1
                        continue
                    if self.follow_links:
                        if (status.st_dev, status.st_ino) in entered:
                            continue
                        entered.add((status.st_dev, status.st_ino))
                with os.scandir(folder) as found:
                    entries = sorted(found, key=lambda entry: os.fsencode(entry.name))
            except OSError as error:
                self.unreadable_folders.append((folder, error.strerror or type(error).__name__))
                continue
            folders = []
            for entry in entries:
                if filtered and any(matches(entry.path[below:]) for matches in self._excluded):
                    continue
                if self._is_folder(entry):
                    if self.recursive and (self.follow_links or not entry.is_symlink()):
                        folders.append(entry.path)
                elif filtered and self._included and not any(m(entry.path[below:]) for m in self._included):
                    continue
                elif self._is_file(entry):
                    yield entry.path
                else:
                    self.special_files += 1
            stack.extend(reversed(folders))

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


def glob_matcher(glob: str) -> Callable[[str], bool]:
    """Whether a glob matches a path relative to its root: one without a slash the last name in it, one with a slash
    the whole.

    `*` stands for anything but a slash, `**/` for any folders or none, `?` for one letter, `[a-z]` and `[!a-z]` for one
    of those; case counts. A leading dot is a letter like others.
    """
    pattern = re.compile(_expression(glob.lstrip("/")), re.DOTALL)
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
