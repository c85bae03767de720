"""faces/: what YuNet finds is what OpenCV finds with it; whom a picture shows; and how a face is cut out."""

from __future__ import annotations

import io
import math
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from samples import ORIENTATION, encoded

from gender_batch.faces import detect
from gender_batch.faces.choose import COMPARABLE, by_weight, comparable, weight
from gender_batch.faces.crop import TEMPLATE, cut, frame
from gender_batch.faces.detect import ENOUGH, Detector, Face, letterboxed, shrunk, suppress
from gender_batch.faces.look import FaceSearch, Looker
from gender_batch.pictures.preprocessing import FaceCrop, Preprocessing
from gender_batch.prediction import Status
from gender_batch.scoring.worker import Read

SPEC = FaceCrop()
PREPROCESSING = Preprocessing(size=160, resize=171)


def face(left: float, top: float, width: float, height: float) -> Face:
    return Face(left, top, width, height, np.array((left, top)) + TEMPLATE * (width, height), 0.9)


def group(paths: list[Path], side: int = 300) -> Image.Image:
    """Photos side by side on grey."""
    sheet = Image.new("RGB", (side * len(paths) + 100 * (len(paths) + 1), side + 200), "grey")
    for number, path in enumerate(paths):
        with Image.open(path) as image:
            sheet.paste(image.resize((side, side)), (100 + number * (side + 100), 100))
    return sheet


def looker(detector: Path, every: bool = False) -> Looker:
    return Looker(FaceSearch(detector, every=every), PREPROCESSING)


def direction(degrees: float) -> complex:
    return complex(math.cos(math.radians(degrees)), math.sin(math.radians(degrees)))


# --- detect ---


@pytest.mark.parametrize("side", [160, 320, 640])
def test_boxes_landmarks_and_scores_are_those_of_opencv(detector: Path, faces: list[Path], side: int) -> None:
    cv2 = pytest.importorskip("cv2")
    ours = Detector(detector)
    compared = 0
    for image in [*map(Image.open, faces[::8]), group(faces[:3]), group(faces[28:33], 100)]:
        scale = side / max(image.size)
        pixels = letterboxed(image.convert("RGB").resize((round(image.width * scale), round(image.height * scale))))
        height, width, _ = pixels.shape
        theirs = cv2.FaceDetectorYN.create(str(detector), "", (width, height), 0.5, 0.3, 5000)
        _, expected = theirs.detect(np.ascontiguousarray(pixels[:, :, ::-1]))
        found = suppress(ours.candidates(pixels, 0.5))
        assert len(found) == (0 if expected is None else len(expected))
        if len(found):
            assert found[:, :14] == pytest.approx(expected[:, :14], abs=1)
            assert found[:, 14] == pytest.approx(expected[:, 14], abs=1e-3)
            compared += len(found)
    assert compared >= 8


@given(st.lists(st.tuples(*[st.integers(0, 60)] * 2, *[st.integers(1, 40)] * 2, st.floats(0, 1)), max_size=12))
def test_what_overlaps_a_better_face_goes(candidates: list[tuple[float, ...]]) -> None:
    rows = np.zeros((len(candidates), 15), np.float32)
    for row, (left, top, width, height, score) in zip(rows, candidates, strict=True):
        row[:4], row[14] = (left, top, width, height), score

    def box(row: np.ndarray) -> Face:
        return Face(*map(float, row[:4]), np.zeros((5, 2)), float(row[14]))

    kept = [box(row) for row in suppress(rows)]
    assert sorted((one.score for one in kept), reverse=True) == [one.score for one in kept]
    for number, one in enumerate(kept):
        assert all(one.overlap(other) <= 0.3 + 1e-6 for other in kept[:number])
    for one in map(box, rows):
        assert any(one.overlap(other) > 0.3 - 1e-6 and other.score >= one.score for other in kept)


@given(width=st.integers(1, 3000), height=st.integers(1, 3000), side=st.sampled_from([160, 256, 320, 640]))
def test_what_is_searched_is_the_whole_picture_at_about_the_side_that_was_asked_for(
    width: int, height: int, side: int
) -> None:
    picture = Image.linear_gradient("L").resize((width, height))
    small = shrunk(picture, side)
    assert ENOUGH * side <= max(small.size) <= side
    scale = max(small.size) / max(width, height)
    assert small.size == pytest.approx((width * scale, height * scale), abs=1)
    # Dark above, bright below, nothing cut off: rows lie where they did.
    if min(height, small.height) > 40:
        column = np.asarray(small)[:, 0].astype(float)
        assert column == pytest.approx(255 * (np.arange(small.height) + 0.5) / small.height, abs=8)


