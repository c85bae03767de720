"""What a trained network is worth: its answers to the pictures that were held out, and the figures of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gender_batch.evaluation.gallery import Answer
from gender_batch.evaluation.groups import accuracies, by_group
from gender_batch.evaluation.metrics import Metrics, Proportion, Threshold, choose_threshold, measure, numbered
from gender_batch.evaluation.report import ScalePoint
from gender_batch.pictures.preprocessing import Preprocessing
from gender_batch.training.augmentation import zoom_out
from gender_batch.training.dataset import Dataset
from gender_batch.training.loading import Squares
from gender_batch.training.network import Network
from gender_batch.training.predict import fit_temperature, predict_logits
from gender_batch.training.recipe import Machine, Recipe
from gender_batch.training.samples import Sample

FACE_SCALES = (1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.25)
"""Sides of the picture in the frame, as shares of the frame's, at which accuracy is measured."""

SCALED_PICTURES = 2000
"""Most pictures for that."""


@dataclass(frozen=True)
class HeldOut:
    """The pictures that are not trained on: "val", and "test" where there are any, as the network is to see them.

    Of faces, `scaled` are some of the last split's, and `sources` those before they are put into larger frames.
    """

    samples: Mapping[str, tuple[Sample, ...]]
    squares: Mapping[str, Squares]
    scaled: tuple[Sample, ...]
    sources: Squares

    @classmethod
    def of(cls, data: Dataset, recipe: Recipe, folder: Path, pictures: str) -> HeldOut:
        """Decoded and kept in `folder` if there is room; `pictures` as an order calls them. Raises PictureError."""
        samples = {split: found for split, found in (("val", data.val), ("test", data.test)) if found}
        squares = {split: squares_of(data, found, recipe.preprocessing, folder) for split, found in samples.items()}
        last = data.test or data.val
        # How large the faces in whole photos are is not known.
        scaled = last[:: -(-len(last) // SCALED_PICTURES)] if pictures == "face" else ()
        return cls(samples, squares, scaled, squares_of(data, scaled, recipe.source, folder))

    @property
    def split(self) -> str:
        """The one whose answers are shown: the test, on which nothing was chosen, if there is one."""
        return "test" if "test" in self.samples else "val"


@dataclass(frozen=True)
class Findings:
    """`probabilities` are those of the classes (N, classes) by split, `answers` those of the split that is shown."""

    temperature: float
    threshold: Threshold
    probabilities: Mapping[str, NDArray[np.float64]]
    metrics: Mapping[str, Metrics]
    scales: tuple[ScalePoint, ...]
    answers: tuple[Answer, ...]

    def figures(self, data: Dataset) -> dict[str, Any]:
        """All figures, as the checkpoint and metrics.json hold them."""
        groups = by_group(
            [answer.attributes for answer in self.answers],
            [data.labels[answer.truth] for answer in self.answers],
            [answer.right for answer in self.answers],
            [answer.group for answer in self.answers],
        )
        return {
            "test": None,
            **{split: found.to_dict() for split, found in self.metrics.items()},
            "threshold": {
                "value": self.threshold.value,
                "target_precision": self.threshold.target,
                "reached_on_validation": self.threshold.reached,
            },
            "groups": accuracies(groups),
            "without_face": len(data.faceless) if data.crops else None,
            "face_scales": {str(point.scale): point.accuracy.to_dict() for point in self.scales},
        }


def judge(
    network: Network, held_out: HeldOut, data: Dataset, recipe: Recipe, machine: Machine, target_precision: float
) -> Findings:
    """The validation pictures give temperature and threshold, those of the test only figures."""
    truth = {split: true_classes(samples) for split, samples in held_out.samples.items()}
    logits = {split: predict_logits(network, squares, machine) for split, squares in held_out.squares.items()}
    temperature = fit_temperature(logits["val"], truth["val"])
    probabilities = {
        split: torch.from_numpy(values / temperature).double().softmax(1).numpy() for split, values in logits.items()
    }
    people = {split: [sample.group for sample in samples] for split, samples in held_out.samples.items()}
    threshold = choose_threshold(probabilities["val"], truth["val"], target_precision, people["val"])
    metrics = {
        split: measure(probabilities[split], truth[split], data.labels, threshold.value, people[split])
        for split in held_out.samples
    }
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
        for sample, row in zip(held_out.samples[held_out.split], probabilities[held_out.split], strict=True)
    )
    scales = _accuracy_by_scale(network, held_out, recipe, machine)
    return Findings(temperature, threshold, probabilities, metrics, scales, answers)


def squares_of(data: Dataset, samples: Sequence[Sample], preprocessing: Preprocessing, folder: Path) -> Squares:
    """The samples as `preprocessing` gives them, kept in `folder` if there is room. Raises PictureError."""
    return Squares([data.path(sample) for sample in samples], preprocessing, folder)


def true_classes(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """Indices (N,)."""
    return np.array([sample.label for sample in samples], dtype=np.int64)


def _accuracy_by_scale(network: Network, held_out: HeldOut, recipe: Recipe, machine: Machine) -> tuple[ScalePoint, ...]:
    """Accuracy with the faces shrunk into larger frames, each one's place and background drawn by the seed."""
    if not held_out.scaled:
        return ()
    torch.manual_seed(recipe.seed)
    truth = true_classes(held_out.scaled)
    people = numbered(sample.group for sample in held_out.scaled)
    points = []
    for scale in FACE_SCALES:
        view = partial(zoom_out, side=scale, size=recipe.image_size)
        logits = predict_logits(network, held_out.sources, machine, view=view)
        points.append(ScalePoint(scale, Proportion.of(logits.argmax(1) == truth, people)))
    return tuple(points)
