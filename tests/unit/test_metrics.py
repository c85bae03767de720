"""evaluation/metrics.py: figures against ones worked out by hand, in the literature, and by scikit-learn."""

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gender_batch.evaluation.metrics import (
    CALIBRATION_BINS,
    FEWEST_ANSWERED,
    LEAST_COVERAGE,
    SEPARATION,
    Bin,
    Proportion,
    Threshold,
    area_under_risk_coverage,
    calibration_bins,
    choose_threshold,
    expected_calibration_error,
    measure,
    numbered,
    risk_coverage,
)
from gender_batch.prediction import PROBABILITY_DIGITS, UNCERTAIN, decide

LABELS = ("female", "male")


# Wilson's interval


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [
        # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (0, 10, 0.0000, 0.2775),
        (10, 10, 0.7225, 1.0000),
        (50, 100, 0.4038, 0.5962),
    ],
)
def test_interval_of_the_literature(count: int, total: int, low: float, high: float) -> None:
    assert Proportion(count, total).interval == pytest.approx((low, high), abs=5.1e-5)


def test_interval_of_nothing_says_nothing() -> None:
    assert Proportion(0, 0).interval == (0.0, 1.0)
    assert math.isnan(Proportion(0, 0).value)
    assert Proportion(0, 0).to_dict() == {"value": None, "low": 0.0, "high": 1.0, "count": 0, "total": 0}


@given(total=st.integers(1, 10_000), share=st.floats(0, 1))
def test_interval_holds_the_value_and_stays_within_0_and_1(total: int, share: float) -> None:
    count = round(share * total)
    low, high = Proportion(count, total).interval
    assert 0 <= low <= high <= 1
    assert low - 1e-12 <= count / total <= high + 1e-12
    mirrored = Proportion(total - count, total).interval
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


@given(total=st.integers(1, 1000), share=st.floats(0, 1))
def test_more_pictures_give_a_narrower_interval(total: int, share: float) -> None:
    count = round(share * total)
    low, high = Proportion(count, total).interval
    narrower_low, narrower_high = Proportion(10 * count, 10 * total).interval
    assert narrower_high - narrower_low < high - low


def test_a_proportion_in_words() -> None:
    assert str(Proportion(50, 100)) == "50.00% [40.38%, 59.62%] of 100"
    assert str(Proportion(900, 1800)) == "50.00% [47.69%, 52.31%] of 1,800"
    assert str(Proportion(0, 0)) == "none"


# Metrics

# Truth:  f     f     f     m     m        answered: f f m m f
EXAMPLE = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.2, 0.8], [0.55, 0.45]])
TRUTH = [0, 0, 0, 1, 1]


def test_an_example_by_hand() -> None:
    metrics = measure(EXAMPLE, TRUTH, LABELS, threshold=0.6)
    assert metrics.confusion.tolist() == [[2, 1], [1, 1]]
    assert metrics.accuracy == Proportion(3, 5)
    assert metrics.recalls[0] == Proportion(2, 3)
    assert metrics.recalls[1] == Proportion(1, 2)
    assert metrics.precisions[0] == Proportion(2, 3)
    assert metrics.precisions[1] == Proportion(1, 2)
    assert metrics.coverage == Proportion(4, 5)
    assert metrics.decided_right == Proportion(3, 4)
    likelihoods = [0.9, 0.6, 0.3, 0.8, 0.45]
    assert metrics.log_loss == pytest.approx(-sum(map(math.log, likelihoods)) / 5)
    # 0.9, 0.6, 0.7, 0.8 and 0.55 fall into bins of their own: 13, 9, 10, 12, 8.
    assert metrics.calibration_error == pytest.approx((0.1 + 0.4 + 0.7 + 0.2 + 0.55) / 5)


