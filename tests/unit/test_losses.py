"""What counts how much in learning: groups, classes, mixed pictures, and what is learnt beside the classes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from gender_batch.training import run
from gender_batch.training.dataset import Dataset
from gender_batch.training.losses import Auxiliary, GroupLosses, inverse_frequencies, mixing
from gender_batch.training.network import EMBEDDING
from gender_batch.training.recipe import Recipe
from gender_batch.training.samples import DatasetError, Sample


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
