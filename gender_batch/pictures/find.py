"""Walk the paths a user named and give every file in them, in a fixed order, one folder at a time."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field


@dataclass
class Walk:
    """What is walked and how; after `files` has been used up, what it could not enter.

    A link to a file counts as a file; a link to a folder is entered only with `follow_links`.
    FIFOs, sockets and devices are never opened, only counted.
    """

    recursive: bool = True
    follow_links: bool = False
    unreadable_folders: list[tuple[str, str]] = field(default_factory=list)
    special_files: int = 0

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
        # Each entry: the folders still to be entered at one depth, last first, and the (device, inode) above them.
        stack: list[tuple[str, tuple[tuple[int, int], ...]]] = [(root, ())]
        while stack:
            folder, above = stack.pop()
            try:
                with os.scandir(folder) as found:
                    entries = sorted(found, key=lambda entry: os.fsencode(entry.name))
                if self.follow_links:
                    status = os.stat(folder)
                    above = (*above, (status.st_dev, status.st_ino))
            except OSError as error:
                self.unreadable_folders.append((folder, error.strerror or type(error).__name__))
                continue
            folders = []
            for entry in entries:
                if self._is_folder(entry):
                    if self.recursive and self._may_enter(entry, above):
                        folders.append((entry.path, above))
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

    def _may_enter(self, entry: os.DirEntry[str], above: tuple[tuple[int, int], ...]) -> bool:
        if not entry.is_symlink():
            return True
        if not self.follow_links:
            return False
        status = entry.stat()
        return (status.st_dev, status.st_ino) not in above  # a loop
