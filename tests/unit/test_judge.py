"""The figures of a run: what they are of, and what has a say in them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from samples import noise
from torch import nn

from gender_batch.evaluation.metrics import Proportion
from gender_batch.training.dataset import Dataset
from gender_batch.training.judge import FACE_SCALES, Findings, HeldOut, judge
from gender_batch.training.loading import Squares
from gender_batch.training.network import Network
from gender_batch.training.predict import predict_logits
from gender_batch.training.recipe import Machine, Recipe
from gender_batch.training.samples import Sample

CPU = Machine(torch.device("cpu"), workers=0)


def test_figures_know_who_is_on_the_pictures_and_are_the_same_each_time(tmp_path: Path) -> None:
    """Four copies of a picture of each person: all of them are right, or none is."""
    for number in range(12):
        noise(40, 40, seed=number // 4).save(tmp_path / f"{number}.png")
    samples = tuple(
        Sample(f"{n}.png", n // 4 % 2, f"person {n // 4}", {"age": "old" if n < 4 else "young"}) for n in range(12)
    )
    data = Dataset(tmp_path, ("x", "y"), (), samples[::-1], samples, (), "")
    recipe = Recipe(image_size=32)
    held_out = HeldOut.of(data, recipe, tmp_path, "face")
    network = Network(2).eval()
    found = judge(network, held_out, data, recipe, CPU, 0.9)
    assert held_out.split == "test"
    assert [answer.name for answer in found.answers] == [sample.name for sample in samples]
    right, people = [answer.right for answer in found.answers], np.arange(12) // 4
    assert found.metrics["test"].accuracy == Proportion.of(right, people)
    assert found.threshold.coverage.effective is not None
    young = Proportion.of(right[4:], people[4:]).to_dict()
    figures = found.figures(data)
    assert figures["groups"]["age"]["young"] == young != Proportion.of(right[4:]).to_dict()
    assert {point.accuracy.total for point in found.scales} == {12}
    assert all(point.accuracy.effective for point in found.scales)
    assert judge(network, held_out, data, recipe, CPU, 0.9).figures(data) == figures


class Brightness(nn.Module):
    """Answers class 1 to what is lighter than grey, the surer the lighter it is, and keeps what it was shown."""

    classes = 2

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        self.seen.append(pictures.clone())
        level = (pictures.float().mean((1, 2, 3)) - 127.5) / 32
        return torch.stack([-level, level], 1)


def greys(folder: Path, split: str, count: int, seed: int) -> tuple[Sample, ...]:
    """Plain grey pictures, the lighter the surer of class 1; of two pictures one person each."""
    random = np.random.default_rng(seed)
    samples = []
    (folder / split).mkdir(parents=True)
    for number, level in enumerate(random.integers(0, 256, count).tolist()):
        Image.new("RGB", (16, 16), (level,) * 3).save(folder / split / f"{number}.png")
        label = int(level + random.normal(0, 60) > 127)
        samples.append(Sample(f"{split}/{number}.png", label, f"{split} {number // 2}", {"third": str(number % 3)}))
    return tuple(samples)


def judged(data: Dataset, recipe: Recipe, folder: Path, target: float = 0.9, pictures: str = "face") -> Findings:
    held_out = HeldOut.of(data, recipe, folder, pictures)
    return judge(Brightness(), held_out, data, recipe, CPU, target)  # type: ignore[arg-type]


def test_the_test_has_no_say_in_temperature_and_threshold(tmp_path: Path) -> None:
    recipe = Recipe(image_size=32)
    val, other_val = greys(tmp_path, "val", 80, 0), greys(tmp_path, "other_val", 80, 3)
    tests = greys(tmp_path, "one", 80, 1), greys(tmp_path, "two", 80, 2)
    one, two = (judged(Dataset(tmp_path, ("x", "y"), (), val, test, (), ""), recipe, tmp_path) for test in tests)
    assert (one.temperature, one.threshold) == (two.temperature, two.threshold)
    assert one.metrics["val"].to_dict() == two.metrics["val"].to_dict()
    assert one.metrics["test"].to_dict() != two.metrics["test"].to_dict()
    other = judged(Dataset(tmp_path, ("x", "y"), (), other_val, tests[0], (), ""), recipe, tmp_path)
    assert other.temperature != one.temperature
    assert other.threshold != one.threshold


def test_probabilities_are_those_at_the_temperature_and_figures_those_at_the_threshold(tmp_path: Path) -> None:
    recipe = Recipe(image_size=32)
    val, test = greys(tmp_path, "val", 80, 0), greys(tmp_path, "test", 50, 1)
    data = Dataset(tmp_path, ("x", "y"), (), val, test, (), "")
    found = judged(data, recipe, tmp_path, target=0.95)
    assert found.threshold.reached
    assert found.threshold.value > 1 / 2
    assert found.threshold.precision.value >= found.threshold.target == 0.95
    for split, samples in (("val", val), ("test", test)):
        squares = Squares([data.path(sample) for sample in samples], recipe.preprocessing, tmp_path)
        logits = predict_logits(Brightness(), squares, CPU)  # type: ignore[arg-type]
        shares = found.probabilities[split]
        assert shares.sum(1) == pytest.approx(1)
        assert np.log(shares[:, 1] / shares[:, 0]) == pytest.approx(np.diff(logits)[:, 0] / found.temperature, abs=1e-5)
        answered = shares.max(1) >= found.threshold.value
        right = shares.argmax(1) == [sample.label for sample in samples]
        assert 0 < answered.sum() < len(samples)
        assert found.metrics[split].coverage.count == answered.sum()
        assert found.metrics[split].decided_right.count == (answered & right).sum()
        assert found.metrics[split].people == len(samples) / 2
    figures = found.figures(data)
    assert figures["threshold"] == {
        "value": found.threshold.value, "target_precision": 0.95, "reached_on_validation": True,
    }  # fmt: skip
    assert (figures["val"], figures["test"]) == tuple(found.metrics[split].to_dict() for split in ("val", "test"))
    assert json.loads(json.dumps(figures)) == figures
    assert list(figures["face_scales"]) == [str(scale) for scale in FACE_SCALES]
    # Faces of the frame's whole side are what was judged already.
    assert figures["face_scales"]["1.0"] == figures["test"]["accuracy"]
    assert not replace(found, threshold=replace(found.threshold, reached=False)).figures(data)["threshold"][
        "reached_on_validation"
    ]


def test_groups_are_those_of_the_pictures_that_are_shown_by_their_labels(tmp_path: Path) -> None:
    test = greys(tmp_path, "test", 50, 1)
    data = Dataset(tmp_path, ("x", "y"), (), greys(tmp_path, "val", 80, 0), test, (), "")
    found = judged(data, Recipe(image_size=32), tmp_path)
    groups = found.figures(data)["groups"]
    answers = found.probabilities["test"].argmax(1)
    counts: dict[str, list[int]] = {}
    for sample, answer in zip(test, answers, strict=True):
        for value in (sample.attributes["third"], f"{sample.attributes['third']}, {data.labels[sample.label]}"):
            right, total = counts.get(value, (0, 0))
            counts[value] = [right + int(answer == sample.label), total + 1]
    assert len(counts) == 3 + 6
    told = {**groups["third"], **groups["third x label"]}
    assert {value: [share["count"], share["total"]] for value, share in told.items()} == counts


def test_without_a_test_the_validation_is_shown(tmp_path: Path) -> None:
    val = greys(tmp_path, "val", 24, 0)
    data = Dataset(tmp_path, ("x", "y"), (), val, (), (), "")
    held_out = HeldOut.of(data, Recipe(image_size=32), tmp_path, "face")
    assert (held_out.split, list(held_out.samples), held_out.scaled) == ("val", ["val"], val)
    found = judged(data, Recipe(image_size=32), tmp_path)
    assert [answer.name for answer in found.answers] == [sample.name for sample in val]
    assert found.figures(data)["test"] is None


def test_the_sizes_of_faces_in_whole_photos_are_not_known(tmp_path: Path) -> None:
    data = Dataset(tmp_path, ("x", "y"), (), greys(tmp_path, "val", 24, 0), (), (), "")
    assert judged(data, Recipe(image_size=32), tmp_path).scales
    found = judged(data, Recipe(image_size=32), tmp_path, pictures="photo")
    assert found.scales == ()
    assert found.figures(data)["face_scales"] == {}


def test_a_face_that_was_cut_out_is_judged_and_its_photo_shown(tmp_path: Path) -> None:
    """The photos are of one grey, which would answer nothing."""
    faces = tmp_path / "faces"
    val = greys(faces, "val", 24, 0)
    (tmp_path / "val").mkdir()
    for sample in val:
        Image.new("RGB", (64, 64), "grey").save(tmp_path / sample.name)
    boxes = {sample.name: (8 + number, 8, 16, 16) for number, sample in enumerate(val[:-1])}
    whole = Dataset(tmp_path, ("x", "y"), (), val, (), (), "", faceless=("a.png", "b.png"))
    found = judged(whole, Recipe(image_size=32), tmp_path)
    assert len({answer.probabilities for answer in found.answers}) == 1
    assert found.figures(whole)["without_face"] is None

    data = replace(whole, crops=faces, boxes=boxes)
    found = judged(data, Recipe(image_size=32), tmp_path)
    assert len({answer.probabilities for answer in found.answers}) > 10
    assert found.figures(data)["without_face"] == 2
    for answer, sample, row in zip(found.answers, val, found.probabilities["val"], strict=True):
        assert answer.path == str(tmp_path / sample.name)
        assert (answer.name, answer.truth, answer.group) == (sample.name, sample.label, sample.group)
        assert answer.attributes == sample.attributes
        assert answer.probabilities == tuple(row)
        assert answer.box == boxes.get(sample.name)
    assert found.answers[-1].box is None


@pytest.mark.parametrize(("count", "step"), [(4, 1), (8, 2), (9, 3)])
def test_faces_of_many_sizes_are_some_of_the_last_split_spread_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, step: int
) -> None:
    monkeypatch.setattr("gender_batch.training.judge.SCALED_PICTURES", 4)
    data = Dataset(
        tmp_path, ("x", "y"), (), greys(tmp_path, "val", 5, 0), greys(tmp_path, "test", count, 1), (), ""
    )  # fmt: skip
    recipe = Recipe(image_size=32)
    held_out = HeldOut.of(data, recipe, tmp_path, "face")
    assert held_out.scaled == data.test[::step]
    assert len(held_out.scaled) <= 4
    assert held_out.sources.paths == [data.path(sample) for sample in held_out.scaled]
    assert held_out.sources.preprocessing == recipe.source != recipe.preprocessing
    assert {squares.preprocessing for squares in held_out.squares.values()} == {recipe.preprocessing}


def test_faces_are_shown_smaller_and_smaller_where_the_seed_has_it(tmp_path: Path) -> None:
    """Black ones with a green bar, so thin that it is as green nowhere in their backgrounds."""
    samples = tuple(Sample(f"{number}.png", 1, f"{number}") for number in range(6))
    for sample in samples:
        face = Image.new("RGB", (200, 200))
        face.paste((0, 255, 0), (0, 120, 200, 150))
        face.save(tmp_path / sample.name)
    data = Dataset(tmp_path, ("x", "y"), (), samples, (), (), "")
    seen: list[list[torch.Tensor]] = []
    for seed in (0, 0, 1):
        recipe, network = Recipe(image_size=160, seed=seed), Brightness()
        torch.manual_seed(len(seen))  # whatever happened before does not matter
        judge(network, HeldOut.of(data, recipe, tmp_path, "face"), data, recipe, CPU, 0.9)  # type: ignore[arg-type]
        seen.append(network.seen[1:])  # after the validation
    first, again, other = seen
    for scale, pictures in zip(FACE_SCALES, first, strict=True):
        assert pictures.shape == (6, 160, 160, 3)
        green = (pictures[..., 1] > 230).float().mean((1, 2))
        assert float(green.median()) == pytest.approx(0.15 * scale**2, rel=0.25), scale  # less at blurred edges
    assert all(torch.equal(*pictures) for pictures in zip(first, again, strict=True))
    assert not any(torch.equal(*pictures) for pictures in zip(first[1:], other[1:], strict=True))
