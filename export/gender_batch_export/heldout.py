"""The pictures a run did not train on, and which of them each step of an export sees."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

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

LEAST_JUDGED = 100
"""Fewest pictures on which a lower precision is judged: on fewer, chance lets bad files through.

A file that truly keeps 95% of the labels keeps 98.5% of N with the binomial probability of at most 0.015 N changes:
36% for 20 pictures, 4% for 100, and less than 5% for every N from 93 on.
"""

LARGEST_CHANGE = 0.05
"""Of a probability since the training, for the same picture. On the same machine there is none; another version of a
decoder may round a few pixels otherwise."""

Item = TypeVar("Item")


class HeldOutError(Exception):
    """The pictures that a run held out are not known, or not there, any more. The message names file or folder."""


@dataclass(frozen=True)
class Picture:
    """One labelled picture. `label` is its class's index, `group` the person on it; `attributes` are what else is known
    of it: {"age": "20-29"}; `answer` are the probabilities (classes,) that the checkpoint gave it after training."""

    path: str
    label: int
    group: str
    attributes: Mapping[str, str]
    answer: tuple[float, ...]


@dataclass(frozen=True)
class HeldOut:
    """Readable held-out pictures by what they are used for, each part spread evenly over its split.

    `proof` is of validation and test, for float32. `calibration` and `gate` are of validation, and no picture is in
    both; where validation has too few for that, `gate` is of the test, too, which `judged_by_test` says. `figures` are
    of `split`: the test, on which nothing else is chosen, or the validation where there is no test. `gone` counts those
    that would have been among them, and cannot be read any more.
    """

    proof: tuple[Picture, ...]
    calibration: tuple[Picture, ...]
    gate: tuple[Picture, ...]
    figures: tuple[Picture, ...]
    split: str
    gone: int = 0
    judged_by_test: bool = False


def held_out(
    run: Path, labels: Sequence[str], preprocessing: Preprocessing, counts: Mapping[str, int] | None = None
) -> HeldOut:
    """The parts of the run's held-out pictures that are still there and readable. `counts` are how many the training
    held out, by split.

    Raises HeldOutError where the run lists another number, or most are gone of those to prove the export on, or to
    tell the card's figures from; OSError.
    """
    root = _root(run)
    splits = _read(run, root, labels)
    for split, listed in splits.items():
        if counts is not None and len(listed) != counts.get(split):
            raise HeldOutError(
                f"{run / HELD_OUT}: lists {len(listed)} pictures of {split}, and the training had "
                f"{counts.get(split)}: it is cut short, or another run's; bring it back from a copy, or train again"
            )
    val, test = splits["val"], splits["test"]
    calibration = spread(val, min(CALIBRATED, len(val) // 2))
    chosen = {picture.path for picture in calibration}
    others = [picture for picture in val if picture.path not in chosen]
    is_there: dict[str, bool] = {}

    def readable(pictures: Sequence[Picture]) -> tuple[Picture, ...]:
        for path in {picture.path for picture in pictures} - is_there.keys():
            is_there[path] = _is_readable(path, preprocessing)
        return tuple(picture for picture in pictures if is_there[picture.path])

    def most(pictures: Sequence[Picture], which: str, use: str) -> tuple[Picture, ...]:
        """Those that are readable; of what is said of few, where most are gone, nothing could be known."""
        left = readable(pictures)
        if 2 * len(left) < len(pictures) or not left:
            raise HeldOutError(
                f"{root}: {len(left) or 'none'} of the run's {len(pictures):,} {which} pictures can be read there any "
                f"more; {use}, so bring the folder back to where it was trained from"
            )
        return left

    gate = readable(spread(others, JUDGED))
    few = len(gate) < LEAST_JUDGED and bool(test)
    return HeldOut(
        proof=most(spread([*val, *test], PROVED), "held-out", "the export is proved on them"),
        calibration=readable(calibration),
        gate=readable(spread([*others, *test], JUDGED)) if few else gate,
        figures=most(spread(test or val, JUDGED), "test" if test else "validation", "the card's figures are of them"),
        split="test" if test else "val",
        gone=sum(not there for there in is_there.values()),
        judged_by_test=few,
    )


def check_answers(answers: NDArray[np.float32], pictures: Sequence[Picture]) -> None:
    """Whether the checkpoint's probabilities (N, classes) are those that the training wrote down. Raises HeldOutError
    where they are not: then it is another checkpoint, or another picture, and no figure would tell."""
    apart = np.abs(answers - np.array([picture.answer for picture in pictures])).max(1)
    changed = ~(apart <= LARGEST_CHANGE)  # so that a NaN counts
    if changed.any():
        raise HeldOutError(
            f"{pictures[int(changed.argmax())].path}: the checkpoint gives it another answer than {HELD_OUT} says "
            f"it did after the training, as {int(changed.sum())} of {len(pictures)} held-out pictures (up to "
            f"{float(np.max(apart)):.2g} apart). Checkpoint, {HELD_OUT} and pictures must be of one training, and "
            "unchanged since; bring them back from a copy, or train again"
        )


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
            answer = tuple(float(row[f"p_{label}"]) for label in labels)
            picture = Picture(str(root / row["path"]), labels.index(row["label"]), row["group"], known, answer)
            splits[row["split"]].append(picture)
    return splits


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    """What a file of the run lacks, or holds of another kind, becomes a HeldOutError."""
    try:
        yield
    except FileNotFoundError:
        raise HeldOutError(f"{path}: it is missing; bring it back from a copy, or train again") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, csv.Error) as error:
        raise HeldOutError(f"{path}: damaged ({error!r}); bring it back from a copy, or train again") from None


def _is_readable(path: str, preprocessing: Preprocessing) -> bool:
    try:
        preprocessing.read(path)
    except PictureError:
        return False
    return True
