"""Make the example pictures: averaged portraits that show nobody, and a few hard files made from them.

Needs opencv-python-headless beside the project's own dependencies. README.md here has the command.
"""

from __future__ import annotations

import argparse
import csv
import io
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.float32]  # (SIDE, SIDE, 3) in Lab or RGB, or (SIDE, SIDE) for a weight
Landmarks = NDArray[np.float32]  # (5, 2) pixels: right eye, left eye, nose tip, right and left mouth corner

SPLIT = "train"
ADULT_AGES = ("20-29", "30-39", "40-49")

FEWEST_FACES = 40  # with fewer, an average begins to resemble someone
FACES_PER_PORTRAIT = 80
FACES_FIRST_PASS = 120  # the second pass drops those farthest from the mean of these
PICTURES_PER_GROUP = 800  # enough for FACES_FIRST_PASS in most groups; detection is what takes the time

SIDE = 320  # pixels
EYE_DISTANCE = 104  # pixels on the canvas; crops are tight: a smaller face would have no surroundings
EYE_LINE = 108  # pixels from the top
BRIGHTEST = 95  # lightness in Lab, of 100
DETECTOR_MARGIN = 48  # pixels of black around a crop: the detector misses a face that touches the edge

JPEG = {"format": "JPEG", "quality": 88, "optimize": True}
EXIF_ORIENTATION = 0x0112
EXIF_ROTATE_CLOCKWISE = 6  # a viewer turns the stored pixels 90 degrees clockwise
TINY_SIDE = 24  # pixels
BROKEN_SHARE = 0.6  # of the bytes are kept


class TooFewFacesError(Exception):
    def __init__(self, portrait: str, faces: float) -> None:
        super().__init__(f"{portrait}: {faces:.0f} faces, below {FEWEST_FACES}: the average may show someone")


@dataclass(frozen=True)
class Face:
    """A frontal face: where it is in its picture."""

    path: Path
    landmarks: Landmarks

    @property
    def shape(self) -> Landmarks:
        """The landmarks with the eyes' middle as origin and the eye line, of length 1, as the x axis."""
        right_eye, left_eye = self.landmarks[:2]
        axis = left_eye - right_eye
        along, across = axis, np.array([-axis[1], axis[0]])
        offsets = self.landmarks - (right_eye + left_eye) / 2
        return np.stack([offsets @ along, offsets @ across], axis=1) / (axis @ axis)

    @property
    def headroom(self) -> float:
        """How much of the picture is above the eyes, in eye distances."""
        right_eye, left_eye = self.landmarks[:2]
        return float((right_eye + left_eye)[1] / 2 / np.hypot(*(left_eye - right_eye)))


