"""Nights over a state: what is scored again, what is not, and that the rows always come out in the walk's order."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gender_batch.prediction import Person, Prediction, Reason, Status
from gender_batch.scoring import night as night_module
from gender_batch.scoring import state as state_module
from gender_batch.scoring.night import Night, Policy
from gender_batch.scoring.state import FILES, Stamp, State, StateError, remove_state


@pytest.fixture(autouse=True, scope="module")
def small_chunks() -> Iterator[None]:
    """So few rows are given at a time that most folders here have several times as many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(night_module, "CHUNK", 2)
        yield


class Reader:
    """Scores a file by its content: text that begins with "bad" is corrupt. Remembers what it was asked for."""

    def __init__(self, label: str = "a") -> None:
        self.label = label
        self.asked: list[str] = []

    def rows(self, paths: Iterable[str]) -> Iterator[Prediction]:
        for path in paths:
            self.asked.append(path)
            try:
                text = Path(path).read_text()
            except OSError:
                yield Prediction(path, Status.UNREADABLE, error="not there")
                continue
            if text.startswith("bad"):
                yield Prediction(path, Status.CORRUPT, error=text)
            else:
                yield Prediction(path, Status.OK, self.label, (len(text) / 100, 1 - len(text) / 100), None, 3, 4)


def rows_of(night: Night, reader: Reader, paths: list[str]) -> list[Prediction]:
    with night:
        return list(night.rows(reader, paths))


class Folder:
    """A folder of text files, and nights over it."""

    def __init__(self, root: Path) -> None:
        self.root, self.state = root / "files", root / "state.db"
        self.root.mkdir()

    def write(self, name: str, text: str, mtime: int = 1) -> str:
        path = self.root / name
        path.write_text(text)
        os.utime(path, ns=(mtime, mtime))
        return str(path)

    def edit(self, *statements: str) -> None:
        """Change the state as no run does."""
        with sqlite3.connect(self.state) as database:
            for statement in statements:
                database.execute(statement)
        database.close()

    def night(self, policy: Policy = Policy(), digest: str = "model") -> tuple[list[str], list[Prediction]]:  # noqa: B008
        """What was scored, by name, and the rows."""
        reader = Reader()
        paths = sorted(str(path) for path in self.root.iterdir())
        with State(self.state, digest) as state:
            night = Night(state, policy)
            rows = rows_of(night, reader, paths)
            night.forget_others()
            assert (night.found, night.scored) == (len(paths), len(reader.asked))
            assert state.count() == len(paths)
        assert rows == list(Reader().rows(paths))  # as if nothing had been known
        return [Path(path).name for path in reader.asked], rows


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    found = Folder(tmp_path)
    for name in ("a", "b", "c"):
        found.write(name, name)
    return found


def test_only_new_and_changed_files_are_scored(folder: Folder) -> None:
    assert folder.night()[0] == ["a", "b", "c"]
    assert folder.night()[0] == []
    folder.write("b", "longer")  # another size at the same time
    folder.write("c", "x", mtime=2)  # another time at the same size
    folder.write("aa", "new")
    (folder.root / "a").unlink()
    assert folder.night()[0] == ["aa", "b", "c"]
    assert folder.night()[0] == []


def test_another_model_makes_all_rows_stale(folder: Folder) -> None:
    folder.night()
    assert folder.night(digest="another")[0] == ["a", "b", "c"]
    assert folder.night(digest="another")[0] == []


def test_failed_pictures_are_scored_again_only_if_asked(folder: Folder) -> None:
    folder.write("bad", "bad")
    folder.night()
    assert folder.night()[0] == []
    assert folder.night(Policy(retry_failed=True))[0] == ["bad"]


@pytest.mark.parametrize("status", [Status.UNREADABLE, Status.TIMEOUT, Status.CRASHED])
@pytest.mark.parametrize("policy", [Policy(), Policy(verify_content=True)])
def test_what_failed_for_a_moment_is_scored_again(folder: Folder, status: Status, policy: Policy) -> None:
    class Away(Reader):
        def rows(self, paths: Iterable[str]) -> Iterator[Prediction]:
            for row in super().rows(paths):
                yield row if row.path.endswith("a") else Prediction(row.path, status, error="not now")

    with State(folder.state, "model") as state:
        rows_of(Night(state, policy), Away(), sorted(str(path) for path in folder.root.iterdir()))
    (folder.root / "b").rename(folder.root / "moved")
    assert folder.night(policy)[0] == ["c", "moved"]
    assert folder.night(policy)[0] == []


