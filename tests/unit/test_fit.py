"""The two phases: what learns, at which rate, what is judged, and what is kept of it."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from torch import nn
from torch.optim.swa_utils import AveragedModel
from watching import Interrupting, Told

from gender_batch.training import loading
from gender_batch.training.augmentation import Augmentation
from gender_batch.training.fit import AVERAGED_EPOCHS, REPORT_EVERY, Labelled, _moving_average, fit, schedule
from gender_batch.training.loading import Squares
from gender_batch.training.network import EMBEDDING, Network
from gender_batch.training.predict import predict_logits
from gender_batch.training.recipe import Machine, Recipe
from gender_batch.training.state import State

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


def test_the_seconds_of_an_epoch_are_those_of_learning_waiting_and_validating(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "LARGEST_CACHE", 0)  # what is kept is gathered while others are learnt

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
            adapt_epochs=15,
            fine_epochs=0,
            batch_size=4,
            lr_adapt=0.03,
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
        (90, 42, "mean of the first and the last weights"),
        (90, 80, "weights before the fine-tuning"),
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
