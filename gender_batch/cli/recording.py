"""What one run of `classify` was and counted: told at its end, and kept for its record."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click

from gender_batch.cli.exits import Exit
from gender_batch.cli.log import Log
from gender_batch.outputs.record import Confidence, RunRecord, Stage, versions
from gender_batch.pictures.find import Walk
from gender_batch.prediction import Status
from gender_batch.scoring.night import Night
from gender_batch.scoring.run import Scorer, Summary


class Run:
    """What is known of this run so far. Its rows go to `target`, or standard output; `again` says what the same
    command would do if this one does not come to its end."""

    def __init__(self, walk: Walk, target: Path | None, again: str) -> None:
        self.walk, self.target, self.again = walk, target, again
        self.summary = Summary()
        self.scorer: Scorer | None = None
        self.published = False
        self.started, self.began = datetime.now(UTC), time.monotonic()
        self.night: Night | None = None
        self.seconds = 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """The scoring and writing of all pictures."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds = time.monotonic() - began

    @property
    def so_far(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.began

    def outcome(self) -> str:
        """What is there of the rows, and what the same command would do."""
        target = self.target
        if self.published:
            return f"{target} is written, and complete" if target else "All rows are on standard output"
        if target is None:
            what = "The rows on standard output are not all"
        elif os.path.exists(target):
            what = f"Nothing is published, {target.name} is as it was"
        else:
            what = "Nothing is published"
        return f"{what}; {self.again}"

    def tell_published(self) -> None:
        self.published = True

    def shares(self) -> dict[str, float]:
        """Of each stage the share of the run's time, 0..1, for which those who do it were busy with it.

        Rows are written, and on a GPU pictures inferred, while workers read, so that the sum may be more than 1.
        """
        scorer, whole = self.scorer, self.so_far
        if not scorer or not scorer.pictures:
            return {}
        seconds = {
            "read": scorer.reading / scorer.workers,
            "decode": scorer.decoding / scorer.workers,
            **({"find faces": scorer.finding / scorer.workers} if scorer.search else {}),
            "infer": scorer.inference / (1 if scorer.device.name == "cuda" else scorer.workers),
        }
        if self.night:
            seconds["write"] = self.night.giving
        return {stage: round(busy / whole, 4) for stage, busy in seconds.items()}

    def tell_summary(self, log: Log, scorer: Scorer) -> None:
        """How many pictures and how fast, with which answers, and what took the time."""
        summary, seconds, shares = self.summary, self.so_far, self.shares()

        def counts(items: Iterable[tuple[str, int]]) -> str:
            return ", ".join(f"{name} {count:,}" for name, count in items)

        known = summary.pictures - scorer.pictures
        statuses = {status.value: count for status, count in summary.statuses.most_common()}
        labels = dict(summary.labels.most_common())
        lines = [
            f"pictures: {summary.pictures:,} in {seconds:.1f} s, {summary.pictures / seconds:,.0f} pictures/s, "
            f"{scorer.workers} workers on {scorer.device.name}" + (f"; {known:,} were known" if known else ""),
            f"status:   {counts(statuses.items())}",
            f"labels:   {counts(labels.items()) or 'none'}",
        ]
        if shares:
            bottleneck = max(shares, key=lambda stage: shares[stage])
            told = ", ".join(f"{stage} {share:.0%}" for stage, share in shares.items())
            lines.append(f"time:     {told}; what takes longest is to {bottleneck}")
        if scorer.batch < scorer.batch_wanted:
            lines.append(f"batch:    {scorer.batch} pictures: the GPU has no memory for {scorer.batch_wanted}")
        facts = {
            "pictures": summary.pictures,
            "known": known,
            "shares": shares,
            "batch": scorer.batch,
            "statuses": statuses,
            "labels": labels,
        }
        log.say("done", "\n".join(lines), **facts, seconds=round(seconds, 3))

    def tell_skipped(self, log: Log) -> None:
        """What of the PATHs was not looked at."""
        walk = self.walk
        for folder, reason in walk.unreadable_folders[:20]:
            log.say("folder not read", f"folder not read: {folder!r}: {reason}", folder=folder, reason=reason)
        if len(walk.unreadable_folders) > 20:
            count = len(walk.unreadable_folders)
            log.say("folders not read", f"folders not read: {count:,} in all", folders=count)
        if walk.lost_links:
            count = walk.lost_links
            told = f"not entered: {count:,} links that lead nowhere"
            forgotten = "; no answer of before is forgotten" if self.night else ""
            log.say("links not entered", told + forgotten, links=count)
        if walk.other_file_systems:
            count = walk.other_file_systems
            log.say("not entered", f"not entered: {count:,} folders on other file systems", folders=count)
        if walk.special_files:
            count = walk.special_files
            log.say("not opened", f"not opened: {count:,} FIFOs, sockets or devices", files=count)

    def record(self, exit_code: int) -> RunRecord:
        summary, scorer = self.summary, self.scorer
        answered = summary.statuses[Status.OK]
        confidence = None
        if answered:
            mean = summary.confidences / answered
            confidence = Confidence(mean, max(0.0, summary.squared_confidences / answered - mean * mean) ** 0.5)
        scored = scorer.pictures if scorer else 0
        stages = {}
        if self.seconds:
            stages["scoring"] = Stage(scored, self.seconds - (self.night.giving if self.night else 0.0))
        if self.night:
            stages["writing"] = Stage(summary.pictures, self.night.giving)
        if scorer:  # these: seconds of all workers together
            for stage in ("reading", "decoding", "inference", *(["finding"] if scorer.search else [])):
                stages[stage] = Stage(scored, getattr(scorer, stage))
        return RunRecord(
            versions=versions(),
            model=scorer.model.name if scorer else "",
            model_digest=scorer.digest().split()[0] if scorer else "",
            device=scorer.device.name if scorer else "",
            device_reason=scorer.device.reason if scorer else "",
            pictures=summary.pictures,
            scored=scored,
            reused=max(0, summary.pictures - scored),
            statuses={status.value: count for status, count in summary.statuses.items()},
            labels=dict(summary.labels),
            confidence=confidence,
            stages=stages,
            folders_not_read=len(self.walk.unreadable_folders),
            started=self.started.isoformat(timespec="seconds"),
            ended=datetime.now(UTC).isoformat(timespec="seconds"),
            exit_code=exit_code,
        )


@contextmanager
def recorded(run: Run, path: Path, log: Log) -> Iterator[None]:
    """Write the record however the run ends, but where another one holds the lock: the record is that one's."""
    code: int = Exit.FATAL
    try:
        yield
        code = Exit.DONE
    except SystemExit as ended:
        code = int(ended.code or 0)
        raise
    except click.UsageError:
        code = Exit.USAGE
        raise
    finally:
        if code != Exit.LOCKED:
            try:
                run.record(code).write(path)
            except OSError as error:
                log.error(f"{path}: {error.strerror}; the run's summary is not written. {run.outcome()}")
                if code == Exit.DONE:  # else what ended the run says more
                    sys.exit(Exit.FATAL)
