"""evaluation/report.py, gallery.py, groups.py, text.py: one page that opens anywhere, whatever the files are called."""

from __future__ import annotations

import base64
import os
import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from samples import encoded, noise

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from gender_batch.evaluation.gallery import (
    MOST,
    Answer,
    _choose,
    confident_errors,
    draw_gallery,
    least_certain,
    thumbnail,
)
from gender_batch.evaluation.groups import Group, by_group
from gender_batch.evaluation.metrics import Bin, Proportion, Threshold
from gender_batch.evaluation.plots import (
    draw_confusion,
    draw_curves,
    draw_reliability,
    draw_risk_coverage,
    plot_confusion,
    plot_curves,
    plot_reliability,
)
from gender_batch.evaluation.report import IN_GALLERY, Report, ScalePoint, write_report
from gender_batch.evaluation.text import printable
from gender_batch.pictures.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(size=32, resize=34)
HOSTILE = '<script>alert("x")</script>&'


@dataclass(frozen=True)
class Epoch:
    phase: str
    train_loss: float
    val_loss: float
    train_accuracy: float
    val_accuracy: float


HISTORY = [Epoch("adapt", 0.7, 0.6, 0.6, 0.65), Epoch("fine-tune", 0.4, 0.3, 0.8, 0.85)]


@pytest.fixture
def answers(tmp_path: Path) -> list[Answer]:
    """120 pictures of 60 people; each third is wrong, confidences from 0.5 to 0.99."""
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(noise(40, 40), "PNG"))
    found = []
    for number in range(120):
        confidence = 0.5 + number / 240
        found.append(
            Answer(
                path=str(path),
                name=f"photos/{number}.png",
                truth=int(number % 3 == 0),
                probabilities=(confidence, 1 - confidence),
                group=f"person {number // 2}",
                attributes={"age": "3-9" if number % 2 else "10-19", "camera": "old" if number < 30 else "new"},
            )
        )
    return found


@pytest.fixture
def report(answers: list[Answer]) -> Report:
    return Report(
        title="A run",
        facts=(("program", "gender-batch 1"), ("data", "photos")),
        history=HISTORY,
        labels=("female", "male"),
        split="test",
        answers=answers,
        threshold=Threshold(0.75, 0.98, True, Proportion(50, 100), Proportion(49, 50)),
        preprocessing=PREPROCESSING,
        scales=(ScalePoint(0.25, Proportion(7, 10)), ScalePoint(1.0, Proportion(9, 10))),
        notes=("2 pictures were left out",),
    )