def test_content_that_only_another_model_knows_is_scored(folder: Folder) -> None:
    verify = Policy(verify_content=True)
    folder.night(verify)
    (folder.root / "a").rename(folder.root / "moved")
    assert folder.night(verify, digest="another")[0] == ["b", "c", "moved"]


def test_content_counts_where_it_is_asked_for(folder: Folder) -> None:
    verify = Policy(verify_content=True)
    folder.night(verify)
    assert folder.night(verify)[0] == []
    (folder.root / "a").rename(folder.root / "moved")
    folder.write("copied", "b", mtime=5)
    folder.write("c", "x")  # behind the back of size and time
    assert folder.night(verify)[0] == ["c"]
    folder.write("c", "x", mtime=7)  # touched
    assert folder.night(verify)[0] == ["c"]
    folder.write("c", "y", mtime=7)
    reader = Reader()
    with State(folder.state, "model") as state:
        rows_of(Night(state, Policy()), reader, [str(folder.root / "c")])
    assert reader.asked == []  # without it the change is not seen: that is what it is for


def test_a_row_of_unknown_content_answers_for_none(folder: Folder) -> None:
    verify = Policy(verify_content=True)
    folder.write("b", "bbb")
    folder.night()
    folder.write("b", "bad")  # at the same size and time, before content was asked for
    shutil.copyfile(folder.root / "b", folder.root / "copied")
    assert folder.night(verify)[0] == ["a", "b", "c"]
    assert folder.night(verify)[0] == []


def test_a_file_that_changes_while_it_is_scored_is_scored_again(folder: Folder) -> None:
    class Slow(Reader):
        def rows(self, paths: Iterable[str]) -> Iterator[Prediction]:
            for row in super().rows(paths):
                folder.write("b", "B", mtime=9)
                yield row

    path = str(folder.root / "b")
    with State(folder.state, "model") as state:
        rows_of(Night(state, Policy(verify_content=True)), Slow(), [path])
    with State(folder.state, "model") as state:
        assert state.find(os.fsencode(path)).content is None  # type: ignore[union-attr]
    reader = Reader()
    with State(folder.state, "model") as state:
        rows_of(Night(state, Policy()), reader, [path])
    assert reader.asked == [path]


def test_a_file_that_cannot_be_looked_at_is_never_known(tmp_path: Path) -> None:
    class Gone(Reader):
        def rows(self, paths: Iterable[str]) -> Iterator[Prediction]:
            for path in paths:
                self.asked.append(path)
                yield Prediction(path, Status.UNREADABLE, error="gone")

    for _night in range(2):
        reader = Gone()
        with State(tmp_path / "state.db", "model") as state:
            rows = rows_of(Night(state, Policy()), reader, [str(tmp_path / "none"), "nul\0"])
        assert [row.status for row in rows] == [Status.UNREADABLE] * 2
        assert len(reader.asked) == 2


@pytest.mark.parametrize("policy", [Policy(), Policy(verify_content=True)])
def test_the_same_file_twice_has_two_rows(folder: Folder, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.root)
    paths = ["a", str(folder.root / "a"), "./a", "b", "a", "b"]
    for _night in range(2):
        with State(folder.state, "model") as state:
            rows = rows_of(Night(state, policy), Reader(), paths)
        assert rows == list(Reader().rows(paths))


def test_rows_come_while_others_are_scored(folder: Folder) -> None:
    paths = [folder.write(f"{number:02d}", "x" * number) for number in range(20)]
    reader = Reader()
    with State(folder.state, "model") as state, Night(state, Policy()) as night:
        for count, row in enumerate(night.rows(reader, paths), start=1):
            assert row.path == paths[count - 1]
            assert len(reader.asked) <= count + 2


