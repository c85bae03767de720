"""The training loop: two phases over the same network, weights chosen by validation loss, resumable at any epoch."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms import v2

from gender_batch.outputs.publish import published
from gender_batch.pictures.preprocessing import Preprocessing
from gender_batch.scoring.allocator import keep_memory
from gender_batch.training.augmentation import Augmentation
from gender_batch.training.head import start_head
from gender_batch.training.loading import Squares, batches
from gender_batch.training.network import EMBEDDING, Network

WARM_UP = 0.1
"""Share of the fine-tuning steps over which the rate rises from zero."""

REPORT_EVERY = 10
"""Steps between two words to the watcher."""

AVERAGED_EPOCHS = 0.5
"""Epochs over which the moving average of the weights reaches back."""


@dataclass(frozen=True)
class Recipe:
    """All that decides the result of a training run, besides the data.

    benchmarks/ablation.py measures what each ingredient is worth; those of no use there are off.
    """

    image_size: int
    """Side of the square that the network sees, in pixels."""
    train_size: int | None = None
    """Side of the training pictures; None: nine tenths of `image_size`. Random crops enlarge faces, so that at this
    size they are on average as large as when judged (Touvron et al. 2019, section 3), and training is quicker."""
    adapt_epochs: int = 3
    fine_epochs: int = 12
    batch_size: int = 32
    lr_adapt: float = 3e-3
    lr_fine: float = 3e-4
    statistics_from: int = 0
    """Pictures to train on from which the fine-tuning learns batch-norm statistics of its own; with fewer, those that
    the features came with are kept, which suits features that know such pictures, and no others."""
    layer_decay: float = 1.0
    """Rate of each block of the features, as a share of the next one's (Howard and Ruder 2018); 1: all learn alike."""
    weight_decay: float = 0.01
    label_smoothing: float = 0.0
    mixup: float = 0.0
    """Both parameters of the beta distribution of the mixing share (Zhang et al. 2018); 0: off."""
    cutmix: float = 0.0
    """The same for patches instead of blends (Yun et al. 2019)."""
    average: bool = True
    """Judge and keep an exponential moving average of the weights, not the last ones."""
    class_weights: bool = False
    """Weigh the losses, in training and in validation, by the inverse frequency of the classes in training. What is
    fitted after it, temperature and threshold, is for the frequencies of the validation set."""
    tilt: float = 3.0
    """Where pictures have groups: how much more a group of larger loss counts within its class, as
    exp(tilt * loss in nats), after the tilted loss of Li et al. 2021, section 2; 0: all count alike."""
    auxiliary: float = 0.3
    """Weight of what is learnt beside the classes, where something is: the mean loss of the other columns counts this
    much (Caruana 1997)."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    patience: int = 6
    """Epochs without a better validation loss after which the adaptation ends. The fine-tuning goes to its end: at a
    high rate a good start gets worse before, at a falling one, it gets better."""
    seed: int = 0

    @property
    def preprocessing(self) -> Preprocessing:
        """The whole of the shorter side. Cutting a sixteenth of it off, as is usual of objects in photos, took hair and
        chin from faces: 91.5 in place of 92.5% of 2,399 validation pictures were right."""
        return Preprocessing(size=self.image_size, resize=self.image_size)

    @property
    def size_in_training(self) -> int:
        return self.train_size or 8 * round(0.9 * self.image_size / 8)

    @property
    def source(self) -> Preprocessing:
        """What augmentation draws from: the whole square, large enough that most crops are made of real pixels."""
        side = round(self.size_in_training * 5 / 4)
        return Preprocessing(size=side, resize=side)


@dataclass(frozen=True)
class Machine:
    """Where it runs: a torch device, and the number of processes that decode what does not fit into the cache."""

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
    """One line of the history. Losses are mean cross-entropies in nats, without label smoothing for validation, and
    weighted where the recipe has class weights."""

    phase: str
    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float
    pictures_per_second: float
    waiting: float
    """Share of the training time spent waiting for pictures, 0..1."""


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
    first_weights: dict[str, Tensor] = field(default_factory=dict)
    """Those that the fine-tuning started from."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)
    auxiliary: dict[str, Tensor] = field(default_factory=dict)
    group_weights: list[float] = field(default_factory=list)
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
class Labelled:
    """Pictures, their class indices (N,), int64, and optionally the indices (N,) of groups to be learnt alike, each
    of one class, and those of what else is to be learnt of them, (N, columns), -1 where it is not known."""

    squares: Squares
    truth: Tensor
    groups: Tensor | None = None
    others: Tensor | None = None


