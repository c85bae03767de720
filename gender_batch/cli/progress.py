"""How a run is shown while it goes: rich on a terminal, plain lines elsewhere; always on standard error."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gender_batch.cli.exits import note
from gender_batch.evaluation.text import printable

if TYPE_CHECKING:
    from gender_batch.cli.log import Log
    from gender_batch.scoring.night import Night
    from gender_batch.training.state import Epoch

PLAIN_INTERVAL = 60.0
"""Seconds between two plain lines."""


class TrainingProgress:
    """Shows batches and epochs, and keeps the log of the run in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.console = Console(stderr=True, highlight=False)
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=self.console, transient=True, disable=not self.console.is_terminal,
        )  # fmt: skip
        self.task = self.bar.add_task("reading the pictures", total=None)
        self.told = time.monotonic()
        self.log: TextIO | None = None
        self.unlogged: list[str] = []

    def __enter__(self) -> TrainingProgress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
        if self.log:
            self.log.close()

    def reading(self, count: int) -> None:
        self.bar.update(self.task, advance=count)

    def batch(self, phase: str, epoch: int, done: int, total: int, loss: float) -> None:
        self.bar.update(self.task, description=f"{phase} {epoch}, loss {loss:.4f}", completed=done, total=total)
        if not self.console.is_terminal and time.monotonic() - self.told > PLAIN_INTERVAL:
            self._line(f"{phase} epoch {epoch}: {done / total:.0%}, loss {loss:.4f}")

    def epoch(self, epoch: Epoch, best: bool) -> None:
        self._line(
            f"{epoch.phase} epoch {epoch.epoch}: "
            f"train loss {epoch.train_loss:.4f} accuracy {epoch.train_accuracy:.2%}, "
            f"validation loss {epoch.val_loss:.4f} accuracy {epoch.val_accuracy:.2%}, "
            f"{epoch.seconds:.0f} s, {epoch.pictures_per_second:.0f} pictures/s, "
            f"{epoch.waiting:.0%} of it waiting for data{' (best)' if best else ''}"
        )

    def note(self, message: str) -> None:
        self._line(message)

    def _line(self, message: str) -> None:
        message = printable(message)  # it may quote a name
        self.told = time.monotonic()
        if self.console.is_terminal:
            self.console.print(message, markup=False, soft_wrap=True)
        else:
            note(message)  # which a full disk under it, or a reader that has gone, does not end
        self.unlogged.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n")
        if self.log is None and self.folder.is_dir():
            self.log = (self.folder / "train.log").open("a", encoding="utf-8")
        if self.log:
            self.log.writelines(self.unlogged)
            self.log.flush()
            self.unlogged.clear()


class ScoringProgress:
    """Shows how many pictures there are and how fast they come: on a terminal all the time, else a line a minute.

    `expected` tells how many pictures there will be, 0 while that is not known: it gives the time that is left.
    """

    LOOK_EVERY = 64
    """Pictures between two looks at the clock."""

    def __init__(self, log: Log, expected: Callable[[], int] = lambda: 0) -> None:
        self.log, self.expected = log, expected
        console = Console(stderr=True, highlight=False)
        self.started = self.told = time.monotonic()
        self.status = console.status("finding pictures") if console.is_terminal and not log.as_json else None
        self.interval = 0.2 if self.status else PLAIN_INTERVAL

    def __enter__(self) -> ScoringProgress:
        if self.status:
            self.status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.status:
            self.status.stop()

    def night(self, night: Night) -> None:
        """While pictures are found, scored where they must be, and their rows written."""
        if (night.found + night.scored + night.given) % self.LOOK_EVERY == 0:
            self._tell(night.found, found=night.found, scored=night.scored, rows=night.given)

    def row(self, pictures: int, failed: int) -> None:
        """While rows come, where there is no state."""
        if pictures % self.LOOK_EVERY == 0:
            self._tell(pictures, rows=pictures, failed=failed)

    def _tell(self, done: int, **counts: int) -> None:
        now = time.monotonic()
        if now - self.told < self.interval:
            return
        self.told = now
        speed = done / (now - self.started)
        text = ", ".join(f"{count:,} {name}" for name, count in counts.items()) + f", {speed:,.0f} pictures/s"
        expected = self.expected()
        left = (expected - done) / speed if expected > done else None
        if left is not None:
            text += f", about {timedelta(seconds=round(left))} left"
        if self.status:
            self.status.update(text)
        else:
            facts = {**counts, "pictures_per_second": round(speed, 1)}
            self.log.say("progress", text, **facts, seconds_left=None if left is None else round(left))
