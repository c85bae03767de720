"""What is asked of a training run, and what suits the pictures that it is to learn."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gender_batch.pictures.preprocessing import FaceCrop, Preprocessing
from gender_batch.training.recipe import Recipe

IMAGE_SIZES = {"face": 200, "photo": 288}
"""Sides in pixels that suit faces that fill the square, as the program's own features learnt them, and whole photos, in
which faces are smaller. benchmarks/results/ablation.md has what others gave."""

OWN_STATISTICS_FROM = 5000
"""Pictures to train on from which the program's own features learn batch-norm statistics anew. From 713 whole photos
that undid what the adaptation had learnt: a validation loss of 0.37 in place of 0.33. Other features always learn
theirs: with those of ImageNet kept, 3,240 faces taught nothing at all."""


@dataclass(frozen=True)
class Order:
    """What was asked for: the data, where to start from, and how to train."""

    data: Path
    recipe: Recipe
    init: str = "embedded"
    """Where to start from, as `load_initial_weights` takes it."""
    group_by: str | None = None
    labels_file: Path | None = None
    allow_leaks: bool = False
    balance: str | None = None
    auxiliary: tuple[str, ...] = ()
    """Columns of the labels file that are learnt beside the classes."""
    target_precision: float = 0.98
    pictures: str = "photo"
    """What the network sees: "photo" for whole photos, "face" for face crops."""
    detector: Path | None = None
    """YuNet's file, where faces are to be cut out of the photos first."""
    attributions: tuple[str, ...] = ()

    def preprocessing(self) -> Preprocessing:
        """How a picture comes to the network, in judging and serving."""
        face = FaceCrop() if self.pictures == "face" else None
        return replace(self.recipe.preprocessing, face=face)

    def to_dict(self) -> dict[str, Any]:
        return {
            "data": str(self.data.resolve()),
            "init": self.init,
            "group_by": self.group_by,
            "labels_file": str(self.labels_file.resolve()) if self.labels_file else None,
            "allow_leaks": self.allow_leaks,
            "balance": self.balance,
            "auxiliary_columns": list(self.auxiliary),
            "target_precision": self.target_precision,
            "pictures": self.pictures,
            "faces": "crop" if self.detector else None,
            "attributions": list(self.attributions),
            **asdict(self.recipe),
        }


def suited(recipe: Recipe, init: str, cut_out: bool, pictures: str) -> Recipe:
    """The recipe with what suits the features that it starts from, and the `pictures`, as an order calls them; faces
    may have been `cut_out` of photos."""
    # Whole photos show faces of all sizes as they are, and faces that are cut out are all of one size.
    zoomed_out = pictures == "face" and not cut_out
    return replace(
        recipe,
        statistics_from=OWN_STATISTICS_FROM if init == "embedded" else 0,
        augmentation=recipe.augmentation if zoomed_out else replace(recipe.augmentation, zoom_out=0),
    )
