"""pictures/ahead.py: files are read ahead where that is worth while, and give what reading them in turn gives."""

import threading
import time
from pathlib import Path

import pytest

from gender_batch.pictures import ahead
from gender_batch.pictures.ahead import AHEAD_BYTES, FEWEST, MOST, READERS, ReadAhead
from gender_batch.pictures.read import PictureError, read_bytes
from gender_batch.prediction import Status


class Disk:
    """Remembers in which order files were begun and how many were being read at the same time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.begun: list[str] = []
        self.now = self.most = 0

    def __call__(self, path: str, *limit: int) -> bytes:
        self.begun.append(path)
        self.now += 1
        self.most = max(self.most, self.now)
        time.sleep(self.seconds)
        self.now -= 1
        return read_bytes(path, *limit)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    for number in range(40):
        (tmp_path / f"{number:02d}").write_bytes(bytes([number]) * 100)
    return [str(path) for path in sorted(tmp_path.iterdir())]


def slow(disk: Disk, path: str) -> ReadAhead:
    """One that has seen that the disk is slow."""
    found = ReadAhead(disk)
    for _ in range(10):
        found.announce(path)()
    assert found.is_slow
    disk.begun.clear()
    return found


def test_a_quick_disk_is_read_in_turn(files: list[str]) -> None:
    disk = Disk(0)
    found = ReadAhead(disk)
    announced = [found.announce(path) for path in files]
    assert disk.begun == []
    assert [read() for read in announced] == [Path(path).read_bytes() for path in files]
    assert disk.most == 1


def test_a_slow_disk_is_asked_for_several_files_at_a_time_in_their_order(files: list[str]) -> None:
    disk = Disk(0.01)
    found = slow(disk, files[0])
    announced = [found.announce(path) for path in files]
    assert [read() for read in announced] == [Path(path).read_bytes() for path in files]
    assert 2 <= disk.most <= READERS
    assert sorted(disk.begun) == files
    assert all(abs(files.index(path) - place) < READERS for place, path in enumerate(disk.begun))


def test_of_a_slow_disk_only_what_is_needed_is_read_and_of_a_quick_one_all(files: list[str]) -> None:
    quick, found = (ReadAhead(Disk(seconds), lambda path, _: path.encode()) for seconds in (0, 0.01))
    for _ in range(10):
        found.announce(files[0])()
    assert found.announce(files[1])() == files[1].encode()
    assert quick.announce(files[1])() == Path(files[1]).read_bytes()


def test_errors_are_those_of_reading_in_turn(files: list[str]) -> None:
    disk = Disk(0.01)
    found = slow(disk, files[0])
    missing, present = found.announce(files[0] + "x"), found.announce(files[1])
    with pytest.raises(PictureError) as caught:
        missing()
    assert caught.value.status is Status.UNREADABLE
    assert present() == Path(files[1]).read_bytes()
    assert sorted(disk.begun) == [files[0] + "x", files[1]]  # nothing twice


def test_a_large_file_waits_for_its_turn(files: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ahead, "AHEAD_BYTES", 99 * FEWEST)
    disk = Disk(0.01)
    found = slow(disk, files[0])
    read = found.announce(files[1])
    assert read() == Path(files[1]).read_bytes()
    assert disk.begun == [files[1]] * 2
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(PictureError) as caught:
        found.announce(str(tmp_path / "huge"))()
    assert caught.value.status is Status.TOO_LARGE
    assert f"{AHEAD_BYTES // FEWEST:,}" not in str(caught.value)


def test_the_slower_files_come_the_more_are_announced(files: list[str]) -> None:
    assert ReadAhead(Disk(0)).worth_announcing(1e-9) == FEWEST
    found = slow(Disk(0.02), files[0])
    needed_while_one_is_read = found.worth_announcing(0.02 / 32)
    assert FEWEST < needed_while_one_is_read <= MOST
    assert {found.worth_announcing(pace) for pace in (1e-9, 0.0, -1e-9)} == {MOST}  # as clocks measure nearly nothing
    assert found.worth_announcing(1.0) == FEWEST


def test_of_large_files_fewer_are_announced_so_that_they_fit(monkeypatch: pytest.MonkeyPatch, files: list[str]) -> None:
    found = slow(Disk(0.01), files[0])
    monkeypatch.setattr(ahead, "AHEAD_BYTES", 2 * 100 * 25)
    assert FEWEST < found.worth_announcing(1e-9) < MOST


def test_what_matters_is_how_files_were_of_late(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, seconds = [0.0], 0.01
    monkeypatch.setattr(ahead.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(ahead, "AHEAD_BYTES", 2 * 100 * 25)

    def read(_path: str, *_limit: int) -> bytes:
        clock[0] += seconds
        return bytes(100)

    found = ReadAhead(read)
    for _ in range(100):
        found.announce("file")()
    assert found.is_slow
    assert found.worth_announcing(1e-9) == 25
    empty = ReadAhead(lambda *asked: read(*asked)[:0])
    for _ in range(10):
        empty.announce("file")()
    assert empty.worth_announcing(1e-9) == MOST
    seconds = 1e-5
    for _ in range(100):
        found.announce("file")()
    assert not found.is_slow


@pytest.mark.parametrize("allowed", [0, 3])
def test_where_no_more_threads_may_be_started_every_file_is_read_all_the_same(
    monkeypatch: pytest.MonkeyPatch, files: list[str], allowed: int
) -> None:
    """As in a container with a limit of processes."""
    left, start = [allowed], threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        start(thread)

    found = slow(Disk(0.01), files[0])
    monkeypatch.setattr(threading.Thread, "start", limited)
    announced = [found.announce(path) for path in files]
    assert [content() for content in announced] == [Path(path).read_bytes() for path in files]