@dataclass(frozen=True)
class _Training:
    """What stays the same over both phases."""

    network: Network
    auxiliary: _Auxiliary
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
) -> list[Epoch]:
    """Train `network` in place to weights that validation chooses; returns the history.

    `train` holds squares of `recipe.source`, `val` those of `recipe.preprocessing`; `known` is the head that answered
    by the features before. Goes on from `state_file` where there is one. The order of what follows is important.
    """
    state = State.load(state_file) if state_file.exists() else State()
    network.to(machine.device)
    auxiliary = _Auxiliary(train.others, machine.device)
    class_weights = _class_weights(train.truth, network.classes) if recipe.class_weights else None
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
        _run_phase(training, head, recipe.adapt_epochs)
        # 2. Fine-tuning starts from the best head, not from the last.
        if state.best_weights:
            network.load_state_dict(state.best_weights)
        state.phase, state.epoch, state.stale_epochs = Phase.FINE_TUNING.value, 0, 0
        state.weights, state.auxiliary = _copy(network), _copy(auxiliary)
        state.first_weights = state.weights
        state.average, state.optimizer, state.scaler = {}, {}, {}
        state.save(state_file)

    # 3. Fine-tuning: all weights learn at a small rate, warmed up and then decayed along a cosine.
    network.features.requires_grad_(True)
    _run_phase(training, _fine_tuned(network, auxiliary, recipe), recipe.fine_epochs)

    # 4. A mean with the start, the best epoch of both phases, the last one or the mean of the two is the result.
    network.load_state_dict(_result(training))
    network.eval()
    return state.history


def _result(training: _Training) -> dict[str, Tensor]:
    """Of the weights of the best epoch, the last ones and their mean (Wortsman et al. 2022: networks that were tuned
    from one start lie in one basin) those of the least validation loss. Where the features were known, the mean of the
    first and the last weights of the fine-tuning, unless those are better by more than luck.

    Each is judged at the temperature that suits it, since one is fitted in the end: later epochs are too sure of
    themselves, and otherwise often better.
    """
    network, state, val = training.network, training.state, training.val
    if not state.average:  # nothing was fine-tuned
        return state.best_weights or _copy(network)
    averages = {name.removeprefix("module."): tensor for name, tensor in state.average.items() if "." in name}
    best, last = state.best_weights, averages if training.recipe.average else state.weights
    candidates = {"last epoch": last}
    if state.stale_epochs:  # else the last epoch is the best one
        candidates = {"best epoch": best, **candidates, "mean of the best and the last epoch": _mean(best, last)}
    if training.known:
        candidates = {"mean of the first and the last weights": _mean(state.first_weights, last), **candidates}
    losses = []
    for weights in candidates.values():
        network.load_state_dict(weights)
        logits = predict_logits(network, val.squares, training.machine)
        scaled = torch.from_numpy(logits / np.float32(fit_temperature(logits, val.truth.numpy())))
        losses.append(functional.cross_entropy(scaled, val.truth, training.class_weights, reduction="none"))
    found = torch.stack(losses)
    name = list(candidates)[choose(found) if training.known else int(found.mean(1).argmin())]
    training.watcher.note(f"kept: the {name}")
    return candidates[name]


def choose(losses: Tensor) -> int:
    """Which of some candidates to take, by their losses on the same pictures, (candidates, N): the first, unless
    another's mean is less by more than two standard errors of the difference; then that of the least mean.

    In the manner of the rule of one standard error (Breiman et al. 1984, section 3.4.3): the first candidate should be
    the one that is wanted without any pictures. One error is what the best of many epochs has by luck: in two trainings
    on 713 photos the best epoch was ahead by 1.2 of them on 79 validation pictures, and behind on 198 of others.
    """
    least = int(losses.mean(1).argmin())
    more = losses[0] - losses[least]
    return least if more.mean() > 2 * more.std(correction=0) / math.sqrt(len(more)) else 0


def _mean(these: dict[str, Tensor], those: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: ((these[name].double() + those[name].double()) / 2).to(those[name].dtype) for name in those}


