"""The model card's tables, from figures made by hand."""

from __future__ import annotations

import html
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from gender_batch_export.card import Variant, model_card
from gender_batch_export.heldout import HeldOut, Picture

from gender_batch.evaluation.groups import by_group
from gender_batch.evaluation.metrics import Proportion, measure
from gender_batch.model.metadata import Metadata
from gender_batch.model.session import DEFAULT_FOLDER, Model
from gender_batch.pictures.preprocessing import Preprocessing

LABELS = ("female", "male")
TRUTH = [0, 0, 0, 0, 1, 1, 1, 1]
AGES = ["3-9", "10-19"] * 4

METADATA = Metadata(
    labels=LABELS,
    preprocessing=Preprocessing(size=4, resize=4),
    pictures="face",
    threshold=0.7,
    training={
        "program": "test",
        "recipe": {"adapt_epochs": 1, "fine_epochs": 2, "image_size": 4, "seed": 0},
        "epochs": 3,
        "pictures": {"train": 5000, "val": 6, "test": 8},
        "groups": None,
        "data_sha256": "abc",
        "auxiliary_columns": ["age"],
        "init_training": {
            "program": "earlier",
            "epochs": 17,
            "pictures": {"train": 4000, "val": 6, "test": 8},
            "data_sha256": "def",
            "init_training": None,
        },
    },
    figures={"val": None, "test": None},
    attributions=("somebody, CC BY",),
    program="test",
)


def variant(precision: str, file: str | None, answers: list[int]) -> Variant:
    probabilities = np.array([[0.9, 0.1] if answer == 0 else [0.4, 0.6] for answer in answers])
    right = [answer == label for answer, label in zip(answers, TRUTH, strict=True)]
    return Variant(
        precision=precision,
        file=file,
        size=2_760_000,
        digest="0123",
        proof=f"proof of {precision}",
        metrics=measure(probabilities, TRUTH, LABELS, 0.7),
        agreement=Proportion(7, 8),
        groups=by_group(
            [{"age": age, "gender": LABELS[label]} for age, label in zip(AGES, TRUTH, strict=True)],
            [LABELS[label] for label in TRUTH],
            right,
        ),
    )


def card(
    split: str = "test",
    metadata: Metadata = METADATA,
    people: int = 8,
    judged_by_test: bool = False,
    lower: tuple[str, ...] = ("int8",),
    gone: int = 0,
) -> str:
    pictures = tuple(
        Picture(f"{number}.jpg", label, f"{number % people}", {}, ()) for number, label in enumerate(TRUTH)
    )
    held = HeldOut(pictures, pictures[:3], pictures[3:], pictures, split, gone, judged_by_test)
    others = [variant(precision, f"m.{precision}.onnx", [0, 0, 0, 1, 1, 1, 0, 0]) for precision in lower]
    return model_card(metadata, [variant("fp32", None, TRUTH), *others], held, "m", lower_judged=bool(lower))


def test_figures_per_precision() -> None:
    lines = card().splitlines()
    assert any(line.startswith("| fp32 | not written | 2.8 | 100.00% [67.56%, 100.00%] |") for line in lines)
    int8 = next(line for line in lines if line.startswith("| int8 | m.int8.onnx | 2.8 |"))
    cells = [cell.strip() for cell in int8.strip("|").split("|")]
    assert [cell.split(" ")[0] for cell in cells[3:]] == ["62.50%", "0.2125", "62.50%", "60.00%", "87.50%"]


def test_figures_per_group_and_label_and_both() -> None:
    lines = card().splitlines()

    def accuracies(group: str) -> list[str]:
        cells = next(line for line in lines if line.startswith(f"| {group} |")).split("|")[2:-1]
        return [cell.strip().split(" ")[0] for cell in cells]

    assert accuracies("female") == ["4", "100.00%", "75.00%"]
    assert accuracies("male") == ["4", "100.00%", "50.00%"]
    assert accuracies("3-9") == ["4", "100.00%", "75.00%"]
    assert accuracies("10-19, female") == ["2", "100.00%", "50.00%"]
    assert lines.index("| age | pictures | fp32 | int8 |") < lines.index("| age x label | pictures | fp32 | int8 |")
    assert not any("gender" in line for line in lines if line.startswith("|"))  # it is the label itself


def test_the_card_tells_on_what() -> None:
    assert "the same 8 test pictures" in card()
    assert "the same 8 validation pictures" in card("val")
    assert "on which nothing was chosen;" in card()
    assert "runs it; int8 on validation pictures, int8 calibrated on 3 others.\n" in card()
    assert "runs it; fp16 on validation pictures.\n" in card(lower=("fp16",))
    told = card(judged_by_test=True, lower=("fp16", "int8"))
    assert "on which nothing was chosen but whether a lower precision is good enough, with few for validation;" in told
    assert "; fp16 and int8 on validation and test pictures, int8 calibrated on 3 others of validation.\n" in told
    alone = card(judged_by_test=True, lower=())
    assert "on which nothing was chosen;" in alone
    assert "runs it.\n" in alone
    assert "could not be read" not in card()
    assert "evenly. 1,200 held-out pictures could not be read any more.\n" in card(gone=1200)
    assert "- int8: proof of int8." in card()
    assert "SHA-256 of m.int8.onnx" in card()
    assert "SHA-256 of None" not in card()
    assert "\n\n\n" not in card()


