"""The training loop: two phases over the same network, best epoch by validation loss, resumable at any epoch."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from gender_batch.outputs.publish import published
from gender_batch.pictures.preprocessing import Preprocessing
from gender_batch.training.dataset import Dataset, Sample
from gender_batch.training.loading import EvaluationPictures, TrainingPictures, batches
from gender_batch.training.network import Network

WEIGHT_DECAY = 0.01
LABEL_SMOOTHING = 0.05
WARM_UP = 0.1
"""Share of the fine-tuning steps over which the rate rises from zero."""


@dataclass(frozen=True)
class Recipe:
    """All that decides the result of a training run, besides the data."""

    image_size: int = 224
    adapt_epochs: int = 5
    fine_epochs: int = 15
    batch_size: int = 32
    lr_adapt: float = 3e-3
    lr_fine: float = 3e-4
    patience: int = 6
    seed: int = 0

    @property
    def preprocessing(self) -> Preprocessing:
        """The centre crop keeps 15/16 of the shorter side: faces sit in the middle, hair and chin near the edge."""
        return Preprocessing(size=self.image_size, resize=round(self.image_size * 16 / 15))


@dataclass(frozen=True)
class Machine:
    """Where it runs: a torch device, and the number of processes that decode and augment."""

    device: torch.device
    workers: int

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bf16 where the device has it, fp16 on older GPUs."""
        return torch.autocast(self.device.type, self.precision)

    @property
    def precision(self) -> torch.dtype:
        if self.device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.float16
        return torch.bfloat16


@dataclass(frozen=True)
class Epoch:
    """One line of the history. Losses are mean cross-entropies in nats, without label smoothing for validation."""

    phase: str
    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float
    pictures_per_second: float


class Phase(StrEnum):
    """The two parts of transfer learning, in their order."""

    ADAPTATION = "adaptation"
    FINE_TUNING = "fine-tuning"


class Watcher(Protocol):
    """Who is told how the training goes."""

    def batch(self, phase: str, epoch: int, done: int, total: int, loss: float) -> None: ...

    def epoch(self, epoch: Epoch, best: bool) -> None: ...

    def note(self, message: str) -> None: ...


@dataclass
class State:
    """Where a run is: saved after every epoch, so that an interrupted run goes on from there."""

    phase: str = Phase.ADAPTATION.value  # a plain string: no enum comes back from a file that is not unpickled
    epoch: int = 0
    best_loss: float = math.inf
    stale_epochs: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    history: list[Epoch] = field(default_factory=list)

    def save(self, path: Path) -> None:
        content = {**vars(self), "history": [asdict(epoch) for epoch in self.history]}
        with published(path) as file:
            torch.save(content, file)

    @classmethod
    def load(cls, path: Path) -> State:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return cls(**{**content, "history": [Epoch(**epoch) for epoch in content["history"]]})


@dataclass(frozen=True)
class _Training:
    """What stays the same over both phases."""

    network: Network
    data: Dataset
    recipe: Recipe
    machine: Machine
    state: State
    state_file: Path
    watcher: Watcher


def fit(
    network: Network, data: Dataset, recipe: Recipe, machine: Machine, state_file: Path, watcher: Watcher
) -> list[Epoch]:
    """Train `network` in place to the weights of its best validation loss; returns the history.

    Goes on from `state_file` where there is one. The order of what follows is important.
    """
    state = State.load(state_file) if state_file.exists() else State()
    training = _Training(network.to(machine.device), data, recipe, machine, state, state_file, watcher)
    # Vanishing gradients become denormal numbers, on which a CPU is many times slower.
    torch.set_flush_denormal(True)

    # 1. Adaptation: only the head learns. The features keep their weights and their batch-norm statistics.
    if state.phase == Phase.ADAPTATION:
        network.features.requires_grad_(False)
        head = [{"params": list(network.head.parameters())}]
        _run_phase(training, head, recipe.adapt_epochs, recipe.lr_adapt)
        # 2. Fine-tuning starts from the best head, not from the last.
        if state.best_weights:
            network.load_state_dict(state.best_weights)
        state.phase, state.epoch, state.stale_epochs = Phase.FINE_TUNING.value, 0, 0
        state.weights, state.optimizer, state.scaler = _copy(network), {}, {}
        state.save(state_file)

    # 3. Fine-tuning: all weights learn at a small rate, warmed up and then decayed along a cosine.
    network.features.requires_grad_(True)
    _run_phase(training, _decayed_and_not(network), recipe.fine_epochs, recipe.lr_fine)

    # 4. The best epoch of both phases is the result.
    if state.best_weights:
        network.load_state_dict(state.best_weights)
    network.eval()
    return state.history


