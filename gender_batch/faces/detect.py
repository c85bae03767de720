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

SCORE = 0.7
"""Least score of a face, 0..1."""

OVERLAP = 0.3
"""Largest intersection over union of two faces; of two that overlap more, the one of the larger score is kept."""

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

    def search(self, image: Image.Image, side: int, least: float = SCORE) -> list[Face]:
        """The faces in an RGB picture whose longer side is resized to `side` pixels, by falling score, from `least`."""
        scale = side / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        pixels = letterboxed(image.resize(size, Image.Resampling.BILINEAR))
        rows = suppress(self.candidates(pixels, least)).astype(np.float64)
        rows[:, 0:14:2] *= image.width / size[0]
        rows[:, 1:14:2] *= image.height / size[1]
        return [
            Face(left, top, width, height, np.array(points).reshape(5, 2), score)
            for left, top, width, height, *points, score in rows.tolist()
        ]

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
