"""scoring/pool.py: a picture that kills or hangs its worker costs only its own row."""

import itertools
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from steps import (
    SIDE,
    Dying,
    DyingOnce,
    FromSlowDisk,
    Obey,
    Paint,
    SlowInference,
    Unanswerable,
    WantMany,
    squares_of,
)

from gender_batch.pictures.ahead import FEWEST, READERS
from gender_batch.prediction import Status
from gender_batch.scoring.pool import (
    CHUNK,
    LOOK_AHEAD,
    PLACES,
    QUEUED,
    SHARE,
    SHORT_CHUNK,
    START_LIMIT,
    PoolError,
    WorkerPool,
    _Chunk,
    _Worker,
)
from gender_batch.scoring.worker import Outcome, StepFactory

LONG = 60.0
"""A time limit that no picture here reaches on any machine."""


def parents() -> dict[int, int]:
    """The parent of every process that is alive."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            except OSError:
                continue
            if state != "Z":
                found[int(entry.name)] = int(parent)
    return found


def workers() -> list[int]:
    """Children of this process that multiprocessing has spawned; its resource tracker is none of them."""
    children = [pid for pid, parent in parents().items() if parent == os.getpid()]
    return [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.fixture(autouse=True)
def no_worker_is_left() -> Iterator[None]:
    assert workers() == []
    yield
    assert workers() == []


def scored(
    paths: Iterable[str], count: int = 2, timeout: float = LONG, factory: StepFactory | None = None
) -> list[tuple[str, Outcome]]:
    with WorkerPool(factory or Obey(), count, timeout) as pool:
        return list(pool.outcomes(paths))


def statuses(outcomes: Iterable[tuple[str, Outcome]]) -> dict[str, Status]:
    return {path: outcome.status for path, outcome in outcomes}


def check(paths: list[str], outcomes: list[tuple[str, Outcome]], expected: dict[str, Status]) -> None:
    """Every path has its own outcome in its own place: what `expected` says, and OK for the others."""
    assert [path for path, _ in outcomes] == paths
    for path, outcome in outcomes:
        assert outcome.status is expected.get(path, Status.OK), path
        if outcome.status is Status.OK:
            assert outcome.error == path


# Order


@pytest.mark.parametrize(
    ("length", "count"),
    [(0, 2), (1, 2), (SHORT_CHUNK - 1, 1), (SHORT_CHUNK, 2), (SHORT_CHUNK + 1, 1), (600, 1), (600, 3)],
)
def test_order_is_kept(length: int, count: int) -> None:
    paths = [f"picture {number}" for number in range(length)]
    check(paths, scored(paths, count), {})


def test_none_is_left_with_much_at_the_end_while_others_have_nothing() -> None:
    pool, given = WorkerPool(Obey(), 3, LONG), 0
    lengths = [len(some) for some in pool._cut(map(str, range(3000)))]
    for length in lengths:
        assert length <= max(SHORT_CHUNK, given / 3 / SHARE)
        given += length
    assert given == 3000
    assert max(lengths) == CHUNK


def test_order_is_kept_when_some_take_longer() -> None:
    paths = [f"{number} slow" if number in (0, 9, 30) else f"picture {number}" for number in range(60)]
    check(paths, scored(paths), {})


def test_all_workers_take_part() -> None:
    outcomes = scored([f"{number} slow" for number in range(4 * SHORT_CHUNK)], count=4)
    assert len({outcome.width for _, outcome in outcomes}) == 4


def test_names_of_any_bytes_and_the_same_name_twice() -> None:
    paths = [os.fsdecode(b"caf\xe9"), "new\nline", "", "same", "same"]
    check(paths, scored(paths), {})


def test_whom_to_blame_while_answers_are_on_their_way() -> None:
    worker = _Worker.__new__(_Worker)
    worker.ready, worker.given, worker.chunks = True, 0, deque()
    worker.connection = SimpleNamespace(send=lambda _: None)
    worker.position = SimpleNamespace()
    first, second, third = (_Chunk([str(number) for number in range(length)], []) for length in (2, 8, 3))
    second.outcomes[4] = Outcome(Status.OK)  # known from a worker that died, so it is not sent again

    def at(position: int) -> tuple[_Chunk, list[int]] | None:
        worker.position.value = position
        return worker.in_hand()

    worker.give(first, first.missing())
    worker.give(second, second.missing())
    assert [at(position) for position in range(-1, 5)] == [
        None,
        (first, [0]),
        (first, [0, 1]),  # at the last one, or at the inference of both
        (second, [0]),
        (second, [1]),
        (second, [2]),
    ]
    worker.chunks.popleft()  # the answer to the first is received
    worker.give(third, third.missing())
    assert [at(position) for position in (1, 2, 5, 6, 8, 9)] == [
        None,
        (second, [0]),
        (second, [3]),
        (second, [5]),
        (second, second.missing()),
        (third, [0]),
    ]


def test_failures_that_the_step_reports_are_passed_on() -> None:
    paths = ["a", "b corrupt", "c"]
    with WorkerPool(Obey(), 1, LONG) as pool:
        assert statuses(pool.outcomes(paths)) == {"a": Status.OK, "b corrupt": Status.CORRUPT, "c": Status.OK}


def test_a_pool_serves_one_list_after_the_other() -> None:
    with WorkerPool(Obey(), 2, LONG) as pool:
        for letter in "abc":
            paths = [f"{letter}{number}" for number in range(20)]
            check(paths, list(pool.outcomes(paths)), {})


def test_what_was_left_of_one_list_does_not_get_into_the_next() -> None:
    with WorkerPool(Obey(), 2, LONG) as pool:
        next(pool.outcomes(f"first {number}" for number in itertools.count()))
        paths = [f"second {number}" for number in range(50)]
        check(paths, list(pool.outcomes(paths)), {})


def test_a_picture_that_eats_memory_gets_no_more_than_the_limit() -> None:
    (_, before), (_, hungry), (_, after) = scored(["picture", "picture eat", "picture"])
    assert hungry.status is Status.TOO_LARGE
    assert before.status is after.status is Status.OK


# What goes to the terminal, and what comes from it


def test_what_decoders_say_goes_nowhere_and_why_a_worker_ended_to_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    scored(["1 talk", "2 talk"])
    assert capfd.readouterr() == ("", "")
    scored(["1 raise"])
    told = capfd.readouterr()
    assert told.out == ""
    assert "RuntimeError: a step that breaks its contract" in told.err


def test_a_worker_that_another_thread_started_ignores_interrupts() -> None:
    """Only the main thread can have them held back while one starts."""
    with ThreadPoolExecutor(1) as thread, WorkerPool(Obey(), 1, LONG) as pool:
        ((_, before),) = thread.submit(list, pool.outcomes(["picture"])).result()
        assert before.width is not None
        os.kill(before.width, signal.SIGINT)
        ((_, after),) = thread.submit(list, pool.outcomes(["picture"])).result()
    assert after.width == before.width


# Crashes


@pytest.mark.parametrize(
    ("deed", "cause"),
    [
        ("abort", "SIGABRT"),
        ("segv", "SIGSEGV"),
        ("kill", "SIGKILL"),
        ("exit", "exit code 7"),
        ("leave", "exit code 0"),
        ("raise", "exit code 1"),
        ("eof", "exit code 0"),
    ],
)
def test_a_crash_costs_its_own_row(deed: str, cause: str) -> None:
    bad = f"11 {deed}"
    paths = [bad if number == 11 else f"picture {number}" for number in range(40)]
    outcomes = scored(paths)
    check(paths, outcomes, {bad: Status.CRASHED})
    error = dict(outcomes)[bad].error
    assert error is not None
    assert cause in error


@pytest.mark.parametrize("count", [1, 2])
def test_several_bad_ones_in_one_chunk(count: int) -> None:
    deeds = {0: "abort", 1: "hang", 4: "exit", 7: "segv", 8: "hang", 9: "kill"}
    paths = [f"{number} {deeds[number]}" if number in deeds else f"picture {number}" for number in range(20)]
    expected = {
        f"{number} {deed}": Status.TIMEOUT if deed == "hang" else Status.CRASHED for number, deed in deeds.items()
    }
    check(paths, scored(paths, count, timeout=1.0), expected)


def test_nothing_but_bad_ones() -> None:
    paths = [f"{number} exit" for number in range(12)]
    check(paths, scored(paths), dict.fromkeys(paths, Status.CRASHED))


# Time limit


@pytest.mark.parametrize("deed", ["hang", "spin"])
def test_a_picture_that_never_ends_costs_its_own_row(deed: str) -> None:
    bad = f"5 {deed}"
    paths = [bad if number == 5 else f"picture {number}" for number in range(40)]
    outcomes = scored(paths, timeout=1.0)
    check(paths, outcomes, {bad: Status.TIMEOUT})
    assert dict(outcomes)[bad].error == "not done after 1 s"


@pytest.mark.parametrize("status", [Status.TIMEOUT, Status.CRASHED])
def test_what_was_done_in_the_last_instant_is_no_one_s_fault(status: Status) -> None:
    pool, chunk = WorkerPool(Obey(), 1, LONG), _Chunk(["done", "in hand"], [])
    chunk.outcomes[0] = Outcome(Status.OK)
    worker = SimpleNamespace(process=SimpleNamespace(exitcode=-9), chunks=[(chunk, [0]), (chunk, [1])])
    for index in range(2):
        pool._blame(worker, (chunk, [index]), status)  # type: ignore[arg-type]
    assert [outcome and outcome.status for outcome in chunk.outcomes] == [Status.OK, status]


def test_the_limit_is_one_picture_s_not_one_chunk_s() -> None:
    paths = [f"{number} slow" for number in range(SHORT_CHUNK)]  # 2.4 s together, 0.3 s each
    check(paths, scored(paths, count=1, timeout=1.5), {})


def test_the_limit_is_not_that_of_the_inference_of_a_whole_chunk() -> None:
    paths = [f"picture {number}" for number in range(SHORT_CHUNK)]  # 2.4 s together, 0.3 s each
    check(paths, scored(paths, count=1, timeout=1.5, factory=SlowInference()), {})


@pytest.mark.parametrize(("deed", "status"), [("stuck", Status.TIMEOUT), ("fatal", Status.CRASHED)])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_inference_that_never_ends_or_crashes_costs_its_own_row(deed: str, status: Status, place: int) -> None:
    """Of pictures that are inferred together nobody else is told so."""
    paths = ["picture"] * 3
    paths[place] = f"picture {deed}"
    check(paths, scored(paths, count=1, timeout=1.0, factory=SlowInference()), {paths[place]: status})


@pytest.mark.parametrize("place", ["picture", "inference"])
def test_a_worker_that_is_killed_from_outside_costs_nothing(tmp_path: Path, place: str) -> None:
    """As by a machine that has run out of memory."""
    paths = [f"picture {number}" for number in range(2 * SHORT_CHUNK)]
    check(paths, scored(paths, factory=DyingOnce(tmp_path / "marker", place)), {})
    assert (tmp_path / "marker").exists()


def test_the_time_for_which_all_is_stopped_does_not_count() -> None:
    program = """
