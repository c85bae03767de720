"""What the command line of `classify` names: pictures to score, and files to write."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from gender_batch.pictures.find import Walk

STANDARD = "-"
"""Standard input as a PATH, standard output as --out."""

LOCKED = ("--out", "--state")
"""Where nothing can be written, a run cannot lock these, and ends before the work: a night that failed, which is logged
and recorded, and no wrong use."""


def check_paths(paths: tuple[str, ...], out: str) -> None:
    """A dangling link among the PATHs gets its row as it would in a folder; a name that is nothing is a mistake.

    Raises UsageError."""
    for path in paths:
        if path != STANDARD and not os.path.lexists(path):
            raise click.UsageError(f"PATH {path!r} does not exist")
    if STANDARD in paths and sys.stdin is None:
        raise click.UsageError("PATH - is standard input, which is closed")
    if out == STANDARD and sys.stdout is None:
        raise click.UsageError("--out - is standard output, which is closed")


def places(options: dict[str, Path | None]) -> list[Path | None]:
    """Where the files of these options really are, links followed. Each must be another file, in a folder that is
    there and can be written to, and no device or FIFO, in whose place a file would be put. Raises UsageError."""
    places: dict[Path, str] = {}
    for option, path in options.items():
        if path is None:
            continue
        place = resolved(option, path)
        if not place.is_file() and os.path.lexists(place):
            raise click.UsageError(f"{option} {path}: not a file, and would be replaced by one; name another file")
        if not place.parent.is_dir():
            raise click.UsageError(f"{option} {path}: the folder {place.parent} does not exist")
        if option not in LOCKED:
            check_writable(option, path, place.parent)
        if place in places:
            raise click.UsageError(f"{places[place]} and {option} are both {path}; name another file for one of them")
        places[place] = option
    found = {option: place for place, option in places.items()}
    return [found.get(option) for option in options]


def resolved(option: str, path: Path) -> Path:
    """Where it really is, links followed. Raises UsageError."""
    try:
        place = path.resolve()
        to_itself = place.is_symlink()  # from Python 3.13
    except OSError as error:
        raise click.UsageError(f"{option} {path}: {error.strerror}") from None
    except RuntimeError:
        to_itself = True
    if to_itself:
        raise click.UsageError(f"{option} {path}: a link that leads to itself; name another place")
    return place


def check_writable(option: str, path: Path, folder: Path) -> None:
    """Before the work, and not after it. Raises UsageError."""
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        told = f"{option} {path}: {folder} cannot be written to"
        raise click.UsageError(f"{told}; see to its permissions, or name another place")


def suffix_of(out: str) -> str:
    """The format of the rows, `.csv` on standard output. Raises UsageError."""
    from gender_batch.outputs.rows import format_of

    if out == STANDARD:
        return ".csv"
    try:
        return format_of(Path(out))
    except ValueError as error:
        raise click.UsageError(f"--out {error}") from None


def files(walk: Walk, paths: tuple[str, ...], nul: bool) -> Iterator[str]:
    """All that the PATHs name, in their order; with `nul` a list on standard input is separated by NUL."""
    for path in paths:
        if path == STANDARD:
            yield from _listed(b"\0" if nul else b"\n")
        else:
            yield from walk.files([path])


def _listed(separator: bytes) -> Iterator[str]:
    """Names on standard input, each a file; empty ones are skipped."""
    rest = b""
    standard_input = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115 - unbuffered: names come as they are sent
    while block := _read(standard_input):
        *names, rest = (rest + block).split(separator)
        yield from map(_name, filter(None, names))
    if rest:
        yield _name(rest)


def _read(standard_input: FileIO) -> bytes:
    try:
        return standard_input.read(1 << 16)
    except OSError as error:  # which names no file
        raise OSError(error.errno, f"{error.strerror}, reading the list on standard input") from None


def _name(listed: bytes) -> str:
    if b"\0" in listed:
        raise click.UsageError("the list on standard input is separated by NUL: add -0")
    if listed.endswith(b"\r") and not os.path.lexists(listed):
        listed = listed[:-1]  # a list from Windows, unless a file is really called so
    return os.fsdecode(listed)