def _run_phase(training: _Training, parameters: list[dict[str, Any]], epochs: int) -> None:
    """Epochs of the state's phase, from the state's epoch on."""
    network, auxiliary, recipe, machine = training.network, training.auxiliary, training.recipe, training.machine
    state, watcher = training.state, training.watcher
    steps = max(1, len(training.train.truth) // recipe.batch_size)
    optimizer = torch.optim.AdamW(parameters, weight_decay=recipe.weight_decay)
    scheduled = state.phase == Phase.FINE_TUNING
    rates = [group["lr"] for group in optimizer.param_groups]
    scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.precision == torch.float16)
    if state.weights:
        network.load_state_dict(state.weights)
        auxiliary.load_state_dict(state.auxiliary)
    decay = 1 - 1 / (1 + AVERAGED_EPOCHS * steps)
    moving = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    average = AveragedModel(network, multi_avg_fn=moving, use_buffers=True)
    if state.optimizer:
        average.load_state_dict(state.average)
        optimizer.load_state_dict(state.optimizer)
        scaler.load_state_dict(state.scaler)
    judged = cast(Network, average.module) if recipe.average else network
    mix = _mixing(recipe, network.classes)
    if mix is not None and auxiliary.heads:
        raise ValueError("mixed pictures have mixed classes only: nothing else can be learnt beside them")
    class_weights = None if training.class_weights is None else training.class_weights.to(machine.device)
    # Without groups each class is one, and no weight ever differs from 1.
    groups = training.train.truth if training.train.groups is None else training.train.groups
    group_losses = _GroupLosses(groups, training.train.truth, machine.device)
    phase_number = list(Phase).index(Phase(state.phase))

    while state.epoch < epochs:
        if state.stale_epochs >= recipe.patience and not scheduled:
            watcher.note(f"{state.phase}: no better validation loss for {recipe.patience} epochs, stopped early")
            break
        started = time.monotonic()
        seed = (recipe.seed, phase_number, state.epoch)
        # Augmentation, mixing and dropout: a resumed run draws what an undisturbed one would have.
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        network.train()
        if state.phase == Phase.ADAPTATION:
            network.features.eval()  # batch-norm statistics frozen too
        elif len(training.train.truth) < recipe.statistics_from:
            _freeze_statistics(network.features)
        loss_sum, right, seen = torch.zeros((), device=machine.device), torch.zeros((), device=machine.device), 0
        group_losses.begin(state.group_weights)
        waited = _Waiting(batches(training.train.squares, recipe.batch_size, machine.workers, machine.device, seed))
        for step, (pictures, indices) in enumerate(waited):
            if scheduled:
                share = schedule((state.epoch * steps + step) / (epochs * steps))
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * share
            labels = training.train.truth[indices].to(machine.device, non_blocking=True)
            pictures = recipe.augmentation(pictures, recipe.size_in_training)
            targets = labels
            if mix is not None:
                mixed, targets = mix(pictures.permute(0, 3, 1, 2), labels)
                pictures = mixed.permute(0, 2, 3, 1)
            with machine.autocast():
                embedding = network.embedding(pictures)
                logits = network.head(embedding)
                others = auxiliary(embedding)
            losses = functional.cross_entropy(
                logits.float(), targets, class_weights, reduction="none", label_smoothing=recipe.label_smoothing
            )
            loss = (losses * group_losses.weights_of(indices)).mean()
            if others:
                loss = loss + recipe.auxiliary * auxiliary.loss(others, indices)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
            average.update_parameters(network)
            # Sums stay on the device: reading them at every step would make a GPU wait.
            group_losses.add(indices, losses.detach())
            loss_sum += losses.detach().sum()
            right += (logits.detach().argmax(1) == labels).sum()
            seen += len(labels)
            if step % REPORT_EVERY == 0 or step == steps - 1:
                watcher.batch(state.phase, state.epoch + 1, step + 1, steps, float(loss_sum) / seen)
        train_loss, train_accuracy = float(loss_sum) / seen, float(right) / seen
        trained = time.monotonic()

        val_loss, val_accuracy = _judge(training, judged)
        epoch = Epoch(
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
        if not math.isfinite(epoch.train_loss) or not math.isfinite(val_loss):
            raise FloatingPointError(
                f"the loss is not finite in {state.phase} epoch {state.epoch + 1}; try a smaller rate"
            )
        best = val_loss < state.best_loss
        if best:
            state.best_loss, state.best_weights = val_loss, _copy(judged)
        state.stale_epochs = 0 if best else state.stale_epochs + 1
        state.epoch += 1
        state.history.append(epoch)
        state.weights, state.auxiliary, state.average = _copy(network), _copy(auxiliary), average.state_dict()
        state.group_weights = group_losses.tilted(recipe.tilt)
        state.optimizer, state.scaler = optimizer.state_dict(), scaler.state_dict()
        state.save(training.state_file)
        watcher.epoch(epoch, best)


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


class _Auxiliary(nn.Module):
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


class _GroupLosses:
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
        raised = (self.weights.cpu().double() * (tilt * (means - means.max())).exp()).sqrt()
        count = len(self.pictures)
        heads = torch.zeros(count, dtype=torch.float64).index_add(0, self.classes, self.pictures.double())
        weighed = torch.zeros(count, dtype=torch.float64).index_add(0, self.classes, raised * self.pictures)
        weights: list[float] = (raised * heads[self.classes] / weighed[self.classes]).tolist()
        return weights


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


def _mixing(recipe: Recipe, classes: int) -> nn.Module | None:
    chosen: list[nn.Module] = []
    if recipe.mixup:
        chosen.append(v2.MixUp(alpha=recipe.mixup, num_classes=classes))
    if recipe.cutmix:
        chosen.append(v2.CutMix(alpha=recipe.cutmix, num_classes=classes))
    return v2.RandomChoice(chosen) if chosen else None


def _class_weights(truth: Tensor, classes: int) -> Tensor:
    """Weights (classes,) that make every class count alike, 1 on average over the pictures."""
    return len(truth) / (classes * torch.bincount(truth, minlength=classes).clamp(min=1).float())


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
