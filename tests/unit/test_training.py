"""The pieces of the training: schedule, temperature, seeded augmentation, the folder of a run, initial weights."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import resource
import shutil
import signal
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

torch = pytest.importorskip("torch")

from safetensors.torch import save_file
from samples import dark_and_light, noise
from torch import nn
from torch.optim.swa_utils import AveragedModel
from watching import Interrupting, Refusing, Told

from gender_batch.evaluation.gallery import Answer
from gender_batch.evaluation.metrics import Proportion, Threshold, measure
from gender_batch.outputs.publish import LockedError
from gender_batch.pictures.preprocessing import FaceCrop, Preprocessing
from gender_batch.pictures.read import PictureError
from gender_batch.training import loading, run
from gender_batch.training.augmentation import Augmentation
from gender_batch.training.dataset import Dataset
from gender_batch.training.fit import AVERAGED_EPOCHS, REPORT_EVERY, Labelled, _moving_average, fit, schedule
from gender_batch.training.judge import FACE_SCALES, Findings, HeldOut, judge
from gender_batch.training.kept import candidates, choose
from gender_batch.training.loading import Squares, batches
from gender_batch.training.losses import Auxiliary, GroupLosses, inverse_frequencies, mixing
from gender_batch.training.network import EMBEDDING, Checkpoint, Network, WeightsError, load_initial_weights
from gender_batch.training.order import IMAGE_SIZES, Order, suited
from gender_batch.training.predict import USUAL_TEMPERATURE, fit_temperature, predict_logits
from gender_batch.training.recipe import Machine, Recipe
from gender_batch.training.samples import DatasetError, Sample
from gender_batch.training.state import DamagedStateError, State

CPU = Machine(torch.device("cpu"), workers=0)


def test_the_rate_rises_then_falls_to_nothing() -> None:
    rates = [schedule(step / 100) for step in range(101)]
    peak = rates.index(max(rates))
    assert rates[0] == 0
    assert max(rates) == pytest.approx(1)
    assert 0 < peak < 20
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == pytest.approx(0)


def test_the_moving_average_follows_weights_and_statistics() -> None:
    network = nn.BatchNorm1d(2)
    average = AveragedModel(network, multi_avg_fn=_moving_average(0.75), use_buffers=True)
    average.update_parameters(network)  # the first time it takes them as they are
    before = {name: tensor.clone() for name, tensor in average.module.state_dict().items()}
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor += 4
    average.update_parameters(network)
    moved = {name: (tensor - before[name]).tolist() for name, tensor in average.module.state_dict().items()}
    assert moved.pop("num_batches_tracked") == 0  # nothing reads it
    assert moved == {name: [1.0, 1.0] for name in ("weight", "bias", "running_mean", "running_var")}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_spoiled_the_logits_is_found(temperature: float) -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, (20_000, 3))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = (probabilities.cumsum(1) > generator.random((len(logits), 1))).argmax(1)
    found = fit_temperature((logits * temperature).astype(np.float32), truth)
    assert found == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize("margin", [0.5, 3, 9, 30])
@pytest.mark.parametrize("right", [True, False])
def test_a_handful_of_pictures_makes_a_network_neither_certain_nor_clueless(margin: float, right: bool) -> None:
    """Alone they would have it that no temperature is low, or high, enough."""
    logits = np.array([[margin, 0], [0, margin]] * 5, np.float32)
    found = fit_temperature(logits, np.array([0, 1] * 5) if right else np.array([1, 0] * 5))
    assert 0.5 < found < USUAL_TEMPERATURE + 1e-6 if right else USUAL_TEMPERATURE < found < 100


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


def test_groups_count_by_what_they_lost() -> None:
    groups, truth = torch.tensor([0, 0, 0, 1, 2]), torch.tensor([0, 0, 0, 0, 1])
    losses = GroupLosses(groups, truth, torch.device("cpu"))
    assert losses.weights_of(torch.tensor([0, 3, 4])).tolist() == [1, 1, 1]
    losses.add(torch.tensor([0, 3, 4]), torch.tensor([0.1, 0.3, 2.0]))
    losses.add(torch.tensor([1, 3, 4]), torch.tensor([0.3, 0.7, 2.0]))  # means 0.2, 0.5 and 2
    common, rare, alone = losses.tilted(3.0)
    assert rare / common == pytest.approx(math.exp(3.0 * 0.3 / 2))
    assert (3 * common + rare) / 4 == pytest.approx(1)
    assert alone == pytest.approx(1)  # no class gains on another
    assert losses.tilted(0.0) == pytest.approx([1, 1, 1])
    losses.begin([common, rare, alone])
    assert losses.weights_of(torch.tensor([2, 3])).tolist() == pytest.approx([common, rare])


def test_a_group_that_an_epoch_left_out_counts_on() -> None:
    """As one of a few pictures may be, all of them among the odd rest."""
    losses = GroupLosses(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 0]), torch.device("cpu"))
    losses.add(torch.tensor([1, 2]), torch.tensor([0.2, 0.2]))
    left_out, seen = losses.tilted(3.0)
    assert 0 < left_out < seen
    assert (left_out + 2 * seen) / 3 == pytest.approx(1)


def test_weights_of_groups_settle() -> None:
    losses = GroupLosses(torch.tensor([0, 1]), torch.tensor([0, 0]), torch.device("cpu"))
    weights = [1.0, 1.0]
    for _ in range(30):  # the same losses, epoch after epoch
        losses.begin(weights)
        losses.add(torch.tensor([0, 1]), torch.tensor([0.2, 0.5]))
        weights = losses.tilted(3.0)
    assert weights[1] / weights[0] == pytest.approx(math.exp(3.0 * 0.3), rel=1e-3)


def test_no_loss_is_too_large_to_weigh_groups_by() -> None:
    losses = GroupLosses(torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]), torch.device("cpu"))
    losses.add(torch.arange(3), torch.tensor([1000.0, 999.0, 0.1]))
    hard, easier, other_class = losses.tilted(3.0)
    assert hard / easier == pytest.approx(math.exp(3.0 / 2))
    assert other_class == pytest.approx(1)


@given(st.lists(st.integers(0, 2), min_size=1))
def test_class_weights_make_classes_count_alike(truth: list[int]) -> None:
    weights = inverse_frequencies(torch.tensor(truth), 4)
    sums = [truth.count(number) * float(weights[number]) for number in sorted(set(truth))]
    assert sums == pytest.approx([len(truth) / 4] * len(sums))
    assert weights.isfinite().all()  # of a class without pictures, too
    whole = torch.tensor([*truth, 0, 1, 2, 3])
    assert float(inverse_frequencies(whole, 4)[whole].mean()) == pytest.approx(1)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_pictures_are_mixed_as_much_as_is_asked_for(kind: str) -> None:
    torch.manual_seed(0)
    pictures, unmixed = torch.rand(2, 3, 16, 16), []
    for parameter in (0.05, 20.0):
        mix = mixing(Recipe(image_size=32, **{kind: parameter}), 2)
        assert mix is not None
        shares = [float(mix(pictures, torch.tensor([0, 1]))[1].max()) for _ in range(60)]
        unmixed.append(sum(share > 0.99 for share in shares) / 60)
    assert unmixed[0] > 0.3
    assert unmixed[1] == 0


def test_pictures_are_blended_or_patched_where_both_are_asked_for() -> None:
    torch.manual_seed(0)
    mix = mixing(Recipe(image_size=32, mixup=20.0, cutmix=20.0), 2)
    assert mix is not None
    black_and_white = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 16, 16)
    blended = [bool((mix(black_and_white, torch.tensor([0, 1]))[0] % 1).any()) for _ in range(60)]
    assert sum(blended) == pytest.approx(30, abs=15)
    assert mixing(Recipe(image_size=32), 2) is None


def test_balance_needs_a_column_that_is_known() -> None:
    sample = Sample("a.jpg", 0, "a.jpg", {"age": "20-29"})
    data = Dataset(Path("faces"), ("x", "y"), (sample, replace(sample, label=1)), (), (), (), "")
    assert run.groups_of(data, "age").tolist() == [0, 1]
    with pytest.raises(DatasetError, match=r"'race'.*--labels"):
        run.groups_of(data, "race")


def test_what_else_is_learnt_is_indexed_and_may_be_unknown() -> None:
    ages = ({"age": "3-9"}, {}, {"age": "20-29"}, {"age": "3-9"})
    samples = tuple(Sample(f"{n}.jpg", n % 2, f"{n}", known) for n, known in enumerate(ages))
    data = Dataset(Path("faces"), ("x", "y"), samples, (), (), (), "")
    assert run.others_of(data, ["age"]).tolist() == [[1], [-1], [0], [1]]
    with pytest.raises(DatasetError, match=r"'race'.*--labels"):
        run.others_of(data, ["age", "race"])


def test_the_loss_of_what_else_is_learnt_is_the_mean_over_columns_of_what_is_known() -> None:
    others = torch.tensor([[0, 2], [-1, 1], [1, -1], [1, 0]])
    auxiliary = Auxiliary(others, torch.device("cpu"))
    undecided = [torch.zeros(2, count, dtype=torch.bfloat16) for count in (2, 3)]
    indices = torch.tensor([2, 0])  # three of their four values are known
    assert float(auxiliary.loss(undecided, indices)) == pytest.approx((2 * math.log(2) + math.log(3)) / 4)
    certain = [torch.tensor([[0, 50.0], [50.0, 0]]), torch.tensor([[0.0, 0, 0], [0, 0, 50.0]])]
    assert float(auxiliary.loss(certain, indices)) == pytest.approx(0, abs=1e-6)
    assert [tuple(logits.shape) for logits in auxiliary(torch.zeros(5, EMBEDDING))] == [(5, 2), (5, 3)]
    assert Auxiliary(None, torch.device("cpu"))(torch.zeros(5, EMBEDDING)) == []


def test_what_else_is_learnt_is_learnt_with_a_fifth_of_the_embedding_dropped() -> None:
    torch.manual_seed(0)
    auxiliary = Auxiliary(torch.tensor([[0], [1]]), torch.device("cpu"))
    torch.nn.init.constant_(auxiliary.heads[0][1].weight, 1 / EMBEDDING)
    torch.nn.init.zeros_(auxiliary.heads[0][1].bias)
    learning, judging = (auxiliary.train(mode)(torch.ones(200, EMBEDDING))[0].detach() for mode in (True, False))
    assert torch.allclose(judging, torch.ones(200, 2))
    # Kept with probability 0.8, and then enlarged by 1 / 0.8: the mean stays.
    assert learning.mean() == pytest.approx(1, abs=0.01)
    assert learning.std() == pytest.approx(0.5 / EMBEDDING**0.5, rel=0.15)


def test_nobody_is_said_to_be_told_apart_where_pictures_were_not_grouped(tmp_path: Path) -> None:
    alone = tuple(Sample(f"{n}.jpg", n % 2, f"{n}.jpg") for n in range(4))
    data = Dataset(Path("faces"), ("x", "y"), alone, (), (), (), "")
    listed = replace(order(tmp_path), labels_file=Path("labels.csv"))
    assert run._grouped_by(listed, data) is None
    people = tuple(replace(sample, group="anna") for sample in alone[:2])
    assert run._grouped_by(listed, replace(data, train=people + alone[2:])) == "labels.csv"
    assert run._grouped_by(replace(listed, group_by="/(.*)_"), replace(data, train=people)) == "/(.*)_"


def test_the_program_has_features_to_start_from() -> None:
    network = Network(3)
    before = network.state_dict()["backbone.features.0.0.weight"].clone()
    origin = load_initial_weights(network, "embedded")
    assert any("FairFace" in credit for credit in origin.attributions)
    assert origin.training
    assert origin.training["epochs"] > 0
    state = network.state_dict()
    assert not torch.equal(state["backbone.features.0.0.weight"], before)
    assert all(bool(tensor.isfinite().all()) for tensor in state.values())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_strided_depthwise_convolution_trains_as_torch_would(precision: torch.dtype) -> None:
    """In whole numbers so small that bf16 holds them all: 256 is the last before which it has every one."""
    ours = Network(2).backbone.features[2].conv[1][0]
    plain = torch.nn.Conv2d(ours.in_channels, ours.out_channels, 3, 2, 1, groups=ours.groups, bias=False)
    luck = torch.Generator().manual_seed(0)
    weight = torch.randint(-1, 2, ours.weight.shape, generator=luck).float()
    pixels = torch.randint(-1, 2, (2, ours.in_channels, 9, 10), generator=luck).float()
    gradients = []
    for module in (ours, plain):
        module.load_state_dict({"weight": weight})
        pictures = pixels.to(precision).requires_grad_()
        output = module.to(precision).train()(pictures)
        (output.square().sum() / 2).backward()
        gradients.append((output, pictures.grad, module.weight.grad))
    for mine, theirs in zip(*gradients, strict=True):
        assert 0 < mine.abs().max() < 256
        assert torch.equal(mine, theirs)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save({"features.0.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"classifier.1.bias": torch.zeros(2)}, tmp_path / "head.pth")
    (tmp_path / "text.safetensors").write_text("no tensors")
    for name in ("other.pth", "list.pth", "head.pth", "text.safetensors"):
        with pytest.raises(WeightsError, match=name):
            load_initial_weights(Network(2), str(tmp_path / name))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"features": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(WeightsError):
        load_initial_weights(Network(2), str(tmp_path / "trap.pth"))
    with pytest.raises(DamagedStateError, match="UnpicklingError"):
        State.load(tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


def test_a_state_that_cannot_be_written_is_an_error_of_the_file_and_leaves_the_last_one(
    tmp_path: Path,
) -> None:
    file = tmp_path / "state.pt"
    State("data", epoch=1).save(file)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            State("data", epoch=2, weights={"large": torch.zeros(100_000)}).save(file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(file)
    assert State.load(file).epoch == 1
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_a_checkpoint_comes_back_whole(tmp_path: Path) -> None:
    written = Checkpoint(
        network=Network(2),
        labels=("a", "b"),
        preprocessing=Recipe(image_size=64).preprocessing,
        temperature=1.25,
        threshold=0.6,
        pictures="face",
        training={"seed": 1},
        figures={"val": None},
        attributions=("somebody",),
    )
    written.save(tmp_path / "checkpoint.safetensors")
    read = Checkpoint.load(tmp_path / "checkpoint.safetensors")
    for name in ("labels", "preprocessing", "temperature", "threshold", "pictures", "training", "figures"):
        assert getattr(read, name) == getattr(written, name)
    for name, tensor in written.network.state_dict().items():
        assert torch.equal(read.network.state_dict()[name], tensor)
    with pytest.raises(WeightsError, match="nothing"):
        Checkpoint.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("description", "told"),
    [
        ("{", "JSONDecodeError"),
        ("[1]", "damaged metadata"),
        ({"labels": ...}, "KeyError('labels')"),
        ({"temperature": ...}, "KeyError('temperature')"),
        ({"temperature": "warm"}, "warm"),
        ({"labels": 2}, "damaged metadata"),
        ({"preprocessing": {"size": 64}}, "unknown preprocessing"),
        ({"labels": ["a", "b", "c"]}, "its 3 labels"),
    ],
)
def test_a_checkpoint_whose_metadata_do_not_fit_is_refused_and_named(
    tmp_path: Path, description: str | dict[str, object], told: str
) -> None:
    whole = {
        "labels": ["a", "b"],
        "preprocessing": Recipe(image_size=64).preprocessing.to_dict(),
        "temperature": 1.0,
        "threshold": 0.6,
        "pictures": "face",
        "training": {},
        "figures": {},
        "attributions": [],
    }
    if isinstance(description, dict):
        changed = {**whole, **description}
        description = json.dumps({name: value for name, value in changed.items() if value is not ...})
    path = tmp_path / "checkpoint.safetensors"
    save_file(Network(2).state_dict(), path, {"gender_batch": description})
    with pytest.raises(WeightsError) as caught:
        Checkpoint.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


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


# Batches


def numbered(folder: Path, count: int) -> Squares:
    """Pictures all of whose pixels are their number."""
    paths = [str(folder / f"{number}.png") for number in range(count)]
    for number, path in enumerate(paths):
        Image.new("RGB", (8, 8), (number,) * 3).save(path)
    return Squares(paths, Preprocessing(size=8, resize=8), folder)


def drawn(squares: Squares, size: int, seed: tuple[int, ...] | None = None) -> list[list[int]]:
    """The numbers in each batch, as its pictures and its indices say."""
    lists = []
    for pictures, indices in batches(squares, size, 0, torch.device("cpu"), seed):
        assert pictures[:, 0, 0, 0].tolist() == indices.tolist()
        lists.append(indices.tolist())
    return lists


@pytest.mark.parametrize("kept", [True, False])
def test_batches_are_in_order_and_whole_or_shuffled_without_the_odd_rest(tmp_path: Path, kept: bool) -> None:
    squares = numbered(tmp_path, 10)
    if not kept:
        squares.cache = None  # as of data that the disk cannot hold
    assert drawn(squares, 4) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    shuffled = [drawn(squares, 4, seed) for seed in ((1, 2), (1, 3), (2, 2))]
    for lists in shuffled:
        assert [len(set(numbers)) for numbers in lists] == [4, 4]
        assert shuffled.count(lists) == 1
    assert drawn(squares, 4, (1, 2)) == shuffled[0]
    assert [sorted(numbers) for numbers in drawn(squares, 64, (1, 2))] == [list(range(10))]  # better than nothing


class Normed(nn.Module):
    """The first channel of the first pixel and its opposite, normalised: in training by the others of the batch."""

    classes = 2

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        level = self.norm(pictures[:, 0, 0, :1].float())
        return torch.cat([level, -level], dim=1)


def test_a_network_says_the_same_of_a_picture_in_any_company(tmp_path: Path) -> None:
    squares, network = numbered(tmp_path, 5), Normed()
    for size in (1, 2, 5):
        logits = predict_logits(network.train(), squares, CPU, size)  # type: ignore[arg-type]
        assert logits[:, 0] == pytest.approx(range(5), abs=1e-3)
        doubled = predict_logits(network.train(), squares, CPU, size, lambda pictures: 2 * pictures)  # type: ignore[arg-type]
        assert doubled == pytest.approx(2 * logits)
    assert predict_logits(network, numbered(tmp_path, 0), CPU).shape == (0, 2)  # type: ignore[arg-type]


def test_an_interrupt_of_the_terminal_leaves_the_loading_to_who_asked_for_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for number in range(40):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    paths = [str(tmp_path / f"{number}.png") for number in range(40)]
    squares = Squares(paths, Preprocessing(size=8, resize=8), tmp_path)
    squares.cache = None  # as of data that the disk cannot hold
    given = batches(squares, 4, 1, torch.device("cpu"))
    first, _ = next(given)
    (worker,) = multiprocessing.active_children()
    os.kill(int(worker.pid or 0), signal.SIGINT)
    assert sum(len(pictures) for pictures, _ in given) + len(first) == 40
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_goes_while_batches_are_asked_for_is_told(tmp_path: Path, workers: int) -> None:
    paths = [str(tmp_path / f"{number}.png") for number in range(4)]
    for path in paths[1:]:
        Image.new("RGB", (8, 8)).save(path)
    squares = Squares([], Preprocessing(size=8, resize=8), tmp_path)
    squares.paths = paths
    with pytest.raises(PictureError, match="the file is gone"):
        list(batches(squares, 2, workers, torch.device("cpu")))


def test_a_picture_that_goes_before_it_is_judged_is_told(
    begun: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Removing(Told):
        def note(self, message: str) -> None:
            if message.startswith("kept"):
                shutil.rmtree(begun.data / "dark")

    monkeypatch.setattr(loading, "LARGEST_CACHE", 0)
    with pytest.raises(DatasetError, match=r"a picture changed while it was used \(the file is gone"):
        run.train(begun, tmp_path / "run", CPU, Removing())


# Phases


def labelled_squares(folder: Path, recipe: Recipe) -> tuple[Labelled, Labelled]:
    """Eight plain pictures of two classes, to train on and to validate."""
    paths = []
    for number in range(8):
        Image.new("RGB", (40, 40), (30 * number, 99, 99)).save(folder / f"{number}.png")
        paths.append(str(folder / f"{number}.png"))
    truth = torch.tensor([0, 1] * 4)
    train, val = (Labelled(Squares(paths, spec, folder), truth) for spec in (recipe.source, recipe.preprocessing))
    return train, val


def test_the_adaptation_may_end_early_and_the_fine_tuning_goes_to_its_end(tmp_path: Path) -> None:
    recipe = Recipe(image_size=32, adapt_epochs=2, fine_epochs=2, batch_size=4, patience=0)
    history = fit(Network(2), *labelled_squares(tmp_path, recipe), recipe, CPU, tmp_path / "state.pt", Told()).history
    assert [(epoch.phase, epoch.epoch) for epoch in history] == [("fine-tuning", 1), ("fine-tuning", 2)]
    assert math.ldexp(1, -1074) > 0  # the smallest number is one again


def test_numbers_too_small_to_compute_with_quickly_are_nothing_while_it_learns(tmp_path: Path) -> None:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor computes with them all the same")
    torch.set_flush_denormal(False)
    tiny, found = torch.full((1000,), 1e-40), []
    recipe = Recipe(image_size=32, adapt_epochs=1, fine_epochs=0, batch_size=8)
    mine = replace(recipe, augmentation=Looking(look=lambda _: found.append(float((tiny * 0.5).max()))))
    fit(Network(2), *labelled_squares(tmp_path, recipe), mine, CPU, tmp_path / "state.pt", Told())
    assert found == [0.0]
    assert float((tiny * 0.5).max()) > 0


@dataclass(frozen=True)
class Looking(Augmentation):
    """Looks at each batch that it is given, before anything is learnt of it."""

    look: Callable[[torch.Tensor], None] = lambda _: None

    def __call__(self, pictures: torch.Tensor, size: int) -> torch.Tensor:
        self.look(pictures)
        return super().__call__(pictures, size)


def test_a_training_that_is_interrupted_after_every_epoch_ends_as_one_that_is_not(tmp_path: Path) -> None:
    """With all that can be learnt from or beside: classes of different frequency, groups, another column."""
    recipe = Recipe(image_size=32, adapt_epochs=2, fine_epochs=3, batch_size=4, tilt=30.0, class_weights=True)
    train, val = labelled_squares(tmp_path, recipe)
    truth = torch.tensor([0, 1, 0, 1, 0, 0, 0, 1])
    train = replace(
        train, truth=truth, groups=2 * truth + torch.arange(8) // 4, others=torch.tensor([[0], [-1], [2], [1]] * 2)
    )
    torch.manual_seed(0)
    begin, head = Network(2).state_dict(), torch.nn.Linear(EMBEDDING, 2)
    ends = []
    for interrupted in (False, True):
        told: Told = Told()
        given: list[tuple[tuple[int, ...], float]] = []
        for _ in range(9):
            network = Network(2)
            network.load_state_dict(begin)
            torch.manual_seed(len(given))  # whatever happened before must not matter
            told = Interrupting(1) if interrupted else told

            def note(pictures: torch.Tensor, given: list[tuple[tuple[int, ...], float]] = given) -> None:
                given.append((tuple(pictures[:, 0, 0, 0].tolist()), float(torch.rand(()))))

            mine = replace(recipe, augmentation=Looking(look=note))
            try:
                state = fit(network, train, val, mine, CPU, tmp_path / f"{interrupted}.pt", told, head)
                break
            except KeyboardInterrupt:
                continue
        else:
            pytest.fail("nothing is kept of an epoch, so that it never ends")
        history = [replace(epoch, seconds=0.0, pictures_per_second=0.0, waiting=0.0) for epoch in state.history]
        ends.append((history, given, state.group_weights, network.state_dict()))
    (history, given, group_weights, weights), (again, given_again, group_weights_again, weights_again) = ends
    assert [(epoch.phase, epoch.epoch) for epoch in history] == [
        *(("adaptation", number) for number in (1, 2)),
        *(("fine-tuning", number) for number in (1, 2, 3)),
    ]
    assert history == again
    assert given == given_again
    assert group_weights == group_weights_again
    assert max(group_weights) > 1.01
    for name, tensor in weights.items():
        assert torch.equal(tensor, weights_again[name]), name
    # Each epoch sees all pictures, in an order and with luck of its own.
    epochs = [given[start : start + 2] for start in range(0, len(given), 2)]
    assert all(sorted(first + second) == [30 * number for number in range(8)] for (first, _), (second, _) in epochs)
    assert len({str(epoch) for epoch in epochs}) == len({luck for _, luck in given}) / 2 == 5


def test_the_adaptation_teaches_the_heads_alone(tmp_path: Path) -> None:
    recipe = Recipe(image_size=32, adapt_epochs=2, fine_epochs=0, batch_size=4)
    network, states, asked = Network(2), [], []

    class Keeping(Told):
        def epoch(self, *_: object) -> None:
            states.append(State.load(tmp_path / "state.pt"))

    def note(_: torch.Tensor) -> None:
        asked.append(any(parameter.grad is not None for parameter in network.features.parameters()))

    train, val = labelled_squares(tmp_path, recipe)
    mine = replace(recipe, augmentation=Looking(look=note))
    others = torch.tensor([[0], [1]] * 4)
    fit(network, replace(train, others=others), val, mine, CPU, tmp_path / "state.pt", Keeping())
    assert asked == [False] * 4  # what nobody learns from costs time
    first, second = ({**state.weights, **state.auxiliary} for state in states)
    changed = {name for name, tensor in first.items() if not torch.equal(tensor, second[name])}
    assert changed == {name for name in first if name.endswith(("1.weight", "1.bias")) and "features" not in name}


def test_the_adaptation_learns_at_its_whole_rate_from_the_first_step(tmp_path: Path) -> None:
    """The first step of Adam moves every number by the rate."""
    recipe = Recipe(image_size=32, adapt_epochs=1, fine_epochs=0, batch_size=8, lr_adapt=0.02)
    network = undecided()
    before = network.linear.bias.detach().clone()
    state = fit(network, *labelled_squares(tmp_path, recipe), recipe, CPU, tmp_path / "state.pt", Told())
    (after,) = (tensor for name, tensor in state.weights.items() if name.endswith("classifier.1.bias"))
    assert (after - before).abs().tolist() == pytest.approx([0.02, 0.02], rel=0.05)


def test_the_fine_tuning_teaches_everything(tmp_path: Path) -> None:
    recipe = Recipe(image_size=32, adapt_epochs=0, fine_epochs=1, batch_size=4)
    torch.manual_seed(0)
    network = Network(2)
    before = {name: tensor.detach().clone() for name, tensor in network.named_parameters()}
    state = fit(network, *labelled_squares(tmp_path, recipe), recipe, CPU, tmp_path / "state.pt", Told())
    assert [name for name, tensor in before.items() if torch.equal(tensor, state.weights[name])] == []


def undecided() -> Network:
    """To which every picture is of class 0 with a probability of three quarters."""
    network = Network(2)
    with torch.no_grad():
        network.linear.weight.zero_()
        network.linear.bias.copy_(torch.tensor([math.log(3), 0]))
    return network


@pytest.mark.parametrize("mixed", [{}, {"mixup": 1.0}, {"cutmix": 1.0}])
def test_mixed_pictures_have_mixed_classes(tmp_path: Path, mixed: dict[str, float]) -> None:
    """Of classes that are not mixed all pictures of a class lose the same here, and so do its groups."""
    recipe = Recipe(image_size=32, adapt_epochs=4, fine_epochs=0, batch_size=4, lr_adapt=0.0, **mixed)
    train, val = labelled_squares(tmp_path, recipe)
    train = replace(train, groups=2 * train.truth + torch.arange(8) // 4)
    state = fit(undecided(), train, val, recipe, CPU, tmp_path / "state.pt", Told())
    assert (max(state.group_weights) > 1.001) == bool(mixed)
    if mixed:
        train = replace(train, others=torch.tensor([[0], [1]] * 4))
        with pytest.raises(ValueError, match="nothing else can be learnt beside them"):
            fit(undecided(), train, val, recipe, CPU, tmp_path / "other.pt", Told())


def shown(network: Network) -> list[torch.Tensor]:
    """What its features will be given, batch after batch: (N, 3, size, size), float."""
    seen: list[torch.Tensor] = []
    network.features.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().float().clone()))
    return seen


def test_smaller_pictures_are_learnt_than_are_judged(tmp_path: Path) -> None:
    recipe = Recipe(image_size=48, adapt_epochs=1, fine_epochs=0, batch_size=4, average=False)
    network, (train, val) = Network(2), labelled_squares(tmp_path, recipe)
    seen = shown(network)
    fit(network, train, val, recipe, CPU, tmp_path / "state.pt", Told())
    small = recipe.size_in_training
    assert small < 48
    assert [pictures.shape[2:] for pictures in seen] == [(small, small), (small, small), (48, 48)]


@pytest.mark.parametrize(
    ("mixed", "between", "within"),
    [({}, False, False), ({"mixup": 20.0}, True, False), ({"cutmix": 20.0}, False, True)],
)
def test_the_network_sees_mixed_pictures(tmp_path: Path, mixed: dict[str, Any], between: bool, within: bool) -> None:
    """Of black and white ones greys, where they are blended, and both in one, where they are patched."""
    recipe = Recipe(
        image_size=32, adapt_epochs=1, fine_epochs=0, batch_size=8,
        augmentation=Augmentation(rotation=0, smallest_crop=1, zoom_out=0, colour=0, grey=0), **mixed,
    )  # fmt: skip
    paths = []
    for colour in ("black", "white"):
        paths.append(str(tmp_path / f"{colour}.png"))
        Image.new("RGB", (40, 40), colour).save(paths[-1])
    train, val = (
        Labelled(Squares(paths * 4, kind, tmp_path), torch.tensor([0, 1] * 4))
        for kind in (recipe.source, recipe.preprocessing)
    )
    network = Network(2)
    seen = shown(network)
    fit(network, train, val, recipe, CPU, tmp_path / "state.pt", Told())
    learnt, judged = (pictures[:, 0] for pictures in seen)
    black, white = judged.amin(), judged.amax()
    grey = (learnt > black + (white - black) / 20) & (learnt < white - (white - black) / 20)
    assert bool(grey.any()) == between
    assert bool((learnt.amax((1, 2)) - learnt.amin((1, 2)) > 0.9 * (white - black)).any()) == within


@pytest.mark.parametrize(
    ("options", "train_shares", "val_shares"),
    [
        ({}, (3 / 4, 1 / 4), (3 / 4, 1 / 4)),
        ({"label_smoothing": 0.2}, (0.7, 0.3), (3 / 4, 1 / 4)),
        ({"class_weights": True}, (1 / 2, 1 / 2), (1 / 2, 1 / 2)),
    ],
)
def test_the_figures_of_an_epoch_are_means_over_its_pictures(
    tmp_path: Path, options: dict[str, Any], train_shares: tuple[float, float], val_shares: tuple[float, float]
) -> None:
    recipe = Recipe(image_size=32, adapt_epochs=1, fine_epochs=0, batch_size=4, lr_adapt=0.0, **options)
    network, told = undecided(), []

    class Hearing(Told):
        def batch(self, *said: object) -> None:
            told.append(said)

    train, val = labelled_squares(tmp_path, recipe)
    train, val = (replace(split, truth=torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])) for split in (train, val))
    (epoch,) = fit(network, train, val, recipe, CPU, tmp_path / "state.pt", Hearing()).history
    losses = -math.log(3 / 4), -math.log(1 / 4)
    assert (epoch.phase, epoch.epoch) == ("adaptation", 1)
    assert (epoch.train_accuracy, epoch.val_accuracy) == (0.75, 0.75)
    train_loss, val_loss = (np.dot(shares, losses) for shares in (train_shares, val_shares))
    assert epoch.train_loss == pytest.approx(train_loss, rel=1e-2)  # in bfloat16
    assert epoch.val_loss == pytest.approx(val_loss, rel=1e-5)
    assert epoch.pictures_per_second * epoch.seconds >= 8
    assert 0 <= epoch.waiting <= 1
    assert told[-1] == ("adaptation", 1, 2, 2, epoch.train_loss)


def test_now_and_then_and_at_the_end_of_an_epoch_it_is_told_how_far_it_has_come(tmp_path: Path) -> None:
    recipe = Recipe(image_size=32, adapt_epochs=1, fine_epochs=0, batch_size=1)
    told: list[tuple[str, int, int, int]] = []

    class Hearing(Told):
        def batch(self, *said: Any) -> None:
            told.append(said[:4])

    train, val = labelled_squares(tmp_path, recipe)
    steps = 2 * REPORT_EVERY + 3
    paths, truth = [train.squares.paths[step % 8] for step in range(steps)], torch.arange(steps) % 2
    train = Labelled(Squares(paths, recipe.source, tmp_path), truth)
    fit(Network(2), train, val, recipe, CPU, tmp_path / "state.pt", Hearing())
    done = [1, 1 + REPORT_EVERY, 1 + 2 * REPORT_EVERY, steps]
    assert told == [("adaptation", 1, step, steps) for step in done]


def test_the_rate_and_the_average_go_over_all_epochs(tmp_path: Path) -> None:
    recipe = Recipe(image_size=32, adapt_epochs=0, fine_epochs=3, batch_size=2)  # of seven: three steps an epoch
    network, names = Network(2), ("backbone.features.18.0.weight", "backbone.features.0.1.running_mean")
    seen: list[dict[str, torch.Tensor]] = []

    def note(_: torch.Tensor) -> None:
        seen.append({name: network.state_dict()[name].clone() for name in names})

    train, val = labelled_squares(tmp_path, recipe)
    others = torch.tensor([[0], [1]] * 4)  # which the adaptation has not begun to learn
    train = Labelled(Squares(train.squares.paths[:7], recipe.source, tmp_path), train.truth[:7], others=others[:7])
    mine = replace(recipe, augmentation=Looking(look=note))
    state = fit(network, train, val, mine, CPU, tmp_path / "state.pt", Told())
    seen.append(state.weights)
    kernel, mean = ([weights[name] for weights in seen] for name in names)
    steps = [float((after - before).abs().mean()) for before, after in pairwise(kernel)]
    assert len(steps) == 9
    assert steps[0] == 0  # the rate begins at nothing,
    assert min(steps[1:]) > 0  # does not come down to it between two epochs,
    assert steps[-1] < 0.3 * max(steps)  # and nearly does at the end
    kept = 1 - 1 / (1 + AVERAGED_EPOCHS * 3)
    for name, values in zip(names, (kernel, mean), strict=True):
        average = values[1]
        for value in values[2:]:
            average = kept * average + (1 - kept) * value
        assert torch.allclose(state.average[f"module.{name}"], average, rtol=1e-3, atol=1e-6), name
        assert not torch.allclose(values[-1], average, rtol=1e-3, atol=1e-6), name
    # It is what was judged, and is kept of the best epoch.
    network.load_state_dict(state.best_weights)
    answers = torch.from_numpy(predict_logits(network, val.squares, CPU))
    best = min(epoch.val_loss for epoch in state.history)
    assert float(torch.nn.functional.cross_entropy(answers, val.truth)) == pytest.approx(best, rel=1e-5)
    assert state.best_loss == best


@pytest.mark.parametrize("average", [False, True])
def test_what_is_judged_after_an_epoch_is_the_average_unless_none_is_wanted(tmp_path: Path, average: bool) -> None:
    recipe = Recipe(image_size=32, adapt_epochs=0, fine_epochs=1, batch_size=2, lr_fine=0.03, average=average)
    torch.manual_seed(0)
    network, (train, val) = Network(2), labelled_squares(tmp_path, recipe)
    state = fit(network, train, val, recipe, CPU, tmp_path / "state.pt", Told())
    averaged = {name.removeprefix("module."): tensor for name, tensor in state.average.items() if "." in name}
    losses = []
    for weights in (state.weights, averaged):
        network.load_state_dict(weights)
        answers = torch.from_numpy(predict_logits(network, val.squares, CPU))
        losses.append(float(torch.nn.functional.cross_entropy(answers, val.truth)))
    assert losses[average] == pytest.approx(state.history[0].val_loss, rel=1e-5)
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)
    judged = averaged if average else state.weights
    assert all(torch.equal(tensor, judged[name]) for name, tensor in state.best_weights.items())


def test_the_seconds_of_an_epoch_are_those_of_learning_waiting_and_validating(tmp_path: Path) -> None:
    class Slow(Squares):
        def __getitem__(self, indices: Sequence[int]) -> torch.Tensor:
            time.sleep(0.03)
            return super().__getitem__(indices)

    recipe = Recipe(image_size=32, adapt_epochs=1, fine_epochs=0, batch_size=2)
    train, val = (
        replace(split, squares=Slow(split.squares.paths, split.squares.preprocessing, tmp_path))
        for split in labelled_squares(tmp_path, recipe)
    )
    mine = replace(recipe, augmentation=Looking(look=lambda _: time.sleep(0.03)))
    (epoch,) = fit(Network(2), train, val, mine, CPU, tmp_path / "state.pt", Told()).history
    learning = 8 / epoch.pictures_per_second
    assert 0.119 < epoch.waiting * learning < learning - 0.119  # for four batches, each of which takes time, too
    assert epoch.seconds - learning > 0.029  # for those of the validation


def test_fewer_pictures_than_a_batch_are_one(tmp_path: Path) -> None:
    recipe, told = Recipe(image_size=32, adapt_epochs=0, fine_epochs=1, batch_size=9), []

    class Hearing(Told):
        def batch(self, *said: Any) -> None:
            told.append(said[:4])

    fit(Network(2), *labelled_squares(tmp_path, recipe), recipe, CPU, tmp_path / "state.pt", Hearing())
    assert told == [("fine-tuning", 1, 1, 1)]


def test_another_seed_is_another_order_and_other_luck(tmp_path: Path) -> None:
    orders, luck = [], []

    def note(pictures: torch.Tensor) -> None:
        orders.append(pictures[:, 0, 0, 0].tolist())
        luck.append(float(torch.rand(())))

    for seed in (0, 1):
        recipe = Recipe(image_size=32, adapt_epochs=1, fine_epochs=0, batch_size=8, seed=seed)
        mine = replace(recipe, augmentation=Looking(look=note))
        fit(Network(2), *labelled_squares(tmp_path, recipe), mine, CPU, tmp_path / f"{seed}.pt", Told())
    assert orders[0] != orders[1]
    assert luck[0] != luck[1]


def test_groups_and_other_columns_matter_as_much_as_is_asked_for(tmp_path: Path) -> None:
    recipe = Recipe(image_size=32, adapt_epochs=2, fine_epochs=2, batch_size=4, lr_adapt=0.03)
    train, val = labelled_squares(tmp_path, recipe)
    # The lightest picture is of the class of the dark ones, and a group of its own.
    truth = torch.tensor([0, 0, 0, 0, 1, 1, 1, 0])
    train = replace(
        train, truth=truth, groups=torch.tensor([0, 0, 0, 0, 1, 1, 1, 2]), others=torch.tensor([[0], [1]] * 4)
    )
    torch.manual_seed(0)
    begin, ends = Network(2).state_dict(), {}
    for name, mine in {
        "as it is": recipe,
        "all groups alike": replace(recipe, tilt=0.0),
        "more of the others": replace(recipe, auxiliary=1.0),
    }.items():
        torch.manual_seed(0)
        network = Network(2)
        network.load_state_dict(begin)
        ends[name] = fit(network, train, val, mine, CPU, tmp_path / f"{name}.pt", Told())
    easy, _, hard = ends["as it is"].group_weights
    # Which of them is harder, the luck of so few pictures decides; together the five count as much as five.
    assert hard != pytest.approx(easy, rel=1e-3)
    assert 4 * easy + hard == pytest.approx(5)
    assert ends["all groups alike"].group_weights == pytest.approx([1, 1, 1])
    for name in ("all groups alike", "more of the others"):
        kernels = (ends[end].weights["backbone.features.18.0.weight"] for end in ("as it is", name))
        assert not torch.equal(*kernels), name


def test_the_adaptation_ends_where_nothing_gets_better(tmp_path: Path) -> None:
    recipe = Recipe(image_size=32, adapt_epochs=9, fine_epochs=0, batch_size=4, patience=2, lr_adapt=0.0)
    best: list[bool] = []

    class Hearing(Told):
        def epoch(self, *said: Any) -> None:
            best.append(said[1])

    told = Hearing()
    state = fit(Network(2), *labelled_squares(tmp_path, recipe), recipe, CPU, tmp_path / "state.pt", told)
    assert len(state.history) == 1 + 2
    assert best == [True, False, False]  # none is better than one that is alike
    assert any("stopped early" in note for note in told.notes)


def test_with_class_weights_a_rare_class_is_answered_as_often_as_a_common_one(tmp_path: Path) -> None:
    """Pictures that say nothing: the likeliest answer is then the classes' frequency, or, weighted, all alike."""
    Image.new("RGB", (40, 40), "grey").save(tmp_path / "grey.png")
    truth = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
    answers = {}
    for weighted in (False, True):
        recipe = Recipe(
            image_size=32,
            adapt_epochs=40,
            fine_epochs=0,
            batch_size=4,
            lr_adapt=0.01,
            class_weights=weighted,
            augmentation=Augmentation(rotation=0, smallest_crop=1, zoom_out=0, colour=0, grey=0),
        )
        train, val = (
            Labelled(Squares([str(tmp_path / "grey.png")] * 8, spec, tmp_path), truth)
            for spec in (recipe.source, recipe.preprocessing)
        )
        network = Network(2)
        history = fit(network, train, val, recipe, CPU, tmp_path / f"{weighted}.pt", Told()).history
        with torch.inference_mode():
            answers[weighted] = float(network(val.squares[[0]]).softmax(1)[0, 1])
        rare = answers[weighted]
        expected = (
            -(math.log(rare) + math.log(1 - rare)) / 2 if weighted else -(3 * math.log(1 - rare) + math.log(rare)) / 4
        )
        assert min(epoch.val_loss for epoch in history) == pytest.approx(expected, abs=0.01)
    assert answers[False] == pytest.approx(0.25, abs=0.07)
    assert answers[True] == pytest.approx(0.5, abs=0.07)