def test_what_is_seen_closer_is_a_square_around_the_face() -> None:
    class Watched(Detector):
        def __init__(self) -> None:
            self.looked_at: list[Image.Image] = []

        def search(self, image: Image.Image, *_: object) -> list[Face]:
            self.looked_at.append(image)
            return [face(30, 0, 20, 40), face(10, 10, 20, 40)]

    detector = Watched()
    picture = Image.new("RGB", (400, 300))
    picture.putpixel((110 - 20, 120 - 10), (255, 0, 0))
    same = detector.closer(picture, face(110, 120, 20, 40))
    assert same is not None
    assert same.box(400, 300) == (100, 120, 20, 40)  # of what is found there, what overlaps it most
    assert detector.looked_at[0].getpixel((0, 0)) == (255, 0, 0)
    assert detector.closer(picture, face(110, 120, 60, 60)) is None  # nothing there overlaps it enough
    detector.closer(picture, face(110, 120, 40, 20))
    detector.closer(picture, face(110, 120, 0.1, 0.1))
    assert [image.size for image in detector.looked_at] == [(60, 60), (90, 90), (60, 60), (1, 1)]


def test_a_face_that_fills_an_enormous_picture_is_seen_closer_in_a_reduced_one() -> None:
    """Pillow refuses to cut out more than 179 million pixels, as 1.5 times such a face has."""

    class Watched(Detector):
        def __init__(self) -> None:
            self.sizes: list[tuple[int, int]] = []

        def search(self, image: Image.Image, *_: object) -> list[Face]:
            self.sizes.append(image.size)
            return [face(700, 700, 2300, 2300)]

    detector = Watched()
    same = detector.closer(Image.new("RGB", (9000, 9000)), face(10, 10, 9000, 9000))
    assert same is not None
    assert detector.sizes == [(3375, 3375)]
    assert same.box(9000, 9000) == (560, 560, 8440, 8440)


