"""Which weights a training may keep: those of an epoch, or a mean of two, and how one of them is chosen."""

from __future__ import annotations

import torch
from torch import Tensor

from gender_batch.training.state import State

Weights = dict[str, Tensor]

BEFORE = "weights before the fine-tuning"


def candidates(state: State, last: Weights, known: bool) -> dict[str, Weights]:
    """The weights to choose from, by what they are called, of a run whose fine-tuning ended with the `last` ones.

    Those of the best epoch, the last ones and their mean (Wortsman et al. 2022: networks that were tuned from one start
    lie in one basin). Where the features were known, the weights before the fine-tuning, the mean of these and the last
    ones, and the last ones: the best of many epochs was best by luck, too, on the very pictures that it would be judged
    by.
    """
    if known:
        first = state.first_weights
        mean = _mean(first, last)
        return {BEFORE: first, "mean of the first and the last weights": mean, "last epoch": last}
    if not state.stale_epochs:
        return {"last epoch": last}  # which is the best one
    best = state.best_weights
    return {"best epoch": best, "last epoch": last, "mean of the best and the last epoch": _mean(best, last)}


def choose(losses: Tensor, known: bool, people: Tensor | None = None) -> int:
    """Which of the candidates to take, by their losses on the same pictures, (candidates, N): that of the least mean.

    Where the features were known, it is the mean of the first and the last weights, unless what was learnt is clearly
    good, that is, the better one of this mean and the last weights has less loss than the weights before by more than
    two standard errors of the difference: then it is that one; or clearly bad, that is, this mean has more by as much:
    then it is the weights before. Of pictures such as the features know already, few cannot tell which is better; of
    others much is learnt, and half of it would be given away.

    `people` are the indices (N,) of whom the pictures show, None: each somebody else. The pictures of a person are no
    independent ones: the standard error is that of a mean over clusters (Cochran 1977, "Sampling Techniques", sec. 6).
    """
    if not known:
        return int(losses.mean(1).argmin())
    before, mean, _ = losses
    better = 1 + int(losses[1:].mean(1).argmin())
    if _clearly_less(losses[better], before, people):
        return better
    return 0 if _clearly_less(before, mean, people) else 1


def _clearly_less(losses: Tensor, others: Tensor, people: Tensor | None) -> bool:
    """By more than two standard errors of the difference, of losses (N,) on the same pictures."""
    gain = (others - losses).double()
    deviations = gain - gain.mean()
    if people is not None:
        deviations = torch.bincount(people, deviations)
    clusters = len(deviations)
    if clusters < 2:
        return False  # how far people differ cannot be told of one
    variance = clusters / (clusters - 1) * deviations.square().sum()
    return bool(gain.mean() > 2 * variance.sqrt() / len(gain))


def _mean(these: Weights, those: Weights) -> Weights:
    return {name: ((these[name].double() + those[name].double()) / 2).to(those[name].dtype) for name in those}
