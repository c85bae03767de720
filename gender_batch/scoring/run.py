"""Score pictures: paths in, one row each out, in the same order, in constant memory."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from gender_batch.model.metadata import Metadata
from gender_batch.model.session import Device, Model
from gender_batch.pictures.preprocessing import READING
from gender_batch.prediction import PROBABILITY_DIGITS, Prediction, Status, decide
from gender_batch.scoring.pool import WorkerPool
from gender_batch.scoring.worker import Outcome, Read, ReadAndInfer

GPU_BATCH = 64
"""Pictures per inference on a GPU. The last batch is padded: one shape, one plan of memory and kernels."""


@dataclass(frozen=True)
class Options:
    """How to score. `workers` None: one process per core this program may use. `model` None: the program's own, in
    the precision that suits the device."""

    model: Path | None = None
    device: str = "auto"
    workers: int | None = None
    picture_timeout: float = 30.0


@dataclass
class Summary:
    """What a run has counted so far; sums of the confidences and of their squares, for mean and deviation."""

    pictures: int = 0
    failed: int = 0
    confidences: float = 0.0
    squared_confidences: float = 0.0
    statuses: Counter[Status] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)

    def add(self, row: Prediction) -> None:
        self.pictures += 1
        self.failed += row.status is not Status.OK
        self.statuses[row.status] += 1
        if row.label is not None:
            self.labels[row.label] += 1
            confidence = max(row.probabilities)
            self.confidences += confidence
            self.squared_confidences += confidence * confidence


class Scorer:
    """A model and its workers, ready to score. A context manager.

    Counts the `pictures` it has scored, and the seconds that `reading`, `decoding` and `inference` took, of all workers
    together.

    Raises ModelError, NoGpuError when made; PoolError from `rows`.
    """

    def __init__(self, options: Options) -> None:
        # On a CPU the workers infer; this session is opened for its metadata, and to see which device there is.
        self._model = Model(options.model, options.device, threads=1)
        factory = (
            Read(self.metadata.preprocessing)
            if self.device.name == "cuda"
            else ReadAndInfer(self.model, self.metadata.preprocessing)
        )
        self.workers = options.workers or usable_cores()
        self.pictures, self.reading, self.decoding, self.inference = 0, 0.0, 0.0, 0.0
        self._pool = WorkerPool(factory, self.workers, options.picture_timeout)

    @property
    def model(self) -> Path:
        """The model file that is really used, by this process and by its workers."""
        return self._model.path

    @property
    def metadata(self) -> Metadata:
        return self._model.metadata

    @property
    def device(self) -> Device:
        return self._model.device

    def digest(self) -> str:
        """Stands for all that decides an answer: the model file, in which threshold and preprocessing are written,
        and how this version reads and resizes pictures."""
        return f"{self._model.digest()} {READING}"

    def __enter__(self) -> Scorer:
        self._pool.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.__exit__(*exception)

    def rows(self, paths: Iterable[str]) -> Iterator[Prediction]:
        """One row per path, in their order."""
        outcomes = self._pool.outcomes(paths)
        if self.device.name == "cuda":
            outcomes = infer_in_batches(outcomes, self._model, GPU_BATCH)
        for path, outcome in outcomes:
            self.pictures += 1
            self.reading += outcome.reading
            self.decoding += outcome.decoding
            self.inference += outcome.inference
            yield self._row(path, outcome)

    def _row(self, path: str, outcome: Outcome) -> Prediction:
        if outcome.result is None:
            return Prediction(path, outcome.status, width=outcome.width, height=outcome.height, error=outcome.error)
        probabilities = tuple(round(float(value), PROBABILITY_DIGITS) for value in outcome.result)
        label = decide(probabilities, self.metadata.labels, self.metadata.threshold)
        return Prediction(path, Status.OK, label, probabilities, width=outcome.width, height=outcome.height)


def infer_in_batches(
    outcomes: Iterable[tuple[str, Outcome]], model: Model, batch_size: int
) -> Iterator[tuple[str, Outcome]]:
    """Outcomes with pixels become outcomes with probabilities; failed ones keep their place among them."""
    size = model.metadata.preprocessing.size
    batch = np.zeros((batch_size, size, size, 3), np.uint8)
    held: list[tuple[str, Outcome]] = []
    filled = 0

    def flush() -> Iterator[tuple[str, Outcome]]:
        nonlocal filled
        began = time.perf_counter()
        probabilities = iter(model.probabilities(batch)[:filled] if filled else ())
        seconds = time.perf_counter() - began
        for path, outcome in held:
            if outcome.result is not None:
                outcome = replace(outcome, result=next(probabilities), inference=seconds / filled)
            yield path, outcome
        held.clear()
        filled = 0

    for path, outcome in outcomes:
        held.append((path, outcome))
        if outcome.result is not None:
            batch[filled] = outcome.result
            filled += 1
        if filled == batch_size or len(held) >= 4 * batch_size:
            yield from flush()
    yield from flush()


def usable_cores() -> int:
    """Cores this process may use: affinity respected."""
    return len(os.sched_getaffinity(0))
