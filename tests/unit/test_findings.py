"""training/findings.py: the files that a run leaves to look at say what was found, of the pictures it was found on."""

from __future__ import annotations

import base64
import csv
import html
import json
import os
import re
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samples import noise

torch = pytest.importorskip("torch")

from gender_batch.evaluation.gallery import Answer, draw_gallery
from gender_batch.evaluation.metrics import Proportion, Threshold, measure
from gender_batch.evaluation.plots import plot_confusion, plot_curves
from gender_batch.evaluation.report import ScalePoint
from gender_batch.training.dataset import Dataset
from gender_batch.training.findings import write_findings
from gender_batch.training.judge import Findings, HeldOut
from gender_batch.training.loading import Squares
from gender_batch.training.recipe import Machine, Recipe
from gender_batch.training.samples import Sample
from gender_batch.training.state import Epoch

LABELS = ("cat", "dog")
RECIPE = Recipe(image_size=48, batch_size=7)
HISTORY = (
    Epoch("adaptation", 1, 0.71, 0.52, 0.69, 0.55, 12.5, 81.0, 0.25),
    Epoch("fine-tuning", 1, 0.41, 0.82, 0.39, 0.85, 25.0, 40.5, 0.0),
)
VAL = (
    Sample("v/0.png", 0, "anna", {"age": "old"}),
    Sample("v/1.png", 1, "bert", {"age": "young"}),
    Sample("v/2.png", 1, "v/2.png", {}),
)
TEST = (
    Sample("t/0.png", 0, "cleo", {"size": "large", "age": "young"}),
    Sample('t/1, "the other".png', 1, "cleo", {"size": "small"}),
    Sample(os.fsdecode(b"t/\xff\n2.png"), 1, "dora", {"age": "old"}),
    Sample("t/3.png", 0, "t/3.png", {}),
)
DATA = Dataset(Path("/pets"), LABELS, VAL[:1] * 9, VAL, TEST, (), "0123456789abcdef" * 4, notes=("two were alike",))


@dataclass(frozen=True)
class Left:
    """What was found of the held-out pictures, and the `folder` that it was written into."""

    folder: Path
    data: Dataset
    split: str
    findings: Findings


def leave(folder: Path, data: Dataset) -> Left:
    """Into a folder `run`, in which one is meanwhile."""
    samples = {split: found for split, found in (("val", data.val), ("test", data.test)) if found}
    random = np.random.default_rng(0)
    probabilities, metrics = {}, {}
    for split, found in samples.items():
        cat = random.uniform(0.05, 0.95, len(found))
        probabilities[split] = np.stack([cat, 1 - cat], axis=1)
        truth = [sample.label for sample in found]
        metrics[split] = measure(probabilities[split], truth, LABELS, 0.7, [sample.group for sample in found])
    held_out = HeldOut(samples, {}, (), Squares([], RECIPE.preprocessing, folder))
    answers = []
    for number, (sample, row) in enumerate(zip(samples[held_out.split], probabilities[held_out.split], strict=True)):
        path = str(folder / f"{number}.png")
        noise(64, 64, number).save(path)
        answers.append(Answer(path, sample.name, sample.label, tuple(map(float, row)), sample.group, sample.attributes))
    findings = Findings(
        temperature=1.23456,
        threshold=Threshold(0.7, 0.875, True, Proportion(2, 3), Proportion(2, 2)),
        probabilities=probabilities,
        metrics=metrics,
        scales=(ScalePoint(1.0, Proportion(3, 4)), ScalePoint(0.5, Proportion(2, 4))),
        answers=tuple(answers),
    )
    (folder / "run").mkdir()
    machine = Machine(torch.device("cpu"), workers=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "run")
        write_findings(Path(), data, held_out, findings, findings.figures(data), HISTORY, RECIPE, machine)
    return Left(folder / "run", data, held_out.split, findings)


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> Left:
    return leave(tmp_path_factory.mktemp("tested"), DATA)


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory) -> Left:
    """Of data without a test."""
    return leave(tmp_path_factory.mktemp("validated"), replace(DATA, test=()))


