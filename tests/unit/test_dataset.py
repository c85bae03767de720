"""Splits that do not lie: nobody and no photo on two sides, classes in proportion, and wrong data told at once."""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("torch")

from gender_batch.faces.look import FaceSearch, Looker
from gender_batch.pictures.preprocessing import Preprocessing
from gender_batch.training.crops import Crops
from gender_batch.training.dataset import Dataset, folds, load_dataset
from gender_batch.training.samples import DatasetError, Sample, find_samples
from gender_batch.training.splits import cut_folds, hold_out

PERSON = r"/(\w+)_"


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Two classes of 20 and 40 people with three pictures each, all of one colour: no near-duplicates among them."""
    root = tmp_path / "data"
    for label, count in (("a", 20), ("b", 40)):
        (root / label).mkdir(parents=True)
        for person in range(count):
            for number in range(3):
                colour = (person, number, ord(label))
                Image.new("RGB", (8, 8), colour).save(root / label / f"{label}{person}_{number}.png")
    return root


def give_splits(root: Path, *splits: str) -> None:
    """All that is there goes to train/; the other splits get their own people, three pictures in each class."""
    for split in ("train", *splits):
        (root / split).mkdir()
    for label in "ab":
        (root / label).rename(root / "train" / label)
        for split in splits:
            (root / split / label).mkdir()
            for number in range(3):
                colour = (len(split), ord(split[0]), ord(label) + 100 * (number == 1) + number)
                Image.new("RGB", (8, 8), colour).save(root / split / label / f"{split}{number}_0.png")


def write_labels(file: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Path:
    with file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as lines:
        csv.writer(lines).writerows([columns, *rows])
    return file


def pictures(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*.png"))


def jpegs(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*.jpg"))


def save_photo(path: Path, seed: int, quality: int = 95) -> None:
    """A picture with detail; another quality makes another file of the same photo."""
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8))
    coarse.resize((120, 120)).save(path, "JPEG", quality=quality)


def groups(data: Dataset) -> list[set[str]]:
    return [{sample.group for sample in split} for split in (data.train, data.val, data.test)]


def names(samples: Iterable[Sample]) -> set[str]:
    return {sample.name for sample in samples}


# --- splits ---


def test_groups_stay_together_and_classes_in_proportion(people: Path) -> None:
    data = load_dataset(people, group_by=PERSON)
    train, val, test = groups(data)
    assert not train & val
    assert not train & test
    assert not val & test
    assert len(train | val | test) == 60
    assert len(data.all) == 180
    for split in (data.val, data.test):
        counts = Counter(sample.label for sample in split)
        assert counts[1] / counts[0] == pytest.approx(2, abs=0.6)


def test_a_seed_is_a_split(people: Path) -> None:
    assert load_dataset(people, group_by=PERSON, seed=3) == load_dataset(people, group_by=PERSON, seed=3)
    other = load_dataset(people, group_by=PERSON, seed=4)
    assert groups(load_dataset(people, group_by=PERSON, seed=3)) != groups(other)


def test_given_splits_are_kept(people: Path) -> None:
    give_splits(people, "test")
    data = load_dataset(people)
    assert {name.split("/")[0] for name in names(data.test)} == {"test"}
    assert {name.split("/")[0] for name in names((*data.train, *data.val))} == {"train"}
    assert len(data.val) == 18


def test_a_person_on_both_given_sides_is_refused_unless_allowed(people: Path) -> None:
    give_splits(people, "test")
    Image.new("RGB", (8, 8)).save(people / "test" / "a" / "a1_9.png")
    with pytest.raises(DatasetError, match=r"1 group\(s\) are on two sides, 'a1' in both train and test"):
        load_dataset(people, group_by=PERSON)
    data = load_dataset(people, group_by=PERSON, allow_leaks=True)
    assert [note for note in data.notes if "leak" in note and "'a1'" in note]


GROUPED = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 15), st.integers(1, 3)), min_size=8, max_size=60
)  # class, person, pictures


def grouped(people: list[tuple[int, int, int]]) -> list[Sample]:
    """Pictures of these people, whose class does not hang on the person."""
    return [
        Sample(f"{number}-{picture}", label, f"person {person}")
        for number, (label, person, count) in enumerate(people)
        for picture in range(count)
    ]


NEAR = st.lists(st.tuples(*[st.integers(0, 59).map(lambda number: f"{number}-0")] * 2), max_size=10)


@given(GROUPED, NEAR, st.integers(0, 3))
def test_what_is_held_out_shares_nobody_and_no_photo(
    people: list[tuple[int, int, int]], near: list[tuple[str, str]], seed: int
) -> None:
    samples = grouped(people)
    try:
        rest, held = hold_out(samples, near, seed)
    except DatasetError:
        assume(False)
    assert sorted(names(rest) | names(held)) == sorted(names(samples))
    assert len(rest) + len(held) == len(samples)
    assert not {sample.group for sample in rest} & {sample.group for sample in held}
    assert {sample.label for sample in rest} == {sample.label for sample in held} == {s.label for s in samples}
    for pair in near:
        assert not (set(pair) & names(rest) and set(pair) & names(held))


@given(GROUPED, NEAR, st.integers(2, 4), st.integers(0, 3))
def test_folds_are_a_partition(
    people: list[tuple[int, int, int]], near: list[tuple[str, str]], count: int, seed: int
) -> None:
    samples = grouped(people)
    try:
        cuts = cut_folds(samples, near, count, seed)
    except DatasetError:
        assume(False)
    assert len(cuts) == count
    assert sorted(name for _, fold in cuts for name in names(fold)) == sorted(names(samples))
    for rest, fold in cuts:
        assert names(rest) == names(samples) - names(fold)
        assert {sample.label for sample in rest} == {sample.label for sample in fold} == {s.label for s in samples}
        assert not {sample.group for sample in rest} & {sample.group for sample in fold}
        for pair in near:
            assert not (set(pair) & names(rest) and set(pair) & names(fold))


def crowd(*counts: int) -> list[Sample]:
    """As many pictures of each person as are counted, of two classes in turn."""
    return [
        Sample(f"{person}-{number}", person % 2, str(person))
        for person, count in enumerate(counts)
        for number in range(count)
    ]


def test_a_person_with_very_many_pictures_is_not_most_of_what_is_held_out() -> None:
    samples = crowd(*[8] * 80, 300)
    for seed in range(5):
        _, held = hold_out(samples, [], seed)
        assert "80" not in {sample.group for sample in held}
        assert 0.07 < len(held) / len(samples) < 0.13


def test_whom_a_seed_holds_out_does_not_hang_on_how_many_pictures_there_are_of_them() -> None:
    samples = crowd(*[3] * 200, 20)
    held = [{sample.group for sample in hold_out(samples, [], seed)[1]} for seed in range(20)]
    assert 0 < sum("200" in people for people in held) < 10
    assert len(set[str]().union(*held)) > 150


@pytest.mark.parametrize("rare", [3, 4, 6, 9])
def test_a_class_of_few_people_leaves_as_much_to_learn_from(rare: int) -> None:
    samples = [
        Sample(f"{label} {person} {number}", label, f"{label} {person}")
        for label, people in enumerate((150, 150, rare))
        for person in range(people)
        for number in range(3)
    ]
    for seed in range(3):
        rest, held = hold_out(samples, [], seed)
        assert 0.08 < len(held) / len(samples) < 0.12
        assert {sample.group for sample in held if sample.label == 2}
        again, val = hold_out(rest, [], seed)
        assert 0.08 < len(val) / len(rest) < 0.12
        assert {sample.label for sample in again} == {sample.label for sample in val} == {0, 1, 2}


def test_a_part_that_lacks_a_class_is_not_held_out() -> None:
    # Of three parts one is the two pictures of the first person alone, and the nearest to a tenth.
    people = {"anna": (2, 0), "bea and bob": (5, 5), "cora and carl": (5, 5), "dan": (0, 1)}
    samples = [
        Sample(f"{who} {label} {number}", label, who)
        for who, counts in people.items()
        for label in (0, 1)
        for number in range(counts[label])
    ]
    for seed in range(5):
        for side in hold_out(samples, [], seed):
            assert {sample.label for sample in side} == {0, 1}


def test_cross_validation_tests_every_picture_once(people: Path) -> None:
    give_splits(people, "val", "test")
    data = load_dataset(people, group_by=PERSON)
    parts = list(folds(data, 5, seed=1))
    assert len(parts) == 5
    assert Counter(name for part in parts for name in names(part.test)) == Counter(names(data.all))
    for part in parts:
        assert names(part.all) == names(data.all)
        train, val, test = groups(part)
        assert not train & val
        assert not (train | val) & test
        assert len(part.val) == pytest.approx(0.1 * len((*part.train, *part.val)), abs=6)
    assert parts == list(folds(data, 5, seed=1))


def test_a_person_on_both_given_sides_does_not_matter_to_folds(people: Path) -> None:
    give_splits(people, "val", "test")
    save_photo(people / "train" / "a" / "photo_1.jpg", seed=1)
    save_photo(people / "val" / "a" / "copy_1.jpg", seed=1, quality=60)
    Image.new("RGB", (8, 8)).save(people / "test" / "a" / "a1_9.png")
    shutil.rmtree(people / "val" / "b")
    data = load_dataset(people, group_by=PERSON, pooled=True)
    assert not [note for note in data.notes if "leak" in note]
    parts = list(folds(data, 3, seed=0))
    assert Counter(name for part in parts for name in names(part.test)) == Counter(pictures(people) + jpegs(people))
    for part in parts:
        train, val, test = groups(part)
        assert not (train | val) & test


def test_as_many_folds_as_people_are_each_of_one_and_the_seed_says_which_go_together() -> None:
    samples = grouped([(label, 10 * label + person, 2) for label in (0, 1) for person in range(5)])
    drawn = {tuple(frozenset(names(fold)) for _, fold in cut_folds(samples, (), 5, seed)) for seed in range(5)}
    assert {len(fold) for folds in drawn for fold in folds} == {4}
    assert len(drawn) > 1


def test_more_folds_than_people_are_refused_before_the_first(people: Path) -> None:
    data = load_dataset(people, group_by=PERSON)
    with pytest.raises(DatasetError, match=r"20 group\(s\) .* 21 folds"):
        folds(data, 21, seed=0)
    with pytest.raises(DatasetError, match="at least 2"):
        folds(data, 1, seed=0)


def test_one_person_cannot_be_split(people: Path) -> None:
    with pytest.raises(DatasetError, match="none can be held out"):
        load_dataset(people, group_by=r"^([ab])/")


# --- near-duplicates ---


def test_a_photo_on_two_given_sides_is_a_leak(people: Path) -> None:
    give_splits(people, "val", "test")
    save_photo(people / "train" / "a" / "first_1.jpg", seed=1)
    save_photo(people / "val" / "a" / "second_1.jpg", seed=2)
    assert not load_dataset(people).notes
    save_photo(people / "test" / "a" / "copy_1.jpg", seed=1, quality=60)
    shutil.copy(people / "val" / "a" / "second_1.jpg", people / "test" / "a" / "copy_2.jpg")
    save_photo(people / "test" / "a" / "copy_3.jpg", seed=2, quality=50)
    with pytest.raises(DatasetError, match=r"2 photo\(s\) are on two sides") as caught:
        load_dataset(people)
    assert "train/a/first_1.jpg (train) and test/a/copy_1.jpg (test)" in str(caught.value)
    assert "val/a/second_1.jpg (val) and test/a/copy_" in str(caught.value)
    assert "--allow-leaks" in str(caught.value)
    data = load_dataset(people, allow_leaks=True)
    assert "leaks allowed: 2 photo(s)" in "".join(data.notes)
    assert ("train/a/first_1.jpg", "test/a/copy_1.jpg") in data.near_duplicates
    for part in folds(data, 3, seed=0):
        for pair in data.near_duplicates:
            assert not (set(pair) & names(part.test) and set(pair) & names((*part.train, *part.val)))


def test_at_most_twenty_leaks_are_named(people: Path) -> None:
    give_splits(people, "test")
    for seed in range(22):
        for split in ("train", "test"):
            save_photo(people / split / "b" / f"photo{seed}.jpg", seed)
    with pytest.raises(DatasetError, match=r"22 photo\(s\)") as caught:
        load_dataset(people)
    assert str(caught.value).count("(test)") == 20


@pytest.mark.parametrize("with_test", [False, True])
def test_near_duplicates_are_not_cut_apart(people: Path, with_test: bool) -> None:
    if with_test:
        give_splits(people, "test")
    folder = people / "train" / "a" if with_test else people / "a"
    for seed in range(12):
        for quality in (50, 60, 90):
            save_photo(folder / f"photo{seed}-{quality}.jpg", seed, quality)
    for seed in range(4):
        data = load_dataset(people, seed=seed)
        for samples in (data.train, data.val, data.test):
            copies = Counter(sample.name.split("-")[0] for sample in samples if "photo" in sample.name)
            assert set(copies.values()) <= {3}
        assert data.notes == ("36 pictures are near-duplicates of others; they stay on one side with them",)
        assert {sample.group for sample in data.all} == names(data.all)


def test_one_file_in_two_classes_is_refused(people: Path) -> None:
    shutil.copy(people / "a" / "a1_1.png", people / "b" / "again.png")
    with pytest.raises(
        DatasetError, match=r"1 picture\(s\) are in two classes.*a/a1_1\.png \(a\) and b/again\.png \(b\)"
    ):
        load_dataset(people, allow_leaks=True)


def test_a_near_duplicate_with_another_label_is_noted(people: Path) -> None:
    save_photo(people / "a" / "photo.jpg", seed=1)
    save_photo(people / "b" / "photo.jpg", seed=1, quality=60)
    (note,) = (note for note in load_dataset(people).notes if "different labels" in note)
    assert note.startswith("1 pair(s)")
    assert "a/photo.jpg (a) and b/photo.jpg (b)" in note


def test_a_group_with_two_labels_is_noted(people: Path) -> None:
    (people / "b" / "b7_1.png").rename(people / "b" / "a7_9.png")
    (note,) = load_dataset(people, group_by=PERSON).notes
    assert note == "1 group(s) hold pictures of more than one class, 'a7' among them"


# --- labels.csv ---


def test_a_list_gives_groups_and_attributes(people: Path) -> None:
    give_splits(people, "test")
    rows = []
    for number, name in enumerate(pictures(people)):
        split, label, file = name.split("/")
        person = f"{split} {file.split('_')[0][1:]}"  # the same numbers in both classes
        written = f"data/{name}" if number % 2 else name
        age = str(number % 3) if number else label  # by chance the class, as a column may say of some pictures
        rows.append((written, label.upper(), person, age))
    rows.append(("data/train/a/gone.png", "A", "nobody", "9"))
    file = write_labels(people / "labels.csv", ("path", "class again", "group", "age"), rows)
    data = load_dataset(people, labels_file=file)
    assert len(data.test) == 6
    for sample in data.all:
        (row,) = (row for row in rows if row[0].removeprefix("data/") == sample.name)
        assert sample.group == row[2]
        assert sample.attributes == {"age": row[3]}
    train, val, _ = groups(data)
    assert not train & val
    assert len(train | val) == 40
    (note,) = data.notes
    assert note.startswith("23 group(s) hold pictures of more than one class")


@pytest.mark.parametrize(
    ("column", "told"),
    [
        ("gender", "'gender' of --labels only repeats the classes"),
        ("label", "'label' of --labels only repeats the classes"),
        ("age", "nothing is known .* 'age'"),
        ("race", "nothing is known .* 'race'"),
    ],
)
def test_a_column_to_learn_that_tells_nothing_is_refused_before_a_picture_is_read(
    people: Path, column: str, told: str
) -> None:
    rows = [(name, name[0], name[0].upper(), "") for name in pictures(people)]
    file = write_labels(people / "labels.csv", ("path", "label", "gender", "age"), rows)
    with pytest.raises(DatasetError, match=told):
        load_dataset(people, labels_file=file, columns=[column], advance=lambda _: pytest.fail("a picture was read"))


def test_a_list_without_labels_may_give_the_split(people: Path) -> None:
    rows = [(name, "test" if "_2" in name else "train") for name in pictures(people)]
    data = load_dataset(people, labels_file=write_labels(people / "labels.csv", ("path", "split"), rows))
    assert names(data.test) == {name for name in pictures(people) if "_2" in name}
    assert data.val
    with pytest.raises(DatasetError, match=r"no line for a/a0_0\.png; with a column `split` every picture"):
        load_dataset(people, labels_file=write_labels(people / "labels.csv", ("path", "split"), rows[1:]))


@pytest.mark.parametrize("with_labels", [False, True])
def test_a_split_in_the_list_is_above_the_folders(people: Path, with_labels: bool) -> None:
    give_splits(people, "test")
    rows = [(name, "test" if "_2" in name else "train", name.split("/")[1]) for name in pictures(people)]
    columns = ("path", "split", "label") if with_labels else ("path", "split", "class again")
    if with_labels:  # then a picture may lie anywhere
        (people / rows[-1][0]).rename(people / "loose_2.png")
        rows[-1] = ("loose_2.png", *rows[-1][1:])
    data = load_dataset(people, labels_file=write_labels(people / "labels.csv", columns, rows))
    assert names(data.test) == {row[0] for row in rows if row[1] == "test"}
    assert any(name.startswith("test/") for name in names((*data.train, *data.val)))


def test_a_list_with_labels_decides_all(people: Path, tmp_path: Path) -> None:
    rows = []
    for number, name in enumerate(pictures(people)):
        place = people / "anywhere" / str(number % 7) / name.replace("/", "-")
        place.parent.mkdir(parents=True, exist_ok=True)
        (people / name).rename(place)
        split = ("train", "train", "train", "val", "test")[number % 5]
        rows.append((str(place.relative_to(people)), "ab"[number % 2], split, str(number)))
    file = write_labels(tmp_path / "labels.csv", ("path", "label", "split", "when"), rows[:-2])
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())  # as a spreadsheet writes it
    data = load_dataset(people, labels_file=file)
    assert data.labels == ("a", "b")
    for split, samples in (("train", data.train), ("val", data.val), ("test", data.test)):
        assert {(s.name, data.labels[s.label], split, s.attributes["when"]) for s in samples} == {
            row for row in rows[:-2] if row[2] == split
        }
    (note,) = data.notes
    assert note.startswith("2 file(s)")
    assert min(row[0] for row in rows[-2:]) in note


def test_a_list_with_labels_leaves_the_test_folder_a_test(people: Path) -> None:
    give_splits(people, "test")
    rows = [(name, name.split("/")[1]) for name in pictures(people)]
    file = write_labels(people / "labels.csv", ("path", "label"), rows)
    data = load_dataset(people, labels_file=file)
    assert len(data.test) == 6
    assert data.notes == ()  # the list itself, which lies among them, is no picture that was left out
    Image.new("RGB", (8, 8), "red").save(people / "loose.png")
    write_labels(file, ("path", "label"), [*rows, ("loose.png", "a")])
    with pytest.raises(DatasetError, match=r"line 188: loose\.png is in none of the folders train, val, test"):
        load_dataset(people, labels_file=file)


def test_a_name_that_is_no_text_can_be_listed(people: Path) -> None:
    name = os.fsdecode(b"a/\xff,\n.png")
    Image.new("RGB", (8, 8), "red").save(people / name)
    rows = [(path, path[0], path) for path in pictures(people)]
    file = write_labels(people / "labels.csv", ("path", "label", "group"), rows)
    assert name in names(load_dataset(people, labels_file=file).all)


GOOD = [["a/a0_0.png", "a", "train", "x"], ["b/b0_0.png", "b", "test", "x"]]
COLUMNS = ["path", "label", "split", "group"]


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [
        (["file", "label"], [], "no column `path`; it has file, label"),
        ([], [], "no column `path`; it has nothing"),
        (["path;label"], [["a/a0_0.png;a"]], "no column `path`; it has path;label; save it as CSV"),
        (["path\tlabel"], [], "in UTF-8, separated by commas"),
        (["path", "age", "age"], [], "two columns are named 'age'"),
        (["path", "age", " age"], [], "two columns are named 'age'"),
        (["path", "age"], [["a/a0_0.png", "R\udce9union"]], r"line 2: 'R\xe9union' is not UTF-8; save the file"),
        (["path", "R\udce9gion"], [["a/a0_0.png", "x"]], r"line 1: 'R\xe9gion' is not UTF-8; save the file"),
        (["path", "age"], [["a/a0_0.png", "x" * 131073]], "line 2: field larger than field limit (131072)"),
        (COLUMNS, [*GOOD, ["a/a0_1.png", "a", "dev", "x"]], "line 4: split 'dev'; it must be one of train, val, test"),
        (COLUMNS, [*GOOD, ["a/a0_1.png", "a", "", "x"]], "line 4: split ''"),
        (COLUMNS, [*GOOD, ["a/a0_1.png", " ", "val", "x"]], "line 4: a/a0_1.png has no label"),
        (COLUMNS, [*GOOD, ["a/a0_1.png", "a", "val", ""]], "line 4: a/a0_1.png has no group"),
        (COLUMNS, [*GOOD, ["./a//a0_0.png", "a", "val", "x"]], "listed a second time; first in line 2"),
        (COLUMNS, [*GOOD, ["data/a/a0_0.png", "a", "val", "x"]], "line 4: a/a0_0.png is listed a second time"),
        (COLUMNS, [*GOOD, ["a/gone.png", "a", "val", "x"]], "line 4: no file 'a/gone.png' in "),
        (COLUMNS, [*GOOD, ["../a.png", "a", "val", "x"]], "line 4: path '../a.png'; it must be relative"),
        (COLUMNS, [*GOOD, ["/a.png", "a", "val", "x"]], "line 4: path '/a.png'; it must be relative"),
        (COLUMNS, [*GOOD, ["", "a", "val", "x"]], "line 4: path ''; it must be relative"),
        (COLUMNS, [*GOOD, ["a/a0_1.png", "a", "val", "x", "y"]], "line 4: more fields than columns"),
        (COLUMNS, GOOD[:1], r"its pictures are of 1 class(es) (a); two or more"),
        (COLUMNS, [[*row[:2], "test", "x"] for row in GOOD], "no picture is in the split train"),
        (COLUMNS, [], "lists no picture"),
        (["path", "age"], [["elsewhere/a.png", "20"]], "; 'elsewhere/a.png' for instance; they must be"),
        (["path", "group"], [["a/a0_0.png", "x"]], "no line for a/a0_1.png; with a column `group`"),
    ],
)  # fmt: skip
def test_a_list_that_is_wrong_is_told(people: Path, columns: list[str], rows: list[list[str]], message: str) -> None:
    file = write_labels(people / "labels.csv", columns, rows)
    with pytest.raises(DatasetError) as caught:
        load_dataset(people, labels_file=file)
    assert message in str(caught.value)
    assert str(caught.value).startswith((str(file), str(people)))
    assert not str(caught.value).endswith(".")


def test_space_around_names_and_values_does_not_count(people: Path) -> None:
    rows = [
        (name, " train " if "_2" in name else "test", f" {number} ") for number, name in enumerate(pictures(people))
    ]
    file = write_labels(people / "labels.csv", ("path", " split", "age "), rows)
    data = load_dataset(people, labels_file=file)
    assert names((*data.train, *data.val)) == {name for name in pictures(people) if "_2" in name}
    assert {sample.attributes["age"] for sample in data.all} == {str(number) for number in range(180)}


def test_empty_lines_and_columns_of_a_spreadsheet_say_nothing(people: Path) -> None:
    rows = [(name, str(number), "", "") for number, name in enumerate(pictures(people))]
    file = write_labels(people / "labels.csv", ("path", "age", "", ""), [*rows[:9], ("", "", "", ""), *rows[9:]])
    with file.open("a") as lines:
        lines.write(",,,\r\n,\r\n")
    data = load_dataset(people, labels_file=file)
    assert {sample.name: sample.attributes for sample in data.all} == {row[0]: {"age": row[1]} for row in rows}


def test_a_list_that_is_not_there_is_told(people: Path) -> None:
    with pytest.raises(DatasetError, match=r"none\.csv: No such file or directory; name a CSV file with --labels"):
        load_dataset(people, labels_file=people / "none.csv")


def test_two_ways_to_name_groups_are_one_too_many(people: Path) -> None:
    file = write_labels(people / "labels.csv", ("path", "group"), [("a/a0_0.png", "x")])
    with pytest.raises(DatasetError, match="column `group`, and --group-by is given"):
        load_dataset(people, group_by=PERSON, labels_file=file)


# --- the digest ---


def test_the_digest_tells_contents_names_and_list(people: Path) -> None:
    digest = load_dataset(people).digest
    assert load_dataset(people, seed=1).digest == digest
    file = write_labels(people / "labels.csv", ("path", "age"), [("a/a1_1.png", "20")])
    assert load_dataset(people, labels_file=file).digest != digest
    file.unlink()
    Image.new("RGB", (8, 8), "red").save(people / "a" / "a1_1.png")
    changed = load_dataset(people).digest
    assert changed != digest
    (people / "a" / "a1_1.png").rename(people / "a" / "a1_8.png")
    assert load_dataset(people).digest not in (digest, changed)


# --- wrong data ---


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("(", "is not a regular expression"),
        ("person", "has no group"),
        (r"/nobody(\d)", "finds no person in a/a"),
        (r"(x)|/", "finds no person in a/a"),
        (r"/(x?)", "finds no person in a/a"),
    ],
)
def test_a_group_by_that_does_not_work_is_told(people: Path, pattern: str, told: str) -> None:
    with pytest.raises(DatasetError, match=f"--group-by {re.escape(repr(pattern))} {told}"):
        load_dataset(people, group_by=pattern)


def test_one_class_is_too_few(people: Path) -> None:
    for gone, told in (("b", r"1 class folder\(s\) found \(a\)"), ("a", r"0 class folder\(s\) found \(none\)")):
        shutil.rmtree(people / gone)
        with pytest.raises(DatasetError, match=f"{told}; two or more"):
            load_dataset(people)


@pytest.mark.parametrize("listed", [False, True])
def test_a_folder_that_is_not_there_is_told(tmp_path: Path, listed: bool) -> None:
    file = write_labels(tmp_path / "labels.csv", ("path", "label"), [("a/a0_0.png", "a")]) if listed else None
    with pytest.raises(DatasetError, match=r"none: no such folder; it must hold .* pictures"):
        load_dataset(tmp_path / "none", labels_file=file)


def test_classes_without_a_picture_are_told(people: Path) -> None:
    for name in pictures(people):
        (people / name).unlink()
    with pytest.raises(DatasetError, match=r"class a has 0 .* at least 10"):
        load_dataset(people)


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("splits", [["test"], ["val", "test"]])
def test_splits_without_a_train_are_no_classes(people: Path, splits: list[str], listed: bool) -> None:
    rows = [(name, name[0]) for name in pictures(people)]
    for name in splits:
        shutil.copytree(people / "a", people / name / "a")
    file = write_labels(people / "labels.csv", ("path", "label"), rows) if listed else None
    told = f"{', '.join(splits)} without train; put what is to be trained on into {people / 'train'}, or"
    with pytest.raises(DatasetError, match=re.escape(told)):
        load_dataset(people, labels_file=file)


def test_roles_may_be_written_in_capitals(people: Path) -> None:
    rows = [(name, "ba"[name[0] == "b"], f"{name[0]} all", "x") for name in pictures(people)]
    file = write_labels(people / "labels.csv", ("Path", " LABEL", "Group", "Age"), rows)
    with pytest.raises(DatasetError, match="pictures of a class are of one group"):
        load_dataset(people, labels_file=file)
    write_labels(file, ("path", "Group", "group"), [(name, "x", "y") for name in pictures(people)])
    with pytest.raises(DatasetError, match="two columns are named 'group'"):
        load_dataset(people, labels_file=file)


def test_a_class_whose_name_no_file_of_text_can_hold_is_refused(people: Path) -> None:
    (people / "b").rename(people / os.fsdecode(b"b\xe9"))
    with pytest.raises(DatasetError, match=r"class folder 'b\\udce9' is not UTF-8"):
        load_dataset(people)


def test_a_file_named_as_a_split_is_none(people: Path) -> None:
    (people / "train").write_text("how they were trained")
    assert load_dataset(people).labels == ("a", "b")


@pytest.mark.parametrize("left", [0, 9])
def test_a_class_with_few_pictures_is_named(people: Path, left: int) -> None:
    for path in sorted((people / "b").iterdir())[left:]:
        path.unlink()
    with pytest.raises(DatasetError, match=rf"class b has {left} .* at least 10"):
        load_dataset(people)


def test_a_class_without_faces_is_told_why_it_has_no_pictures(people: Path, detector: Path, tmp_path: Path) -> None:
    crops = Crops(tmp_path / "faces", Looker(FaceSearch(detector), Preprocessing(size=64, resize=64)))
    with pytest.raises(DatasetError, match=r"class a has 0 .* without a face count only with --faces never"):
        load_dataset(people, crops=crops)


def test_the_fewest_pictures_allowed_can_be_split(people: Path) -> None:
    for label in "ab":
        for path in sorted((people / label).iterdir())[10:]:
            path.unlink()
    data = load_dataset(people)
    for samples in (data.train, data.val, data.test):
        assert {sample.label for sample in samples} == {0, 1}


@pytest.mark.parametrize("listed", [False, True])
def test_a_class_called_uncertain_is_refused(people: Path, listed: bool) -> None:
    file = None
    if listed:
        rows = [(name, ("a", "uncertain")[name[0] == "b"]) for name in pictures(people)]
        file = write_labels(people / "labels.csv", ("path", "label"), rows)
    else:
        (people / "b").rename(people / "uncertain")
    with pytest.raises(DatasetError, match=r"a class is called 'uncertain'.*another name"):
        load_dataset(people, labels_file=file)


@pytest.mark.parametrize("listed", [False, True])
def test_classes_that_differ_in_case_alone_are_refused(people: Path, listed: bool) -> None:
    file = None
    if listed:
        rows = [(name, ("a", "A", "b")[number % 3]) for number, name in enumerate(pictures(people))]
        file = write_labels(people / "labels.csv", ("path", "label"), rows)
    else:
        (people / "b").rename(people / "A")
    with pytest.raises(DatasetError, match=r"classes A, a.* differ in case alone"):
        load_dataset(people, labels_file=file)


def test_a_class_only_in_the_test_is_refused(people: Path) -> None:
    give_splits(people)
    (people / "test" / "c").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"test: class folder\(s\) c are not among a, b"):
        load_dataset(people)


def test_a_test_without_one_of_the_classes_is_refused(people: Path) -> None:
    give_splits(people, "test")
    shutil.rmtree(people / "test" / "b")
    with pytest.raises(DatasetError, match="class b has no readable picture in test"):
        load_dataset(people)


@pytest.mark.parametrize("name", ["valid", "extra"])
def test_a_folder_beside_train_that_is_no_split_is_refused(people: Path, name: str) -> None:
    give_splits(people, "val")
    (people / "val").rename(people / name)
    with pytest.raises(DatasetError, match=rf"{name} beside train is none of .*; rename .* to val") as caught:
        load_dataset(people)
    assert str(people) in str(caught.value)


def test_folders_that_are_hidden_or_nobodys_are_neither_classes_nor_splits(people: Path) -> None:
    for name in (".git", ".ipynb_checkpoints", "__MACOSX"):
        (people / name).mkdir()
    assert load_dataset(people).labels == ("a", "b")
    for name in (".git", ".ipynb_checkpoints", "__MACOSX"):
        (people / name).rmdir()
    give_splits(people, "test")
    for place in ("", "train", "test"):
        for name in (".git", "__MACOSX"):
            (people / place / name).mkdir()
    (people / "runs").mkdir()  # where the program itself puts its runs
    assert load_dataset(people).labels == ("a", "b")


def test_a_training_started_among_the_classes_may_put_its_runs_there(people: Path) -> None:
    (people / "runs" / "20260101-000000").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(people / "runs" / "20260101-000000" / "curves.png")
    assert load_dataset(people).labels == ("a", "b")


def test_what_systems_leave_beside_pictures_is_none_of_them(people: Path) -> None:
    expected = names(load_dataset(people, group_by=PERSON).all)
    for folder in (people, people / "a", people / "b"):
        for name in (".DS_Store", "._b1_1.png", "Thumbs.db", "desktop.ini"):
            (folder / name).write_text("no picture")
        for name in (".thumbnails", "__MACOSX", "@eaDir"):
            (folder / name).mkdir()
            Image.new("RGB", (8, 8), (ord(name[1]), 0, len(folder.name))).save(folder / name / "small.png")
    data = load_dataset(people, group_by=PERSON)
    assert names(data.all) == expected
    assert not data.unreadable


def test_pictures_behind_links_to_folders_are_learnt_and_none_by_two_names(people: Path, tmp_path: Path) -> None:
    (people / "a" / "more").mkdir()
    for number, path in enumerate(sorted((people / "a").glob("*.png"))[:30]):
        path.rename(people / "a" / "more" / path.name) if number % 2 else path.unlink()
    for number in range(30):
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (200, number, 0)).save(tmp_path / "elsewhere" / f"{number}.png")
    (people / "a" / "link").symlink_to(tmp_path / "elsewhere")
    (people / "a" / "again").symlink_to("more")  # comes before it
    (people / "a" / "loop").symlink_to(people / "a")
    ordered = [sample.name for sample in find_samples(people, None, None).splits["train"] if "/link/" in sample.name]
    assert ordered == sorted(ordered)  # a seed is a split, by whatever order a set has
    found = names(load_dataset(people).all)
    assert names(load_dataset(Path(os.path.relpath(people))).all) == found
    assert Counter(name.split("/")[1] for name in found if name.count("/") == 2) == {"link": 30, "more": 15}
    assert len(found) == 180 - 15 + 30
    rows = [(name, name[0]) for name in found]
    listed = load_dataset(people, labels_file=write_labels(tmp_path / "labels.csv", ("path", "label"), rows))
    assert names(listed.all) == found
    assert not listed.notes


def test_a_folder_that_cannot_be_read_is_told(unprivileged: Path) -> None:
    for label in "ab":
        (unprivileged / label / "more").mkdir(parents=True)
    (unprivileged / "b" / "more").chmod(0)
    with pytest.raises(DatasetError, match="b/more: Permission denied; make the folder readable"):
        load_dataset(unprivileged)


def test_few_unreadable_pictures_are_left_out_and_many_stop_the_run(people: Path) -> None:
    (people / "a" / "bad.png").write_text("no picture")
    data = load_dataset(people)
    assert [name for name, _ in data.unreadable] == ["a/bad.png"]
    assert "a/bad.png" not in names(data.all)
    for number in range(10):
        (people / "a" / f"bad{number}.png").touch()
    with pytest.raises(DatasetError, match=r"11 of 191 pictures cannot be read: a/bad\.png: .*; a/bad0\.png: ") as told:
        load_dataset(people)
    assert all(f"a/bad{number}.png: " in str(told.value) for number in range(10))


def test_every_picture_read_is_counted(people: Path) -> None:
    counted = io.StringIO()
    load_dataset(people, advance=lambda count: counted.write("." * count) and None)
    assert counted.getvalue() == "." * 180