def test_a_known_file_that_changes_before_it_is_named_once_more_has_two_rows(folder: Folder) -> None:
    class Ahead(Reader):
        def rows(self, paths: Iterable[str]) -> Iterator[Prediction]:
            return super().rows(list(paths))

    folder.night()

    def changing() -> Iterator[str]:
        yield from (str(folder.root / name) for name in "abc")
        yield folder.write("new", "x")
        yield folder.write("a", "longer", mtime=2)

    with State(folder.state, "model") as state, Night(state, Policy()) as night:
        rows = list(night.rows(Ahead(), changing()))
    assert rows == list(Reader().rows(str(folder.root / name) for name in ("a", "b", "c", "new", "a")))


def test_a_time_that_no_state_can_hold_is_never_known() -> None:
    with TemporaryDirectory(dir="/dev/shm") as name:  # other file systems know no such time
        folder = Folder(Path(name))
        far = folder.write("far", "x", mtime=0)
        os.utime(far, (99_999_999_999, 99_999_999_999))
        if os.stat(far).st_mtime_ns < 2**63:
            pytest.skip("it is no tmpfs")
        folder.write("near", "x")
        assert folder.night()[0] == ["far", "near"]
        assert folder.night()[0] == ["far"]


def test_a_run_that_is_cut_goes_on(folder: Folder) -> None:
    class Cut(Reader):
        def rows(self, paths: Iterable[str]) -> Iterator[Prediction]:
            for number, row in enumerate(super().rows(paths)):
                if number == 2:
                    raise KeyboardInterrupt
                yield row

    paths = sorted(str(path) for path in folder.root.iterdir())
    with pytest.raises(KeyboardInterrupt), State(folder.state, "model") as state:
        rows_of(Night(state, Policy()), Cut(), paths)
    assert folder.night()[0] == ["c"]


def test_a_changed_file_whose_run_is_cut_before_its_answer_is_scored_by_the_next_one(folder: Folder) -> None:
    class Cut(Reader):
        def rows(self, paths: Iterable[str]) -> Iterator[Prediction]:
            assert next(iter(paths)) == str(folder.root / "b")
            raise KeyboardInterrupt
            yield

    folder.night()
    folder.write("b", "longer", mtime=2)
    with pytest.raises(KeyboardInterrupt), State(folder.state, "model") as state:
        rows_of(Night(state, Policy()), Cut(), sorted(str(path) for path in folder.root.iterdir()))
    assert folder.night()[0] == ["b"]


def test_reading_ahead_finds_all_in_any_order(tmp_path: Path) -> None:
    names = [f"/{number}{ending}".encode() for number in range(300) for ending in ("", "/a", "/b/c", ".jpg")]
    with State(tmp_path / "state.db", "model") as state:
        numbers = {name: state.expect(name, Stamp(number, number)) for number, name in enumerate(names[::2])}
    for order in (names, sorted(names), sorted(names, key=lambda name: (name.count(b"/"), name)), names[::-1]):
        with State(tmp_path / "state.db", "model") as state:
            for name in order:
                known = state.find(name)
                assert (known.id if known else None) == numbers.get(name)


NAMES = st.sampled_from(["a", "b", "c", "folder/a", "folder/b", "folder/deeper/a"])
CONTENT = st.sampled_from(["", "x", "xx", "bad", "bad too"])  # "": there is no such file any more
PATHS = st.lists(st.tuples(NAMES, st.booleans()), max_size=12)  # in any order, also twice; relative or not


class Hurried(Reader):
    """Draws `ahead` more paths than it has answered, as worker processes do, and may be stopped after some answers."""

    def __init__(self, label: str, ahead: int, stopped_after: int | None) -> None:
        super().__init__(label)
        self.ahead, self.stopped_after = ahead, stopped_after

    def rows(self, paths: Iterable[str]) -> Iterator[Prediction]:
        drawn: deque[str] = deque()
        paths, answered = iter(paths), 0
        while True:
            drawn.extend(islice(paths, self.ahead + 1 - len(drawn)))
            if answered == self.stopped_after:
                raise KeyboardInterrupt
            if not drawn:
                return
            yield from super().rows([drawn.popleft()])
            answered += 1


