"""What a run leaves to look at: figures, the answers to held-out pictures, curves, galleries and the report."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gender_batch import __version__
from gender_batch.evaluation.gallery import draw_gallery
from gender_batch.evaluation.plots import plot_confusion, plot_curves
from gender_batch.evaluation.report import Report, write_report
from gender_batch.training.dataset import Dataset
from gender_batch.training.judge import Findings, HeldOut
from gender_batch.training.recipe import Machine, Recipe
from gender_batch.training.samples import Sample
from gender_batch.training.state import Epoch

METRICS = "metrics.json"
HELD_OUT = "heldout.csv"
REPORT = "report.html"


def write_findings(
    folder: Path,
    data: Dataset,
    held_out: HeldOut,
    findings: Findings,
    figures: Mapping[str, Any],
    history: Sequence[Epoch],
    recipe: Recipe,
    machine: Machine,
) -> None:
    """Write all of it into the run's `folder`. `figures` are those of `findings`, which the checkpoint holds, too."""
    split = held_out.split
    (folder / METRICS).write_text(json.dumps(figures, indent=2) + "\n")
    _write_history(folder / "history.csv", history)
    _write_held_out(folder / HELD_OUT, held_out.samples, data.labels, findings.probabilities)
    plot_curves(history, folder / "curves.png")
    plot_confusion(findings.metrics[split].confusion, data.labels, folder / "confusion.png")
    draw_gallery(findings.answers, recipe.preprocessing, folder / "gallery.png", data.labels)
    facts: dict[str, str] = {
        "program": f"gender-batch {__version__}",
        "data": f"{data.root} (SHA-256 {data.digest[:16]}...)",
        "pictures": f"{len(data.train)} to train on, {len(data.val)} to validate, {len(data.test)} to test",
        "network": f"MobileNetV2, {recipe.image_size} pixels",
        "recipe": json.dumps(asdict(recipe)),
        "machine": f"{machine.device.type}, torch {torch.__version__}",
        "temperature": f"{findings.temperature:.4f}",
    }
    write_report(
        folder / REPORT,
        Report(
            title=f"{' or '.join(data.labels)}: {folder.resolve().name}",
            facts=tuple(facts.items()),
            history=history,
            labels=data.labels,
            split="test" if split == "test" else "validation",
            answers=findings.answers,
            threshold=findings.threshold,
            preprocessing=recipe.preprocessing,
            scales=findings.scales,
            notes=data.notes,
        ),
    )


def _write_history(path: Path, history: Sequence[Epoch]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Epoch)])
        writer.writeheader()
        writer.writerows(asdict(epoch) for epoch in history)


def _write_held_out(
    path: Path,
    held_out: Mapping[str, tuple[Sample, ...]],
    labels: Sequence[str],
    probabilities: Mapping[str, NDArray[np.float64]],
) -> None:
    """One row per held-out picture, with what is known of it between its label and its probabilities."""
    columns = sorted({column for samples in held_out.values() for sample in samples for column in sample.attributes})
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "path", "group", "label", *columns, *(f"p_{label}" for label in labels)])
        for split, samples in held_out.items():
            for sample, row in zip(samples, probabilities[split], strict=True):
                known = [sample.attributes.get(column, "") for column in columns]
                shares = [round(float(share), 6) for share in row]
                writer.writerow([split, sample.name, sample.group, labels[sample.label], *known, *shares])
