"""The training loop: two phases over the same network, weights chosen by validation loss, resumable at any epoch."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gender_batch.scoring.allocator import keep_memory
from gender_batch.training.head import start_head
from gender_batch.training.kept import Weights, candidates, choose
from gender_batch.training.loading import Squares, batches
from gender_batch.training.losses import Auxiliary, GroupLosses, inverse_frequencies, mixing
from gender_batch.training.network import Network
from gender_batch.training.predict import fit_temperature, predict_logits
from gender_batch.training.recipe import Machine, Recipe
from gender_batch.training.state import Epoch, Phase, State, Watcher

WARM_UP = 0.1
"""Share of the fine-tuning steps over which the rate rises from zero."""

REPORT_EVERY = 10
"""Steps between two words to the watcher."""

AVERAGED_EPOCHS = 0.5
"""Epochs over which the moving average of the weights reaches back."""

_Tensors = tuple[Tensor, ...] | list[Tensor]


@dataclass(frozen=True)
class Labelled:
    """Pictures, their class indices (N,), int64, and optionally the indices (N,) of groups to be learnt alike, each
    of one class, those of what else is to be learnt of them, (N, columns), -1 where it is not known, and those (N,) of
    the people they show."""

    squares: Squares
    truth: Tensor
    groups: Tensor | None = None
    others: Tensor | None = None
    people: Tensor | None = None


@dataclass(frozen=True)
class _Training:
    """What stays the same over both phases."""

    network: Network
    auxiliary: Auxiliary
    train: Labelled
    val: Labelled
    recipe: Recipe
    machine: Machine
    state: State
    state_file: Path
    watcher: Watcher
    class_weights: Tensor | None
    """(classes,), float."""
    known: bool
    """Whether the features come with a head that answered by them."""


@contextlib.contextmanager
def _flushing_denormals() -> Iterator[None]:
    """Vanishing gradients become denormal numbers, on which a CPU is many times slower: here they are zeros."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@_flushing_denormals()
