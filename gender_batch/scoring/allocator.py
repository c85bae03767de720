"""How much of the memory that a process has given back its C library keeps, to hand it out again."""

from __future__ import annotations

import ctypes

LARGEST_BLOCK = 32 * 1024 * 1024
"""Bytes of the largest block that can be kept at all unless all are (glibc, 64 bits)."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8  # mallopt(3)


def keep_memory(kept: int, arenas: int, larger_blocks: bool = False) -> None:
    """Let each of so many `arenas`, one or more threads' heaps, keep `kept` bytes (less than 2 GiB) at its end.

    Blocks above LARGEST_BLOCK go back to the system at once, unless `larger_blocks` are kept, too. What goes back is
    lent again page by page, each of which the system zeroes: of 4 KiB, in about half a microsecond.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's: other C libraries go on as they do
    if mallopt:
        mallopt(_M_TRIM_THRESHOLD, kept)
        mallopt(_M_ARENA_MAX, arenas)
        if larger_blocks:
            mallopt(_M_MMAP_MAX, 0)
        else:
            mallopt(_M_MMAP_THRESHOLD, LARGEST_BLOCK)
