"""Figures of a classifier from its probabilities and the true labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]

CALIBRATION_BINS = 15
"""As in Guo et al. 2017, "On Calibration of Modern Neural Networks"."""

Z_95 = 1.959963984540054
"""Two-sided 95% quantile of the normal distribution."""

FEWEST_ANSWERED = 20
"""Answered pictures under which a precision says nothing: even 20 right of 20 only bound it to 84% (Wilson)."""

LEAST_COVERAGE = 0.05
"""Share of pictures answered under which a threshold is of no use, however precise."""

SEPARATION = 4e-6
"""Distance of two confidences between which a threshold may lie: the middle half of it leaves 1e-6 to either side,
more than rounding to 6 decimals (5e-7) and float32 (6e-8) can move a confidence."""


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


@dataclass(frozen=True)
class Threshold:
    """A confidence below which the answer is `uncertain`, and what it gave on the pictures it was chosen on.

    `coverage` is the share answered, `precision` the share of these that is right. `reached` tells whether that
    precision is at least `target`; where no usable threshold attains it, this is the most precise one.
    """

    value: float
    target: float
    reached: bool
    coverage: Proportion
    precision: Proportion


def choose_threshold(probabilities: Floats, truth: Sequence[int] | Integers, target: float) -> Threshold:
    """The smallest threshold at which at least `target` (0..1) of the answered pictures are right.

    `probabilities` (N, classes) and true class indices (N,) are best of pictures held out from training: the
    precision found is that of the pictures it was chosen on, which other pictures reach only about (Geifman and
    El-Yaniv 2017, "Selective Classification for Deep Neural Networks", bound the difference).

    A picture is answered where its confidence, the largest probability, is at least the threshold. The smallest
    threshold answers the most pictures. It lies between the confidences of two neighbouring pictures, far enough
    from both (SEPARATION) that no rounding in serving answers another set of pictures than the one chosen here.
    Where every picture can be answered it is 1/classes, which no confidence is below. A threshold is usable if it
    answers at least 20 pictures and 5% of them, or all. If none reaches the target, the most precise usable one is
    taken, of equally precise ones the one that answers most. Raises ValueError for no pictures.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    total, classes = probabilities.shape
    if not total:
        raise ValueError("no pictures to choose a threshold on")
    confidence = probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    right = (probabilities.argmax(axis=1) == np.asarray(truth))[order].cumsum()
    confidence = confidence[order]

    # A cut answers the pictures 0..cut; the last cut answers all of them.
    cuts = np.append(np.flatnonzero(confidence[:-1] - confidence[1:] >= SEPARATION), total - 1)
    cuts = cuts[cuts + 1 >= min(total, max(FEWEST_ANSWERED, ceil(LEAST_COVERAGE * total)))]
    precision = right[cuts] / (cuts + 1)
    reached = bool((precision >= target).any())
    cut = int(cuts[precision >= min(target, precision.max())][-1])
    return Threshold(
        value=1 / classes if cut == total - 1 else _between(confidence[cut + 1], confidence[cut]),
        target=target,
        reached=reached,
        coverage=Proportion(cut + 1, total),
        precision=Proportion(int(right[cut]), cut + 1),
    )


def _between(low: float, high: float) -> float:
    """The number of fewest decimals, two or more, in the middle half of low..high, which is SEPARATION wide or more."""
    middle, reach = (low + high) / 2, (high - low) / 4
    return next(number for digits in range(2, 8) if abs((number := round(float(middle), digits)) - middle) <= reach)


def risk_coverage(confidence: Floats, right: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """The risk-coverage curve: (coverage (M,), risk (M,)) of answering only the most confident pictures.

    `confidence` (N,) and `right` (N,) are of one set of pictures. Coverage is the share answered, growing to 1; risk
    the share of these that is wrong. Pictures of the same confidence are answered together, so M <= N. Geifman and
    El-Yaniv 2017, "Selective Classification for Deep Neural Networks".
    """
    order = np.argsort(-np.asarray(confidence), kind="stable")
    confidence, wrong = np.asarray(confidence)[order], ~np.asarray(right, dtype=bool)[order]
    last = np.flatnonzero(np.append(confidence[:-1] != confidence[1:], True)[: len(confidence)])
    answered = last + 1
    return answered / max(len(confidence), 1), wrong.cumsum()[last] / answered


def area_under_risk_coverage(coverage: Floats, risk: Floats) -> float:
    """AURC: the mean risk over all coverages, 0 at best (Geifman, Uziel and El-Yaniv 2019, "Bias-Reduced Uncertainty
    Estimation for Deep Neural Classifiers"). Of pictures with equal confidence each counts with their common risk."""
    return float(np.dot(risk, np.diff(coverage, prepend=0.0)))


def grouped_accuracy_interval(
    right: Sequence[bool] | NDArray[np.bool_], groups: Sequence[str], seed: int = 0, resamples: int = 2000
) -> tuple[float, float]:
    """95% interval of the accuracy where several pictures show one person, who is the unit that was sampled.

    `right` (N,) and the group of each picture, its person (N,). Whole groups are drawn with replacement, as many as
    there are, and the 2.5% and 97.5% percentiles of the accuracies of all pictures drawn are taken: the percentile
    interval of Efron and Tibshirani 1993, "An Introduction to the Bootstrap", ch. 13, over clusters as in Davison and
    Hinkley 1997, "Bootstrap Methods and their Application", sec. 3.8. Like every bootstrap it has no width where all
    answers are right, or all wrong. Of fewer than two groups it says nothing: (0, 1).
    """
    numbers: dict[str, int] = {}
    members = np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64)
    sums = np.stack([np.bincount(members, np.asarray(right, dtype=np.float64)), np.bincount(members)], axis=1)
    if len(sums) < 2:
        return (0.0, 1.0)
    # Groups with as many pictures and as many right ones are alike: it is drawn how often each kind comes, which
    # has the same distribution and keeps the draws small however many people there are.
    kinds, counts = np.unique(sums, axis=0, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(sums), counts / len(sums), size=resamples)
    drawn = draws @ kinds
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    return float(low), float(high)
