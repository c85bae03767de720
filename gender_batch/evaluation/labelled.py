"""Score a labelled tree through the very path of `classify`, and set the answers against the labels."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gender_batch.evaluation.groups import Group, by_group
from gender_batch.evaluation.metrics import Metrics, measure
from gender_batch.pictures.find import Walk
from gender_batch.prediction import Prediction, Status
from gender_batch.scoring.run import Scorer


class LabelsError(Exception):
    """The labelled data or the groups file does not fit the model. The message names it and the remedy."""


@dataclass(frozen=True)
class Evaluation:
    """`rows`, `truth` (class indices) and `attributes` (of the groups file) go together; `failed` pictures have a
    row but no answer."""

    metrics: Metrics
    rows: tuple[Prediction, ...]
    truth: tuple[int, ...]
    attributes: tuple[Mapping[str, str], ...]
    failed: tuple[Prediction, ...]
    groups: tuple[Group, ...]

    def to_dict(self) -> dict[str, Any]:
        groups: dict[str, dict[str, Any]] = defaultdict(dict)
        for group in self.groups:
            groups[group.column][group.value] = group.accuracy.to_dict()
        return {**self.metrics.to_dict(), "failed": len(self.failed), "groups": groups}


def evaluate(
    scorer: Scorer, data: Path, groups_file: Path | None, tell: Callable[[int, int], None] = lambda *_: None
) -> Evaluation:
    """Evaluate on `data`: one folder per label of the model, or a `test/` with those in it.

    `groups_file` is a CSV with a column `path` (relative to `data` or to its parent) and any others; each of those
    gives a table, and so does each together with the label. `tell` gets the numbers of rows and of failed ones.
    Raises LabelsError, PoolError.
    """
    labels = scorer.metadata.labels
    root = _root(data, labels)
    attributes = _read_groups(groups_file) if groups_file else {}

    paths = list(Walk().files(str(root / label) for label in labels))
    rows, truth, failed = [], [], []
    for row in scorer.rows(paths):
        if row.status is Status.OK:
            rows.append(row)
            truth.append(labels.index(Path(row.path).relative_to(root).parts[0]))
        else:
            failed.append(row)
        tell(len(rows) + len(failed), len(failed))
    if not rows:
        raise LabelsError(f"{root}: no picture in it could be scored")
    probabilities = np.array([row.probabilities for row in rows])
    metrics = measure(probabilities, truth, labels, scorer.metadata.threshold)
    right = probabilities.argmax(axis=1) == np.array(truth)
    known = _known(data, rows, attributes, groups_file)
    groups = by_group(known, [labels[index] for index in truth], right.tolist())
    return Evaluation(metrics, tuple(rows), tuple(truth), tuple(known), tuple(failed), groups)


def _root(data: Path, labels: tuple[str, ...]) -> Path:
    for root in (data, data / "test"):
        if all((root / label).is_dir() for label in labels):
            return root
    raise LabelsError(
        f"{data}: no folders {', '.join(labels)} in it or in its test/; they must be named after the model's labels"
    )


def _read_groups(file: Path) -> dict[str, dict[str, str]]:
    with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
        reader = csv.DictReader(lines)
        if "path" not in (reader.fieldnames or ()):
            raise LabelsError(f"{file}: no column `path`; it has {', '.join(reader.fieldnames or ['nothing'])}")
        return {row.pop("path"): {name: value for name, value in row.items() if name} for row in reader}


def _known(
    data: Path, rows: Sequence[Prediction], attributes: dict[str, dict[str, str]], source: Path | None
) -> list[dict[str, str]]:
    """The attributes of each row's picture; empty where the groups file does not name it."""
    known = []
    for row in rows:
        name = Path(row.path).relative_to(data)
        known.append(attributes.get(str(name)) or attributes.get(str(Path(data.resolve().name) / name)) or {})
    if source is not None and not any(known):
        raise LabelsError(
            f"{source}: none of its paths is a scored picture; they must be relative to {data} or its parent"
        )
    return known