@pytest.mark.parametrize(
    ("known", "stale", "names"),
    [
        (True, 0, ["mean of the first and the last weights", "last epoch"]),
        (True, 3, ["mean of the first and the last weights", "last epoch"]),
        (False, 0, ["last epoch"]),
        (False, 3, ["best epoch", "last epoch", "mean of the best and the last epoch"]),
    ],
)
def test_an_epoch_that_was_chosen_by_validation_is_no_candidate_of_known_features(
    known: bool, stale: int, names: list[str]
) -> None:
    first, best, last = ({"weight": torch.full((2,), value)} for value in (1.0, 2.0, 4.0))
    state = State("", stale_epochs=stale, best_weights=best, first_weights=first)
    found = candidates(state, last, known)
    assert list(found) == names
    means = {"mean of the first and the last weights": 2.5, "mean of the best and the last epoch": 3.0}
    assert {name: float(found[name]["weight"][0]) for name in names if name in means} == {
        name: mean for name, mean in means.items() if name in names
    }


def test_of_known_features_what_is_better_than_before_by_luck_only_is_not_taken() -> None:
    before = 0.5 + 0.1 * torch.randn(400, generator=torch.Generator().manual_seed(0))
    lucky = before + 0.3 * torch.randn(400, generator=torch.Generator().manual_seed(1))
    lucky += before.mean() - lucky.mean() - 0.02  # a standard error is 0.015
    better = lucky - 0.02
    assert choose(torch.stack([before, lucky]), before) == 0
    assert choose(torch.stack([before, lucky]), None) == 1
    assert choose(torch.stack([before, better, lucky]), before) == 1
    # By how much it is better than the first does not matter.
    assert choose(torch.stack([better + 0.001, better]), before) == 1
    assert choose(torch.stack([before, before + 1]), before) == 0
    assert choose(torch.tensor([[0.5], [0.4]]), torch.tensor([0.5])) == 1


