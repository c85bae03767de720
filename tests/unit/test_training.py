"""A run as a whole: its folder and what is asked for, who is told apart, and whether faces are cut out."""

from __future__ import annotations

import shutil
import stat
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from samples import dark_and_light, noise
from watching import Interrupting, Refusing, Told

from gender_batch.cli.train import _tell_folds
from gender_batch.evaluation.gallery import Answer
from gender_batch.evaluation.metrics import Proportion, Threshold, measure
from gender_batch.outputs.publish import LockedError
from gender_batch.pictures.preprocessing import FaceCrop
from gender_batch.pictures.read import PictureError, decode_picture
from gender_batch.training import loading, run
from gender_batch.training.dataset import Dataset
from gender_batch.training.network import Network
from gender_batch.training.order import IMAGE_SIZES, Order, suited
from gender_batch.training.recipe import Machine, Recipe
from gender_batch.training.samples import DatasetError, Sample
from gender_batch.training.state import DamagedStateError

CPU = Machine(torch.device("cpu"), workers=0)


def order(tmp_path: Path, **recipe: int) -> Order:
    torch.save(Network(1).backbone.state_dict(), tmp_path / "weights.pth")
    wanted = Recipe(**{"image_size": 64, **recipe})
    return Order(data=tmp_path / "data", recipe=wanted, init=str(tmp_path / "weights.pth"))


