"""The head before it learns: what the model knew that the features come from, in the classes that are asked for."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from gender_batch.training.augmentation import zoom_out
from gender_batch.training.loading import Squares
from gender_batch.training.network import Network

LOOKED_AT = 2000
"""Pictures that the few numbers are learnt from, at most or about."""

BATCH = 64


def start_head(
    network: Network, known: nn.Linear, squares: Squares, truth: Tensor, size: int, balanced: bool = False
) -> None:
    """Let the network's head answer what the head `known` of its features answers, put into the new classes.

    The logits of `known` are what a logistic regression sees of the training pictures, `squares` shown at `size`
    pixels, which are of the classes `truth` (N,). Its few numbers are learnt well from few pictures, where the 1280 of
    each class are not; and it does not matter how the classes are called. `balanced`: all classes count alike.
    """
    every = -(-len(truth) // LOOKED_AT)
    # Of each class by itself: none is so rare that it is left out.
    chosen = torch.cat([(truth == label).nonzero()[::every, 0] for label in range(network.classes)]).tolist()
    device = network.mean.device
    network.eval()
    with torch.inference_mode():
        parts = (squares[chosen[first : first + BATCH]].to(device) for first in range(0, len(chosen), BATCH))
        seen = [network.embedding(zoom_out(part, 1.0, size)).float().cpu() for part in parts]
        logits = known(torch.cat(seen)).numpy()
    by_class, bias = translate(logits, truth[chosen].numpy(), balanced)
    with torch.no_grad():
        network.linear.weight.copy_(by_class @ known.weight)
        network.linear.bias.copy_(by_class @ known.bias + bias)


def translate(logits: NDArray[np.float32], truth: NDArray[np.int64], balanced: bool = False) -> tuple[Tensor, Tensor]:
    """What makes logits of the classes of `truth` (N,) out of `logits` (N, K): matrix (classes, K), bias (classes,)."""
    found = LogisticRegression(class_weight="balanced" if balanced else None).fit(logits, truth)
    by_class, bias = torch.from_numpy(found.coef_).float(), torch.from_numpy(found.intercept_).float()
    if len(found.classes_) == 2:  # of two classes only by how much the second leads is found
        return torch.cat([-by_class, by_class]) / 2, torch.cat([-bias, bias]) / 2
    return by_class, bias
