"""One training run: data in, a folder with the checkpoint and the report of it out."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gender_batch import __version__
from gender_batch.evaluation.gallery import Answer, draw_gallery
from gender_batch.evaluation.metrics import Metrics, measure
from gender_batch.evaluation.plots import plot_confusion, plot_curves
from gender_batch.training.dataset import Dataset, Sample, load_dataset
from gender_batch.training.fit import Machine, Recipe, Watcher, fit, fit_temperature, predict_logits
from gender_batch.training.network import (
    DOWNLOADED_ATTRIBUTION,
    Checkpoint,
    Network,
    load_initial_weights,
)

CHECKPOINT = "checkpoint.safetensors"
CONFIG = "config.json"
STATE = "state.pt"
HELD_OUT = "heldout.csv"
METRICS = "metrics.json"

UNCERTAIN_BELOW = 0.55
"""Best probability under which the answer is `uncertain`."""


class RunError(Exception):
    """The run's folder is not what the command expects. The message says which option to add."""


@dataclass(frozen=True)
class Order:
    """What was asked for: the data, where to start from, and how to train."""

    data: Path
    recipe: Recipe
    init: Path | None = None
    group_by: str | None = None
    pictures: str = "photo"
    attributions: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "data": str(self.data.resolve()),
            "init": str(self.init.resolve()) if self.init else None,
            "group_by": self.group_by,
            "pictures": self.pictures,
            "attributions": list(self.attributions),
            **asdict(self.recipe),
        }


@dataclass(frozen=True)
class Result:
    """What came of it. `test` is None where no picture was left for a test."""

    folder: Path
    val: Metrics
    test: Metrics | None


def train(
    order: Order,
    folder: Path,
    machine: Machine,
    watcher: Watcher,
    resume: bool = False,
    reading: Callable[[int], None] = lambda _: None,
) -> Result:
    """Train as ordered and leave everything in `folder`.

    With `resume` an interrupted run of the same order goes on after its last finished epoch.
    Raises RunError, DatasetError, WeightsError, FloatingPointError.
    """
    _prepare(folder, order, resume)
    torch.manual_seed(order.recipe.seed)
    network = Network(1)  # checked before the pictures are read: a wrong --init should not cost minutes
    load_initial_weights(network, order.init)

    data = load_dataset(order.data, order.group_by, order.recipe.seed, reading)
    for name, reason in data.unreadable:
        watcher.note(f"left out: {name}: {reason}")
    watcher.note(
        f"{len(data.train)} pictures to train on, {len(data.val)} to validate, {len(data.test)} to test; "
        f"classes {', '.join(data.labels)}; on {machine.device.type} in {str(machine.precision)[6:]}"
    )
    network = _with_head(network, len(data.labels), order.recipe.seed)
    history = fit(network, data, order.recipe, machine, folder / STATE, watcher)

    # From here on the weights stand; the validation set gives the temperature, the test set only figures.
    preprocessing = order.recipe.preprocessing
    logits = {
        split: predict_logits(network, data, samples, preprocessing, machine)
        for split, samples in (("val", data.val), ("test", data.test))
        if samples
    }
    temperature = fit_temperature(logits["val"], _truth(data.val))
    probabilities = {
        split: torch.from_numpy(values / temperature).double().softmax(1).numpy() for split, values in logits.items()
    }
    val = measure(probabilities["val"], _truth(data.val), data.labels, UNCERTAIN_BELOW)
    test = measure(probabilities["test"], _truth(data.test), data.labels, UNCERTAIN_BELOW) if data.test else None

    figures = {"val": val.to_dict(), "test": test.to_dict() if test else None}
    attributions = order.attributions or (() if order.init else (DOWNLOADED_ATTRIBUTION,))
    Checkpoint(
        network=network.cpu(),
        labels=data.labels,
        preprocessing=preprocessing,
        temperature=temperature,
        threshold=UNCERTAIN_BELOW,
        pictures=order.pictures,
        training={
            "program": f"gender-batch {__version__}",
            "recipe": asdict(order.recipe),
            "epochs": len(history),
            "pictures": {"train": len(data.train), "val": len(data.val), "test": len(data.test)},
            "groups": order.group_by,
            "data_sha256": data.digest,
        },
        figures=figures,
        attributions=attributions,
    ).save(folder / CHECKPOINT)
    (folder / METRICS).write_text(json.dumps(figures, indent=2) + "\n")
    with (folder / "history.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, asdict(history[0]) if history else [])
        writer.writeheader()
        writer.writerows(asdict(epoch) for epoch in history)
    answers = _write_held_out(folder / HELD_OUT, data, probabilities)
    plot_curves(history, folder / "curves.png")
    plot_confusion((test or val).confusion, data.labels, folder / "confusion.png")
    draw_gallery(answers, preprocessing, folder / "gallery.png")
    (folder / STATE).unlink(missing_ok=True)
    return Result(folder, val, test)


def _prepare(folder: Path, order: Order, resume: bool) -> None:
    config = folder / CONFIG
    if (folder / CHECKPOINT).exists():
        raise RunError(f"{folder}: holds a finished run; name another folder with --out")
    if (folder / STATE).exists() and not resume:
        raise RunError(f"{folder}: holds an unfinished run; add --resume, or name another folder with --out")
    if resume:
        if not config.exists():
            raise RunError(f"{folder}: no run to resume; leave --resume out")
        before = json.loads(config.read_text())
        changed = [name for name, value in order.to_dict().items() if before.get(name) != value]
        if changed:
            raise RunError(f"{folder}: was begun with another {', '.join(changed)}; --resume needs the same")
    folder.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps(order.to_dict(), indent=2) + "\n")


def _with_head(pretrained: Network, classes: int, seed: int) -> Network:
    """The features of `pretrained` under a head for this many classes, its start decided by the seed."""
    torch.manual_seed(seed)
    network = Network(classes)
    network.features.load_state_dict(pretrained.features.state_dict())
    return network


def _truth(samples: tuple[Sample, ...]) -> NDArray[np.int64]:
    return np.array([sample.label for sample in samples], dtype=np.int64)


def _write_held_out(path: Path, data: Dataset, probabilities: dict[str, NDArray[np.float64]]) -> list[Answer]:
    """One row per held-out picture; returns the answers of the test, or of the validation where there is none."""
    answers: dict[str, list[Answer]] = {}
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "path", "group", "label", *(f"p_{label}" for label in data.labels)])
        for split, rows in probabilities.items():
            samples = data.val if split == "val" else data.test
            for sample, row in zip(samples, rows, strict=True):
                truth = data.labels[sample.label]
                writer.writerow([split, sample.name, sample.group, truth, *(round(float(p), 6) for p in row)])
                best = int(row.argmax())
                answers.setdefault(split, []).append(
                    Answer(data.path(sample), truth, data.labels[best], float(row[best]))
                )
    return answers.get("test") or answers["val"]
