"""Cut pictures into parts: classes in proportion, and nobody, and no copy of a photo, in two parts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from gender_batch.training.duplicates import connect
from gender_batch.training.samples import DatasetError, Sample

HELD_OUT_FOLDS = 10
"""A tenth of the groups is held out for validation, and a tenth for the test where none is given."""

Pairs = Iterable[tuple[str, str]]
"""Names of two pictures that are one photo."""


def hold_out(samples: Sequence[Sample], near: Pairs, seed: int) -> tuple[list[Sample], list[Sample]]:
    """(the rest, a tenth of the groups); more than a tenth where a class has fewer than ten groups.

    Raises DatasetError where some class would be on one side only.
    """
    together = merge_groups(samples, near)
    count = min(HELD_OUT_FOLDS, _fewest_groups(samples, together))
    if count < 2:
        raise DatasetError(
            "all pictures of a class are of one group, so that none can be held out; "
            "--group-by or the column `group` must tell people apart"
        )
    return next(_cut(samples, together, count, seed))


def cut_folds(samples: Sequence[Sample], near: Pairs, count: int, seed: int) -> list[tuple[list[Sample], list[Sample]]]:
    """`count` times (the rest, one fold); the folds are disjoint and together all samples.

    Raises DatasetError where a class has too few groups for that.
    """
    if count < 2:
        raise DatasetError(f"--folds {count}: at least 2 are needed")
    together = merge_groups(samples, near)
    fewest = _fewest_groups(samples, together)
    if fewest < count:
        raise DatasetError(
            f"a class with {fewest} group(s) of pictures cannot be cut into {count} folds; ask for fewer with --folds"
        )
    return list(_cut(samples, together, count, seed))


def merge_groups(samples: Sequence[Sample], near: Pairs) -> NDArray[np.int64]:
    """A number per sample, the same for those that must stay together: one group, or near-duplicates across groups."""
    place = {sample.name: index for index, sample in enumerate(samples)}
    number: dict[str, int] = {}
    # Every group is a node behind those of the samples, and an edge goes from each sample to its group.
    edges = [
        (index, len(samples) + number.setdefault(sample.group, len(number))) for index, sample in enumerate(samples)
    ]
    edges += [(place[a], place[b]) for a, b in near if a in place and b in place]
    return connect(len(samples) + len(number), edges)[: len(samples)]


def _fewest_groups(samples: Sequence[Sample], groups: NDArray[np.int64]) -> int:
    """Groups in the class that has the fewest: more parts than that, and one of them would lack the class."""
    groups_of: dict[int, set[int]] = defaultdict(set)
    for sample, group in zip(samples, groups.tolist(), strict=True):
        groups_of[sample.label].add(group)
    return min(len(found) for found in groups_of.values())


def _cut(
    samples: Sequence[Sample], groups: NDArray[np.int64], count: int, seed: int
) -> Iterator[tuple[list[Sample], list[Sample]]]:
    labels = [sample.label for sample in samples]
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    for rest, part in splitter.split(samples, labels, groups):
        if any({labels[index] for index in side} != set(labels) for side in (rest, part)):
            raise DatasetError(
                f"the groups differ too much in size to cut the pictures into {count} parts with every class in each; "
                "try another --seed, or give the splits yourself"
            )
        yield [samples[index] for index in rest], [samples[index] for index in part]
