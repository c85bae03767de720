"""Find faces with YuNet: an upright picture in; boxes, five landmarks and scores out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

from gender_batch.faces.fetch import verified
from gender_batch.prediction import Box

STRIDES = (8, 16, 32)
"""Pixels of the input to a cell of each of the network's three grids (Wu, Peng and Yu 2023, section 3)."""

CANDIDATE, SCORE = 0.5, 0.7
"""Least score, 0..1, of what is looked at closer, and least score of a face then.

Measured on pictures of our own choice: of 349 without a face (textures, drawings, machines, skies) 2 have one that is
none; of 500 of FairFace's training pictures 99.8% have one, of 140 photos of 1080 pixels in which they are pasted at
15% and 25% of the side 99%, at 10% of it 91%.
"""

MOST = 64
"""Faces that are found in a picture at most. Of a crowd they are the largest: whom it is about is one of them."""

LONGEST_CLOSE = 4096
"""Pixels of the longest square that is cut out for a closer look; of a larger face the picture is reduced before."""

OVERLAP = 0.3
"""Largest intersection over union of two faces; of two that overlap more, the one of the larger score is kept."""

CLOSE_SIDE, CLOSE_SHARE = 256, 1.5
"""A closer look resizes a square of 1.5 times the face's longer side to 256 pixels.

The network takes a small face for an upright one: of the tilt of faces pasted into photos of 1080 pixels its landmarks
show 44% when the photo is searched at 320 pixels, 74% at 640, and 85% in a closer look, which takes a tenth of the
pixels of the latter.
"""

ENOUGH = 0.75
"""Least longer side of what is searched as it is, as a share of the side that was asked for."""

SAME = 0.3
"""Least intersection over union of a face and the same one seen closer."""

_FIXED = b"\x0a\x03\x08\x80\x05" * 2
_FREE = b"\x0a\x03\x12\x01H" + b"\x0a\x03\x12\x01W"
"""Height and width of the graph's input in protobuf's encoding: dim_value 640 twice, and dim_param "H" and "W"."""

Values = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Face:
    """One face, in pixels of the picture that was searched; it may reach beyond the picture's edges.

    `landmarks` (5, 2) are x and y of the right eye, the left eye, the tip of the nose, the right and the left corner
    of the mouth; right is the person's own, to be seen on the left.
    """

    left: float
    top: float
    width: float
    height: float
    landmarks: NDArray[np.float64]
    score: float

    @property
    def area(self) -> float:
        return self.width * self.height

    def overlap(self, other: Face) -> float:
        """Intersection over union of the boxes, 0..1."""
        width = min(self.left + self.width, other.left + other.width) - max(self.left, other.left)
        height = min(self.top + self.height, other.top + other.height) - max(self.top, other.top)
        common = max(width, 0.0) * max(height, 0.0)
        return common / (self.area + other.area - common)

    def moved(self, right: float, down: float) -> Face:
        """The same face in a picture that begins so many pixels further left and up."""
        landmarks = self.landmarks + np.array((right, down))
        return Face(self.left + right, self.top + down, self.width, self.height, landmarks, self.score)

    def box(self, width: int, height: int) -> Box:
        """Its box within a picture of that size, in whole pixels."""
        left, right = (min(max(round(x), 0), width) for x in (self.left, self.left + self.width))
        top, bottom = (min(max(round(y), 0), height) for y in (self.top, self.top + self.height))
        return left, top, right - left, bottom - top

    def scaled(self, by: float) -> Face:
        """The same face in a picture of `by` times the size."""
        left, top, width, height = (value * by for value in (self.left, self.top, self.width, self.height))
        return Face(left, top, width, height, self.landmarks * by, self.score)