def test_many_pictures_of_few_people_are_no_more_evidence_than_the_people() -> None:
    before = torch.zeros(400)
    people = torch.arange(20).repeat_interleave(20)
    gain = torch.randn(20, generator=torch.Generator().manual_seed(0))
    gain += 0.3 - gain.mean()  # a standard error is about 0.2 of 20 people, and 0.05 of 400 pictures
    losses = torch.stack([before, before - gain[people]])
    assert choose(losses, before) == 1
    assert choose(losses, before, people) == 0
    assert choose(losses, before, torch.arange(400)) == 1
    assert choose(losses - 0.2, before, people) == 1


def kept_of(
    folder: Path, answers: list[np.ndarray], epochs: int, known: torch.nn.Linear | None = None, weighted: bool = False
) -> State:
    """What is kept where weights, in the order in which they are first judged, give these logits of 200 pictures, the
    even ones of class 0, of which three times as many are learnt; `weighted`: by that."""
    seen: list[torch.Tensor] = []

    def predicted(network: Network, *_: object) -> np.ndarray:
        weights = network.linear.weight.detach().clone()
        if not any(torch.equal(weights, earlier) for earlier in seen):
            seen.append(weights)
        return next(answer for answer, earlier in zip(answers, seen, strict=False) if torch.equal(weights, earlier))

    recipe = Recipe(
        image_size=32, adapt_epochs=0, fine_epochs=epochs, batch_size=4, average=False, class_weights=weighted
    )
    train, val = labelled_squares(folder, recipe)
    train = replace(train, truth=torch.tensor([0, 0, 0, 1] * 2))
    val = replace(val, truth=torch.tensor([0, 1] * 100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gender_batch.training.fit.predict_logits", predicted)
        return fit(Network(2), train, val, recipe, CPU, folder / "state.pt", Told(), known)


def logits(wrong: int, margin: float) -> np.ndarray:
    right = np.tile(np.eye(2, dtype=np.float32), (100, 1))
    return margin * np.concatenate([right[:wrong, ::-1], right[wrong:]])


def test_each_candidate_is_judged_at_the_temperature_that_suits_it(tmp_path: Path) -> None:
    """The first epoch is modest, and has the lower loss; the second is more often right, and far too sure."""
    state = kept_of(tmp_path, [logits(40, 1), logits(10, 20), logits(100, 1)], epochs=2)
    assert state.history[0].val_loss < state.history[1].val_loss
    assert state.kept == "last epoch"


@pytest.mark.parametrize(("weighted", "kept"), [(False, "last epoch"), (True, "best epoch")])
def test_candidates_are_judged_by_the_weights_of_the_classes(tmp_path: Path, weighted: bool, kept: str) -> None:
    """The last epoch is wrong about fewer pictures than the first, but these are of the class that counts thrice."""
    right = logits(0, 1)
    common, rare = right.copy(), right.copy()
    common[0:60:2], rare[1:41:2] = right[0:60:2, ::-1], right[1:41:2, ::-1]  # 30 and 20 are wrong
    assert kept_of(tmp_path, [common, rare, logits(100, 1)], epochs=2, weighted=weighted).kept == kept


@pytest.mark.parametrize("where", ["training", "validation"])
def test_a_loss_that_is_not_finite_ends_the_training_and_nothing_of_it_is_kept(tmp_path: Path, where: str) -> None:
    recipe, network = Recipe(image_size=32, adapt_epochs=1, fine_epochs=0, batch_size=4), Network(2)
    answer = np.zeros((8, 2), np.float32)
    if where == "training":
        network.linear.bias.data.fill_(math.nan)
    else:
        answer.fill(math.nan)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gender_batch.training.fit.predict_logits", lambda *_: answer)
        with pytest.raises(FloatingPointError, match="not finite in adaptation epoch 1"):
            fit(network, *labelled_squares(tmp_path, recipe), recipe, CPU, tmp_path / "state.pt", Told())
    assert not (tmp_path / "state.pt").exists()


@pytest.mark.parametrize(
    ("last", "mean", "kept"),
    [
        (39, 40, "mean of the first and the last weights"),
        (10, 40, "last epoch"),
        (10, 11, "last epoch"),
        (11, 10, "mean of the first and the last weights"),
    ],
)
def test_of_known_features_the_last_epoch_is_kept_where_fine_tuning_has_clearly_helped(
    tmp_path: Path, last: int, mean: int, kept: str
) -> None:
    """Of 200 pictures 40 were answered wrong before it."""
    known = torch.nn.Linear(EMBEDDING, 2)
    assert kept_of(tmp_path, [logits(40, 1), logits(last, 1), logits(mean, 1)], epochs=1, known=known).kept == kept


@pytest.mark.parametrize("known", [False, True])
def test_where_pictures_say_nothing_little_of_what_was_learnt_is_kept_of_known_features(
    tmp_path: Path, known: bool
) -> None:
    recipe = Recipe(image_size=32, adapt_epochs=1, fine_epochs=2, batch_size=4, lr_adapt=1e-4, lr_fine=1e-4)
    Image.new("RGB", (40, 40), "grey").save(tmp_path / "grey.png")
    grey, truth = [str(tmp_path / "grey.png")] * 8, torch.tensor([0, 1] * 4)
    train, val = (Labelled(Squares(grey, spec, tmp_path), truth) for spec in (recipe.source, recipe.preprocessing))
    torch.manual_seed(0)  # where the best epoch is by luck the one before the fine-tuning, its mean is the same one
    network = Network(2)
    head = torch.nn.Linear(EMBEDDING, 2) if known else None
    state = fit(network, train, val, recipe, CPU, tmp_path / "state.pt", Told(), head)
    name = "backbone.features.18.0.weight"
    first, last = state.first_weights[name], state.average[f"module.{name}"]
    assert not torch.allclose(last, (first + last) / 2, rtol=0, atol=1e-8)
    kept = torch.allclose(network.state_dict()[name], (first + last) / 2, rtol=0, atol=1e-8)
    assert kept == known
    assert (state.kept == "mean of the first and the last weights") == known
    assert state.kept


@pytest.mark.parametrize(("statistics_from", "own"), [(9, False), (8, True)])
def test_few_pictures_leave_the_statistics_of_the_features(tmp_path: Path, statistics_from: int, own: bool) -> None:
    recipe = Recipe(
        image_size=32, adapt_epochs=1, fine_epochs=1, batch_size=4, average=False, statistics_from=statistics_from
    )
    network = Network(2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fit(network, *labelled_squares(tmp_path, recipe), recipe, CPU, tmp_path / "state.pt", Told())
    last = State.load(tmp_path / "state.pt").weights
    changed = {name for name, tensor in last.items() if not torch.equal(tensor, before[name])}
    assert any("running_mean" in name for name in changed) == own
    assert any("features" in name and "weight" in name for name in changed)


def test_blocks_far_from_the_head_learn_less_and_only_kernels_decay(tmp_path: Path) -> None:
    recipe = Recipe(
        image_size=32, adapt_epochs=0, fine_epochs=4, batch_size=4, average=False, lr_fine=1e-3, layer_decay=0.5,
        weight_decay=100,
    )  # fmt: skip
    network = Network(2)
    before = {name: tensor.detach().clone() for name, tensor in network.backbone.features.named_parameters()}
    fit(network, *labelled_squares(tmp_path, recipe), recipe, CPU, tmp_path / "state.pt", Told())
    weights = State.load(tmp_path / "state.pt").weights

    def shrunk(name: str) -> float:
        return float(weights[f"backbone.features.{name}"].norm() / before[name].norm())

    assert shrunk("18.0.weight") < 0.95
    assert shrunk("0.0.weight") == pytest.approx(1, abs=1e-3)
    assert shrunk("18.1.weight") == pytest.approx(1, abs=0.02)  # of a batch norm


# Figures


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


def test_the_interval_of_all_folds_is_that_of_their_people() -> None:
    def fold(name: str) -> run.Result:
        answers = tuple(Answer("", "", 0, (0.9, 0.1) if n < 9 else (0.1, 0.9), f"{name}{n // 3}") for n in range(12))
        figures = measure(np.array([answer.probabilities for answer in answers]), [0] * 12, ("a", "b"), 0.5)
        return run.Result(Path(name), figures, figures, Threshold(0.5, 0.9, True, *[Proportion(9, 12)] * 2), answers)

    validated = run.CrossValidation(Path("folds"), (fold("x"), fold("y")))
    assert validated.mean == 0.75
    assert (len(validated.answers), validated.people) == (24, 8)
    # Of each person all three are right, or wrong: they count as one, and the variance of so few is one more's.
    assert validated.interval == pytest.approx(Proportion(18, 24, 7.0).interval)


# Faces, where they are


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
