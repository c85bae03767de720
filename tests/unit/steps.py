"""Steps for the worker pool that do what the name of a picture says. Importable, since workers import them."""

import logging
import os
import resource
import signal
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gender_batch.pictures.ahead import ReadAhead
from gender_batch.pictures.read import PictureError
from gender_batch.prediction import Status
from gender_batch.scoring import worker
from gender_batch.scoring.worker import MEMORY, Inference, Outcome, Step, StepFactory

SIDE = 2
"""Pixels of a side of what `Paint` paints."""


def obey(path: str, _read: Callable[[], bytes]) -> Outcome:
    """Do what the path's last word says; an ordinary path is answered with itself and the worker's process id."""
    match path.rsplit(" ", 1)[-1]:
        case "abort":
            os.abort()
        case "exit":
            os._exit(7)
        case "leave":
            os._exit(0)
        case "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raise":
            raise RuntimeError("a step that breaks its contract")
        case "eof":
            raise EOFError("a step that looks like a closed connection")
        case "hang":
            while True:
                time.sleep(60)
        case "spin":
            while True:
                pass
        case "eat":
            try:
                bytearray(2 * MEMORY)
            except MemoryError:
                return Outcome(Status.TOO_LARGE, error=path)
        case "slow":
            time.sleep(0.3)
        case "talk":
            warnings.warn("an odd tag", stacklevel=1)
            logging.getLogger("decoder").warning("an odd tag")
            for descriptor in (1, 2):
                os.write(descriptor, b"an odd tag\n")
        case "corrupt":
            return Outcome(Status.CORRUPT, error=path)
    return Outcome(Status.OK, width=os.getpid(), error=path)


@dataclass(frozen=True)
class Obey(StepFactory):
    """Makes `obey`, in a worker that leaves no core file behind."""

    def __call__(self) -> Step:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        return obey


def slow_disk(path: str, limit: int = 10_000) -> bytes:
    """A file on a slow disk, or one that hangs, if its name says so; its content is its name."""
    time.sleep(60 if path.endswith("hang") else 0.02)
    if len(path) > limit:
        raise PictureError(Status.TOO_LARGE, "a long name")
    return path.encode()


@dataclass(frozen=True)
class SlowInference(StepFactory):
    """What is done with a list of outcomes takes 0.3 s for each, and for ever, or ends the worker, where a path says
    so."""

    def __call__(self) -> Step:
        return obey

    def inference(self) -> Inference:
        def infer(outcomes: list[Outcome], begin: Callable[[], None]) -> list[Outcome]:
            for outcome in outcomes:
                begin()
                if "fatal" in str(outcome.error):
                    os._exit(7)
                time.sleep(60 if "stuck" in str(outcome.error) else 0.3)
            return outcomes

        return infer


def squares_of(count: int, colour: int) -> NDArray[np.uint8]:
    """(count, SIDE, SIDE, 3): the first of the colour, each other one of the next."""
    return np.tile(np.arange(colour, colour + count, dtype=np.uint8)[:, None, None, None], (1, SIDE, SIDE, 3))


@dataclass(frozen=True)
class Paint(StepFactory):
    """Gives pixels, as many squares as the first number of a path says: of its second number, the next one, ..."""

    def __call__(self) -> Step:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

        def step(path: str, read: Callable[[], bytes]) -> Outcome:
            outcome = obey(path, read)
            squares, colour = map(int, path.split()[:2])
            if not squares:
                return Outcome(Status.NO_FACE, error=path)
            return outcome._replace(result=squares_of(squares, colour))

        return step


@dataclass(frozen=True)
class FromSlowDisk(StepFactory):
    """Answers with the content of the file; `height` says how many threads there are."""

    def __call__(self) -> Step:
        worker.ReadAhead = lambda **_: ReadAhead(slow_disk)  # type: ignore[misc,assignment]

        def step(path: str, read: Callable[[], bytes]) -> Outcome:
            if path.endswith("exit"):
                os._exit(7)
            return Outcome(Status.OK, error=read().decode(), width=os.getpid(), height=threading.active_count())

        return step


class Eager(ReadAhead):
    """Wants many files at hand, and counts them."""

    is_slow = True  # type: ignore[assignment]
    announced = 0

    def worth_announcing(self, _pace: float) -> int:
        return 64

    def announce(self, path: str) -> Callable[[], bytes]:
        Eager.announced += 1
        return path.encode


@dataclass(frozen=True)
class WantMany(StepFactory):
    """`height` says how many files were at hand when one was begun."""

    def __call__(self) -> Step:
        worker.ReadAhead = Eager  # type: ignore[misc]
        taken = iter(range(10**6))

        def step(path: str, _read: Callable[[], bytes]) -> Outcome:
            time.sleep(0.01)
            return Outcome(Status.OK, error=path, height=Eager.announced - next(taken))

        return step


@dataclass(frozen=True)
class TakeMemory(StepFactory):
    """Takes two blocks of 4 MB and gives them back; `width` says how many pages the system had to zero for it."""

    def __call__(self) -> Step:
        def step(_path: str, _read: Callable[[], bytes]) -> Outcome:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            _ = bytearray(2**22), bytearray(2**22)
            return Outcome(Status.OK, width=resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

        return step


@dataclass(frozen=True)
class Dying(StepFactory):
    """No worker ever starts."""

    def __call__(self) -> Step:
        os._exit(3)


@dataclass(frozen=True)
class DyingOnce(StepFactory):
    """The first worker that is at "start", "picture" or "inference" dies there, and all others do not."""

    marker: Path
    place: str = "start"

    def __call__(self) -> Step:
        self._die_once("start")
        obey = Obey()()

        def step(path: str, read: Callable[[], bytes]) -> Outcome:
            self._die_once("picture")
            return obey(path, read)

        return step

    def inference(self) -> Inference:
        def infer(outcomes: list[Outcome], _: Callable[[], None]) -> list[Outcome]:
            self._die_once("inference")
            return outcomes

        return infer

    def _die_once(self, place: str) -> None:
        if place == self.place:
            with suppress(FileExistsError):
                self.marker.touch(exist_ok=False)
                os._exit(3)


@dataclass(frozen=True)
class Unanswerable(StepFactory):
    """Its outcomes cannot be sent to the parent: the worker dies, and it is no picture's fault."""

    def __call__(self) -> Step:
        return lambda path, _: Outcome(Status.OK, result=lambda: path)  # type: ignore[arg-type]
