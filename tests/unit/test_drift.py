"""evaluation/drift.py: tests against exact arithmetic, the literature and scipy; and no cry of wolf."""

from __future__ import annotations

import dataclasses
import re
from fractions import Fraction
from math import comb, inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import NIGHT

from gender_batch.evaluation.drift import LEVEL, Change, Limits, compare, fisher_exact, holm, reasons, welch
from gender_batch.outputs.record import Confidence, RunRecord

NO_LIMITS = Limits(0, 0, 0, 0, 0)


def night(
    female: int, male: int, uncertain: int = 0, mean: float = 0.93, std: float = 0.08, **failures: int
) -> RunRecord:
    """A run with these counts."""
    answered = female + male + uncertain
    return dataclasses.replace(
        NIGHT,
        versions={"numpy": "2.0"},
        model="a.onnx",
        model_digest="0" * 64,
        pictures=answered + sum(failures.values()),
        scored=answered,
        statuses={"ok": answered, **failures},
        labels={"female": female, "male": male, "uncertain": uncertain},
        confidence=Confidence(mean, std) if answered else None,
    )


def changes(before: RunRecord, after: RunRecord, limits: Limits | None = None) -> dict[str, Change]:
    return {change.what: change for change in compare(before, after, limits)}


def flagged(before: RunRecord, after: RunRecord, limits: Limits | None = None) -> list[str]:
    return [change.what for change in compare(before, after, limits) if change.flagged]


# Fisher's exact test


@st.composite
def counts(draw: st.DrawFn, most: int = 60) -> tuple[int, int, int, int]:
    total, other = draw(st.integers(0, most)), draw(st.integers(0, most))
    return draw(st.integers(0, total)), total, draw(st.integers(0, other)), other


def test_the_lady_tasting_tea() -> None:
    # Fisher 1935, "The Design of Experiments", ch. 2: 3 of 4 cups right has the one-sided probability 17/70.
    assert fisher_exact(3, 4, 1, 4) == pytest.approx(2 * 17 / 70)
    assert fisher_exact(4, 4, 0, 4) == pytest.approx(2 / 70)


@given(counts())
def test_it_is_exact(table: tuple[int, int, int, int]) -> None:
    count, total, other_count, other_total = table
    marked = count + other_count
    ways = {k: comb(marked, k) * comb(total + other_total - marked, total - k) for k in range(total + 1)}
    at_most = sum(number for k, number in ways.items() if k <= count)
    at_least = sum(number for k, number in ways.items() if k >= count)
    exact = min(1, Fraction(2 * min(at_most, at_least), comb(total + other_total, total)))
    assert fisher_exact(*table) == pytest.approx(float(exact), rel=1e-9)


@pytest.mark.parametrize(
    "table",
    [
        (480, 1000, 530, 1000),
        (3, 100_000, 21, 90_000),
        (0, 5000, 12, 1_000_000),
        (500_000, 1_000_000, 502_000, 1_000_000),
        (7, 10, 400_000, 1_000_000),
    ],
)
def test_it_agrees_with_scipy(table: tuple[int, int, int, int]) -> None:
    stats = pytest.importorskip("scipy.stats")
    count, total, other_count, other_total = table
    tails = [
        stats.fisher_exact([[count, total - count], [other_count, other_total - other_count]], alternative).pvalue
        for alternative in ("less", "greater")
    ]
    assert fisher_exact(*table) == pytest.approx(min(1, 2 * min(tails)), rel=1e-6)


def test_the_largest_counts_of_a_record() -> None:
    assert fisher_exact(5 * 10**9, 10**10, 5 * 10**9 + 2 * 10**5, 10**10) == pytest.approx(
        0.004678, rel=1e-3
    )  # z = 2.8284
    assert fisher_exact(0, 10**10, 10**10, 10**10) == 0.0


def test_a_p_value_just_above_what_is_left_out_is_exact() -> None:
    assert fisher_exact(45, 45, 0, 45) == pytest.approx(2 / comb(90, 45), rel=1e-9, abs=0)  # 2e-26


