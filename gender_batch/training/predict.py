"""What a network says of pictures, and how sure it should be."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from gender_batch.training.loading import Squares, batches
from gender_batch.training.network import Network
from gender_batch.training.recipe import Machine


def predict_logits(
    network: Network,
    squares: Squares,
    machine: Machine,
    batch_size: int = 64,
    view: Callable[[Tensor], Tensor] = lambda pictures: pictures,
) -> NDArray[np.float32]:
    """Logits (N, classes) of the pictures, each batch as `view` shows it, in evaluation mode and full precision."""
    network.eval()
    outputs: list[NDArray[np.float32]] = []
    with torch.inference_mode():
        for pictures, _ in batches(squares, batch_size, machine.workers, machine.device):
            outputs.append(network(view(pictures)).float().cpu().numpy())
    return np.concatenate(outputs) if outputs else np.zeros((0, network.classes), np.float32)


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The temperature that maximises the likelihood of held-out labels (Guo et al. 2017, section 4.2), by LBFGS."""
    scores, truth = torch.from_numpy(logits).double(), torch.from_numpy(labels)
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(scores / log_temperature.exp(), truth)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    # A handful of perfectly separated pictures has no finite optimum.
    return float(log_temperature.detach().exp().clamp(0.05, 20.0))
