"""Sets of photos made by script: the sizes and formats that people upload, with the detail of real photos."""

from __future__ import annotations

import io
import os
import random
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

TILE = 224
"""Pixels of a side of the photos of which mosaics are laid."""


@dataclass(frozen=True)
class Kind:
    """One set: pictures of width x height pixels in one of Pillow's formats. `files` are measured in a whole run,
    `peers` tells whether peers are measured on it, too, `portraits` that each shows one face, which is to be found."""

    name: str
    size: tuple[int, int]
    files: int
    format: str = "JPEG"
    options: dict[str, Any] = field(default_factory=dict)
    peers: bool = False
    portraits: bool = False

    @property
    def suffix(self) -> str:
        return {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}[self.format]


def kinds() -> tuple[Kind, ...]:
    """Quality 82 gives about 150 KB at 1080 pixels, as social networks deliver them."""
    found = []
    for name, size, files in (
        ("400", (400, 400), 6000),
        ("640", (640, 640), 4000),
        ("1080", (1080, 1080), 3000),
        ("2048", (2048, 1536), 1600),
        ("12 MP", (4032, 3024), 400),
    ):
        for coding, options in (("baseline", {}), ("progressive", {"progressive": True})):
            peers = name in ("400", "1080")
            found.append(Kind(f"JPEG {name} {coding}", size, files, "JPEG", {"quality": 82, **options}, peers))
    found.append(Kind("PNG 400", (400, 400), 2000, "PNG"))
    found.append(Kind("WebP 640", (640, 640), 2000, "WEBP", {"quality": 80}))
    return tuple(found)


def portrait_kinds() -> tuple[Kind, ...]:
    """Photos of one person each."""
    options: dict[str, dict[str, Any]] = {"baseline": {}, "progressive": {"progressive": True}}
    return tuple(
        Kind(f"JPEG 1080 {coding}, portraits", (1080, 1080), 1000, "JPEG", {"quality": 82, **coded}, portraits=True)
        for coding, coded in options.items()
    )


def photos(size: tuple[int, int], faces: Path | None, seed: int) -> Image.Image:
    """A mosaic of photos that are looked at in their own resolution, or, without any, noise whose power falls with the
    square of its frequency, as that of natural images does (Field 1987)."""
    width, height = size
    tiles = sorted(faces.rglob("*.jpg")) if faces else []
    if not tiles:
        return _natural_noise(size, seed)
    chosen = random.Random(seed)
    picture = Image.new("RGB", size)
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            with Image.open(chosen.choice(tiles)) as tile:
                picture.paste(tile, (left, top))
    return picture


def portrait(size: tuple[int, int], faces: Path, seed: int) -> Image.Image:
    """One of the faces at 25 to 65% of the shorter side, somewhere before a blurred mosaic of others."""
    chosen = random.Random(seed)
    shorter = min(size)
    picture = photos(size, faces, seed).filter(ImageFilter.GaussianBlur(shorter / 12))
    side = round(shorter * chosen.uniform(0.25, 0.65))
    place = (chosen.randint(0, size[0] - side), chosen.randint(0, size[1] - side))
    with Image.open(chosen.choice(sorted(faces.rglob("*.jpg")))) as face:
        picture.paste(face.resize((side, side), Image.Resampling.LANCZOS), place)
    return picture


def _natural_noise(size: tuple[int, int], seed: int) -> Image.Image:
    width, height = size
    drawn = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(drawn.normal(size=(3, height, width))) / frequency
    mixed = np.fft.irfft2(spectrum, (height, width))
    grey = mixed[0] * 4
    channels = np.stack([grey + mixed[1], grey, grey + mixed[2]], axis=-1)
    channels = (channels - channels.mean()) / channels.std() * 50 + 120
    return Image.fromarray(channels.clip(0, 255).astype(np.uint8))


def unpacked_faces(shared: Path, folder: Path) -> Path | None:
    """The test photos of the shared folder, unpacked, where there are any."""
    archive = shared / "faces" / "fairface-test.tar"
    if not archive.is_file():
        return None
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return folder


def make_set(kind: Kind, folder: Path, faces: Path | None, distinct: int, counts: Sequence[int]) -> int:
    """Write `distinct` pictures, and folders of 16, ... links to them, one for each of `counts`, named after it.

    Returns the mean size of a picture in bytes.
    """
    originals = folder / "originals"
    originals.mkdir(parents=True)
    paths = []
    for number in range(distinct):
        file = io.BytesIO()
        made = portrait(kind.size, faces, number) if kind.portraits and faces else photos(kind.size, faces, number)
        made.save(file, kind.format, **kind.options)
        paths.append(originals / f"{number:03d}{kind.suffix}")
        paths[-1].write_bytes(file.getvalue())
    for count in counts:
        links = folder / str(count)
        links.mkdir(exist_ok=True)
        for number in range(count):
            os.link(paths[number % distinct], links / f"{number:07d}{kind.suffix}")
    return sum(path.stat().st_size for path in paths) // distinct