def test_the_example_as_a_dict() -> None:
    content = measure(EXAMPLE, TRUTH, LABELS, threshold=0.6).to_dict()
    assert content["pictures"] == 5
    assert content["accuracy"]["value"] == 0.6
    assert content["coverage_at_threshold"]["value"] == 0.8
    assert content["accuracy_at_threshold"]["value"] == 0.75
    assert content["classes"]["male"]["recall"]["value"] == 0.5
    assert content["confusion"] == [[2, 1], [1, 1]]
    assert json.loads(json.dumps(content, allow_nan=False)) == content


def test_a_threshold_that_decides_all_or_nothing() -> None:
    assert measure(EXAMPLE, TRUTH, LABELS, 0.0).coverage == Proportion(5, 5)
    nothing = measure(EXAMPLE, TRUTH, LABELS, 0.95)
    assert nothing.coverage == Proportion(0, 5)
    assert nothing.decided_right == Proportion(0, 0)
    assert nothing.accuracy == Proportion(3, 5)


def test_a_class_that_is_missing_has_no_recall() -> None:
    metrics = measure(EXAMPLE[:2], [0, 0], LABELS, 0.5)
    assert metrics.recalls[1] == Proportion(0, 0)
    assert metrics.precisions[1] == Proportion(0, 0)
    assert metrics.to_dict()["classes"]["male"]["recall"]["value"] is None


def test_certain_and_wrong_has_a_finite_loss() -> None:
    assert measure(np.array([[1.0, 0.0]]), [1], LABELS, 0.5).log_loss == pytest.approx(-math.log(1e-12))


def test_no_pictures_at_all() -> None:
    metrics = measure(np.empty((0, 2)), [], LABELS, 0.5)
    assert metrics.accuracy == Proportion(0, 0)
    assert metrics.confusion.tolist() == [[0, 0], [0, 0]]
    assert metrics.calibration_error == 0.0


def test_no_pictures_at_all_is_valid_json() -> None:
    json.dumps(measure(np.empty((0, 2)), [], LABELS, 0.5).to_dict(), allow_nan=False)


# Calibration


def test_a_perfectly_calibrated_classifier_has_no_error() -> None:
    confidence = np.repeat([0.55, 0.7, 0.9], [20, 10, 10])
    right = np.concatenate([np.arange(20) < 11, np.arange(10) < 7, np.arange(10) < 9])
    assert expected_calibration_error(confidence, right) == pytest.approx(0.0, abs=1e-12)


def test_an_overconfident_one_has_the_difference() -> None:
    assert expected_calibration_error(np.full(100, 0.99), np.arange(100) < 60) == pytest.approx(0.39)


def test_an_underconfident_one_has_it_too() -> None:
    assert expected_calibration_error(np.full(50, 0.6), np.full(50, True)) == pytest.approx(0.4)


def test_errors_of_different_sign_do_not_cancel_between_bins() -> None:
    confidence = np.repeat([0.6, 0.9], [30, 10])
    right = np.concatenate([np.full(30, True), np.full(10, False)])
    assert expected_calibration_error(confidence, right) == pytest.approx((30 * 0.4 + 10 * 0.9) / 40)


def test_bins_hold_every_picture_once_and_confidence_1_in_the_last() -> None:
    confidence = np.array([0.0, 0.5, 1.0, 1.0])
    bins = calibration_bins(confidence, np.array([False, True, True, False]))
    assert bins == (Bin(0.0, Proportion(0, 1)), Bin(0.5, Proportion(1, 1)), Bin(1.0, Proportion(1, 2)))


def test_copies_of_a_picture_widen_the_interval_of_their_bin() -> None:
    copies = np.array([[0.9, 0.1]] * 10 + [[0.7, 0.3]] * 2)
    crowded, apart = measure(copies, [0] * 12, LABELS, 0.5, ["a"] * 10 + ["b", "c"]).bins[::-1]
    assert crowded.accuracy == Proportion(10, 10, 1.0)
    assert apart.accuracy == Proportion(2, 2)


