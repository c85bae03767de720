"""The benchmark runs to its end and prints its table; its figures are no matter of a test."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from installed import REPOSITORY
from PIL import Image

from benchmarks import photos
from benchmarks.photos import kinds, make_set, portrait
from gender_batch.faces.look import FaceSearch, Looker
from gender_batch.model.session import DEFAULT_FOLDER
from gender_batch.pictures.preprocessing import Preprocessing


def test_a_quick_run_prints_the_tables_with_all_of_their_columns(detector: Path) -> None:
    wanted = ("JPEG 400 progressive", "baseline, portraits")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--no-peers", *(f"--only={name}" for name in wanted)],
        env={**os.environ, "GENDER_BATCH_DETECTOR": str(detector)},
        cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line.strip("|").split("|") for line in done.stdout.splitlines() if line.startswith("| JPEG")]
    cells, portraits = ([cell.strip() for cell in row] for row in rows)
    assert cells[0] == "JPEG 400 progressive"
    assert all(re.fullmatch(r"[\d,]+", cell) for cell in cells[1:6])
    assert portraits[0] == "JPEG 1080 baseline, portraits"
    assert all(re.fullmatch(r"[\d,]+", portraits[column]) for column in (1, 2, 5))
    assert re.search(r"first row: \d+\.\d\d s", done.stdout)
    assert re.search(r"together: \d+ MB", done.stdout)


def test_a_portrait_shows_a_face(test_faces: Path, detector: Path) -> None:
    looker = Looker(FaceSearch(detector), Preprocessing(size=200, resize=200))
    for seed in range(5):
        file = io.BytesIO()
        portrait((1080, 1080), test_faces, seed).save(file, "JPEG")
        assert looker.look(file.getvalue()).count == 1


@pytest.mark.parametrize("kind", [kind for kind in kinds() if max(kind.size) <= 1080], ids=lambda kind: kind.name)
def test_sets_are_what_their_names_say(kind: photos.Kind, tmp_path: Path) -> None:
    make_set(kind, tmp_path, None, 1, [3])
    assert len(list((tmp_path / "3").iterdir())) == 3
    with Image.open(next((tmp_path / "3").iterdir())) as image:
        assert (image.format, image.size) == (kind.format, kind.size)
        assert ("progressive" in image.info) == ("progressive" in kind.name)


def test_a_peer_gives_one_label_per_picture(tmp_path: Path) -> None:
    make_set(kinds()[0], tmp_path, None, 1, [3])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers", "Pillow + ONNX Runtime, fp32 loop", tmp_path / "3",
         DEFAULT_FOLDER / "apparent-gender.onnx"],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    assert [label in (0, 1) for label in json.loads(done.stdout)] == [True] * 3
