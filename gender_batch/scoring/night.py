"""One run over a state: which pictures must be scored, and in the end the rows of all, in the order they were found."""

from __future__ import annotations

import os
import tempfile
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gender_batch.pictures.read import content_digest
from gender_batch.prediction import Prediction
from gender_batch.scoring.state import Known, Stamp, State, StateError

CHUNK = 1000
"""Rows fetched from the state at a time."""


@dataclass(frozen=True)
class Policy:
    """Which known pictures are scored again, besides those whose size or time of change differ, and those whose row
    tells of a moment and not of their content.

    `verify_content`: those whose content differs; and new ones are not scored whose content is known.
    """

    retry_failed: bool = False
    verify_content: bool = False


class Scoring(Protocol):
    """Scores paths, in their order."""

    def rows(self, paths: Iterable[str]) -> Iterator[Prediction]: ...


class Night:
    """A context manager: `score` what must be scored, then draw the `rows`. Memory does not grow with the pictures.

    Counts while it goes: `found` files, of which `scored` were scored in this run; `told` is called after each.
    All methods raise StateError.
    """

    def __init__(self, state: State, policy: Policy, told: Callable[[Night], None] = lambda _: None) -> None:
        self.state, self.policy, self.told = state, policy, told
        self.found = self.scored = 0
        self._folder = os.getcwdb() + b"/"
        self._expected: deque[tuple[int, Stamp | None, bytes | None]] = deque()
        self._spool = _Spool(state.path.parent)
        self._seen = bytearray()

    def __enter__(self) -> Night:
        return self

    def __exit__(self, *_: object) -> None:
        self._spool.close()

    def score(self, scorer: Scoring, paths: Iterable[str]) -> None:
        """Bring the state up to date with the files. Raises what the scorer raises, too."""
        for row in scorer.rows(self._to_score(paths)):
            identifier, stamp, content = self._expected.popleft()
            if content is not None and _stamp(row.path) != stamp:
                content = None  # it changed meanwhile: whose digest this is cannot be told
            self.state.record(identifier, row, content)
            self.scored += 1
            self.told(self)

    def rows(self) -> Iterator[Prediction]:
        """One row per path that was scored or known, in the order of the paths."""
        for identifiers in self._spool.chunks():
            wanted = {abs(identifier) for identifier in identifiers}
            rows = self.state.rows(wanted)
            if len(rows) != len(wanted):
                raise StateError(f"{self.state.path}: {len(wanted) - len(rows)} rows are missing: a defect of ours")
            self._seen.extend(bytes(max(0, max(rows) + 1 - len(self._seen))))
            for identifier in identifiers:
                path, answer = rows[abs(identifier)]
                self._seen[abs(identifier)] = 1
                # Below zero: it was named relative to the current folder.
                name = path.removeprefix(self._folder) if identifier < 0 else path
                yield Prediction(os.fsdecode(name), *answer)

    def forget_others(self) -> None:
        """Let the state forget pictures that were not among the rows; to be called when these are published."""
        if self._seen.count(1) != self.state.count():
            self.state.keep_only(self._seen)

    def _to_score(self, paths: Iterable[str]) -> Iterator[str]:
        """Those paths that must be scored; every path's id goes to the spool."""
        for path in paths:
            self.found += 1
            relative = not path.startswith("/")
            key = self._folder + os.fsencode(path) if relative else os.fsencode(path)
            stamp = _stamp(path)
            content = content_digest(path) if self.policy.verify_content else None
            known = self.state.find(key)
            answered = self._answered(known, key, stamp, content)
            identifier = answered or self.state.expect(key, stamp)
            self._spool.add(-identifier if relative else identifier)
            if answered is None:
                self._expected.append((identifier, stamp, content))
                yield path
            self.told(self)

    def _answered(self, known: Known | None, key: bytes, stamp: Stamp | None, content: bytes | None) -> int | None:
        """The id of the row that answers for the picture, or None: it must be scored."""
        if known is None:
            source = self.state.same_content(content) if content else None
            return self.state.copy(source, key, stamp) if source else None
        if not known.current or stamp != known.stamp or not known.tells_of_content:
            return None
        if self.policy.retry_failed and known.failed:
            return None
        if self.policy.verify_content:
            if known.content is None and content:
                self.state.learn(known.id, content)
            elif known.content != content:
                return None
        return known.id


def _stamp(path: str) -> Stamp | None:
    """None where it cannot be told: such a picture is never taken for known."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    # SQLite has 64 bits; a file of the year 5138, which tmpfs allows, needs more.
    return Stamp(status.st_size, status.st_mtime_ns) if abs(status.st_mtime_ns) < 2**63 else None


class _Spool:
    """Numbers in the order they came, in a nameless file in a folder."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close()
        self._recent = array("q")

    def close(self) -> None:
        self._file.close()

    def add(self, number: int) -> None:
        self._recent.append(number)
        if len(self._recent) >= CHUNK:
            self._recent.tofile(self._file)
            del self._recent[:]

    def chunks(self) -> Iterator[array[int]]:
        self._recent.tofile(self._file)
        self._file.seek(0)
        while block := self._file.read(8 * CHUNK):
            yield array("q", block)