@given(values=st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=50))
def test_calibration_error_is_a_share_and_bins_are_complete(values: list[tuple[float, bool]]) -> None:
    confidence = np.array([value for value, _ in values])
    right = np.array([value for _, value in values], dtype=bool)
    bins = calibration_bins(confidence, right)
    assert sum(one.accuracy.total for one in bins) == len(values)
    assert len(bins) <= CALIBRATION_BINS
    assert 0 <= expected_calibration_error(confidence, right) <= 1


# The threshold


def two_classes(confidence: Sequence[float], right: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities whose first class is answered with this confidence, and the truth that makes them right."""
    first = np.asarray(confidence)
    return np.stack([first, 1 - first], axis=1), np.where(right, 0, 1)


def test_a_threshold_by_hand() -> None:
    # 40 sure ones, all right; 40 less sure, 36 right; 20 guesses, 10 right.
    confidence = np.repeat([0.9, 0.8, 0.6], [40, 40, 20])
    right = np.concatenate([np.full(40, True), np.arange(40) < 36, np.arange(20) < 10])
    probabilities, truth = two_classes(confidence, right)
    assert choose_threshold(probabilities, truth, 0.95) == Threshold(
        0.7, 0.95, True, Proportion(80, 100), Proportion(76, 80)
    )
    assert choose_threshold(probabilities, truth, 0.951) == Threshold(
        0.85, 0.951, True, Proportion(40, 100), Proportion(40, 40)
    )


def test_a_target_that_all_answers_reach_leaves_nobody_uncertain() -> None:
    probabilities, truth = two_classes(np.linspace(0.5, 1, 100), np.arange(100) < 90)
    chosen = choose_threshold(probabilities, truth, 0.9)
    assert chosen == Threshold(0.5, 0.9, True, Proportion(100, 100), Proportion(90, 100))
    thirds = np.array([[0.4, 0.3, 0.3]] * 30)
    assert choose_threshold(thirds, [0] * 30, 0.98).value == 1 / 3


def test_a_target_out_of_reach_gives_the_most_precise_usable_threshold() -> None:
    # The 19 surest are all right, but too few to tell: of 20 and more, the best are 38 right of 40.
    confidence = np.repeat([0.99, 0.9, 0.7], [19, 21, 60])
    right = np.concatenate([np.full(19, True), np.arange(21) < 19, np.arange(60) < 30])
    chosen = choose_threshold(*two_classes(confidence, right), 0.99)
    assert chosen == Threshold(0.8, 0.99, False, Proportion(40, 100), Proportion(38, 40))


def test_of_equally_precise_thresholds_the_one_that_answers_most() -> None:
    confidence = np.repeat([0.9, 0.8, 0.7], [20, 20, 60])
    right = np.concatenate([np.arange(20) < 18, np.arange(20) < 18, np.arange(60) < 30])
    chosen = choose_threshold(*two_classes(confidence, right), 0.99)
    assert (chosen.reached, chosen.value, chosen.coverage) == (False, 0.75, Proportion(40, 100))


def test_one_in_twenty_must_be_answered() -> None:
    # 40 of 1,000 are sure and right; the rest is a coin.
    confidence = np.repeat([0.99, 0.6], [40, 960])
    chosen = choose_threshold(*two_classes(confidence, (np.arange(1000) < 40) | (np.arange(1000) % 2 == 0)), 0.98)
    assert (chosen.reached, chosen.value) == (False, 0.5)


@pytest.mark.parametrize(("total", "usable"), [(400, True), (401, False)])
def test_one_in_twenty_is_meant_exactly(total: int, usable: bool) -> None:
    confidence = np.repeat([0.99, 0.6], [20, total - 20])
    chosen = choose_threshold(*two_classes(confidence, np.arange(total) < 20), 0.98)
    assert (chosen.reached, chosen.coverage.count) == ((True, 20) if usable else (False, total))


def test_a_threshold_never_parts_confidences_that_rounding_could_swap() -> None:
    # A wrong one lies a millionth below 30 right ones: it cannot be left out without being at the mercy of rounding.
    confidence = np.concatenate([np.full(30, 0.900001), [0.9], np.full(30, 0.8)])
    right = np.concatenate([np.full(30, True), [False], np.full(30, False)])
    chosen = choose_threshold(*two_classes(confidence, right), 0.97)
    assert (chosen.reached, chosen.coverage) == (False, Proportion(31, 61))


def test_no_picture_gives_no_threshold() -> None:
    with pytest.raises(ValueError, match="no pictures"):
        choose_threshold(np.empty((0, 2)), [], 0.98)


@st.composite
def scored(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a classifier that knows something, some of them equal or nearly so, and the truth."""
    classes, pictures = draw(st.integers(2, 4)), draw(st.integers(1, 200))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    probabilities = random.dirichlet(np.full(classes, draw(st.sampled_from([0.1, 1.0]))), pictures)
    probabilities = probabilities.round(draw(st.sampled_from([1, 2, 5, 6, 16])))
    probabilities[:, 0] = 1 - probabilities[:, 1:].sum(axis=1)
    truth = np.array([random.choice(classes, p=np.abs(row) / np.abs(row).sum()) for row in probabilities])
    return probabilities, truth


@given(data=scored(), target=st.sampled_from([0.5, 0.8, 0.9, 0.98, 1.0]))
def test_a_threshold_keeps_its_word_and_no_smaller_one_does(data: tuple[np.ndarray, np.ndarray], target: float) -> None:
    probabilities, truth = data
    chosen = choose_threshold(probabilities, truth, target)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    assert chosen.value >= 1 / probabilities.shape[1]
    assert chosen.coverage.total == len(truth)
    assert chosen.coverage.count == chosen.precision.total
    assert chosen.reached == (chosen.precision.value >= target)

    fewest = min(len(truth), max(FEWEST_ANSWERED, LEAST_COVERAGE * len(truth)))
    answered = confidence >= chosen.value - 1e-9  # 1/classes may be a rounding error above an even guess
    assert answered.sum() == chosen.coverage.count >= fewest
    assert right[answered].sum() == chosen.precision.count

    ordered = np.sort(confidence)
    gaps = (ordered[1:] - ordered[:-1]) >= SEPARATION
    for other in [0.0, *((ordered[1:] + ordered[:-1]) / 2)[gaps]]:
        answered = confidence >= other
        if answered.sum() < fewest:
            continue
        precision = right[answered].mean()
        if chosen.reached:
            assert precision < target or answered.sum() <= chosen.coverage.count
        else:
            assert precision < target
            assert (precision, answered.sum()) <= (chosen.precision.value, chosen.coverage.count)


@given(data=scored(), target=st.sampled_from([0.8, 0.98]))
def test_serving_answers_the_very_pictures_that_were_counted(
    data: tuple[np.ndarray, np.ndarray], target: float
) -> None:
    probabilities, truth = data
    chosen = choose_threshold(probabilities, truth, target)
    if chosen.coverage.count == len(truth):
        return
    labels = [str(number) for number in range(probabilities.shape[1])]
    served = [
        decide([round(float(p), PROBABILITY_DIGITS) for p in row], labels, chosen.value)
        for row in probabilities.astype(np.float32)
    ]
    answered = [label != UNCERTAIN for label in served]
    assert answered == (probabilities.max(axis=1) >= chosen.value).tolist()
    assert sum(answered) == chosen.coverage.count


# Risk and coverage


def test_a_risk_coverage_curve_by_hand() -> None:
    coverage, risk = risk_coverage(np.array([0.7, 0.9, 0.6, 0.8]), np.array([True, True, False, False]))
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk.tolist() == pytest.approx([0, 1 / 2, 1 / 3, 2 / 4])
    assert area_under_risk_coverage(coverage, risk) == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)


