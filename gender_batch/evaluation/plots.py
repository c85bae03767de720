"""Figures of a training run and of its answers. `draw_*` gives a figure, `plot_*` writes a PNG. Needs matplotlib."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from gender_batch.evaluation.groups import Group
from gender_batch.evaluation.metrics import CALIBRATION_BINS, Bin, Floats, Integers, Proportion
from gender_batch.evaluation.text import printable

DPI = 130

MOST_POINTS = 400
"""Points drawn of a curve: more than the pixels of a figure can tell apart."""

MOST_CELLS, MOST_NAMES = 20, 60
"""Classes up to which a confusion matrix tells the count of each cell, and up to which it names each class: with a few
hundred the picture would have more pixels than there is memory for."""

LONGEST_NAME = 32
"""Characters of a class or a value beside an axis."""

FIRST, SECOND, QUIET, GREY = "#2563eb", "#ea580c", "#6b7280", "#9ca3af"


class Point(Protocol):
    """One epoch of a history."""

    @property
    def phase(self) -> str: ...
    @property
    def train_loss(self) -> float: ...
    @property
    def val_loss(self) -> float: ...
    @property
    def train_accuracy(self) -> float: ...
    @property
    def val_accuracy(self) -> float: ...


def svg(figure: Figure) -> bytes:
    """The figure as SVG without a ground of its own, its letters drawn as outlines; the same for the same figure."""
    file = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "gender-batch", "svg.fonttype": "path"}), _any_letters():
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()


def plot_curves(history: Sequence[Point], path: Path) -> None:
    draw_curves(history).savefig(path, dpi=DPI)


def plot_confusion(confusion: Integers, labels: Sequence[str], path: Path) -> None:
    with _any_letters():
        draw_confusion(confusion, labels).savefig(path, dpi=DPI)


@contextmanager
def _any_letters() -> Iterator[None]:
    """Those that matplotlib's font lacks are boxes, of which it would warn for each; tables have them all."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield


def plot_reliability(bins: Sequence[Bin], error: float, path: Path) -> None:
    draw_reliability(bins, error).savefig(path, dpi=DPI)


