"""The report of a training run: one HTML file with figures and pictures in it, which opens anywhere. Needs [train]."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import groupby
from math import floor
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from gender_batch.evaluation import plots
from gender_batch.evaluation.gallery import Answer, confident_errors, least_certain, thumbnail
from gender_batch.evaluation.groups import Group, by_group
from gender_batch.evaluation.metrics import (
    CALIBRATION_BINS,
    Floats,
    Metrics,
    Proportion,
    Threshold,
    area_under_risk_coverage,
    measure,
    risk_coverage,
)
from gender_batch.evaluation.page import data_uri, fill
from gender_batch.outputs.publish import published
from gender_batch.pictures.preprocessing import Preprocessing
from gender_batch.pictures.read import PictureError

TEMPLATE = "report.html.j2"

IN_GALLERY = 24
"""Pictures in each gallery: what one looks at, and about a third of a megabyte."""

THUMBNAIL = 160
"""Pixels of a side. Shown smaller, so that it is sharp on a dense screen and in print."""

JPEG_QUALITY = 80

FEWEST_KNOWN = 20
"""Pictures of which an attribute must be known to tell of it, and which a group needs to be named the worst."""

MOST_COLUMNS = 12
"""Attributes, alone and with the label, that are drawn. A table of forty would bury the report."""


@dataclass(frozen=True)
class ScalePoint:
    """Accuracy on faces of one size: `scale` is the face's side as a share of the picture's, 0..1."""

    scale: float
    accuracy: Proportion


@dataclass(frozen=True)
class Report:
    """What is told, all of it measured elsewhere but the figures of `answers`.

    `facts` are (name, value) pairs of the program, the recipe and the data. `history` has one point per epoch.
    `answers`, one or more, are those on the pictures of `split`, "test" or, where there is none, "validation".
    `threshold` was chosen on validation. `preprocessing` makes the thumbnails. A section for which there is nothing
    (`history`, attributes of the answers, `scales`, `notes`) is left out.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    history: Sequence[plots.Point]
    labels: tuple[str, ...]
    split: str
    answers: Sequence[Answer]
    threshold: Threshold
    preprocessing: Preprocessing
    scales: Sequence[ScalePoint] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Illustration:
    """An image within the page: `source` is a data URI, `alt` says what is to be seen to one who does not see it."""

    source: str
    alt: str


@dataclass(frozen=True)
class GroupTable:
    """The groups of one attribute."""

    column: str
    figure: Illustration
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Tile:
    """One picture of a gallery."""

    picture: Illustration
    answer: Answer


def write_report(path: Path, report: Report) -> None:
    """Write the report to `path`, whole or not at all, readable by its owner alone: it shows people. Raises OSError."""
    page = render(report).encode("utf-8")
    with published(path) as file:
        file.write(page)


def render(report: Report) -> str:
    """The page. Pictures that cannot be read any more are missing from its galleries."""
    answers, labels = report.answers, report.labels
    probabilities = np.array([answer.probabilities for answer in answers], dtype=np.float64)
    confidence = probabilities.max(axis=1)
    right = np.array([answer.right for answer in answers])
    truth, people = [answer.truth for answer in answers], [answer.group for answer in answers]
    metrics = measure(probabilities, truth, labels, report.threshold.value, people)
    coverage, risk = risk_coverage(confidence, right)
    groups = by_group(
        [answer.attributes for answer in answers], [labels[index] for index in truth], right.tolist(), people
    )
    tables = _group_tables(groups, metrics.accuracy.value)

    return fill(
        TEMPLATE,
        report=report,
        metrics=metrics,
        bins=CALIBRATION_BINS,
        fewest=FEWEST_KNOWN,
        area=area_under_risk_coverage(coverage, risk),
        curves=_curves(report.history) if report.history else None,
        confusion=_confusion(metrics),
        reliability=_reliability(metrics),
        risk_coverage=_risk_coverage(metrics, coverage, risk, report.threshold),
        tables=tables,
        large=_large(tables),
        scales=_scales(report.scales) if report.scales else None,
        errors=list(_tiles(confident_errors(answers, IN_GALLERY), report)),
        doubtful=list(_tiles(least_certain(answers, IN_GALLERY), report)),
    )


