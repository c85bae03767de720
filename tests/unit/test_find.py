"""pictures/find.py: every file below the paths a user named, in a fixed order."""

import fnmatch
import os
import re
import socket
import subprocess
import tempfile
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gender_batch.pictures import find
from gender_batch.pictures.find import Walk, counting, glob_matcher

ENOUGH = 1000
"""More files than any tree here has: a walk that does not end is cut here."""


def below(root: Path, walk: Walk | None = None) -> list[str]:
    """Names of the files found, relative to `root`."""
    found = list(islice((walk or Walk()).files([str(root)]), ENOUGH))
    assert len(found) < ENOUGH, "it does not end"
    assert all(path.startswith(f"{root}/") for path in found)
    return [path.removeprefix(f"{root}/") for path in found]


def make(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_sorted_within_a_folder_its_files_before_its_folders(tmp_path: Path) -> None:
    make(tmp_path, "b/z", "b/a", "a/2", "a/10", "a/sub/x", "c", "B", "ä", "a.jpg", "-", "b.jpg")
    expected = ["-", "B", "a.jpg", "b.jpg", "c", "ä", "a/10", "a/2", "a/sub/x", "b/a", "b/z"]
    assert below(tmp_path) == expected


def test_order_does_not_depend_on_the_order_of_creation(tmp_path: Path) -> None:
    names = [f"{folder}/{file}" for folder in "cab" for file in "zyx"]
    make(tmp_path / "one", *names)
    make(tmp_path / "two", *reversed(names))
    assert below(tmp_path / "one") == below(tmp_path / "two") == sorted(names)


def test_every_suffix_and_hidden_files_are_given(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "a.txt", "noext", ".hidden", ".folder/b")
    assert sorted(below(tmp_path)) == [".folder/b", ".hidden", "a.jpg", "a.txt", "noext"]


def test_without_recursion_only_the_folder_itself(tmp_path: Path) -> None:
    make(tmp_path, "a", "sub/b", "sub/deeper/c")
    walk = Walk(recursive=False)
    assert below(tmp_path, walk) == ["a"]
    assert walk.unreadable_folders == []
    assert walk.special_files == 0


def test_roots_keep_their_order_and_their_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "b/1", "a/1", "single.jpg")
    monkeypatch.chdir(tmp_path)
    roots = ["b", "single.jpg", "./a", "missing.jpg", "a/"]
    assert list(Walk().files(roots)) == ["b/1", "single.jpg", "./a/1", "missing.jpg", "a/1"]


