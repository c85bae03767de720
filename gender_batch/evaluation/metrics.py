"""Figures of a classifier from its probabilities and the true labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]

CALIBRATION_BINS = 15
"""As in Guo et al. 2017, "On Calibration of Modern Neural Networks"."""

Z_95 = 1.959963984540054
"""Two-sided 95% quantile of the normal distribution."""


@dataclass(frozen=True)
class Proportion:
    """`count` of `total`, with a 95% interval."""

    count: int
    total: int

    @property
    def value(self) -> float:
        return self.count / self.total if self.total else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval (Wilson 1927), which holds for small counts and near 0 and 1."""
        if not self.total:
            return (0.0, 1.0)
        n, p, z2 = self.total, self.value, Z_95**2
        centre = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = Z_95 / (1 + z2 / n) * sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        return (max(0.0, centre - half), min(1.0, centre + half))

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.2%} [{low:.2%}, {high:.2%}] of {self.total}"

    def to_dict(self) -> dict[str, Any]:
        low, high = self.interval
        return {
            "value": round(self.value, 6) if self.total else None,
            "low": round(low, 6),
            "high": round(high, 6),
            "count": self.count,
            "total": self.total,
        }


@dataclass(frozen=True)
class Metrics:
    """Figures over one set of pictures. `confusion[i, j]`: pictures of class i answered as class j."""

    labels: tuple[str, ...]
    confusion: Integers
    log_loss: float
    calibration_error: float
    decided_right: Proportion
    coverage: Proportion

    @property
    def accuracy(self) -> Proportion:
        """Share of pictures whose largest probability is the true class's, whatever the threshold."""
        return Proportion(int(np.trace(self.confusion)), int(self.confusion.sum()))

    def recall(self, index: int) -> Proportion:
        return Proportion(int(self.confusion[index, index]), int(self.confusion[index].sum()))

    def precision(self, index: int) -> Proportion:
        return Proportion(int(self.confusion[index, index]), int(self.confusion[:, index].sum()))

    def to_dict(self) -> dict[str, Any]:
        return {
            "pictures": self.accuracy.total,
            "accuracy": self.accuracy.to_dict(),
            "log_loss": round(self.log_loss, 6) if self.accuracy.total else None,
            "expected_calibration_error": round(self.calibration_error, 6),
            "coverage_at_threshold": self.coverage.to_dict(),
            "accuracy_at_threshold": self.decided_right.to_dict(),
            "classes": {
                label: {"precision": self.precision(i).to_dict(), "recall": self.recall(i).to_dict()}
                for i, label in enumerate(self.labels)
            },
            "confusion": self.confusion.tolist(),
        }


def measure(probabilities: Floats, truth: Sequence[int] | Integers, labels: Sequence[str], threshold: float) -> Metrics:
    """Metrics of `probabilities` (N, classes), rows summing to 1, against the true class indices (N,)."""
    probabilities = np.asarray(probabilities, dtype=np.float64).reshape(-1, len(labels))
    truth = np.asarray(truth, dtype=np.int64)
    answers = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1, initial=0.0)
    right = answers == truth
    confusion = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(confusion, (truth, answers), 1)
    likelihood = probabilities[np.arange(len(truth)), truth]
    decided = confidence >= threshold
    return Metrics(
        labels=tuple(labels),
        confusion=confusion,
        log_loss=float(-np.log(np.maximum(likelihood, 1e-12)).mean()) if len(truth) else float("nan"),
        calibration_error=expected_calibration_error(confidence, right),
        decided_right=Proportion(int((right & decided).sum()), int(decided.sum())),
        coverage=Proportion(int(decided.sum()), len(truth)),
    )


def calibration_bins(confidence: Floats, right: NDArray[np.bool_]) -> list[tuple[int, float, float]]:
    """(pictures, mean confidence, accuracy) of each non-empty one of 15 equal bins of the confidence 0..1."""
    index = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    bins = []
    for number in range(CALIBRATION_BINS):
        inside = index == number
        if inside.any():
            bins.append((int(inside.sum()), float(confidence[inside].mean()), float(right[inside].mean())))
    return bins


def expected_calibration_error(confidence: Floats, right: NDArray[np.bool_]) -> float:
    """Mean distance of confidence and accuracy over the bins, weighed by pictures (Guo et al. 2017, eq. 3)."""
    bins = calibration_bins(confidence, right)
    total = sum(count for count, _, _ in bins)
    return sum(count * abs(mean - accuracy) for count, mean, accuracy in bins) / total if total else 0.0
