"""The pictures a run did not train on, and which of them each step of an export sees."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gender_batch.pictures.preprocessing import Preprocessing
from gender_batch.pictures.read import PictureError
from gender_batch.training.findings import HELD_OUT
from gender_batch.training.run import CONFIG, PICTURES

PROVED = 256
"""Pictures on which the float32 file is compared with the checkpoint."""

CALIBRATED = 256
"""Pictures from which int8 takes the ranges of its activations; 64 gave the same agreement."""

JUDGED = 2000
"""Most pictures for a gate, and most for the figures of a card: 0.3 points of accuracy are six of them."""

Item = TypeVar("Item")


class HeldOutError(Exception):
    """The pictures that a run held out are not known, or not there, any more. The message names file or folder."""


@dataclass(frozen=True)
class Picture:
    """One labelled picture. `label` is its class's index, `group` the person on it; `attributes` are what else is known
    of it: {"age": "20-29"}."""

    path: str
    label: int
    group: str
    attributes: Mapping[str, str]


@dataclass(frozen=True)
class HeldOut:
    """Readable held-out pictures by what they are used for, each part spread evenly over its split.

    `proof` is of validation and test, for float32. `calibration` and `gate` are of validation, and no picture is in
    both. `figures` are of `split`: the test, on which nothing is chosen, or the validation where there is no test.
    """

    proof: tuple[Picture, ...]
    calibration: tuple[Picture, ...]
    gate: tuple[Picture, ...]
    figures: tuple[Picture, ...]
    split: str


def held_out(run: Path, labels: Sequence[str], preprocessing: Preprocessing) -> HeldOut:
    """The parts of the run's held-out pictures that are still there and readable.

    Raises HeldOutError where none is left to prove the export on, or to tell the card's figures from; OSError.
    """
    root = _root(run)
    splits = _read(run, root, labels)
    val, test = splits["val"], splits["test"]
    calibration = spread(val, min(CALIBRATED, len(val) // 2))
    chosen = {picture.path for picture in calibration}
    others = [picture for picture in val if picture.path not in chosen]
    found = HeldOut(
        proof=_readable(spread([*val, *test], PROVED), preprocessing),
        calibration=_readable(calibration, preprocessing),
        gate=_readable(spread(others, JUDGED), preprocessing),
        figures=_readable(spread(test or val, JUDGED), preprocessing),
        split="test" if test else "val",
    )
    for pictures, which, use in (
        (found.proof, "held-out", "the export is proved on them"),
        (found.figures, "test" if test else "validation", "the card's figures are of them"),
    ):
        if not pictures:
            raise HeldOutError(
                f"{root}: none of the run's {which} pictures can be read there any more; {use}, "
                "so bring the folder back to where it was trained from"
            )
    return found


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items, at equal distances."""
    count = min(count, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def _root(run: Path) -> Path:
    """The folder of the pictures that were trained on."""
    with _damage_told(run / CONFIG):
        config = json.loads((run / CONFIG).read_text())
        return Path(run, config.get(PICTURES, config["data"]))


def _read(run: Path, root: Path, labels: Sequence[str]) -> dict[str, list[Picture]]:
    """Columns are split, path, group, label, any attributes, and a probability per label."""
    splits: dict[str, list[Picture]] = {"val": [], "test": []}
    path = run / HELD_OUT
    with _damage_told(path), path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or ())
        attributes = columns[columns.index("label") + 1 : len(columns) - len(labels)]
        for row in reader:
            if None in row.values():
                raise ValueError(f"line {reader.line_num} is cut short")
            known = {name: row[name] for name in attributes}
            picture = Picture(str(root / row["path"]), labels.index(row["label"]), row["group"], known)
            splits[row["split"]].append(picture)
    return splits


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    """What a file of the run lacks, or holds of another kind, becomes a HeldOutError."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, csv.Error) as error:
        raise HeldOutError(f"{path}: damaged ({error!r}); bring it back from a copy, or train again") from None


def _readable(pictures: Sequence[Picture], preprocessing: Preprocessing) -> tuple[Picture, ...]:
    readable = []
    for picture in pictures:
        try:
            preprocessing.read(picture.path)
        except PictureError:
            continue
        readable.append(picture)
    return tuple(readable)
