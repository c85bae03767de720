"""What the loss is made of besides the cross-entropy of the classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

from gender_batch.training.network import EMBEDDING
from gender_batch.training.recipe import Recipe


def mixing(recipe: Recipe, classes: int) -> nn.Module | None:
    """What blends the pictures of a batch and their labels; None: nothing does."""
    chosen: list[nn.Module] = []
    if recipe.mixup:
        chosen.append(v2.MixUp(alpha=recipe.mixup, num_classes=classes))
    if recipe.cutmix:
        chosen.append(v2.CutMix(alpha=recipe.cutmix, num_classes=classes))
    return v2.RandomChoice(chosen) if chosen else None


def inverse_frequencies(truth: Tensor, classes: int) -> Tensor:
    """Weights (classes,) that make every class count alike, 1 on average over the pictures."""
    return len(truth) / (classes * torch.bincount(truth, minlength=classes).clamp(min=1).float())


class Auxiliary(nn.Module):
    """Heads that learn other columns beside the classes: features that tell age, say, tell people apart better.

    They see the same embedding as the head, and are not kept: `others` are class indices (N, columns), -1 unknown.
    """

    def __init__(self, others: Tensor | None, device: torch.device) -> None:
        super().__init__()
        self.others = torch.zeros(0, 0) if others is None else others
        counts = [int(column.max()) + 1 for column in self.others.unbind(1)]
        self.heads = nn.ModuleList(nn.Sequential(nn.Dropout(0.2), nn.Linear(EMBEDDING, count)) for count in counts)
        self.to(device)

    def forward(self, embedding: Tensor) -> list[Tensor]:
        """Logits (N, values) for each column."""
        return [head(embedding) for head in self.heads]

    def loss(self, logits: Sequence[Tensor], indices: Tensor) -> Tensor:
        """Mean cross-entropy in nats over the columns, of the pictures `indices` (N,)."""
        truth = self.others[indices].to(logits[0].device, non_blocking=True)
        losses = [
            functional.cross_entropy(scores.float(), column, ignore_index=-1, reduction="sum")
            for scores, column in zip(logits, truth.unbind(1), strict=True)
        ]
        return torch.stack(losses).sum() / truth.numel()


class GroupLosses:
    """What the groups lost in this epoch, and how much their pictures count in it for what they lost before."""

    def __init__(self, groups: Tensor, truth: Tensor, device: torch.device) -> None:
        self.groups, self.device = groups, device
        self.pictures = torch.bincount(groups)
        # Each group is of one class.
        self.classes = torch.zeros_like(self.pictures).scatter(0, groups, truth)
        self.begin([])

    def begin(self, weights: Sequence[float]) -> None:
        count = len(self.pictures)
        self.weights = torch.tensor(weights or [1.0] * count, device=self.device)
        self.sums, self.seen = torch.zeros(count, device=self.device), torch.zeros(count, device=self.device)

    def weights_of(self, indices: Tensor) -> Tensor:
        return self.weights[self.groups[indices].to(self.device)]

    def add(self, indices: Tensor, losses: Tensor) -> None:
        groups = self.groups[indices].to(self.device)
        self.sums.index_add_(0, groups, losses)
        self.seen.index_add_(0, groups, torch.ones_like(losses))

    def tilted(self, tilt: float) -> list[float]:
        """Weights that go half of the way from those of this epoch to exp(tilt * mean loss).

        They are 1 on average over the pictures of each class: weights that move whole classes answer a network that
        leans to one class by one that leans to the other, more strongly with every epoch.
        """
        means = (self.sums / self.seen.clamp(min=1)).cpu().double()
        count = len(self.pictures)
        # Only ratios within a class matter: relative to its largest mean loss no power is too large, nor all are zero.
        largest = torch.zeros(count, dtype=torch.float64).scatter_reduce(0, self.classes, means, "amax")[self.classes]
        raised = (self.weights.cpu().double() * (tilt * (means - largest)).exp()).sqrt()
        heads = torch.zeros(count, dtype=torch.float64).index_add(0, self.classes, self.pictures.double())
        weighed = torch.zeros(count, dtype=torch.float64).index_add(0, self.classes, raised * self.pictures)
        weights: list[float] = (raised * heads[self.classes] / weighed[self.classes]).tolist()
        return weights
