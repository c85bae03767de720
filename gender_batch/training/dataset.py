"""Labelled folders of photos: what is in them, who is in which split, what cannot be read."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sklearn.model_selection import StratifiedGroupKFold

from gender_batch.pictures.find import Walk
from gender_batch.pictures.read import PictureError, decode_picture

SPLITS = ("train", "val", "test")

HELD_OUT_FOLDS = 10
"""A tenth of the groups is held out for validation, and a tenth for the test where there is no test folder."""

MOST_UNREADABLE = 0.05
"""Share of unreadable pictures past which the data, not the pictures, is what is wrong."""

FEWEST_PER_CLASS = 10


class DatasetError(Exception):
    """The labelled data cannot be trained on. The message names the folder and the remedy."""


@dataclass(frozen=True)
class Sample:
    """One labelled picture. `name` is its path relative to the data; `group` is the person, or the picture itself."""

    name: str
    label: int
    group: str


@dataclass(frozen=True)
class Dataset:
    """The three splits of one data folder. `unreadable` holds (name, reason) of pictures left out."""

    root: Path
    labels: tuple[str, ...]
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]
    unreadable: tuple[tuple[str, str], ...]
    digest: str

    def path(self, sample: Sample) -> str:
        return str(self.root / sample.name)


def load_dataset(
    root: Path, group_by: str | None, seed: int, advance: Callable[[int], None] = lambda _: None
) -> Dataset:
    """Find, read once, check and split the pictures below `root`.

    `root` holds `train/<class>/...` with optional `val/` and `test/`, or `<class>/...` alone. What is missing of
    validation and test is held out from the rest, stratified by class and whole groups at a time. `group_by` is
    a regular expression searched in the relative path; its first group names the person. The digest is the
    SHA-256 over all names and contents. `advance` is called with the number of pictures read.

    Raises DatasetError.
    """
    folders = [name for name in SPLITS if (root / name).is_dir()]
    if "train" in folders:
        labels = _labels(root / "train")
        found = {
            split: _samples(root, Path(split), labels, _grouping(group_by)) if split in folders else []
            for split in SPLITS
        }
    else:
        labels = _labels(root)
        found = {"train": _samples(root, Path(), labels, _grouping(group_by)), "val": [], "test": []}

    everything = [sample for split in SPLITS for sample in found[split]]
    unreadable, digest = _read_all(root, everything, advance)
    if len(unreadable) > MOST_UNREADABLE * len(everything):
        name, reason = unreadable[0]
        raise DatasetError(
            f"{root}: {len(unreadable)} of {len(everything)} pictures cannot be read, the first {name}: {reason}. "
            f"Repair or remove them; up to {MOST_UNREADABLE:.0%} are left out and listed"
        )
    bad = {name for name, _ in unreadable}
    splits = {split: [sample for sample in found[split] if sample.name not in bad] for split in SPLITS}
    _check_classes(root, labels, splits["train"])
    _check_groups(root, splits, named=group_by is not None)
    if "train" not in folders:
        splits["train"], splits["test"] = _hold_out(splits["train"], seed)
    if not splits["val"]:
        splits["train"], splits["val"] = _hold_out(splits["train"], seed)
    return Dataset(
        root,
        labels,
        train=tuple(splits["train"]),
        val=tuple(splits["val"]),
        test=tuple(splits["test"]),
        unreadable=tuple(unreadable),
        digest=digest,
    )


def _labels(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; it must hold one folder of pictures per class")
    labels = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    if len(labels) < 2:
        raise DatasetError(
            f"{folder}: {len(labels)} class folder(s) found ({', '.join(labels) or 'none'}); "
            "two or more are needed, each named after its class"
        )
    return labels


def _grouping(group_by: str | None) -> Callable[[str], str]:
    if group_by is None:
        return lambda name: name
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise DatasetError(f"--group-by {group_by!r} is not a regular expression: {error}") from None
    if pattern.groups < 1:
        raise DatasetError(f"--group-by {group_by!r} has no group; put the part that names the person in ( )")

    def group(name: str) -> str:
        match = pattern.search(name)
        if match is None:
            raise DatasetError(f"--group-by {group_by!r} does not match {name}")
        return match.group(1)

    return group


def _samples(root: Path, split: Path, labels: tuple[str, ...], group: Callable[[str], str]) -> list[Sample]:
    unknown = {entry.name for entry in (root / split).iterdir() if entry.is_dir()} - set(labels)
    if unknown:
        raise DatasetError(
            f"{root / split}: class folder(s) {', '.join(sorted(unknown))} are not among {', '.join(labels)}"
        )
    samples = []
    for index, label in enumerate(labels):
        folder = root / split / label
        if folder.is_dir():
            names = (str(Path(path).relative_to(root)) for path in Walk().files([str(folder)]))
            samples += [Sample(name, index, group(name)) for name in names]
    return samples


def _read_all(
    root: Path, samples: Iterable[Sample], advance: Callable[[int], None]
) -> tuple[list[tuple[str, str]], str]:
    """Decode every picture once: (name, reason) of the unreadable ones, and the digest of names and contents."""

    def read(sample: Sample) -> tuple[str, str, str | None]:
        try:
            data = (root / sample.name).read_bytes()
        except OSError as error:
            return sample.name, "", error.strerror
        content = hashlib.sha256(data).hexdigest()
        try:
            decode_picture(data, 1)
        except PictureError as error:
            return sample.name, content, f"{error.status.value}: {error}"
        return sample.name, content, None

    digest = hashlib.sha256()
    unreadable = []
    with ThreadPoolExecutor() as pool:
        for name, content, reason in pool.map(read, samples):
            digest.update(f"{content} {name}\n".encode(errors="surrogateescape"))
            if reason is not None:
                unreadable.append((name, reason))
            advance(1)
    return unreadable, digest.hexdigest()


def _check_classes(root: Path, labels: tuple[str, ...], samples: list[Sample]) -> None:
    counts = Counter(sample.label for sample in samples)
    for index, label in enumerate(labels):
        if counts[index] < FEWEST_PER_CLASS:
            raise DatasetError(
                f"{root}: class {label} has {counts[index]} readable picture(s) to train on; "
                f"at least {FEWEST_PER_CLASS} are needed"
            )


def _hold_out(samples: list[Sample], seed: int) -> tuple[list[Sample], list[Sample]]:
    """A tenth of the groups for the second list, with the classes in proportion."""
    groups = [sample.group for sample in samples]
    folds = min(HELD_OUT_FOLDS, len(set(groups)))
    if folds < 2:
        raise DatasetError("all pictures are of one group; --group-by must tell people apart")
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    kept, held = next(splitter.split(samples, [sample.label for sample in samples], groups))
    return [samples[index] for index in kept], [samples[index] for index in held]


def _check_groups(root: Path, splits: dict[str, list[Sample]], named: bool) -> None:
    """Nobody may be on two sides that were given; those that are held out later are cut between groups."""
    if not named:
        return
    groups = {split: {sample.group for sample in samples} for split, samples in splits.items()}
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        shared = groups[first] & groups[second]
        if shared:
            raise DatasetError(
                f"{root}: {len(shared)} group(s) are in both {first} and {second}, {min(shared)!r} among them; "
                "the figures would flatter. Move each person to one side, or give one folder and let it be split"
            )