@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(NAMES, CONTENT), max_size=4),
            PATHS,
            st.builds(Policy, st.booleans(), st.booleans()),
            st.builds(Hurried, st.sampled_from("ab"), st.integers(0, 4), st.none() | st.integers(0, 5)),
        ),
        max_size=5,
    )
)
def test_any_history_gives_the_rows_of_its_last_night(
    tmp_path_factory: pytest.TempPathFactory,
    nights: list[tuple[list[tuple[str, str]], list[tuple[str, bool]], Policy, Hurried]],
) -> None:
    folder = Folder(tmp_path_factory.mktemp("history"))
    mtime = count(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.root)
        for changes, named, policy, reader in nights:
            for name, text in changes:
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                if text:
                    folder.write(name, text, next(mtime))
                else:
                    Path(name).unlink(missing_ok=True)
            paths = [str(folder.root / name) if absolute else name for name, absolute in named]
            wanted, rows = list(Reader(reader.label).rows(paths)), []
            try:
                with State(folder.state, reader.label) as state, Night(state, policy) as night:
                    for row in night.rows(reader, paths):
                        rows.append(row)
                    night.forget_others()
                    assert state.count() == len({name for name, _ in named})
                assert rows == wanted
                assert (night.found, night.scored, night.given) == (len(paths), len(reader.asked), len(paths))
            except KeyboardInterrupt:
                assert rows == wanted[: len(rows)]


def test_names_that_are_no_utf_8_come_back(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write(os.fsdecode(b"\xff\n,'\xf0"), "x")
    folder.night()
    folder.night()


def test_each_picture_that_is_found_or_scored_or_has_its_row_is_told(folder: Folder) -> None:
    class Ahead(Reader):
        def rows(self, paths: Iterable[str]) -> Iterator[Prediction]:
            return super().rows(list(paths))

    told: list[tuple[int, int, int]] = []
    paths = sorted(str(path) for path in folder.root.iterdir())
    with State(folder.state, "model") as state:
        night = Night(state, Policy(), lambda night: told.append((night.found, night.scored, night.given)))
        rows_of(night, Ahead(), paths)
    assert told == [(1, 0, 0), (2, 0, 0), (3, 0, 0), (3, 1, 0), (3, 2, 0), (3, 2, 1), (3, 2, 2), (3, 3, 2), (3, 3, 3)]


def test_a_known_file_that_cannot_be_read_any_more_is_scored_where_content_counts(folder: Folder) -> None:
    class Locked(Reader):
        def rows(self, paths: Iterable[str]) -> Iterator[Prediction]:
            for path in paths:
                self.asked.append(path)
                yield Prediction(path, Status.UNREADABLE, error="locked")

    folder.night(Policy(verify_content=True))
    (folder.root / "b").chmod(0)
    reader = Locked()
    with State(folder.state, "model") as state:
        rows = rows_of(Night(state, Policy(verify_content=True)), reader, [str(folder.root / name) for name in "abc"])
    assert reader.asked == [str(folder.root / "b")]
    assert [row.status for row in rows] == [Status.OK, Status.UNREADABLE, Status.OK]


def test_only_the_volume_of_the_state_is_written_to(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder.root / "missing"))
    assert folder.night()[0] == ["a", "b", "c"]


# --- the file ---


def test_on_a_nearly_full_disk_no_run_begins(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "LEAST_FREE", 2**62)
    with pytest.raises(StateError, match=r"MB are free on its volume .*; make room"):
        State(folder.state, "model")


def test_the_state_is_for_its_owner_alone(folder: Folder) -> None:
    with State(folder.state, "model") as state:
        state.expect(b"/x", None)
        beside = [Path(f"{folder.state}{ending}") for ending in FILES]
        modes = [path.stat().st_mode & 0o777 for path in beside if path.exists()]
    assert len(modes) >= 2
    assert set(modes) == {0o600}


def test_what_is_no_state_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.write_text("diary")
    with pytest.raises(StateError, match=r"state\.db"):
        State(path, "model")
    with pytest.raises(StateError, match="--state"):
        remove_state(path)
    assert path.read_text() == "diary"
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE songs (title)")
    database.close()
    before = path.read_bytes()
    with pytest.raises(StateError, match="another program"):
        State(path, "model")
    with pytest.raises(StateError, match="another program"):
        remove_state(path)
    assert path.read_bytes() == before


