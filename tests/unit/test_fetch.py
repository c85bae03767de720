"""faces/fetch.py: only the pinned detector is ever used, from wherever it comes."""

import os
import resource
import socket
import threading
from pathlib import Path

import pytest

from gender_batch.faces.detect import Detector
from gender_batch.faces.fetch import SIZE, VARIABLE, DetectorError, default_place, fetch, find_detector, verified


@pytest.fixture
def no_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.mark.usefixtures("no_detector")
def test_it_is_found_where_it_is_named_or_fetched(tmp_path: Path) -> None:
    named, told = tmp_path / "named.onnx", tmp_path / "told.onnx"
    assert find_detector(None, {}) is None
    default_place().parent.mkdir(parents=True)
    for path in (named, told, default_place()):
        path.touch()
    assert find_detector(None, {}) == default_place()
    assert find_detector(None, {VARIABLE: str(told)}) == told
    assert find_detector(named, {VARIABLE: str(told)}) == named


def test_a_named_file_that_is_not_there_is_an_error_that_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DetectorError, match=r"gone\.onnx.*fetch-detector"):
        find_detector(None, {VARIABLE: str(tmp_path / "gone.onnx")})


@pytest.mark.parametrize("change", [b"", b"x"])
def test_another_file_is_refused(detector: Path, tmp_path: Path, change: bytes) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes(detector.read_bytes()[len(change) :] + change * 2)
    if not change:
        assert Detector(other)
        other.write_bytes(b"")
    for use in (verified, Detector):
        with pytest.raises(DetectorError, match=r"other\.onnx.*SHA-256.*--detector"):
            use(other)


def test_a_place_that_cannot_be_taken_leaves_no_temporary_file(detector: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        fetch(tmp_path / "folder", detector.as_uri())
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_file_that_goes_on_after_the_detector_is_another_one(detector: Path, tmp_path: Path) -> None:
    (tmp_path / "longer.onnx").write_bytes(detector.read_bytes() + b"\n")
    with (tmp_path / "endless.onnx").open("wb") as file:
        file.truncate(1 << 40)  # more than there is memory for
    for name in ("longer.onnx", "endless.onnx"):
        with pytest.raises(DetectorError, match="SHA-256"):
            verified(tmp_path / name)
        with pytest.raises(DetectorError, match="SHA-256"):
            fetch(tmp_path / "detector.onnx", (tmp_path / name).as_uri())
    assert not (tmp_path / "detector.onnx").exists()


def test_what_is_fetched_is_there_whole(detector: Path, tmp_path: Path) -> None:
    place = tmp_path / "data" / "detector.onnx"
    for _again in range(2):
        fetch(place, detector.as_uri())
    assert place.read_bytes() == detector.read_bytes()
    assert len(place.read_bytes()) == SIZE
    assert list(place.parent.iterdir()) == [place]


def test_what_is_no_file_is_not_replaced(detector: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(os.devnull)
    for name in ("fifo", "link"):
        with pytest.raises(DetectorError, match=f"{name}: not a file, and would be replaced"):
            fetch(tmp_path / name, detector.as_uri())
    assert (tmp_path / "fifo").is_fifo()
    assert (tmp_path / "link").is_symlink()


def test_a_full_disk_leaves_the_detector_that_was_there(detector: Path, tmp_path: Path) -> None:
    place = tmp_path / "detector.onnx"
    place.write_bytes(b"as it was")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            fetch(place, detector.as_uri())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert place.read_bytes() == b"as it was"
    assert list(tmp_path.iterdir()) == [place]


def test_another_file_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"something else")
    place = tmp_path / "data" / "detector.onnx"
    with pytest.raises(DetectorError, match="SHA-256"):
        fetch(place, (tmp_path / "source").as_uri())
    with pytest.raises(DetectorError, match="--detector"):
        fetch(place, (tmp_path / "nowhere").as_uri())
    assert not place.parent.exists()


def test_who_says_nothing_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gender_batch.faces.fetch._TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def close_late() -> None:
            connection, _ = server.accept()
            with connection:
                told.wait(10)

        told = threading.Event()
        thread = threading.Thread(target=close_late)
        thread.start()
        with pytest.raises(DetectorError, match="timed out"):
            fetch(tmp_path / "detector.onnx", f"http://127.0.0.1:{server.getsockname()[1]}")
        told.set()
        thread.join()


def test_what_speaks_no_http_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"SSH-2.0-proxy\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(DetectorError, match=r"SSH-2\.0.*--detector"):
            fetch(tmp_path / "detector.onnx", f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join()
    with pytest.raises(DetectorError, match="--detector"):
        fetch(tmp_path / "detector.onnx", "http://127.0.0.1:none")


def test_a_home_that_cannot_be_looked_into_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/" + "x" * 300)  # for every user, root too
    assert find_detector(None, {}) is None