from steps import Obey
from gender_batch.scoring.pool import WorkerPool
if __name__ == "__main__":
    with WorkerPool(Obey(), 1, 2.0) as pool:
        for path, outcome in pool.outcomes([f"picture {n}" for n in range(8)] + [f"{n} slow" for n in range(8)]):
            print(path, outcome.status, sep=": ", flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    ) as process:
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(8)]
        time.sleep(0.3)  # the worker has one of the next in hand
        os.killpg(process.pid, signal.SIGSTOP)
        time.sleep(4)
        os.killpg(process.pid, signal.SIGCONT)
        told += process.stdout.readlines()
    assert len(told) == 16
    assert all(line.endswith(b": ok\n") for line in told), told


def test_a_consumer_that_takes_its_time_makes_no_picture_late() -> None:
    paths = [f"picture {number}" for number in range(3 * CHUNK)]
    outcomes = []
    with WorkerPool(Obey(), 1, 1.0) as pool:
        for outcome in pool.outcomes(paths):
            if not outcomes:
                time.sleep(2)
            outcomes.append(outcome)
    check(paths, outcomes, {})


# Pixels through shared memory


def painted(pool: WorkerPool, paths: list[str], statuses: dict[str, Status]) -> None:
    """Every path gets its own pixels, looked at when they are drawn."""
    seen = []
    for path, outcome in pool.outcomes(paths):
        seen.append(path)
        squares, colour = map(int, path.split()[:2])
        assert outcome.status is statuses.get(path, Status.OK if squares else Status.NO_FACE)
        if outcome.status is Status.OK:
            assert outcome.result is not None
            assert np.array_equal(outcome.result, squares_of(squares, colour))
        else:
            assert outcome.result is None
    assert seen == paths


