"""scoring/allocator.py: memory that was given back is there for the next one, without the system zeroing it again."""

from __future__ import annotations

import subprocess
import sys

import pytest
from steps import TakeMemory

from gender_batch.scoring.pool import WorkerPool

TAKE_AND_GIVE_BACK = """
import resource, sys
from gender_batch.scoring.allocator import keep_memory

def pages():  # that the system had to zero
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        blocks = [bytearray(int(sys.argv[1]) * 2**20) for _ in range(4)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

pages()
given_back = pages()
keep_memory(2**30, arenas=1, larger_blocks=sys.argv[2] == "larger")
pages()
print(given_back, pages())
"""


def pages(megabytes: int, blocks: str) -> tuple[int, int]:
    command = [sys.executable, "-c", TAKE_AND_GIVE_BACK, str(megabytes), blocks]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    given_back, kept = map(int, done.stdout.split())
    return given_back, kept


@pytest.mark.parametrize(("megabytes", "blocks"), [(8, "smaller"), (48, "larger")])
def test_what_was_given_back_is_not_zeroed_again(megabytes: int, blocks: str) -> None:
    given_back, kept = pages(megabytes, blocks)
    assert kept < given_back / 10


def test_large_blocks_go_back_to_the_system() -> None:
    given_back, kept = pages(48, "smaller")
    assert kept > given_back / 10


def test_a_worker_keeps_memory_for_its_next_picture() -> None:
    with WorkerPool(TakeMemory(), 1, 60.0) as pool:
        zeroed = [outcome.width or 0 for _, outcome in pool.outcomes(["picture"] * 50)]
    # How many pages eight megabytes are depends on the system; that they are zeroed but once does not.
    assert max(zeroed[10:]) < zeroed[0] / 10
