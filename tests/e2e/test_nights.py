"""`gender-batch classify` night after night, and what happens to it in between: kills, deadlines, full disks."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import shutil
import signal
import sqlite3
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import pytest
from installed import COMMAND, gender_batch, read_csv

from gender_batch.scoring.state import volume_of


@pytest.fixture
def tree(faces: list[Path], tmp_path: Path) -> Path:
    """Twelve pictures, one of them broken, in two folders."""
    root = tmp_path / "tree"
    for number, path in enumerate(faces[:12]):
        folder = root / f"folder{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / f"{number}.jpg")
    broken = root / "folder1" / "11.jpg"
    broken.write_bytes(broken.read_bytes()[:3000])
    return root


def score(tree: Path, out: Path, *options: str | Path) -> str:
    """What a run over the tree said."""
    result = gender_batch("classify", tree, "--out", out, "--max-error-rate", "0.5", *options)
    assert result.returncode == 0, result.stderr.decode()
    return result.stderr.decode()


def test_a_second_night_scores_what_is_new(tree: Path, tmp_path: Path) -> None:
    state = tmp_path / "state.db"
    out, plain = tmp_path / "rows.csv", tmp_path / "plain.csv"

    def night(*options: str) -> str:
        told = score(tree, out, "--state", state, *options)
        assert out.read_bytes() == plain.read_bytes()
        assert not list(tmp_path.glob(".*"))  # neither a journal nor a lock is left
        return told

    score(tree, plain)  # knows nothing, and says the same
    assert "were known" not in night()
    assert "; 12 were known" in night()
    (tree / "folder0" / "0.jpg").unlink()
    shutil.copy(tree / "folder0" / "2.jpg", tree / "new.jpg")
    os.utime(tree / "folder0" / "4.jpg", (1, 1))
    score(tree, plain)
    assert "; 10 were known" in night()
    assert "; 11 were known" in night("--retry-failed")
    assert "were known" not in night("--fresh")
    assert state.stat().st_mode & 0o777 == 0o600


def test_content_decides_where_it_is_verified(tree: Path, tmp_path: Path) -> None:
    options = ("--state", tmp_path / "state.db", "--verify-content")
    score(tree, tmp_path / "rows.csv", *options)
    shutil.copytree(tree / "folder0", tree / "copied")
    (tree / "folder1").rename(tree / "moved")
    changed = tree / "moved" / "1.jpg"
    before = changed.stat()
    changed.write_bytes(changed.read_bytes()[:-1] + b"\0")
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    told = score(tree, tmp_path / "rows.csv", *options)
    assert "pictures: 18 " in told
    assert "; 17 were known" in told


def scored_in(state: Path) -> int:
    """How many pictures the state has rows of."""
    if not state.exists() or not state.stat().st_size:
        return 0
    database = sqlite3.connect(state)
    try:
        count: int = database.execute("SELECT count(*) FROM pictures WHERE model IS NOT NULL").fetchone()[0]
    except sqlite3.OperationalError:  # killed before there was a table
        count = 0
    finally:
        database.close()
    return count


@pytest.mark.parametrize("kills", [12, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_again_and_again_it_ends_as_if_undisturbed(faces: list[Path], tmp_path: Path, kills: int) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(400):
        (tree / f"{number:04}.jpg").hardlink_to(faces[number % len(faces)])
    (tree / "bad.jpg").write_text("no picture")
    began = time.monotonic()
    score(tree, tmp_path / "undisturbed.csv")
    undisturbed = time.monotonic() - began
    expected = (tmp_path / "undisturbed.csv").read_bytes()
    out, state = tmp_path / "rows.csv", tmp_path / ".rows.csv.state"
    out.write_text("yesterday")
    known = []
    dice = random.Random(0)
    for _kill in range(kills):
        before = scored_in(state)
        process = subprocess.Popen(
            [COMMAND, "classify", tree, "--out", out, "--max-error-rate", "0.5"], stderr=subprocess.DEVNULL
        )
        if dice.random() < 0.8:  # the others may not have begun
            while process.poll() is None and scored_in(state) <= before:
                time.sleep(0.01)
        time.sleep(dice.random() * undisturbed / 4)
        process.kill()
        process.wait()
        assert out.read_bytes() in (b"yesterday", expected)
        known.append(scored_in(state))
    score(tree, out)
    assert out.read_bytes() == expected
    assert len(set(known)) > 3  # the runs went on from where those before were killed
    assert not list(tmp_path.glob(".*"))  # no journal, no lock, no temporary file


def send_until_scored(names: IO[bytes], pictures: Sequence[Path], state: Path) -> None:
    """Send pictures until rows are committed; the list stays open, so that the run cannot end by itself."""
    for path in itertools.cycle(pictures):
        if scored_in(state):
            return
        names.write(os.fsencode(path) + b"\n")
        names.flush()
        time.sleep(0.02)


@pytest.mark.parametrize("stop", ["SIGTERM", "SIGINT", "deadline"])
def test_stopped_it_says_how_to_go_on_and_does(faces: list[Path], tmp_path: Path, stop: str) -> None:
    out = tmp_path / "rows.csv"
    out.write_text("yesterday")
    command = [COMMAND, "classify", "-", "--out", out, *(("--deadline", "3s") if stop == "deadline" else ())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        if stop == "deadline":
            process.stdin.write(b"".join(os.fsencode(path) + b"\n" for path in faces))
            process.stdin.flush()  # and the list stays open, too
        else:
            send_until_scored(process.stdin, faces, tmp_path / ".rows.csv.state")
            process.send_signal(signal.Signals[stop])
        code = process.wait(timeout=60)
        told = process.stderr.read().decode()
    assert code == (7 if stop == "deadline" else 128 + signal.Signals[stop])
    assert "goes on" in told
    assert out.read_text() == "yesterday"
    paths = b"".join(os.fsencode(path) + b"\n" for path in faces)
    result = gender_batch("classify", "-", "--out", out, stdin=paths)
    assert result.returncode == 0
    if stop != "deadline":  # on a busy machine nothing may be done by then
        assert b"were known" in result.stderr
    assert [row["path"] for row in read_csv(out)] == list(map(str, faces))
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_it_can_be_stopped_while_its_workers_hang(faces: list[Path], tmp_path: Path, stop: signal.Signals) -> None:
    with subprocess.Popen(
        [COMMAND, "classify", "-", "--out", tmp_path / "rows.csv"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        send_until_scored(process.stdin, faces, tmp_path / ".rows.csv.state")
        workers = workers_of(process)
        assert workers
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        process.send_signal(stop)
        assert process.wait(timeout=60) == (-stop if stop is signal.SIGKILL else 128 + stop)
    while any(is_running(worker) for worker in workers):  # for ever, if one was left: the kernel needs a moment
        time.sleep(0.1)


def workers_of(process: subprocess.Popen[bytes]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.parametrize("later", [0, 0.1, 0.2, 0.3])
def test_interrupted_while_its_workers_start_it_tells_nothing_of_them(
    faces: list[Path], tmp_path: Path, later: float
) -> None:
    with subprocess.Popen(
        [COMMAND, "classify", "-", "--out", tmp_path / "rows.csv", "--workers", "4"],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b"".join(os.fsencode(path) + b"\n" for path in faces))
        process.stdin.flush()  # and the list stays open, so that the run cannot end by itself
        while not workers_of(process):
            assert process.poll() is None
        time.sleep(later)
        os.killpg(process.pid, signal.SIGINT)  # as the terminal does
        told = process.stderr.read()
    assert process.returncode == 128 + signal.SIGINT
    assert b"Traceback" not in told, told.decode()
    assert b"goes on" in told


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_disk_is_full_at_any_point(tree: Path, tmp_path: Path) -> None:
    score(tree, tmp_path / "undisturbed.csv")
    out = tmp_path / "rows.csv"
    out.write_text("yesterday")
    blocks, codes = 1, []
    while not codes or codes[-1] != 0:  # files may grow to ever more blocks, until that is enough
        limited = ["bash", "-c", f'ulimit -f {blocks}; trap "" XFSZ; exec "$@"', "bash", COMMAND]
        result = subprocess.run(
            [*limited, "classify", tree, "--out", out, "--max-error-rate", "0.5", "--fresh"],
            capture_output=True,
            check=False,
        )
        codes.append(result.returncode)
        if result.returncode:
            assert result.returncode == 1, result.stderr
            assert str(tmp_path).encode() in result.stderr
            assert f"volume {volume_of(tmp_path)}" in result.stderr.decode()
            assert b"Traceback" not in result.stderr
            assert out.read_text() == "yesterday"
        blocks *= 2
    assert len(codes) > 3
    assert out.read_bytes() == (tmp_path / "undisturbed.csv").read_bytes()


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that makes one write fail."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("failing writes are made by a C library, and there is no compiler")
    library = tmp_path_factory.mktemp("failing") / "failing.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, Path(__file__).with_name("failing.c")], check=True)
    return library


@pytest.mark.parametrize(
    ("error", "step"),
    [
        pytest.param(errno.ENOSPC, 8, id="ENOSPC, every eighth"),
        pytest.param(errno.ENOSPC, 1, id="ENOSPC", marks=pytest.mark.slow),
        pytest.param(errno.EIO, 1, id="EIO", marks=pytest.mark.slow),
    ],
)
def test_any_single_write_may_fail(faces: list[Path], failing: Path, tmp_path: Path, error: int, step: int) -> None:
    places = {name: tmp_path / name for name in ("undisturbed", "disturbed")}
    for place in places.values():
        place.mkdir()
    pictures = b"".join(os.fsencode(path) + b"\n" for path in faces[:3])
    command = ("classify", "-", "--out", "rows.csv", "--state", "state.db", "--workers", "1")
    assert gender_batch(*command, cwd=places["undisturbed"], stdin=pictures).returncode == 0
    expected = (places["undisturbed"] / "rows.csv").read_bytes()

    fired = tmp_path / "fired"
    for number in itertools.count(1, step):
        (places["disturbed"] / "rows.csv").write_text("yesterday")
        (places["disturbed"] / "state.db").unlink(missing_ok=True)
        environment = {
            "LD_PRELOAD": str(failing), "FAIL_IN": str(places["disturbed"]), "FAIL_AT": str(number),
            "FAIL_WITH": str(error), "FAIL_TOLD": str(fired),
        }  # fmt: skip
        result = subprocess.run(
            [COMMAND, *command], cwd=places["disturbed"], input=pictures, env=os.environ | environment,
            capture_output=True, check=False,
        )  # fmt: skip
        if not fired.exists():
            break
        failed = Path(fired.read_text()).name
        fired.unlink()
        assert b"Traceback" not in result.stderr, (number, result.stderr.decode())
        complete = result.returncode == 0 or b"is written, and complete" in result.stderr
        assert (places["disturbed"] / "rows.csv").read_bytes() == (expected if complete else b"yesterday"), number
        if result.returncode == 0:  # a write that may be lost, of the state when all is done
            continue
        assert result.returncode == 1, (number, result.stderr.decode())
        # The order of the pictures is kept in a nameless file beside the state.
        assert ("rows.csv" if "rows.csv" in failed else "state.db") in result.stderr.decode(), (number, failed)
        again = gender_batch(*command, cwd=places["disturbed"], stdin=pictures)
        assert again.returncode == 0, (number, again.stderr.decode())
        assert (places["disturbed"] / "rows.csv").read_bytes() == expected, number
    assert number > 10


@pytest.fixture
def small_volume(tmp_path: Path) -> Iterator[Path]:
    """A file system of 80 MB: a little more than what a run leaves free."""
    folder = tmp_path / "volume"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting needs root; test_the_disk_is_full_at_any_point runs everywhere")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_run_stops_before_the_disk_is_full(faces: list[Path], small_volume: Path) -> None:
    out = small_volume / "rows.csv"
    with subprocess.Popen(
        [COMMAND, "classify", "-", "--out", out], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(os.fsencode(faces[0]) + b"\n" * 8)
        process.stdin.flush()
        assert b"device" in process.stderr.readline()
        (small_volume / "another's").write_bytes(bytes(40_000_000))
        time.sleep(1.5)  # past the time after which rows are committed
        told = process.communicate(b"".join(os.fsencode(path) + b"\n" for path in faces[1:]))[1]
    assert process.returncode == 1
    assert b"MB are free" in told
    assert b"volume " + os.fsencode(small_volume) in told
    assert not out.exists()
    (small_volume / "another's").unlink()
    paths = b"".join(os.fsencode(path) + b"\n" for path in faces)
    assert gender_batch("classify", "-", "--out", out, stdin=paths).returncode == 0
    assert len(read_csv(out)) == len(faces)


def test_one_run_per_state(tree: Path, tmp_path: Path) -> None:
    state = tmp_path / "state.db"
    with subprocess.Popen(
        [COMMAND, "classify", "-", "--out", tmp_path / "one.csv", "--state", state],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(os.fsencode(next(tree.rglob("*.jpg"))) + b"\n")
        process.stdin.flush()
        assert b"device" in process.stderr.readline()
        result = gender_batch("classify", tree, "--out", tmp_path / "two.csv", "--state", state)
        process.kill()
    assert result.returncode == 5
    assert f"pid {process.pid}".encode() in result.stderr
    assert not (tmp_path / "two.csv").exists()
    score(tree, tmp_path / "two.csv", "--state", state)  # a lock does not outlive its holder


def test_an_empty_mount_publishes_nothing(tree: Path, tmp_path: Path) -> None:
    out, state = tmp_path / "rows.csv", tmp_path / "state.db"
    score(tree, out, "--state", state)
    before = out.read_bytes()
    shutil.move(tree / "folder0", tmp_path / "elsewhere")
    result = gender_batch("classify", tree, "--out", out, "--state", state, "--min-pictures", "10")
    assert result.returncode == 4
    assert b"--min-pictures" in result.stderr
    assert out.read_bytes() == before
    shutil.move(tmp_path / "elsewhere", tree / "folder0")
    assert "; 12 were known" in score(tree, out, "--state", state)
    assert out.read_bytes() == before
    result = gender_batch("classify", tree, "--out", out, "--state", state, "--min-pictures", "13", "--fresh")
    assert result.returncode == 4
    assert b"the same command without --fresh goes on" in result.stderr  # with it, from nothing


def test_a_disk_behind_a_link_that_is_away_has_not_lost_its_pictures(tree: Path, tmp_path: Path) -> None:
    out, state = tmp_path / "rows.csv", tmp_path / "state.db"
    shutil.move(tree / "folder0", tmp_path / "disk")
    for place, options in ((tmp_path / "link", ()), (tree / "link", ("--follow-links",))):
        place.symlink_to(tmp_path / "disk")
        command = (tree, *([] if options else [place]), "--out", out, "--state", state, "--max-error-rate", "0.5")
        assert gender_batch("classify", *command, *options).returncode == 0
        before = out.read_bytes()
        shutil.move(tmp_path / "disk", tmp_path / "away")
        result = gender_batch("classify", *command, *options)
        assert result.returncode == (0 if options else 3)  # within the tree it may as well be a link to a file
        assert (b"folder not read" in result.stderr) != bool(options)
        shutil.move(tmp_path / "away", tmp_path / "disk")
        result = gender_batch("classify", *command, *options)
        assert b"; 12 were known" in result.stderr
        assert out.read_bytes() == before


def test_a_foreign_or_newer_state_is_refused(tree: Path, tmp_path: Path) -> None:
    out, state = tmp_path / "rows.csv", tmp_path / "state.db"
    state.write_text("a diary")
    for options in ((), ("--fresh",)):
        result = gender_batch("classify", tree, "--out", out, "--state", state, *options)
        assert result.returncode == 1
        assert os.fsencode(state) in result.stderr
        assert state.read_text() == "a diary"
    state.unlink()
    score(tree, out, "--state", state)
    database = sqlite3.connect(state)
    database.execute("PRAGMA user_version = 99")
    database.close()
    result = gender_batch("classify", tree, "--out", out, "--state", state)
    assert result.returncode == 1
    assert b"version 99" in result.stderr
    assert b"--fresh" in result.stderr


def test_wrong_durations_are_exit_2(tree: Path, tmp_path: Path) -> None:
    for text in ("soon", "0", "-3", "6 weeks"):
        result = gender_batch("classify", tree, "--out", tmp_path / "rows.csv", "--deadline", text)
        assert result.returncode == 2
        assert b"6h" in result.stderr


def test_every_run_is_recorded_and_two_can_be_compared(tree: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "rows.csv", ("--state", tmp_path / "state.db")
    score(tree, out, *options, "--summary", tmp_path / "a.json")
    rows = read_csv(out)
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["statuses"] == Counter(row["status"] for row in rows)
    assert record["labels"] == Counter(row["label"] for row in rows if row["label"])
    confidences = [float(row["confidence"]) for row in rows if row["confidence"]]
    assert record["confidence"]["mean"] == pytest.approx(statistics.mean(confidences), abs=1e-6)
    assert record["confidence"]["std"] == pytest.approx(statistics.pstdev(confidences), abs=1e-6)
    assert (record["pictures"], record["scored"], record["reused"], record["exit_code"]) == (12, 12, 0, 0)
    assert {"scoring", "writing", "reading", "decoding", "inference"} == record["stages"].keys()

    score(tree, out, *options, "--summary", tmp_path / "b.json")
    assert json.loads((tmp_path / "b.json").read_text())["reused"] == 12
    assert gender_batch("compare", tmp_path / "a.json", tmp_path / "b.json").returncode == 0
    shutil.rmtree(tree / "folder0")
    score(tree, out, *options, "--summary", tmp_path / "b.json")
    assert gender_batch("compare", tmp_path / "a.json", tmp_path / "b.json").returncode == 8

    shutil.rmtree(tree / "folder1")
    result = gender_batch("classify", tree, "--out", out, *options, "--summary", tmp_path / "b.json")
    assert result.returncode == 4
    assert json.loads((tmp_path / "b.json").read_text())["exit_code"] == 4