def test_every_picture_gets_its_own_pixels() -> None:
    paths = [f"{(1, 1, 0, 3)[number % 4]} {number % 251} {number}" for number in range(400)]
    with WorkerPool(Paint(), 2, LONG, SIDE) as pool:
        painted(pool, paths, {})
        assert pool._slots is not None
        assert pool._slots.free == 2 * PLACES


def test_a_worker_that_dies_or_hangs_gives_its_places_free() -> None:
    deeds = {number: deed for number in range(0, 300, 30) for deed in ("segv", "kill", "exit")}
    deeds[151] = "hang"
    paths = [f"1 {number % 251} {deeds.get(number, number)}" for number in range(300)]
    expected = {path: Status.CRASHED for number, path in enumerate(paths) if number in deeds}
    expected[paths[151]] = Status.TIMEOUT
    with WorkerPool(Paint(), 2, 1.5, SIDE) as pool:
        painted(pool, paths, expected)
        assert pool._slots is not None
        assert pool._slots.free == 2 * PLACES


def test_places_of_a_list_that_was_left_are_free_for_the_next_one() -> None:
    with WorkerPool(Paint(), 2, LONG, SIDE) as pool:
        for _ in range(2 * PLACES // SHORT_CHUNK):
            outcomes = pool.outcomes(f"1 {number % 251} 7" for number in itertools.count())
            next(outcomes)
            outcomes.close()
        assert pool._slots is not None
        for _ in range(50):  # one worker may still be at what was left while the other does the next list
            painted(pool, [f"1 {number % 251} {number}" for number in range(400)], {})
            if pool._slots.free == 2 * PLACES:
                break
        assert pool._slots.free == 2 * PLACES


def test_places_of_a_list_that_was_left_come_back_from_a_worker_that_hangs() -> None:
    left = [f"1 {number} {'hang' if number == SHORT_CHUNK else number}" for number in range(3 * SHORT_CHUNK)]
    with WorkerPool(Paint(), 1, 1.0, SIDE) as pool:
        outcomes = pool.outcomes(left)
        next(outcomes)
        outcomes.close()
        painted(pool, [f"1 {number} {number}" for number in range(100)], {})  # not before the worker is replaced
        assert pool._slots is not None
        assert sorted(pool._slots._free) == list(range(PLACES))


def test_places_of_a_list_that_was_left_come_back_where_nobody_has_taken_over_from_a_dead_worker() -> None:
    left = [f"1 {number} {'exit' if number == SHORT_CHUNK - 1 else number}" for number in range(2 * SHORT_CHUNK)]
    with WorkerPool(Paint(), 1, LONG, SIDE) as pool:
        outcomes = pool.outcomes(left)
        next(outcomes)  # the first chunk is complete since its last picture is given up
        outcomes.close()
        assert pool._slots is not None
        assert sorted(pool._slots._free) == list(range(PLACES))


# A slow disk


def test_files_are_read_ahead_from_a_slow_disk_and_each_gets_its_own_content() -> None:
    paths = [f"picture {number}" for number in range(300)]
    outcomes = scored(paths, count=1, factory=FromSlowDisk())
    check(paths, outcomes, {})
    assert outcomes[0][1].height == 1
    # The step takes no time, so that as many files as can be are read at the same time.
    assert FEWEST < (outcomes[-1][1].height or 0) <= 1 + READERS


def test_a_worker_holds_as_many_files_as_it_says() -> None:
    paths = [f"picture {number}" for number in range(100)]
    outcomes = scored(paths, count=1, factory=WantMany())
    check(paths, outcomes, {})
    longest = len(paths) // SHARE
    assert max(outcome.height or 0 for _, outcome in outcomes) > (QUEUED + 1) * longest


@pytest.mark.parametrize("deed", ["hang", "exit"])
def test_a_file_that_hangs_or_crashes_among_files_read_ahead_costs_its_own_row(deed: str) -> None:
    bad = {f"{number} {deed}" for number in (30, 31, 45)}
    paths = [name if (name := f"{number} {deed}") in bad else f"picture {number}" for number in range(60)]
    expected = dict.fromkeys(bad, Status.TIMEOUT if deed == "hang" else Status.CRASHED)
    check(paths, scored(paths, factory=FromSlowDisk(), timeout=1.5), expected)


@pytest.mark.parametrize("first", [8, 20])
def test_a_file_that_hangs_among_names_too_long_for_the_pipe_costs_its_own_row(first: int) -> None:
    long = "n" * 4000  # as long as a path may be; what a pipe takes before its reader reads is about 200 KB
    bad = f"{long} {first} hang"
    paths = [bad if number == first else f"{long} {number}" for number in range(200)]
    check(paths, scored(paths, count=1, factory=FromSlowDisk(), timeout=1.5), {bad: Status.TIMEOUT})


# Workers that die for no picture's fault


def test_workers_that_never_start_end_the_run() -> None:
    with pytest.raises(PoolError, match="exit code 3"):
        scored(["a", "b", "c"], factory=Dying())


def test_what_keeps_a_worker_from_being_started_is_told() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with WorkerPool(Obey(), 64, LONG) as pool:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 40, hard))
        try:
            with pytest.raises(PoolError, match=r"Too many open files; .*ulimit .* 64 workers \(--workers\)"):
                list(pool.outcomes(["a"]))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_outcomes_that_cannot_be_sent_end_the_run() -> None:
    with pytest.raises(PoolError):
        scored(["a", "b", "c"], factory=Unanswerable())


