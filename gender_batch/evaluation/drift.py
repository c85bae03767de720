"""Drift between two runs: which of their figures differ by more than a limit, and by more than chance.

The tests take the pictures of the two runs for independent samples. Two nights over one tree share most of theirs, and
then differ less by chance than the tests allow for: they err towards silence. What one night adds shows only by its
weight among all pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import erfc, inf, sqrt
from typing import TYPE_CHECKING

from gender_batch.prediction import UNCERTAIN, Status

if TYPE_CHECKING:
    from gender_batch.outputs.record import Confidence, RunRecord

LEVEL = 0.01
"""Probability, at most, of flagging any tested figure of two runs that differ only by chance."""

FEWEST_FOR_MEAN = 30
"""Pictures under which the mean of a skewed confidence is not normal enough to test."""

NEGLIGIBLE = 1e-30
"""Probability, relative to the mode's, from which on a tail is left out."""

ROUNDING = 1e-12
"""A difference that equals its limit does not exceed it, whatever the last bit of a float says."""


@dataclass(frozen=True)
class Limits:
    """Differences that are still no drift. All are absolute but `pictures`, which is relative to the earlier run.

    `label`: share of each label among the pictures that got one, `uncertain` aside. `uncertain`: its share among the
    pictures with status ok. `failure`: share of each other status among all. `confidence`: its mean.
    """

    label: float = 0.03
    uncertain: float = 0.03
    failure: float = 0.01
    confidence: float = 0.02
    pictures: float = 0.2


@dataclass(frozen=True)
class Change:
    """One figure of two runs. A figure of no pictures is None, and so is its difference.

    `difference` is after minus before, of the number of pictures relative to before. `p_value` is Holm's, corrected
    for the number of tests; None where there is no test, and the limit decides alone.
    """

    what: str
    before: float | None
    after: float | None
    difference: float | None
    limit: float
    p_value: float | None

    @property
    def flagged(self) -> bool:
        """Whether the difference is both larger than its limit and significant."""
        if self.difference is None or abs(self.difference) <= self.limit + ROUNDING:
            return False
        return self.p_value is None or self.p_value <= LEVEL


def compare(before: RunRecord, after: RunRecord, limits: Limits | None = None) -> list[Change]:
    """Every figure that is checked, in a fixed order: number of pictures, statuses, uncertain, labels, confidence."""
    limits = limits or Limits()
    tested = [
        *(
            _share(_named(status), limits.failure, before.statuses, after.statuses, status)
            for status in sorted((before.statuses.keys() | after.statuses.keys()) - {Status.OK})
        ),
        _share(UNCERTAIN, limits.uncertain, before.labels, after.labels, UNCERTAIN),
        *(
            _share(f"label {label}", limits.label, _decided(before), _decided(after), label)
            for label in sorted(_decided(before).keys() | _decided(after).keys())
        ),
        _mean_confidence(limits.confidence, before, after),
    ]
    corrected = iter(holm([change.p_value for change in tested if change.p_value is not None]))
    return [
        _pictures(limits.pictures, before.pictures, after.pictures),
        *(change if change.p_value is None else replace(change, p_value=next(corrected)) for change in tested),
    ]


def reasons(before: RunRecord, after: RunRecord) -> list[str]:
    """What else differs between the runs, or was wrong with one, and may be why their figures differ; in words."""
    said = []
    if before.model_digest != after.model_digest:
        old, new = (f"{run.model} ({run.model_digest[:12]})" for run in (before, after))
        said.append(f"another model: {old}, then {new}")
    programs = [{"gender-batch": run.program, **run.versions, "device": run.device} for run in (before, after)]
    for name in dict.fromkeys((*programs[0], *programs[1])):
        old, new = (program.get(name, "unknown") for program in programs)
        if old != new:
            said.append(f"another {name}: {old}, then {new}")
    for which, run in (("earlier", before), ("later", after)):
        if run.folders_not_read:
            folders = "1 folder" if run.folders_not_read == 1 else f"{run.folders_not_read:,} folders"
            said.append(f"the {which} run could not read {folders}")
        if run.exit_code:
            said.append(f"the {which} run ended with exit code {run.exit_code}")
    return said


