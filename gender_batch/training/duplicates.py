"""Pictures that are one photo: the same file again, or a copy re-encoded, resized, brightened or slightly cropped."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

SHORTER_SIDE = 64
"""Pixels that the perceptual hash needs: it resizes to 64 x 64, and keeps the lowest 16 x 16 frequencies."""

HASH_SIDE = 16
HASH_BITS = HASH_SIDE * HASH_SIDE

MOST_BITS = 36
"""Different bits of 256 up to which two pictures are one photo.

Measured on 26,000 face crops of FairFace, 338 million pairs: the 44 pairs up to here are one photo each, seen by eye;
the closest strangers differ in 40 bits. Of 400 copies, JPEG at quality 60 and half the size change up to 8 bits,
brightness by a fifth up to 30, a crop of 1% on every side up to 32 (2%: half of them are found). The usual 64 bits
cannot: such a crop changes up to 8 of them, and some 280 pairs of strangers among 8,000 crops are that near.
"""

ROWS, COLUMNS = 64, 8192
"""Pairs compared at a time: 4 MB of differences, which stay in a core's cache."""


@dataclass(frozen=True)
class Fingerprint:
    """`content` is the SHA-256 of the file; `look` the perceptual hash, 32 bytes, or None if it can tell nothing."""

    content: str
    look: bytes | None


def perceptual_hash(image: Image.Image) -> bytes | None:
    """The DCT hash (pHash) of 256 bits: which of the lowest frequencies are above their median.

    None for a picture without enough of them, as a plain colour or an even gradient: such hashes are all alike.
    """
    bits = imagehash.phash(image, HASH_SIDE).hash
    # Of different frequencies exactly half are above the median; fewer mean that the median is a tie at zero.
    return np.packbits(bits).tobytes() if np.count_nonzero(bits) == HASH_BITS // 2 else None


def near_duplicates(pictures: Sequence[Fingerprint]) -> list[tuple[int, int]]:
    """Index pairs (i < j) of pictures that are one photo.

    Of pictures with the same hash each is paired with the first of them only, which connects them all: a thousand
    copies give 999 pairs. Every distinct hash is compared with every other, 4 ns a pair and core at most.
    """
    first: dict[str | bytes, int] = {}
    pairs = []
    for index, picture in enumerate(pictures):
        before = first.setdefault(picture.look or picture.content, index)
        if before != index:
            pairs.append((before, index))
    distinct = [(index, look) for look, index in first.items() if isinstance(look, bytes)]
    words = np.frombuffer(b"".join(look for _, look in distinct), np.uint64).reshape(-1, HASH_BITS // 64)
    pairs += [(distinct[i][0], distinct[j][0]) for i, j in _close_pairs(words)]
    return sorted(pairs)


def connect(count: int, pairs: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """A number for each of `count` things, the same for those that pairs connect, directly or through others."""
    rows, columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(pairs), bool), (rows, columns)), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    return np.asarray(component, dtype=np.int64)


def _close_pairs(words: NDArray[np.uint64]) -> list[tuple[int, int]]:
    """Index pairs (i < j) of the rows that differ in at most MOST_BITS bits; `words` is (pictures, 4)."""
    columns = np.ascontiguousarray(words.T)

    def stripe(top: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        rows = words[top : top + ROWS]
        for left in range(top, len(words), COLUMNS):
            # Half of the bits rule out nearly all pairs; the others are counted in full.
            half = np.zeros((len(rows), min(COLUMNS, len(words) - left)), np.uint8)
            for word in (0, 1):
                half += np.bitwise_count(rows[:, word, None] ^ columns[word, left : left + COLUMNS])
            i, j = np.nonzero(half <= MOST_BITS)
            i, j = i + top, j + left
            near = np.bitwise_count(words[i] ^ words[j]).sum(axis=1) <= MOST_BITS
            kept = near & (i < j)
            found += zip(i[kept].tolist(), j[kept].tolist(), strict=True)
        return found

    # NumPy lets other threads run while it counts.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [pair for pairs in pool.map(stripe, range(0, len(words), ROWS)) for pair in pairs]
