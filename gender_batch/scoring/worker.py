"""What a worker process does: read pictures, and on a CPU also infer, so that no pixel leaves the process."""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import AvifImagePlugin

from gender_batch.faces.look import FaceSearch, Looker
from gender_batch.model.session import Model
from gender_batch.pictures.ahead import ReadAhead
from gender_batch.pictures.preprocessing import Preprocessing
from gender_batch.pictures.read import PictureError, read_needed
from gender_batch.prediction import Box, Status
from gender_batch.scoring.allocator import keep_memory
from gender_batch.scoring.slots import SharedBytes, Slots

_PR_SET_PDEATHSIG = 1  # prctl(2)

MEMORY = 5 * 1024**3
"""Bytes of address space that a worker may take besides what its libraries and model have. The largest picture that is
decoded, of 89 million 32-bit greys, takes 3 GiB of it; threads that read ahead, their heaps and files up to 1 GiB."""

KEPT = 64 * 1024 * 1024
"""Bytes that a worker keeps for the next picture's pixels, which it would otherwise give back with each: a WebP of 640
pixels took 1,043 new pages, of which 18 are left."""


class Outcome(NamedTuple):
    """What became of one picture. A tuple, since millions of them travel from process to process.

    `probabilities` holds those of each class for each of N squares, plain numbers, which travel in a fraction of an
    array's time; before there are any, `result` holds the squares' pixels (N, size, size, 3). Both are None where
    `status` is not ok. N is 1, or the number of people that are asked, the main one first, whose faces are at `boxes`.
    `faces` were found, None where none were looked for. `reading` (waiting for the file's bytes), `decoding` (up to the
    pixels that the model takes, but for the `finding` of faces) and `inference` are seconds.
    """

    status: Status
    result: NDArray[Any] | None = None
    width: int | None = None
    height: int | None = None
    error: str | None = None
    reading: float = 0.0
    decoding: float = 0.0
    inference: float = 0.0
    finding: float = 0.0
    faces: int | None = None
    boxes: tuple[Box, ...] = ()
    probabilities: list[list[float]] | None = None


class Step(Protocol):
    """What turns a path into an outcome. Made inside the worker; may raise nothing but what ends the worker.

    `read` gives the content of the file, which may have been read ahead, or raises PictureError.
    """

    def __call__(self, path: str, read: Callable[[], bytes], /) -> Outcome: ...


class Inference(Protocol):
    """What turns the outcomes of a list of paths into those that are sent; made where a Step is, and raises no more.

    `begin` is to be called before each part that may take as long as a picture may.
    """

    def __call__(self, outcomes: list[Outcome], begin: Callable[[], None], /) -> list[Outcome]: ...


class StepFactory(Protocol):
    """Makes the step in the worker process, and what is done with its outcomes; must itself travel by pickle."""

    def __call__(self) -> Step: ...

    def inference(self) -> Inference:
        """Nothing, unless the worker infers."""
        return lambda outcomes, _: outcomes

    @property
    def shorter_side(self) -> int | None:
        """That of the one decoding of a file that the step needs: the rest of it need not be read; None: all."""
        return None


@dataclass(frozen=True)
class Read(StepFactory):
    """Read, find faces if asked for, and preprocess. The pixels go back to the parent, which feeds a GPU with them."""

    preprocessing: Preprocessing
    search: FaceSearch | None = None

    @property
    def shorter_side(self) -> int | None:
        return None if self.search else self.preprocessing.shorter_side

    def __call__(self) -> Step:
        see = _SeeFaces(self.preprocessing, self.search) if self.search else _SeeWhole(self.preprocessing)

        def step(_path: str, read: Callable[[], bytes]) -> Outcome:
            began = read_at = time.perf_counter()
            try:
                data = read()
                read_at = time.perf_counter()
                outcome = see(data)
            except PictureError as error:
                outcome = Outcome(error.status, None, error.width, error.height, str(error))
            decoding = time.perf_counter() - read_at - outcome.finding
            return outcome._replace(reading=read_at - began, decoding=decoding)

        return step


class _SeeWhole:
    """The picture as it is."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing

    def __call__(self, data: bytes) -> Outcome:
        picture = self.preprocessing.decode(data)
        pixels = self.preprocessing.apply(picture.image)
        return Outcome(Status.OK, pixels[np.newaxis], picture.width, picture.height)


class _SeeFaces:
    """The faces in the picture."""

    def __init__(self, preprocessing: Preprocessing, search: FaceSearch) -> None:
        self.preprocessing, self.search = preprocessing, search
        self.looker, self.whole = Looker(search, preprocessing), _SeeWhole(preprocessing)

    def __call__(self, data: bytes) -> Outcome:
        seen = self.looker.look(data)
        if seen.squares:
            pixels = np.stack([self.preprocessing.apply(square) for square in seen.squares])
            boxes = tuple(face.box(seen.width, seen.height) for face in seen.faces)
            found = Outcome(Status.OK, pixels, seen.width, seen.height, boxes=boxes)
        elif self.search.whole:
            found = self.whole(data)
        else:
            found = Outcome(Status.NO_FACE, None, seen.width, seen.height, "no face was found in it")
        return found._replace(faces=seen.count, finding=seen.seconds)


@dataclass(frozen=True)
class ReadAndInfer(StepFactory):
    """Read and preprocess several pictures one by one, then infer them, on one core: on a CPU the fastest
    arrangement. What decoder and network each keep in the core's caches is lost less often than with every picture.

    The `content` of the model's file goes with its name: all workers, also those that are started later, have it."""

    model: Path
    content: SharedBytes | bytes
    preprocessing: Preprocessing
    search: FaceSearch | None = None

    @property
    def shorter_side(self) -> int | None:
        return Read(self.preprocessing, self.search).shorter_side

    def __call__(self) -> Step:
        return Read(self.preprocessing, self.search)()

    def inference(self) -> Inference:
        return _Inference(Model(self.model, "cpu", threads=1, content=bytes(self.content)))


