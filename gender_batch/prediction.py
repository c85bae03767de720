"""The row: what is said of one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

UNCERTAIN = "uncertain"
"""The third answer: the model's best probability is below its threshold."""

PROBABILITY_DIGITS = 6
"""Decimals kept of a probability: finer than the parity that an export promises (1e-4)."""

Value = str | int | float | None


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


@dataclass(frozen=True, slots=True)
class Prediction:
    """One row. `width` and `height` are pixels of the oriented original, where the header could be read.

    `probabilities` are in the order of the model's labels, rounded to 6 decimals, so that the label
    can be derived again from the row itself; they are empty unless `status` is `ok`.
    `path` may hold undecodable bytes of a file name as surrogates (`os.fsencode` gives the bytes back).
    """

    path: str
    status: Status
    label: str | None = None
    probabilities: tuple[float, ...] = ()
    faces: int | None = None
    width: int | None = None
    height: int | None = None
    error: str | None = None

    @property
    def confidence(self) -> float | None:
        """The best probability, 1/classes..1; None for a failed picture."""
        return max(self.probabilities, default=None)

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
    )


def decide(probabilities: Sequence[float], labels: Sequence[str], threshold: float) -> str:
    """The label of the largest probability, or `uncertain` where that is below `threshold`."""
    best = max(range(len(labels)), key=lambda index: probabilities[index])
    return labels[best] if probabilities[best] >= threshold else UNCERTAIN
