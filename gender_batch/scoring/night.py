"""One run over a state: which pictures must be scored, and the rows of all, in the order they were found."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from gender_batch.pictures.read import content_digest
from gender_batch.prediction import Prediction
from gender_batch.scoring.state import Known, Stamp, State, StateError

CHUNK = 256
"""Rows fetched from the state, and given, at a time: in the 2 ms that it takes no worker runs out of work."""


@dataclass(frozen=True)
class Policy:
    """Which known pictures are scored again, besides those whose size or time of change differ, and those whose row
    tells of a moment and not of their content.

    `verify_content`: those whose content differs, or was not asked for when they were scored; and new ones are not
    scored whose content is known.
    """

    retry_failed: bool = False
    verify_content: bool = False


class Scoring(Protocol):
    """Scores paths, in their order."""

    def rows(self, paths: Iterable[str]) -> Iterator[Prediction]: ...


class Night:
    """A context manager: draw the `rows`, for which what must be scored is scored. Memory does not grow with the
    pictures.

    Counts while it goes: `found` files, of which `scored` were scored in this run, and `given` have had their row;
    `told` is called after each. `giving` is the seconds that rows took, once they were known, with all that was done
    to them by who drew them. All methods raise StateError.
    """

    def __init__(self, state: State, policy: Policy, told: Callable[[Night], None] = lambda _: None) -> None:
        self.state, self.policy, self.told = state, policy, told
        self.found = self.scored = self.given = 0
        self.giving = 0.0
        self._folder = os.getcwdb() + b"/"
        self._expected: deque[_Expected] = deque()
        self._recorded: dict[int, Prediction] = {}
        """Rows of this night that are still to be given, by their ids."""
        self._order = _Order(state)
        self._seen = bytearray()

    def __enter__(self) -> Night:
        return self

    def __exit__(self, *_: object) -> None:
        self._order.close()

    def rows(self, scorer: Scoring, paths: Iterable[str]) -> Iterator[Prediction]:
        """One row per path, in their order, soon after it is known: while they are written others are scored.

        Raises what the scorer raises, too.
        """
        for row in scorer.rows(self._to_score(paths)):
            identifier, _, stamp, content = self._expected.popleft()
            if content is not None and _stamp(row.path) != stamp:
                content = None  # it changed meanwhile: whose digest this is cannot be told
            self.state.record(identifier, row, content)
            self._recorded[identifier] = row
            self.scored += 1
            self.told(self)
            yield from self._known_rows(CHUNK)
        yield from self._known_rows(1)

    def _known_rows(self, least: int) -> Iterator[Prediction]:
        """The next rows in chunks, as long as at least so many are known."""
        while (count := min(CHUNK, self._first_expected() - self.given)) >= least:
            began = time.perf_counter()
            identifiers = self._order.numbers(self.given, count)
            wanted = {abs(identifier) for identifier in identifiers}
            mine = {one: self._recorded[one] for one in wanted & self._recorded.keys()}
            rows = self.state.rows(wanted - mine.keys())
            if missing := wanted - mine.keys() - rows.keys():
                if missing <= {expected.identifier for expected in self._expected}:
                    return  # they were named once more, have changed, and are scored again
                raise StateError(f"{self.state.path}: {len(missing)} rows are missing: a defect of ours")
            for one in mine:
                del self._recorded[one]
            self._seen.extend(bytes(max(0, max(wanted) + 1 - len(self._seen))))
            for identifier in identifiers:
                one, relative = abs(identifier), identifier < 0  # below zero: it was named from the current folder on
                self._seen[one] = 1
                self.given += 1
                self.told(self)
                if one in mine:
                    yield self._named(mine[one], relative)
                else:
                    path, answer = rows[one]
                    name = path.removeprefix(self._folder) if relative else path
                    yield Prediction(os.fsdecode(name), *answer)
            self.giving += time.perf_counter() - began

    def _named(self, row: Prediction, relative: bool) -> Prediction:
        """The row by a name that may be another than it was scored by: a picture may be named twice."""
        if relative != row.path.startswith("/"):
            return row
        path = os.fsencode(row.path)
        name = path.removeprefix(self._folder) if relative else self._folder + path
        return replace(row, path=os.fsdecode(name))

    def _first_expected(self) -> int:
        """How many of the paths so far have an answer before the first that has none."""
        return self._expected[0].place if self._expected else self.found

    def forget_others(self) -> None:
        """Let the state forget pictures that were not among the rows; to be called when these are published."""
        if self._seen.count(1) != self.state.count():
            self.state.keep_only(self._seen)

    def _to_score(self, paths: Iterable[str]) -> Iterator[str]:
        """Those paths that must be scored; every path's id is noted in their order."""
        for path in paths:
            relative = not path.startswith("/")
            key = self._folder + os.fsencode(path) if relative else os.fsencode(path)
            stamp = _stamp(path)
            content = content_digest(path) if self.policy.verify_content else None
            known = self.state.find(key)
            answered = self._answered(known, key, stamp, content)
            identifier = answered or self.state.expect(key, stamp)
            self._order.add(-identifier if relative else identifier)
            self.found += 1
            self.told(self)
            if answered is None:
                self._recorded.pop(identifier, None)  # named once more, it has changed
                self._expected.append(_Expected(identifier, self.found - 1, stamp, content))
                yield path

    def _answered(self, known: Known | None, key: bytes, stamp: Stamp | None, content: bytes | None) -> int | None:
        """The id of the row that answers for the picture, or None: it must be scored."""
        if known is None:
            source = self.state.same_content(content) if content else None
            return self.state.copy(source, key, stamp) if source else None
        if not known.current or stamp != known.stamp or not known.tells_of_content:
            return None
        if self.policy.retry_failed and known.failed:
            return None
        # Of which content a row without a hash tells is not known: the file may have changed since, at the same size
        # and time.
        if self.policy.verify_content and (known.content is None or known.content != content):
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


class _Expected(NamedTuple):
    """A picture that is being scored: its id, its place among the paths, and what its file was like before."""

    identifier: int
    place: int
    stamp: Stamp | None
    content: bytes | None


class _Order:
    """Numbers in the order they came, in a nameless file beside the state. Raises StateError."""

    def __init__(self, state: State) -> None:
        self._errors = state.errors
        with self._errors:
            self._file = tempfile.TemporaryFile(dir=state.path.parent)  # noqa: SIM115 - closed by close()

    def close(self) -> None:
        with suppress(OSError):  # on a full disk; nobody reads it any more
            self._file.close()

    def add(self, number: int) -> None:
        with self._errors:
            self._file.write(number.to_bytes(8, sys.byteorder, signed=True))

    def numbers(self, start: int, count: int) -> array[int]:
        """So many of them from that place on."""
        with self._errors:
            self._file.flush()
            return array("q", os.pread(self._file.fileno(), 8 * count, 8 * start))
