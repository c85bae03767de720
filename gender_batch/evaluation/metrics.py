"""Figures of a classifier from its probabilities and the true labels."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
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


def with_interval(share: float, interval: tuple[float, float]) -> str:
    """A share, 0..1, and its interval in percent: 92.40% [91.16%, 93.48%]."""
    low, high = interval
    return f"{share:.2%} [{low:.2%}, {high:.2%}]"


@dataclass(frozen=True)
class Proportion:
    """`count` of `total`, with a 95% interval.

    `effective`, 1..total, is how many pictures of as many people would tell as much, where several of these show one
    person; None: as many as there are.
    """

    count: int
    total: int
    effective: float | None = None

    @classmethod
    def of(cls, counted: Sequence[bool] | NDArray[np.bool_], people: Integers | None = None) -> Proportion:
        """The share of the pictures that are `counted` (N,); `people` (N,) are the numbers of who is on them.

        With m_g pictures of person g, k_g of them counted, and p = sum k_g / N, the variance of p over G people is
        G / (G - 1) * sum (k_g - m_g p)^2 / N^2, that of a ratio over clusters (Cochran 1977, "Sampling Techniques",
        sec. 6), and p (1 - p) over it the effective number of pictures (Kish 1965, "Survey Sampling"), with which the
        interval of independent ones holds (Korn and Graubard 1998, "Confidence Intervals for Proportions with Small
        Expected Number of Positive Counts Estimated from Survey Data"). Where nothing varies, all pictures of a person
        are taken to agree: N^2 / sum m_g^2. One person alone counts as one picture.

        Simulated, the interval holds the truth as often as it says where people have a few pictures each; of 5 people
        with 50 each in 77 to 92%, of 20 in 90 to 93%. (Student's t in place of the normal distribution, as Korn and
        Graubard take it, holds it more often there, and too often where people have two.)
        """
        counted = np.asarray(counted, dtype=bool)
        count, total = int(counted.sum()), len(counted)
        if people is None or not total:
            return cls(count, total)
        numbers = np.unique(people, return_inverse=True)[1]
        pictures = np.bincount(numbers)
        if len(pictures) == total:
            return cls(count, total)
        if len(pictures) == 1:
            return cls(count, total, 1.0)
        # Whole numbers, so that no rounding makes a variance of nothing.
        deviations = np.bincount(numbers[counted], minlength=len(pictures)) * total - pictures * count
        spread = float((deviations.astype(np.float64) ** 2).sum()) * len(pictures) / (len(pictures) - 1)
        if spread:
            effective = count * (total - count) * total**2 / spread
        else:
            effective = total**2 / float((pictures**2).sum())
        return cls(count, total, min(max(effective, 1.0), float(total)))

    @property
    def value(self) -> float:
        return self.count / self.total if self.total else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval (Wilson 1927), which holds for small counts and near 0 and 1."""
        if not self.total:
            return (0.0, 1.0)
        n, p, z2 = self.effective or self.total, self.value, Z_95**2
        centre = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = Z_95 / (1 + z2 / n) * sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        return (max(0.0, centre - half), min(1.0, centre + half))

    def __str__(self) -> str:
        if not self.total:
            return "none"
        return f"{with_interval(self.value, self.interval)} of {self.total:,}"

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
class Bin:
    """Pictures of about the same confidence: its mean, 0..1, and how many of them are right."""

    confidence: float
    accuracy: Proportion


@dataclass(frozen=True)
class Metrics:
    """Figures over one set of pictures. `confusion[i, j]`: pictures of class i answered as class j.

    `accuracy` is the share of pictures whose largest probability is the true class's, decided or not; `recalls` and
    `precisions` are by class. `people` is the number of people on the pictures; that of the pictures where nobody told.
    `bins` are those of the calibration error.
    """

    labels: tuple[str, ...]
    people: int
    confusion: Integers
    log_loss: float
    calibration_error: float
    bins: tuple[Bin, ...]
    accuracy: Proportion
    recalls: tuple[Proportion, ...]
    precisions: tuple[Proportion, ...]
    decided_right: Proportion
    coverage: Proportion

    @property
    def pictures(self) -> str:
        """How many there are, in words: 120 pictures, 120 pictures of 60 people."""
        told = f"{self.accuracy.total:,} pictures"
        return told if self.people == self.accuracy.total else f"{told} of {self.people:,} people"

    def to_dict(self) -> dict[str, Any]:
        return {
            "pictures": self.accuracy.total,
            "people": self.people,
            "accuracy": self.accuracy.to_dict(),
            "log_loss": round(self.log_loss, 6) if self.accuracy.total else None,
            "expected_calibration_error": round(self.calibration_error, 6),
            "coverage_at_threshold": self.coverage.to_dict(),
            "accuracy_at_threshold": self.decided_right.to_dict(),
            "classes": {
                label: {"precision": precision.to_dict(), "recall": recall.to_dict()}
                for label, precision, recall in zip(self.labels, self.precisions, self.recalls, strict=True)
            },
            "confusion": self.confusion.tolist(),
        }


def measure(
    probabilities: Floats,
    truth: Sequence[int] | Integers,
    labels: Sequence[str],
    threshold: float,
    groups: Sequence[str] | None = None,
    decided: Sequence[bool] | NDArray[np.bool_] | None = None,
) -> Metrics:
    """Metrics of `probabilities` (N, classes), rows summing to 1, against the true class indices (N,).

    `groups` (N,) names who is on each picture; None: nobody is on two. `decided` (N,) tells which were answered; None:
    those whose largest probability is at least the threshold.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64).reshape(-1, len(labels))
    truth = np.asarray(truth, dtype=np.int64)
    people = numbered(groups if groups is not None else range(len(truth)))
    answers = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1, initial=0.0)
    right = answers == truth
    confusion = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(confusion, (truth, answers), 1)
    likelihood = probabilities[np.arange(len(truth)), truth]
    answered = confidence >= threshold if decided is None else np.asarray(decided, dtype=bool)

    def share_right(among: NDArray[np.bool_]) -> Proportion:
        return Proportion.of(right[among], people[among])

    return Metrics(
        labels=tuple(labels),
        people=len(np.unique(people)),
        confusion=confusion,
        log_loss=float(-np.log(np.maximum(likelihood, 1e-12)).mean()) if len(truth) else float("nan"),
        calibration_error=expected_calibration_error(confidence, right),
        bins=calibration_bins(confidence, right, people),
        accuracy=Proportion.of(right, people),
        recalls=tuple(share_right(truth == index) for index in range(len(labels))),
        precisions=tuple(share_right(answers == index) for index in range(len(labels))),
        decided_right=share_right(answered),
        coverage=Proportion.of(answered, people),
    )


def numbered(groups: Iterable[Hashable]) -> Integers:
    """A number (N,) for each picture's group, the same for the same group."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64)


def calibration_bins(confidence: Floats, right: NDArray[np.bool_], people: Integers | None = None) -> tuple[Bin, ...]:
    """Those with pictures of 15 equal bins of the confidence 0..1; `people` (N,) as for `Proportion.of`."""
    index = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    bins = []
    for number in range(CALIBRATION_BINS):
        inside = index == number
        if inside.any():
            accuracy = Proportion.of(right[inside], None if people is None else people[inside])
            bins.append(Bin(float(confidence[inside].mean()), accuracy))
    return tuple(bins)


def expected_calibration_error(confidence: Floats, right: NDArray[np.bool_]) -> float:
    """Mean distance of confidence and accuracy over the bins, weighed by pictures (Guo et al. 2017, eq. 3)."""
    bins = calibration_bins(confidence, right)
    distances = sum(one.accuracy.total * abs(one.confidence - one.accuracy.value) for one in bins)
    return distances / len(confidence) if bins else 0.0


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


def choose_threshold(
    probabilities: Floats, truth: Sequence[int] | Integers, target: float, groups: Sequence[str] | None = None
) -> Threshold:
    """The smallest threshold at which at least `target` (0..1) of the answered pictures are right.

    `probabilities` (N, classes) and true class indices (N,) are best of pictures held out from training: the
    precision found is that of the pictures it was chosen on, which other pictures reach only about (Geifman and
    El-Yaniv 2017, "Selective Classification for Deep Neural Networks", bound the difference).

    A picture is answered where its confidence, the largest probability, is at least the threshold. The smallest
    threshold answers the most pictures. It lies between the confidences of two neighbouring pictures, far enough
    from both (SEPARATION) that no rounding in serving answers another set of pictures than the one chosen here.
    Where every picture can be answered it is 1/classes, which no confidence is below. A threshold is usable if it
    answers at least 20 pictures and 5% of them, or all. If none reaches the target, the most precise usable one is
    taken, of equally precise ones the one that answers most. `groups` (N,), who is on each picture, widen the
    intervals. Raises ValueError for no pictures.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    total, classes = probabilities.shape
    if not total:
        raise ValueError("no pictures to choose a threshold on")
    confidence = probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    is_right = (probabilities.argmax(axis=1) == np.asarray(truth))[order]
    right = is_right.cumsum()
    confidence = confidence[order]
    people = numbered(groups if groups is not None else range(total))[order]

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
        coverage=Proportion.of(np.arange(total) <= cut, people),
        precision=Proportion.of(is_right[: cut + 1], people[: cut + 1]),
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
