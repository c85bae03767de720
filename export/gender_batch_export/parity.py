"""The gate: the checkpoint through torch and torchvision against the file through the path of `classify`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms import v2

from gender_batch.model.session import Model
from gender_batch.pictures.preprocessing import Preprocessing, bound_aspect
from gender_batch.pictures.read import read_picture
from gender_batch.training.network import IMAGENET_MEAN, IMAGENET_STD, Checkpoint

LARGEST_DIFFERENCE = 1e-4
"""Of a probability, between checkpoint and float32 model file."""

BATCHES = (1, 2, 7)
"""Batch sizes that the file must serve with equal answers."""


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


def compare(checkpoint: Checkpoint, file: Path, pictures: Sequence[str]) -> Parity:
    """Both ways' probabilities of the same picture files, each along its own whole path.

    Raises PictureError for a picture that cannot be read, ModelError for a file that cannot be served.
    """
    expected = torch_probabilities(checkpoint, pictures)
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
            image = bound_aspect(read_picture(path, spec.resize).image)
            logits = backbone(transform(image)[None])
            outputs.append(torch.softmax(logits / checkpoint.temperature, 1)[0].numpy())
    return np.stack(outputs)