def test_one_face_is_found_once_and_of_a_crowd_the_largest_ones(
    detector: Path, faces: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Twice(Detector):
        def search(self, image: Image.Image, side: int, least: float) -> list[Face]:
            found = super().search(image, side, least)
            return [*found, *(one.moved(1, 1) for one in found)]

    photo = group(faces[28:32])
    assert len(Twice(detector).faces(photo, 640)) == len(Detector(detector).faces(photo, 640)) == 4
    monkeypatch.setattr(detect, "MOST", 3)
    assert len(Detector(detector).faces(photo, 640)) == 3

    class Crowd(Detector):
        def search(self, *_: object) -> list[Face]:
            return [face(0, 0, 10, 10), face(50, 0, 90, 90), face(150, 0, 20, 20), face(200, 0, 15, 15)]

        def closer(self, _: Image.Image, face: Face) -> Face:
            return face

    assert [found.width for found in Crowd(detector).faces(photo, 640)] == [90, 20, 15]


def test_a_box_lies_within_the_picture() -> None:
    assert face(-5.4, 90, 20, 20).box(100, 100) == (0, 90, 15, 10)
    assert face(10.4, 10.6, 20, 20).box(100, 100) == (10, 11, 20, 20)


# --- choose ---


def test_the_main_face_is_the_largest_weighed_by_nearness_to_the_centre() -> None:
    central, corner, larger = face(450, 450, 100, 100), face(0, 0, 130, 130), face(0, 0, 150, 150)
    assert by_weight([corner, central], 1000, 1000) == [central, corner]
    assert by_weight([central, larger], 1000, 1000) == [larger, central]
    assert weight(central, 1000, 1000) == 10_000
    assert weight(face(950, 350, 100, 100), 1000, 800) == pytest.approx(10_000 * (1 - 500 / math.hypot(1000, 800)))
    assert weight(face(2000, 2000, 100, 100), 1000, 800) == 5000  # beyond a corner


def test_people_of_comparable_size() -> None:
    side = 100 * math.sqrt(COMPARABLE)
    main, near, far = face(0, 0, 100, 100), face(0, 0, side + 0.1, side + 0.1), face(0, 0, side - 0.1, side - 0.1)
    assert comparable([main, near, far]) == [main, near]
    assert len(comparable([face(0, 0, 10, 10), face(0, 0, 10, 5)])) == 2  # exactly half as large
    assert comparable([]) == []
    assert len(comparable([main] * 30)) == 8


# --- crop ---


def placed(spec: FaceCrop, left: float, top: float, side: float, degrees: float) -> Face:
    """A face whose chip, with the margin of `spec`, is the given square, turned clockwise about its corner."""
    turn = side / (1 + 2 * spec.margin) * direction(degrees)
    points = complex(left, top) + turn * ((TEMPLATE + spec.margin) @ np.array([1, 1j]))
    centre = complex(left, top) + turn * (complex(0.5, 0.5 - 0.087) + spec.margin * (1 + 1j))
    box = abs(turn) / 0.743
    landmarks = np.stack([points.real, points.imag], axis=1)
    return Face(centre.real - box / 2, centre.imag - box / 2, box, box, landmarks, 0.9)


@given(
    margin=st.floats(0, 1),
    left=st.floats(-100, 1000),
    top=st.floats(-100, 1000),
    side=st.floats(10, 1000),
    degrees=st.floats(-180, 180),
)
def test_the_square_is_the_one_in_which_the_face_lies_as_in_the_template(
    margin: float, left: float, top: float, side: float, degrees: float
) -> None:
    spec = FaceCrop(margin)
    found = frame(placed(spec, left, top, side, degrees), spec)
    assert (found.left, found.top, found.side) == pytest.approx((left, top, side), abs=0.01)
    assert complex(found.across, found.down) == pytest.approx(side * direction(degrees), abs=0.01)


@pytest.mark.parametrize("degrees", [0, 25, -90])
def test_the_square_is_cut_out_upright(degrees: float) -> None:
    y, x = np.mgrid[0:400, 0:400]
    coordinates = Image.fromarray(np.stack([x / 2, y / 2, 0 * x], axis=2).astype(np.uint8))
    found = placed(SPEC, 200, 200, 100, degrees)
    square = np.asarray(cut(coordinates, found, SPEC, needed=100)).astype(float)
    size = len(square)
    assert 100 <= size <= 101
    for column, row in ((10, 10), (80, 30), (50, 90)):
        place = complex(200, 200) + 100 / size * direction(degrees) * complex(column + 0.5, row + 0.5)
        assert square[row, column, :2] * 2 == pytest.approx((place.real, place.imag), abs=2.5)


def test_what_is_beyond_the_picture_is_black_and_large_faces_are_reduced() -> None:
    white = Image.new("RGB", (1000, 1000), "white")
    square = np.asarray(cut(white, placed(SPEC, -500, 0, 1000, 0), SPEC, needed=100))
    assert 100 <= len(square) <= 101
    assert square[50, :47].max() == 0
    assert square[50, 53:].min() == 255


@pytest.mark.parametrize(("side", "kept"), [(0.2, 1), (60, 60), (99.5, 100), (100.5, 100), (199, 100), (900, 100)])
@pytest.mark.parametrize("degrees", [0, 30])
def test_a_square_has_the_pixels_that_are_needed_if_the_picture_has(side: float, kept: int, degrees: float) -> None:
    square = cut(Image.new("RGB", (400, 300)), placed(SPEC, 10, 20, side, degrees), SPEC, needed=100)
    assert square.size == (kept, kept)


@given(
    left=st.floats(-300, 700),
    top=st.floats(-300, 700),
    side=st.floats(1, 900),
    degrees=st.floats(-180, 180),
)
def test_a_square_anywhere_is_cut_out(left: float, top: float, side: float, degrees: float) -> None:
    found = frame(placed(SPEC, left, top, side, degrees), SPEC)
    x0, y0, x1, y1 = found.around(400, 300)
    assert 0 <= x0 < x1 <= 400
    assert 0 <= y0 < y1 <= 300
    cut(Image.new("RGB", (400, 300)), placed(SPEC, left, top, side, degrees), SPEC, needed=50)


@pytest.mark.parametrize("degrees", [0, 25, -90, 180])
def test_a_large_square_is_shrunk_to_where_it_is(degrees: float) -> None:
    y, x = np.mgrid[0:900, 0:900]
    coordinates = Image.fromarray(np.rint(np.stack([x / 4, y / 4, 0 * x], axis=2)).astype(np.uint8))
    square = np.asarray(cut(coordinates, placed(SPEC, 430, 440, 300, degrees), SPEC, needed=100)).astype(float)
    for column, row in ((10, 10), (80, 30), (50, 90)):
        place = complex(430, 440) + 3 * direction(degrees) * complex(column + 0.5, row + 0.5)
        assert square[row, column, :2] * 4 == pytest.approx((place.real, place.imag), abs=5)


# --- look ---


@pytest.mark.parametrize(("side", "degrees"), [(224, 0), (500, 20), (500, -20)])
def test_the_square_is_what_was_pasted_into_the_photo(
    detector: Path, faces: list[Path], side: int, degrees: float
) -> None:
    """As large, in the same place and as tilted: FairFace's pictures are such squares."""
    look = looker(detector).look
    errors = []
    for path in faces[30:45]:
        with Image.open(path) as image:
            turned = image.convert("RGB").resize((side, side)).rotate(-degrees, expand=True, fillcolor="grey")
        photo = Image.new("RGB", (1080, 1350), "grey")
        photo.paste(turned, (300, 200))
        seen = look(encoded(photo, "JPEG", quality=95))
        assert (seen.width, seen.height) == (1080, 1350)
        found = frame(seen.faces[0], SPEC)
        across = complex(found.across, found.down)
        centre = complex(found.left, found.top) + across * complex(0.5, 0.5)
        place = complex(300 + turned.width / 2, 200 + turned.height / 2)
        tilt = math.degrees(math.atan2(found.down, found.across)) - degrees
        errors.append((found.side / side - 1, (centre - place).real / side, (centre - place).imag / side, tilt))
    assert (np.abs(np.median(errors, axis=0)) <= (0.1, 0.05, 0.05, 8)).all(), np.median(errors, axis=0)


def test_small_faces_are_cut_from_the_pixels_that_are_there(detector: Path, faces: list[Path]) -> None:
    with Image.open(faces[31]) as image:
        photo = Image.new("RGB", (1600, 2000), "grey")
        photo.paste(image.resize((300, 300)), (600, 500))
    seen = looker(detector).look(encoded(photo, "JPEG", quality=95))
    assert seen.squares[0].width >= PREPROCESSING.resize


def test_small_faces_are_searched_for_in_as_many_pixels_as_it_takes(detector: Path) -> None:
    searched = []

    class Nobody:
        def faces(self, image: Image.Image, side: int) -> list[Face]:
            searched.append((side, *image.size))
            return []

    look = looker(detector)
    look._detector = Nobody()  # type: ignore[assignment]
    look.look(encoded(Image.new("RGB", (1600, 1600)), "JPEG"))
    assert searched == [(320, 400, 400), (640, 800, 800), (160, 800, 800)]  # a quarter, and then the half


def test_faces_that_fill_the_picture_and_pictures_of_nobody(detector: Path, faces: list[Path]) -> None:
    look = looker(detector).look
    assert sum(look(path.read_bytes()).count >= 1 for path in faces) >= 58
    noise = np.random.default_rng(0).integers(0, 256, (700, 500, 3), dtype=np.uint8)
    for nobody in (Image.new("RGB", (640, 480), "white"), Image.fromarray(noise), Image.linear_gradient("L")):
        seen = look(encoded(nobody, "PNG"))
        assert (seen.count, seen.faces, seen.squares) == (0, (), ())


def test_every_face_or_only_those_as_large_as_the_main_one(detector: Path, faces: list[Path]) -> None:
    photo = group(faces[28:32])
    with Image.open(faces[0]) as image:
        photo.paste(image.resize((150, 150)), (0, 350))
    data = encoded(photo, "PNG")
    seen, every = looker(detector).look(data), looker(detector, every=True).look(data)
    assert (seen.count, len(seen.squares)) == (5, 4)
    assert len(every.squares) == len(every.faces) == 5


def test_what_a_worker_says_of_a_photo(detector: Path, faces: list[Path]) -> None:
    photo = group(faces[28:32])
    with Image.open(faces[0]) as image:
        photo.paste(image.resize((150, 150)), (0, 350))
    step = Read(PREPROCESSING, FaceSearch(detector))()
    began = time.perf_counter()
    outcome = step("photo", lambda: encoded(photo, "PNG"))
    elapsed = time.perf_counter() - began
    assert (outcome.status, outcome.width, outcome.height) == (Status.OK, *photo.size)
    assert (outcome.faces, len(outcome.boxes)) == (5, 4)
    seen = looker(detector).look(encoded(photo, "PNG"))
    assert outcome.boxes == tuple(face.box(*photo.size) for face in seen.faces)
    assert outcome.result is not None
    assert outcome.result.shape == (4, 160, 160, 3)
    assert min(outcome.reading, outcome.decoding, outcome.finding) > 0
    assert outcome.reading + outcome.decoding + outcome.finding <= elapsed  # no second is told twice
    nobody = step("nobody", lambda: encoded(Image.new("RGB", (64, 48)), "PNG"))
    assert nobody[:5] == (Status.NO_FACE, None, 64, 48, "no face was found in it")
    assert (nobody.faces, nobody.boxes) == (0, ())


def test_orientation_is_undone_first(detector: Path, faces: list[Path]) -> None:
    with Image.open(faces[31]) as image:
        upright = image.convert("RGB")
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    file = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=exif)
    turned, straight = (looker(detector).look(data) for data in (file.getvalue(), encoded(upright, "PNG")))
    assert turned.faces[0].box(224, 224) == straight.faces[0].box(224, 224)
    assert np.array_equal(turned.squares[0], straight.squares[0])
