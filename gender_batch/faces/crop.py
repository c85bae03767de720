"""Cut a face out of a picture, turned, placed and scaled as those that the network learnt from."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, hypot

import numpy as np
from PIL import Image

from gender_batch.faces.detect import Face
from gender_batch.pictures.preprocessing import FaceCrop

TEMPLATE = np.array(
    [(0.2405, 0.197), (0.7595, 0.197), (0.5, 0.509), (0.2855, 0.7655), (0.7145, 0.7655)], dtype=np.float64
)
"""Where YuNet's landmarks lie in a face chip of dlib without margin, in shares of its side, x and y.

FairFace's pictures are such chips with a margin of 0.25: dlib lays a similarity through the landmarks, so that eyes are
level and all faces equally large. These are medians of what YuNet finds in 1,500 of its training pictures, the left and
the right side averaged; the faces shrunk by 2.5%, by which frames came out too small in photos composed of them.
"""

BOX_SIDE = 0.743
"""Side of the same chip by the geometric mean of the sides of YuNet's box: the median over 863 composed photos."""

BOX_CENTRE = (0.0, 0.087)
"""Way from the centre of YuNet's box to the chip's, to the right and down, in shares of its side: from the same."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A square in a picture: its upper left corner, and the vector of its upper edge, in pixels."""

    left: float
    top: float
    across: float
    down: float

    @property
    def side(self) -> float:
        return hypot(self.across, self.down)

    def around(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of those whole pixels of a picture of that size that lie in the upright square
        around it and one further; at least one pixel."""
        x = (self.left, self.left + self.across, self.left - self.down, self.left + self.across - self.down)
        y = (self.top, self.top + self.down, self.top + self.across, self.top + self.down + self.across)
        left, top = (max(0, min(floor(min(v)) - 1, end - 1)) for v, end in ((x, width), (y, height)))
        right, bottom = (min(end, ceil(max(v)) + 1) for v, end in ((x, width), (y, height)))
        return left, top, max(right, left + 1), max(bottom, top + 1)


def frame(face: Face, spec: FaceCrop) -> Frame:
    """The square that holds the face as `spec` says.

    It is turned as the least-squares similarity from the template to the landmarks is (Umeyama 1991, without
    reflection). Size and centre lie halfway between what the landmarks and what the box say: seen from the side, the
    landmarks of a face move together, and alone they would make the square a quarter too small.
    """
    centre, middle = TEMPLATE.mean(axis=0), face.landmarks.mean(axis=0)
    x, y = (TEMPLATE - centre).T
    u, v = (face.landmarks - middle).T
    size = float((x * x + y * y).sum())
    turn = complex((x * u + y * v).sum(), (x * v - y * u).sum()) / size  # as a complex number: side and direction
    by_landmarks = complex(*middle) + turn * complex(*(0.5 - centre))

    by_box_side = BOX_SIDE * face.area**0.5
    upright = turn / abs(turn) if turn else 1
    by_box = complex(face.left + face.width / 2, face.top + face.height / 2)
    by_box += by_box_side * upright * complex(*BOX_CENTRE)

    across = upright * (abs(turn) * by_box_side) ** 0.5 * (1 + 2 * spec.margin)
    corner = (by_landmarks + by_box) / 2 - across * complex(0.5, 0.5)
    return Frame(corner.real, corner.imag, across.real, across.imag)


def cut(image: Image.Image, face: Face, spec: FaceCrop, needed: int) -> Image.Image:
    """The face's square, upright, `needed` pixels wide, or as wide as it is in the picture where that is less. What
    lies beyond the picture is black, as in FairFace's pictures."""
    found = frame(face, spec)
    side = min(needed, max(1, ceil(found.side)))
    if found.side > needed:
        # Shrunk before it is turned, which takes several times as long for a pixel.
        left, top, right, bottom = found.around(*image.size)
        scale = needed / found.side
        size = (max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale)))
        image = image.crop((left, top, right, bottom)).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
        found = frame(face.moved(-left, -top).scaled(size[0] / (right - left)), spec)
    across, down = found.across / side, found.down / side
    # Pillow asks for the point of the picture under each pixel of the square.
    affine = (across, -down, found.left, down, across, found.top)
    return image.transform((side, side), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
