"""scoring/slots.py: memory that several processes see."""

from __future__ import annotations

import multiprocessing
import resource

import numpy as np
import pytest

from gender_batch.scoring.slots import SharedBytes, SharedMemory, Slots


def paint(slots: Slots, place: int, content: SharedBytes) -> None:
    slots.squares()[place] = bytes(content)[0]


def test_what_a_process_writes_the_other_sees() -> None:
    slots, content = Slots(3, 4), SharedBytes(b"\x07model")
    before = slots.squares()
    assert before.shape == (3, 4, 4, 3)
    process = multiprocessing.get_context("spawn").Process(target=paint, args=(slots, 1, content))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert [int(square.max()) for square in slots.squares()] == [0, 7, 0]
    assert np.array_equal(before, slots.squares())
    assert bytes(content) == b"\x07model"


def test_places_are_lent_once() -> None:
    slots = Slots(4, 2)
    assert sorted(slots.lend(3) + slots.lend(1)) == [0, 1, 2, 3]
    assert slots.free == 0
    slots.take_back([2])
    assert (slots.free, slots.lend(1)) == (1, [2])


def test_where_there_is_no_room_it_is_an_error_at_once() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        SharedMemory(1 << 20)
        with pytest.raises(OSError, match="too large"):
            SharedMemory((1 << 20) + 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