def test_the_card_tells_how_many_people_are_on_the_pictures() -> None:
    assert "the same 8 test pictures of 3 people, on which nothing was chosen" in card(people=3)
    figures = measure(np.full((8, 2), 0.5), TRUTH, LABELS, 0.7, list("aaabbbcc")).to_dict()
    assert "| pictures | 8 of 3 people |" in card(metadata=replace(METADATA, figures={"val": None, "test": figures}))
    del figures["people"]  # as in a checkpoint of an earlier version
    assert "| pictures | 8 |" in card(metadata=replace(METADATA, figures={"val": None, "test": figures}))


@pytest.mark.parametrize(
    ("split", "words"),
    [("test", "nothing was chosen"), ("val", "weights, threshold and precisions were chosen on them")],
)
def test_the_card_tells_which_weights_were_kept(split: str, words: str) -> None:
    text = card(split)
    assert "at most 1 epochs, then fine-tuning of all weights for 2 (3 epochs run in all)" in text
    assert "weights kept after comparing losses on validation; temperature and threshold fitted" in text
    assert "best epoch" not in text
    assert words in text
    training = {**METADATA.training, "kept": "mean of the first and the last weights"}
    told = card(split, replace(METADATA, training=training))
    assert "comparing losses on validation: the mean of the first and the last weights; temperature" in told
    without = {**METADATA.training, "recipe": {**METADATA.training["recipe"], "fine_epochs": 0}}
    assert "at most 1 epochs, no fine-tuning (3 epochs" in card(split, replace(METADATA, training=without))


def test_what_others_wrote_is_shown_and_is_no_mark() -> None:
    """Labels are folders' names, values are of the user's table: of any characters, even undecodable bytes."""
    labels = ("a|b", "<b>`\n\udce9[x](y) é")
    told = measure(np.array([[0.9, 0.1], [0.4, 0.6]]), [0, 1], labels, 0.7)
    groups = by_group([{"who|": "*x*\r", "no": ""}, {"who|": "\ud800&", "no": "\u202e"}], list(labels), [True, False])
    one = replace(variant("fp32", "m\udce9.onnx", TRUTH), metrics=told, groups=groups)
    pictures = tuple(Picture(f"{label}.jpg", label, str(label), {}, ()) for label in (0, 1))
    held = HeldOut(proof=pictures, calibration=(), gate=(), figures=pictures, split="test")
    training = {**METADATA.training, "groups": "(`.*`)", "auxiliary_columns": ["<i>"]}
    figures = {"test": told.to_dict(), "val": None}
    attributions = ("me\n# Another", "x <y>")
    metadata = replace(METADATA, labels=labels, training=training, figures=figures, attributions=attributions)
    text = model_card(metadata, [one], held, "m\udce9", lower_judged=False)
    assert "int8" not in text  # which there is not

    assert text.encode() == text.encode("utf-8")
    assert all(line.isprintable() for line in text.splitlines())
    for mark in ("<b>", "<i>", "<y>", "*x*", "[x]", "\n# Another", "`.*`"):
        assert mark not in text
    for line in (line for line in text.splitlines() if line.startswith("|")):
        assert line.count("|") in {3, 4, 9}, line
    rendered = html.unescape(text)
    for shown in (
        "| precision, a|b |",
        "| <b>`\\n\\xe9[x](y) é | 1 |",
        "| *x*\\r |",
        "| \\ud800& |",
        "person ((`.*`))",
    ):
        assert shown in rendered, shown
    assert "answers `a|b` or " in text


def test_the_card_of_the_programs_own_model_says_what_the_export_would() -> None:
    model = Model(DEFAULT_FOLDER / "apparent-gender.onnx")
    expected = card(metadata=model.metadata).splitlines()
    shipped = (DEFAULT_FOLDER / "apparent-gender.md").read_text(encoding="utf-8").splitlines()
    start, end = (expected.index(f"## {title}") for title in ("Data and training", "Figures of the files"))
    assert shipped[start:end] == expected[start:end]
    start, other = (lines.index("## Figures of the checkpoint, from training") for lines in (shipped, expected))
    end, other_end = (lines.index("## Proof of export") for lines in (shipped, expected))
    assert shipped[start:end] == expected[other:other_end]


def test_the_card_tells_what_came_before() -> None:
    assert "Learnt beside the classes, for the features' sake: age." in card()
    assert "Started from the features of an earlier training (earlier): 4,000 pictures, 17 epochs, data `def`" in card()
    earlier = {**METADATA.training["init_training"], "mean_of_both": True}
    mean = card(metadata=replace(METADATA, training={**METADATA.training, "init_training": earlier}))
    assert "Started from the mean of the weights before and after an earlier training (earlier): 4,000" in mean
