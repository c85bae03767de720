"""Score a labelled tree through the very path of `classify`, and set the answers against the labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gender_batch.evaluation.groups import MOST_VALUES, Group, accuracies, by_group
from gender_batch.evaluation.metrics import Metrics, measure
from gender_batch.pictures.find import LITTER, Walk
from gender_batch.pictures.listed import Listed, ListError, Row, read_list
from gender_batch.prediction import UNCERTAIN, Prediction, Status
from gender_batch.scoring.run import Scorer


class LabelsError(Exception):
    """The labelled data or the groups file does not fit the model. The message names it and the remedy."""


class NoPictureError(LabelsError):
    """There is no picture to score."""


@dataclass(frozen=True)
class Evaluation:
    """`pictures` are (row, class index of the label), in the order of the walk; the metrics are those of `answered`.

    `unreadable_folders` are (folder, reason); `notes` are what else the user should be told.
    """

    metrics: Metrics
    pictures: tuple[tuple[Prediction, int], ...]
    unreadable_folders: tuple[tuple[str, str], ...]
    groups: tuple[Group, ...]
    notes: tuple[str, ...]

    @property
    def answered(self) -> list[tuple[Prediction, int]]:
        return [(row, truth) for row, truth in self.pictures if row.status is Status.OK]

    @property
    def failed(self) -> list[Prediction]:
        return [row for row, _ in self.pictures if row.status.failed]

    @property
    def faceless(self) -> list[Prediction]:
        return [row for row, _ in self.pictures if row.status is Status.NO_FACE]

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.metrics.to_dict(),
            "failed": len(self.failed),
            "no_face": len(self.faceless),
            "folders_not_read": len(self.unreadable_folders),
            "groups": accuracies(self.groups),
        }


def evaluate(
    scorer: Scorer, data: Path, groups_file: Path | None, tell: Callable[[int, int], None] = lambda *_: None
) -> Evaluation:
    """Evaluate on `data`: one folder per label of the model, or a `test/` with those in it; links are followed,
    hidden files and what systems leave beside pictures passed over.

    `groups_file` is a CSV with a column `path` (relative to `data` or to its parent) and any others. A column `group`
    names who is on a picture, `split` and `label` are passed over; each of the others gives a table, and so does each
    together with the label. `tell` gets the numbers of rows and of failed ones. Raises LabelsError (NoPictureError
    is one) and PoolError.
    """
    labels = scorer.metadata.labels
    root = _root(data, labels)
    walk = Walk(follow_links=True, exclude=LITTER)  # as in training
    name_of = {path: str(Path(path).relative_to(data)) for path in walk.files(str(root / label) for label in labels)}
    try:
        listed = read_list(groups_file) if groups_file else None
        known = listed.rows_of(data, set(name_of.values())) if listed else {}
        people = _people(listed, known, name_of.values())
    except ListError as error:
        raise LabelsError(str(error)) from None

    seen: list[Prediction] = []
    failed = 0
    for row in scorer.rows(name_of):
        seen.append(row)
        failed += row.status.failed
        tell(len(seen), failed)
    if not seen:
        unread = "".join(f"; {folder!r} was not read: {reason}" for folder, reason in walk.unreadable_folders[:1])
        raise NoPictureError(f"{root}: no picture in its folders {', '.join(labels)}{unread}")
    pictures = tuple((row, labels.index(Path(row.path).relative_to(root).parts[0])) for row in seen)
    rows = [row for row in seen if row.status is Status.OK]
    if not rows:
        raise LabelsError(f"{root}: no picture in it could be scored; {_why(seen)}")
    names = [name_of[row.path] for row in rows]
    truth = [index for row, index in pictures if row.status is Status.OK]
    labels_of_truth = [labels[index] for index in truth]
    probabilities = np.array([row.probabilities for row in rows])
    groups = [people[name] for name in names]
    attributes = [_attributes(listed, known, name) for name in names]
    decided = [row.label != UNCERTAIN for row in rows]
    return Evaluation(
        metrics=measure(probabilities, truth, labels, scorer.metadata.threshold, groups, decided),
        pictures=pictures,
        unreadable_folders=tuple(walk.unreadable_folders),
        groups=by_group(
            attributes,
            labels_of_truth,
            (probabilities.argmax(axis=1) == np.array(truth)).tolist(),
            groups,
        ),
        notes=(
            *_other_folders(root, labels),
            *_other_lines(root, listed, known),
            *_without_table(attributes, labels_of_truth),
        ),
    )


def _root(data: Path, labels: tuple[str, ...]) -> Path:
    for label in labels:
        if label in (os.curdir, os.pardir) or "/" in label:
            raise LabelsError(f"{data}: the model's label {label!r} cannot be the name of a folder")
    for root in (data, data / "test"):
        if all(os.path.isdir(root / label) for label in labels):
            return root
    raise LabelsError(
        f"{data}: no folders {', '.join(labels)} in it or in its test/; they must be named after the model's labels"
    )


def _why(unscored: Sequence[Prediction]) -> str:
    first = next((row for row in unscored if row.status.failed), unscored[0])
    remedy = "" if first.status.failed else "; --no-face whole takes such pictures whole"
    return f"of {len(unscored):,} one is {first.path!r}: {first.status.value}: {first.error}{remedy}"


def _people(listed: Listed | None, known: Mapping[str, Row], names: Iterable[str]) -> dict[str, str]:
    """Who is on each picture, as the file says, or nobody who is on another one. Raises ListError."""
    if listed and "group" in listed.columns:
        return {name: listed.value(known, "group", name) for name in names}
    return {name: name for name in names}


def _attributes(listed: Listed | None, known: Mapping[str, Row], name: str) -> dict[str, str]:
    """What else the file says of the picture; nothing where it does not name it."""
    return {column: known[name].values[column] for column in listed.attributes} if listed and name in known else {}


def _without_table(attributes: Sequence[Mapping[str, str]], labels_of_truth: Sequence[str]) -> Iterator[str]:
    for column in dict.fromkeys(column for known in attributes for column in known):
        crossed = {
            (known[column], label)
            for known, label in zip(attributes, labels_of_truth, strict=True)
            if known.get(column)
        }
        for name, values in ((column, len({value for value, _ in crossed})), (f"{column} x label", len(crossed))):
            if values > MOST_VALUES:
                yield f"{name}: {values:,} different values, more than {MOST_VALUES}; there is no table of it"
                break


def _other_folders(root: Path, labels: Sequence[str]) -> Iterator[str]:
    others = sorted(entry.name for entry in root.iterdir() if os.path.isdir(entry) and entry.name not in labels)
    if others:
        yield f"{root}: folder(s) {', '.join(others)} are not among the model's labels; nothing in them was scored"


def _other_lines(root: Path, listed: Listed | None, known: Mapping[str, Row]) -> Iterator[str]:
    used = {row.line for row in known.values()}
    others = [path for path, row in listed.rows.items() if row.line not in used] if listed else []
    if listed and others:
        yield f"{listed.path}: {len(others):,} line(s) are of no labelled picture in {root}, {others[0]} among them"
