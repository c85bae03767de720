"""Memory that workers and their parent share: pixels cross in it without being copied, and all see one model."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from multiprocessing import reduction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


class SharedMemory:
    """`size` bytes, `view`, which travel to a process that multiprocessing spawns by where they are.

    They are a file of memory alone, memfd_create(2): /dev/shm, small in a container, needs no room for it, and no name
    is left if all processes die. Raises OSError where there is no memory for it, a SIGBUS otherwise.
    """

    view: mmap.mmap

    def __init__(self, size: int) -> None:
        descriptor = os.memfd_create("gender-batch")
        self._file = os.fdopen(descriptor, "r+b", buffering=0)
        os.posix_fallocate(descriptor, 0, size)
        self.view = mmap.mmap(descriptor, size)

    def __getstate__(self) -> tuple[Any, int]:
        return reduction.DupFd(self._file.fileno()), len(self.view)

    def __setstate__(self, state: tuple[Any, int]) -> None:
        sent, size = state
        self._file = os.fdopen(sent.detach(), "r+b", buffering=0)
        self.view = mmap.mmap(self._file.fileno(), size)


class SharedBytes:
    """Some bytes: in the pipe to a process that is started so many would hold up the start of the next one."""

    def __init__(self, content: bytes) -> None:
        self._memory = SharedMemory(len(content))
        self._memory.view[:] = content

    def __bytes__(self) -> bytes:
        return self._memory.view[:]


class Slots:
    """`count` places for one square of pixels each, (size, size, 3) uint8.

    The parent alone lends places and takes them back: a worker that dies cannot keep one. Raises OSError.
    """

    def __init__(self, count: int, size: int) -> None:
        self._memory = SharedMemory(count * size * size * 3)
        self._size = size
        self._free = list(range(count))

    @property
    def free(self) -> int:
        return len(self._free)

    def lend(self, count: int) -> list[int]:
        """That many of the free places."""
        lent = self._free[-count:]
        del self._free[-count:]
        return lent

    def take_back(self, places: Sequence[int]) -> None:
        self._free.extend(places)

    def squares(self) -> Pixels:
        """The memory itself, (count, size, size, 3)."""
        return np.frombuffer(self._memory.view, np.uint8).reshape(-1, self._size, self._size, 3)
