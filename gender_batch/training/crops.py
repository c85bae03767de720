"""Faces cut out of the photos to train on, through the very code that serves: one file for each photo that has one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from gender_batch.faces.look import Looker
from gender_batch.pictures.read import PictureError, read_bytes
from gender_batch.prediction import Box


@dataclass(frozen=True)
class Crops:
    """Cuts out main faces and keeps them in `folder` under the names of their photos.

    The files are PNG, whatever the name says: nothing may be lost between training and serving. They are for their
    owner alone, and stay, since `export` proves the model on them.
    """

    folder: Path
    looker: Looker

    def cut(self, name: str, data: bytes) -> tuple[Image.Image, Box] | None:
        """The main face of the photo whose file holds `data`, and its box in it; None without a face.

        Raises PictureError.
        """
        seen = self.looker.look(data)
        if not seen.squares:
            return None
        place = self.folder / name
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            seen.squares[0].save(file, "PNG", compress_level=1)
        return seen.squares[0], seen.faces[0].box(seen.width, seen.height)


def with_a_face(paths: Iterable[str], looker: Looker) -> int:
    """How many of the pictures show a face; one that cannot be read shows none."""
    count = 0
    for path in paths:
        try:
            count += looker.look(read_bytes(path)).count > 0
        except PictureError:
            continue
    return count