def test_an_unfinished_run_is_neither_overwritten_nor_resumed_as_another(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(run.RunError, match="no run to resume"):
        run.train(order(tmp_path), folder, CPU, Told(), resume=True)
    for _again in range(2):  # the data is missing: nothing is lost by starting over
        with pytest.raises(DatasetError, match="no such folder"):
            run.train(order(tmp_path), folder, CPU, Told())
    (folder / run.STATE).touch()
    with pytest.raises(run.RunError, match="--resume"):
        run.train(order(tmp_path), folder, CPU, Told())
    with pytest.raises(run.RunError, match="another seed"):
        run.train(order(tmp_path, seed=1), folder, CPU, Told(), resume=True)
    (folder / run.CHECKPOINT).touch()  # the report of it is still to be written
    with pytest.raises(run.RunError, match="unfinished run"):
        run.train(order(tmp_path), folder, CPU, Told())
    (folder / run.STATE).unlink()
    with pytest.raises(run.RunError, match="finished run"):
        run.train(order(tmp_path), folder, CPU, Told())


@pytest.fixture
def begun(tmp_path: Path) -> Order:
    """60 little pictures of two classes, to be trained on in two epochs."""
    dark_and_light(tmp_path / "data", 30, 32)
    return order(tmp_path, image_size=32, adapt_epochs=0, fine_epochs=2)


@pytest.fixture
def interrupted(begun: Order, tmp_path: Path) -> Path:
    """A run as ordered that has ended after its first epoch."""
    with pytest.raises(KeyboardInterrupt):
        run.train(begun, tmp_path / "run", CPU, Interrupting(1))
    return tmp_path / "run"


def test_a_run_is_not_resumed_on_other_data_since_it_might_be_tested_on_what_it_has_learnt(
    begun: Order, interrupted: Path
) -> None:
    gone = begun.data / "dark" / "7.png"
    content = gone.read_bytes()
    gone.unlink()
    with pytest.raises(run.RunError, match="begun with other data or splits"):
        run.train(begun, interrupted, CPU, Told(), resume=True)
    gone.write_bytes(content)
    assert run.train(begun, interrupted, CPU, Told(), resume=True).test


def test_folds_are_not_resumed_as_others(begun: Order, tmp_path: Path) -> None:
    folder = tmp_path / "folds"
    with pytest.raises(run.RunError, match="no run to resume"):
        run.cross_validate(begun, 3, folder, CPU, Told(), resume=True)
    with pytest.raises(KeyboardInterrupt):
        run.cross_validate(begun, 3, folder, CPU, Interrupting(3))
    for resume, wanted, told in ((False, begun, "unfinished"), (True, replace(begun, balance="age"), "balance")):
        with pytest.raises(run.RunError, match=told):
            run.cross_validate(wanted, 3, folder, CPU, Refusing(), resume)
    with pytest.raises(run.RunError, match="begun with other data or splits"):
        run.cross_validate(begun, 2, folder, CPU, Told(), resume=True)
    assert len(run.cross_validate(begun, 3, folder, CPU, Told(), resume=True).results) == 3
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700  # names of pictures may be those of people
    (folder / "fold-3" / run.STATE).touch()  # as a run leaves it that is killed in its last moment
    with pytest.raises(run.RunError, match="finished cross-validation"):
        run.cross_validate(begun, 3, folder, CPU, Refusing(), resume=True)
    assert not list(folder.glob(f"*/{run.STATE}"))


def damaged(content: bytes, how: str) -> bytes:
    middle = len(content) // 2
    if how == "one byte":
        return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    return {"empty": b"", "cut": content[:middle], "other": b"[]"}[how]


@pytest.mark.parametrize("how", ["empty", "cut", "other", "one byte"])
def test_a_run_does_not_go_on_from_a_damaged_state(begun: Order, interrupted: Path, how: str) -> None:
    state = interrupted / run.STATE
    state.write_bytes(damaged(state.read_bytes(), how))
    with pytest.raises(DamagedStateError, match=r"state\.pt: damaged \(.* start again"):
        run.train(begun, interrupted, CPU, Told(), resume=True)


@pytest.mark.parametrize("how", ["empty", "cut", "other"])
def test_a_run_does_not_go_on_with_a_damaged_config(begun: Order, interrupted: Path, how: str) -> None:
    config = interrupted / run.CONFIG
    config.write_bytes(damaged(config.read_bytes(), how))
    told = "was begun with another data" if how == "other" else r"config\.json: damaged"  # no object, but JSON
    with pytest.raises(run.RunError, match=told):
        run.train(begun, interrupted, CPU, Refusing(), resume=True)


def test_a_report_of_evaluate_is_not_overwritten(begun: Order, tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "metrics.json").write_text("{}")
    with pytest.raises(run.RunError, match="report of `evaluate`"):
        run.train(begun, tmp_path / "report", CPU, Refusing())
    assert (tmp_path / "report" / "metrics.json").read_text() == "{}"


def listed(data: Path) -> Path:
    """A labels file that says of every picture its class again, a person of two pictures, and a split that cuts
    people apart."""
    file = data.parent / "labels.csv"
    rows = [
        f"{path.relative_to(data)},{path.parent.name},{path.parent.name}{int(path.stem) // 2},"
        f"{('train', 'test')[int(path.stem) % 2]}"
        for path in sorted(data.glob("*/*"))
    ]
    file.write_text("\n".join(["path,gender,group,split", *rows]) + "\n")
    return file


def test_people_in_two_given_splits_do_not_matter_to_folds(begun: Order, tmp_path: Path) -> None:
    divided = replace(begun, labels_file=listed(begun.data))
    with pytest.raises(DatasetError, match="two sides"):
        run.train(divided, tmp_path / "run", CPU, Told())
    validated = run.cross_validate(divided, 2, tmp_path / "folds", CPU, Told())
    assert sum(len(result.answers) for result in validated.results) == 60


@pytest.mark.parametrize("wanted", [{"balance": "gender"}, {"auxiliary": ("gender",)}])
def test_a_column_that_repeats_the_classes_is_no_use_and_told_before_the_pictures_are_read(
    begun: Order, tmp_path: Path, wanted: dict[str, object]
) -> None:
    useless = replace(begun, labels_file=listed(begun.data), **wanted)
    with pytest.raises(DatasetError, match="'gender' of --labels only repeats the classes"):
        run.train(useless, tmp_path / "run", CPU, Refusing())


def test_a_run_among_the_pictures_would_be_the_next_ones_class_and_is_refused(begun: Order) -> None:
    for folder in (begun.data, begun.data / "mine", begun.data / "dark" / "runs"):
        with pytest.raises(run.RunError, match="lies in the data; name a folder outside"):
            run.train(begun, folder, CPU, Told())
        with pytest.raises(run.RunError, match="lies in the data; name a folder outside"):
            run.cross_validate(begun, 2, folder, CPU, Told())
    assert {path.name for path in begun.data.iterdir()} == {"dark", "light"}


def test_a_training_may_be_started_in_the_data_or_in_its_own_folder(
    begun: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted = replace(begun, recipe=replace(begun.recipe, adapt_epochs=1, fine_epochs=0))
    monkeypatch.chdir(begun.data)
    for name in ("first", "second"):
        assert run.train(replace(adapted, data=Path()), Path("runs") / name, CPU, Told()).test
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    assert run.train(adapted, Path(), CPU, Told()).test
    assert (tmp_path / "mine" / run.CHECKPOINT).exists()


def test_a_config_of_something_else_is_not_overwritten(begun: Order, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"mine": 1}')
    with pytest.raises(run.RunError, match=r"config\.json: is no training's, and would be overwritten"):
        run.train(begun, tmp_path, CPU, Told())
    assert (tmp_path / "config.json").read_text() == '{"mine": 1}'


def test_it_is_told_of_how_many_people_the_pictures_are_where_somebody_said_who_is_on_them(
    begun: Order, tmp_path: Path
) -> None:
    told = []
    for number, group_by in enumerate((None, r"(\w+/\d?)\d\.")):
        watcher = Told()
        wanted = replace(begun, group_by=group_by, recipe=replace(begun.recipe, adapt_epochs=1, fine_epochs=0))
        run.train(wanted, tmp_path / f"run{number}", CPU, watcher)
        told += [note for note in watcher.notes if "to train on" in note]
    assert "to test; classes dark, light" in told[0]
    assert "to test, of 6 people in all; classes dark, light" in told[1]


def test_two_trainings_do_not_write_into_one_folder(begun: Order, tmp_path: Path) -> None:
    class Second(Told):
        def epoch(self, *_: object) -> None:
            with pytest.raises(LockedError):
                run.train(begun, tmp_path / "run", CPU, Told(), resume=True)
            self.notes.append("refused")

    first = Second()
    run.train(begun, tmp_path / "run", CPU, first)
    assert first.notes.count("refused") == 2


def test_balance_needs_a_column_that_is_known() -> None:
    sample = Sample("a.jpg", 0, "a.jpg", {"age": "20-29"})
    data = Dataset(Path("faces"), ("x", "y"), (sample, replace(sample, label=1)), (), (), (), "")
    assert run.groups_of(data, "age").tolist() == [0, 1]
    with pytest.raises(DatasetError, match=r"'race'.*--labels"):
        run.groups_of(data, "race")


def test_nobody_is_said_to_be_told_apart_where_pictures_were_not_grouped(tmp_path: Path) -> None:
    alone = tuple(Sample(f"{n}.jpg", n % 2, f"{n}.jpg") for n in range(4))
    data = Dataset(Path("faces"), ("x", "y"), alone, (), (), (), "")
    listed = replace(order(tmp_path), labels_file=Path("labels.csv"))
    assert run._grouped_by(listed, data) is None
    people = tuple(replace(sample, group="anna") for sample in alone[:2])
    assert run._grouped_by(listed, replace(data, train=people + alone[2:])) == "labels.csv"
    assert run._grouped_by(replace(listed, group_by="/(.*)_"), replace(data, train=people)) == "/(.*)_"


def test_the_command_line_has_the_defaults_of_the_recipe() -> None:
    from gender_batch.cli.train import train

    defaults = {parameter.name: parameter.default for parameter in train.params}
    recipe = Recipe(image_size=64)
    for name in ("adapt_epochs", "fine_epochs", "batch_size", "lr_adapt", "lr_fine", "seed"):
        assert defaults[name] == getattr(recipe, name), name
    (image_size,) = (param for param in train.params if param.name == "image_size")
    assert isinstance(image_size, click.Option)
    assert f"{IMAGE_SIZES['face']} for faces, {IMAGE_SIZES['photo']} for whole photos" in str(image_size.help)


@pytest.mark.parametrize(
    ("init", "cut_out", "pictures", "statistics", "zooming"),
    [
        ("embedded", False, "face", 5000, True),
        ("embedded", True, "face", 5000, False),
        ("embedded", False, "photo", 5000, False),
        ("imagenet", False, "face", 0, True),
        ("features.pth", False, "photo", 0, False),
    ],
)
def test_what_suits_features_and_pictures(
    init: str, cut_out: bool, pictures: str, statistics: int, zooming: bool
) -> None:
    found = suited(Recipe(image_size=64, seed=3), init, cut_out, pictures)
    assert (found.seed, found.image_size) == (3, 64)
    assert found.statistics_from == statistics
    assert (found.augmentation.zoom_out > 0) == zooming


def test_what_was_asked_for_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = Order(
        Path("data"),
        Recipe(image_size=64),
        group_by="(x)",
        labels_file=Path("labels.csv"),
        detector=Path("yunet.onnx"),
        attributions=("somebody",),
    )
    told = asked.to_dict()
    assert (told["data"], told["labels_file"]) == (str(tmp_path / "data"), str(tmp_path / "labels.csv"))
    assert (told["group_by"], told["faces"], told["attributions"]) == ("(x)", "crop", ["somebody"])
    assert replace(asked, detector=None).to_dict()["faces"] is None
    assert asked.preprocessing().face is None
    assert replace(asked, pictures="face", detector=None).preprocessing().face == FaceCrop()


def test_a_picture_that_goes_before_it_is_judged_is_told(
    begun: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Removing(Told):
        def note(self, message: str) -> None:
            if message.startswith("kept"):
                shutil.rmtree(begun.data / "dark")

    monkeypatch.setattr(loading, "LARGEST_CACHE", 0)
    with pytest.raises(DatasetError, match=r"a picture changed while it was used \(.*/dark/\d+\.png: the file is gone"):
        run.train(begun, tmp_path / "run", CPU, Removing())


def test_the_interval_of_all_folds_is_that_of_their_people(capsys: pytest.CaptureFixture[str]) -> None:
    def fold(name: str, photos: int = 3) -> run.Result:
        people = [f"{name}{number // photos}" for number in range(12)]
        shares = [(0.9, 0.1) if number < 9 else (0.1, 0.9) for number in range(12)]
        answers = tuple(Answer("", "", 0, *known) for known in zip(shares, people, strict=True))
        figures = measure(np.array([answer.probabilities for answer in answers]), [0] * 12, ("a", "b"), 0.5)
        return run.Result(Path(name), figures, figures, Threshold(0.5, 0.9, True, *[Proportion(9, 12)] * 2), answers)

    validated = run.CrossValidation(Path("folds"), (fold("x"), fold("y")))
    assert validated.mean == 0.75
    assert (len(validated.answers), validated.people) == (24, 8)
    # Of each person all three are right, or wrong: they count as one, and the variance of so few is one more's.
    assert validated.interval == pytest.approx(Proportion(18, 24, 7.0).interval)
    _tell_folds(validated, Path("folds"))
    assert " of 24 pictures of 8 people\n" in capsys.readouterr().out
    # Who is not told apart is not said to be somebody.
    _tell_folds(run.CrossValidation(Path("folds"), (fold("x", 1), fold("y", 1))), Path("folds"))
    assert " of 24 pictures, each counted as another person's (--group-by)\n" in capsys.readouterr().out


def test_faces_are_learnt_where_nearly_all_photos_show_one(tmp_path: Path, labelled: Path, detector: Path) -> None:
    for label in ("female", "male"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for path in sorted((labelled / label).iterdir())[:5]:
            (tmp_path / "data" / label / path.name).symlink_to(path)
    notes: list[str] = []
    assert run.photos_show_faces(tmp_path / "data", None, None, detector, notes.append)
    assert notes[0].startswith("10 of 10 photos")

    Image.radial_gradient("L").save(tmp_path / "data" / "male" / "view.png")
    (tmp_path / "data" / "male" / "broken.png").write_bytes(b"nothing")
    assert not run.photos_show_faces(tmp_path / "data", None, None, detector, notes.append)
    assert notes[1].startswith("10 of 12 photos")
    assert "whole" in notes[1]


def test_empty_classes_are_told_also_where_faces_are_looked_for(tmp_path: Path, detector: Path) -> None:
    for label in ("x", "y"):
        (tmp_path / "data" / label).mkdir(parents=True)
    notes: list[str] = []
    assert not run.photos_show_faces(tmp_path / "data", None, None, detector, notes.append)
    assert not notes
    with pytest.raises(DatasetError, match="class x has 0 readable"):
        run.train(order(tmp_path), tmp_path / "run", CPU, Told())


def test_a_photo_that_is_damaged_where_only_training_looks_is_left_out(begun: Order, tmp_path: Path) -> None:
    """Judged at a smaller scale it would be taken for whole, and end the training."""
    file = begun.data / "dark" / "damaged.jpg"
    noise(256, 256).save(file, progressive=True, quality=90)
    data = file.read_bytes()
    last = data.rindex(b"\xff\xda")  # the header of the last scan
    file.write_bytes(data[: last + 2] + b"\xff\xff" + data[last + 4 :])
    wanted = replace(begun, recipe=replace(begun.recipe, image_size=200, adapt_epochs=1, fine_epochs=0))
    assert decode_picture(file.read_bytes(), 64).image.size == (64, 64)
    with pytest.raises(PictureError):
        decode_picture(file.read_bytes(), wanted.recipe.source.shorter_side)
    watcher = Told()
    run.train(wanted, tmp_path / "run", CPU, watcher)
    (told,) = [note for note in watcher.notes if note.startswith("left out")]
    assert told.startswith("left out: dark/damaged.jpg: corrupt: ")
