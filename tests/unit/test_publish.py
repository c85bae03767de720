"""outputs/publish.py: a file that appears whole or not at all, and the lock of an output."""

import errno
import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

import pytest

from gender_batch.outputs.publish import (
    LockedError,
    OwnFiles,
    journal_of,
    locked,
    publish_all,
    published,
    remove_leftovers,
)

HOLD = """
import sys
from pathlib import Path
from gender_batch.outputs.publish import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""

TRY = """
import sys
from pathlib import Path
from gender_batch.outputs.publish import LockedError, locked
try:
    with locked(Path(sys.argv[1])):
        print("got it")
except LockedError as error:
    print(f"refused: {error}")
"""

COUNT = """
import sys, time
from pathlib import Path
from gender_batch.outputs.publish import LockedError, locked
path, counter, done = Path(sys.argv[1]), Path(sys.argv[2]), 0
while done < 40:
    try:
        with locked(path):
            value = int(counter.read_text())
            time.sleep(0.0005)
            counter.write_text(str(value + 1))
            done += 1
    except LockedError:
        time.sleep(0.0002)
"""


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until its standard input closes."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.communicate()


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# Publishing


def test_success_replaces_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "preds.csv"
    path.write_bytes(b"yesterday's")
    with published(path) as file:
        file.write(b"today's")
        assert path.read_bytes() == b"yesterday's"
    assert path.read_bytes() == b"today's"
    assert names(tmp_path) == ["preds.csv"]


def test_a_new_file_is_there_only_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "preds.csv"
    with published(path) as file:
        file.write(b"a")
        assert not path.exists()
        assert len(names(tmp_path)) == 1
        assert names(tmp_path)[0].startswith(".preds.csv.")
    assert path.read_bytes() == b"a"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_error_leaves_the_old_file_and_nothing_else(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "preds.csv"
    path.write_bytes(b"yesterday's")
    with pytest.raises(error), published(path) as file:
        file.write(b"half of toda")
        raise error
    assert path.read_bytes() == b"yesterday's"
    assert names(tmp_path) == ["preds.csv"]


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is told the disk, one after another."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        status = os.fstat(descriptor)
        done.append("folder" if stat.S_ISDIR(status.st_mode) else f"{status.st_size} bytes")
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        done.append("name")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    return done


def test_all_of_it_is_on_the_disk_before_it_takes_its_place_and_its_name_is_afterwards(
    tmp_path: Path, done: list[str]
) -> None:
    with published(tmp_path / "preds.csv", lambda: done.append("told")) as file:
        file.write(b"rows")
    assert done == ["4 bytes", "name", "told", "folder"]


def test_several_files_are_on_the_disk_before_the_first_takes_its_place(tmp_path: Path, done: list[str]) -> None:
    (tmp_path / "made").mkdir()
    for name in ("model", "card"):
        (tmp_path / "made" / name).write_text(name)
        (tmp_path / name).write_text("of an earlier export")
    (tmp_path / "made" / "model").chmod(0o640)
    publish_all({tmp_path / "made" / name: tmp_path / name for name in ("model", "card")})
    assert done == ["5 bytes", "4 bytes", "name", "name", "folder"]
    assert [(tmp_path / name).read_text() for name in ("model", "card")] == ["model", "card"]
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o640
    assert not any((tmp_path / "made").iterdir())


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with published(tmp_path / "preds.csv") as file:
        file.write(b"a")
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_error_of_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, published(tmp_path / "preds.csv"):
        (tmp_path / "pictures").open()
    assert caught.value.filename == str(tmp_path / "pictures")


def test_an_error_is_told_although_the_folder_is_gone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(RuntimeError), published(tmp_path / "out" / "preds.csv"):
        shutil.rmtree(tmp_path / "out")
        raise RuntimeError


def test_an_error_without_an_old_file_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), published(tmp_path / "preds.csv"):
        raise RuntimeError
    assert names(tmp_path) == []


def test_a_place_that_cannot_be_taken_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "preds.csv").mkdir()
    with pytest.raises(OSError), published(tmp_path / "preds.csv") as file:
        file.write(b"a")
    assert names(tmp_path) == ["preds.csv"]


def test_a_folder_that_does_not_exist_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), published(tmp_path / "missing" / "preds.csv"):
        raise AssertionError("the block ran")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "preds.csv"
    path.write_bytes(b"yesterday's")
    program = f"""