class Page(HTMLParser):
    """What a browser would make of the page."""

    VOID = frozenset({"meta", "img", "br", "hr", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.headings: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == "h2":
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        if self._open[-1:] == ["h2"]:
            self.headings[-1] += data
        self.text += re.sub(r"\s+", " ", data)

    def images(self, kind: str) -> list[bytes]:
        start = f"data:{kind};base64,"
        found = [value for tag, name, value in self.attributes if (tag, name) == ("img", "src")]
        return [base64.b64decode(value.removeprefix(start)) for value in found if value.startswith(start)]


def written(report: Report, folder: Path) -> Page:
    write_report(folder / "report.html", report)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


# The page


def test_every_section_is_there(report: Report, tmp_path: Path) -> None:
    page = written(report, tmp_path)
    assert page.headings == [
        "How it was made",
        "Learning curves",
        "Confusion matrix",
        "Reliability diagram",
        "Risk and coverage",
        "Accuracy per group",
        "Accuracy against face scale",
        "The most confident errors",
        "The least certain",
    ]
    # curves, confusion, reliability, risk; age, age x label, camera, camera x label; scale
    drawings = page.images("image/svg+xml")
    assert len(drawings) == 9
    assert len(set(drawings)) == 9
    for drawing in drawings:
        assert ElementTree.fromstring(drawing).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314 - our own
    thumbnails = page.images("image/jpeg")
    assert len(thumbnails) == 2 * IN_GALLERY
    assert Image.open(BytesIO(thumbnails[0])).size == (32, 32)


def test_the_figures_of_the_headline(report: Report, tmp_path: Path) -> None:
    text = written(report, tmp_path).text
    assert "Accuracy66.7%" in re.sub(r"\s+(?=\d)", "", text)
    assert "120 pictures of the test split" in text
    assert "120 pictures of 60 people" in text
    assert "several pictures of one person count for fewer" in text
    assert "50.0%" in text  # answered from 0.75 on: 60 of 120
    assert "smallest threshold at which 98.0%" in text
    assert "2 pictures were left out" in text
    assert "apparent gender as annotators label it" in text
    assert "There was no test split" not in text


def test_thousands_are_set_apart_everywhere(report: Report, tmp_path: Path) -> None:
    many = [replace(answer, path="/nowhere") for answer in report.answers] * 10
    text = written(replace(report, answers=many), tmp_path).text
    assert "1,200 pictures of the test split" in text
    assert "1200" not in text


def test_what_there_is_nothing_to_tell_of_is_left_out(report: Report, tmp_path: Path) -> None:
    alone = [replace(answer, group=answer.name, attributes={}) for answer in report.answers]
    page = written(replace(report, history=(), answers=alone, scales=(), notes=(), facts=()), tmp_path)
    assert page.headings == [
        "Confusion matrix",
        "Reliability diagram",
        "Risk and coverage",
        "The most confident errors",
        "The least certain",
    ]
    assert "people" not in page.text


def test_classes_of_any_kind_and_number(report: Report, tmp_path: Path) -> None:
    answers = [
        replace(answer, truth=number % 3, probabilities=(0.2, 0.5 + number / 1000, 0.3 - number / 1000))
        for number, answer in enumerate(report.answers)
    ]
    page = written(replace(report, labels=("cat", "$dog$", "bird" * 20), split="validation", answers=answers), tmp_path)
    assert "gender" not in page.text.replace("gender-batch 1", "")
    assert "There was no test split" in page.text


def test_a_threshold_that_answers_all_or_misses_its_target_is_called_so(report: Report, tmp_path: Path) -> None:
    everything = Threshold(0.5, 0.5, True, Proportion(100, 100), Proportion(90, 100))
    assert "Every picture is answered" in written(replace(report, threshold=everything), tmp_path).text
    missed = Threshold(0.999, 0.98, False, Proportion(20, 100), Proportion(19, 20))
    text = written(replace(report, threshold=missed), tmp_path).text
    assert "No usable threshold reaches the target of 98.0%" in text
    assert "none answered" in text


def test_nothing_is_fetched_and_nothing_runs(report: Report, tmp_path: Path) -> None:
    page = written(report, tmp_path)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name == "href"]
    source = (tmp_path / "report.html").read_text()
    assert "://" not in source
    assert "url(" not in source
    assert all(value.startswith("data:image/") for _, name, value in page.attributes if name == "src")
    assert all(value for tag, name, value in page.attributes if (tag, name) == ("img", "alt"))
    assert page.tags.count("img") == sum(name == "alt" for _, name, _ in page.attributes)


@pytest.mark.parametrize(
    "text", [HOSTILE, "caf\udce9.jpg", "a\x00b\x1b[31m\u202egpj.exe", '"><img src=x onerror=y>', "$\\frac$"]
)
def test_names_of_any_kind_are_shown_and_do_nothing(text: str, report: Report, tmp_path: Path) -> None:
    answers = [
        replace(answer, name=text, attributes={text: answer.attributes["age"] + text}) for answer in report.answers
    ]
    hostile = replace(
        report,
        title=text,
        facts=((text, text),),
        labels=(text, text + "2"),
        answers=answers,
        notes=(text,),
        history=[replace(point, phase=text) for point in HISTORY],
    )
    plain = written(report, tmp_path)
    page = written(hostile, tmp_path)
    assert set(page.tags) == set(plain.tags)
    assert page.tags.count("img") == 5 + 2 + 2 * IN_GALLERY
    assert {name for _, name, _ in page.attributes} == {name for _, name, _ in plain.attributes}
    assert page.text.count(printable(text)) > 2 * IN_GALLERY
    assert "&lt;figure" not in (tmp_path / "report.html").read_text()


def test_a_picture_that_is_gone_is_left_out(report: Report, tmp_path: Path) -> None:
    gone = [replace(a, path=str(tmp_path / "gone.png")) if a.confidence < 0.505 else a for a in report.answers]
    page = written(replace(report, answers=gone), tmp_path)
    missing = sum(answer.confidence < 0.505 for answer in report.answers)
    assert missing == 2
    assert len(page.images("image/jpeg")) == 2 * IN_GALLERY - missing
    assert "photos/0.png" not in page.text
    nobody = [replace(answer, path="/nowhere", truth=0) for answer in report.answers]
    assert "None to show: no answer is wrong" in written(replace(report, answers=nobody), tmp_path).text


def test_a_picture_whose_name_is_bytes(report: Report, answers: list[Answer], tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    os.rename(answers[0].path, path)
    page = written(replace(report, answers=[replace(answer, path=path, name=path) for answer in answers]), tmp_path)
    assert len(page.images("image/jpeg")) == 2 * IN_GALLERY
    assert "caf\\xe9.png" in page.text


def test_a_report_replaces_the_old_one_whole_or_not_at_all(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(IndexError):
        write_report(path, replace(report, answers=[replace(report.answers[0], truth=5)]))
    assert path.read_text() == "old"
    write_report(path, report)
    assert path.stat().st_mode & 0o077 == 0  # it shows people
    first = path.read_bytes()
    write_report(path, report)
    assert path.read_bytes() == first
    assert len(first) < 3_000_000
    assert {child.name for child in tmp_path.iterdir()} == {"report.html", "picture.png"}


def test_one_answer_makes_a_report(report: Report, tmp_path: Path) -> None:
    page = written(replace(report, answers=report.answers[:1]), tmp_path)
    assert "Accuracy per group" not in page.headings
    assert len(page.images("image/jpeg")) == 2


def test_the_worst_group_is_named_with_its_chances(report: Report, tmp_path: Path) -> None:
    def with_tens(wrong: int) -> str:
        answers = [
            replace(
                a,
                truth=0,
                probabilities=(0.4, 0.6) if n < wrong else (0.9, 0.1),
                attributes={"age": "tens" if n < 30 else "rest"},
            )
            for n, a in enumerate(report.answers)
        ]
        return written(replace(report, answers=answers), tmp_path).text

    assert "Lowest of the groups of at least 20 pictures: age: tens" in with_tens(20)
    assert "Its whole interval lies below" in with_tens(20)
    assert "Of 4 equally good groups about 0.1 would look so by chance" in with_tens(20)
    assert "the lowest of many groups may be so by chance" in with_tens(1)


# Galleries


def test_the_galleries_are_in_order(answers: list[Answer]) -> None:
    errors = confident_errors(answers, 5)
    assert [answer.name for answer in errors] == [f"photos/{number}.png" for number in (117, 114, 111, 108, 105)]
    assert [answer.name for answer in least_certain(answers, 3)] == [f"photos/{number}.png" for number in (0, 1, 2)]
    assert (errors[0].answer, errors[0].right, errors[0].confidence) == (0, False, 0.5 + 117 / 240)


def test_a_thumbnail_is_the_square_that_was_judged_or_the_whole_picture_with_the_face(tmp_path: Path) -> None:
    Image.new("RGB", (80, 40), "navy").save(tmp_path / "a.png")
    answer = Answer(str(tmp_path / "a.png"), "a.png", 0, (0.9, 0.1), "")
    for most, side in ((16, 16), (100, 32)):
        assert thumbnail(answer, PREPROCESSING, most).size == (side, side)
    whole = thumbnail(replace(answer, box=(40, 10, 20, 20)), PREPROCESSING, 40)
    assert whole.size == (40, 20)
    yellow = np.asarray(whole)[:, :, 0] > 150
    assert (yellow.any(0).argmax(), yellow.any(1).argmax()) == (20, 5)


def test_a_sheet_of_right_and_wrong(answers: list[Answer], tmp_path: Path) -> None:
    labels = ("female", "a\udce9\n" + HOSTILE)
    draw_gallery([*answers, replace(answers[0], path="/nowhere")], PREPROCESSING, tmp_path / "gallery.png", labels)
    with Image.open(tmp_path / "gallery.png") as sheet:
        assert sheet.getpixel((0, 0)) == (0xC6, 0x28, 0x28)  # a wrong one comes first
        assert sheet.getpixel((sheet.width - 1, sheet.height - 40)) == (0x2E, 0x7D, 0x32)


def test_half_of_a_sheet_is_wrong_at_most_and_the_right_ones_are_of_every_confidence() -> None:
    def answers(right: int, wrong: int) -> list[Answer]:
        return [Answer("", f"{n}", int(n >= right), (0.6 + n / 1000, 0.4 - n / 1000), "") for n in range(right + wrong)]

    chosen = _choose(answers(100, 100))
    assert [answer.right for answer in chosen] == [False] * (MOST // 2) + [True] * (MOST // 2)
    confidences = [answer.confidence for answer in chosen if answer.right]
    assert (confidences[0], len(set(confidences))) == (0.6 + 99 / 1000, MOST // 2)
    assert confidences[-1] < 0.605
    assert len({answer.name for answer in _choose(answers(100, 3))}) == MOST
    assert len(_choose(answers(5, 3))) == 8


def test_captions_tell_the_answer_and_of_a_wrong_one_the_label(tmp_path: Path) -> None:
    Image.new("RGB", (80, 40), "navy").save(tmp_path / "a.png")
    right = Answer(str(tmp_path / "a.png"), "a.png", 1, (0.1, 0.9), "", box=(40, 10, 20, 20))
    both = [right, replace(right, truth=0), replace(right, truth=0, path="/nowhere")]
    draw_gallery(both, PREPROCESSING, tmp_path / "gallery.png", ("i", "m" * 8))
    with Image.open(tmp_path / "gallery.png") as file:
        sheet = np.asarray(file.convert("RGB")).astype(int)
    cells = [sheet[:, 136 * number : 136 * number + 136] for number in range(4)]

    def ends(cell: np.ndarray, line: int) -> int:
        """How far the text of a line goes."""
        dark = (cell[137 + 13 * line : 137 + 13 * line + 13].sum(2) < 3 * 200).any(0)
        return int(np.flatnonzero(dark).max(initial=0))

    # Wrong ones come first, in red: what was answered is wider than what is true.
    assert ends(cells[0], 0) > ends(cells[0], 1) > 0
    assert ends(cells[2], 0) > 0 == ends(cells[2], 1)
    assert ends(cells[1], 0) == 0  # cannot be read
    assert (cells[3] == 255).all()
    # As wide as the cell, half as high, between stripes of the frame's colour.
    navy = (cells[2][:136] == (0, 0, 128)).all(2)
    assert (navy.any(0).sum(), navy.any(1).sum()) == (128, 64)


def test_a_sheet_has_a_row_for_every_eight(answers: list[Answer], tmp_path: Path) -> None:
    heights = []
    for count in (0, 1, 8, 9, 17):
        draw_gallery(answers[:count], PREPROCESSING, tmp_path / "gallery.png", ("female", "male"))
        with Image.open(tmp_path / "gallery.png") as sheet:
            heights.append(sheet.height)
    assert [height / heights[0] for height in heights] == [1, 1, 1, 2, 3]


def test_captions_stay_under_their_pictures(answers: list[Answer], tmp_path: Path) -> None:
    draw_gallery(answers[:2], PREPROCESSING, tmp_path / "gallery.png", ("a rather long name " * 3, "m" * 100))
    with Image.open(tmp_path / "gallery.png") as sheet:
        captions = sheet.crop((0, 136, sheet.width, sheet.height))
    for left in (0, 136):
        below, beyond = ((left, 0, left + 132, captions.height), (left + 132, 0, left + 140, captions.height))
        assert len(captions.crop(below).getcolors()) > 1
        assert captions.crop(beyond).getcolors() == [(8 * captions.height, (255, 255, 255))]


@pytest.mark.filterwarnings("error")
def test_letters_of_other_languages_are_letters(answers: list[Answer], tmp_path: Path) -> None:
    captions = []
    for name in ("ü", "é", "ł", "β", "Ж"):
        draw_gallery(answers[:1], PREPROCESSING, tmp_path / "gallery.png", (name, name))
        with Image.open(tmp_path / "gallery.png") as sheet:
            captions.append(sheet.crop((0, 136, sheet.width, sheet.height)).tobytes())
    assert len(set(captions)) == 5  # a box for a letter that the font lacks is always the same
    plot_confusion(np.array([[3, 1], [0, 0]]), ("女性", "男性"), tmp_path / "confusion.png")  # the tables have these


def test_the_files_of_a_run_folder(tmp_path: Path) -> None:
    plot_curves(HISTORY, tmp_path / "curves.png")
    plot_curves([], tmp_path / "none.png")
    plot_confusion(np.array([[3, 1], [0, 0]]), ("a$b$", "\udce9"), tmp_path / "confusion.png")
    plot_reliability([Bin(0.6, Proportion(2, 3)), Bin(1.0, Proportion(1, 1))], 0.1, tmp_path / "reliability.png")
    for path in tmp_path.iterdir():
        with Image.open(path) as image:
            assert min(image.size) > 200


@pytest.mark.parametrize(("classes", "texts"), [(20, 400), (21, 0), (600, 0)])
def test_a_confusion_of_many_classes_is_no_larger_than_one_of_twenty(classes: int, texts: int) -> None:
    figure = draw_confusion(np.eye(classes, dtype=np.int64), [f"class {number}" for number in range(classes)])
    assert max(figure.get_size_inches()) <= 22.4
    assert len(figure.axes[0].texts) == texts
    assert len(figure.axes[0].get_xticks()) <= 60


def test_no_legend_covers_a_curve() -> None:
    bins = [Bin(0.6, Proportion(2, 2)), Bin(0.9, Proportion(1, 2))]
    coverage, risk = np.array([0.5, 1.0]), np.array([1.0, 0.5])
    for figure in (
        draw_curves(HISTORY), draw_reliability(bins, 0.1), draw_risk_coverage(coverage, risk, (1.0, 0.5), 0.98)
    ):  # fmt: skip
        figure.draw_without_rendering()
        (legend,) = figure.legends
        assert not any(axes.get_legend() or legend.get_window_extent().overlaps(axes.bbox) for axes in figure.axes)


def test_the_grounds_of_the_phases_differ_in_lightness() -> None:
    adaptation, fine_tuning = (sum(patch.get_facecolor()[:3]) / 3 * patch.get_alpha() + 1 - patch.get_alpha()
                               for patch in draw_curves(HISTORY).axes[0].patches)  # fmt: skip
    assert adaptation - fine_tuning > 0.08


# Groups


def test_groups_by_hand() -> None:
    attributes = [{"age": "3-9"}, {"age": "10-19"}, {"age": "10-19", "sex": "male"}, {"age": ""}, {}]
    assert by_group(attributes, ["a", "a", "b", "b", "a"], [True, False, True, True, True]) == (
        Group("age", "3-9", Proportion(1, 1)),
        Group("age", "10-19", Proportion(1, 2)),
        Group("age x label", "3-9, a", Proportion(1, 1)),
        Group("age x label", "10-19, a", Proportion(0, 1)),
        Group("age x label", "10-19, b", Proportion(1, 1)),
    )


def test_an_attribute_that_says_the_label_or_the_same_of_all_or_names_each_picture_is_no_grouping() -> None:
    labels = ["f", "m"] * 40
    attributes = [{"gender": label, "id": str(number), "split": "test"} for number, label in enumerate(labels)]
    assert by_group(attributes, labels, [True] * 80) == ()


@pytest.mark.parametrize(("values", "groups"), [(1, 0), (2, 4), (50, 100), (51, 0)])
def test_fifty_values_are_a_grouping_still(values: int, groups: int) -> None:
    attributes = [{"age": str(number % values)} for number in range(102)]
    assert len(by_group(attributes, ["a"] * 102, [True] * 102)) == groups


def test_a_second_annotator_who_mostly_agrees_is_a_grouping() -> None:
    labels = ["female", "male"] * 3
    second = ["Female", "male", "female", "male", "female", "female"]
    attributes = [{"second": value} for value in second]
    found = {(group.column, group.value): group.accuracy for group in by_group(attributes, labels, [True] * 6)}
    assert found["second", "female"] == Proportion(3, 3)
    assert found["second", "male"] == Proportion(2, 2)
    assert found["second x label", "female, male"] == Proportion(1, 1)
    agreeing = [{"second": value} for value in ("Female", "", "female", "male", "FEMALE", "")]
    assert by_group(agreeing, labels, [True] * 6) == ()


def test_the_pictures_of_a_group_know_who_is_on_them() -> None:
    attributes = [{"age": "old"}] * 6 + [{"age": "young"}] * 2
    old, young, *_ = by_group(attributes, ["a"] * 8, [True] * 8, list("aaabbbcd"))
    assert old.accuracy == Proportion(6, 6, 2.0)
    assert young.accuracy == Proportion(2, 2)


# Text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("zoë 女.jpg", "zoë 女.jpg"),
        ("caf\udce9", r"caf\xe9"),
        ("a\nb\x00", r"a\nb\x00"),
        ("\u202egpj", r"\u202egpj"),
        ("\ud800", r"\ud800"),
    ],
)
def test_text_of_others_is_made_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
    printable(text).encode("utf-8")
