"""evaluation/sheet.py: the pictures worth looking at, with their boxes, and nothing that a name can do to the page."""

from __future__ import annotations

import base64
import html
import io
import os
import re
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gender_batch.evaluation.gallery import boxed
from gender_batch.evaluation.sheet import MOST, Sheet
from gender_batch.pictures.read import Picture
from gender_batch.prediction import Person, Prediction, Reason, Status

LABELS = ("<b>female</b>", "male")


def certain(path: Path | str, confidence: float, **more: object) -> Prediction:
    return Prediction(str(path), Status.OK, "male", (1 - confidence, confidence), 1, 400, 300, **more)  # type: ignore[arg-type]


def test_a_page_of_each_kind(tmp_path: Path) -> None:
    names = ["sure.png", "doubtful.png", "couple.png", "nobody.png"]
    for name in names:
        Image.new("RGB", (400, 300), "navy").save(tmp_path / name)
    couple = Person("male", (0.2, 0.8), (200, 100, 50, 50))
    sheet = Sheet()
    sheet.add(certain(tmp_path / "sure.png", 0.99))
    sheet.add(certain(tmp_path / "doubtful.png", 0.6))
    sheet.add(
        Prediction(
            str(tmp_path / "couple.png"), Status.OK, "uncertain", (0.9, 0.1), 2, 400, 300, None, (50, 100, 50, 50),
            Reason.PEOPLE_DIFFER, (couple,),
        )
    )  # fmt: skip
    sheet.add(Prediction(str(tmp_path / "nobody.png"), Status.NO_FACE, faces=0, width=400, height=300))
    sheet.add(Prediction(str(tmp_path / "broken.png"), Status.CORRUPT))
    sheet.add(certain(tmp_path / "gone.png", 0.7))
    sheet.write(tmp_path / "sheet.html", LABELS, workers=1)
    page = (tmp_path / "sheet.html").read_text()
    assert stat.S_IMODE((tmp_path / "sheet.html").stat().st_mode) == 0o600
    shown = [Path(name).name for name in re.findall(r"<small><bdi>(.*?)</bdi>", page)]
    assert shown == ["doubtful.png", "gone.png", "sure.png", "couple.png", "nobody.png"]
    assert "cannot be read any more" in page
    assert "&lt;b&gt;female&lt;/b&gt;</bdi> 90.0%" in page
    assert "male</bdi> 80.0%" in page  # of the other one
    assert "broken.png" not in page
    pictures = [base64.b64decode(found) for found in re.findall(r"data:image/jpeg;base64,([^\"]+)", page)]
    assert len(pictures) == 4
    with Image.open(io.BytesIO(pictures[2])) as thumbnail:
        assert thumbnail.size == (240, 180)
        yellow = np.asarray(thumbnail.convert("RGB")).astype(int)[:, :, 0] > 150
    columns = np.flatnonzero(yellow.any(axis=0))
    assert columns.min() == pytest.approx(50 * 0.6, abs=2)
    assert columns.max() == pytest.approx(250 * 0.6, abs=2)
    assert yellow[:, :90].sum() > 1.2 * yellow[:, 90:].sum()  # the box of the one who is answered for is the thicker


def test_names_do_nothing_to_the_page(tmp_path: Path) -> None:
    nasty = ["<script>alert(1)</script>\"'&.png", os.fsdecode(b"caf\xe9\n.png"), "\u202egnp.png"]
    sheet = Sheet()
    for name in nasty:
        sheet.add(certain(name, 0.9))
    sheet.write(tmp_path / "sheet.html", LABELS, workers=1)
    page = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert "\u202e" not in page
    assert "caf\\xe9\\n.png" in html.unescape(page)


def test_it_is_bounded_and_keeps_the_least_certain_and_a_sample_of_the_others(tmp_path: Path) -> None:
    sheet = Sheet()
    for number in range(3 * MOST):
        sheet.add(certain(f"{number}.png", 0.5 + number // 2 / 1000))  # of two alike the first comes first
        sheet.add(certain(f"couple {number}.png", 0.5, reason=Reason.PEOPLE_DIFFER))
        sheet.add(Prediction(f"nobody {number}.png", Status.NO_FACE))
    sheet.write(tmp_path / "sheet.html", LABELS, workers=1, name_of=str.upper)
    page = (tmp_path / "sheet.html").read_text()
    shown = re.findall(r"<small><bdi>(.*?)</bdi>", page)
    assert shown[:MOST] == [f"{number}.PNG" for number in range(MOST)]
    assert len(set(shown)) == 3 * MOST
    for first, kind in ((MOST, "COUPLE"), (2 * MOST, "NOBODY")):
        assert set(shown[first : first + MOST]) != {f"{kind} {number}.PNG" for number in range(MOST)}
    assert f"{MOST} of {3 * MOST} are shown" in page


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((400, 300), (100, 60, 80, 120)),
        ((2000, 100), (960, 20, 40, 60)),
        ((2000, 100), (0, 20, 40, 60)),
        ((100, 2000), (20, 1940, 60, 60)),
    ],
)
def test_boxes_are_where_the_faces_are(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    """Also in a picture that was decoded at half its size, and in one so long that only a part of it is shown."""
    left, top, width, height = box
    picture = Image.new("RGB", size, "black")
    picture.paste("red", (left, top, left + width, top + height))
    half = picture.resize((size[0] // 2, size[1] // 2))
    for image in (picture, half):
        shown = np.asarray(boxed(Picture(image, *size), [box], 200)).astype(int)
        red = (shown[:, :, 0] > 150) & (shown[:, :, 1] < 90)
        frame = (shown[:, :, 0] > 150) & (shown[:, :, 1] > 150)
        for axis in (0, 1):
            inner, outer = np.flatnonzero(red.any(axis=axis)), np.flatnonzero(frame.any(axis=axis))
            assert inner.min() == pytest.approx(outer.min(), abs=4)
            assert inner.max() == pytest.approx(outer.max(), abs=4)


@pytest.mark.parametrize(("boxes", "middle"), [([], 1000), ([(600, 20, 200, 60), (1500, 20, 60, 60)], 700)])
def test_of_a_long_picture_what_is_about_the_first_face_or_the_centre_is_shown(
    boxes: list[tuple[int, int, int, int]], middle: int
) -> None:
    picture = Image.new("RGB", (2000, 100), "black")
    picture.paste("red", (middle - 100, 0, middle + 100, 100))
    shown = np.asarray(boxed(Picture(picture, *picture.size), boxes, 200))
    assert shown.shape == (50, 200, 3)
    columns = np.flatnonzero(shown[0, :, 0] > 128)
    assert (columns.min(), columns.max()) == (50, 149)
    at_the_end = boxed(Picture(picture, *picture.size), [(1900, 20, 100, 60)], 200)
    assert at_the_end.size == (200, 50)


def test_the_first_box_is_the_thicker_one() -> None:
    picture = Picture(Image.new("RGB", (200, 100), "black"), 200, 100)
    shown = np.asarray(boxed(picture, [(130, 30, 40, 40), (30, 30, 40, 40)], 200))[:, :, 0] > 150
    assert shown[:, 100:].sum() > 1.5 * shown[:, :100].sum() > 0
