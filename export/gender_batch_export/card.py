"""The model card: what a model file is, how good it is, and what it must not be used for, for people to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from gender_batch.evaluation.groups import Group
from gender_batch.evaluation.metrics import Metrics, Proportion, with_interval
from gender_batch.evaluation.text import printable
from gender_batch.model.metadata import Metadata
from gender_batch_export.heldout import JUDGED, HeldOut

_KIND = {"face": "crops of single faces", "photo": "whole photos"}

_MEANS_SOMETHING = {ord(character): f"&#{ord(character)};" for character in "&<>|`*[]\\"}
"""What Markdown takes for marks, as entities; not the underscore, which means nothing within a word."""


@dataclass(frozen=True)
class Variant:
    """One precision of the model and its figures on held-out pictures.

    `file` is None where float32 was made for the others only. `size` is in bytes, `digest` SHA-256; `agreement` is
    the share of labels equal to float32's; `groups` are those of all variants in the same order.
    """

    precision: str
    file: str | None
    size: int
    digest: str
    proof: str
    metrics: Metrics
    agreement: Proportion
    groups: tuple[Group, ...]


def model_card(
    metadata: Metadata, variants: Sequence[Variant], pictures: HeldOut, name: str, lower_judged: bool
) -> str:
    """Markdown. Everything in it comes from the run, the files and the gates; nothing is typed in.

    `lower_judged` tells that lower precisions were, also where they were refused, and are not among the `variants`.
    """
    sections = [
        f"# Model card: {_text(name)}",
        f"MobileNetV2 that answers {' or '.join(map(_verbatim, metadata.labels))}, or `uncertain`, "
        f"for {_KIND[metadata.pictures]}. The labels are *apparent* categories as annotators saw them in a "
        "picture: no statement about how a person sees themselves.",
        "## Data and training",
        told_of_training(metadata),
        "## Figures of the files",
        _measured_on(pictures, lower_judged) + _figures_per_precision(variants, metadata.threshold),
        "## Figures per group",
        "Accuracy with every picture answered, and its 95% interval, on the pictures of the table above.",
        _per_label(variants, metadata.labels) + _per_group(variants),
        "## Figures of the checkpoint, from training",
        "".join(
            _figures(split, metadata.figures[split], metadata.threshold)
            for split in ("test", "val")
            if metadata.figures.get(split)
        )
        or "none",
        "## Proof of export",
        f"Checkpoint in torch against each file as `classify` runs it{_lower_proved(variants, pictures)}.\n"
        + "".join(f"\n- {variant.precision}: {variant.proof}." for variant in variants)
        + "".join(f"\n- SHA-256 of {_text(variant.file)}: `{variant.digest}`." for variant in variants if variant.file),
        "## Intended use and limits",
        "- For statistics over many pictures (shares, trends), not for decisions about a person: do not use it to "
        "grant, deny, address or identify anybody.\n"
        f"- Below a probability of {metadata.threshold:g} the answer is `uncertain`. Take that as an answer.\n"
        "- The classes are what the training labels had; people they do not describe are answered wrongly by design.\n"
        "- Errors are not spread evenly over groups of people: measure on your own pictures with "
        "`gender-batch evaluate DATA --groups labels.csv` before you rely on a figure.\n"
        f"- Trained on {_KIND[metadata.pictures]}; on other kinds of pictures it is worse than the figures say.",
        "## Attributions",
        "\n".join(f"- {_text(attribution)}" for attribution in metadata.attributions) or "none given",
    ]
    return "\n\n".join(section.rstrip() for section in sections) + "\n"


def told_of_training(metadata: Metadata) -> str:
    """What the card says of data and training. Raises KeyError, TypeError, AttributeError, ValueError where the
    metadata do not hold it."""
    training = metadata.training
    recipe = training["recipe"]
    counts = training["pictures"]
    return (
        f"- {counts['train']:,} pictures to train on, {counts['val']:,} to validate, {counts['test']:,} to test; "
        f"split by {_split_by(training['groups'])}; SHA-256 over names and contents `{training['data_sha256']}`.\n"
        f"- {training['program']}: adaptation of the head for at most {recipe['adapt_epochs']} epochs, "
        f"{_fine_tuned(recipe)} ({training['epochs']} epochs run in all), "
        f"{recipe['image_size']} x {recipe['image_size']} pixels, seed {recipe['seed']}; {_kept(training)}; "
        f"temperature and threshold fitted on validation.{_beside(training)}\n"
        f"{_started_from(training)}"
        f"- Preprocessing: shorter side to {metadata.preprocessing.resize} pixels (bilinear, antialiased), centre "
        f"{metadata.preprocessing.size} x {metadata.preprocessing.size}."
    )


def _split_by(groups: str | None) -> str:
    return f"person ({_verbatim(groups)})" if groups else "picture or given folders"


def _fine_tuned(recipe: dict[str, Any]) -> str:
    return f"then fine-tuning of all weights for {recipe['fine_epochs']}" if recipe["fine_epochs"] else "no fine-tuning"


def _kept(training: dict[str, Any]) -> str:
    """Which weights; a run of before that was noted tells only how they were found."""
    which = f": the {training['kept']}" if "kept" in training else ""
    return f"weights kept after comparing losses on validation{which}"


def _beside(training: dict[str, Any]) -> str:
    columns = ", ".join(map(_text, training.get("auxiliary_columns", ())))
    return f" Learnt beside the classes, for the features' sake: {columns}." if columns else ""


def _started_from(training: dict[str, Any]) -> str:
    """A line for each training that the initial features had been through, the latest first."""
    lines = ""
    while before := training.get("init_training"):
        # Only where somebody made it so by hand, as examples/train-embedded-model.sh does.
        taken = "mean of the weights before and after" if before.get("mean_of_both") else "features of"
        lines += (
            f"- Started from the {taken} an earlier training ({before['program']}): "
            f"{before['pictures']['train']:,} pictures, {before['epochs']} epochs, data `{before['data_sha256'][:16]}`."
            f"{_beside(before)}\n"
        )
        training = before
    return lines


def _measured_on(pictures: HeldOut, lower_judged: bool) -> str:
    by_test = pictures.judged_by_test and lower_judged
    but = " but whether a lower precision is good enough, with few for validation" if by_test else ""
    split, why = {
        "test": ("test", f"on which nothing was chosen{but}"),
        "val": ("validation", "since there is no test: weights, threshold and precisions were chosen on them"),
    }[pictures.split]
    total, people = len(pictures.figures), len({picture.group for picture in pictures.figures})
    shown = f" of {people:,} people" if people < total else ""
    held = f"{total:,} {split} pictures{shown}, {why}"
    gone = f" {pictures.gone:,} held-out pictures could not be read any more." if pictures.gone else ""
    return f"Each file was run over the same {held}; {JUDGED:,} at most, spread evenly.{gone}\n\n"


def _lower_proved(variants: Sequence[Variant], pictures: HeldOut) -> str:
    lower = [variant.precision for variant in variants[1:]]
    if not lower:
        return ""
    told = f"; {' and '.join(lower)} on validation{' and test' if pictures.judged_by_test else ''} pictures"
    if "int8" in lower:
        others = "others of validation" if pictures.judged_by_test else "others"
        told += f", int8 calibrated on {len(pictures.calibration)} {others}"
    return told


def _figures_per_precision(variants: Sequence[Variant], threshold: float) -> str:
    header = ["precision", "file", "MB", "accuracy, all answered", "expected calibration error",
              f"answered at threshold {threshold:g}", "accuracy of those", "same label as fp32"]  # fmt: skip
    rows = [
        [
            variant.precision,
            _text(variant.file) if variant.file else "not written",
            f"{variant.size / 1e6:.1f}",
            _interval(variant.metrics.accuracy),
            f"{variant.metrics.calibration_error:.4f}",
            _interval(variant.metrics.coverage),
            _interval(variant.metrics.decided_right),
            _interval(variant.agreement),
        ]
        for variant in variants
    ]
    return _table(header, rows)


def _per_label(variants: Sequence[Variant], labels: Sequence[str]) -> str:
    rows = [
        [_text(label), *_across([variant.metrics.recalls[index] for variant in variants])]
        for index, label in enumerate(labels)
        if variants[0].metrics.recalls[index].total
    ]
    return _table(["label", "pictures", *(variant.precision for variant in variants)], rows)


def _per_group(variants: Sequence[Variant]) -> str:
    together = zip(*(variant.groups for variant in variants), strict=True)
    tables = []
    for column, groups in groupby(together, key=lambda groups: groups[0].column):
        rows = [[_text(group[0].value), *_across([one.accuracy for one in group])] for group in groups]
        tables.append("\n" + _table([_text(column), "pictures", *(variant.precision for variant in variants)], rows))
    return "".join(tables)


def _across(accuracies: Sequence[Proportion]) -> list[str]:
    """The number of pictures, and the accuracy in each precision."""
    return [f"{accuracies[0].total:,}", *map(_interval, accuracies)]


def _interval(proportion: Proportion) -> str:
    return _share(proportion.to_dict())


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _text(text: str) -> str:
    """Text of the user's (a label, a value of an attribute), so that no character of it is taken for a mark."""
    return printable(text).translate(_MEANS_SOMETHING)


