"""Memory that workers and their parent share: pixels cross in it without being copied, and all see one model."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from multiprocessing import reduction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


class SharedBytes:
    """Some bytes, which travel to a process that multiprocessing spawns by where they are: in the pipe between the two
    so many would hold up the start of the next one.

    They are in a file of memory alone, memfd_create(2), which is written, not mapped: where there is no room that is an
    OSError, and no SIGBUS.
    """

    def __init__(self, content: bytes) -> None:
        self._file = os.fdopen(os.memfd_create("model"), "w+b", buffering=0)
        self._size = len(content)
        left = memoryview(content)
        while left:
            left = left[self._file.write(left) :]

    def __bytes__(self) -> bytes:
        return os.pread(self._file.fileno(), self._size, 0)

    def __getstate__(self) -> tuple[Any, int]:
        return reduction.DupFd(self._file.fileno()), self._size

    def __setstate__(self, state: tuple[Any, int]) -> None:
        descriptor, self._size = state
        self._file = os.fdopen(descriptor.detach(), "rb", buffering=0)


class Slots:
    """`count` places for one square of pixels each, (size, size, 3) uint8.

    Travels to a process that the multiprocessing `context` starts; no name is left in the file system if all die.
    The parent alone lends places and takes them back: a worker that dies cannot keep one.
    """

    def __init__(self, context: Any, count: int, size: int) -> None:
        self._memory = context.RawArray(ctypes.c_uint8, count * size * size * 3)
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
        return np.frombuffer(self._memory, np.uint8).reshape(-1, self._size, self._size, 3)
