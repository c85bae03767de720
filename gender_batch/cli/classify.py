"""`gender-batch classify`: one row per picture."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gender_batch.cli.exits import Exit, fail, stopping_on_signals
from gender_batch.cli.options import Numbers, device_option, duration, face_options, model_option, workers_option
from gender_batch.cli.places import STANDARD, check_paths, files, places, suffix_of

if TYPE_CHECKING:
    from gender_batch.cli.log import Log
    from gender_batch.cli.recording import Run
    from gender_batch.evaluation.sheet import Sheet


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, readable=False, allow_dash=True),
    metavar="FILE",
    help="Where the rows go: .csv, .json or .jsonl; - streams CSV to standard output.",
)
@model_option
@device_option
@workers_option
@face_options
@click.option("--every-face", is_flag=True, help="Write a row for each face of a picture, the main one first.")
@click.option(
    "--max-error-rate",
    default=0.0,
    show_default=True,
    type=Numbers(0, 1),
    metavar="R",
    help="Exit with code 3 if more than this share of the pictures fails.",
)
@click.option(
    "--picture-timeout",
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    type=Numbers(0.1),
    help="Longest time for one picture.",
)
@click.option(
    "--state",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Remember the answers in FILE: the next run scores only new and changed pictures.",
)
@click.option("--retry-failed", is_flag=True, help="Score pictures again that failed in an earlier run.")
@click.option(
    "--verify-content",
    is_flag=True,
    help="Detect changes by a hash of the content, not by size and time alone. Reads every file; moved and copied "
    "pictures are not scored again.",
)
@click.option("--fresh", is_flag=True, help="Forget earlier answers and score every picture again.")
@click.option(
    "--min-pictures",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    metavar="N",
    help="Publish nothing if fewer pictures are found: the disk may not be mounted.",
)
@click.option(
    "--deadline",
    type=duration,
    metavar="TIME",
    help="Stop after 90s, 15m or 6h; run the same command again to continue.",
)
@click.option(
    "--pseudonymise",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="KEYFILE",
    help="Write a keyed hash (HMAC-SHA-256) of each path instead of the path.",
)
@click.option(
    "--spreadsheet-safe",
    is_flag=True,
    help="Put ' before text in a CSV that a spreadsheet would take for a formula, and quotes around all text.",
)
@click.option(
    "--summary",
    type=click.Path(dir_okay=False, readable=False, path_type=Path),
    metavar="FILE",
    help="Write facts and counts of the run as JSON; `gender-batch compare` compares two such files.",
)
@click.option(
    "--gallery",
    type=click.Path(dir_okay=False, readable=False, path_type=Path),
    metavar="FILE",
    help="Write an HTML page of pictures to look at: the least certain, several people, no face.",
)
@click.option(
    "--log-format",
    default="text",
    show_default=True,
    type=click.Choice(["text", "json"]),
    help="What goes to standard error: lines for people, or JSON objects for log collectors.",
)
@click.option("--no-recursive", is_flag=True, help="Do not enter folders within the folders.")
@click.option("--follow-links", is_flag=True, help="Enter folders that are symbolic links, too; each folder once.")
@click.option("--one-file-system", is_flag=True, help="Do not enter folders on another file system than their PATH's.")
@click.option(
    "--include",
    multiple=True,
    metavar="GLOB",
    help="Of the files in folders, score only those that match, such as '*.jpg'. A glob with a slash, such as "
    "'thumbs/**/*.jpg', is matched against the path below PATH.",
)
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave out files and folders that match, such as '.*'.")
@click.option("-0", "--null", "nul", is_flag=True, help="The list on standard input is separated by NUL, not newline.")
def classify(
    paths: tuple[str, ...], out: str, model: Path | None, device: str, workers: int | None,
    faces: str, detector: Path | None, no_face: str, every_face: bool, max_error_rate: float, picture_timeout: float,
    state: Path | None, retry_failed: bool, verify_content: bool, fresh: bool, min_pictures: int,
    deadline: float | None, pseudonymise: Path | None, spreadsheet_safe: bool, summary: Path | None,
    gallery: Path | None, log_format: str, no_recursive: bool, follow_links: bool, one_file_system: bool,
    include: tuple[str, ...], exclude: tuple[str, ...], nul: bool,
) -> None:  # fmt: skip
    """Write one row for every file in the PATHs: folders, files, or - for a list of files on standard input.

    A row says path, status, label, confidence, a probability per class, the number of faces, width, height, error,
    the face's box and the reason of `uncertain`. A picture that cannot be scored keeps its row; whether a file is a
    picture is decided by its content.
    FILE is replaced when the run is done, and never half written. If a run is stopped, the same command continues
    where it stopped.
    """
    from gender_batch.cli.log import Log
    from gender_batch.cli.progress import ScoringProgress
    from gender_batch.cli.recording import Run, recorded
    from gender_batch.outputs import privacy
    from gender_batch.outputs.publish import OwnFiles, journal_of, locked, published, remove_leftovers
    from gender_batch.outputs.rows import write_rows
    from gender_batch.pictures.find import Walk, counting
    from gender_batch.prediction import columns
    from gender_batch.scoring.night import Night, Policy
    from gender_batch.scoring.run import Faces, Options, Scorer
    from gender_batch.scoring.state import FILES, State, remove_state

    check_paths(paths, out)
    suffix = suffix_of(out)
    named = {
        "--out": None if out == STANDARD else Path(out), "--state": state, "--summary": summary, "--gallery": gallery
    }  # fmt: skip
    target, state, summary, gallery = places(named)
    journal = journal_of(target) if target else None
    # Standard output cannot be taken back: without --state there is nothing to go on with.
    known = state or journal
    try:
        walk = Walk(not no_recursive, follow_links, one_file_system, include, exclude)
    except re.error as error:
        raise click.UsageError(f"--include, --exclude: {error.pattern!r} is not a valid glob: {error.msg}") from None
    ours = (*named.values(), target, journal, state, summary, gallery, pseudonymise)
    own = OwnFiles(filter(None, ours), FILES)
    found: Iterator[str] = (path for path in files(walk, paths, nul) if path not in own)
    log = Log(as_json=log_format == "json")
    again = "starts again" if not known else "without --fresh goes on" if fresh else "goes on"
    run = Run(walk, target, f"the same command {again}")

    with ExitStack() as ending:
        # From the inside out: what went wrong is told, the run is recorded, the locks are given back.
        locks = ending.enter_context(ExitStack())
        if summary:
            ending.enter_context(recorded(run, summary, log))
        ending.enter_context(_errors_told(log, run))
        ending.enter_context(stopping_on_signals(run.outcome, deadline, log.error))
        name_of = privacy.pseudonymiser(pseudonymise) if pseudonymise else str
        for path in (target, state):
            if path:
                locks.enter_context(locked(path))
                remove_leftovers(path)
        first = next(found, None)
        if first is None:
            run.tell_skipped(log)
            fail(f"no file found in {', '.join(paths)}. {run.outcome()}", Exit.NO_PICTURE, log.error)
        found = chain([first], found)
        if known and fresh:
            remove_state(known)

        with ExitStack() as stack:
            looking = Faces(faces, detector, every_face, no_face == "whole")
            options = Options(model, device, workers, picture_timeout, looking)
            scorer = run.scorer = stack.enter_context(Scorer(options))
            labels = scorer.metadata.labels
            log.say("device", f"device: {scorer.device.name} ({scorer.device.reason})", **vars(scorer.device))
            log.say("model", f"model: {scorer.model}", file=str(scorer.model))
            if scorer.lacks_detector:
                log.say("warning", f"warning: {scorer.lacks_detector}", message=scorer.lacks_detector)
            kept = stack.enter_context(State(known, scorer.digest())) if known else None
            # A list on standard input cannot be read twice; what an earlier run knew is the best guess.
            earlier = kept.count() if kept else 0
            expected = (lambda: earlier) if STANDARD in paths else counting(walk, paths)
            progress = stack.enter_context(ScoringProgress(log, expected))
            sheet = _sheet() if gallery else None
            night = None
            if kept:
                policy = Policy(retry_failed, verify_content)
                night = run.night = stack.enter_context(Night(kept, policy, progress.night))
            with published(target, run.tell_published) if target else nullcontext(sys.stdout.buffer) as file:
                with write_rows(file, suffix, columns(labels), spreadsheet_safe) as rows, run.timed():
                    for picture in night.rows(scorer, found) if night else scorer.rows(found):
                        for row in picture.every_face() if every_face else (picture,):
                            name, *others = row.values(len(labels))
                            rows.write([name_of(str(name)), *others])
                        run.summary.add(picture)
                        if sheet:
                            sheet.add(picture)
                        if not night:
                            progress.row(run.summary.pictures, run.summary.failed)
                if run.summary.pictures < min_pictures:
                    few = f"{run.summary.pictures:,} pictures found, fewer than --min-pictures {min_pictures:,}"
                    fail(f"{few}: is everything mounted? {run.outcome()}", Exit.NO_PICTURE, log.error)
                # Before the rows appear: there are both, or neither.
                if sheet and gallery:
                    sheet.write(gallery, labels, scorer.workers, name_of)
            run.tell_published()
            # A folder that could not be read tonight has not lost its pictures; nor has one that a link leads to.
            if night and not (walk.unreadable_folders or walk.lost_links):
                night.forget_others()
        if known and not state:
            remove_state(known)

        # Divided: 0.29 * 100 is a little less than 29.
        if too_many := run.summary.failed / run.summary.pictures > max_error_rate:
            told = f"{run.summary.failed:,} of {run.summary.pictures:,} pictures failed, as their rows tell; more than"
            log.say("too many failed", f"{told} --max-error-rate {max_error_rate:g}", failed=run.summary.failed)
        run.tell_summary(log, scorer)
        run.tell_skipped(log)
        if too_many or walk.unreadable_folders:
            sys.exit(Exit.FAILED_PICTURES)


def _sheet() -> Sheet:
    from gender_batch.evaluation.sheet import Sheet

    return Sheet()


@contextmanager
def _errors_told(log: Log, run: Run) -> Iterator[None]:
    """What ends a run becomes one line, with the outcome of the run, and the exit code."""
    from gender_batch.faces.fetch import DetectorError
    from gender_batch.model.metadata import ModelError
    from gender_batch.model.session import GpuError, NoGpuError
    from gender_batch.outputs.privacy import KeyFileError
    from gender_batch.outputs.publish import LockedError
    from gender_batch.scoring.pool import PoolError
    from gender_batch.scoring.state import StateError, volume_of

    try:
        yield
    except LockedError as error:
        fail(str(error), Exit.LOCKED, log.error)
    except NoGpuError as error:
        fail(str(error), Exit.NO_GPU, log.error)
    except (ModelError, GpuError, DetectorError, PoolError, StateError, KeyFileError) as error:
        told = str(error)
        fail(f"{told if told.endswith('?') else told + '.'} {run.outcome()}", Exit.FATAL, log.error)
    except BrokenPipeError:
        # Who read standard output has had enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        fail("standard output was closed before the last row", Exit.FATAL, log.error)
    except OSError as error:
        told = str(error.strerror or error)
        if isinstance(error.filename, str | Path):
            told = f"{error.filename}: {told} (volume {volume_of(Path(error.filename))})"
        fail(f"{told}. {run.outcome()}", Exit.FATAL, log.error)
