"""Inference on a GPU: pictures are gathered into batches of one size, of which one runs while the next one fills."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gender_batch.model.cuda import page_locked
from gender_batch.model.session import BoundModel, Model, OutOfGpuMemoryError
from gender_batch.scoring.worker import Outcome

GPU_BATCH = 128
"""Pictures per inference on a GPU. The last batch is padded: one shape, one plan of memory and kernels."""

_Held = tuple[str, Outcome, int]
"""A path, its outcome without pixels, and how many squares of the batch are its own."""


@dataclass
class _Batch:
    """Pixels (size, side, side, 3), of which the first `filled` are pictures, and what they are."""

    pixels: NDArray[np.uint8]
    filled: int = 0
    held: list[_Held] = field(default_factory=list)


class BatchInference:
    """Outcomes with pixels become outcomes with probabilities.

    `size` is how many pictures are inferred at a time: halved for good where the GPU has not enough memory for them.
    Raises OutOfGpuMemoryError if there is not enough for one, GpuError.
    """

    def __init__(self, model: Model, size: int = GPU_BATCH) -> None:
        self.size = size
        self._model, self._capacity = model, size
        self._bound: BoundModel | None = None

    def answered(self, outcomes: Iterable[tuple[str, Outcome]]) -> Iterator[tuple[str, Outcome]]:
        """In the order in which they come, failed ones among them. Pixels are copied when their outcome is drawn."""
        side = self._model.metadata.preprocessing.size
        # One piece of memory: of two, the second may begin on a page of the first, which cannot be locked again.
        pixels = np.zeros((2, self._capacity, side, side, 3), np.uint8)
        filling, other = map(_Batch, pixels)
        running: tuple[Future[tuple[NDArray[np.float32], float]], _Batch] | None = None
        with page_locked(pixels), ThreadPoolExecutor(1) as thread:
            for path, outcome in outcomes:
                squares = 0 if outcome.result is None else len(outcome.result)
                if filling.filled + squares > self._capacity or len(filling.held) >= 4 * self._capacity:
                    before, running = running, (thread.submit(self._infer, filling), filling)
                    filling, other = other, filling
                    yield from _answers(before)
                if outcome.result is not None:
                    filling.pixels[filling.filled : filling.filled + squares] = outcome.result
                    filling.filled += squares
                filling.held.append((path, outcome._replace(result=None), squares))
            yield from _answers(running)
            yield from _answers((thread.submit(self._infer, filling), filling))

    def _infer(self, batch: _Batch) -> tuple[NDArray[np.float32], float]:
        """Probabilities (filled, classes), and the seconds that they took."""
        began = time.perf_counter()
        answers: list[NDArray[np.float32]] = []
        done = 0
        while done < batch.filled:
            try:
                if self._bound is None:
                    self._bound = self._model.bound(self.size)
                answers.append(self._bound(batch.pixels[done : done + self.size]))
            except OutOfGpuMemoryError:
                self._bound = None  # what it holds of the GPU's memory goes back first
                if self.size == 1:
                    raise
                self.size //= 2
                continue
            done += self.size
        probabilities = np.concatenate(answers)[: batch.filled] if answers else np.zeros((0, 0), np.float32)
        return probabilities, time.perf_counter() - began


def _answers(
    running: tuple[Future[tuple[NDArray[np.float32], float]], _Batch] | None,
) -> Iterator[tuple[str, Outcome]]:
    """The outcomes of a batch when it is done; it can be filled again then."""
    if running is None:
        return
    future, batch = running
    probabilities, seconds = future.result()
    of_each, time_of_each = probabilities.tolist(), seconds / max(1, batch.filled)
    start = 0
    for path, outcome, squares in batch.held:
        if squares:
            mine = of_each[start : start + squares]
            outcome = outcome._replace(probabilities=mine, inference=time_of_each * squares)
            start += squares
        yield path, outcome
    batch.held.clear()
    batch.filled = 0
