"""Figures as PNG files: learning curves, confusion matrix, reliability diagram. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from matplotlib.figure import Figure

from gender_batch.evaluation.metrics import Integers

DPI = 130


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


def plot_curves(history: Sequence[Point], path: Path) -> None:
    """Loss and accuracy over all epochs, each phase on a ground of its own."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    epochs = range(1, len(history) + 1)
    for axes, name, train, val in (
        (loss, "cross-entropy (nats)", [p.train_loss for p in history], [p.val_loss for p in history]),
        (accuracy, "accuracy", [p.train_accuracy for p in history], [p.val_accuracy for p in history]),
    ):
        axes.plot(epochs, train, "o-", label="training (augmented)")
        axes.plot(epochs, val, "o-", label="validation")
        axes.set(xlabel="epoch", title=name)
        axes.grid(alpha=0.3)
        axes.locator_params(axis="x", integer=True)
        start = 0.5
        for number, (phase, points) in enumerate(groupby(history, key=lambda point: point.phase)):
            end = start + len(list(points))
            axes.axvspan(start, end, color=f"C{number + 2}", alpha=0.08, label=phase)
            start = end
    loss.legend()
    figure.savefig(path, dpi=DPI)


def plot_confusion(confusion: Integers, labels: Sequence[str], path: Path) -> None:
    """Counts and shares of the true class (rows) by the answered class (columns)."""
    figure = Figure(figsize=(2.4 + len(labels), 2 + len(labels)), layout="constrained")
    axes = figure.subplots()
    shares = confusion / confusion.sum(axis=1, keepdims=True).clip(min=1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks: Any = range(len(labels))
    axes.set(xlabel="answered", ylabel="labelled")
    axes.set_xticks(ticks, labels)
    axes.set_yticks(ticks, labels)
    for row in ticks:
        for column in ticks:
            share = shares[row, column]
            text = f"{confusion[row, column]}\n{share:.1%}"
            axes.text(column, row, text, ha="center", va="center", color="white" if share > 0.5 else "black")
    figure.savefig(path, dpi=DPI)


def plot_reliability(bins: Sequence[tuple[int, float, float]], error: float, path: Path) -> None:
    """Accuracy against confidence; `bins` as from `calibration_bins`."""
    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.subplots()
    total = sum(count for count, _, _ in bins)
    axes.plot([0, 1], [0, 1], "--", color="grey", label="perfectly calibrated")
    axes.plot([mean for _, mean, _ in bins], [accuracy for _, _, accuracy in bins], "o-", label="this model")
    axes.bar(
        [mean for _, mean, _ in bins],
        [count / total for count, _, _ in bins],
        width=0.02,
        alpha=0.3,
        label="share of pictures",
    )
    axes.set(
        xlim=(0, 1),
        ylim=(0, 1),
        xlabel="confidence",
        ylabel="accuracy",
        title=f"expected calibration error {error:.3f}",
    )
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=DPI)
