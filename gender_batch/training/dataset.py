"""Labelled photos, ready to train on: read once, checked, and split so that the figures do not lie."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from gender_batch.pictures.read import PictureError, decode_picture
from gender_batch.training.duplicates import SHORTER_SIDE, Fingerprint, connect, near_duplicates, perceptual_hash
from gender_batch.training.samples import SPLITS, DatasetError, Sample, find_samples
from gender_batch.training.splits import cut_folds, hold_out

__all__ = ["Dataset", "DatasetError", "Sample", "folds", "load_dataset"]

MOST_UNREADABLE = 0.05
"""Share of unreadable pictures past which the data, not the pictures, is what is wrong."""

FEWEST_PER_CLASS = 10

MOST_NAMED = 20
"""Examples that a message gives."""


@dataclass(frozen=True)
class Dataset:
    """The three splits of one data folder.

    `unreadable` holds (name, reason) of pictures left out, `notes` what else the user should be told.
    `near_duplicates` pairs the names of pictures that are one photo.
    """

    root: Path
    labels: tuple[str, ...]
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]
    unreadable: tuple[tuple[str, str], ...]
    digest: str
    notes: tuple[str, ...] = ()
    near_duplicates: tuple[tuple[str, str], ...] = ()

    @property
    def all(self) -> tuple[Sample, ...]:
        return self.train + self.val + self.test

    def path(self, sample: Sample) -> str:
        return str(self.root / sample.name)


def load_dataset(
    root: Path,
    *,
    group_by: str | None = None,
    labels_file: Path | None = None,
    seed: int = 0,
    allow_leaks: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> Dataset:
    """Find, read once, check and split the pictures below `root`; `find_samples` says what can be there.

    Splits that are given are kept: a person or a photo on two sides is an error, or a note with `allow_leaks`.
    What is missing is held out from the rest, whole groups at a time and near-duplicates together: a validation set,
    and where nothing is given a test set. The digest is the SHA-256 over all names and contents, and the labels
    file if there is one. `advance` is called with the number of pictures read.

    Raises DatasetError.
    """
    found = find_samples(root, group_by, labels_file)
    pictures = [sample for split in SPLITS for sample in found.splits[split]]
    fingerprints, unreadable, digest = _read_all(root, pictures, labels_file, advance)
    if len(unreadable) > MOST_UNREADABLE * len(pictures):
        name, reason = unreadable[0]
        raise DatasetError(
            f"{root}: {len(unreadable)} of {len(pictures)} pictures cannot be read, the first {name}: {reason}. "
            f"Repair or remove them; up to {MOST_UNREADABLE:.0%} are left out and listed"
        )
    splits = {split: [s for s in found.splits[split] if s.name in fingerprints] for split in SPLITS}
    _check_classes(root, found.labels, splits)

    readable = [sample for split in SPLITS for sample in splits[split]]
    prints = [fingerprints[sample.name] for sample in readable]
    _check_contradictions(root, found.labels, readable, prints)
    pairs = near_duplicates(prints)
    near = tuple((readable[i].name, readable[j].name) for i, j in pairs)
    notes = [*found.notes, *_doubts(found.labels, readable, pairs), *_leaks(root, splits, pairs, allow_leaks)]

    if not splits["val"]:
        cut = {sample.name for sample in splits["train"]}
        together = {name for pair in near for name in pair if cut.issuperset(pair)}
        if together:
            notes.append(f"{len(together)} pictures are near-duplicates of others; they stay on one side with them")
        if not found.given:
            splits["train"], splits["test"] = hold_out(splits["train"], near, seed)
        splits["train"], splits["val"] = hold_out(splits["train"], near, seed)
    return Dataset(
        root,
        found.labels,
        train=tuple(splits["train"]),
        val=tuple(splits["val"]),
        test=tuple(splits["test"]),
        unreadable=tuple(unreadable),
        digest=digest,
        notes=tuple(notes),
        near_duplicates=near,
    )


def folds(dataset: Dataset, count: int, seed: int) -> Iterator[Dataset]:
    """Cross-validation: all pictures pooled and cut into `count` folds, each in turn the `test` of a dataset.

    `val` is held out from the rest as `load_dataset` does it. Groups and near-duplicates stay on one side, whatever
    splits there were before.

    Raises DatasetError, before the first is given, where a class has fewer groups than folds.
    """
    near = dataset.near_duplicates
    cuts = [(*hold_out(rest, near, seed), fold) for rest, fold in cut_folds(dataset.all, near, count, seed)]
    return (replace(dataset, train=tuple(train), val=tuple(val), test=tuple(fold)) for train, val, fold in cuts)


def _read_all(
    root: Path, samples: Sequence[Sample], labels_file: Path | None, advance: Callable[[int], None]
) -> tuple[dict[str, Fingerprint], list[tuple[str, str]], str]:
    """Decode every picture once: fingerprints by name, (name, reason) of the unreadable ones, and the digest."""

    def read(sample: Sample) -> tuple[str, str, bytes | None, str | None]:
        try:
            data = (root / sample.name).read_bytes()
        except OSError as error:
            return sample.name, "", None, error.strerror
        content = hashlib.sha256(data).hexdigest()
        try:
            return sample.name, content, perceptual_hash(decode_picture(data, SHORTER_SIDE).image), None
        except PictureError as error:
            return sample.name, content, None, f"{error.status.value}: {error}"

    digest = hashlib.sha256()
    fingerprints = {}
    unreadable = []
    with ThreadPoolExecutor() as pool:
        for name, content, look, reason in pool.map(read, samples):
            digest.update(f"{content} {name}\n".encode(errors="surrogateescape"))
            if reason is None:
                fingerprints[name] = Fingerprint(content, look)
            else:
                unreadable.append((name, reason))
            advance(1)
    if labels_file:
        digest.update(labels_file.read_bytes())
    return fingerprints, unreadable, digest.hexdigest()


def _check_classes(root: Path, labels: tuple[str, ...], splits: dict[str, list[Sample]]) -> None:
    for split, samples in splits.items():
        counts = Counter(sample.label for sample in samples)
        for index, label in enumerate(labels):
            if split == "train" and counts[index] < FEWEST_PER_CLASS:
                raise DatasetError(
                    f"{root}: class {label} has {counts[index]} readable picture(s) to train on; "
                    f"at least {FEWEST_PER_CLASS} are needed"
                )
            if samples and not counts[index]:
                raise DatasetError(
                    f"{root}: class {label} has no readable picture in {split}; add some, "
                    f"or leave {split} out altogether"
                )


def _check_contradictions(
    root: Path, labels: tuple[str, ...], samples: Sequence[Sample], prints: Sequence[Fingerprint]
) -> None:
    """One file cannot be of two classes."""
    first: dict[str, Sample] = {}
    pairs = []
    for sample, fingerprint in zip(samples, prints, strict=True):
        before = first.setdefault(fingerprint.content, sample)
        if before.label != sample.label:
            pairs.append((before, sample))
    if pairs:
        named = "; ".join(
            f"{a.name} ({labels[a.label]}) and {b.name} ({labels[b.label]})" for a, b in pairs[:MOST_NAMED]
        )
        raise DatasetError(
            f"{root}: {len(pairs)} picture(s) are in two classes, the very same file: {named}. "
            "Remove them from the class that is wrong"
        )


def _doubts(labels: tuple[str, ...], samples: Sequence[Sample], near: Sequence[tuple[int, int]]) -> Iterator[str]:
    """What is likely a wrong label, but may be right: two people on one photo, a family as one group."""
    differing = [(samples[i], samples[j]) for i, j in near if samples[i].label != samples[j].label]
    if differing:
        a, b = differing[0]
        yield (
            f"{len(differing)} pair(s) of near-duplicates have different labels, among them "
            f"{a.name} ({labels[a.label]}) and {b.name} ({labels[b.label]})"
        )
    labels_of = defaultdict(set)
    for sample in samples:
        labels_of[sample.group].add(sample.label)
    mixed = [group for group, found in labels_of.items() if len(found) > 1]
    if mixed:
        yield f"{len(mixed)} group(s) hold pictures of more than one class, {mixed[0]!r} among them"


def _leaks(
    root: Path, splits: dict[str, list[Sample]], near: Sequence[tuple[int, int]], allowed: bool
) -> Iterator[str]:
    """Notes on people and photos that are on two of the sides that were given; an error unless they are `allowed`.

    `near` holds indices into all samples, split after split. What is held out later is cut so that nothing leaks.
    """
    placed = [(split, sample) for split, samples in splits.items() for sample in samples]
    sides: dict[str, set[str]] = defaultdict(set)
    for split, sample in placed:
        sides[sample.group].add(split)
    people = [group for group, found in sides.items() if len(found) > 1]
    if people:
        both = " and ".join(split for split in SPLITS if split in sides[people[0]])
        leak = f"{len(people)} group(s) are on two sides, {people[0]!r} in both {both} among them"
        if not allowed:
            raise DatasetError(
                f"{root}: {leak}; the figures would flatter. Move each person to one side, "
                "give one folder and let it be split, or add --allow-leaks"
            )
        yield f"leaks allowed: {leak}"

    photo = connect(len(placed), near).tolist()
    crossing = {photo[i]: (placed[i], placed[j]) for i, j in near if placed[i][0] != placed[j][0]}
    if crossing:
        named = "; ".join(f"{a.name} ({x}) and {b.name} ({y})" for (x, a), (y, b) in [*crossing.values()][:MOST_NAMED])
        leak = f"{len(crossing)} photo(s) are on two sides as identical or near-duplicate pictures: {named}"
        if not allowed:
            raise DatasetError(f"{root}: {leak}. The figures would flatter: remove one of each, or add --allow-leaks")
        yield f"leaks allowed: {leak}"