def main() -> None:
    options = parse_arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    cv2.setNumThreads(1)  # on pictures this small, threads cost more than they save
    detector = cv2.FaceDetectorYN.create(str(options.detector), "", (0, 0), score_threshold=0.85)
    for name, paths in portrait_sources(options.labels):
        faces = find_frontal_faces(detector, [options.faces / path for path in paths[:PICTURES_PER_GROUP]])
        portrait, count = average_portrait(name, faces)
        Image.fromarray(portrait).save(options.out / f"{name}.jpg", **JPEG)
        print(f"{name}: the average of {count} faces, of {len(faces)} frontal ones")
    make_hard_pictures(options.out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faces", type=Path, required=True, help="folder that the labels' paths start in")
    parser.add_argument("--labels", type=Path, required=True, help="CSV: path, split, gender, age, race")
    parser.add_argument("--detector", type=Path, required=True, help="face_detection_yunet_2023mar.onnx")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures; made if missing")
    return parser.parse_args()


def portrait_sources(labels: Path) -> list[tuple[str, list[str]]]:
    """Each portrait's name with the paths of its adults, in a fixed order."""
    with labels.open(newline="", encoding="utf-8") as file:
        adults = sorted(
            (portrait_name(row["race"], row["gender"]), row["path"])
            for row in csv.DictReader(file)
            if row["split"] == SPLIT and row["age"] in ADULT_AGES
        )
    portraits = groupby(adults, key=lambda adult: adult[0])
    return [(name, [path for _, path in group]) for name, group in portraits]


def portrait_name(race: str, gender: str) -> str:
    return f"portrait-{race}-{gender}".lower().replace(" ", "-").replace("_", "-")


# Finding the faces


def find_frontal_faces(detector: cv2.FaceDetectorYN, paths: list[Path]) -> list[Face]:
    """The usable faces; first those of typical proportions with room above the eyes, where hair shows."""
    found = ((path, detect_landmarks(detector, read_rgb(path))) for path in paths)
    faces = [Face(path, landmarks) for path, landmarks in found if landmarks is not None]
    faces = [face for face in faces if is_frontal(face)]
    if not faces:
        return []
    typical = typical_shape(faces)
    return sorted(faces, key=lambda face: float(np.square(face.shape - typical).sum()) - 0.3 * face.headroom)


def read_rgb(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def detect_landmarks(detector: cv2.FaceDetectorYN, rgb: NDArray[np.uint8]) -> Landmarks | None:
    margin = DETECTOR_MARGIN
    framed = cv2.copyMakeBorder(rgb[..., ::-1], margin, margin, margin, margin, cv2.BORDER_CONSTANT)
    detector.setInputSize((framed.shape[1], framed.shape[0]))
    _, faces = detector.detect(framed)
    if faces is None or len(faces) != 1:  # a second face would shine through the average
        return None
    return faces[0, 4:14].reshape(5, 2) - margin


def is_frontal(face: Face) -> bool:
    right_eye, left_eye = face.landmarks[:2]
    across, down = left_eye - right_eye
    shape = face.shape
    upright = abs(np.degrees(np.arctan2(down, across))) < 12
    # In a 224-pixel crop: smaller eyes are blurred, larger ones leave no hair and no chin in the picture.
    well_sized = 55 < np.hypot(across, down) < 86
    nose_central = abs(shape[2, 0]) < 0.08
    mouth_central = abs(shape[3:, 0].mean()) < 0.08
    return bool(upright and well_sized and nose_central and mouth_central)


def typical_shape(faces: list[Face]) -> Landmarks:
    """The median of the faces' shapes, symmetric because each face is averaged with its mirror image."""
    median = np.median([face.shape for face in faces], axis=0)
    mirrored = median[[1, 0, 2, 4, 3]] * (-1, 1)
    return ((median + mirrored) / 2).astype(np.float32)


# Averaging them


def average_portrait(name: str, faces: list[Face]) -> tuple[NDArray[np.uint8], int]:
    """The portrait as RGB and the number of faces in it.

    Raises TooFewFacesError where the faces, or what their weights make of them, are fewer than FEWEST_FACES.
    """
    if len(faces) < FEWEST_FACES:
        raise TooFewFacesError(name, len(faces))
    typical = typical_shape(faces)
    template = (typical * EYE_DISTANCE + (SIDE / 2, EYE_LINE)).astype(np.float32)
    aligned = [align(face, template) for face in faces[:FACES_FIRST_PASS]]
    pictures = even_lighting(np.stack([picture for picture, _ in aligned]))
    coverage = np.stack([weight for _, weight in aligned])

    first = np.median(pictures, axis=0)
    distances = distance_in_face(pictures, first)
    kept = np.argsort(distances, kind="stable")[:FACES_PER_PORTRAIT]
    weights = 1 / (1 + np.square(distances[kept] / np.median(distances[kept])))
    effective = weights.sum() ** 2 / np.square(weights).sum()
    if effective < FEWEST_FACES:
        raise TooFewFacesError(name, effective)

    pixel_weights = (coverage[kept] * weights[:, None, None])[..., None]
    total = (pictures[kept] * pixel_weights).sum(axis=0)
    share = pixel_weights.sum(axis=0)
    mean = fill_margins(total + total[:, ::-1], share + share[:, ::-1])
    return finish(mean), len(kept)


def align(face: Face, template: Landmarks) -> tuple[Pixels, Pixels]:
    """The face on the canvas as Lab, and how much each of its pixels counts."""
    rgb = read_rgb(face.path)
    matrix, _ = cv2.estimateAffinePartial2D(face.landmarks, template, method=cv2.LMEDS)
    lab = cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    picture = cv2.warpAffine(lab, matrix, (SIDE, SIDE), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    return picture, cv2.warpAffine(edge_fade(rgb.shape[:2]), matrix, (SIDE, SIDE))


def edge_fade(size: tuple[int, ...]) -> Pixels:
    """1 inside, falling to 0 over the crop's outer pixels: a hard edge would be seen in the average."""
    fade = 24  # pixels
    rows, columns = (np.minimum(np.arange(n), np.arange(n)[::-1]) / fade for n in size)
    return np.clip(np.minimum.outer(rows, columns), 0, 1).astype(np.float32)


def fill_margins(total: Pixels, share: Pixels) -> Pixels:
    """The weighted mean; near the edges, where few crops reach, it passes into a blur of what is beside.

    The blur is a normalised convolution (Knutsson and Westin, 1993): pixels count by their share.
    """
    blurred = cv2.GaussianBlur(total, (0, 0), 12) / (cv2.GaussianBlur(share, (0, 0), 12)[..., None] + 1e-6)
    certainty = np.clip(share / share.max() * 3 - 0.3, 0, 1)
    return certainty * total / np.maximum(share, 1e-6) + (1 - certainty) * blurred


def even_lighting(pictures: Pixels) -> Pixels:
    """Give the faces, as Lab of shape (n, SIDE, SIDE, 3), the median face's mean colour and contrast."""
    inside = pictures[:, face_mask()]  # (n, pixels, 3)
    means, deviations = inside.mean(axis=1), inside.std(axis=1)
    gains = np.clip(np.median(deviations, axis=0) / deviations, 0.5, 2)
    shifted = (pictures - means[:, None, None]) * gains[:, None, None]
    return (shifted + np.median(means, axis=0)).astype(np.float32)


def distance_in_face(pictures: Pixels, reference: Pixels) -> NDArray[np.float32]:
    """Per picture, how far its face is from the reference: glasses, hands and hats are far."""
    mask = face_mask()
    blurred = np.stack([cv2.GaussianBlur(picture[..., 0], (0, 0), 4) for picture in pictures])
    return np.abs(blurred[:, mask] - cv2.GaussianBlur(reference[..., 0], (0, 0), 4)[mask]).mean(axis=1)


def face_mask() -> NDArray[np.bool_]:
    """The ellipse from forehead to chin."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    centre = (SIDE // 2, round(EYE_LINE + 0.45 * EYE_DISTANCE))
    cv2.ellipse(mask, centre, (round(0.95 * EYE_DISTANCE), round(1.25 * EYE_DISTANCE)), 0, 0, 360, 1, -1)
    return mask.astype(bool)


def finish(lab: Pixels) -> NDArray[np.uint8]:
    """Lab to RGB with the crispness and the contrast that averaging took away, in part."""
    # Outside the face there is only noise to sharpen, so it is softened instead.
    sharpened = cv2.GaussianBlur(face_mask().astype(np.float32), (0, 0), 14)
    lab = sharpened[..., None] * lab + (1 - sharpened[..., None]) * cv2.GaussianBlur(lab, (0, 0), 4)
    lightness = lab[..., 0]
    for sigma, amount in ((2.0, 0.9), (8.0, 0.3)):
        lightness = lightness + amount * sharpened * (lightness - cv2.GaussianBlur(lightness, (0, 0), sigma))
    # Half of the way to the full range: all of it would make every group's skin equally bright.
    darkest, brightest = np.percentile(lightness, (0.5, 99.5))
    stretched = np.interp(lightness, (darkest, brightest), (darkest / 2, (brightest + BRIGHTEST) / 2))
    rgb = cv2.cvtColor(np.dstack([stretched, lab[..., 1], lab[..., 2]]).astype(np.float32), cv2.COLOR_LAB2RGB)
    return np.clip(rgb * 255 + 0.5, 0, 255).astype(np.uint8)


# The hard ones


def make_hard_pictures(folder: Path) -> None:
    save_rotated_by_exif(folder / "portrait-black-male.jpg", folder / "hard-rotated-by-exif.jpg")
    save_transparent(folder / "portrait-white-female.jpg", folder / "hard-transparent.png")
    save_tiny(folder / "portrait-indian-female.jpg", folder / "hard-tiny.jpg")
    save_broken(folder / "portrait-southeast-asian-male.jpg", folder / "hard-broken.jpg")


def save_rotated_by_exif(source: Path, target: Path) -> None:
    """Pixels lying on their left side, with the tag by which a viewer shows them upright."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = EXIF_ROTATE_CLOCKWISE
    with Image.open(source) as picture:
        picture.transpose(Image.Transpose.ROTATE_90).save(target, exif=exif, **JPEG)


def save_transparent(source: Path, target: Path) -> None:
    """The head in a soft oval; beyond it nothing, with black under the transparency."""
    rows, columns = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    radius = np.hypot(columns / 0.82, rows / 0.97)
    alpha = np.clip((1 - radius) * 30, 0, 1)
    rgba = np.dstack([read_rgb(source), alpha * 255]).astype(np.uint8)
    rgba[rgba[..., 3] == 0] = 0
    Image.fromarray(rgba).save(target, optimize=True)


def save_tiny(source: Path, target: Path) -> None:
    with Image.open(source) as picture:
        picture.resize((TINY_SIDE, TINY_SIDE), Image.Resampling.LANCZOS).save(target, **JPEG)


def save_broken(source: Path, target: Path) -> None:
    """A download that was cut off."""
    with Image.open(source) as picture, io.BytesIO() as buffer:
        picture.save(buffer, **JPEG)
        whole = buffer.getvalue()
    target.write_bytes(whole[: int(len(whole) * BROKEN_SHARE)])


if __name__ == "__main__":
    main()
