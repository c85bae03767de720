"""Read files ahead of their turn, so that a slow disk or a network mount is waited for while others are decoded."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from gender_batch.pictures.read import PictureError, read_bytes
from gender_batch.prediction import Status

READERS = 8
"""Files that are read at the same time: a network answers several questions as fast as one."""

LARGEST_AHEAD = 8 * 1024 * 1024
"""Bytes of a file that is read ahead of its turn; with 16 files announced at a time, 128 MB at most are held."""

SLOW = 0.5e-3
"""Seconds. A file that is in memory takes a tenth of it, and is not worth a thread; a disk or a network takes more."""

_MEMORY = 0.1
"""Weight of the last file in the mean of the seconds that files took."""


class ReadAhead:
    """Reads files in the order in which they are announced.

    Threads are started when reading turns out to be slow, and not before. Files are begun in their order, so that one
    that hangs makes none before it wait. `read` is `read_bytes`, or takes its place.
    """

    def __init__(self, read: Callable[..., bytes] = read_bytes) -> None:
        self._read = read
        self._threads: ThreadPoolExecutor | None = None
        self._seconds = 0.0

    @property
    def is_slow(self) -> bool:
        """Whether it is worth while to announce files long before they are needed."""
        return self._seconds > SLOW

    def announce(self, path: str) -> Callable[[], bytes]:
        """What gives the content of the file when it is needed, or raises PictureError."""
        if not self.is_slow:
            return partial(self._timed, path)
        self._threads = self._threads or ThreadPoolExecutor(READERS)
        return partial(self._take, path, self._threads.submit(self._timed, path, LARGEST_AHEAD))

    def _take(self, path: str, early: Future[bytes]) -> bytes:
        try:
            return early.result()
        except PictureError as error:
            if error.status is not Status.TOO_LARGE:
                raise
        return self._timed(path)

    def _timed(self, path: str, *limit: int) -> bytes:
        began = time.perf_counter()
        try:
            return self._read(path, *limit)
        finally:
            self._seconds += _MEMORY * (time.perf_counter() - began - self._seconds)