@pytest.fixture(params=["tested", "validated"])
def either(request: pytest.FixtureRequest) -> Left:
    left: Left = request.getfixturevalue(request.param)
    return left


def test_there_is_a_row_for_each_held_out_picture_with_what_is_known_of_it(tested: Left) -> None:
    with (tested.folder / "heldout.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        header, *rows = csv.reader(file)
    assert header == ["split", "path", "group", "label", "age", "size", "p_cat", "p_dog"]
    known = [
        ("old", ""), ("young", ""), ("", ""),
        ("young", "large"), ("", "small"), ("old", ""), ("", ""),
    ]  # fmt: skip
    samples = [*(("val", sample) for sample in VAL), *(("test", sample) for sample in TEST)]
    assert [row[:-2] for row in rows] == [
        [split, sample.name, sample.group, LABELS[sample.label], *values]
        for (split, sample), values in zip(samples, known, strict=True)
    ]
    assert b"t/\xff\n2.png" in (tested.folder / "heldout.csv").read_bytes()
    shares = np.array([row[-2:] for row in rows], dtype=np.float64)
    found = np.concatenate([tested.findings.probabilities["val"], tested.findings.probabilities["test"]])
    assert np.abs(shares - found).max() <= 5.1e-7  # of six decimals
    assert all(len(share) <= len("0.123456") for row in rows for share in row[-2:])


def test_the_figures_are_written_as_they_are_and_for_people_to_read(tested: Left) -> None:
    text = (tested.folder / "metrics.json").read_text()
    assert json.loads(text) == json.loads(json.dumps(tested.findings.figures(DATA)))
    assert text.startswith('{\n  "test": {\n    "pictures": 4,')
    assert text.endswith("\n}\n")


def test_the_history_has_a_line_for_each_epoch(tested: Left) -> None:
    with (tested.folder / "history.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert lines == [{name: str(value) for name, value in asdict(epoch).items()} for epoch in HISTORY]


def test_the_pictures_show_the_history_and_the_split_that_is_shown(either: Left, tmp_path: Path) -> None:
    plot_curves(HISTORY, tmp_path / "curves.png")
    plot_confusion(either.findings.metrics[either.split].confusion, LABELS, tmp_path / "confusion.png")
    draw_gallery(either.findings.answers, RECIPE.preprocessing, tmp_path / "gallery.png", LABELS)
    for path in tmp_path.iterdir():
        assert (either.folder / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_report_tells_of_what_and_how_it_was_made(either: Left) -> None:
    page = html.unescape((either.folder / "report.html").read_text())
    facts = {
        "data": "/pets (SHA-256 0123456789abcdef...)",
        "pictures": f"9 to train on, 3 to validate, {len(either.data.test)} to test",
        "network": "MobileNetV2, 48 pixels",
        "recipe": json.dumps(asdict(RECIPE)),
        "machine": f"cpu, torch {torch.__version__}",
        "temperature": "1.2346",
    }
    for name, value in facts.items():
        assert f'<th scope="row">{name}</th><td>{value}</td>' in page
    assert "<h1>cat or dog: run</h1>" in page
    split = {"test": "test", "val": "validation"}[either.split]
    assert f"Measured on {len(either.findings.answers)} pictures of the {split} split" in page
    assert "<li>two were alike</li>" in page
    assert "Below a confidence of 0.7 the answer is" in page
    assert "threshold at which 87.5% of the answers on validation are right" in page
    for section in ("Learning curves", "Accuracy against face scale"):
        assert f"<h2>{section}</h2>" in page


def test_the_report_shows_what_the_network_sees(tested: Left) -> None:
    """In the smaller squares of the validation, not in those that augmentation draws from."""
    page = (tested.folder / "report.html").read_text()
    shown = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    sizes = {Image.open(BytesIO(base64.b64decode(picture))).size for picture in shown}
    assert sizes == {(RECIPE.image_size, RECIPE.image_size)}
