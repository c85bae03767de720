"""evaluation/labelled.py: which pictures count, as what, and for whom; with a scorer that answers by a file's name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gender_batch.evaluation.labelled import (
    Evaluation,
    LabelsError,
    NoPictureError,
    _other_folders,
    _without_table,
    evaluate,
)
from gender_batch.evaluation.metrics import Proportion
from gender_batch.model.metadata import Metadata
from gender_batch.pictures.preprocessing import Preprocessing
from gender_batch.prediction import UNCERTAIN, Prediction, Reason, Status


class Fake:
    """Answers `female` but for files called so; a status, or `differ` for several people, may be a file's name."""

    def __init__(self, labels: tuple[str, ...] = ("female", "male")) -> None:
        self.metadata = Metadata(labels, Preprocessing(4, 4), "face", 0.7, {}, {}, (), "test")

    def rows(self, paths: Iterable[str]) -> Iterator[Prediction]:
        for path in paths:
            name = Path(path).stem.split("-")[0]
            if name in set(Status):
                yield Prediction(path, Status(name), error="so it is called")
            elif name == "differ":
                yield Prediction(path, Status.OK, UNCERTAIN, (0.9, 0.1), reason=Reason.PEOPLE_DIFFER)
            else:
                yield Prediction(path, Status.OK, "female", (0.9, 0.1))


