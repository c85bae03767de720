"""A pool of worker processes in which a picture that kills or hangs its worker costs only its own row."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, islice
from math import ceil
from multiprocessing.connection import Connection, wait
from multiprocessing.resource_tracker import ensure_running
from typing import Any

import numpy as np

from gender_batch.prediction import Status
from gender_batch.scoring.slots import Slots
from gender_batch.scoring.worker import Outcome, StepFactory, work

SHORT_CHUNK, CHUNK = 8, 32
"""Pictures sent at a time, at the beginning and later. With more at a time the parent wakes up less often and disturbs
the workers' caches less, and so do decoder and network each other: with 32 instead of 8, pictures of 1080 pixels were
scored 6% faster, of 400 pixels 10%; with 64 no faster than that."""

SHARE = 8
"""A chunk that is no short one is at most an eighth of what each worker has been given before: so a short list is
spread over all workers, and at the end of a long one none is left with much while the others have nothing."""

LOOK_AHEAD = 64
"""Chunks per worker that may be finished but wait for an earlier one: bounds memory to this many outcomes."""

QUEUED = 2
"""Chunks a worker holds: the one in hand and the next, so that it never waits for the parent. More where it says that
files are slow to read."""

START_LIMIT = 3
"""Workers that may die in a row without having a picture in hand before the run gives up."""

READY_TIMEOUT = 120.0
"""Seconds for a worker to import and load its model, on a busy machine with a cold disk."""


class PoolError(Exception):
    """Workers die or do not start for a reason that is no picture's."""


PLACES = 4 * CHUNK
"""Pictures per worker whose pixels are held at the same time, where workers only read: 15 MB each at 200 pixels."""


class _Chunk:
    """Paths that travel together, the places of their pixels if these have any, and the outcomes known so far."""

    def __init__(self, paths: list[str], places: list[int]) -> None:
        self.paths, self.places = paths, places
        self.outcomes: list[Outcome | None] = [None] * len(paths)
        self.unwanted = False

    def missing(self) -> list[int]:
        return [index for index, outcome in enumerate(self.outcomes) if outcome is None]


class _Worker:
    """One process, its pipe, and the chunks it holds, the one in hand first, each with what was sent of it."""

    def __init__(self, context: Any, factory: StepFactory, slots: Slots | None) -> None:
        self.position: Any = context.Value("q", -1, lock=False)
        self.started = context.Value("d", 0.0, lock=False)
        self.connection: Connection
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=work, args=(theirs, factory, self.position, self.started, os.getpid(), slots), daemon=True
        )
        self.process.start()
        theirs.close()
        self.born = time.monotonic()
        self.ready = False
        self.queued = QUEUED
        self.given = 0
        self.chunks: deque[tuple[_Chunk, list[int]]] = deque()

    def give(self, chunk: _Chunk, sent: list[int]) -> None:
        self.given += len(sent)
        self.chunks.append((chunk, sent))
        with suppress(OSError):  # a worker that has just died is noticed by its sentinel
            places = [chunk.places[index] for index in sent] if chunk.places else []
            self.connection.send(([chunk.paths[index] for index in sent], places))

    def in_hand(self) -> tuple[_Chunk, list[int]] | None:
        """The chunk, and the indices in it, of what the worker may be at; None between pictures.

        That need not be the first chunk: while the answer to one is on its way the worker is at the next one already.
        It is one picture, but for the last of those that were sent together: then all of them are inferred.
        """
        left = self.given - self.position.value  # of all that it was given, this picture among them; -1 is none of it
        for chunk, sent in reversed(self.chunks):
            if left <= len(sent):
                return chunk, [sent[-left]] if left > 1 else sent
            left -= len(sent)
        return None  # it is answered already, or there is none

    def overdue(self, picture_timeout: float, watched_since: float) -> bool:
        """Whether it has taken too long, of the time since then."""
        now = time.monotonic()
        if not self.ready:
            return now - max(self.born, watched_since) > READY_TIMEOUT
        return self.in_hand() is not None and now - max(self.started.value, watched_since) > picture_timeout


