"""Read files ahead of their turn, so that a slow disk or a network mount is waited for while others are decoded."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from gender_batch.pictures.read import PictureError, read_bytes
from gender_batch.prediction import Status

READERS = 32
"""Files that are read at the same time at most: a network answers several questions as fast as one."""

FEWEST, MOST = 16, 64
"""Files announced before they are needed."""

AHEAD_BYTES = 128 * 1024 * 1024
"""Bytes that files read ahead of their turn hold at most."""

SLOW = 0.5e-3
"""Seconds. A file that is in memory takes a tenth of it, and is not worth a thread; a disk or a network takes more."""

_MEMORY = 0.1
"""Weight of the last file in the means of the seconds that files took and of their bytes."""


class ReadAhead:
    """Reads files in the order in which they are announced.

    Threads are started when reading turns out to be slow, and not before. Files are begun in their order, so that one
    that hangs makes none before it wait. `read` is `read_bytes`, or takes its place; `read_early` gives what is needed
    of a file that is slow to read.
    """

    def __init__(
        self, read: Callable[..., bytes] = read_bytes, read_early: Callable[[str, int], bytes] | None = None
    ) -> None:
        self._read, self._read_early = read, read_early or read
        self._threads: ThreadPoolExecutor | None = None
        self._may_start_threads = True
        self._seconds = self._bytes = 0.0
        self._announced = FEWEST

    @property
    def is_slow(self) -> bool:
        """Whether it is worth while to announce files long before they are needed."""
        return self._seconds > SLOW

    def worth_announcing(self, pace: float) -> int:
        """How many files should be announced where one is needed every `pace` seconds: half as many again as are
        needed while one is read (Little's law), of large files fewer, so that they fit."""
        if self.is_slow:
            wanted = 1.5 * self._seconds / max(pace, 1e-6)
            fitting = AHEAD_BYTES / (2 * max(self._bytes, 1))
            self._announced = max(FEWEST, int(min(wanted, fitting, MOST)))
        return self._announced

    def announce(self, path: str) -> Callable[[], bytes]:
        """What gives the content of the file when it is needed, or raises PictureError."""
        if not (self.is_slow and self._may_start_threads):
            return partial(self._timed, self._read, path)
        self._threads = self._threads or ThreadPoolExecutor(READERS)
        largest = AHEAD_BYTES // self._announced
        try:
            early = self._threads.submit(self._timed, self._read_early, path, largest)
        except RuntimeError:  # a limit of threads, as containers have one; this one is read by others, or by nobody
            self._may_start_threads = False
            return partial(self._timed, self._read, path)
        return partial(self._take, path, early)

    def _take(self, path: str, early: Future[bytes]) -> bytes:
        try:
            return early.result()
        except PictureError as error:
            if error.status is not Status.TOO_LARGE:
                raise
        return self._timed(self._read, path)

    def _timed(self, read: Callable[..., bytes], path: str, *limit: int) -> bytes:
        began = time.perf_counter()
        data = b""
        try:
            data = read(path, *limit)
            return data
        finally:
            self._seconds += _MEMORY * (time.perf_counter() - began - self._seconds)
            self._bytes += _MEMORY * (len(data) - self._bytes)
