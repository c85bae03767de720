"""Cut pictures into parts: classes in proportion, and nobody, and no copy of a photo, in two parts."""

from __future__ import annotations

import warnings
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

_Cut = tuple[list[Sample], list[Sample]]
"""The rest, and one part."""


def hold_out(samples: Sequence[Sample], near: Pairs, seed: int) -> _Cut:
    """(the rest, a tenth of the pictures or what comes nearest to it), whole groups and every class on both sides.

    The groups are cut into ten parts, or as many as a class has groups for (as every class has, if no part gets every
    class otherwise). Of those with every class it is the one nearest in size to a tenth; among those as near to a
    percent the first or, where a person has more than a percent of the pictures, one by lot. A person with many more
    pictures than a tenth is therefore always learnt, never judged: the figures are those of many people.

    Raises DatasetError where no part has every class, or every one has all of some class.
    """
    together = merge_groups(samples, near)
    counts = _groups_of_each_class(samples, together)
    fewest, most = (min(HELD_OUT_FOLDS, count) for count in (min(counts), max(counts)))
    if fewest < 2:
        raise DatasetError(
            "all pictures of a class are of one group, or are so once a test is held out, so that none can be held "
            "out; add people, or tell them apart by --group-by or the column `group`"
        )
    cuts: list[_Cut] = []
    for count in (most, fewest):
        cuts = cuts or [cut for cut in _cut(samples, together, count, seed) if _has_every_class(samples, cut)]
    if not cuts:
        raise _uneven(fewest)
    # The largest group is always dealt to the first part: one that counts would be held out whatever the seed.
    if np.bincount(together).max() > len(samples) / 100:
        np.random.default_rng(seed).shuffle(cuts)
    return min(cuts, key=lambda cut: abs(round(100 * len(cut[1]) / len(samples)) - 100 // HELD_OUT_FOLDS))


def cut_folds(samples: Sequence[Sample], near: Pairs, count: int, seed: int) -> list[_Cut]:
    """`count` times (the rest, one fold); the folds are disjoint and together all samples.

    Raises DatasetError where a class has too few groups for that.
    """
    if count < 2:
        raise DatasetError(f"--folds {count}: at least 2 are needed")
    together = merge_groups(samples, near)
    fewest = min(_groups_of_each_class(samples, together))
    if fewest < count:
        raise DatasetError(
            f"a class with {fewest} group(s) of pictures cannot be cut into {count} folds; ask for fewer with --folds"
        )
    cuts = list(_cut(samples, together, count, seed))
    if not all(_has_every_class(samples, cut) for cut in cuts):
        raise _uneven(count)
    return cuts


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


def _groups_of_each_class(samples: Sequence[Sample], groups: NDArray[np.int64]) -> list[int]:
    """How many there are: of more parts than that one would lack the class."""
    groups_of: dict[int, set[int]] = defaultdict(set)
    for sample, group in zip(samples, groups.tolist(), strict=True):
        groups_of[sample.label].add(group)
    return [len(found) for found in groups_of.values()]


def _cut(samples: Sequence[Sample], groups: NDArray[np.int64], count: int, seed: int) -> Iterator[_Cut]:
    labels = [sample.label for sample in samples]
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # who lacks it is sorted out
        cuts = list(splitter.split(samples, labels, groups))
    for rest, part in cuts:
        yield [samples[index] for index in rest], [samples[index] for index in part]


def _has_every_class(samples: Sequence[Sample], cut: _Cut) -> bool:
    """Whether both sides of the cut have all classes of the samples."""
    classes = {sample.label for sample in samples}
    return all({sample.label for sample in side} == classes for side in cut)


def _uneven(count: int) -> DatasetError:
    return DatasetError(
        f"the groups differ too much in size to cut the pictures into {count} parts with every class in each; "
        "try another --seed, or give the splits yourself"
    )
