"""Feed the network: batches of augmented pictures to train on, of plainly preprocessed ones to judge by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from gender_batch.pictures.preprocessing import Pixels, Preprocessing
from gender_batch.pictures.read import read_picture

Item = tuple[Pixels, int]
Batch = tuple[Tensor, Tensor]
"""uint8 pictures (N, size, size, 3) and int64 labels (N,)."""


def augmentation(size: int) -> v2.Compose:
    """Random rotation, resized crop, horizontal flip and colour jitter of a Pillow picture, to size x size."""
    return v2.Compose(
        [
            v2.RandomRotation(15, interpolation=v2.InterpolationMode.BILINEAR),
            v2.RandomResizedCrop(size, scale=(0.5, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3),
        ]
    )


class TrainingPictures(Dataset[Item]):
    """Augmented pictures of one epoch.

    What happens to a picture depends on the seed, the epoch and its index alone, not on the loading process
    that draws it: any number of workers, and a resumed run, see the same pictures.
    """

    def __init__(self, paths: Sequence[str], labels: Sequence[int], size: int, resize: int, seed: tuple[int, ...]):
        self.paths, self.labels, self.seed = paths, labels, seed
        # A crop of half the area, enlarged to the network's size, should still be made of real pixels.
        self.shorter_side = resize * 3 // 2
        self.transform = augmentation(size)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Item:
        image: Image.Image = read_picture(self.paths[index], self.shorter_side).image
        # Bound the work on pictures that cannot be decoded at a reduced scale.
        image.thumbnail((4 * self.shorter_side, 4 * self.shorter_side))
        state = np.random.SeedSequence([*self.seed, index]).generate_state(1, np.uint64)[0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(state))
            image = self.transform(image)
        return np.array(image), self.labels[index]


class EvaluationPictures(Dataset[Item]):
    """Pictures exactly as `classify` would give them to the network."""

    def __init__(self, paths: Sequence[str], labels: Sequence[int], preprocessing: Preprocessing):
        self.paths, self.labels, self.preprocessing = paths, labels, preprocessing

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Item:
        picture = self.preprocessing.read(self.paths[index])
        return self.preprocessing.apply(picture.image).copy(), self.labels[index]


def batches(
    dataset: Dataset[Item], batch_size: int, workers: int, seed: tuple[int, ...] | None, pin_memory: bool
) -> Iterator[Batch]:
    """The dataset in batches: shuffled by `seed` and without the odd rest, or in order and whole without one."""
    generator = None
    if seed is not None:
        state = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state))
    length = len(dataset)  # type: ignore[arg-type]
    loader = DataLoader(
        dataset,
        batch_size,
        shuffle=seed is not None,
        generator=generator,
        num_workers=workers,
        # Batch statistics of one or two odd pictures would be noise.
        drop_last=seed is not None and length >= batch_size,
        pin_memory=pin_memory,
    )
    yield from loader
