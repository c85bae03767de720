"""evaluation/metrics.py: figures against ones worked out by hand, in the literature, and by scikit-learn."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gender_batch.evaluation.metrics import (
    CALIBRATION_BINS,
    Proportion,
    calibration_bins,
    expected_calibration_error,
    measure,
)

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


# Metrics

# Truth:  f     f     f     m     m        answered: f f m m f
EXAMPLE = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.2, 0.8], [0.55, 0.45]])
TRUTH = [0, 0, 0, 1, 1]


def test_an_example_by_hand() -> None:
    metrics = measure(EXAMPLE, TRUTH, LABELS, threshold=0.6)
    assert metrics.confusion.tolist() == [[2, 1], [1, 1]]
    assert metrics.accuracy == Proportion(3, 5)
    assert metrics.recall(0) == Proportion(2, 3)
    assert metrics.recall(1) == Proportion(1, 2)
    assert metrics.precision(0) == Proportion(2, 3)
    assert metrics.precision(1) == Proportion(1, 2)
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
    assert metrics.recall(1) == Proportion(0, 0)
    assert metrics.precision(1) == Proportion(0, 0)
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
    assert bins == [(1, 0.0, 0.0), (1, 0.5, 1.0), (2, 1.0, 0.5)]


@given(values=st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=50))
def test_calibration_error_is_a_share_and_bins_are_complete(values: list[tuple[float, bool]]) -> None:
    confidence = np.array([value for value, _ in values])
    right = np.array([value for _, value in values], dtype=bool)
    bins = calibration_bins(confidence, right)
    assert sum(count for count, _, _ in bins) == len(values)
    assert len(bins) <= CALIBRATION_BINS
    assert 0 <= expected_calibration_error(confidence, right) <= 1


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
    assert [metrics.precision(i).value for i in range(classes)] == pytest.approx(precision)
    assert [metrics.recall(i).value for i in range(classes)] == pytest.approx(recall)
    assert metrics.accuracy.value == pytest.approx(sklearn.accuracy_score(truth, answers))
    assert metrics.log_loss == pytest.approx(sklearn.log_loss(truth, probabilities))
    assert metrics.confusion.tolist() == sklearn.confusion_matrix(truth, answers).tolist()