import resource, signal
from pathlib import Path
from gender_batch.outputs.publish import published
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with published(Path({str(path)!r})) as file:
        file.write(bytes(2000))
except OSError as error:
    print(error.strerror, error.filename, sep=": ")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == f"File too large: {path}\n"
    assert path.read_bytes() == b"yesterday's"
    assert names(tmp_path) == ["preds.csv"]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_the_owner_may_read_it(umask: int, tmp_path: Path) -> None:
    path = tmp_path / "preds.csv"
    path.write_bytes(b"")
    path.chmod(0o644)
    before = os.umask(umask)
    try:
        with published(path) as file:
            file.write(b"a")
            assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o600
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("letter", ["x", "é", "日", "\U0001f469"])
def test_any_name_that_a_file_can_have(letter: str, tmp_path: Path) -> None:
    name = letter * (251 // len(letter.encode())) + ".csv"  # a name may have 255 bytes
    path = tmp_path / name
    path.touch()  # the file system takes it
    with locked(path), published(path) as file:
        file.write(b"a")
    assert path.read_bytes() == b"a"
    assert names(tmp_path) == [name]


# The lock


def test_a_second_process_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "preds.csv"
    with locked(path):
        done = subprocess.run([sys.executable, "-c", TRY, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("refused: ")
    assert str(path) in done.stdout
    assert f"pid {os.getpid()}" in done.stdout


def test_another_process_holds_it_until_it_is_done(tmp_path: Path) -> None:
    path = tmp_path / "preds.csv"
    with holder(path) as process:
        for _ in range(2):
            with pytest.raises(LockedError, match=rf"pid {process.pid}\b"), locked(path):
                raise AssertionError("the block ran")
    with locked(path):
        pass


def test_outputs_beside_each_other_do_not_lock_each_other(tmp_path: Path) -> None:
    long = "profiles of " * 16
    with ExitStack() as locks:
        for name in ("a.csv", "b.csv", "a.json", f"{long}a.csv", f"{long}b.csv"):
            locks.enter_context(locked(tmp_path / name))
        assert len(names(tmp_path)) == 5


def test_the_lock_is_released_after_the_block_however_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "preds.csv"
    with locked(path):
        assert len(names(tmp_path)) == 1
    assert names(tmp_path) == []
    with pytest.raises(RuntimeError), locked(path):
        raise RuntimeError
    assert names(tmp_path) == []
    with locked(path):
        pass


def test_a_holder_that_was_killed_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "preds.csv"
    with holder(path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(names(tmp_path)) == 1, "it left its lock file, which must not lock"
        with locked(path):
            pass
    assert names(tmp_path) == []


def test_a_stale_lock_file_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "preds.csv"
    with locked(path):
        (stale,) = names(tmp_path)
    (tmp_path / stale).write_text("pid 1, since 2001-01-01 00:00:00, and a longer text than any lock file has today\n")
    with locked(path):
        assert (tmp_path / stale).read_text().startswith(f"pid {os.getpid()}, since 2")
        assert (tmp_path / stale).read_text().count("\n") == 1
    assert names(tmp_path) == []


def test_a_lock_file_that_goes_meanwhile_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its holder may remove it just before we lock it: who opens it next would hold a lock, too."""
    path, flock = tmp_path / "preds.csv", fcntl.flock
    gone: list[str] = []

    def late(file: TextIO, operation: int) -> None:
        if not gone:
            gone.extend(names(tmp_path))
            (tmp_path / gone[0]).unlink()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(path):
        assert names(tmp_path) == gone
        with pytest.raises(LockedError), locked(path):
            raise AssertionError("the block ran")


def test_a_link_in_the_place_of_the_lock_has_nothing_emptied(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("of somebody")
    (tmp_path / ".rows.csv.lock").symlink_to("precious")
    with pytest.raises(OSError, match=r"symbolic links.*\.rows\.csv\.lock"), locked(tmp_path / "rows.csv"):
        pass
    assert (tmp_path / "precious").read_text() == "of somebody"


def test_a_lock_file_that_somebody_removed_is_no_error(tmp_path: Path) -> None:
    with locked(tmp_path / "preds.csv"):
        (tmp_path / names(tmp_path)[0]).unlink()
    assert names(tmp_path) == []


def test_a_holder_that_has_not_written_its_name_yet_is_one(tmp_path: Path) -> None:
    path = tmp_path / "preds.csv"
    with locked(path):
        (tmp_path / names(tmp_path)[0]).write_text("")
        with pytest.raises(LockedError, match="an unknown process"), locked(path):
            raise AssertionError("the block ran")


def test_a_file_system_without_locks_is_no_other_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_file: TextIO, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="No locks available"), locked(tmp_path / "preds.csv"):
        raise AssertionError("the block ran")


def test_never_two_at_a_time(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    command = [sys.executable, "-c", COUNT, str(tmp_path / "preds.csv"), str(counter)]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert counter.read_text() == "120"


# Files of our own among the pictures


def test_own_files_are_told_from_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    target = Path("rows.csv")
    own = OwnFiles([target, journal_of(target)], ("-wal",))
    with locked(target), published(target):
        names = {path.name for path in tmp_path.iterdir()}
        assert len(names) == 2
        for name in (*names, "rows.csv", ".rows.csv.state", ".rows.csv.state-wal"):
            for path in (name, f"./{name}", str(tmp_path / name), f"../{tmp_path.name}/{name}"):
                assert path in own, path
            assert f"inner/{name}" not in own
    for name in ("picture.jpg", "rows.csv.jpg", ".rows.csv.jpg", ".other.csv.abc.tmp", "x.tmp"):
        assert name not in own
    assert "x.tmp" in OwnFiles([Path("x.tmp")])


def test_own_files_are_known_by_other_ways_to_them(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("here")
    own = OwnFiles([tmp_path / "link" / "rows.csv", tmp_path / "there" / "rows.csv"])
    for folder in ("here", "link", "there"):
        for name in ("rows.csv", ".rows.csv.abc.tmp"):
            assert f"{tmp_path}/{folder}/{name}" in own
    assert f"{tmp_path}/rows.csv" not in own


def test_own_files_may_lie_in_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "/rows.csv" in OwnFiles([Path("/rows.csv")])
    assert "/rows.csv" not in OwnFiles([Path("rows.csv")])


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    """Those of its own alone: beside `rows`, the file of a `rows.csv` is another run's, which may go on."""
    others = {"rows.csv", ".rows.csv.state", "mine.tmp", ".others.csv.abc123.tmp", ".rows.csv.json.abc123.tmp"}
    for name in (*others, ".rows.csv.abc123.tmp"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "rows.csv")
    assert set(names(tmp_path)) == others
    remove_leftovers(tmp_path / "rows")
    assert set(names(tmp_path)) == others


def test_an_error_of_something_else_is_not_told_as_the_file_s(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="of others") as raised, published(tmp_path / "rows"):
        raise OSError(errno.ENOSPC, "of others")
    assert raised.value.filename is None
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_synced_has_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def only_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "of a network file system")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    with published(tmp_path / "rows") as file:
        file.write(b"all")
    assert (tmp_path / "rows").read_bytes() == b"all"
