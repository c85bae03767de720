"""What a network says of pictures, and how sure it should be."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from gender_batch.training.loading import Squares, batches
from gender_batch.training.network import Network
from gender_batch.training.recipe import Machine

USUAL_TEMPERATURE, DEVIATION = 1.25, 0.35
"""What suits networks that were fine-tuned, and the standard deviation of its logarithm. Of 18 that began with known
features the best temperatures on the test were 0.7 to 1.7, and so were those fitted to 79 validation pictures alone,
but not of the same networks: log-losses of 0.247, 0.216 and 0.421 are 0.236, 0.211 and 0.415 with this. One from
ImageNet had 1.9 (benchmarks/results/ablation.md)."""


def predict_logits(
    network: Network,
    squares: Squares,
    machine: Machine,
    batch_size: int = 64,
    view: Callable[[Tensor], Tensor] = lambda pictures: pictures,
) -> NDArray[np.float32]:
    """Logits (N, classes) of the pictures, each batch as `view` shows it, in evaluation mode and full precision.

    On a GPU that is without TF32, which it uses for convolutions unless it is told not to.
    """
    network.eval()
    outputs: list[NDArray[np.float32]] = []
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for pictures, _ in batches(squares, batch_size, machine.workers, machine.device):
            outputs.append(network(view(pictures)).float().cpu().numpy())
    return np.concatenate(outputs) if outputs else np.zeros((0, network.classes), np.float32)


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The most probable temperature by held-out labels (Guo et al. 2017, section 4.2) and by what is usual, by LBFGS.

    Its logarithm is taken for normal around that of `USUAL_TEMPERATURE`. Thousands of labels decide alone; a handful,
    all of them right, would else make a network certain of everything.
    """
    scores, truth = torch.from_numpy(logits).double(), torch.from_numpy(labels)
    usual = math.log(USUAL_TEMPERATURE)
    log_temperature = torch.tensor(usual, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        unlikely = ((log_temperature - usual) / DEVIATION) ** 2 / 2
        loss = functional.cross_entropy(scores / log_temperature.exp(), truth) + unlikely / len(truth)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return float(log_temperature.detach().exp())