class Detector:
    """YuNet in an ONNX Runtime session of one thread. Raises DetectorError for any file but the one that is pinned."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        # The network is fully convolutional; only the file fixes its input to 640 x 640, four times what is needed.
        graph = verified(path).replace(_FIXED, _FREE)
        self._session: Any = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self._outputs = [f"{head}_{stride}" for stride in STRIDES for head in ("cls", "obj", "bbox", "kps")]

    def faces(self, image: Image.Image, side: int) -> list[Face]:
        """The faces in an RGB picture, searched at about `side` pixels of its longer side, each looked at closer.

        At most 64, the largest ones, by falling score.
        """
        faces: list[Face] = []
        found = self.search(image, side, CANDIDATE)
        if len(found) > MOST:
            largest = sorted(found, key=lambda face: face.area, reverse=True)[:MOST]
            found = sorted(largest, key=lambda face: face.score, reverse=True)
        for candidate in found:
            face = self.closer(image, candidate)
            # Two candidates may turn out to be one face.
            if face and all(face.overlap(other) < SAME for other in faces):
                faces.append(face)
        return faces

    def search(self, image: Image.Image, side: int, least: float) -> list[Face]:
        """What may be faces in an RGB picture, `shrunk` to `side` pixels, by falling score."""
        small = shrunk(image, side)
        rows = suppress(self.candidates(letterboxed(small), least)).astype(np.float64)
        rows[:, 0:14:2] *= image.width / small.width
        rows[:, 1:14:2] *= image.height / small.height
        return [
            Face(left, top, width, height, np.array(points).reshape(5, 2), score)
            for left, top, width, height, *points, score in rows.tolist()
        ]

    def closer(self, image: Image.Image, face: Face) -> Face | None:
        """The same face, its landmarks more exact; None if it is no face when seen closer."""
        side = round(CLOSE_SHARE * max(face.width, face.height)) or 1
        if side > LONGEST_CLOSE:
            fraction = -(-side // LONGEST_CLOSE)
            smaller = self.closer(image.reduce(fraction), face.scaled(1 / fraction))
            return smaller and smaller.scaled(fraction)
        left, top = round(face.left + (face.width - side) / 2), round(face.top + (face.height - side) / 2)
        square = image.crop((left, top, left + side, top + side))
        seen = [found.moved(left, top) for found in self.search(square, CLOSE_SIDE, SCORE)]
        same = max(seen, key=face.overlap, default=None)
        return same if same and face.overlap(same) >= SAME else None

    def candidates(self, pixels: NDArray[np.uint8], least: float) -> Values:
        """What the network takes for faces, (N, 15) in no order: left, top, width, height, landmarks, score.

        `pixels` (H, W, 3) are RGB, 0..255, H and W multiples of 32.
        """
        width = pixels.shape[1]
        planes = np.ascontiguousarray(pixels[:, :, ::-1].transpose(2, 0, 1)[np.newaxis], dtype=np.float32)
        heads = iter(self._session.run(self._outputs, {self._input: planes}))
        found = []
        for stride in STRIDES:
            (classes, objects, boxes, points) = (next(heads)[0] for _ in range(4))
            scores = np.sqrt(classes[:, 0].clip(0, 1) * objects[:, 0].clip(0, 1))
            (kept,) = np.nonzero(scores >= least)
            found.append(_decoded(boxes[kept], points[kept], scores[kept], kept, width // stride, stride))
        return np.concatenate(found)


def shrunk(image: Image.Image, side: int) -> Image.Image:
    """The picture with its longer side resized to `side` pixels, or to no less than ENOUGH of them where that is a
    whole fraction of it: reducing 540 pixels to a half takes 0.25 ms, resizing them to 320 takes 1.9."""
    fraction = int(max(image.size) / (ENOUGH * side))
    if fraction > 1:
        image = image.reduce(fraction)
        if max(image.size) <= side:
            return image
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BILINEAR)


def letterboxed(image: Image.Image) -> NDArray[np.uint8]:
    """The picture (H, W, 3) in the upper left of a black one whose sides are multiples of 32."""
    width, height = (-(-length // STRIDES[-1]) * STRIDES[-1] for length in image.size)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: image.height, : image.width] = np.asarray(image)
    return pixels


def _decoded(
    boxes: Values, points: Values, scores: Values, cells: NDArray[np.intp], columns: int, stride: int
) -> Values:
    """Rows of `candidates`. A cell's centre and landmarks are offsets from it in cells, its sides logarithms of cells,
    as the network learnt them (Wu, Peng and Yu 2023; OpenCV's face_detect.cpp documents the same)."""
    corners = np.stack([cells % columns, cells // columns], axis=1).astype(np.float32)
    sides = np.exp(boxes[:, 2:4]) * stride
    starts = (corners + boxes[:, :2]) * stride - sides / 2
    landmarks = (points + np.tile(corners, 5)) * stride
    return np.concatenate([starts, sides, landmarks, scores[:, np.newaxis]], axis=1, dtype=np.float32)


def suppress(rows: Values) -> Values:
    """Non-maximum suppression: rows of `candidates` by falling score, without those that overlap a better one."""
    rows = rows[np.argsort(-rows[:, 14], kind="stable")]
    kept = []
    while len(rows):
        best = rows[0]
        kept.append(best)
        starts = np.maximum(rows[:, :2], best[:2])
        ends = np.minimum(rows[:, :2] + rows[:, 2:4], best[:2] + best[2:4])
        common = (ends - starts).clip(min=0).prod(axis=1)
        union = rows[:, 2:4].prod(axis=1) + best[2:4].prod() - common
        apart = common <= OVERLAP * union
        apart[0] = False
        rows = rows[apart]
    return np.array(kept, np.float32).reshape(-1, 15)