@given(counts(most=100_000))
def test_a_p_value_is_a_probability_and_knows_no_order(table: tuple[int, int, int, int]) -> None:
    count, total, other_count, other_total = table
    p_value = fisher_exact(*table)
    assert 0 <= p_value <= 1
    assert fisher_exact(other_count, other_total, count, total) == pytest.approx(p_value, rel=1e-9, abs=1e-27)
    complement = fisher_exact(total - count, total, other_total - other_count, other_total)
    assert complement == pytest.approx(p_value, rel=1e-9, abs=1e-27)


@given(counts(most=2000), st.integers(2, 20))
def test_more_pictures_never_make_the_same_shares_less_significant(table: tuple[int, int, int, int], n: int) -> None:
    count, total, other_count, other_total = table
    assert fisher_exact(n * count, n * total, n * other_count, n * other_total) <= fisher_exact(*table) + 1e-9


# Welch's test

CONFIDENCES = st.builds(Confidence, st.floats(0, 1), st.floats(0, 0.5))


@pytest.mark.parametrize(("z", "p_value"), [(1.959963985, 0.05), (2.575829304, 0.01), (3.290526731, 0.001)])
def test_welch_at_the_quantiles_of_the_normal_distribution(z: float, p_value: float) -> None:
    # 0.1^2 / 200 + 0.1^2 / 200 = 0.01^2
    assert welch(Confidence(0.9, 0.1), 200, Confidence(0.9 - 0.01 * z, 0.1), 200) == pytest.approx(p_value, rel=1e-6)


def test_welch_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.ttest_ind_from_stats(0.93, 0.08, 100_000, 0.9312, 0.06, 40_000, equal_var=False).pvalue
    assert welch(Confidence(0.93, 0.08), 100_000, Confidence(0.9312, 0.06), 40_000) == pytest.approx(expected, rel=1e-2)


def test_welch_without_spread_or_with_too_few() -> None:
    assert welch(Confidence(1, 0), 100, Confidence(0.9, 0), 100) == 0
    assert welch(Confidence(1, 0), 100, Confidence(1, 0), 100) == 1
    assert welch(Confidence(1, 0), 29, Confidence(0.5, 0), 1000) == 1
    assert welch(Confidence(1, 0), 30, Confidence(0.5, 0), 30) == 0


@given(CONFIDENCES, st.integers(1, 10**6), CONFIDENCES, st.integers(1, 10**6), st.integers(2, 20))
def test_welch_is_a_probability_knows_no_order_and_more_pictures_tell_more(
    one: Confidence, pictures: int, other: Confidence, other_pictures: int, n: int
) -> None:
    p_value = welch(one, pictures, other, other_pictures)
    assert 0 <= p_value <= 1
    assert welch(other, other_pictures, one, pictures) == pytest.approx(p_value)
    assert welch(one, n * pictures, other, n * other_pictures) <= p_value + 1e-12


# Holm's correction