class _Inference:
    """Probabilities instead of pixels.

    How many squares are inferred at a time is tried out: the quickest way depends on the processor's caches and on the
    model. The answers do not: of the same pixels they are the same to the last bit in any company.
    """

    SIZES = (1, 2, 4, 8)
    TOGETHER = max(SIZES)
    TRIALS = 4

    def __init__(self, model: Model) -> None:
        self._model = model
        self._taken: dict[int, list[float]] = {size: [] for size in self.SIZES}

    def __call__(self, outcomes: list[Outcome], begin: Callable[[], None]) -> list[Outcome]:
        pixels = [outcome.result for outcome in outcomes if outcome.result is not None]
        if not pixels:
            return outcomes
        squares = np.concatenate(pixels)
        began = time.perf_counter()
        answers = []
        for start in range(0, len(squares), self.TOGETHER):
            answers += self._answers(squares[start : start + self.TOGETHER], begin)
        each = (time.perf_counter() - began) / len(squares)
        probabilities = np.concatenate(answers).tolist()
        finished, start = [], 0
        for outcome in outcomes:
            if outcome.result is not None:
                count = len(outcome.result)
                mine = probabilities[start : start + count]
                outcome = outcome._replace(result=None, probabilities=mine, inference=count * each)
                start += count
            finished.append(outcome)
        return finished

    def _answers(self, squares: NDArray[np.uint8], begin: Callable[[], None]) -> list[NDArray[np.float32]]:
        """Of TOGETHER squares, or of the last ones of a list, which are no trial."""
        size = self._size()
        answers = []
        began = time.perf_counter()
        for start in range(0, len(squares), size):
            begin()
            answers.append(self._model.probabilities(squares[start : start + size]))
        if len(squares) == self.TOGETHER and len(self._taken[size]) < self.TRIALS:
            self._taken[size].append(time.perf_counter() - began)
        return answers

    def _size(self) -> int:
        """The one that was tried least while there is something to try, then the quickest: the least of the trials, of
        which others may have been disturbed."""
        least = min(self.SIZES, key=lambda size: len(self._taken[size]))
        if len(self._taken[least]) < self.TRIALS:
            return least
        return min(self.SIZES, key=lambda size: min(self._taken[size]))


_NO_OTHERS = np.empty(0, np.uint8)
"""One array, since each other one would travel by itself."""

_Announced = list[tuple[str, int | None, Callable[[], bytes]]]
"""Paths, their places in the slots (None without slots), and what gives the content of their files."""


def work(
    connection: Connection, factory: StepFactory, position: Any, started: Any, parent: int, slots: Slots | None
) -> None:
    """Answer lists of paths with lists of outcomes until the connection closes or the process `parent` dies.

    With each answer goes how many paths this process should have at hand, so that files are read in time.

    With `slots` a list of paths comes with a place for each, in which the first square of pixels goes back.
    `position` and `started` are shared with the parent: the number of the picture in hand, counted from 0 over all that
    were sent (-1 for none; while a list is inferred it is still that of its last picture), and the monotonic time at
    which it, or a part of the inference, was begun. They tell the parent whom to blame when this process dies or hangs.
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
        step, infer = factory(), factory.inference()
        # With more arenas each thread that reads ahead would take 64 MB of addresses for a heap of its own.
        keep_memory(KEPT, arenas=2)
        _limit_memory()
        _quieten_libraries()
        AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # the other cores have workers of their own
        connection.send(None)  # ready
        ahead = ReadAhead(read_early=_reading_early(factory.shorter_side))
        announced: deque[_Announced] = deque()
        squares = slots.squares() if slots else None
        taken = 0

        def begin() -> None:
            started.value = time.monotonic()

        while True:
            if not announced:
                announced.append(_announce(ahead, *connection.recv()))
            outcomes = []
            began = time.monotonic()
            for path, place, read in announced.popleft():
                while ahead.is_slow and connection.poll():
                    announced.append(_announce(ahead, *connection.recv()))
                begin()
                position.value = taken
                taken += 1
                outcome = step(path, read)
                if squares is not None and outcome.result is not None:
                    squares[place] = outcome.result[0]
                    others = outcome.result[1:]
                    outcome = outcome._replace(result=others if len(others) else _NO_OTHERS)
                outcomes.append(outcome)
            outcomes = infer(outcomes, begin)
            position.value = -1
            busy = time.monotonic() - began - sum(outcome.reading for outcome in outcomes)
            connection.send((outcomes, ahead.worth_announcing(busy / len(outcomes))))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has finished


def _quieten_libraries() -> None:
    """What decoders say goes nowhere: libtiff has a line for every odd tag of a hostile file, Pillow logs more, and
    standard error belongs to the run's log. Tracebacks still get there."""
    logging.disable()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _announce(ahead: ReadAhead, paths: Sequence[str], places: Sequence[int]) -> _Announced:
    return [(path, place, ahead.announce(path)) for path, place in zip_longest(paths, places)]


def _reading_early(shorter_side: int | None) -> Callable[[str, int], bytes] | None:
    if shorter_side is None:
        return None
    return lambda path, limit: read_needed(path, shorter_side, limit)


def _limit_memory() -> None:
    """A picture that eats memory gets a MemoryError in its own row before the machine runs out of it."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or hard > limit:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
