"""The exit codes, and how an error becomes one line and a code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from types import FrameType
from typing import NoReturn

import click

from gender_batch.evaluation.text import printable


class Exit(IntEnum):
    """What the exit code tells the caller."""

    DONE = 0
    FATAL = 1
    USAGE = 2
    FAILED_PICTURES = 3
    NO_PICTURE = 4
    LOCKED = 5
    NO_GPU = 6
    DEADLINE = 7
    DRIFT = 8


MEANINGS = {
    Exit.DONE: "done",
    Exit.FATAL: "fatal; the message says whether anything was published",
    Exit.USAGE: "wrong use",
    Exit.FAILED_PICTURES: "done, but more pictures failed than --max-error-rate allows, or a folder could not be read",
    Exit.NO_PICTURE: "no picture found, or fewer than --min-pictures; nothing published",
    Exit.LOCKED: "another run is writing the same files",
    Exit.NO_GPU: "--device cuda, and no GPU is usable",
    Exit.DEADLINE: "stopped at its --deadline; the same command goes on",
    Exit.DRIFT: "compare found a drift",
}

EPILOG = (
    "Exit codes: " + "; ".join(f"{code:d} {meaning}" for code, meaning in MEANINGS.items()) + "; 128+N stopped by "
    "signal N; the same command goes on."
)

SOON = 0.01
"""Seconds after which a signal that was lost is raised once more."""


class Interrupted(BaseException):
    """A signal asked the program to stop. Not an Exception: no decoder's safety net may swallow it."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def note(text: str) -> None:
    """A line on standard error. A full disk under it, or a reader that has gone, is no reason to stop."""
    with suppress(OSError):
        click.echo(text, err=True)


def tell(message: str) -> None:
    # It may quote a name, or what stands in a file.
    note(printable(f"gender-batch: {message}"))


def fail(message: str, code: Exit = Exit.FATAL, tell: Callable[[str], None] = tell) -> NoReturn:
    tell(message)
    sys.exit(code)


@contextmanager
def stopping_on_signals(
    outcome: str | Callable[[], str], deadline: float | None = None, tell: Callable[[str], None] = tell
) -> Iterator[None]:
    """SIGINT and SIGTERM unwind the stack, so that everything is closed, and exit with 128 + their number.

    So does the end of `deadline` seconds, with an exit code of its own. `outcome` says what there is then,
    by a function where that changes.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        # A second signal while things are closed must not cut that short.
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(name, signal.SIG_IGN)
        raise Interrupted(number)

    def unraisable(error: sys.UnraisableHookArgs) -> None:
        # In the callback of a weak reference, of which torch has many, Python cannot pass it on: a little later it can.
        if not isinstance(error.exc_value, Interrupted):
            hook(error)
            return
        number = error.exc_value.number
        signal.signal(signal.SIGALRM, lambda *_: stop(number, None))
        signal.setitimer(signal.ITIMER_REAL, SOON)

    hook, sys.unraisablehook = sys.unraisablehook, unraisable
    before = {name: signal.signal(name, stop) for name in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    if deadline is not None:
        signal.setitimer(signal.ITIMER_REAL, deadline)
    try:
        yield
    except Interrupted as stopped:
        told = outcome if isinstance(outcome, str) else outcome()
        if stopped.number == signal.SIGALRM:
            fail(f"stopped at its --deadline. {told}", Exit.DEADLINE, tell)
        tell(f"stopped by {signal.Signals(stopped.number).name}. {told}")
        sys.exit(128 + stopped.number)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for name, handler in before.items():
            signal.signal(name, handler)
        sys.unraisablehook = hook


@contextmanager
def telling() -> Iterator[None]:
    """A standard output that takes no more, as on a full disk, becomes one line. Where its reader has had enough, click
    ends the program with exit code 1 and no word."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        # Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        fail(f"standard output: {error.strerror}")


@contextmanager
def needing_extra(extra: str) -> Iterator[None]:
    """A missing package of an extra becomes the line that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("gender_batch"):
            raise
        fail(f"this command needs {error.name}: pip install 'gender-batch[{extra}]'")