def test_equal_confidences_are_answered_together() -> None:
    coverage, risk = risk_coverage(np.array([0.9, 0.9, 0.6]), np.array([False, True, True]))
    assert coverage.tolist() == pytest.approx([2 / 3, 1])
    assert risk.tolist() == pytest.approx([1 / 2, 1 / 3])
    assert area_under_risk_coverage(coverage, risk) == pytest.approx((2 * 1 / 2 + 1 / 3) / 3)


def test_no_pictures_have_no_curve() -> None:
    coverage, risk = risk_coverage(np.empty(0), np.empty(0, dtype=bool))
    assert len(coverage) == len(risk) == 0
    assert area_under_risk_coverage(coverage, risk) == 0


@given(values=st.lists(st.tuples(st.sampled_from([0.5, 0.6, 0.7, 1.0]), st.booleans()), min_size=1, max_size=50))
def test_the_curve_ends_at_the_error_of_all_and_no_order_of_pictures_changes_it(
    values: list[tuple[float, bool]],
) -> None:
    confidence, right = (np.array(column) for column in zip(*values, strict=True))
    coverage, risk = risk_coverage(confidence, right)
    assert coverage[-1] == 1
    assert risk[-1] == pytest.approx(1 - right.mean())
    assert (np.diff(coverage) > 0).all()
    assert 0 <= area_under_risk_coverage(coverage, risk) <= 1
    backwards = risk_coverage(confidence[::-1], right[::-1])
    assert [curve.tolist() for curve in backwards] == [coverage.tolist(), risk.tolist()]


