"""Labelled photos, ready to train on: read once, checked, and split so that the figures do not lie."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from gender_batch.pictures.read import PictureError, decode_picture
from gender_batch.prediction import Box
from gender_batch.training.crops import Crops
from gender_batch.training.duplicates import SHORTER_SIDE, Fingerprint, connect, near_duplicates, perceptual_hash
from gender_batch.training.samples import SPLITS, DatasetError, Found, Sample, find_samples
from gender_batch.training.splits import cut_folds, hold_out

MOST_UNREADABLE = 0.05
"""Share of unreadable pictures past which the data, not the pictures, is what is wrong."""

FEWEST_PER_CLASS = 10

MOST_NAMED = 20
"""Examples that a message gives."""


@dataclass(frozen=True)
class Dataset:
    """The three splits of one data folder.

    `unreadable` holds (name, reason) of pictures left out, `notes` what else the user should be told.
    `near_duplicates` pairs the names of pictures that are one photo. Where faces were cut out, `crops` is their folder,
    `boxes` are by name where in the photos they are, and `faceless` names the photos left out since they have none.
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
    crops: Path | None = None
    boxes: Mapping[str, Box] = field(default_factory=dict)
    faceless: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[Sample, ...]:
        return self.train + self.val + self.test

    def path(self, sample: Sample) -> str:
        """What is trained on: the photo, or the face cut out of it."""
        return str((self.crops or self.root) / sample.name)

    def photo(self, sample: Sample) -> str:
        return str(self.root / sample.name)


def load_dataset(
    root: Path,
    *,
    group_by: str | None = None,
    labels_file: Path | None = None,
    seed: int = 0,
    allow_leaks: bool = False,
    pooled: bool = False,
    columns: Sequence[str] = (),
    crops: Crops | None = None,
    shorter_side: int = SHORTER_SIDE,
    advance: Callable[[int], None] = lambda _: None,
) -> Dataset:
    """Find, read once, check and split the pictures below `root`; `find_samples` says what can be there.

    Splits that are given are kept: a person or a photo on two sides is an error, or a note with `allow_leaks`.
    What is missing is held out from the rest, whole groups at a time and near-duplicates together: a validation set,
    and where nothing is given a test set. `pooled`, for `folds`, leaves all of it in `train`, whatever is given.
    Before a picture is read, `columns` of the labels file must tell something of one. The digest is the SHA-256 over
    all names and contents, and the labels file if there is one. With `crops` the main face is cut out of each picture,
    and those without one are left out; near-duplicates are then those of the faces. `advance` is called with the number
    of pictures read, each decoded as for a use that needs that `shorter_side`, in pixels: what is damaged only in
    detail that nobody looks at is not found.

    Raises DatasetError.
    """
    found = find_samples(root, group_by, labels_file)
    _check_columns(root, found, columns)
    pictures = [sample for split in SPLITS for sample in found.splits[split]]
    read = _read_all(root, pictures, labels_file, crops, max(shorter_side, SHORTER_SIDE), advance)
    fingerprints, unreadable = read.fingerprints, read.unreadable
    if len(unreadable) > MOST_UNREADABLE * len(pictures):
        named = "; ".join(f"{name}: {reason}" for name, reason in unreadable[:MOST_NAMED])
        raise DatasetError(
            f"{root}: {len(unreadable)} of {len(pictures)} pictures cannot be read: {named}. "
            f"Repair or remove them; up to {MOST_UNREADABLE:.0%} are left out and listed"
        )
    splits = {split: [s for s in found.splits[split] if s.name in fingerprints] for split in SPLITS}
    if pooled:
        splits = {"train": [sample for split in SPLITS for sample in splits[split]], "val": [], "test": []}
    hint = "; those without a face count only with --faces never" if crops else ""
    _check_classes(root, found.labels, splits, hint)

    readable = [sample for split in SPLITS for sample in splits[split]]
    prints = [fingerprints[sample.name] for sample in readable]
    _check_contradictions(root, found.labels, readable, prints)
    pairs = near_duplicates(prints)
    near = tuple((readable[i].name, readable[j].name) for i, j in pairs)
    notes = [
        *found.notes,
        *_faceless(found, read.faceless),
        *_doubts(found.labels, readable, pairs),
        *_leaks(root, splits, pairs, allow_leaks),
    ]

    if not splits["val"]:
        cut = {sample.name for sample in splits["train"]}
        together = {name for pair in near for name in pair if cut.issuperset(pair)}
        if together:
            notes.append(f"{len(together)} pictures are near-duplicates of others; they stay on one side with them")
    if not (pooled or splits["val"]):
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
        digest=read.digest,
        notes=tuple(notes),
        near_duplicates=near,
        crops=crops.folder if crops else None,
        boxes=read.boxes,
        faceless=tuple(read.faceless),
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