def _verbatim(text: str) -> str:
    """The same in a typewriter's letters, where there is no backtick in it that would end them."""
    return _text(text) if "`" in text else f"`{printable(text)}`"


def _figures(split: str, figures: dict[str, Any], threshold: float) -> str:
    title = {
        "test": "Test (held out, nothing was chosen on it)",
        "val": "Validation (weights, temperature and threshold were chosen on it)",
    }[split]
    total = figures["pictures"]
    people = figures.get("people", total)  # runs of earlier versions do not tell
    rows = [
        ("pictures", f"{total:,}" + (f" of {people:,} people" if people < total else "")),
        ("accuracy, all pictures answered", _share(figures["accuracy"])),
        (f"answered at threshold {threshold:g}", _share(figures["coverage_at_threshold"])),
        ("accuracy of those", _share(figures["accuracy_at_threshold"])),
        ("expected calibration error", f"{figures['expected_calibration_error']:.4f}"),
    ]
    for label, values in figures["classes"].items():
        rows.append((f"precision, {_text(label)}", _share(values["precision"])))
        rows.append((f"recall, {_text(label)}", _share(values["recall"])))
    table = "".join(f"| {name} | {value} |\n" for name, value in rows)
    return f"### {title}\n\n| | value [95% interval] |\n|---|---|\n{table}\n"


def _share(proportion: dict[str, Any]) -> str:
    if proportion["value"] is None:
        return "none"
    return with_interval(proportion["value"], (proportion["low"], proportion["high"]))