def test_holm_as_of_r() -> None:
    # p.adjust(c(0.03, 0.01, 0.05, 0.02, 0.04), "holm")
    assert holm([0.03, 0.01, 0.05, 0.02, 0.04]) == pytest.approx([0.09, 0.05, 0.09, 0.08, 0.09])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_only_raises_keeps_the_order_and_stays_below_bonferroni(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(p <= q <= min(1, len(p_values) * p) for p, q in zip(p_values, corrected, strict=True))
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    assert [corrected[number] for number in order] == sorted(corrected)


# Two nights


def test_the_figures_by_hand() -> None:
    found = changes(night(600, 300, 100, 0.95, corrupt=250), night(450, 450, 100, 0.9, no_face=1000), NO_LIMITS)
    assert list(found) == [
        "pictures", "failure corrupt", "no_face", "uncertain", "label female", "label male", "confidence",
    ]  # fmt: skip
    assert (found["pictures"].before, found["pictures"].after) == (1250, 2000)
    assert found["pictures"].difference == pytest.approx(0.6)
    assert found["pictures"].p_value is None
    assert (found["failure corrupt"].before, found["failure corrupt"].after) == (0.2, 0)
    assert (found["no_face"].before, found["no_face"].after) == (0, 0.5)
    assert found["uncertain"].difference == 0
    assert found["uncertain"].p_value == 1
    assert (found["label female"].before, found["label female"].after) == (pytest.approx(2 / 3), 0.5)
    assert found["label male"].difference == pytest.approx(1 / 6)
    assert found["confidence"].difference == pytest.approx(-0.05)
    assert [what for what, change in found.items() if change.flagged] == [what for what in found if what != "uncertain"]


def test_a_change_is_flagged_only_if_it_is_large_and_no_chance() -> None:
    assert flagged(night(500_000, 500_000), night(510_000, 490_000)) == []  # no chance, but small
    assert flagged(night(25, 25), night(30, 20)) == []  # large, but perhaps chance
    assert flagged(night(5000, 5000), night(5500, 4500)) == ["label female", "label male"]
    assert flagged(night(5000, 5000), night(5500, 4500), Limits(label=0.06)) == []
    assert flagged(night(4900, 4900, 200), night(4700, 4700, 600)) == ["uncertain"]
    assert flagged(night(5000, 5000), night(5000, 5000, mean=0.9)) == ["confidence"]
    assert flagged(night(5000, 5000), night(4900, 4900, corrupt=200)) == ["failure corrupt"]


def test_each_figure_has_its_own_limit() -> None:
    limits = Limits(label=0.1, uncertain=0.2, failure=0.3, confidence=0.4, pictures=0.5)
    found = changes(night(50, 50, corrupt=1), night(50, 50, no_face=1), limits)
    assert {what: change.limit for what, change in found.items()} == {
        "pictures": 0.5, "failure corrupt": 0.3, "no_face": 0.3, "uncertain": 0.2, "label female": 0.1,
        "label male": 0.1, "confidence": 0.4,
    }  # fmt: skip


def test_failed_pictures_make_no_confidence_surer() -> None:
    assert flagged(night(20, 20, corrupt=10_000), night(20, 20, mean=0.89, corrupt=10_000)) == []


def test_the_number_of_pictures_is_judged_by_its_limit_alone() -> None:
    assert flagged(night(50, 50), night(60, 60)) == []
    assert flagged(night(50, 50), night(61, 60)) == ["pictures"]
    assert flagged(night(50, 50), night(39, 40)) == ["pictures"]


def test_a_difference_that_equals_its_limit() -> None:
    assert flagged(night(500_000, 500_000), night(530_000, 470_000)) == []
    assert flagged(night(500_000, 500_000), night(530_001, 469_999)) == ["label female", "label male"]


@pytest.mark.parametrize(
    ("before", "at_the_limit", "beyond_it", "what"),
    [
        (night(500_000, 500_000), night(485_000, 485_000, 30_000), night(485_000, 484_999, 30_001), "uncertain"),
        (
            night(500_000, 500_000), night(495_000, 495_000, corrupt=10_000), night(495_000, 494_999, corrupt=10_001),
            "failure corrupt",
        ),
        (night(5000, 5000, mean=0.75), night(5000, 5000, mean=0.77), night(5000, 5000, mean=0.7701), "confidence"),
        (night(5000, 5000), night(6000, 6000), night(6000, 6001), "pictures"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_no_limit_is_another_unless_it_is_asked_for(
    before: RunRecord, at_the_limit: RunRecord, beyond_it: RunRecord, what: str
) -> None:
    """A job of every night that gives none relies on them."""
    assert flagged(before, at_the_limit) == []
    assert flagged(before, beyond_it) == [what]


def test_the_probability_from_which_on_it_is_no_chance_is_the_one_that_the_help_tells() -> None:
    from gender_batch.cli.compare import compare as command

    text = " ".join((command.help or "").split())
    (told,) = re.findall(r"chance alone gives one as large, is at most ([0-9.]+),", text)
    change = Change("label cat", 0.5, 0.6, 0.1, 0.03, float(told))
    assert change.flagged
    assert not dataclasses.replace(change, p_value=1.001 * float(told)).flagged


def test_figures_of_one_kind_come_by_name_and_ok_is_none() -> None:
    """In one order, whatever the order in which the runs met them."""
    statuses = ("unreadable", "corrupt", "too_large", "ok", "empty", "no_face", "timeout")
    labels = ("gnu", "cat", "uncertain", "yak", "dog", "ape", "emu")
    counts = [dict.fromkeys(names, 1) for names in (statuses, labels)]
    run = dataclasses.replace(night(0, 0), statuses=counts[0], labels=counts[1])
    assert [change.what for change in compare(run, run)] == [
        "pictures",
        *(f"failure {name}" if name != "no_face" else name for name in sorted(set(statuses) - {"ok"})),
        "uncertain",
        *(f"label {name}" for name in sorted(set(labels) - {"uncertain"})),
        "confidence",
    ]


def test_the_mean_of_few_pictures_is_as_doubtful_as_their_own_spread_makes_it() -> None:
    few, many = night(20, 20, mean=0.96, std=0.1), night(5000, 5000, mean=0.93, std=0.001)
    assert flagged(few, many) == flagged(many, few) == ["pictures"]  # two standard errors of 0.016


def test_pictures_whose_answers_were_known_tell_of_the_confidence_as_those_that_were_scored() -> None:
    before, after = night(5000, 5000), night(5000, 5000, mean=0.9)
    one, other = (dataclasses.replace(run, scored=0, reused=run.pictures) for run in (before, after))
    assert flagged(one, other) == flagged(before, after) == ["confidence"]


def test_nights_of_nothing() -> None:
    nothing, some = night(0, 0), night(50, 50)
    assert flagged(nothing, nothing) == []
    assert flagged(some, nothing) == flagged(nothing, some) == ["pictures"]
    assert changes(nothing, some)["pictures"].difference == inf
    gone = changes(some, nothing)["label female"]
    assert (gone.before, gone.after, gone.difference, gone.p_value) == (0.5, None, None, None)
    assert changes(some, nothing)["confidence"].before == 0.93
    assert flagged(some, night(0, 0, unreadable=100)) == ["failure unreadable"]
    assert flagged(some, night(0, 0, 100)) == ["uncertain"]


def test_a_model_of_other_labels() -> None:
    other = dataclasses.replace(night(0, 0), pictures=100, statuses={"ok": 100}, labels={"cat": 100})
    assert flagged(night(50, 50), other) == ["label cat", "label female", "label male"]


COUNTS = st.integers(0, 10**6)


@given(COUNTS, COUNTS, COUNTS, COUNTS, COUNTS)
def test_a_night_never_drifts_from_itself(female: int, male: int, uncertain: int, corrupt: int, empty: int) -> None:
    run = night(female, male, uncertain, corrupt=corrupt, empty=empty)
    assert flagged(run, run, NO_LIMITS) == []
    assert reasons(run, run) == []


@pytest.mark.parametrize("pictures", [40, 400, 2000])
def test_nights_that_differ_by_chance_raise_no_alarm(pictures: int) -> None:
    """At any limit, so with none; the confidence is as skewed as a classifier's."""
    random = np.random.default_rng(pictures)

    def draw() -> RunRecord:
        female, male, uncertain, corrupt, no_face = random.multinomial(pictures, [0.47, 0.46, 0.05, 0.015, 0.005])
        confidence = 0.5 + random.beta(5, 0.6, female + male + uncertain) / 2
        counts = (int(count) for count in (female, male, uncertain))
        return night(*counts, confidence.mean(), confidence.std(), corrupt=int(corrupt), no_face=int(no_face))

    alarms = sum(bool(flagged(draw(), draw(), NO_LIMITS)) for _ in range(1000))
    assert alarms <= 0.8 * LEVEL * 1000
    assert alarms or pictures < 400  # nor is it deaf


def test_reasons_to_expect_a_drift() -> None:
    before = night(5, 5)
    after = dataclasses.replace(
        before, model_digest="1" * 64, program="9.9", versions={"numpy": "2.1", "pillow": "12"}, device="cuda",
        folders_not_read=2, exit_code=3,
    )  # fmt: skip
    assert reasons(before, after) == [
        "another model: a.onnx (000000000000), then a.onnx (111111111111)",
        f"another gender-batch: {before.program}, then 9.9",
        "another numpy: 2.0, then 2.1",
        "another device: cpu, then cuda",
        "another pillow: unknown, then 12",
        "the later run could not read 2 folders",
        "the later run ended with exit code 3",
    ]
    assert reasons(dataclasses.replace(before, exit_code=1), before) == ["the earlier run ended with exit code 1"]
    unread = [dataclasses.replace(before, folders_not_read=count) for count in (1, 12_345)]
    assert reasons(*unread) == [
        "the earlier run could not read 1 folder",
        "the later run could not read 12,345 folders",
    ]
