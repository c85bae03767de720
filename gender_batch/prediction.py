"""The row: what is said of one picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

UNCERTAIN = "uncertain"
"""The third answer: the model's best probability is below its threshold, or several people differ."""

PROBABILITY_DIGITS = 6
"""Decimals kept of a probability: finer than the parity that an export promises (1e-4)."""

Value = str | int | float | None

Box = tuple[int, int, int, int]
"""Left, top, width and height of a face, in pixels of the oriented original."""


class Status(StrEnum):
    """Why a picture has a label (`ok`), or why it has none."""

    OK = "ok"
    CORRUPT = "corrupt"
    UNSUPPORTED = "unsupported"
    TOO_LARGE = "too_large"
    UNREADABLE = "unreadable"
    EMPTY = "empty"
    NO_FACE = "no_face"
    TIMEOUT = "timeout"
    CRASHED = "crashed"

    @property
    def failed(self) -> bool:
        """Something was wrong with the file. A picture of nobody is none of its faults."""
        return self not in (Status.OK, Status.NO_FACE)

    @property
    def tells_of_content(self) -> bool:
        """The same content gets it again. The others tell of a moment: a mount that was away, a busy machine."""
        return self not in (Status.UNREADABLE, Status.TIMEOUT, Status.CRASHED)


class Reason(StrEnum):
    """Why the label is `uncertain`."""

    LOW_CONFIDENCE = "low_confidence"
    PEOPLE_DIFFER = "people_differ"


@dataclass(frozen=True, slots=True)
class Person:
    """What is said of one more face in a picture, as a Prediction says it of the main one."""

    label: str
    probabilities: tuple[float, ...]
    box: Box
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """One row. `width` and `height` are pixels of the oriented original, where the header could be read.

    `probabilities` are in the order of the model's labels, rounded to 6 decimals, so that the label
    can be derived again from the row itself; they are empty unless `status` is `ok`.
    `path` may hold undecodable bytes of a file name as surrogates (`os.fsencode` gives the bytes back).
    `faces` were found, None where none were looked for; `box` is that of the face that is answered for, the main one.
    `others` are the other faces that were asked: those of comparable size, or all.
    """

    path: str
    status: Status
    label: str | None = None
    probabilities: tuple[float, ...] = ()
    faces: int | None = None
    width: int | None = None
    height: int | None = None
    error: str | None = None
    box: Box | None = None
    reason: Reason | None = None
    others: tuple[Person, ...] = ()

    @property
    def confidence(self) -> float | None:
        """The best probability, 1/classes..1; None for a failed picture."""
        return max(self.probabilities, default=None)

    def every_face(self) -> Iterator[Prediction]:
        """A row for each face: this one, and one for each of the others."""
        yield replace(self, others=()) if self.others else self
        for person in self.others:
            yield replace(
                self,
                label=person.label,
                probabilities=person.probabilities,
                box=person.box,
                reason=person.reason,
                others=(),
            )

    def values(self, classes: int) -> tuple[Value, ...]:
        """The row's values in the order of `columns`."""
        probabilities = self.probabilities or (None,) * classes
        return (
            self.path,
            self.status.value,
            self.label,
            self.confidence,
            *probabilities,
            self.faces,
            self.width,
            self.height,
            self.error,
            *(self.box or (None,) * 4),
            self.reason and self.reason.value,
        )


def columns(labels: Sequence[str]) -> tuple[str, ...]:
    """The names of a row's columns for a model with these labels."""
    return (
        "path",
        "status",
        "label",
        "confidence",
        *(f"p_{label}" for label in labels),
        "faces",
        "width",
        "height",
        "error",
        "face_x",
        "face_y",
        "face_w",
        "face_h",
        "reason",
    )


def decide(probabilities: Sequence[float], labels: Sequence[str], threshold: float) -> str:
    """The label of the largest probability, or `uncertain` where that is below `threshold`."""
    best = max(probabilities)
    return labels[probabilities.index(best)] if best >= threshold else UNCERTAIN