@pytest.mark.parametrize("count", [1, 2])
def test_a_worker_that_dies_at_its_start_costs_nothing(count: int, tmp_path: Path) -> None:
    paths = [f"picture {number}" for number in range(40)]
    check(paths, scored(paths, count, factory=DyingOnce(tmp_path / "marker")), {})
    assert (tmp_path / "marker").exists()


def test_workers_killed_without_a_picture_in_hand_cost_nothing_where_others_are_answered_in_between() -> None:
    paths = [f"picture {number}" for number in range(40)]
    with WorkerPool(Obey(), 1, LONG) as pool:
        for _ in range(START_LIMIT):
            (_, outcome), *_ = list(pool.outcomes(["a"]))
            assert outcome.width is not None
            os.kill(outcome.width, signal.SIGKILL)
            while outcome.width in workers():  # what is sent to it from here on has no reader
                time.sleep(0.01)
            check(paths, list(pool.outcomes(paths)), {})


# Bounded look-ahead


class Drawn:
    """An endless tree of pictures that counts how many were asked for."""

    def __init__(self, *first: str) -> None:
        self.count = 0
        self._paths = itertools.chain(first, (f"picture {number}" for number in itertools.count()))

    def __iter__(self) -> Iterator[str]:
        for path in self._paths:
            self.count += 1
            yield path