def check_known(root: Path, samples: Sequence[Sample], column: str) -> None:
    """Raises DatasetError where the column says nothing of any of the pictures."""
    if not any(sample.attributes.get(column) for sample in samples):
        raise DatasetError(f"{root}: nothing is known of its pictures as {column!r}; name a column of --labels")


@dataclass
class _Read:
    """What became of the pictures, by name or as names; and the digest of all of them."""

    digest: str = ""
    fingerprints: dict[str, Fingerprint] = field(default_factory=dict)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    boxes: dict[str, Box] = field(default_factory=dict)
    faceless: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Look:
    """One picture, as it was read: its digest, and its look and box or why it has none."""

    content: str = ""
    look: bytes | None = None
    box: Box | None = None
    faceless: bool = False
    reason: str | None = None


def _read_all(
    root: Path,
    samples: Sequence[Sample],
    labels_file: Path | None,
    crops: Crops | None,
    shorter_side: int,
    advance: Callable[[int], None],
) -> _Read:
    """Read every picture once, decode it, and cut out its face if that is asked for."""

    def read(sample: Sample) -> _Look:
        try:
            data = (root / sample.name).read_bytes()
        except OSError as error:
            return _Look(reason=error.strerror)
        content = hashlib.sha256(data).hexdigest()
        try:
            if crops is None:
                return _Look(content, perceptual_hash(decode_picture(data, shorter_side).image))
            face = crops.cut(sample.name, data)
        except PictureError as error:
            return _Look(content, reason=f"{error.status.value}: {error}")
        if face is None:
            return _Look(content, faceless=True)
        square, box = face
        return _Look(content, perceptual_hash(square), box)

    result = _Read()
    digest = hashlib.sha256()
    with ThreadPoolExecutor() as pool:
        for sample, seen in zip(samples, pool.map(read, samples), strict=True):
            digest.update(f"{seen.content} {sample.name}\n".encode(errors="surrogateescape"))
            if seen.reason is not None:
                result.unreadable.append((sample.name, seen.reason))
            elif seen.faceless:
                result.faceless.append(sample.name)
            else:
                result.fingerprints[sample.name] = Fingerprint(seen.content, seen.look)
                if seen.box:
                    result.boxes[sample.name] = seen.box
            advance(1)
    if labels_file:
        digest.update(labels_file.read_bytes())
    result.digest = digest.hexdigest()
    return result


def _faceless(found: Found, names: Sequence[str]) -> Iterator[str]:
    """A note on the pictures without a face: no figure counts them, and whoever reads the figures must know."""
    if not names:
        return
    gone = set(names)
    parts = ", ".join(
        f"{sum(sample.name in gone for sample in samples)} of {len(samples)}" + (f" in {split}" if found.given else "")
        for split, samples in found.splits.items()
        if samples
    )
    yield (
        f"no face was found in {parts} pictures, {names[0]} among them; they are left out, and no figure counts them: "
        "classify gives such pictures no label"
    )


def _check_columns(root: Path, found: Found, columns: Sequence[str]) -> None:
    samples = [sample for split in SPLITS for sample in found.splits[split]]
    for column in columns:
        if column in found.repeating:
            raise DatasetError(
                f"{root}: the column {column!r} of --labels only repeats the classes; name another one, or none"
            )
        check_known(root, samples, column)


def _check_classes(root: Path, labels: tuple[str, ...], splits: dict[str, list[Sample]], hint: str) -> None:
    for split, samples in splits.items():
        counts = Counter(sample.label for sample in samples)
        for index, label in enumerate(labels):
            if split == "train" and counts[index] < FEWEST_PER_CLASS:
                raise DatasetError(
                    f"{root}: class {label} has {counts[index]} readable picture(s) to train on; "
                    f"at least {FEWEST_PER_CLASS} are needed{hint}"
                )
            if samples and not counts[index]:
                raise DatasetError(
                    f"{root}: class {label} has no readable picture in {split}; add some, "
                    f"or leave {split} out altogether{hint}"
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