def fisher_exact(count: int, total: int, other_count: int, other_total: int) -> float:
    """Two-sided p-value of Fisher's exact test that count of total and other_count of other_total have one share.

    Given the sums of both, the count is hypergeometric. Twice the smaller tail is taken (Agresti 2013, "Categorical
    Data Analysis", sec. 3.5), since it alone never grows when all counts are multiplied. Exact for counts of any
    size, 0 included; a p-value under 1e-28 may come out as 0. Takes time as the square root of the totals.
    """
    all_pictures = at_most = at_least = 0.0
    for value, mass in _hypergeometric(total, count + other_count, total + other_total):
        all_pictures += mass
        at_most += mass if value <= count else 0.0
        at_least += mass if value >= count else 0.0
    return min(1.0, 2 * min(at_most, at_least) / all_pictures)


def _hypergeometric(draws: int, marked: int, population: int) -> Iterator[tuple[int, float]]:
    """(value, probability relative to the mode's) of the marked ones among the draws, from the mode outwards.

    By the ratio of neighbouring probabilities (Johnson, Kemp and Kotz 2005, "Univariate Discrete Distributions",
    ch. 6), which is 0 beyond either end. The probabilities fall from the mode on, ever faster: what is left out is
    negligible.
    """
    unmarked_left = population - draws - marked
    mode = (draws + 1) * (marked + 1) // (population + 2)
    yield mode, 1.0
    value, mass = mode, 1.0
    while (
        mass := mass * (marked - value) * (draws - value) / ((value + 1) * (unmarked_left + value + 1))
    ) > NEGLIGIBLE:
        value += 1
        yield value, mass
    value, mass = mode, 1.0
    while (mass := mass * value * (unmarked_left + value) / ((marked - value + 1) * (draws - value + 1))) > NEGLIGIBLE:
        value -= 1
        yield value, mass


def welch(one: Confidence, pictures: int, other: Confidence, other_pictures: int) -> float:
    """Two-sided p-value of Welch's test that two means are one (Welch 1947, "The Generalization of 'Student's' Problem
    when Several Different Population Variances are Involved").

    The statistic is taken for normal, as it is for many pictures; for fewer than 30 in either, p is 1: too few to tell.
    """
    if min(pictures, other_pictures) < FEWEST_FOR_MEAN or one.mean == other.mean:
        return 1.0
    error = sqrt(one.std**2 / pictures + other.std**2 / other_pictures)
    return erfc(abs(one.mean - other.mean) / error / sqrt(2)) if error else 0.0


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number, in their order: of those at most LEVEL, any is false with probability
    LEVEL at most, however they depend on each other (Holm 1979, "A Simple Sequentially Rejective Multiple Test
    Procedure")."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, number in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[number]))
        corrected[number] = largest
    return corrected


def _named(status: str) -> str:
    """That nobody is on a picture is no fault of it."""
    return status if status == Status.NO_FACE else f"failure {status}"


def _decided(run: RunRecord) -> dict[str, int]:
    return {label: count for label, count in run.labels.items() if label != UNCERTAIN}


def _share(what: str, limit: float, before: Mapping[str, int], after: Mapping[str, int], name: str) -> Change:
    """The change of one name's share of all the counts."""
    count, total = before.get(name, 0), sum(before.values())
    other_count, other_total = after.get(name, 0), sum(after.values())
    old = count / total if total else None
    new = other_count / other_total if other_total else None
    if old is None or new is None:
        return Change(what, old, new, None, limit, None)
    return Change(what, old, new, new - old, limit, fisher_exact(count, total, other_count, other_total))


def _mean_confidence(limit: float, before: RunRecord, after: RunRecord) -> Change:
    old, new = before.confidence, after.confidence
    means = old.mean if old else None, new.mean if new else None
    if old is None or new is None:
        return Change("confidence", *means, None, limit, None)
    return Change("confidence", *means, new.mean - old.mean, limit, welch(old, before.answered, new, after.answered))


def _pictures(limit: float, before: int, after: int) -> Change:
    """No test: the number of pictures is no sample of anything, and every change of it is real."""
    difference = (after - before) / before if before else inf if after else 0.0
    return Change("pictures", before, after, difference, limit, None)
