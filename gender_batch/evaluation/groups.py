"""Accuracy per group of pictures: by each attribute known of them, and by each together with the label."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gender_batch.evaluation.metrics import Proportion, numbered

MOST_VALUES = 50
"""Different values past which an attribute is no grouping but a measurement or a name."""


@dataclass(frozen=True)
class Group:
    """The pictures that share the value of an attribute (`column`), or of an attribute and the label."""

    column: str
    value: str
    accuracy: Proportion


def by_group(
    attributes: Sequence[Mapping[str, str]],
    labels_of_truth: Sequence[str],
    right: Sequence[bool],
    groups: Sequence[str] | None = None,
) -> tuple[Group, ...]:
    """Accuracy for every value of every attribute, and for every value with every label: `age`, `age x label`.

    One item of each argument per picture: what is known of it (nothing is an empty mapping, an empty value is not
    known), its true label, whether its most probable label is that, and, as `measure` takes it, who is on it.
    Attributes come in the order in which they are met, values sorted, numbers in them by their size; an attribute of
    one value, or of more than 50, is left out, and so is one that only says the label again.
    """
    people = numbered(groups if groups is not None else range(len(right)))
    telling = {
        column
        for known, label in zip(attributes, labels_of_truth, strict=True)
        for column, value in known.items()
        if value and value.casefold() != label.casefold()
    }
    members: dict[tuple[str, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, (known, label) in enumerate(zip(attributes, labels_of_truth, strict=True)):
        for column, value in known.items():
            if not value or column not in telling:
                continue  # the label itself is told by the table of classes
            for crossed, kind in (("", value), (" x label", f"{value}, {label}")):
                members[column, crossed][kind].append(number)
    is_right = np.asarray(right, dtype=bool)
    return tuple(
        Group(column + crossed, value, Proportion.of(is_right[values[value]], people[values[value]]))
        for (column, crossed), values in members.items()
        if len(members[column, ""]) > 1 and len(values) <= MOST_VALUES
        for value in sorted(values, key=_natural)
    )


def accuracies(groups: Iterable[Group]) -> dict[str, dict[str, Any]]:
    """By attribute and value, as metrics.json and checkpoints hold them."""
    found: dict[str, dict[str, Any]] = {}
    for group in groups:
        found.setdefault(group.column, {})[group.value] = group.accuracy.to_dict()
    return found


def _natural(value: str) -> list[str | int]:
    """Sorts numbers in a text by their size: 3-9 before 10-19."""
    # Of at most 18 digits: Python refuses to make a number of thousands.
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d{1,18})", value)]