# The interval where several pictures show one person


def of_people(right: Sequence[bool] | np.ndarray, people: Sequence[object]) -> Proportion:
    return Proportion.of(right, numbered(people))


def test_an_effective_number_by_hand() -> None:
    # Two people of three pictures, 3 and 1 of them right; one of two, 1 right: p = 5/8, k - mp = 9/8, -7/8, -2/8.
    variance = 3 / 2 * (9**2 + 7**2 + 2**2) / 8**2 / 8**2
    found = of_people([True, True, True, True, False, False, True, False], "aaabbbcc")
    assert (found.count, found.total) == (5, 8)
    assert found.effective == pytest.approx(5 / 8 * 3 / 8 / variance)
    assert found.value == 5 / 8


def test_an_effective_number_where_nothing_varies() -> None:
    # All right, or of everybody the same share: all pictures of a person are taken to agree.
    assert of_people([True] * 8, "aaabbbcc").effective == pytest.approx(64 / (9 + 9 + 4))
    assert of_people([False] * 8, "aaabbbcc").effective == pytest.approx(64 / (9 + 9 + 4))
    assert of_people([True, False] * 3, "aabbcc").effective == pytest.approx(3)
    low, high = of_people([True] * 8, "aaabbbcc").interval
    assert high == 1
    assert low < Proportion(3, 3).interval[0] + 0.01


def test_pictures_of_as_many_people_are_independent() -> None:
    right = np.arange(400) < 320
    assert of_people(right, range(400)) == Proportion(320, 400) == Proportion.of(right)


def test_pictures_that_only_repeat_their_person_add_nothing() -> None:
    """Ten copies of each picture: the interval is that of the hundred people, not of a thousand pictures."""
    copied = of_people(np.repeat(np.arange(100) < 80, 10), np.repeat(np.arange(100), 10).tolist())
    assert copied.effective == pytest.approx(99)
    assert copied.interval == pytest.approx(Proportion(80, 100).interval, abs=0.001)


def test_one_person_counts_as_one_picture_and_nobody_says_nothing() -> None:
    assert of_people([True, False], ["a", "a"]) == Proportion(1, 2, 1.0)
    assert of_people([True], ["a"]) == Proportion(1, 1)
    assert of_people([], []) == Proportion(0, 0)


