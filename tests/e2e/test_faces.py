"""Faces in whole photos: `classify --faces`, `fetch-detector`, `--gallery`, and `train --faces crop` up to serving."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

import pytest
from installed import gender_batch, in_this_process, read_csv
from PIL import Image


def photo(path: Path, *pasted: Path, side: int = 400, size: tuple[int, int] = (1080, 1080)) -> None:
    """A whole photo with FairFace's pictures side by side in its middle."""
    canvas = Image.radial_gradient("L").resize(size).convert("RGB")
    left = (size[0] - side * len(pasted) - 40 * (len(pasted) - 1)) // 2
    for number, source in enumerate(pasted):
        with Image.open(source) as image:
            canvas.paste(image.resize((side, side)), (left + number * (side + 40), size[1] // 3))
    canvas.save(path, quality=92)


@pytest.fixture(scope="module")
def sure(faces: list[Path], detector: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A picture of each label that the embedded model is sure about, one that does not cut its face off where there is
    one: the box of a face that is cut off reaches beyond its picture."""
    out = tmp_path_factory.mktemp("sure") / "rows.csv"
    gender_batch("classify", *faces, "--out", out, "--faces", "always", "--detector", detector)
    best = {}
    for row in sorted(read_csv(out), key=lambda row: (shows_all_of_it(row), float(row["confidence"] or 0))):
        best[row["label"]] = Path(row["path"])
    return best["female"], best["male"]


def shows_all_of_it(row: dict[str, str]) -> bool:
    """Whether a face was found in the picture that touches none of its edges."""
    if not row["face_x"]:
        return False
    left, top, width, height = (int(row[f"face_{name}"]) for name in "xywh")
    return 0 < left < left + width < int(row["width"]) and 0 < top < top + height < int(row["height"])


def test_whole_photos(sure: tuple[Path, Path], detector: Path, tmp_path: Path) -> None:
    female, male = sure
    folder = tmp_path / "photos"
    folder.mkdir()
    photo(folder / "couple.jpg", female, male)
    photo(folder / "her.jpg", female)
    photo(folder / "him.jpg", male, side=250, size=(1080, 1350))
    photo(folder / "twice.jpg", male, male)
    photo(folder / "view.jpg")
    (folder / "broken.jpg").write_bytes((folder / "her.jpg").read_bytes()[:5000])
    arguments = ("classify", folder, "--state", tmp_path / "state", "--detector", detector, "--max-error-rate", "0.2")
    result = gender_batch(
        *arguments, "--out", tmp_path / "rows.csv", "--gallery", tmp_path / "g.html", "--summary", tmp_path / "s.json"
    )
    assert result.returncode == 0, result.stderr
    rows = {Path(row["path"]).stem: row for row in read_csv(tmp_path / "rows.csv")}
    assert {name: (row["status"], row["label"], row["faces"], row["reason"]) for name, row in rows.items()} == {
        "broken": ("corrupt", "", "", ""),
        "couple": ("ok", "uncertain", "2", "people_differ"),
        "her": ("ok", "female", "1", ""),
        "him": ("ok", "male", "1", ""),
        "twice": ("ok", "male", "2", ""),
        "view": ("no_face", "", "0", ""),
    }
    left, top, width, height = (int(rows["her"][f"face_{name}"]) for name in "xywh")
    assert 300 <= left < left + width <= 780
    assert 320 <= top < top + height <= 800
    assert width > 150
    assert rows["view"]["face_x"] == ""
    assert stat.S_IMODE((tmp_path / "g.html").stat().st_mode) == 0o600
    assert "view.jpg" in (tmp_path / "g.html").read_text()
    finding = json.loads((tmp_path / "s.json").read_text())["stages"]["finding"]
    assert finding["pictures"] == 6
    assert finding["seconds"] > 0

    # The same question again is answered by the state, another one is not.
    again = gender_batch(*arguments, "--out", tmp_path / "again.csv")
    assert b"6 were known" in again.stderr
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "rows.csv").read_bytes()
    every = gender_batch(*arguments, "--out", tmp_path / "every.csv", "--every-face", "--no-face", "whole")
    assert b"known" not in every.stderr
    rows = [(Path(row["path"]).stem, row["label"], row["faces"]) for row in read_csv(tmp_path / "every.csv")]
    assert sorted(rows[1:3]) == [("couple", "female", "2"), ("couple", "male", "2")]
    assert rows[3:7] == [("her", "female", "1"), ("him", "male", "1"), *[("twice", "male", "2")] * 2]
    assert rows[7][0] == "view"
    assert rows[7][1] != ""


def test_whole_photos_are_evaluated_as_they_are_classified(
    sure: tuple[Path, Path], detector: Path, tmp_path: Path
) -> None:
    female, male = sure
    data = tmp_path / "photos"
    for label in ("female", "male", "other"):
        (data / label).mkdir(parents=True)
    photo(data / "female" / "couple.jpg", female, male)
    photo(data / "female" / "her.jpg", female)
    photo(data / "male" / "him.jpg", male)
    photo(data / "male" / "view.jpg")
    (tmp_path / "groups.csv").write_text(
        "path,group,light\n./female/couple.jpg,a,day\nfemale/her.jpg,a,day\nmale/him.jpg,b,night\nmale/view.jpg,b,day\n"
    )
    arguments = ("evaluate", data, "--faces", "always", "--detector", detector, "--groups", tmp_path / "groups.csv")
    (tmp_path / "report").mkdir(mode=0o755)
    result = gender_batch(*arguments, "--out", tmp_path / "report")
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert (metrics["pictures"], metrics["people"], metrics["failed"], metrics["no_face"]) == (3, 2, 0, 1)
    assert metrics["coverage_at_threshold"]["count"] == 2
    assert metrics["accuracy_at_threshold"]["count"] == 2
    assert set(metrics["groups"]) == {"light", "light x label"}
    assert b"3 pictures of 2 people" in result.stdout
    assert b"no face: 1 pictures" in result.stderr
    assert b"folder(s) other are not among the model's labels" in result.stderr
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "report").iterdir()} == {0o600}
    result = gender_batch(*arguments, "--out", tmp_path / "new" / "report")
    assert stat.S_IMODE((tmp_path / "new" / "report").stat().st_mode) == 0o700

    (data / "male" / "broken.jpg").write_bytes(b"nothing")
    result = gender_batch(*arguments[:-2], "--out", tmp_path / "report")
    assert result.returncode == 3
    assert b"not scored: 1 in all" in result.stderr
    rows = read_csv(tmp_path / "report" / "answers.csv")
    assert list(rows[0])[:3] == ["truth", "path", "status"]
    assert [(row["truth"], Path(row["path"]).name, row["status"], row["label"]) for row in rows] == [
        ("female", "couple.jpg", "ok", "uncertain"),
        ("female", "her.jpg", "ok", "female"),
        ("male", "broken.jpg", "unsupported", ""),
        ("male", "him.jpg", "ok", "male"),
        ("male", "view.jpg", "no_face", ""),
    ]


def test_without_a_detector(faces: list[Path], detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("GENDER_BATCH_DETECTOR", raising=False)
    out = tmp_path / "rows.csv"
    result = gender_batch("classify", faces[0], "--out", out)
    assert result.returncode == 0
    assert result.stderr.count(b"fetch-detector") == 1
    assert read_csv(out)[0]["faces"] == ""
    assert b"fetch-detector" not in gender_batch("classify", faces[0], "--out", out, "--faces", "never").stderr
    result = gender_batch("classify", faces[0], "--out", out, "--faces", "always")
    assert result.returncode == 1
    assert b"fetch-detector" in result.stderr

    (tmp_path / "other.onnx").write_bytes(b"another file")
    monkeypatch.setenv("GENDER_BATCH_DETECTOR", str(tmp_path / "other.onnx"))
    result = gender_batch("classify", faces[0], "--out", out)
    assert result.returncode == 1
    assert b"SHA-256" in result.stderr
    assert b"Traceback" not in result.stderr  # it is told before any worker finds out
    monkeypatch.setenv("GENDER_BATCH_DETECTOR", str(detector))
    assert gender_batch("classify", faces[0], "--out", out).returncode == 0
    assert read_csv(out)[0]["faces"] == "1"


def test_training_on_faces_from_photos_to_serving(
    labelled: Path, detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setenv("GENDER_BATCH_DETECTOR", str(detector))
    for label in ("female", "male"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for path in sorted((labelled / label).iterdir())[:24]:
            photo(tmp_path / "photos" / label / path.name, path, side=200, size=(400, 500))
    photo(tmp_path / "photos" / "male" / "m9_9.jpg")
    run = tmp_path / "run"
    options = ("--group-by", "/([^/]+)_", "--image-size", "64", "--adapt-epochs", "1", "--fine-epochs", "0")
    result = in_this_process("train", tmp_path / "photos", "--out", run, *options)
    assert result.returncode == 0, result.stderr
    assert "photos that were looked at show a face: faces are cut out and learnt" in result.stderr.decode()
    assert json.loads((run / "config.json").read_text())["statistics_from"] > 49
    crops = [path for path in (run / "faces").rglob("*") if path.is_file()]
    assert run / "faces" / "male" / "m9_9.jpg" not in crops
    without = 49 - len(crops)
    assert 1 <= without <= 3
    assert f"no face was found in {without} of 49 pictures" in result.stderr.decode()
    assert f"no face was found in {without} of 49 pictures" in (run / "report.html").read_text()
    assert json.loads((run / "metrics.json").read_text())["without_face"] == without
    assert "0.25" in json.loads((run / "metrics.json").read_text())["face_scales"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in crops} == {0o600}
    assert re.search(rb"test accuracy  .* of \d+ pictures of \d+ people\n", result.stdout)
    log = (run / "train.log").read_text()
    assert "photos that were looked at" in log
    again = in_this_process("train", tmp_path / "photos", "--out", run, *options)
    assert (again.returncode, (run / "train.log").read_text()) == (2, log)
    assert b"holds a finished run" in again.stderr

    run = run.rename(tmp_path / "moved")
    result = in_this_process("export", run)
    assert result.returncode == 0, result.stderr
    # The model says that it is one of faces: auto finds them. The held-out photos get the answers of training.
    rows = tmp_path / "rows.csv"
    result = gender_batch("classify", tmp_path / "photos", "--model", run / "model.onnx", "--out", rows)
    assert result.returncode == 0, result.stderr
    served = {Path(row["path"]).relative_to(tmp_path / "photos"): row for row in read_csv(rows)}
    assert served.pop(Path("male/m9_9.jpg"))["status"] == "no_face"
    held_out = read_csv(run / "heldout.csv")
    assert len(held_out) > 4
    for row in held_out:
        assert float(served[Path(row["path"])]["p_female"]) == pytest.approx(float(row["p_female"]), abs=0.02)
