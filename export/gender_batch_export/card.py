"""The model card: what a model file is, how good it is, and what it must not be used for, for people to read."""

from __future__ import annotations

from typing import Any

from gender_batch.model.metadata import Metadata
from gender_batch_export.parity import Parity

_KIND = {"face": "crops of single faces", "photo": "whole photos"}


def model_card(metadata: Metadata, parity: Parity, name: str, digest: str) -> str:
    """Markdown. Everything in it comes from the run, the file and the gate; nothing is typed in."""
    training = metadata.training
    recipe = training["recipe"]
    counts = training["pictures"]
    sections = [
        f"# Model card: {name}",
        f"MobileNetV2 that answers {' or '.join(f'`{label}`' for label in metadata.labels)}, or `uncertain`, "
        f"for {_KIND[metadata.pictures]}. The labels are *apparent* categories as annotators saw them in a "
        "picture: no statement about how a person sees themselves.",
        "## Data and training",
        f"- {counts['train']:,} pictures to train on, {counts['val']:,} to validate, {counts['test']:,} to test; "
        f"split by {'person (' + training['groups'] + ')' if training['groups'] else 'picture or given folders'}; "
        f"SHA-256 over names and contents `{training['data_sha256']}`.\n"
        f"- {training['program']}: adaptation of the head for at most {recipe['adapt_epochs']} epochs, fine-tuning of "
        f"all weights for at most {recipe['fine_epochs']} ({training['epochs']} epochs run in all), "
        f"{recipe['image_size']} x {recipe['image_size']} pixels, seed {recipe['seed']}; the best epoch by "
        "validation loss; temperature fitted on validation.\n"
        f"- Preprocessing: shorter side to {metadata.preprocessing.resize} pixels (bilinear, antialiased), centre "
        f"{metadata.preprocessing.size} x {metadata.preprocessing.size}.",
        "## Figures",
        "".join(
            _figures(split, metadata.figures[split], metadata.threshold)
            for split in ("test", "val")
            if metadata.figures.get(split)
        ),
        "## Proof of export",
        f"Checkpoint in torch against this file as `classify` runs it, on {parity}.\nSHA-256 of the file: `{digest}`.",
        "## Intended use and limits",
        "- For statistics over many pictures (shares, trends), not for decisions about a person: do not use it to "
        "grant, deny, address or identify anybody.\n"
        f"- Below a probability of {metadata.threshold:g} the answer is `uncertain`. Take that as an answer.\n"
        "- The classes are what the training labels had; people they do not describe are answered wrongly by design.\n"
        "- Errors are not spread evenly over groups of people: measure on your own pictures with "
        "`gender-batch evaluate DATA --groups labels.csv` before you rely on a figure.\n"
        f"- Trained on {_KIND[metadata.pictures]}; on other kinds of pictures it is worse than the figures say.",
        "## Attributions",
        "\n".join(f"- {attribution}" for attribution in metadata.attributions) or "none given",
    ]
    return "\n\n".join(sections) + "\n"


def _figures(split: str, figures: dict[str, Any], threshold: float) -> str:
    title = {
        "test": "Test (held out, nothing was chosen on it)",
        "val": "Validation (the best epoch was chosen on it)",
    }[split]
    rows = [
        ("pictures", f"{figures['pictures']:,}"),
        ("accuracy, all pictures answered", _share(figures["accuracy"])),
        (f"answered at threshold {threshold:g}", _share(figures["coverage_at_threshold"])),
        ("accuracy of those", _share(figures["accuracy_at_threshold"])),
        ("expected calibration error", f"{figures['expected_calibration_error']:.4f}"),
    ]
    for label, values in figures["classes"].items():
        rows.append((f"precision, {label}", _share(values["precision"])))
        rows.append((f"recall, {label}", _share(values["recall"])))
    table = "".join(f"| {name} | {value} |\n" for name, value in rows)
    return f"### {title}\n\n| | value [95% interval] |\n|---|---|\n{table}\n"


def _share(proportion: dict[str, Any]) -> str:
    if proportion["value"] is None:
        return "none"
    return f"{proportion['value']:.2%} [{proportion['low']:.2%}, {proportion['high']:.2%}]"
