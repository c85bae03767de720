"""Where the head starts: at what the features' own model knew, whatever the classes are called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from safetensors.torch import save_file
from watching import Told

from gender_batch.pictures.preprocessing import Preprocessing
from gender_batch.training.fit import Labelled, fit
from gender_batch.training.head import start_head, translate
from gender_batch.training.loading import Squares
from gender_batch.training.network import EMBEDDING, Network, load_initial_weights
from gender_batch.training.recipe import Machine, Recipe

SIZE = 32


@pytest.fixture
def squares(tmp_path: Path) -> Squares:
    """Forty pictures of noise around grey of different brightness."""
    noise = np.random.default_rng(0)
    paths = []
    for number in range(40):
        pixels = (6 * number + noise.integers(0, 16, (SIZE, SIZE, 3))).astype(np.uint8)
        paths.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(pixels).save(paths[-1])
    return Squares(paths, Preprocessing(SIZE, SIZE), tmp_path)


def known_head(network: Network, squares: Squares, classes: int) -> torch.nn.Linear:
    """A head that tells the pictures apart by brightness: a class for each part of them."""
    network.eval()
    with torch.inference_mode():
        seen = network.embedding(squares[range(len(squares))]).numpy()
    wanted = np.eye(classes)[np.arange(len(squares)) * classes // len(squares)] * 4 - 2
    solved = np.linalg.lstsq(seen, wanted, rcond=None)[0]
    head = torch.nn.Linear(EMBEDDING, classes)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(solved.T))
        head.bias.zero_()
    return head


@pytest.mark.parametrize("classes", [2, 3])
def test_what_was_known_is_known_under_other_names(squares: Squares, classes: int) -> None:
    torch.manual_seed(0)
    network = Network(classes)
    known = known_head(network, squares, classes)
    renamed = (torch.arange(len(squares)) * classes // len(squares) + 1) % classes
    start_head(network, known, squares, renamed, SIZE)
    with torch.inference_mode():
        answers = network(squares[range(len(squares))]).argmax(1)
    assert (answers == renamed).float().mean() > 0.9


def test_of_other_classes_only_what_tells_of_them_is_kept(squares: Squares) -> None:
    """Three parts known, two asked for: the middle one belongs to the upper, and half of the numbers suffice."""
    torch.manual_seed(0)
    network = Network(2)
    known = known_head(network, squares, 3)
    truth = (torch.arange(len(squares)) * 3 // len(squares)).clamp(max=1)
    start_head(network, known, squares, truth, SIZE)
    with torch.inference_mode():
        answers = network(squares[range(len(squares))]).argmax(1)
    assert (answers == truth).float().mean() > 0.9


def test_a_rare_class_is_not_left_out(squares: Squares, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tenth picture is looked at, and one of forty is of the third class."""
    monkeypatch.setattr("gender_batch.training.head.LOOKED_AT", 4)
    torch.manual_seed(0)
    network = Network(3)
    known = known_head(network, squares, 2)
    truth = torch.arange(40) // 20
    truth[-1] = 2
    start_head(network, known, squares, truth, SIZE)
    with torch.inference_mode():
        answers = network(squares[range(40)]).argmax(1)
    assert (answers == truth)[:-1].float().mean() > 0.8


def test_logits_that_say_nothing_become_the_frequencies_of_the_classes() -> None:
    logits, truth = np.zeros((8, 2), np.float32), np.array([0, 0, 0, 0, 0, 0, 1, 1])
    for balanced, share in ((False, 0.25), (True, 0.5)):
        by_class, bias = translate(logits, truth, balanced)
        assert torch.equal(by_class, torch.zeros(2, 2))
        assert float(bias.softmax(0)[1]) == pytest.approx(share, abs=1e-3)


def test_a_start_that_nothing_learnt_is_better_than_stays(squares: Squares, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Network(2)
    known = known_head(network, squares, 2)
    truth = torch.arange(40) // 20
    # A rate at which everything is forgotten at once.
    recipe = Recipe(image_size=SIZE, adapt_epochs=1, fine_epochs=0, batch_size=8, lr_adapt=10.0)
    train = Labelled(Squares(squares.paths, recipe.source, tmp_path), truth)
    told = Told()
    machine = Machine(torch.device("cpu"), workers=0)
    state = fit(network, train, Labelled(squares, truth), recipe, machine, tmp_path / "state.pt", told, known)
    assert state.best_loss < state.history[0].val_loss
    # The fine-tuning would begin with it, too, not with what was learnt last.
    assert all(torch.equal(tensor, state.best_weights[name]) for name, tensor in state.first_weights.items())
    assert all(torch.equal(tensor, state.best_weights[name]) for name, tensor in network.state_dict().items())
    with torch.inference_mode():
        answers = network(squares[range(40)]).argmax(1)
    assert (answers == truth).float().mean() > 0.9
    assert any("the head starts at what is known" in note for note in told.notes)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_training_begins_with_a_head_for_the_size_at_which_it_is_judged_and_for_classes_as_they_count(
    squares: Squares, tmp_path: Path, weighted: bool
) -> None:
    """A quarter of the pictures is of the second class, and not what was known as one."""
    torch.manual_seed(0)
    network, twin = Network(2), Network(2)
    twin.load_state_dict(network.state_dict())
    known, truth = known_head(network, squares, 3), (torch.arange(40) >= 30).long()
    recipe = Recipe(image_size=48, adapt_epochs=0, fine_epochs=0, class_weights=weighted)
    train, val = (
        Labelled(Squares(squares.paths, kind, tmp_path), truth) for kind in (recipe.source, recipe.preprocessing)
    )
    told, machine = Told(), Machine(torch.device("cpu"), workers=0)
    state = fit(network, train, val, recipe, machine, tmp_path / "state.pt", told, known)
    heads = []
    for size, balanced in ((48, weighted), (48, not weighted), (recipe.size_in_training, weighted)):
        start_head(twin, known, train.squares, truth, size, balanced)
        heads.append(torch.cat([twin.linear.weight, twin.linear.bias[:, None]], 1).detach())
    begun = torch.cat([network.linear.weight, network.linear.bias[:, None]], 1).detach()
    distances = [float((begun - head).norm() / head.norm()) for head in heads]
    assert distances[0] < 1e-3 < 0.01 < min(distances[1:])
    with torch.inference_mode():
        right = network.eval()(val.squares[range(40)]).argmax(1) == truth
    said = f"validation loss {state.best_loss:.4f} accuracy {float(right.float().mean()):.2%}"
    assert sum(note.endswith(said) for note in told.notes) == 1


def test_a_head_is_known_of_checkpoints_only(tmp_path: Path) -> None:
    network = Network(2)
    torch.save(network.backbone.state_dict(), tmp_path / "plain.pth")
    assert load_initial_weights(Network(2), str(tmp_path / "plain.pth")).head is None
    state = {name: tensor for name, tensor in network.state_dict().items() if "classifier" not in name}
    save_file(state, tmp_path / "features.safetensors", {"gender_batch": "{}"})
    assert load_initial_weights(Network(2), str(tmp_path / "features.safetensors")).head is None
    head = load_initial_weights(Network(5), "embedded").head
    assert head is not None
    assert head.weight.shape == (2, EMBEDDING)
