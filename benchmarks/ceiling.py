"""What the machine could do at best: its cores decode alone, infer alone, and do both in turn and nothing else, faces
found or not."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from gender_batch.faces.fetch import find_detector
from gender_batch.faces.look import FaceSearch, Looker
from gender_batch.model.metadata import Metadata
from gender_batch.model.session import Model
from gender_batch.pictures.preprocessing import Pixels
from gender_batch.pictures.read import read_bytes
from gender_batch.scoring.allocator import keep_memory
from gender_batch.scoring.cores import usable_cores
from gender_batch.scoring.pool import CHUNK
from gender_batch.scoring.worker import KEPT

DECODED = CHUNK
"""Pictures decoded before they are inferred, where both are done: `classify` does the same."""


def _decode(model: Path, paths: Sequence[str], pipe: Connection) -> None:
    spec = _metadata(model).preprocessing

    def once(path: str) -> None:
        spec.apply(spec.read(path).image)

    _measure(once, paths, pipe)


def _both(model: Path, paths: Sequence[str], pipe: Connection) -> None:
    opened = Model(model, "cpu", threads=1)
    spec, together = opened.metadata.preprocessing, _together(opened)
    pixels: list[Pixels] = []

    def once(path: str) -> None:
        pixels.append(spec.apply(spec.read(path).image))
        if len(pixels) == DECODED:
            for start in range(0, DECODED, together):
                opened.probabilities(np.stack(pixels[start : start + together]))
            pixels.clear()

    _measure(once, paths, pipe)


def _find(model: Path, paths: Sequence[str], pipe: Connection) -> None:
    """Faces found and inferred, as `_both`."""
    detector = find_detector()
    if detector is None:
        raise LookupError("no face detector")
    opened = Model(model, "cpu", threads=1)
    spec, together = opened.metadata.preprocessing, _together(opened)
    looker = Looker(FaceSearch(detector), spec)
    pixels: list[Pixels] = []

    def once(path: str) -> None:
        pixels.extend(spec.apply(square) for square in looker.look(read_bytes(path)).squares)
        while len(pixels) >= together:
            opened.probabilities(np.stack(pixels[:together]))
            del pixels[:together]

    _measure(once, paths, pipe)


def _infer(model: Path, paths: Sequence[str], pipe: Connection) -> None:
    opened = Model(model, "cpu", threads=1)
    spec, together = opened.metadata.preprocessing, _together(opened)
    pixels = np.stack([spec.apply(spec.read(paths[0]).image)] * together)

    def once(_: str) -> None:
        opened.probabilities(pixels)

    _measure(once, paths[::together], pipe, together)


def _together(model: Model) -> int:
    """How many pictures are inferred at a time: what is quickest hangs on the processor's caches."""
    size = model.metadata.preprocessing.size

    def seconds(count: int) -> float:
        """For each picture; the least of a few trials, since the other processes try, too."""
        pixels = np.zeros((count, size, size, 3), np.uint8)
        taken = []
        for _ in range(5):
            began = time.perf_counter()
            model.probabilities(pixels)
            taken.append(time.perf_counter() - began)
        return min(taken) / count

    return min((1, 2, 4, 8), key=seconds)


def _measure(once: Callable[[str], None], paths: Sequence[str], pipe: Connection, pictures: int = 1) -> None:
    """How many pictures per second there are if `once` does so many."""
    keep_memory(KEPT, arenas=2)  # as the workers of `classify` do
    for path in paths[:8]:
        once(path)
    pipe.send(None)
    pipe.recv()
    began = time.perf_counter()
    for path in paths:
        once(path)
    pipe.send(pictures * len(paths) / (time.perf_counter() - began))


def _metadata(model: Path) -> Metadata:
    return Model(model, "cpu", threads=1).metadata


_WORK = {"decode": _decode, "infer": _infer, "both": _both, "find": _find}


def on_all_cores(work: str, model: Path, paths: Sequence[str]) -> float:
    """Pictures per second of one process per core; `work` is "decode", "infer", "both" or "find"."""
    context = multiprocessing.get_context("spawn")
    count = usable_cores()
    running = []
    for number in range(count):
        ours, theirs = context.Pipe()
        process = context.Process(target=_WORK[work], args=(model, paths[number::count], theirs))
        process.start()
        running.append((ours, process))
    for pipe, _ in running:
        pipe.recv()
    for pipe, _ in running:
        pipe.send(None)
    rates = [pipe.recv() for pipe, _ in running]
    for _, process in running:
        process.join()
    return float(sum(rates))


def reckoned(decode: float, infer: float) -> float:
    """Pictures per second of cores that do both for every picture, if neither made the other slower."""
    return 1 / (1 / decode + 1 / infer)