@pytest.mark.parametrize("root", ["missing.jpg", "missing/", "", "a\0b", "missing\udcff.jpg"])
def test_a_root_that_does_not_exist_is_given_as_it_is(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(Walk().files([root])) == [root]


def test_no_roots_and_empty_folders_give_nothing(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert list(Walk().files([])) == []
    assert below(tmp_path) == []


def test_files_are_counted_beside_the_walk_and_do_not_count_for_it(tmp_path: Path) -> None:
    make(tmp_path, "a", "b/c", "b/d.txt", "e/f")
    os.mkfifo(tmp_path / "fifo")
    walk = Walk(exclude=("*.txt",))
    told = counting(walk, [str(tmp_path), "missing.jpg"])
    while not (count := told()):
        pass
    assert count == 4
    assert walk.special_files == 0


def test_a_folder_that_cannot_be_read_is_told_once_also_where_files_are_counted(unprivileged: Path) -> None:
    make(unprivileged, "a", "locked/b")
    (unprivileged / "locked").chmod(0)
    walk = Walk()
    told = counting(walk, [str(unprivileged)])
    while not told():
        pass
    assert below(unprivileged, walk) == ["a"]
    assert walk.unreadable_folders == [(str(unprivileged / "locked"), "Permission denied")]


# Links


def test_links_to_files_are_files(tmp_path: Path) -> None:
    make(tmp_path, "elsewhere/a.jpg")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link.jpg").symlink_to(tmp_path / "elsewhere" / "a.jpg")
    assert below(tmp_path / "root") == ["link.jpg"]
    assert below(tmp_path / "root", Walk(follow_links=True)) == ["link.jpg"]


def test_links_to_folders_are_entered_only_when_asked_for(tmp_path: Path) -> None:
    make(tmp_path, "elsewhere/a", "elsewhere/sub/b", "root/own")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    walk = Walk()
    assert below(tmp_path / "root", walk) == ["own"]
    assert walk.special_files == 0
    assert below(tmp_path / "root", Walk(follow_links=True)) == ["own", "link/a", "link/sub/b"]
    assert below(tmp_path / "root", Walk(follow_links=True, recursive=False)) == ["own"]


def test_a_root_that_is_a_link_to_a_folder_is_entered(tmp_path: Path) -> None:
    make(tmp_path, "real/a")
    (tmp_path / "link").symlink_to("real")
    assert below(tmp_path / "link") == ["a"]


@pytest.mark.parametrize("target", [".", "..", "../..", "../sub"])
def test_a_loop_ends(target: str, tmp_path: Path) -> None:
    make(tmp_path, "root/sub/a")
    (tmp_path / "root" / "sub" / "loop").symlink_to(target)
    found = below(tmp_path / "root", Walk(follow_links=True))
    assert found[0] == "sub/a"
    assert below(tmp_path / "root") == ["sub/a"]


def test_folders_that_link_to_each_other_end(tmp_path: Path) -> None:
    make(tmp_path, "one/1", "two/2")
    (tmp_path / "one" / "to").symlink_to("../two")
    (tmp_path / "two" / "to").symlink_to("../one")
    assert below(tmp_path, Walk(follow_links=True)) == ["one/1", "one/to/2"]


@pytest.mark.parametrize("follow_links", [False, True])
def test_links_that_lead_nowhere_are_given(follow_links: bool, tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "itself").symlink_to("itself")
    walk = Walk(follow_links=follow_links)
    assert below(tmp_path, walk) == ["dangling", "itself"]
    assert walk.special_files == 0
    assert walk.lost_links == (2 if follow_links else 0)  # they may have led to folders
    assert walk.unreadable_folders == []


def test_a_lost_link_that_is_called_like_a_picture_was_no_folder(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.WEBP", "album", "photos.2024"):
        (tmp_path / name).symlink_to("nothing")
    walk = Walk(follow_links=True)
    assert below(tmp_path, walk) == ["a.jpg", "album", "b.WEBP", "photos.2024"]
    assert walk.lost_links == 2
    walk = Walk(follow_links=True, include=("*.jpg",))
    assert below(tmp_path, walk) == ["a.jpg"]
    assert walk.lost_links == 2  # what was below them may have been included
    walk = Walk(follow_links=True, exclude=("album",))
    assert below(tmp_path, walk) == ["a.jpg", "b.WEBP", "photos.2024"]
    assert walk.lost_links == 1
    walk = Walk()
    assert list(walk.files([str(tmp_path / "a.jpg")])) == [str(tmp_path / "a.jpg")]
    assert walk.unreadable_folders == []


def test_a_root_that_is_a_link_to_nothing_is_given_and_is_a_folder_that_was_not_read(tmp_path: Path) -> None:
    """Perhaps of a disk that is not mounted."""
    (tmp_path / "nas").symlink_to("mnt")
    make(tmp_path, "a")
    walk = Walk()
    assert list(walk.files([str(tmp_path / "nas"), str(tmp_path / "a")])) == [
        str(tmp_path / "nas"),
        str(tmp_path / "a"),
    ]
    ((folder, reason),) = walk.unreadable_folders
    assert folder == str(tmp_path / "nas")
    assert reason == "a link that cannot be followed (No such file or directory)"


# What is not given


def test_fifos_sockets_and_links_to_them_are_counted_and_not_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    make(tmp_path, "a", "sub/b")
    os.mkfifo("fifo")
    os.mkfifo("sub/fifo")
    (tmp_path / "link").symlink_to("fifo")
    walk = Walk()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        assert below(tmp_path, walk) == ["a", "sub/b"]
    assert walk.special_files == 4
    assert walk.unreadable_folders == []


def test_a_special_file_that_the_user_named_is_given(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    walk = Walk()
    assert list(walk.files([str(tmp_path / "fifo")])) == [str(tmp_path / "fifo")]
    assert walk.special_files == 0


def test_an_unreadable_folder_is_recorded_and_the_walk_goes_on(unprivileged: Path) -> None:
    make(unprivileged, "a/1", "b/2", "c/3")
    (unprivileged / "b").chmod(0)
    walk = Walk()
    assert below(unprivileged, walk) == ["a/1", "c/3"]
    assert walk.unreadable_folders == [(str(unprivileged / "b"), "Permission denied")]


def test_a_folder_that_may_be_listed_but_not_entered_gives_its_names(unprivileged: Path) -> None:
    make(unprivileged, "a/1", "a/2")
    (unprivileged / "a").chmod(0o400)
    assert below(unprivileged) == ["a/1", "a/2"]


def test_a_root_that_is_unreadable_is_recorded(unprivileged: Path) -> None:
    unprivileged.chmod(0)
    walk = Walk()
    assert list(walk.files([str(unprivileged)])) == []
    assert walk.unreadable_folders == [(str(unprivileged), "Permission denied")]
    unprivileged.chmod(0o700)


@pytest.mark.parametrize("follow_links", [False, True])
def test_a_folder_that_vanishes_during_the_walk_is_recorded(follow_links: bool, tmp_path: Path) -> None:
    make(tmp_path, "a", "gone/b", "last/c")
    walk = Walk(follow_links=follow_links)
    files = walk.files([str(tmp_path)])
    assert next(files) == str(tmp_path / "a")
    (tmp_path / "gone" / "b").unlink()
    (tmp_path / "gone").rmdir()
    assert list(files) == [str(tmp_path / "last" / "c")]
    assert walk.unreadable_folders == [(str(tmp_path / "gone"), "No such file or directory")]


# Names


def test_names_of_any_bytes(tmp_path: Path) -> None:
    names = [b"caf\xe9.jpg", b"new\nline.jpg", b'a,b".jpg', b"=1+1.jpg", b" space ", b"\xff\xfe", "日本.jpg".encode()]
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
    assert [os.fsencode(name) for name in below(tmp_path)] == sorted(names)


@settings(max_examples=30)
@given(names=st.sets(st.binary(min_size=1, max_size=40).filter(lambda name: not {0, 47} & set(name)), max_size=8))
def test_any_names_are_found_in_the_order_of_their_bytes(
    names: set[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    names -= {b".", b".."}
    folder = tmp_path_factory.mktemp("names")
    for name in names:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).touch()
    assert [os.fsencode(name) for name in below(folder)] == sorted(names)


def test_deep_nesting(tmp_path: Path) -> None:
    depth = 500
    folders = [tmp_path]
    for _ in range(depth):
        folders.append(folders[-1] / "d")
        folders[-1].mkdir()
    file = folders[-1] / "a"
    file.touch()
    try:
        assert below(tmp_path) == ["d/" * depth + "a"]
        assert below(tmp_path, Walk(follow_links=True)) == ["d/" * depth + "a"]
    finally:  # pytest's own way of removing it may hold a descriptor for every level
        file.unlink()
        for folder in reversed(folders[1:]):
            folder.rmdir()


def test_files_are_given_as_they_are_found(tmp_path: Path) -> None:
    make(tmp_path, "a", "sub/b")
    files = Walk().files([str(tmp_path), str(tmp_path / "missing")])
    assert next(files).endswith("/a")
    make(tmp_path, "sub/added later")
    assert [os.path.basename(path) for path in files] == ["added later", "b", "missing"]


# --- globs, file systems, links ---


@pytest.mark.parametrize(
    ("glob", "matching", "others"),
    [
        ("*.jpg", ["a.jpg", "x/y/.jpg", "x/a.b.jpg"], ["a.JPG", "a.jpg.txt", "x.jpg/a"]),
        (".*", [".hidden", "x/.git"], ["a.b", ".git/a"]),
        ("x/*", ["x/a", "x/.b"], ["x/y/a", "a/x/b", "x"]),
        ("/x/*", ["x/a"], ["y/x/a"]),
        ("./x/*", ["x/a"], ["y/x/a"]),
        ("./x", ["x"], ["y/x"]),
        ("x/", ["x", "y/x"], ["x/a", "xx"]),
        ("./x/y/", ["x/y"], ["y", "x/y/z"]),
        ("**/thumbs/*", ["thumbs/a", "x/thumbs/a", "x/y/thumbs/a"], ["thumbs/x/a", "xthumbs/a"]),
        ("x/**", ["x/a", "x/y/z"], ["y/x/a"]),
        ("[a-c]?.png", ["a1.png", "c\n.png"], ["d1.png", "a.png"]),
        ("[!a-c]", ["d", "^"], ["a", ""]),
        ("[]]", ["]"], ["[", "a"]),
        ("[^a]", ["^", "a"], ["b"]),
        ("a[", ["a["], ["a"]),
        ("a+(b)\\", ["a+(b)\\"], ["aab"]),
        ("[\\d]", ["d", "\\"], ["1"]),
        ("x/[!a]", ["x/b"], ["x//", "x/a"]),
        (os.fsdecode(b"\xff*"), [os.fsdecode(b"\xff\xfe")], ["a"]),
    ],
)
def test_globs(glob: str, matching: list[str], others: list[str]) -> None:
    matches = glob_matcher(glob)
    assert [path for path in matching if not matches(path)] == []
    assert [path for path in others if matches(path)] == []


@pytest.mark.parametrize("glob", ["", "/", "//"])
def test_a_glob_that_no_name_can_match_is_refused(glob: str) -> None:
    with pytest.raises(re.error, match="no name matches it"):
        glob_matcher(glob)


@given(st.text("ab*?[]!-./\\^", min_size=1, max_size=8), st.text("ab/.", max_size=6))
def test_globs_of_one_name_are_those_of_fnmatch(glob: str, name: str) -> None:
    if "/" in glob or "/" in name or "**" in glob or "[" in glob:
        return
    assert glob_matcher(glob)(name) == fnmatch.fnmatchcase(name, glob)


def test_included_and_excluded(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.png", ".c.jpg", "thumbs/d.jpg", "x/thumbs/e.jpg", "x/f.jpg", "x/f.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def names(**options: tuple[str, ...]) -> list[str]:
        return [os.path.relpath(path, tmp_path) for path in Walk(**options).files([str(tmp_path)])]  # type: ignore[arg-type]

    assert names(include=("*.jpg",), exclude=("thumbs", ".*")) == ["a.jpg", "x/f.jpg"]
    assert names(exclude=("x/thumbs", "*.txt", "/thumbs/*")) == [".c.jpg", "a.jpg", "b.png", "x/f.jpg"]
    assert names(include=("x/*", "b.*")) == ["b.png", "x/f.jpg", "x/f.txt"]


def test_folders_that_all_link_to_each_other_are_entered_once(tmp_path: Path) -> None:
    folders = [tmp_path / f"folder{number:02}" for number in range(12)]
    for folder in folders:
        folder.mkdir()
        (folder / "picture").touch()
        for other in folders:
            (folder / f"to-{other.name}").symlink_to(other)
    found = list(Walk(follow_links=True).files([str(tmp_path)]))
    assert len(found) == 12
    assert len({os.path.realpath(path) for path in found}) == 12


def test_other_file_systems_are_not_entered_where_that_is_asked_for(tmp_path: Path) -> None:
    inner = tmp_path / "mounted"
    inner.mkdir()
    (tmp_path / "picture").touch()
    command = ["mount", "-t", "tmpfs", "tmpfs", inner]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    try:
        (inner / "picture").touch()
        walk = Walk(one_file_system=True)
        assert list(walk.files([str(tmp_path)])) == [str(tmp_path / "picture")]
        assert walk.other_file_systems == 1
        assert len(list(Walk().files([str(tmp_path)]))) == 2
        assert len(list(Walk(one_file_system=True).files([str(inner)]))) == 1
    finally:
        subprocess.run(["umount", inner], check=True)


def test_deep_trees_long_names_and_full_folders(tmp_path: Path) -> None:
    deep = tmp_path / "deep"
    os.makedirs(os.path.join(deep, *["d"] * 500))
    Path(deep, *["d"] * 500, "picture").touch()
    long = tmp_path / "long"
    long.mkdir()
    (long / ("x" * 255)).touch()
    full = tmp_path / "full"
    full.mkdir()
    for number in range(20_000):
        (full / f"{number}").touch()
    walk = Walk()
    assert sum(1 for _ in walk.files([str(tmp_path)])) == 20_002
    assert walk.unreadable_folders == []


@pytest.mark.parametrize("sorted_at_once", [1, 2, 5, 24, 25])
def test_a_folder_too_full_for_memory_gives_the_same(
    sorted_at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a", "a-b", "a.b", "a b", "ab", "ä", "\udcff", "line\nbreak", "x" * 255, "f", "d", "-", "=", "10", "9"]
    make(tmp_path, *names, *(f"folder{name}"[:255] + "/inside" for name in names[:-5]))
    (tmp_path / "link").symlink_to("nowhere")
    expected = below(tmp_path)
    assert len(expected) == 26
    monkeypatch.setattr(find, "SORTED", sorted_at_once)
    monkeypatch.setattr(find, "READ_AT_ONCE", 7)
    assert below(tmp_path) == expected


@pytest.mark.parametrize("follow_links", [False, True])
def test_no_room_for_the_names_of_a_full_folder_ends_the_walk(
    follow_links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "a/1", "a/2", "b/3")
    monkeypatch.setattr(find, "SORTED", 2)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    walk = Walk(follow_links=follow_links)
    with pytest.raises(OSError, match=r"No such file or directory in TMPDIR.*gone"):
        list(walk.files([str(tmp_path)]))
    assert walk.unreadable_folders == []


def test_a_path_that_is_too_long_for_the_system_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _depth in range(20):
        os.mkdir("d" * 250)
        os.chdir("d" * 250)
    walk = Walk()
    assert list(walk.files([str(tmp_path)])) == []
    assert len(walk.unreadable_folders) == 1
    os.chdir(tmp_path)
    subprocess.run(["rm", "-rf", "d" * 250], check=True)
