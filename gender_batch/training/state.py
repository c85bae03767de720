"""Where a training is: its phase, its history, and what an interrupted one goes on from."""

from __future__ import annotations

import io
import math
import zipfile
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from gender_batch.outputs.publish import published


class DamagedStateError(Exception):
    """A training cannot go on from its state. The message names the file, the cause and the remedy."""


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

    def reading(self, count: int) -> None:
        """So many more pictures of the data have been read."""

    def batch(self, phase: str, epoch: int, done: int, total: int, loss: float) -> None: ...

    def epoch(self, epoch: Epoch, best: bool) -> None: ...

    def note(self, message: str) -> None: ...


@dataclass
class State:
    """Where a run is: saved after every epoch, so that an interrupted run goes on from there."""

    data: str
    """Stands for the pictures that are learnt, and for all others of the data."""
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
    kept: str = ""
    """Which weights are the result, in words, once all epochs are done."""

    def save(self, path: Path) -> None:
        """Whole or not at all. Raises OSError, as on a full disk."""
        content = io.BytesIO()  # torch tells of a full disk in words of its own
        torch.save({**vars(self), "history": [asdict(epoch) for epoch in self.history]}, content)
        with published(path) as file:
            file.write(content.getbuffer())

    @classmethod
    def load(cls, path: Path) -> State:
        """What `save` wrote. Raises DamagedStateError, OSError."""
        try:
            with zipfile.ZipFile(path) as archive:  # torch does not look at its checksums
                if damaged := archive.testzip():
                    raise ValueError(f"the checksum of {damaged} is wrong")
            content = torch.load(path, map_location="cpu", weights_only=True)
            return cls(**{**content, "history": [Epoch(**epoch) for epoch in content["history"]]})
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - the unpickler and zipfile raise anything on a damaged file
            what = " ".join(str(error).split())[:100]
            raise DamagedStateError(
                f"{path}: damaged ({type(error).__name__}: {what}), so that its training cannot go on; start again "
                "with another --out, or bring the file back from a copy"
            ) from None
