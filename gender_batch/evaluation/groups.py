"""Accuracy per group of pictures: by each attribute known of them, and by each together with the label."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gender_batch.evaluation.metrics import Proportion

MOST_VALUES = 50
"""Different values past which an attribute is no grouping but a measurement or a name."""


@dataclass(frozen=True)
class Group:
    """The pictures that share the value of an attribute (`column`), or of an attribute and the label."""

    column: str
    value: str
    accuracy: Proportion


def by_group(
    attributes: Sequence[Mapping[str, str]], labels_of_truth: Sequence[str], right: Sequence[bool]
) -> tuple[Group, ...]:
    """Accuracy for every value of every attribute, and for every value with every label: `age`, `age x label`.

    One item of each argument per picture: what is known of it (nothing is an empty mapping, an empty value is not
    known), its true label, and whether its most probable label is that. Attributes come in the order in which they
    are met, values sorted, numbers in them by their size; an attribute of one value, or of more than 50, is left out.
    """
    tally: dict[tuple[str, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for known, label, is_right in zip(attributes, labels_of_truth, right, strict=True):
        for column, value in known.items():
            if not value or value == label:
                continue  # the label itself is told by the table of classes
            for crossed, kind in (("", value), (" x label", f"{value}, {label}")):
                tally[column, crossed][kind][0] += bool(is_right)
                tally[column, crossed][kind][1] += 1
    return tuple(
        Group(column + crossed, value, Proportion(*values[value]))
        for (column, crossed), values in tally.items()
        if len(tally[column, ""]) > 1 and len(values) <= MOST_VALUES
        for value in sorted(values, key=_natural)
    )


def _natural(value: str) -> list[str | int]:
    """Sorts numbers in a text by their size: 3-9 before 10-19."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", value)]