def _run_phase(training: _Training, parameters: list[dict[str, Any]], epochs: int, rate: float) -> None:
    """Epochs of the state's phase, from the state's epoch on, with early stopping."""
    network, data, recipe, machine = training.network, training.data, training.recipe, training.machine
    state, watcher = training.state, training.watcher
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=WEIGHT_DECAY)
    scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.precision == torch.float16)
    if state.weights:
        network.load_state_dict(state.weights)
    if state.optimizer:
        optimizer.load_state_dict(state.optimizer)
        scaler.load_state_dict(state.scaler)
    phase_number = list(Phase).index(Phase(state.phase))

    while state.epoch < epochs:
        if state.stale_epochs >= recipe.patience:
            watcher.note(f"{state.phase}: no better validation loss for {recipe.patience} epochs, stopped early")
            break
        started = time.monotonic()
        seed = (recipe.seed, phase_number, state.epoch)
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))  # dropout
        network.train()
        if state.phase == Phase.ADAPTATION:
            network.features.eval()  # batch-norm statistics frozen too
        pictures = TrainingPictures(
            [data.path(sample) for sample in data.train],
            [sample.label for sample in data.train],
            recipe.image_size,
            recipe.preprocessing.resize,
            seed,
        )
        steps = max(1, len(pictures) // recipe.batch_size)
        loss_sum, right, seen = 0.0, 0, 0
        for step, (images, labels) in enumerate(
            batches(pictures, recipe.batch_size, machine.workers, seed, machine.device.type == "cuda")
        ):
            if state.phase == Phase.FINE_TUNING:
                for group in optimizer.param_groups:
                    group["lr"] = rate * schedule((state.epoch * steps + step) / (epochs * steps))
            images = images.to(machine.device, non_blocking=True)
            labels = labels.to(machine.device, non_blocking=True)
            with machine.autocast():
                logits = network(images)
            loss = functional.cross_entropy(logits.float(), labels, label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
            loss_sum += float(loss.detach()) * len(labels)
            right += int((logits.argmax(1) == labels).sum())
            seen += len(labels)
            watcher.batch(state.phase, state.epoch + 1, step + 1, steps, loss_sum / seen)
        trained = time.monotonic()

        val_logits = predict_logits(network, data, data.val, recipe.preprocessing, machine)
        val_labels = torch.tensor([sample.label for sample in data.val])
        val_loss = float(functional.cross_entropy(torch.from_numpy(val_logits), val_labels))
        epoch = Epoch(
            phase=state.phase,
            epoch=state.epoch + 1,
            train_loss=loss_sum / seen,
            train_accuracy=right / seen,
            val_loss=val_loss,
            val_accuracy=float((val_logits.argmax(1) == val_labels.numpy()).mean()),
            seconds=time.monotonic() - started,
            pictures_per_second=seen / (trained - started),
        )
        if not math.isfinite(epoch.train_loss) or not math.isfinite(val_loss):
            raise FloatingPointError(
                f"the loss is not finite in {state.phase} epoch {state.epoch + 1}; try a smaller rate"
            )
        best = val_loss < state.best_loss
        if best:
            state.best_loss, state.best_weights = val_loss, _copy(network)
        state.stale_epochs = 0 if best else state.stale_epochs + 1
        state.epoch += 1
        state.history.append(epoch)
        state.weights, state.optimizer, state.scaler = (
            _copy(network),
            optimizer.state_dict(),
            scaler.state_dict(),
        )
        state.save(training.state_file)
        watcher.epoch(epoch, best)


def schedule(progress: float) -> float:
    """Share of the full rate at `progress` 0..1: linear warm-up, then half a cosine (Loshchilov and Hutter 2017)."""
    if progress < WARM_UP:
        return progress / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def predict_logits(
    network: Network,
    data: Dataset,
    samples: tuple[Sample, ...],
    preprocessing: Preprocessing,
    machine: Machine,
    batch_size: int = 64,
) -> NDArray[np.float32]:
    """Logits (N, classes) of the samples in evaluation mode and full precision."""
    pictures = EvaluationPictures(
        [data.path(sample) for sample in samples], [sample.label for sample in samples], preprocessing
    )
    network.eval()
    outputs: list[NDArray[np.float32]] = []
    with torch.inference_mode():
        for images, _ in batches(pictures, batch_size, machine.workers, None, machine.device.type == "cuda"):
            outputs.append(network(images.to(machine.device)).float().cpu().numpy())
    return np.concatenate(outputs) if outputs else np.zeros((0, 0), np.float32)


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


def _decayed_and_not(network: nn.Module) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels, none for biases and batch norms, as is usual."""
    parameters = list(network.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _copy(network: Network) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