def _curves(history: Sequence[plots.Point]) -> Illustration:
    last = history[-1]
    alt = (
        f"Loss and accuracy on training and validation over {len(history)} epochs; in the last one "
        f"the validation loss is {last.val_loss:.3f}, the validation accuracy {last.val_accuracy:.1%}."
    )
    return _illustration(plots.draw_curves(history), alt)


def _confusion(metrics: Metrics) -> Illustration:
    told = "; ".join(
        f"labelled {label}: "
        + ", ".join(f"{metrics.confusion[i, j]} answered {other}" for j, other in enumerate(metrics.labels))
        for i, label in enumerate(metrics.labels)
    )
    return _illustration(plots.draw_confusion(metrics.confusion, metrics.labels), f"Confusion matrix. {told}.")


def _reliability(metrics: Metrics) -> Illustration:
    told = "; ".join(f"{found.confidence:.2f}: {found.accuracy}" for found in metrics.bins)
    figure = plots.draw_reliability(metrics.bins, metrics.calibration_error)
    return _illustration(figure, f"Reliability diagram, accuracy by mean confidence. {told}.")


def _risk_coverage(metrics: Metrics, coverage: Floats, risk: Floats, threshold: Threshold) -> Illustration:
    answered = metrics.decided_right
    chosen = (metrics.coverage.value, 1 - answered.value) if answered.total else None
    at = {share: risk[min(int(np.searchsorted(coverage, share)), len(risk) - 1)] for share in (0.5, 0.8, 1.0)}
    told = ", ".join(f"{value:.1%} wrong with {share:.0%} answered" for share, value in at.items())
    figure = plots.draw_risk_coverage(coverage, risk, chosen, threshold.target)
    return _illustration(figure, f"Risk-coverage curve: {told}.")


def _scales(scales: Sequence[ScalePoint]) -> Illustration:
    figure = plots.draw_scales([point.scale for point in scales], [point.accuracy for point in scales])
    told = "; ".join(f"{point.scale:.2f}: {point.accuracy}" for point in scales)
    return _illustration(figure, f"Accuracy by size of the face. {told}.")


def _group_tables(groups: Sequence[Group], overall: float) -> list[GroupTable]:
    columns = [(column, tuple(members)) for column, members in groupby(groups, key=lambda group: group.column)]
    known = [c for c in columns if sum(group.accuracy.total for group in c[1]) >= FEWEST_KNOWN][:MOST_COLUMNS]
    # One scale for all of them, so that they can be compared by eye; small groups with wide intervals do not set it.
    large = [group for _, members in known for group in members if group.accuracy.total >= FEWEST_KNOWN]
    lowest = floor(20 * min((group.accuracy.interval[0] for group in large), default=0.0)) / 20
    return [
        GroupTable(
            column,
            _illustration(
                plots.draw_groups(members, overall, lowest, FEWEST_KNOWN),
                f"Accuracy with intervals for each value of {column}; the table has the same figures.",
            ),
            members,
        )
        for column, members in known
    ]


def _large(tables: Sequence[GroupTable]) -> list[Group]:
    """The groups that are large enough to say which is the worst, that one first."""
    large = [group for table in tables for group in table.groups if group.accuracy.total >= FEWEST_KNOWN]
    return sorted(large, key=lambda group: group.accuracy.value)


def _tiles(answers: Sequence[Answer], report: Report) -> Iterator[Tile]:
    for answer in answers:
        try:
            image = thumbnail(answer, report.preprocessing, THUMBNAIL)
        except PictureError:
            continue
        file = BytesIO()
        image.save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
        yield Tile(Illustration(data_uri("image/jpeg", file.getvalue()), f"Picture {answer.name}"), answer)


def _illustration(figure: Figure, alt: str) -> Illustration:
    return Illustration(data_uri("image/svg+xml", plots.svg(figure)), alt)