@given(values=st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=1, max_size=40))
def test_an_effective_number_is_at_most_the_pictures_whatever_their_order(values: list[tuple[bool, int]]) -> None:
    right, people = zip(*values, strict=True)
    found = of_people(right, [f"\udce9{number}" for number in people])
    assert found.effective is None or 1 <= found.effective <= len(values)
    assert found == of_people(right[::-1], people[::-1])
    low, high = found.interval
    assert low <= Proportion.of(right).interval[0] + 1e-12
    assert high >= Proportion.of(right).interval[1] - 1e-12


@pytest.mark.parametrize(("people", "least"), [(8, 0.85), (40, 0.9)])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(people: int, least: float) -> None:
    random = np.random.default_rng(people)
    held = 0
    for _ in range(500):
        numbers = np.repeat(np.arange(people), random.integers(1, 8, people))
        right = random.random(len(numbers)) < random.beta(0.9, 0.1, people)[numbers]  # a person's mostly agree
        low, high = of_people(right, numbers.tolist()).interval
        held += low <= 0.9 <= high
    assert held / 500 > least


def test_all_figures_know_who_is_on_the_pictures() -> None:
    thrice = np.repeat(EXAMPLE, 3, axis=0), np.repeat(TRUTH, 3)
    alone, of_five = (measure(*thrice, LABELS, 0.6, groups) for groups in (None, [str(n // 3) for n in range(15)]))
    assert (alone.people, alone.pictures) == (15, "15 pictures")
    assert (of_five.people, of_five.pictures) == (5, "15 pictures of 5 people")
    assert of_five.to_dict()["people"] == 5
    for name in ("accuracy", "coverage", "decided_right"):
        many, few = getattr(alone, name), getattr(of_five, name)
        assert (few.count, few.total) == (many.count, many.total)
        assert few.effective < 5.1
        assert many.effective is None
    for index in (0, 1):
        assert of_five.recalls[index].effective == pytest.approx(2 - index)
        assert of_five.precisions[index].effective == pytest.approx((2, 1)[index])


def test_the_threshold_is_the_same_whoever_is_on_the_pictures() -> None:
    probabilities, truth = two_classes(np.linspace(0.5, 1, 100), np.arange(100) < 90)
    alone, grouped = (
        choose_threshold(probabilities, truth, 0.95, who) for who in (None, [str(n // 4) for n in range(100)])
    )
    assert alone.value == grouped.value
    assert (alone.precision.effective, alone.coverage.effective) == (None, None)
    assert grouped.coverage.effective is not None
    assert grouped.coverage.effective < 50


def test_the_figures_of_a_threshold_know_who_is_on_which_picture() -> None:
    random = np.random.default_rng(0)
    people = np.repeat(np.arange(25), 4)
    probabilities, truth = two_classes(random.uniform(0.5, 1, 100), random.random(25)[people] < 0.8)
    chosen = choose_threshold(probabilities, truth, 0.95, people.astype(str).tolist())
    answered, right = probabilities.max(axis=1) >= chosen.value, probabilities.argmax(axis=1) == truth
    assert 20 <= answered.sum() < 100
    assert chosen.coverage == Proportion.of(answered, people)
    assert chosen.precision == Proportion.of(right[answered], people[answered])


# Against scikit-learn


@pytest.mark.parametrize("classes", [2, 3])
def test_agrees_with_scikit_learn(classes: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(classes)
    truth = random.integers(0, classes, 500)
    probabilities = random.dirichlet(np.ones(classes), 500)
    answers = probabilities.argmax(axis=1)
    labels = [f"class {number}" for number in range(classes)]
    metrics = measure(probabilities, truth, labels, 0.5)
    precision, recall, _, _ = sklearn.precision_recall_fscore_support(truth, answers)
    assert [share.value for share in metrics.precisions] == pytest.approx(precision)
    assert [share.value for share in metrics.recalls] == pytest.approx(recall)
    assert metrics.accuracy.value == pytest.approx(sklearn.accuracy_score(truth, answers))
    assert metrics.log_loss == pytest.approx(sklearn.log_loss(truth, probabilities))
    assert metrics.confusion.tolist() == sklearn.confusion_matrix(truth, answers).tolist()
