"""The one way from a picture to the network's input, for training's evaluation, `evaluate` and `classify`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gender_batch.pictures.read import Picture, decode_picture, read_picture

Pixels = NDArray[np.uint8]
"""One picture as the network takes it: (size, size, 3), RGB, 0..255."""

LONGEST_ASPECT = 4
"""Longer side by shorter side of what is resized."""

LARGEST_SIDE = 4096
"""Most pixels of the side to which a picture is resized: a network for more would be no MobileNetV2."""

READING = 7
"""Version of how pictures are read and resized: raised when the same file and specification give other pixels than
before, so that rows kept from earlier are scored again."""


class PreprocessingError(ValueError):
    """The specification is of a kind that this version does not know."""


@dataclass(frozen=True)
class FaceCrop:
    """How a face is cut out before it is resized: aligned by its landmarks, `margin` face sides around it.

    The default is that of FairFace's pictures, the embedded model's training data: dlib's chips with a padding of 0.25.
    """

    margin: float = 0.25
    alignment: str = "landmarks"

    def __post_init__(self) -> None:
        if type(self.margin) not in (int, float) or not 0 <= self.margin <= 2:
            raise PreprocessingError(f"margin {self.margin!r} of the face crop must be between 0 and 2")
        if self.alignment != "landmarks":
            raise PreprocessingError(f"unknown alignment {self.alignment!r} of the face crop")

    @classmethod
    def from_dict(cls, spec: Any) -> FaceCrop:
        """The specification in a model file or checkpoint. Raises PreprocessingError for one not understood."""
        known = {field.name for field in fields(cls)}
        if not isinstance(spec, dict) or set(spec) != known:
            raise PreprocessingError(f"unknown face crop: {spec!r}")
        return cls(**spec)


@dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side to `resize` pixels, cut the centre square of `size` pixels.

    The arithmetic is that of torchvision's Resize and CenterCrop on a Pillow picture (bilinear, antialiased),
    equal to the last bit; a picture longer than 4:1 is first cut to its centre.
    `decoding` "scaled" lets a JPEG be decoded at a reduced scale, never below `shorter_side`. `face` says how a face is
    cut out of a whole picture before all that; it is None for a model of whole pictures.
    """

    size: int
    resize: int
    interpolation: str = "bilinear"
    decoding: str = "scaled"
    face: FaceCrop | None = None

    def __post_init__(self) -> None:
        if type(self.size) is not int or type(self.resize) is not int:
            raise PreprocessingError(f"size {self.size!r} and resize {self.resize!r} must be whole numbers")
        if not 1 <= self.size <= self.resize <= LARGEST_SIDE:
            raise PreprocessingError(
                f"size {self.size} must be between 1 and resize, and resize {self.resize} at most {LARGEST_SIDE}"
            )
        if self.interpolation != "bilinear" or self.decoding != "scaled":
            raise PreprocessingError(f"unknown interpolation {self.interpolation!r} or decoding {self.decoding!r}")

    @property
    def shorter_side(self) -> int:
        """Least shorter side, in pixels, of what is decoded at a reduced scale: a sixteenth less than `resize`.

        So little is hardly seen, and saves half of the scale where a picture just misses it: with 288 pixels photos of
        1080, as social networks deliver them, are decoded to 270.
        """
        return self.resize - self.resize // 16

    @classmethod
    def from_dict(cls, spec: dict[str, Any]) -> Preprocessing:
        """The specification in a model file or checkpoint. Raises PreprocessingError for one not understood."""
        known = {field.name for field in fields(cls)} - {"face"}
        unlike = (set(spec) - {"face"}) ^ known
        if unlike:
            raise PreprocessingError(f"unknown preprocessing: {sorted(unlike)}")
        return cls(**{**spec, "face": FaceCrop.from_dict(spec["face"]) if "face" in spec else None})

    def to_dict(self) -> dict[str, Any]:
        """As `from_dict` takes it; without `face` where there is none, as earlier versions know it."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def read(self, path: str) -> Picture:
        """Read a picture at the scale this specification needs. Raises PictureError."""
        return read_picture(path, self.shorter_side)

    def decode(self, data: bytes) -> Picture:
        """`read` for the bytes of a file."""
        return decode_picture(data, self.shorter_side)

    def apply(self, image: Image.Image) -> Pixels:
        """(size, size, 3) uint8 of an upright RGB picture of any size."""
        image = bound_aspect(image)
        width, height = image.size
        if width <= height:
            resized = (self.resize, int(self.resize * height / width))
        else:
            resized = (int(self.resize * width / height), self.resize)
        left = round((resized[0] - self.size) / 2)
        top = round((resized[1] - self.size) / 2)
        # Not `resize(box=...)`, which computes only the square: it rounds the box to float32 and is not the same
        # to the last bit, so that no export could be compared to 1e-4.
        whole = image.resize(resized, Image.Resampling.BILINEAR)
        return np.asarray(whole.crop((left, top, left + self.size, top + self.size)))


def bound_aspect(image: Image.Image) -> Image.Image:
    """The picture, or its centre if one side is more than four times the other.

    A picture of 1 x 100,000 pixels, resized by its shorter side, would fill the memory for a square of its centre.
    """
    width, height = image.size
    longest = LONGEST_ASPECT * min(width, height)
    if max(width, height) <= longest:
        return image
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return image.crop((left, top, left + min(width, longest), top + min(height, longest)))
