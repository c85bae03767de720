"""Feed the network: every picture once as a square of pixels, kept where they fit, drawn in batches."""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from gender_batch.pictures.preprocessing import Pixels, Preprocessing
from gender_batch.pictures.read import PictureError

LARGEST_CACHE = 0.5
"""Share of the free disk that the cache may take."""


class Squares(Dataset[Tensor]):
    """Pictures exactly as `preprocessing` gives them, asked for by lists of indices: uint8 (N, size, size, 3).

    Decoded once into a memory-mapped file without a name in `folder`, which goes when the process does, if half of
    the free disk holds it; else decoded whenever they are asked for.
    """

    def __init__(self, paths: Sequence[str], preprocessing: Preprocessing, folder: Path) -> None:
        self.paths, self.preprocessing = paths, preprocessing
        shape = (len(paths), preprocessing.size, preprocessing.size, 3)
        size = int(np.prod(shape))
        self.cache: Pixels | None = None
        if 0 < size <= LARGEST_CACHE * shutil.disk_usage(folder).free:
            with tempfile.TemporaryFile(dir=folder) as file:
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, not a SIGBUS later
                self.cache = np.ndarray(shape, np.uint8, mmap.mmap(file.fileno(), size))
            with ThreadPoolExecutor() as pool:
                for index, pixels in enumerate(pool.map(self._decode, range(len(paths)))):
                    self.cache[index] = pixels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: Sequence[int]) -> Tensor:
        if self.cache is None:
            return torch.from_numpy(np.stack([self._decode(index) for index in indices]))
        return torch.from_numpy(self.cache[indices])

    def _decode(self, index: int) -> Pixels:
        try:
            return self.preprocessing.apply(self.preprocessing.read(self.paths[index]).image)
        except PictureError as error:
            raise PictureError(error.status, f"{self.paths[index]}: {error}") from None


class _Indexed(Dataset[tuple[Tensor, Tensor]]):
    """Batches together with the indices they were asked for by; no pictures where one of them cannot be read, since a
    PictureError does not come whole out of another process."""

    def __init__(self, squares: Squares) -> None:
        self.squares = squares

    def __getitem__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        try:
            return self.squares[indices], torch.tensor(indices)
        except PictureError:
            return torch.empty(0), torch.tensor(indices)


def batches(
    squares: Squares, batch_size: int, workers: int, device: torch.device, seed: tuple[int, ...] | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """(pictures on the device, their indices), shuffled by `seed` and without the odd rest, or in order and whole.

    Raises PictureError.
    """
    sampler: SequentialSampler | RandomSampler = SequentialSampler(squares)
    if seed is not None:
        state = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
        sampler = RandomSampler(squares, generator=torch.Generator().manual_seed(int(state)))
    # Batch statistics of one or two odd pictures would be noise.
    drop = seed is not None and len(squares) >= batch_size
    kept = squares.cache is not None
    count = 0 if kept else workers  # to gather from memory is quicker than to hand it between processes
    loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
        _Indexed(squares),
        batch_size=None,
        sampler=BatchSampler(sampler, batch_size, drop),
        num_workers=count,
        multiprocessing_context="fork" if count else None,
        worker_init_fn=_leave_interrupts,
        pin_memory=device.type == "cuda",
    )
    for pictures, indices in _one_ahead(iter(loader)) if kept else loader:
        if not len(pictures):
            pictures = squares[indices.tolist()]  # once more, here, where an error tells what is wrong
        yield pictures.to(device, non_blocking=True), indices


def _one_ahead(source: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The next batch is gathered while one is learnt."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, source, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, source, None)
            yield batch


def _leave_interrupts(_worker: int) -> None:
    """Ctrl-C reaches every process of the terminal; the one that asks for batches stops the others, without a word."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
