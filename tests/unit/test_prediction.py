"""prediction.py: the row and its label."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gender_batch.prediction import UNCERTAIN, Person, Prediction, Reason, Status, columns, decide

LABELS = ("female", "male")


def test_columns_are_those_of_the_contract() -> None:
    assert columns(LABELS) == (
        "path",
        "status",
        "label",
        "confidence",
        "p_female",
        "p_male",
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


def test_values_stand_under_their_columns() -> None:
    row = Prediction("a.jpg", Status.OK, "male", (0.25, 0.75), faces=1, width=640, height=480, box=(10, 20, 30, 40))
    assert dict(zip(columns(LABELS), row.values(2), strict=True)) == {
        "path": "a.jpg",
        "status": "ok",
        "label": "male",
        "confidence": 0.75,
        "p_female": 0.25,
        "p_male": 0.75,
        "faces": 1,
        "width": 640,
        "height": 480,
        "error": None,
        "face_x": 10,
        "face_y": 20,
        "face_w": 30,
        "face_h": 40,
        "reason": None,
    }


def test_a_failed_picture_has_neither_label_nor_probability() -> None:
    row = Prediction("a.jpg", Status.TOO_LARGE, width=60_000, height=60_000, error="too many")
    assert row.confidence is None
    assert row.values(2) == (
        "a.jpg",
        "too_large",
        None,
        None,
        None,
        None,
        None,
        60_000,
        60_000,
        "too many",
        *[None] * 5,
    )
    assert type(row.values(2)[1]) is str


def test_a_row_for_every_face() -> None:
    person = Person("uncertain", (0.6, 0.4), (1, 2, 3, 4), Reason.LOW_CONFIDENCE)
    row = Prediction("a.jpg", Status.OK, "male", (0.25, 0.75), 2, 640, 480, box=(10, 20, 30, 40), others=(person,))
    first, second = row.every_face()
    assert first == replace(row, others=())
    assert second.values(2) == (
        "a.jpg", "ok", "uncertain", 0.6, 0.6, 0.4, 2, 640, 480, None, 1, 2, 3, 4, "low_confidence",
    )  # fmt: skip
    assert list(first.every_face()) == [first]


def test_only_what_is_wrong_with_a_file_is_a_failure() -> None:
    assert {status for status in Status if not status.failed} == {Status.OK, Status.NO_FACE}


@pytest.mark.parametrize("status", Status)
@given(classes=st.integers(1, 10), failed=st.booleans())
def test_columns_and_values_agree_in_length(status: Status, classes: int, failed: bool) -> None:
    labels = [f"class {number}" for number in range(classes)]
    row = Prediction("a.jpg", status, probabilities=() if failed else (1 / classes,) * classes)
    assert len(row.values(classes)) == len(columns(labels))


def test_statuses_are_those_of_the_contract() -> None:
    expected = "ok corrupt unsupported too_large unreadable empty no_face timeout crashed"
    assert [status.value for status in Status] == expected.split()


@pytest.mark.parametrize(
    ("probabilities", "threshold", "label"),
    [
        ((0.9, 0.1), 0.6, "female"),
        ((0.1, 0.9), 0.6, "male"),
        ((0.6, 0.4), 0.6, "female"),
        ((0.599999, 0.400001), 0.6, UNCERTAIN),
        ((0.4, 0.6), 0.600001, UNCERTAIN),
        ((0.5, 0.5), 0.5, "female"),
        ((0.5, 0.5), 0.0, "female"),
        ((0.0, 1.0), 1.0, "male"),
        ((0.000001, 0.999999), 1.0, UNCERTAIN),
    ],
)
def test_the_label_at_and_below_the_threshold(probabilities: tuple[float, ...], threshold: float, label: str) -> None:
    assert decide(probabilities, LABELS, threshold) == label


def test_more_than_two_classes() -> None:
    assert decide((0.2, 0.3, 0.5), ("a", "b", "c"), 0.5) == "c"
    assert decide((0.2, 0.4, 0.4), ("a", "b", "c"), 0.4) == "b"


@given(p=st.floats(0, 1), threshold=st.floats(0, 1))
def test_the_label_follows_from_the_row_itself(p: float, threshold: float) -> None:
    probabilities = (round(p, 6), round(1 - p, 6))
    label = decide(probabilities, LABELS, threshold)
    row = Prediction("a.jpg", Status.OK, label, probabilities)
    assert row.confidence is not None
    assert (row.label == UNCERTAIN) == (row.confidence < threshold)
    if row.label != UNCERTAIN:
        assert probabilities[LABELS.index(label)] == row.confidence
