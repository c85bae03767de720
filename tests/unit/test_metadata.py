"""model/metadata.py: what a model file says of itself, and what is refused."""

import json
from dataclasses import replace
from typing import Any

import pytest

from gender_batch.model.metadata import FORMAT_VERSION, Metadata, ModelError
from gender_batch.pictures.preprocessing import FaceCrop, Preprocessing

METADATA = Metadata(
    labels=("female", "male"),
    preprocessing=Preprocessing(size=160, resize=171),
    pictures="photo",
    threshold=0.6,
    training={"data": "sha256:00", "epochs": 4, "note": "é 日本"},
    figures={"accuracy": {"value": 0.8934, "low": 0.88, "high": 0.9}},
    attributions=("FairFace, CC BY 4.0",),
    program="gender-batch 0.1.0",
)

SOURCE = "/models/mine.onnx"


def changed(**values: Any) -> str:
    """The JSON text of METADATA with other values; `...` leaves a key out."""
    content = {**json.loads(METADATA.to_json()), **values}
    return json.dumps({name: value for name, value in content.items() if value is not ...})


def refusal(text: str | None) -> str:
    with pytest.raises(ModelError) as caught:
        Metadata.from_json(text, SOURCE)
    message = str(caught.value)
    assert message.startswith(f"{SOURCE}: ")
    assert "gender-batch export" in message or "export the model again" in message, "no remedy"
    return message


def test_round_trip() -> None:
    assert Metadata.from_json(METADATA.to_json(), SOURCE) == METADATA
    faces = replace(METADATA.preprocessing, face=FaceCrop(margin=0.5))
    other = replace(METADATA, pictures="face", labels=("a", "b", "c"), attributions=(), training={}, figures={})
    other = replace(other, preprocessing=faces)
    assert Metadata.from_json(other.to_json(), SOURCE) == other


def test_a_model_of_faces_from_before_they_were_cut_out_gets_the_default() -> None:
    found = Metadata.from_json(changed(pictures="face"), SOURCE)
    assert found.preprocessing == replace(METADATA.preprocessing, face=FaceCrop())


def test_everything_is_in_the_json() -> None:
    content = json.loads(METADATA.to_json())
    assert content["format_version"] == FORMAT_VERSION
    assert content["labels"] == ["female", "male"]
    assert content["preprocessing"] == {
        "size": 160,
        "resize": 171,
        "interpolation": "bilinear",
        "decoding": "scaled",
    }
    assert content["threshold"] == 0.6


def test_a_file_without_metadata_is_refused() -> None:
    assert "without gender-batch's metadata" in refusal(None)


@pytest.mark.parametrize("version", [0, FORMAT_VERSION + 1, "2", None])
def test_another_format_version_is_refused_whatever_else_it_says(version: object) -> None:
    message = refusal(changed(format_version=version, preprocessing={"of": "the future"}, labels=...))
    assert str(version) in message
    assert str(FORMAT_VERSION) in message


@pytest.mark.parametrize(
    ("preprocessing", "told"),
    [
        ({**METADATA.preprocessing.to_dict(), "interpolation": "bicubic"}, "bicubic"),
        ({**METADATA.preprocessing.to_dict(), "decoding": "whole"}, "whole"),
        ({**METADATA.preprocessing.to_dict(), "mean": 0.5}, "mean"),
        ({**METADATA.preprocessing.to_dict(), "size": 999}, "999"),
        ({**METADATA.preprocessing.to_dict(), "size": 200_000, "resize": 200_000}, "200000"),
        ({**METADATA.preprocessing.to_dict(), "face": {"margin": 0.25}}, "margin"),
        ({**METADATA.preprocessing.to_dict(), "face": {"margin": 9, "alignment": "landmarks"}}, "margin 9"),
        ({**METADATA.preprocessing.to_dict(), "face": {"margin": 0.25, "alignment": "ears"}}, "ears"),
        ({**METADATA.preprocessing.to_dict(), "face": None}, "None"),
        ({}, "size"),
    ],
)
def test_unknown_preprocessing_is_refused_and_named(preprocessing: dict[str, object], told: str) -> None:
    assert told in refusal(changed(preprocessing=preprocessing))


@pytest.mark.parametrize("labels", [[], ["a"], ["a", "a"], ["a", "a", "b"]])
def test_labels_are_two_or_more_different_names(labels: list[str]) -> None:
    """Two columns of a row must not have one name: in JSON one of them would be lost."""
    assert "not two or more different names" in refusal(changed(labels=labels))


def test_a_class_called_as_the_answer_of_who_does_not_know_is_refused() -> None:
    assert "called 'uncertain'" in refusal(changed(labels=["female", "male", "uncertain"]))


@pytest.mark.parametrize("labels", [["", "b"], ["a", "\ud800"], "ab", ["a", 1], [["a"], ["b"]]])
def test_labels_are_texts_that_can_be_written(labels: object) -> None:
    assert "damaged metadata" in refusal(changed(labels=labels))


@pytest.mark.parametrize(
    ("name", "value"), [("training", "x"), ("figures", [1]), ("attributions", "abc"), ("attributions", [1])]
)
def test_what_is_told_of_a_model_is_of_its_kind(name: str, value: object) -> None:
    assert "damaged metadata" in refusal(changed(**{name: value}))


@pytest.mark.parametrize("threshold", [-0.1, 1.5, 50, float("nan"), float("inf"), "0.6", None, True])
def test_a_threshold_that_is_no_probability_is_refused(threshold: object) -> None:
    assert "threshold" in refusal(changed(threshold=threshold))


@pytest.mark.parametrize("threshold", [0, 0.5, 1])
def test_any_probability_may_be_the_threshold(threshold: float) -> None:
    assert Metadata.from_json(changed(threshold=threshold), SOURCE).threshold == threshold


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "not json",
        "null",
        "[]",
        "1",
        '"text"',
        "{}",
        METADATA.to_json()[:-20],
        changed(labels=...),
        changed(threshold=...),
        changed(preprocessing=...),
        changed(format_version=...),
        changed(preprocessing=None),
        changed(preprocessing=[]),
        changed(labels=None),
        changed(attributions=1),
        changed(of_the_future=True),
    ],
)
def test_damaged_metadata_is_refused(text: str) -> None:
    refusal(text)
