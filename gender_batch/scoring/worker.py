"""What a worker process does: read pictures, and on a CPU also infer, so that no pixel leaves the process."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gender_batch.model.session import Model
from gender_batch.pictures.ahead import ReadAhead
from gender_batch.pictures.preprocessing import Preprocessing
from gender_batch.pictures.read import PictureError
from gender_batch.prediction import Status

_PR_SET_PDEATHSIG = 1  # prctl(2)

MEMORY = 5 * 1024**3
"""Bytes of address space that a worker may take besides what its libraries and model have. The largest picture that is
decoded, of 89 million 32-bit greys, takes 3 GiB of it; threads that read ahead, their heaps and files up to 1 GiB."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one picture.

    `result` holds probabilities (classes,) where the worker infers, the picture's pixels (size, size, 3) where it
    only reads, and None where `status` is not ok. `reading` (waiting for the file's bytes), `decoding` (up to the
    pixels that the model takes) and `inference` are seconds.
    """

    status: Status
    result: NDArray[Any] | None = None
    width: int | None = None
    height: int | None = None
    error: str | None = None
    reading: float = 0.0
    decoding: float = 0.0
    inference: float = 0.0


class Step(Protocol):
    """What turns a path into an outcome. Made inside the worker; may raise nothing but what ends the worker.

    `read` gives the content of the file, which may have been read ahead, or raises PictureError.
    """

    def __call__(self, path: str, read: Callable[[], bytes], /) -> Outcome: ...


class StepFactory(Protocol):
    """Makes the step in the worker process; must itself travel by pickle."""

    def __call__(self) -> Step: ...


@dataclass(frozen=True)
class Read:
    """Read and preprocess. The pixels go back to the parent, which feeds a GPU with them."""

    preprocessing: Preprocessing

    def __call__(self) -> Step:
        def step(_path: str, read: Callable[[], bytes]) -> Outcome:
            began = read_at = time.perf_counter()
            try:
                data = read()
                read_at = time.perf_counter()
                picture = self.preprocessing.decode(data)
            except PictureError as error:
                seconds = read_at - began, time.perf_counter() - read_at
                return Outcome(error.status, None, error.width, error.height, str(error), *seconds)
            pixels = self.preprocessing.apply(picture.image)
            seconds = read_at - began, time.perf_counter() - read_at
            return Outcome(Status.OK, pixels, picture.width, picture.height, None, *seconds)

        return step


@dataclass(frozen=True)
class ReadAndInfer:
    """Read, preprocess and infer, one picture at a time on one core: on a CPU the fastest arrangement."""

    model: Path
    preprocessing: Preprocessing

    def __call__(self) -> Step:
        model = Model(self.model, "cpu", threads=1)
        see = Read(self.preprocessing)()

        def step(path: str, read: Callable[[], bytes]) -> Outcome:
            outcome = see(path, read)
            if outcome.result is None:
                return outcome
            began = time.perf_counter()
            probabilities = model.probabilities(outcome.result[np.newaxis])[0]
            return replace(outcome, result=probabilities, inference=time.perf_counter() - began)

        return step


def work(connection: Connection, factory: StepFactory, position: Any, started: Any, parent: int) -> None:
    """Answer lists of paths with lists of outcomes until the connection closes or the process `parent` dies.

    `position` and `started` are shared with the parent: the index of the picture in hand (-1 for none) and the
    monotonic time at which it was taken up. They tell the parent whom to blame when this process dies or hangs.
    """
    # The terminal's Ctrl-C goes to the parent, which decides. If the parent dies, by whatever signal, the kernel kills
    # this process too, even one that hangs in a decoder.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return  # it died before the kernel was told
    warnings.simplefilter("ignore")
    try:
        step = factory()
        _limit_memory()
        connection.send(None)  # ready
        ahead = ReadAhead()
        announced: deque[list[tuple[str, Callable[[], bytes]]]] = deque()
        while True:
            if not announced:
                announced.append(_announce(connection.recv(), ahead))
            outcomes = []
            for index, (path, read) in enumerate(announced.popleft()):
                while ahead.is_slow and connection.poll():
                    announced.append(_announce(connection.recv(), ahead))
                started.value = time.monotonic()
                position.value = index
                outcomes.append(step(path, read))
            position.value = -1
            connection.send(outcomes)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has finished


def _announce(paths: Sequence[str], ahead: ReadAhead) -> list[tuple[str, Callable[[], bytes]]]:
    return [(path, ahead.announce(path)) for path in paths]


def _limit_memory() -> None:
    """A picture that eats memory gets a MemoryError in its own row before the machine runs out of it."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or hard > limit:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
