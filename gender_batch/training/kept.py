"""Which weights a training may keep: those of an epoch, or a mean of two, and how one of them is chosen."""

from __future__ import annotations

import torch
from torch import Tensor

from gender_batch.training.state import State

Weights = dict[str, Tensor]


def candidates(state: State, last: Weights, known: bool) -> dict[str, Weights]:
    """The weights to choose from, by what they are called, of a run whose fine-tuning ended with the `last` ones.

    Those of the best epoch, the last ones and their mean (Wortsman et al. 2022: networks that were tuned from one start
    lie in one basin). Where the features were known, the mean of the first and the last weights of the fine-tuning, and
    the last ones: the best of many epochs was best by luck, too, on the very pictures that it would be judged by.
    """
    if known:
        return {"mean of the first and the last weights": _mean(state.first_weights, last), "last epoch": last}
    if not state.stale_epochs:
        return {"last epoch": last}  # which is the best one
    best = state.best_weights
    return {"best epoch": best, "last epoch": last, "mean of the best and the last epoch": _mean(best, last)}


def choose(losses: Tensor, before: Tensor | None, people: Tensor | None = None) -> int:
    """Which of the candidates to take, by their losses on the same pictures, (candidates, N): that of the least mean.

    Where the features were known, `before` are the losses (N,) of the weights that the fine-tuning began with, and the
    first candidate is taken, unless the least mean is less than theirs by more than two standard errors of the
    difference. Of pictures such as the features know already, few cannot tell which of the two is better; of others
    much is learnt, and half of it would be given away.

    `people` are the indices (N,) of whom the pictures show, None: each somebody else. The pictures of a person are no
    independent ones: the standard error is that of a mean over clusters (Cochran 1977, "Sampling Techniques", sec. 6).
    """
    least = int(losses.mean(1).argmin())
    if before is None:
        return least
    gain = (before - losses[least]).double()
    deviations = gain - gain.mean()
    if people is not None:
        deviations = torch.bincount(people, deviations)
    return least if gain.mean() > 2 * deviations.square().sum().sqrt() / len(gain) else 0


def _mean(these: Weights, those: Weights) -> Weights:
    return {name: ((these[name].double() + those[name].double()) / 2).to(those[name].dtype) for name in those}