def fit(
    network: Network,
    train: Labelled,
    val: Labelled,
    recipe: Recipe,
    machine: Machine,
    state_file: Path,
    watcher: Watcher,
    known: nn.Linear | None = None,
    data: str = "",
) -> State:
    """Train `network` in place to weights that validation chooses; the state tells the history, and which were kept.

    `train` holds squares of `recipe.source`, `val` those of `recipe.preprocessing`; `known` is the head that answered
    by the features before. Goes on from `state_file` where there is one, which keeps `data`, what stands for the data
    and its splits. The order of what follows is important.
    """
    state = State.load(state_file) if state_file.exists() else State(data)
    # Convolutions are quicker so: a step of 32 pictures took 0.32 in place of 0.36 s on two cores.
    network.to(machine.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    auxiliary = Auxiliary(train.others, machine.device)
    class_weights = inverse_frequencies(train.truth, network.classes) if recipe.class_weights else None
    training = _Training(
        network, auxiliary, train, val, recipe, machine, state, state_file, watcher, class_weights, known is not None
    )
    if machine.device.type == "cpu":
        # Most activations are blocks that would go back with every step: 114,000 pages to zero in each at 176 pixels, a
        # quarter of the time on two cores.
        keep_memory(2**31 - 1, arenas=1, larger_blocks=True)

    # 1. Adaptation: only the head learns. The features keep their weights and their batch-norm statistics.
    if state.phase == Phase.ADAPTATION:
        network.features.requires_grad_(False)
        heads = [*network.head.parameters(), *auxiliary.parameters()]
        head = [{"params": heads, "lr": recipe.lr_adapt}]
        if known is not None and not state.history:
            start_head(network, known, train.squares, train.truth, recipe.image_size, recipe.class_weights)
            # It counts as an epoch before the first: where nothing learnt after it is better, it stays.
            state.best_loss, accuracy = _judge(training, network)
            state.best_weights = _copy(network)
            watcher.note(
                "the head starts at what is known by its features: "
                f"validation loss {state.best_loss:.4f} accuracy {accuracy:.2%}"
            )
        _Phase(training, head, recipe.adapt_epochs).run()
        # 2. Fine-tuning starts from the best head, not from the last.
        if state.best_weights:
            network.load_state_dict(state.best_weights)
        state.phase, state.epoch = Phase.FINE_TUNING.value, 0
        state.weights, state.auxiliary = _copy(network), _copy(auxiliary)
        state.first_weights = state.weights
        state.average, state.optimizer = {}, {}

    # 3. Fine-tuning: all weights learn at a small rate, warmed up and then decayed along a cosine.
    network.features.requires_grad_(True)
    _Phase(training, _fine_tuned(network, auxiliary, recipe), recipe.fine_epochs).run()

    # 4. A mean with the start, the last epoch, the best one of both phases or the mean of the two is the result.
    state.kept, weights = _result(training)
    network.load_state_dict(weights)
    network.eval()
    watcher.note(f"kept: the {state.kept}")
    return state


def _result(training: _Training) -> tuple[str, Weights]:
    """What is kept, in words, and its weights.

    Each candidate is judged at the temperature that suits it, since one is fitted in the end: later epochs are too sure
    of themselves, and otherwise often better.
    """
    network, state, val = training.network, training.state, training.val
    if not state.average:  # nothing was fine-tuned
        return "best epoch", state.best_weights or _copy(network)
    averages = {name.removeprefix("module."): tensor for name, tensor in state.average.items() if "." in name}
    found = candidates(state, averages if training.recipe.average else state.weights, training.known)

    def losses(weights: Weights) -> Tensor:
        network.load_state_dict(weights)
        logits = predict_logits(network, val.squares, training.machine)
        scaled = torch.from_numpy(logits / np.float32(fit_temperature(logits, val.truth.numpy())))
        return functional.cross_entropy(scaled, val.truth, training.class_weights, reduction="none")

    chosen = choose(torch.stack([losses(weights) for weights in found.values()]), training.known, val.people)
    name = list(found)[chosen]
    return name, found[name]


class _Phase:
    """The epochs of the state's phase, from the state's epoch on."""

    def __init__(self, training: _Training, parameters: list[dict[str, Any]], epochs: int) -> None:
        self.training, self.epochs = training, epochs
        network, recipe, machine, state = training.network, training.recipe, training.machine, training.state
        self.steps = max(1, len(training.train.truth) // recipe.batch_size)
        self.fine_tuning = state.phase == Phase.FINE_TUNING
        # Fused: 82 operations a step in place of 698, at whose launches a GPU waits; on a CPU core 4 in place of 25 ms.
        self.optimizer = torch.optim.AdamW(parameters, weight_decay=recipe.weight_decay, fused=True)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.precision == torch.float16)
        if state.weights:
            network.load_state_dict(state.weights)
            training.auxiliary.load_state_dict(state.auxiliary)
        decay = 1 - 1 / (1 + AVERAGED_EPOCHS * self.steps)
        self.average = AveragedModel(network, multi_avg_fn=_moving_average(decay), use_buffers=True)
        if state.optimizer:
            self.average.load_state_dict(state.average)
            self.optimizer.load_state_dict(state.optimizer)
            self.scaler.load_state_dict(state.scaler)
        self.judged = cast(Network, self.average.module) if recipe.average else network
        self.mix = mixing(recipe, network.classes)
        if self.mix is not None and training.auxiliary.heads:
            raise ValueError("mixed pictures have mixed classes only: nothing else can be learnt beside them")
        weights = training.class_weights
        self.class_weights = None if weights is None else weights.to(machine.device)
        # Without groups each class is one, and no weight ever differs from 1.
        groups = training.train.truth if training.train.groups is None else training.train.groups
        self.group_losses = GroupLosses(groups, training.train.truth, machine.device)

    def run(self) -> None:
        """All epochs that are left, or until the adaptation no longer gets better; the state is saved after each."""
        state, watcher, patience = self.training.state, self.training.watcher, self.training.recipe.patience
        while state.epoch < self.epochs:
            if state.stale_epochs >= patience and not self.fine_tuning:
                watcher.note(f"{state.phase}: no better validation loss for {patience} epochs, stopped early")
                break
            epoch = self._epoch()
            if not math.isfinite(epoch.train_loss) or not math.isfinite(epoch.val_loss):
                raise FloatingPointError(
                    f"the loss is not finite in {epoch.phase} epoch {epoch.epoch}; try a smaller rate"
                )
            best = epoch.val_loss < state.best_loss
            self._save(epoch, best)
            watcher.epoch(epoch, best)

    def _epoch(self) -> Epoch:
        """Every picture learnt once, then the validation."""
        training, state = self.training, self.training.state
        started = time.monotonic()
        seed = (training.recipe.seed, list(Phase).index(Phase(state.phase)), state.epoch)
        # Augmentation, mixing and dropout: a resumed run draws what an undisturbed one would have.
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        training.network.train()
        if not self.fine_tuning:
            training.network.features.eval()  # batch-norm statistics frozen too
        elif len(training.train.truth) < training.recipe.statistics_from:
            _freeze_statistics(training.network.features)
        device = training.machine.device
        loss_sum, right, seen = torch.zeros((), device=device), torch.zeros((), device=device), 0
        self.group_losses.begin(state.group_weights)
        waited = _Waiting(
            batches(training.train.squares, training.recipe.batch_size, training.machine.workers, device, seed)
        )
        for step, (pictures, indices) in enumerate(waited):
            if self.fine_tuning:
                share = schedule((state.epoch * self.steps + step) / (self.epochs * self.steps))
                for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                    group["lr"] = rate * share
            losses, hits = self._step(pictures, indices)
            # Sums stay on the device: reading them at every step would make a GPU wait.
            loss_sum += losses.sum()
            right += hits.sum()
            seen += len(indices)
            if step % REPORT_EVERY == 0 or step == self.steps - 1:
                training.watcher.batch(state.phase, state.epoch + 1, step + 1, self.steps, float(loss_sum) / seen)
        train_loss, train_accuracy = float(loss_sum) / seen, float(right) / seen
        trained = time.monotonic()
        val_loss, val_accuracy = _judge(training, self.judged)
        return Epoch(
            phase=state.phase,
            epoch=state.epoch + 1,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            seconds=time.monotonic() - started,
            pictures_per_second=seen / (trained - started),
            waiting=waited.seconds / (trained - started),
        )

    def _step(self, pictures: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Learn from a batch of squares (N, size, size, 3); the loss of each, and whether each was right, (N,)."""
        training, recipe = self.training, self.training.recipe
        network, auxiliary = training.network, training.auxiliary
        labels = training.train.truth[indices].to(training.machine.device, non_blocking=True)
        pictures = recipe.augmentation(pictures, recipe.size_in_training)
        targets = labels
        if self.mix is not None:
            mixed, targets = self.mix(pictures.permute(0, 3, 1, 2), labels)
            pictures = mixed.permute(0, 2, 3, 1)
        with training.machine.autocast():
            embedding = network.embedding(pictures)
            logits = network.head(embedding)
            others = auxiliary(embedding)
        losses = functional.cross_entropy(
            logits.float(), targets, self.class_weights, reduction="none", label_smoothing=recipe.label_smoothing
        )
        loss = (losses * self.group_losses.weights_of(indices)).mean()
        if others:
            loss = loss + recipe.auxiliary * auxiliary.loss(others, indices)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update_parameters(network)
        self.group_losses.add(indices, losses.detach())
        return losses.detach(), logits.detach().argmax(1) == labels

    def _save(self, epoch: Epoch, best: bool) -> None:
        """Keep all that the next epoch, or a resumed run, goes on from."""
        training, state = self.training, self.training.state
        if best:
            state.best_loss, state.best_weights = epoch.val_loss, _copy(self.judged)
        state.stale_epochs = 0 if best else state.stale_epochs + 1
        state.epoch += 1
        state.history.append(epoch)
        state.weights, state.auxiliary = _copy(training.network), _copy(training.auxiliary)
        state.average = _copy(self.average)
        state.group_weights = self.group_losses.tilted(training.recipe.tilt)
        state.optimizer, state.scaler = self.optimizer.state_dict(), self.scaler.state_dict()
        state.save(training.state_file)


def _judge(training: _Training, network: Network) -> tuple[float, float]:
    """Mean loss in nats and accuracy, 0..1, on the validation pictures."""
    val = training.val
    logits = torch.from_numpy(predict_logits(network, val.squares, training.machine))
    loss = functional.cross_entropy(logits, val.truth, training.class_weights)
    return float(loss), float((logits.argmax(1) == val.truth).float().mean())


def _freeze_statistics(features: nn.Module) -> None:
    """Not `features.eval()`: strided convolutions have their quick gradient only while they know that they train."""
    for module in features.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


class _Waiting:
    """Batches, and how long in seconds was waited for them."""

    def __init__(self, source: Iterable[tuple[Tensor, Tensor]]) -> None:
        self.source, self.seconds = source, 0.0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        asked = time.monotonic()
        for batch in self.source:
            self.seconds += time.monotonic() - asked
            yield batch
            asked = time.monotonic()


def schedule(progress: float) -> float:
    """Share of the full rate at `progress` 0..1: linear warm-up, then half a cosine (Loshchilov and Hutter 2017)."""
    if progress < WARM_UP:
        return progress / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def _moving_average(decay: float) -> Callable[[_Tensors, _Tensors, Tensor | int], None]:
    """What an AveragedModel does with tensors of one kind. Whole numbers stay as they are: batch norms count their
    batches, which nothing reads, and 52 averages of counts are as many launches on a GPU as a whole backward pass."""
    average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    def move(averages: _Tensors, tensors: _Tensors, count: Tensor | int) -> None:
        if averages[0].is_floating_point():
            average(averages, tensors, count)

    return move


def _fine_tuned(network: Network, auxiliary: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """All parameters, with the rate of their depth; weight decay for matrices and kernels, none for biases and
    batch norms, as is usual."""
    blocks = [*network.features.children(), nn.ModuleList([network.head, auxiliary])]
    groups = []
    for depth, block in enumerate(reversed(blocks)):
        rate = recipe.lr_fine * recipe.layer_decay**depth
        parameters = list(block.parameters())
        groups.append({"params": [p for p in parameters if p.ndim > 1], "lr": rate})
        groups.append({"params": [p for p in parameters if p.ndim <= 1], "lr": rate, "weight_decay": 0.0})
    return groups


def _copy(network: nn.Module) -> Weights:
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
