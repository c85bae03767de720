"""Splits that do not lie: nobody on two sides, classes in proportion, the same split for the same seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("torch")

from gender_batch.training.dataset import Dataset, DatasetError, load_dataset


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Two classes of 40 people with three pictures each; the second class has twice the people of the first."""
    for label, count in (("a", 20), ("b", 40)):
        (tmp_path / label).mkdir()
        for person in range(count):
            for number in range(3):
                colour = (person, number, ord(label))
                Image.new("RGB", (8, 8), colour).save(tmp_path / label / f"{label}{person}_{number}.png")
    return tmp_path


def groups(data: Dataset) -> list[set[str]]:
    return [{sample.group for sample in split} for split in (data.train, data.val, data.test)]


def test_groups_stay_together_and_classes_in_proportion(people: Path) -> None:
    data = load_dataset(people, r"/(\w+)_", seed=0)
    train, val, test = groups(data)
    assert not train & val
    assert not train & test
    assert not val & test
    assert len(train | val | test) == 60
    assert len(data.train) + len(data.val) + len(data.test) == 180
    for split in (data.val, data.test):
        counts = Counter(sample.label for sample in split)
        assert counts[1] / counts[0] == pytest.approx(2, abs=0.6)


def test_a_seed_is_a_split(people: Path) -> None:
    assert load_dataset(people, r"/(\w+)_", seed=3) == load_dataset(people, r"/(\w+)_", seed=3)
    assert groups(load_dataset(people, r"/(\w+)_", seed=3)) != groups(load_dataset(people, r"/(\w+)_", seed=4))


def test_given_splits_are_kept(people: Path) -> None:
    for split in ("train", "test"):
        (people / split).mkdir()
    for label in "ab":
        (people / label).rename(people / "train" / label)
        (people / "test" / label).mkdir()
        for number in range(3):
            Image.new("RGB", (8, 8)).save(people / "test" / label / f"t{number}_0.png")
    data = load_dataset(people, None, seed=0)
    assert {sample.name.split("/")[0] for sample in data.test} == {"test"}
    assert {sample.name.split("/")[0] for sample in (*data.train, *data.val)} == {"train"}
    assert len(data.val) == 18


def test_a_person_on_both_given_sides_is_refused(people: Path) -> None:
    (people / "train").mkdir()
    (people / "test").mkdir()
    for label in "ab":
        (people / label).rename(people / "train" / label)
        (people / "test" / label).mkdir()
        Image.new("RGB", (8, 8)).save(people / "test" / label / f"{label}1_9.png")
    with pytest.raises(DatasetError, match="both train and test"):
        load_dataset(people, r"/(\w+)_", seed=0)


def test_the_digest_tells_contents_and_names(people: Path) -> None:
    digest = load_dataset(people, None, seed=0).digest
    assert load_dataset(people, None, seed=1).digest == digest
    Image.new("RGB", (8, 8), "red").save(people / "a" / "a1_1.png")
    changed = load_dataset(people, None, seed=0).digest
    assert changed != digest
    (people / "a" / "a1_1.png").rename(people / "a" / "a1_8.png")
    assert load_dataset(people, None, seed=0).digest not in (digest, changed)


@pytest.mark.parametrize("pattern", ["(", "person", r"/nobody(\d)"])
def test_a_group_by_that_does_not_work_is_told(people: Path, pattern: str) -> None:
    with pytest.raises(DatasetError, match="--group-by"):
        load_dataset(people, pattern, seed=0)


def test_one_class_is_too_few(people: Path) -> None:
    for path in (people / "b").iterdir():
        path.unlink()
    (people / "b").rmdir()
    with pytest.raises(DatasetError, match="two or more"):
        load_dataset(people, None, seed=0)


def test_a_class_with_few_pictures_is_named(people: Path) -> None:
    for path in sorted((people / "b").iterdir())[9:]:
        path.unlink()
    with pytest.raises(DatasetError, match=r"class b has 9 .* at least 10"):
        load_dataset(people, None, seed=0)


def test_a_class_only_in_the_test_is_refused(people: Path) -> None:
    (people / "train").mkdir()
    for label in "ab":
        (people / label).rename(people / "train" / label)
    (people / "test" / "c").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"test: class folder\(s\) c are not among a, b"):
        load_dataset(people, None, seed=0)


def test_few_unreadable_pictures_are_left_out_and_many_stop_the_run(people: Path) -> None:
    (people / "a" / "bad.png").write_text("no picture")
    data = load_dataset(people, None, seed=0)
    assert [name for name, _ in data.unreadable] == ["a/bad.png"]
    assert "a/bad.png" not in {sample.name for sample in (*data.train, *data.val, *data.test)}
    for number in range(10):
        (people / "a" / f"bad{number}.png").touch()
    with pytest.raises(DatasetError, match=r"11 of 191 pictures cannot be read, the first a/bad\.png"):
        load_dataset(people, None, seed=0)