class WorkerPool:
    """`outcomes` runs a step over paths in `count` processes. A context manager; leaves no process behind.

    A step that gives pixels, squares of `side` pixels, has them sent through shared memory.
    """

    def __init__(self, factory: StepFactory, count: int, picture_timeout: float, side: int | None = None) -> None:
        self.factory, self.count, self.picture_timeout = factory, count, picture_timeout
        # Not "fork": this process may hold threads and a session. Not "forkserver": a worker would be the server's
        # child, and the kernel could not tie its life to ours.
        self._context = multiprocessing.get_context("spawn")
        self._slots = self._slots_for(side) if side else None
        self._workers: list[_Worker] = []
        self._deaths_without_culprit = 0
        self._watched_since = self._watched = 0.0

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.connection.close()
            worker.process.kill()  # it writes nothing that could be left half done
        for worker in self._workers:
            worker.process.join()
        self._workers = []

    def outcomes(self, paths: Iterable[str]) -> Iterator[tuple[str, Outcome]]:
        """(path, outcome) in the order of `paths`, which are drawn only a bounded number ahead.

        Pixels in shared memory are there until the next outcome is drawn.
        No process is started before the first path is there. Raises PoolError.
        """
        source = iter(paths)
        first = next(source, None)
        if first is None:
            return
        lists = self._cut(chain([first], source))
        with _interrupts_held_back():
            while len(self._workers) < self.count:
                self._workers.append(self._started())
        again: deque[tuple[_Chunk, list[int]]] = deque()  # what workers that died have left of their chunks
        in_order: deque[_Chunk] = deque()
        try:
            exhausted = False
            while not exhausted or in_order:
                while in_order and not in_order[0].missing():
                    yield from self._done(in_order.popleft())
                # One round gives every worker its first chunk, the next its second: a short list is spread.
                for level in range(max(worker.queued for worker in self._workers)):
                    for worker in self._workers:
                        if len(worker.chunks) > level or level >= worker.queued:
                            continue
                        if again:
                            worker.give(*again.popleft())
                        elif not exhausted and len(in_order) < LOOK_AHEAD * self.count and self._has_places():
                            paths_now = next(lists, [])
                            exhausted = not paths_now
                            if paths_now:
                                places = self._slots.lend(len(paths_now)) if self._slots else []
                                in_order.append(_Chunk(paths_now, places))
                                worker.give(in_order[-1], in_order[-1].missing())
                if (in_order and in_order[0].missing()) or (not in_order and not exhausted):
                    self._listen(again)
        finally:
            # Whoever asked has had enough, but workers may still be writing.
            held = {(chunk, index) for worker in self._workers for chunk, sent in worker.chunks for index in sent}
            for chunk in in_order:
                chunk.unwanted = True
                self._take_back(chunk, [index for index in range(len(chunk.paths)) if (chunk, index) not in held])

    def _slots_for(self, side: int) -> Slots:
        try:
            return Slots(PLACES * self.count, side)
        except OSError as error:
            raise PoolError(
                f"no memory for the pixels of {self.count} workers ({error.strerror}); take fewer: --workers"
            ) from None

    def _started(self) -> _Worker:
        try:
            return _Worker(self._context, self.factory, self._slots)
        except OSError as error:
            raise PoolError(
                f"a worker process cannot be started: {error.strerror}; are memory, /dev/shm and the limits of "
                f"processes and open files (ulimit -u, -n) large enough for {self.count} workers (--workers)?"
            ) from None

    def _cut(self, paths: Iterator[str]) -> Iterator[list[str]]:
        """Lists of paths to send, longer ones as more have been sent."""
        given = 0
        while some := list(islice(paths, min(CHUNK, max(SHORT_CHUNK, given // (SHARE * self.count))))):
            given += len(some)
            yield some

    def _has_places(self) -> bool:
        return self._slots is None or self._slots.free >= CHUNK

    def _done(self, chunk: _Chunk) -> Iterator[tuple[str, Outcome]]:
        """The outcomes of a chunk; its places are free then."""
        squares = self._slots.squares() if self._slots else None
        try:
            for index, (path, outcome) in enumerate(zip(chunk.paths, chunk.outcomes, strict=True)):
                assert outcome is not None  # noqa: S101 - for mypy; `missing` is empty
                if squares is not None and outcome.result is not None:
                    place = chunk.places[index]
                    first = squares[place : place + 1]
                    others = outcome.result
                    outcome = outcome._replace(result=np.concatenate([first, others]) if len(others) else first)
                yield path, outcome
        finally:
            self._take_back(chunk, range(len(chunk.paths)))

    def _take_back(self, chunk: _Chunk, indices: Iterable[int]) -> None:
        if self._slots:
            self._slots.take_back([chunk.places[index] for index in indices])

    def _listen(self, again: deque[tuple[_Chunk, list[int]]]) -> None:
        """Take what the workers have sent; replace those that died or hang."""
        waited: list[Any] = [worker.connection for worker in self._workers]
        waited += [worker.process.sentinel for worker in self._workers]
        longest = min(1.0, self.picture_timeout / 4)
        ready = set(wait(waited, timeout=longest))
        now = time.monotonic()
        if now - self._watched > 2 * longest:
            self._watched_since = now  # this process was stopped (Ctrl-Z), and perhaps its workers with it
        self._watched = now
        for number, worker in enumerate(self._workers):
            alive = worker.process.sentinel not in ready
            if not alive:
                self._receive_all(worker)  # what it sent before it died still counts
            elif worker.connection in ready:
                alive = self._receive(worker)
            if alive:
                in_hand = worker.in_hand()
                if not worker.overdue(self.picture_timeout, self._watched_since):
                    continue
                worker.process.kill()
                worker.process.join()
                self._receive_all(worker)  # what it finished in the last instant
            else:
                worker.process.join()
                in_hand = worker.in_hand()
            self._blame(worker, in_hand, Status.TIMEOUT if alive else Status.CRASHED)
            doubtful, suspects = in_hand or (None, [])
            for chunk, sent in worker.chunks:
                if chunk.unwanted:
                    self._take_back(chunk, sent)
                    continue
                missing = [index for index in sent if chunk.outcomes[index] is None]
                alone = [index for index in missing if chunk is doubtful and index in suspects]
                again.extend((chunk, [index]) for index in alone)  # to see whose fault it was
                if rest := [index for index in missing if index not in alone]:
                    again.append((chunk, rest))
            worker.connection.close()
            with _interrupts_held_back():
                self._workers[number] = self._started()

    def _receive(self, worker: _Worker) -> bool:
        """Take the next message of the worker; False if there is none, since it has closed its end."""
        try:
            answer = worker.connection.recv()
        except (EOFError, OSError):
            return False
        if not worker.ready:
            worker.ready = True
            return True
        outcomes, at_hand = answer
        self._deaths_without_culprit = 0
        chunk, sent = worker.chunks.popleft()
        worker.queued = max(QUEUED, ceil(at_hand / len(chunk.paths)))
        for index, outcome in zip(sent, outcomes, strict=True):
            chunk.outcomes[index] = outcome
        if chunk.unwanted:
            self._take_back(chunk, sent)
        return True

    def _receive_all(self, worker: _Worker) -> None:
        """All complete messages of a worker that has ended."""
        with suppress(OSError):
            while worker.connection.poll() and self._receive(worker):
                pass

    def _blame(self, worker: _Worker, in_hand: tuple[_Chunk, list[int]] | None, status: Status) -> None:
        if in_hand is not None:
            chunk, (index, *others) = in_hand
            # Whoever dies may have been killed from outside, as where memory runs out: that picture is tried once more.
            sure = not others and (status is Status.TIMEOUT or (chunk, [index]) in worker.chunks)
            if not sure or chunk.outcomes[index] is not None:
                return  # it may be another's fault, or it was done after all
            error = (
                f"not done after {self.picture_timeout:g} s"
                if status is Status.TIMEOUT
                else f"its worker process died of {_cause(worker.process.exitcode)}"
            )
            chunk.outcomes[index] = Outcome(status, error=error)
            return
        self._deaths_without_culprit += 1
        if self._deaths_without_culprit >= START_LIMIT:
            raise PoolError(
                f"{START_LIMIT} worker processes in a row ended without a picture in hand, the last of "
                f"{_cause(worker.process.exitcode)}; is there enough memory for {self.count} workers (--workers)?"
            )


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """The terminal's Ctrl-C goes to all processes: those started meanwhile never see it, also while they import
    what they need; this one does afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what is done with signals
        return
    held: list[int] = []

    def hold(number: int, _frame: object) -> None:
        held.append(number)

    handler = signal.signal(signal.SIGINT, hold)
    ensure_running()  # multiprocessing's own helper, whose start would let interrupts through
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if signal.getsignal(signal.SIGINT) is hold:  # else another signal has begun to end the program meanwhile
            signal.signal(signal.SIGINT, handler)
        if held:
            signal.raise_signal(signal.SIGINT)


def _cause(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        with suppress(ValueError):
            return signal.Signals(-exitcode).name
    return f"exit code {exitcode}"
