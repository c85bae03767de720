"""A contact sheet of what `classify` said: the pictures worth looking at, in one HTML file that opens anywhere."""

from __future__ import annotations

import hashlib
import heapq
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np

from gender_batch.evaluation.gallery import boxed
from gender_batch.evaluation.page import data_uri, fill
from gender_batch.outputs.publish import published
from gender_batch.pictures.read import PictureError, decode_picture
from gender_batch.prediction import Box, Prediction, Reason, Status
from gender_batch.scoring.pool import WorkerPool
from gender_batch.scoring.worker import Outcome, Step, StepFactory

TEMPLATE = "sheet.html.j2"

MOST = 100
"""Pictures of a kind: three kinds make a page of a few megabytes that one can look through."""

THUMBNAIL = 240
"""Pixels of the longer side."""

JPEG_QUALITY = 80


@dataclass
class _Kind:
    """The pictures of one kind: how many there are, and those of the smallest `rank`, MOST at most."""

    title: str
    explanation: str
    count: int = 0
    kept: list[tuple[float, int, Prediction]] = field(default_factory=list)

    def add(self, row: Prediction, rank: float) -> None:
        self.count += 1
        item = (-rank, -self.count, row)  # a heap whose first is the worst that is kept
        if len(self.kept) < MOST:
            heapq.heappush(self.kept, item)
        else:
            heapq.heappushpop(self.kept, item)

    def rows(self) -> list[Prediction]:
        return [row for _, _, row in sorted(self.kept, reverse=True)]


class Sheet:
    """Is shown every row, and keeps at most 300 of them. Of the kinds without an order a sample is kept, the same every
    night."""

    def __init__(self) -> None:
        self._least = _Kind("The least certain", "The answers of the smallest confidence, the smallest first.")
        self._people = _Kind("Several people", "Faces of comparable size whose answers differ: the label is uncertain.")
        self._nobody = _Kind("No face", "No face was found in these.")

    def add(self, row: Prediction) -> None:
        if row.reason is Reason.PEOPLE_DIFFER:
            self._people.add(row, _anyhow(row.path))
        elif row.status is Status.NO_FACE:
            self._nobody.add(row, _anyhow(row.path))
        elif row.confidence is not None:
            self._least.add(row, row.confidence)

    def write(self, path: Path, labels: Sequence[str], workers: int, name_of: Callable[[str], str] = str) -> None:
        """Publish the sheet, readable by its owner alone: it shows people. Pictures are named by `name_of` their path.

        They are decoded in worker processes, as for scoring; the place of one that cannot be read any more says so.
        Raises OSError, PoolError.
        """
        kinds = [(kind, kind.rows()) for kind in (self._least, self._people, self._nobody)]
        wanted = {row.path: _boxes(row) for _, rows in kinds for row in rows}
        with WorkerPool(Thumbnails(wanted), workers, picture_timeout=30) as pool:
            pictures = {path: _source(outcome) for path, outcome in pool.outcomes(wanted)}
        page = fill(TEMPLATE, kinds=kinds, pictures=pictures, labels=labels, name_of=name_of, answers=_answers)
        with published(path) as file:
            file.write(page.encode("utf-8"))


def _anyhow(path: str) -> float:
    """A rank that depends on nothing but the path, and on nothing in it that means something."""
    return int.from_bytes(hashlib.sha256(os.fsencode(path)).digest()[:6], "big")


def _boxes(row: Prediction) -> tuple[Box, ...]:
    return (row.box, *(person.box for person in row.others)) if row.box else ()


def _answers(row: Prediction, labels: Sequence[str]) -> list[tuple[str, float]]:
    """The most probable class and its probability, of each face that was asked."""
    people = [row.probabilities, *(person.probabilities for person in row.others)] if row.probabilities else []
    return [(labels[shares.index(max(shares))], max(shares)) for shares in people]


def _source(outcome: Outcome) -> str | None:
    """A data URI of the thumbnail."""
    return None if outcome.result is None else data_uri("image/jpeg", outcome.result.tobytes())


@dataclass(frozen=True)
class Thumbnails(StepFactory):
    """Makes the step that gives a picture's thumbnail, the bytes of a JPEG; the faces' boxes are by path."""

    boxes: dict[str, tuple[Box, ...]]

    def __call__(self) -> Step:
        def step(path: str, read: Callable[[], bytes]) -> Outcome:
            try:
                picture = decode_picture(read(), THUMBNAIL)
            except PictureError as error:
                return Outcome(error.status, error=str(error))
            file = BytesIO()
            boxed(picture, self.boxes[path], THUMBNAIL).save(file, "JPEG", quality=JPEG_QUALITY)
            return Outcome(Status.OK, np.frombuffer(file.getvalue(), np.uint8))

        return step
