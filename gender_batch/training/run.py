"""One training run: data in, a folder with the checkpoint and the report of it out."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gender_batch import __version__
from gender_batch.evaluation.gallery import Answer, draw_gallery
from gender_batch.evaluation.groups import by_group
from gender_batch.evaluation.metrics import (
    Metrics,
    Proportion,
    Threshold,
    choose_threshold,
    grouped_accuracy_interval,
    measure,
)
from gender_batch.evaluation.plots import plot_confusion, plot_curves
from gender_batch.evaluation.report import Report, ScalePoint, write_report
from gender_batch.faces.look import FaceSearch, Looker
from gender_batch.pictures.preprocessing import Preprocessing
from gender_batch.pictures.read import PictureError
from gender_batch.training.augmentation import zoom_out
from gender_batch.training.crops import Crops, with_a_face
from gender_batch.training.dataset import Dataset, DatasetError, Sample, folds, load_dataset
from gender_batch.training.fit import Epoch, Labelled, Machine, Recipe, Watcher, fit, fit_temperature, predict_logits
from gender_batch.training.loading import Squares
from gender_batch.training.network import Checkpoint, Network, load_initial_weights
from gender_batch.training.order import IMAGE_SIZES, Order
from gender_batch.training.samples import find_samples

CHECKPOINT = "checkpoint.safetensors"
CONFIG = "config.json"
STATE = "state.pt"
HELD_OUT = "heldout.csv"
LOOKED_AT = 60
"""Photos that are searched for faces before it is decided whether faces are to be learnt."""

MOSTLY = 0.9
"""Share of them that must show one. On 2,310 photos of people a model of their faces was right about 96.5%, one of
whole photos about 94.6%; but photos without a face are lost to it."""

RARE = 3
"""How many times the pictures of the rarest class the commonest must have before class weights are recommended. After
five men to a woman, 69.0% of as many women as men were answered right without them, 77.0% with them."""

CROPS = "faces"
"""The folder of the faces that were cut out, in the run's or, for all folds, in that of the cross-validation."""

PICTURES = "pictures_in"
"""Under this name the config says where the pictures are that were trained on: the data, or their faces."""

METRICS = "metrics.json"
REPORT = "report.html"
FOLDS = "folds.json"

FACE_SCALES = (1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.25)
"""Sides of the picture in the frame, as shares of the frame's, at which accuracy is measured."""

SCALED_PICTURES = 2000
"""Most pictures for that."""


class RunError(Exception):
    """The run's folder is not what the command expects. The message says which option to add."""


@dataclass(frozen=True)
class Result:
    """What came of it. `test` is None where no picture was left for a test; `answers` are those of the last split."""

    folder: Path
    val: Metrics
    test: Metrics | None
    threshold: Threshold
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class CrossValidation:
    """Results of all folds, every picture tested once. `interval`: 95%, from resampling groups, 0..1."""

    folder: Path
    results: tuple[Result, ...]
    interval: tuple[float, float]

    @property
    def accuracies(self) -> list[float]:
        return [result.test.accuracy.value for result in self.results if result.test]

    @property
    def mean(self) -> float:
        """Mean of the folds' accuracies, 0..1."""
        return float(np.mean(self.accuracies))


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
    result = _train_on(_load(order, folder, watcher, reading), order, folder, machine, watcher)
    (folder / STATE).unlink(missing_ok=True)
    return result