def draw_curves(history: Sequence[Point]) -> Figure:
    """Loss and accuracy over all epochs, each phase on a ground of its own."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    epochs = range(1, len(history) + 1)
    for axes, name, train, val in (
        (loss, "cross-entropy (nats)", [p.train_loss for p in history], [p.val_loss for p in history]),
        (accuracy, "accuracy", [p.train_accuracy for p in history], [p.val_accuracy for p in history]),
    ):
        axes.plot(epochs, train, "o-", markersize=4, color=SECOND, label="training (augmented)")
        axes.plot(epochs, val, "o-", markersize=4, color=FIRST, label="validation")
        axes.set(xlabel="epoch", title=name, xlim=(0.5, max(len(history), 1) + 0.5))
        axes.locator_params(axis="x", integer=True)
        _calm(axes)
        start = 0.5
        for number, (phase, points) in enumerate(groupby(history, key=lambda point: point.phase)):
            end = start + len(list(points))
            # Two greys, which every eye tells apart.
            shade = 0.35 if number % 2 else 0.1
            axes.axvspan(start, end, color=GREY, alpha=shade, linewidth=0, label=f"phase: {_name(phase)}")
            start = end
    accuracy.yaxis.set_major_formatter(_percent)
    _legend(figure, loss, columns=4)
    return figure


def draw_confusion(confusion: Integers, labels: Sequence[str]) -> Figure:
    """Counts and shares of the true class (rows) by the answered class (columns)."""
    inches = min(len(labels), MOST_CELLS)
    figure = Figure(figsize=(2.4 + inches, 2 + inches), layout="constrained")
    axes = figure.subplots()
    shares = confusion / confusion.sum(axis=1, keepdims=True).clip(min=1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks: Any = range(0, len(labels), -(-len(labels) // MOST_NAMES))
    names = [_name(labels[index]) for index in ticks]
    axes.set(xlabel="answered", ylabel="labelled")
    axes.set_xticks(ticks, names, rotation=90 if max(map(len, names)) > 12 else 0)
    axes.set_yticks(ticks, names)
    if len(labels) > MOST_CELLS:
        axes.tick_params(axis="x", labelrotation=90)
        return figure
    for row in ticks:
        for column in ticks:
            share = shares[row, column]
            text = f"{confusion[row, column]:,}\n{share:.1%}"
            axes.text(column, row, text, ha="center", va="center", color="white" if share > 0.5 else "black")
    return figure


def draw_reliability(bins: Sequence[Bin], error: float) -> Figure:
    """Accuracy against confidence, with 95% intervals, above the number of pictures in each bin.

    `bins` as from `calibration_bins`, `error` the expected calibration error.
    """
    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    counts = [found.accuracy.total for found in bins]
    means = [found.confidence for found in bins]
    above.plot([0, 1], [0, 1], "--", color=QUIET, label="perfectly calibrated")
    _with_intervals(above, means, [found.accuracy for found in bins], label="this model, with 95% intervals")
    above.set(ylim=(0, 1.03), ylabel="accuracy", title=f"expected calibration error {error:.3f}")
    _legend(figure, above)
    centres = [(min(int(mean * CALIBRATION_BINS), CALIBRATION_BINS - 1) + 0.5) / CALIBRATION_BINS for mean in means]
    bars = below.bar(centres, counts, width=0.9 / CALIBRATION_BINS, color=FIRST, alpha=0.5)
    below.bar_label(bars, fmt="{:,.0f}", fontsize=6.5, padding=1)
    below.margins(y=0.3)
    below.set(xlabel="confidence", ylabel="pictures")
    # Nothing is below 1/classes, and half an empty diagram tells nothing.
    lowest = min(centres, default=0.5) - 0.5 / CALIBRATION_BINS
    below.set_xlim(max(0, lowest - 0.02), 1.02)
    for axes in (above, below):
        _calm(axes)
    return figure


def draw_risk_coverage(coverage: Floats, risk: Floats, chosen: tuple[float, float] | None, target: float) -> Figure:
    """The curve of `risk_coverage`; `chosen` is the (coverage, risk) at the threshold, `target` its precision."""
    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    axes = figure.subplots()
    shown = np.unique(np.linspace(0, len(coverage) - 1, min(MOST_POINTS, len(coverage))).round().astype(int))
    axes.plot(coverage[shown], risk[shown], color=FIRST, label="answering the most confident")
    axes.axhline(1 - target, linestyle="--", color=QUIET, label=f"target: {100 * (1 - target):.3g}% wrong")
    if chosen:
        axes.plot(*chosen, "o", markersize=8, color=SECOND, label=f"threshold: {chosen[0]:.1%} answered")
    # The most confident few are too few to measure a risk on; they must not set the scale.
    measured = risk[coverage >= 0.05]
    axes.set(xlim=(0, 1.02), xlabel="coverage: share answered", ylabel="risk: share of these that is wrong")
    axes.set_ylim(0, 1.05 * max([1 - target, *measured, *(chosen or (0, 0))[1:]], default=1) or 1)
    axes.xaxis.set_major_formatter(_percent)
    axes.yaxis.set_major_formatter(_percent)
    _legend(figure, axes)
    _calm(axes)
    return figure


def draw_groups(groups: Sequence[Group], overall: float, lowest: float, fewest: int) -> Figure:
    """Accuracy of each group with its 95% interval, a line at the accuracy of all pictures.

    The axis goes from `lowest` to 1; an accuracy below it is a triangle at its end. Groups of fewer than `fewest`
    pictures are grey.
    """
    figure = Figure(figsize=(5.6, 0.9 + 0.24 * len(groups)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(overall, linestyle="--", color=QUIET, linewidth=1)
    for place, group in enumerate(groups):
        value, colour = group.accuracy.value, FIRST if group.accuracy.total >= fewest else GREY
        axes.hlines(place, *group.accuracy.interval, color=colour, linewidth=2, alpha=0.5)
        axes.plot(max(value, lowest), place, "o" if value >= lowest else "<", color=colour, markersize=5, clip_on=False)
    axes.set_yticks(range(len(groups)), [_name(group.value) for group in groups])
    axes.set(xlim=(lowest, 1), ylim=(len(groups) - 0.4, -0.6), xlabel="accuracy, 95% interval; dashed: all pictures")
    axes.xaxis.set_major_formatter(_percent)
    axes.tick_params(axis="y", length=0, pad=7)  # room for a point at the edge
    _calm(axes)
    return figure


def draw_scales(scales: Sequence[float], accuracies: Sequence[Proportion]) -> Figure:
    """Accuracy with its 95% interval against the side of the face, as a share of the picture's."""
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    _with_intervals(axes, scales, accuracies)
    axes.set(xlabel="side of the face, as a share of the picture's", ylabel="accuracy, 95% interval")
    axes.set_xlim(0, max(1.0, *scales) + 0.02)
    axes.yaxis.set_major_formatter(_percent)
    _calm(axes)
    return figure


def _with_intervals(axes: Any, places: Sequence[float], values: Sequence[Proportion], label: str | None = None) -> None:
    low, high = zip(*(value.interval for value in values), strict=True) if values else ((), ())
    axes.vlines(places, low, high, color=FIRST, linewidth=2, alpha=0.4)
    axes.plot(places, [value.value for value in values], "o-", markersize=4, color=FIRST, label=label)


def _legend(figure: Figure, axes: Any, columns: int = 2) -> None:
    """Below the axes, where no curve can run through it."""
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize="small")


def _calm(axes: Any) -> None:
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _percent(share: float, _: float) -> str:
    return f"{100 * share:.4g}%"


def _name(text: str) -> str:
    """Short, printable, and no formula: matplotlib sets what is between two dollars as one."""
    text = printable(text)
    return (text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 1] + "…").replace("$", r"\$")