def test_paths_are_drawn_only_a_bounded_number_ahead() -> None:
    source = Drawn()
    with WorkerPool(Obey(), 2, LONG) as pool:
        assert source.count == 0
        for taken, _ in enumerate(pool.outcomes(source), start=1):
            assert taken <= source.count <= taken + (LOOK_AHEAD * 2 + 1) * CHUNK
            if taken == 2000:
                break


def test_the_bound_holds_also_while_the_first_picture_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gender_batch.scoring.pool.LOOK_AHEAD", 2)  # which a busy machine reaches in time, too
    source = Drawn("0 hang")
    with WorkerPool(Obey(), 2, 1.5) as pool:
        path, outcome = next(pool.outcomes(source))
        assert (path, outcome.status) == ("0 hang", Status.TIMEOUT)
        assert source.count <= 2 * 2 * CHUNK


# Nothing is left behind; the fixture above looks after each test, these stop in unusual ways


def test_no_worker_sees_an_interrupt_nor_does_one_that_took_another_s_place() -> None:
    with WorkerPool(Obey(), 2, LONG) as pool:
        list(pool.outcomes(["picture"] * 20 + ["1 exit"] + ["picture"] * 20))
        assert len(workers()) == 2
        for pid in workers():
            (blocked,) = re.findall(r"^SigBlk:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
            assert int(blocked, 16) >> (signal.SIGINT - 1) & 1


def test_no_process_is_left_when_the_consumer_stops_early() -> None:
    with WorkerPool(Obey(), 3, LONG) as pool:
        for _ in pool.outcomes(Drawn()):
            assert len(workers()) == 3
            break
    assert workers() == []


def test_no_process_is_left_when_the_consumer_fails() -> None:
    with pytest.raises(RuntimeError), WorkerPool(Obey(), 2, LONG) as pool:
        for _ in pool.outcomes(Drawn()):
            raise RuntimeError
    assert workers() == []


def test_no_process_is_left_when_a_picture_hangs_at_the_end() -> None:
    with WorkerPool(Obey(), 2, LONG) as pool:
        outcomes = pool.outcomes([f"picture {number}" for number in range(CHUNK)] + ["1 hang", "2 spin"])
        assert next(outcomes)[0] == "picture 0"
    assert workers() == []


def test_no_process_is_left_when_nothing_was_asked() -> None:
    with WorkerPool(Obey(), 2, LONG):
        pass
    assert workers() == []


def test_no_descriptor_is_left_open() -> None:
    scored(["a"])  # the resource tracker keeps its own
    before = len(os.listdir("/proc/self/fd"))
    scored(["a", "b exit", "c"])
    assert len(os.listdir("/proc/self/fd")) == before


def test_workers_die_with_a_parent_that_is_killed() -> None:
    program = """
import sys
from steps import Obey
from gender_batch.scoring.pool import WorkerPool
if __name__ == "__main__":
    with WorkerPool(Obey(), 2, 60.0) as pool:
        for path, outcome in pool.outcomes([f"picture {n}" for n in range(8)] + ["a hang"]):
            if path == "picture 7":
                print(flush=True)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"\n"
    family = {parent.pid}
    for _ in range(2):
        family |= {pid for pid, above in parents().items() if above in family}
    assert len(family) >= 4, "the parent, its resource tracker and two workers"
    parent.kill()
    parent.wait()
    parent.stdout.close()
    try:
        for _ in range(100):
            if not family & set(parents()):
                break
            time.sleep(0.1)
        assert family & set(parents()) == set()
    finally:
        for pid in family & set(parents()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