def labelled(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def evaluated(data: Path, groups: str | None = None, **fake: Any) -> Evaluation:
    file = None
    if groups is not None:
        file = data.parent / "groups.csv"
        file.write_text(groups)
    return evaluate(Fake(**fake), data, file)  # type: ignore[arg-type]


LABELS = ("female", "male")
PICTURES = ("female/a1.jpg", "female/a2.jpg", "female/b1.jpg", "male/c1.jpg", "male/c2.jpg", "male/d1.jpg")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return labelled(tmp_path / "data", *PICTURES)


def test_people_who_differ_are_not_answered(data: Path) -> None:
    metrics = evaluated(labelled(data, "female/differ-1.jpg", "male/differ-2.jpg")).metrics
    assert metrics.coverage == Proportion(6, 8)
    assert metrics.decided_right == Proportion(3, 6)
    assert metrics.accuracy == Proportion(4, 8)


def test_a_picture_of_nobody_has_not_failed(data: Path) -> None:
    result = evaluated(labelled(data, "female/no_face.jpg", "male/corrupt.jpg", "male/no_face.jpg"))
    assert [Path(row.path).name for row in result.failed] == ["corrupt.jpg"]
    assert len(result.faceless) == 2
    assert result.metrics.accuracy.total == 6
    assert (result.to_dict()["failed"], result.to_dict()["no_face"]) == (1, 2)
    told: list[tuple[int, int]] = []
    evaluate(Fake(), data, None, lambda *counts: told.append(counts))  # type: ignore[arg-type]
    assert told[-1] == (9, 1)


def test_each_row_is_told_of(data: Path) -> None:
    told: list[tuple[int, int]] = []
    labelled(data, "female/a0-x.jpg", "male/corrupt.jpg")
    evaluate(Fake(), data, None, lambda *counts: told.append(counts))  # type: ignore[arg-type]
    assert [seen for seen, _ in told] == list(range(1, 9))
    failed = [failed for _, failed in told]
    assert failed == sorted(failed)
    assert (failed[0], failed[-1]) == (0, 1)


def test_each_answer_has_its_label(data: Path) -> None:
    labelled(data, "female/b2.jpg", "female/no_face.jpg", "male/corrupt.jpg", "female/deep/male/e1.jpg")
    result = evaluated(data)
    assert {row.status for row, _ in result.answered} == {Status.OK}
    answered = (*PICTURES, "female/b2.jpg", "female/deep/male/e1.jpg")
    everything = (*answered, "female/no_face.jpg", "male/corrupt.jpg")
    for pictures, expected in ((result.answered, answered), (result.pictures, everything)):
        found = {str(Path(row.path).relative_to(data)): index for row, index in pictures}
        assert found == {name: LABELS.index(name.split("/")[0]) for name in expected}
        assert len(pictures) == len(expected)


def test_the_figures_are_those_of_all_pictures_and_of_each_group(data: Path) -> None:
    """Groups are by the label that is true, whatever was answered, and know who is on their pictures."""
    who = {name: Path(name).stem[0] for name in PICTURES}
    age = {name: "old" if who[name] in "ac" else "young" for name in PICTURES}
    result = evaluated(data, "path,group,age\n" + "".join(f"{name},{who[name]},{age[name]}\n" for name in PICTURES))
    figures = result.to_dict()
    assert {name: figures[name] for name in result.metrics.to_dict()} == result.metrics.to_dict()

    def of(*names: str) -> dict[str, Any]:
        people = np.array([ord(who[name]) for name in names])
        return Proportion.of([name.startswith("female") for name in names], people).to_dict()

    old, young = ([name for name in PICTURES if age[name] == value] for value in ("old", "young"))
    assert figures["groups"] == {
        "age": {"old": of(*old), "young": of(*young)},
        "age x label": {
            f"{value}, {label}": of(*(name for name in names if name.startswith(f"{label}/")))
            for value, names in (("old", old), ("young", young))
            for label in LABELS
        },
    }
    assert of(*old) != Proportion(2, 4).to_dict()  # as if nobody were on two pictures


def test_nobody_told_that_two_pictures_show_one_person(data: Path) -> None:
    assert evaluated(data).metrics.people == 6
    assert evaluated(data).metrics.accuracy == Proportion(3, 6)


def test_a_column_group_is_the_person_and_no_table(data: Path) -> None:
    lines = [
        f"{name},{name[-6]},{name.split('/')[0]},{'val' if '2' in name else 'test'},{'old' if '1' in name else 'young'}"
        for name in PICTURES
    ]
    result = evaluated(data, "\n".join(["path,group,label,split,age", *lines]))
    assert (result.metrics.people, result.metrics.accuracy.total) == (4, 6)
    assert result.metrics.accuracy.effective is not None
    assert result.metrics.accuracy.effective < 4
    assert {group.column for group in result.groups} == {"age", "age x label"}
    assert result.notes == ()


def test_a_column_without_a_name_is_no_table(data: Path) -> None:
    """As pandas writes one, unless it is told not to."""
    result = evaluated(data, ",path,age\n0,female/a1.jpg,old\n1,male/c1.jpg,young\n")
    assert {group.column for group in result.groups} == {"age", "age x label"}


def test_with_a_column_group_every_picture_needs_one(data: Path) -> None:
    with pytest.raises(LabelsError, match=r"no line for female/a2\.jpg; with a column `group` every picture needs one"):
        evaluated(data, "path,group\nfemale/a1.jpg,a\n")


def test_a_file_is_read_as_train_reads_it(data: Path) -> None:
    lines = "./female/a1.jpg, old\ndata/female//a2.jpg, young\nmale/c1.jpg,old \n"
    groups = {group.value: group.accuracy for group in evaluated(data, "path, age\n" + lines).groups}
    assert groups["old"] == Proportion(1, 2)
    assert groups["young"] == Proportion(1, 1)
    with pytest.raises(LabelsError, match=r"line 5: female/a1\.jpg is listed a second time; first in line 2"):
        evaluated(data, "path,age\n" + lines + "female/a1.jpg,young\n")
    with pytest.raises(LabelsError, match="separated by commas"):
        evaluated(data, "path;age\nfemale/a1.jpg;old\n")
    with pytest.raises(LabelsError, match="is a quote left open"):
        evaluated(data, 'path,age\n"female/a1.jpg,old\nmale/c1.jpg,old\n')
    with pytest.raises(LabelsError, match=r"no column `path`; it has file, age; save it"):
        evaluated(data, "file,age\nfemale/a1.jpg,old\n")
    with pytest.raises(LabelsError, match="none of its paths is a picture in"):
        evaluated(data, "path,age\nelsewhere/a1.jpg,old\n")


def test_a_folder_of_data_may_be_called_like_one_of_its_classes(tmp_path: Path) -> None:
    data = labelled(tmp_path / "female", *PICTURES)
    for lines in ("female/a1.jpg,old\nmale/c1.jpg,young\n", "female/female/a1.jpg,old\nfemale/male/c1.jpg,young\n"):
        groups = {group.value: group.accuracy for group in evaluated(data, "path,age\n" + lines).groups}
        assert (groups["old"], groups["young"]) == (Proportion(1, 1), Proportion(0, 1))


def test_lines_of_other_pictures_are_told(data: Path) -> None:
    (note,) = evaluated(data, "path,age\nfemale/a1.jpg,old\nfemale/gone.jpg,old\nmale/gone.jpg,old\n").notes
    assert "2 line(s) are of no labelled picture" in note
    assert "female/gone.jpg among them" in note


def test_the_test_folder_of_what_was_trained_on(tmp_path: Path) -> None:
    data = labelled(tmp_path / "data", *(f"test/{name}" for name in PICTURES), "train/female/x.jpg", "train/male/y.jpg")
    result = evaluated(data, "path,age\ntest/female/a1.jpg,old\ntest/male/c1.jpg,young\ntrain/male/y.jpg,young\n")
    assert result.metrics.accuracy == Proportion(3, 6)
    assert {group.value: group.accuracy.total for group in result.groups if group.column == "age"} == {
        "old": 1,
        "young": 1,
    }
    (note,) = result.notes
    assert "1 line(s)" in note


def test_pictures_of_the_test_folder_may_be_named_from_beside_the_data(tmp_path: Path) -> None:
    data = labelled(tmp_path / "data", *(f"test/{name}" for name in PICTURES))
    result = evaluated(data, "path,age\n" + "".join(f"data/test/{name},{name[:4]}\n" for name in PICTURES))
    groups = {group.value: group.accuracy for group in result.groups if group.column == "age"}
    assert groups == {"fema": Proportion(3, 3), "male": Proportion(0, 3)}
    assert result.notes == ()


@pytest.mark.parametrize("name", ["female/x.jpg", "male"])
def test_a_folder_or_a_file_called_like_one_of_two_labels_does_not_make_a_labelled_tree(
    tmp_path: Path, name: str
) -> None:
    data = labelled(tmp_path / "data", "female/x.jpg", name)
    with pytest.raises(LabelsError, match="no folders female, male in it or in its test/"):
        evaluated(data)
    labelled(data, *(f"test/{picture}" for picture in PICTURES))
    assert evaluated(data).metrics.accuracy == Proportion(3, 6)


def test_folders_of_the_labels_go_before_a_folder_called_test(data: Path) -> None:
    result = evaluated(labelled(data, "test/female/x.jpg", "test/male/y.jpg"))
    assert result.metrics.accuracy == Proportion(3, 6)
    (note,) = result.notes
    assert "folder(s) test are not among the model's labels" in note


def test_a_column_of_very_many_values_is_said_to_have_no_table() -> None:
    attributes = [{"age": str(number // 2), "race": "ab"[number % 2]} for number in range(120)]
    for labels, count, told in (
        (LABELS, 120, ["age: 60 different values, more than 50; there is no table of it"]),
        (LABELS, 100, ["age x label: 100 different values, more than 50; there is no table of it"]),
        (LABELS, 50, []),
        (("male", "male"), 100, []),
    ):
        truth = [labels[number % 2] for number in range(count)]
        assert list(_without_table(attributes[:count], truth)) == told


def test_a_link_into_a_folder_that_may_not_be_entered_is_no_error(unprivileged: Path) -> None:
    (unprivileged / "locked" / "inside").mkdir(parents=True)
    (unprivileged / "link").symlink_to("locked/inside")
    (unprivileged / "locked").chmod(0)
    assert list(_other_folders(unprivileged, ("bright",))) == [
        f"{unprivileged}: folder(s) locked are not among the model's labels; nothing in them was scored"
    ]


def test_a_folder_of_no_class_is_told(data: Path) -> None:
    (note,) = evaluated(labelled(data, "other/x.jpg", "more/y.jpg")).notes
    assert "folder(s) more, other are not among the model's labels" in note
    names = ["unsorted", "both", "neither", "Animals", "children", "x", "aged"]
    (note,) = evaluated(labelled(data, *(f"{name}/x.jpg" for name in names))).notes
    assert f"folder(s) {', '.join(sorted([*names, 'more', 'other']))} are not" in note


def test_a_file_beside_the_folders_is_none(data: Path) -> None:
    assert evaluated(labelled(data, "README.txt", "loose.jpg")).notes == ()


def test_many_lines_of_other_pictures_are_told_so_that_they_can_be_read(data: Path) -> None:
    lines = "".join(f"female/gone{number}.jpg,old\n" for number in range(1200))
    (note,) = evaluated(data, "path,age\nfemale/a1.jpg,old\n" + lines).notes
    assert "1,200 line(s)" in note


def test_a_folder_that_cannot_be_read_is_told(unprivileged: Path) -> None:
    data = labelled(unprivileged / "data", *PICTURES, "male/locked/x.jpg")
    (data / "male" / "locked").chmod(0)
    result = evaluated(data)
    assert result.unreadable_folders == ((str(data / "male" / "locked"), "Permission denied"),)
    assert result.to_dict()["folders_not_read"] == 1
    assert result.metrics.accuracy == Proportion(3, 6)


@pytest.mark.parametrize("label", ["f/x", "f/", ".", ".."])
def test_a_label_that_is_no_name_of_a_folder_is_told(data: Path, label: str) -> None:
    labelled(data, "f/x/1.jpg")
    with pytest.raises(LabelsError, match="cannot be the name of a folder"):
        evaluated(data, labels=(label, "male"))


def test_data_without_the_labels_is_told(data: Path) -> None:
    with pytest.raises(LabelsError, match="no folders cat, dog in it or in its test/"):
        evaluated(data, labels=("cat", "dog"))


def test_why_nothing_could_be_scored_is_told(tmp_path: Path) -> None:
    data = labelled(tmp_path / "data", "female/no_face.jpg", "male/no_face.jpg")
    with pytest.raises(LabelsError, match=r"of 2 one is .*no_face: so it is called; --no-face whole takes such"):
        evaluated(data)
    with pytest.raises(LabelsError, match=r"no picture in it could be scored; of 3 one is .*corrupt: so it is called$"):
        evaluated(labelled(data, "male/corrupt.jpg"))
    for label in ("f", "m"):
        (tmp_path / "empty" / label).mkdir(parents=True)
    with pytest.raises(NoPictureError, match=r"no picture in its folders f, m$"):
        evaluated(tmp_path / "empty", labels=("f", "m"))


def test_folders_that_cannot_be_read_are_told_where_they_leave_no_picture(unprivileged: Path) -> None:
    data = labelled(unprivileged / "data", "female/x.jpg", "male/x.jpg")
    for label in ("female", "male"):
        (data / label).chmod(0)
    with pytest.raises(NoPictureError, match=r"no picture in its folders female, male; '.*/female' was not read: Perm"):
        evaluated(data)
    with pytest.raises(NoPictureError, match=r"/female' was not read: Permission denied$"):  # one is enough
        evaluated(data)


def test_links_are_followed_as_in_training(data: Path) -> None:
    labelled(data.parent / "more", "1.jpg", "2.jpg")
    (data / "male" / "link").symlink_to(data.parent / "more")
    assert evaluated(data).metrics.accuracy == Proportion(3, 8)


def test_what_systems_leave_beside_pictures_is_passed_over_as_in_training(data: Path) -> None:
    expected = evaluated(data).metrics.accuracy
    labelled(data, "male/.DS_Store", "male/Thumbs.db", "male/__MACOSX/1.jpg", "female/.hidden/1.jpg")
    assert evaluated(data).metrics.accuracy == expected