def test_a_state_of_a_newer_version_is_refused(folder: Folder) -> None:
    folder.night()
    folder.edit("PRAGMA user_version = 3")
    with pytest.raises(StateError, match=r"version 3.*--fresh"):
        State(folder.state, "model")
    remove_state(folder.state)
    assert folder.night()[0] == ["a", "b", "c"]


def test_a_state_of_version_1_is_taken_over(folder: Folder) -> None:
    folder.night()
    dropped = [f"ALTER TABLE pictures DROP COLUMN {column}" for column in ("box", "reason", "others")]
    folder.edit(*dropped, "PRAGMA user_version = 1")
    assert folder.night()[0] == []
    with sqlite3.connect(folder.state) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (2,)
    database.close()


def test_faces_and_other_people_are_kept(tmp_path: Path) -> None:
    person = Person("uncertain", (0.6, 0.4), (1, 2, 3, 4), Reason.LOW_CONFIDENCE)
    row = Prediction(
        "a", Status.OK, "uncertain", (0.25, 0.75), 3, 640, 480, None, (10, 20, 30, 40), Reason.PEOPLE_DIFFER, (person,)
    )
    with State(tmp_path / "state", "model") as state:
        identifier = state.expect(b"/a", None)
        state.record(identifier, row)
        path, answer = state.rows([identifier])[identifier]
    assert (path, Prediction("a", *answer)) == (b"/a", row)


@pytest.mark.parametrize("where", [0, 100, 5000, 9000])
def test_a_damaged_state_is_told(folder: Folder, where: int) -> None:
    for number in range(300):
        folder.write(f"file{number}", "x")
    folder.night()
    with folder.state.open("r+b") as file:
        file.seek(where)
        file.write(b"\xa5" * (folder.state.stat().st_size - where))
    with pytest.raises(StateError, match="remove this one"), State(folder.state, "model") as state:
        rows_of(Night(state, Policy()), Reader(), sorted(str(path) for path in folder.root.iterdir()))
    folder.state.unlink()
    folder.night()


@pytest.mark.parametrize(
    "change", ["status = 'odd'", "probabilities = '[0.5'", "probabilities = 3", "box = '7'", "others = '[[1]]'"]
)
def test_values_that_no_row_has_are_told_as_damage(folder: Folder, change: str) -> None:
    folder.night()
    folder.edit(f"UPDATE pictures SET {change}")  # noqa: S608 - the test's own
    with pytest.raises(StateError, match=r"state\.db: .*damaged.* remove this one"):
        folder.night()


def test_a_state_without_its_tables_is_told_as_damaged(folder: Folder) -> None:
    folder.night()
    folder.edit("DROP TABLE pictures")
    with pytest.raises(StateError, match=r"damaged one \(no such table"):
        folder.night()


def test_a_state_that_another_program_has_open_is_told(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.night()
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *given, **named: connect(*given, **named, timeout=0.01))
    other = connect(folder.state, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StateError, match="another program has it open"):
        folder.night(digest="another")
    other.close()
    assert folder.night(digest="another")[0] == ["a", "b", "c"]


@pytest.mark.parametrize("length", [20, 71])
def test_a_state_that_was_cut_short_is_not_told_as_another_program_s(folder: Folder, length: int) -> None:
    folder.night()
    os.truncate(folder.state, length)
    with pytest.raises(StateError, match=f"cut short after {length} bytes"):
        remove_state(folder.state)


def test_no_room_for_the_order_is_told_as_the_state_s(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: open("/dev/full", "wb"))  # noqa: SIM115
    with pytest.raises(StateError, match=r"state\.db: No space left on device; is there room on its volume"):
        folder.night()


def test_nothing_is_left_of_the_state_of_a_killed_run(tmp_path: Path) -> None:
    (tmp_path / "killed").mkdir()
    with State(tmp_path / "state", "model") as state:
        state.record(state.expect(b"/a", None), Prediction("/a", Status.EMPTY))
        left = [shutil.copy(path, tmp_path / "killed") for path in tmp_path.iterdir() if path.is_file()]
    assert len(left) > 1
    remove_state(tmp_path / "killed" / "state")
    assert os.listdir(tmp_path / "killed") == []


def test_removing_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    remove_state(tmp_path / "none")
