"""Which weights are kept."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from gender_batch.training.kept import BEFORE, candidates, choose
from gender_batch.training.state import State


@pytest.mark.parametrize(
    ("known", "stale", "names"),
    [
        (True, 0, [BEFORE, "mean of the first and the last weights", "last epoch"]),
        (True, 3, [BEFORE, "mean of the first and the last weights", "last epoch"]),
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
    assert choose(torch.stack([before, before, lucky]), known=True) == 1
    assert choose(torch.stack([before, lucky]), known=False) == 1
    assert choose(torch.stack([before, before, better]), known=True) == 2
    assert choose(torch.stack([before, better, lucky]), known=True) == 1
    # By how much it is better than the mean does not matter.
    assert choose(torch.stack([before, better + 0.001, better]), known=True) == 2
    assert choose(torch.stack([before, before, before + 1]), known=True) == 1
    assert choose(torch.tensor([[0.5], [0.5], [0.4]]), known=True) == 1  # one picture tells nothing of chance
    many = torch.stack([before, before + 1e-3, before - 1e-3])
    assert choose(many, known=True, people=torch.arange(400)) == 2
    assert choose(many, known=True, people=torch.zeros(400, dtype=torch.int64)) == 1  # nor do many of one person


def test_of_known_features_what_was_learnt_is_given_up_where_it_is_clearly_worse() -> None:
    before = 0.5 + 0.1 * torch.randn(400, generator=torch.Generator().manual_seed(0))
    unlucky = before + 0.3 * torch.randn(400, generator=torch.Generator().manual_seed(1))
    unlucky += before.mean() - unlucky.mean() + 0.02  # a standard error is 0.015
    assert choose(torch.stack([before, unlucky, unlucky + 1]), known=True) == 1
    assert choose(torch.stack([before, unlucky + 0.02, unlucky + 1]), known=True) == 0
    assert choose(torch.stack([before, unlucky + 0.02, before - 1]), known=True) == 2
    people = torch.arange(20).repeat_interleave(20)
    worse = torch.stack([before, before + 0.1 * torch.sin(0.3 * people) + 0.03, before + 1])
    assert choose(worse, known=True) == 0
    assert choose(worse, known=True, people=people) == 1


def test_many_pictures_of_few_people_are_no_more_evidence_than_the_people() -> None:
    before = torch.zeros(400)
    people = torch.arange(20).repeat_interleave(20)
    gain = torch.randn(20, generator=torch.Generator().manual_seed(0))
    gain += 0.3 - gain.mean()  # a standard error is about 0.2 of 20 people, and 0.05 of 400 pictures
    losses = torch.stack([before, before, before - gain[people]])
    assert choose(losses, known=True) == 2
    assert choose(losses, True, people) == 1
    assert choose(losses, True, torch.arange(400)) == 2
    losses[2] -= 0.2
    assert choose(losses, True, people) == 2
