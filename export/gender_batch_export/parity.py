"""The gates: the checkpoint through torch and torchvision against each file through the path of `classify`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms import v2

from gender_batch.evaluation.metrics import Proportion
from gender_batch.model.session import Model
from gender_batch.pictures.preprocessing import Preprocessing, bound_aspect
from gender_batch.pictures.read import read_picture
from gender_batch.training.network import IMAGENET_MEAN, IMAGENET_STD, Checkpoint
from gender_batch_export.heldout import LEAST_JUDGED
from gender_batch_export.precision import Precision

LARGEST_DIFFERENCE = 1e-4
"""Of a probability, between checkpoint and float32 model file."""

BATCHES = (1, 2, 7)
"""Batch sizes that the file must serve with equal answers."""

CONFIDENT = 0.8
"""Probability from which an answer of the checkpoint may hardly ever change."""


@dataclass(frozen=True)
class Limits:
    """What a lower precision must keep: shares of labels that stay, of all pictures and of those that the checkpoint
    answers with at least 0.8, and the largest change of accuracy, 0..1, for better or worse."""

    agreement: float
    confident: float = 0.0
    accuracy: float = 1.0


LIMITS = {
    Precision.FP16: Limits(agreement=0.999),
    Precision.INT8: Limits(agreement=0.985, confident=0.998, accuracy=0.003),
}


@dataclass(frozen=True)
class Parity:
    """How far two ways to the same answer are apart, over all pictures and batch sizes."""

    pictures: int
    largest: float
    mean: float
    labels_changed: int

    @property
    def passed(self) -> bool:
        # Written so that a NaN does not pass.
        return self.pictures > 0 and self.largest <= LARGEST_DIFFERENCE and self.labels_changed == 0

    def __str__(self) -> str:
        return (
            f"{self.pictures} pictures at batches {', '.join(map(str, BATCHES))}: "
            f"largest difference {self.largest:.2e}, mean {self.mean:.2e}, labels changed {self.labels_changed}"
        )


def compare(expected: NDArray[np.float32], file: Path, pictures: Sequence[str]) -> Parity:
    """The checkpoint's probabilities (N, classes) of picture files and those of a model file, which goes its own whole
    way from the same files.

    Raises PictureError for a picture that cannot be read, ModelError for a file that cannot be served.
    """
    model = Model(file, "cpu")
    preprocessing = model.metadata.preprocessing
    pixels = np.stack([preprocessing.apply(preprocessing.read(path).image) for path in pictures])
    differences = []
    changed = 0
    for size in BATCHES:
        served = np.concatenate(
            [model.probabilities(pixels[start : start + size]) for start in range(0, len(pixels), size)]
        )
        differences.append(np.abs(served - expected))
        changed += int((served.argmax(1) != expected.argmax(1)).sum())
    return Parity(len(pictures), float(np.max(differences)), float(np.mean(differences)), changed)


@dataclass(frozen=True)
class Agreement:
    """The answers of a lower precision beside the checkpoint's, on the same pictures. An answer is the best label.

    `confident` is the agreement on pictures that the checkpoint answers with at least 0.8. `right` and `expected` are
    the accuracies of the file and of the checkpoint; `finite` says that no number is beyond what the format holds.
    """

    limits: Limits
    agreement: Proportion
    confident: Proportion
    right: Proportion
    expected: Proportion
    finite: bool

    @property
    def passed(self) -> bool:
        # In counts, so that exactly 0.3 points pass whatever a float makes of them.
        pictures = self.agreement.total
        return (
            self.finite
            and pictures >= LEAST_JUDGED
            and self.agreement.count >= round(self.limits.agreement * pictures, 6)
            and self.confident.count >= round(self.limits.confident * self.confident.total, 6)
            and abs(self.right.count - self.expected.count) <= round(self.limits.accuracy * pictures, 6)
        )

    def __str__(self) -> str:
        if not self.finite:
            return f"{self.agreement.total} pictures: numbers beyond the range of the format"
        sure = self.confident
        return (
            f"{self.agreement.total} pictures: same label on {self.agreement.value:.2%}, "
            f"on {f'{sure.value:.2%}' if sure.total else 'none'} of the {sure.total} answered with at least "
            f"{CONFIDENT:g}; accuracy {self.right.value:.2%}, checkpoint {self.expected.value:.2%}"
        )


def agreement(
    served: NDArray[np.float32],
    expected: NDArray[np.float32],
    truth: Sequence[int],
    limits: Limits,
    finite: bool = True,
) -> Agreement:
    """Probabilities (N, classes) of a file and of the checkpoint, and the true class indices (N,).

    `finite` False tells that an activation overflowed, whatever the probabilities say.
    """
    labels, best = expected.argmax(1), expected.max(1)
    same = served.argmax(1) == labels
    sure = best >= CONFIDENT
    return Agreement(
        limits,
        agreement=Proportion(int(same.sum()), len(same)),
        confident=Proportion(int((same & sure).sum()), int(sure.sum())),
        right=Proportion(int((served.argmax(1) == np.asarray(truth)).sum()), len(same)),
        expected=Proportion(int((labels == np.asarray(truth)).sum()), len(same)),
        finite=finite and bool(np.isfinite(served).all()),
    )


def served_probabilities(model: Model, pictures: Sequence[str]) -> NDArray[np.float32]:
    """(N, classes) by the path of `classify`: each file through the model's own preprocessing and its session.

    Raises PictureError for a picture that cannot be read.
    """
    spec = model.metadata.preprocessing
    return np.concatenate([model.probabilities(spec.apply(spec.read(path).image)[np.newaxis]) for path in pictures])


def torch_probabilities(checkpoint: Checkpoint, pictures: Sequence[str]) -> NDArray[np.float32]:
    """(N, classes) by torchvision's own transforms and the backbone in torch, in float32.

    Of our own code it uses only the reading of the file; normalisation, temperature and softmax are spelled out.
    """
    spec: Preprocessing = checkpoint.preprocessing
    transform = v2.Compose(
        [
            v2.Resize(spec.resize, v2.InterpolationMode.BILINEAR, antialias=True),
            v2.CenterCrop(spec.size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    backbone = checkpoint.network.backbone.eval()
    outputs = []
    with torch.inference_mode():
        for path in pictures:
            image = bound_aspect(read_picture(path, spec.shorter_side).image)
            logits = backbone(transform(image)[None])
            outputs.append(torch.softmax(logits / checkpoint.temperature, 1)[0].numpy())
    return np.stack(outputs)