def photos_show_faces(
    data: Path, group_by: str | None, labels_file: Path | None, detector: Path, note: Callable[[str], None]
) -> bool:
    """Whether most of some photos that are looked at show a face, so that faces should be cut out and learnt; which it
    is, is noted. Raises DatasetError."""
    found = find_samples(data, group_by, labels_file)
    names = sorted(sample.name for samples in found.splits.values() for sample in samples)
    looked_at = [str(data / name) for name in names[:: -(-len(names) // LOOKED_AT)]]
    any_size = Preprocessing(IMAGE_SIZES["face"], IMAGE_SIZES["face"])
    count = with_a_face(looked_at, Looker(FaceSearch(detector), any_size))
    seen = f"{count} of {len(looked_at)} photos that were looked at show a face"
    if count < MOSTLY * len(looked_at):
        note(f"{seen}: all are taken whole; --faces crop cuts faces out all the same")
        return False
    note(f"{seen}: faces are cut out and learnt; --faces never takes photos whole")
    return True


def cross_validate(
    order: Order,
    count: int,
    folder: Path,
    machine: Machine,
    watcher: Watcher,
    resume: bool = False,
    reading: Callable[[int], None] = lambda _: None,
) -> CrossValidation:
    """Train `count` times as ordered, each time tested on another part of the groups; a run per fold in `folder`.

    With `resume` an interrupted validation goes on: folds keep their states until all are done. Raises as `train`.
    """
    if order.detector:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    data = _load(order, folder, watcher, reading)
    results = []
    for number, fold in enumerate(folds(data, count, order.recipe.seed), 1):
        watcher.note(f"fold {number} of {count}")
        part = folder / f"fold-{number}"
        _prepare(part, order, resume and (part / STATE).exists(), data.crops)
        results.append(_train_on(fold, order, part, machine, watcher))
    answers = [answer for result in results for answer in result.answers]
    interval = grouped_accuracy_interval(
        np.array([answer.right for answer in answers]), [answer.group for answer in answers], order.recipe.seed
    )
    validated = CrossValidation(folder, tuple(results), interval)
    content = {
        "folds": validated.accuracies,
        "mean_accuracy": validated.mean,
        "interval_95": list(interval),
        "pictures": len(answers),
        "groups": len({answer.group for answer in answers}),
    }
    (folder / FOLDS).write_text(json.dumps(content, indent=2) + "\n")
    for result in results:
        (result.folder / STATE).unlink(missing_ok=True)
    return validated


def groups_of(data: Dataset, column: str) -> Tensor:
    """Indices (N,) of the groups of an attribute by class, of the training pictures. Raises DatasetError."""
    _check_known(data, column)
    keys = [f"{sample.label} {sample.attributes.get(column, '')}" for sample in data.train]
    return torch.from_numpy(np.unique(np.array(keys), return_inverse=True)[1])


def others_of(data: Dataset, names: Sequence[str]) -> Tensor:
    """Indices (N, columns) of the values of attributes of the training pictures, -1 unknown. Raises DatasetError."""
    columns = []
    for name in names:
        _check_known(data, name)
        found = [sample.attributes.get(name, "") for sample in data.train]
        index = {value: number for number, value in enumerate(sorted(set(found) - {""}))}
        columns.append(torch.tensor([index.get(value, -1) for value in found]))
    return torch.stack(columns, 1)


def _check_known(data: Dataset, column: str) -> None:
    if not any(sample.attributes.get(column) for sample in data.train):
        raise DatasetError(f"{data.root}: nothing is known of its pictures as {column!r}; name a column of --labels")


def _load(order: Order, folder: Path, watcher: Watcher, reading: Callable[[int], None]) -> Dataset:
    torch.manual_seed(order.recipe.seed)
    # Checked before the pictures are read: a wrong --init should not cost minutes.
    load_initial_weights(Network(1), order.init)
    crops = None
    if order.detector:
        crops = Crops((folder / CROPS).resolve(), Looker(FaceSearch(order.detector), order.preprocessing()))
    data = load_dataset(
        order.data,
        group_by=order.group_by,
        labels_file=order.labels_file,
        seed=order.recipe.seed,
        allow_leaks=order.allow_leaks,
        crops=crops,
        advance=reading,
    )
    for name, reason in data.unreadable:
        watcher.note(f"left out: {name}: {reason}")
    for note in data.notes:
        watcher.note(note)
    return data


def _train_on(data: Dataset, order: Order, folder: Path, machine: Machine, watcher: Watcher) -> Result:
    recipe = order.recipe
    watcher.note(
        f"{len(data.train)} pictures to train on, {len(data.val)} to validate, {len(data.test)} to test; "
        f"classes {', '.join(data.labels)}; on {machine.device.type} in {str(machine.precision)[6:]}"
    )
    counts = Counter(data.labels[sample.label] for sample in data.train)
    (common, most), *_, (rare, least) = counts.most_common()
    if most >= RARE * least and not recipe.class_weights:
        watcher.note(f"{common} has {most} pictures to train on, {rare} {least}: --class-weights lets them count alike")
    torch.manual_seed(recipe.seed)
    network = Network(len(data.labels))
    origin = load_initial_weights(network, order.init)

    groups = groups_of(data, order.balance) if order.balance else None
    others = others_of(data, order.auxiliary) if order.auxiliary else None
    held_out = {split: samples for split, samples in (("val", data.val), ("test", data.test)) if samples}
    split = "test" if data.test else "val"

    def squares(samples: Sequence[Sample], preprocessing: Preprocessing) -> Squares:
        return Squares([data.path(sample) for sample in samples], preprocessing, folder)

    try:
        pictures = {name: squares(samples, recipe.preprocessing) for name, samples in held_out.items()}
        scaled = held_out[split][:: -(-len(held_out[split]) // SCALED_PICTURES)]
        sources = squares(scaled, recipe.source)
        history = fit(
            network,
            Labelled(squares(data.train, recipe.source), torch.from_numpy(_truth(data.train)), groups, others),
            Labelled(pictures["val"], torch.from_numpy(_truth(data.val))),
            recipe,
            machine,
            folder / STATE,
            watcher,
            origin.head,
        )
    except PictureError as error:
        raise DatasetError(f"{data.root}: a picture changed while it was used ({error}); start again") from None

    # From here on the weights stand; the validation set gives temperature and threshold, the test set only figures.
    logits = {name: predict_logits(network, found, machine) for name, found in pictures.items()}
    temperature = fit_temperature(logits["val"], _truth(data.val))
    probabilities = {
        name: torch.from_numpy(values / temperature).double().softmax(1).numpy() for name, values in logits.items()
    }
    threshold = choose_threshold(probabilities["val"], _truth(data.val), order.target_precision)
    metrics = {
        name: measure(probabilities[name], _truth(samples), data.labels, threshold.value)
        for name, samples in held_out.items()
    }
    scales = _accuracy_by_scale(network, sources, _truth(scaled), recipe, machine)
    answers = tuple(
        Answer(
            data.photo(sample),
            sample.name,
            sample.label,
            tuple(map(float, row)),
            sample.group,
            sample.attributes,
            data.boxes.get(sample.name),
        )
        for sample, row in zip(held_out[split], probabilities[split], strict=True)
    )
    figures = {
        **{name: found.to_dict() for name, found in metrics.items()},
        **_details(data, answers, scales, threshold),
    }
    figures.setdefault("test", None)
    training = {
        "program": f"gender-batch {__version__}",
        "init": order.init if order.init in ("embedded", "imagenet") else Path(order.init).name,
        "init_training": origin.training,
        "recipe": asdict(recipe),
        "epochs": len(history),
        "pictures": {"train": len(data.train), "val": len(data.val), "test": len(data.test)},
        "balance": order.balance,
        "auxiliary_columns": list(order.auxiliary),
        "groups": _grouped_by(order, data),
        "data_sha256": data.digest,
    }
    Checkpoint(
        network=network.cpu(),
        labels=data.labels,
        preprocessing=order.preprocessing(),
        temperature=temperature,
        threshold=threshold.value,
        pictures=order.pictures,
        training=training,
        figures=figures,
        attributions=tuple(dict.fromkeys((*order.attributions, *origin.attributions))),
    ).save(folder / CHECKPOINT)

    # The report: nothing below changes what was learnt.
    (folder / METRICS).write_text(json.dumps(figures, indent=2) + "\n")
    _write_history(folder / "history.csv", history)
    _write_held_out(folder / HELD_OUT, held_out, data.labels, probabilities)
    plot_curves(history, folder / "curves.png")
    plot_confusion(metrics[split].confusion, data.labels, folder / "confusion.png")
    draw_gallery(answers, recipe.preprocessing, folder / "gallery.png", data.labels)
    facts: dict[str, str] = {
        "program": f"gender-batch {__version__}",
        "data": f"{data.root} (SHA-256 {data.digest[:16]}...)",
        "pictures": f"{len(data.train)} to train on, {len(data.val)} to validate, {len(data.test)} to test",
        "network": f"MobileNetV2, {recipe.image_size} pixels",
        "recipe": json.dumps(asdict(recipe)),
        "machine": f"{machine.device.type}, torch {torch.__version__}",
        "temperature": f"{temperature:.4f}",
    }
    write_report(
        folder / REPORT,
        Report(
            title=f"{' or '.join(data.labels)}: {folder.resolve().name}",
            facts=tuple(facts.items()),
            history=history,
            labels=data.labels,
            split="test" if split == "test" else "validation",
            answers=answers,
            threshold=threshold,
            preprocessing=recipe.preprocessing,
            scales=scales,
            notes=data.notes,
        ),
    )
    return Result(folder, metrics["val"], metrics.get("test"), threshold, answers)


def _grouped_by(order: Order, data: Dataset) -> str | None:
    """What told people apart; None where every picture counted as a person of its own."""
    if all(sample.group == sample.name for sample in data.all):
        return None
    return order.group_by or (order.labels_file.name if order.labels_file else None)


def _accuracy_by_scale(
    network: Network, sources: Squares, truth: NDArray[np.int64], recipe: Recipe, machine: Machine
) -> tuple[ScalePoint, ...]:
    """Accuracy with the pictures shrunk into larger frames, each picture's place and background drawn by the seed."""
    torch.manual_seed(recipe.seed)
    points = []
    for scale in FACE_SCALES:
        view = partial(zoom_out, side=scale, size=recipe.image_size)
        logits = predict_logits(network, sources, machine, view=view)
        points.append(ScalePoint(scale, Proportion(int((logits.argmax(1) == truth).sum()), len(truth))))
    return tuple(points)


def _details(
    data: Dataset, answers: Sequence[Answer], scales: Sequence[ScalePoint], threshold: Threshold
) -> dict[str, Any]:
    groups: dict[str, dict[str, Any]] = {}
    for group in by_group(
        [answer.attributes for answer in answers],
        [data.labels[answer.truth] for answer in answers],
        [answer.right for answer in answers],
    ):
        groups.setdefault(group.column, {})[group.value] = group.accuracy.to_dict()
    return {
        "threshold": {
            "value": threshold.value,
            "target_precision": threshold.target,
            "reached_on_validation": threshold.reached,
        },
        "groups": groups,
        "without_face": len(data.faceless) if data.crops else None,
        "face_scales": {str(point.scale): point.accuracy.to_dict() for point in scales},
    }


def _prepare(folder: Path, order: Order, resume: bool, crops: Path | None = None) -> None:
    config = folder / CONFIG
    unfinished = (folder / STATE).exists()  # it goes last: a checkpoint beside it may lack its report
    if unfinished and not resume:
        raise RunError(f"{folder}: holds an unfinished run; add --resume, or name another folder with --out")
    if (folder / CHECKPOINT).exists() and not unfinished:
        raise RunError(f"{folder}: holds a finished run; name another folder with --out")
    if resume:
        if not config.exists():
            raise RunError(f"{folder}: no run to resume; leave --resume out")
        before = json.loads(config.read_text())
        changed = [name for name, value in order.to_dict().items() if before.get(name) != value]
        if changed:
            raise RunError(f"{folder}: was begun with another {', '.join(changed)}; --resume needs the same")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # report and gallery show people
    place = crops or (folder / CROPS if order.detector else order.data)
    config.write_text(json.dumps({**order.to_dict(), PICTURES: str(place.resolve())}, indent=2) + "\n")


def _truth(samples: Sequence[Sample]) -> NDArray[np.int64]:
    return np.array([sample.label for sample in samples], dtype=np.int64)


def _write_history(path: Path, history: Sequence[Epoch]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Epoch)])
        writer.writeheader()
        writer.writerows(asdict(epoch) for epoch in history)


def _write_held_out(
    path: Path,
    held_out: dict[str, tuple[Sample, ...]],
    labels: Sequence[str],
    probabilities: dict[str, NDArray[np.float64]],
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
