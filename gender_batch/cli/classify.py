"""`gender-batch classify`: one row per picture."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gender_batch.cli.exits import Exit, fail, stopping_on_signals
from gender_batch.cli.options import device_option, model_option, workers_option

if TYPE_CHECKING:
    from gender_batch.pictures.find import Walk
    from gender_batch.scoring.run import Scorer, Summary

STANDARD = "-"
"""Standard input as a PATH, standard output as --out."""


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(exists=True, allow_dash=True))
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Where the rows go: .csv, .json or .jsonl; - streams CSV to standard output.",
)
@model_option
@device_option
@workers_option
@click.option(
    "--max-error-rate",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 1),
    metavar="R",
    help="Share of failed pictures up to which the run counts as done (exit 0).",
)
@click.option(
    "--picture-timeout",
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    type=click.FloatRange(0.1),
    help="Longest time for one picture.",
)
@click.option("--no-recursive", is_flag=True, help="Do not enter folders within the folders.")
@click.option("--follow-links", is_flag=True, help="Enter folders that are symbolic links; loops are noticed.")
@click.option("-0", "--null", "nul", is_flag=True, help="The list on standard input is separated by NUL, not newline.")
def classify(
    paths: tuple[str, ...], out: str, model: Path | None, device: str, workers: int | None,
    max_error_rate: float, picture_timeout: float, no_recursive: bool, follow_links: bool, nul: bool,
) -> None:  # fmt: skip
    """Write one row for every file in the PATHs: folders, files, or - for a list of files on standard input.

    A row says path, status, label, confidence, a probability per class, faces, width, height and error. A picture
    that cannot be scored keeps its row, with the reason; whether a file is a picture is decided by its content.
    FILE is replaced when the run is done, and never half written.
    """
    from gender_batch.cli.progress import ScoringProgress
    from gender_batch.model.metadata import ModelError
    from gender_batch.model.session import NoGpuError
    from gender_batch.outputs.publish import LockedError, is_own_file, locked, published
    from gender_batch.outputs.rows import write_rows
    from gender_batch.pictures.find import Walk
    from gender_batch.prediction import columns
    from gender_batch.scoring.pool import PoolError
    from gender_batch.scoring.run import Options, Scorer, Summary

    target = Path(out)
    suffix = ".csv" if out == STANDARD else _suffix(target)
    walk = Walk(recursive=not no_recursive, follow_links=follow_links)
    options = Options(model, device, workers, picture_timeout)
    files = (path for path in _files(walk, paths, nul) if not is_own_file(path, target))

    summary = Summary()
    started = time.monotonic()
    try:
        with stopping_on_signals("Nothing was published; the same command starts again."), ExitStack() as stack:
            first = next(files, None)
            if first is None:
                _tell_skipped(walk)
                fail(f"no file found in {', '.join(paths)}; nothing is written", Exit.NO_PICTURE)
            if out != STANDARD:
                stack.enter_context(locked(target))
            scorer = stack.enter_context(Scorer(options))
            click.echo(f"device: {scorer.device.name} ({scorer.device.reason})", err=True)
            click.echo(f"model: {scorer.model}", err=True)
            file = sys.stdout.buffer if out == STANDARD else stack.enter_context(published(target))
            labels = scorer.metadata.labels
            rows = stack.enter_context(write_rows(file, suffix, columns(labels)))
            progress = stack.enter_context(ScoringProgress())
            for row in scorer.rows(chain([first], files)):
                rows.write(row.values(len(labels)))
                summary.add(row)
                progress.row(summary.pictures, summary.failed)
    except LockedError as error:
        fail(str(error), Exit.LOCKED)
    except NoGpuError as error:
        fail(str(error), Exit.NO_GPU)
    except (ModelError, PoolError) as error:
        fail(f"{error}. Nothing is published")
    except BrokenPipeError:
        # Who read standard output has had enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        fail("standard output was closed before the last row")
    except OSError as error:
        fail(f"{target.parent.absolute()}: {error.strerror}; {target.name} is left as it was")

    _tell_summary(summary, scorer, time.monotonic() - started)
    _tell_skipped(walk)
    if summary.failed > max_error_rate * summary.pictures or walk.unreadable_folders:
        sys.exit(Exit.FAILED_PICTURES)


def _suffix(target: Path) -> str:
    from gender_batch.outputs.rows import format_of

    if not target.absolute().parent.is_dir():
        raise click.UsageError(f"--out {target}: the folder {target.parent} does not exist")
    try:
        return format_of(target)
    except ValueError as error:
        raise click.UsageError(f"--out {error}") from None


def _files(walk: Walk, paths: tuple[str, ...], nul: bool) -> Iterator[str]:
    for path in paths:
        if path == STANDARD:
            yield from _listed(b"\0" if nul else b"\n")
        else:
            yield from walk.files([path])


def _listed(separator: bytes) -> Iterator[str]:
    """Names on standard input, each a file; empty ones are skipped."""
    rest = b""
    standard_input = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115 - unbuffered: names come as they are sent
    while block := standard_input.read(1 << 16):
        *names, rest = (rest + block).split(separator)
        yield from (os.fsdecode(name) for name in names if name)
    if rest:
        yield os.fsdecode(rest)


def _tell_summary(summary: Summary, scorer: Scorer, seconds: float) -> None:
    def counts(items: Iterable[tuple[str, int]]) -> str:
        return ", ".join(f"{name} {count:,}" for name, count in items)

    lines = [
        f"pictures: {summary.pictures:,} in {seconds:.1f} s, {summary.pictures / seconds:,.0f} pictures/s, "
        f"{scorer.workers} workers on {scorer.device.name}",
        f"status:   {counts((status.value, count) for status, count in summary.statuses.most_common())}",
        f"labels:   {counts(summary.labels.most_common()) or 'none'}",
    ]
    click.echo("\n".join(lines), err=True)


def _tell_skipped(walk: Walk) -> None:
    for folder, reason in walk.unreadable_folders[:20]:
        click.echo(f"folder not read: {folder!r}: {reason}", err=True)
    if len(walk.unreadable_folders) > 20:
        click.echo(f"folders not read: {len(walk.unreadable_folders):,} in all", err=True)
    if walk.special_files:
        click.echo(f"not opened: {walk.special_files:,} FIFOs, sockets or devices", err=True)
