"""`gender-batch classify`: the installed command on real files, every byte it wrote looked at."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import time
import zlib
from pathlib import Path

import pytest
from installed import COMMAND, REPOSITORY, accuracy, gender_batch, read_csv
from PIL import Image

COLUMNS = [
    "path", "status", "label", "confidence", "p_female", "p_male", "faces", "width", "height", "error",
    "face_x", "face_y", "face_w", "face_h", "reason",
]  # fmt: skip


def picture(path: Path | str | bytes, size: tuple[int, int] = (64, 48), **options: object) -> None:
    gradient = Image.radial_gradient("L").resize(size)
    with open(path, "wb") as file:
        Image.merge("RGB", (gradient, gradient.rotate(180), gradient)).save(file, **{"format": "JPEG", **options})


def huge_png() -> bytes:
    """A complete PNG header that promises 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_embedded_model_is_right_on_real_faces(test_faces: Path, tmp_path: Path) -> None:
    result = gender_batch("classify", test_faces / "test", "--out", tmp_path / "rows.csv")
    assert result.returncode == 0, result.stderr
    rows = read_csv(tmp_path / "rows.csv")
    assert list(rows[0]) == COLUMNS
    assert [row["path"] for row in rows] == sorted(str(path) for path in (test_faces / "test").rglob("*.jpg"))
    assert accuracy(rows) >= 0.88
    for row in rows:
        probabilities = [float(row["p_female"]), float(row["p_male"])]
        assert sum(probabilities) == pytest.approx(1, abs=2e-6)
        assert float(row["confidence"]) == max(probabilities)
        assert row["label"] in ("female", "male", "uncertain")
        assert (row["width"], row["height"]) == ("224", "224")


def test_formats_hold_the_same_rows(faces: list[Path], tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    paths = [*map(str, faces), str(tmp_path / "text.jpg")]
    for suffix in ("csv", "json", "jsonl"):
        assert gender_batch("classify", *paths, "--out", tmp_path / f"rows.{suffix}").returncode == 3
    from_json = json.loads((tmp_path / "rows.json").read_text())
    from_lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    from_csv = read_csv(tmp_path / "rows.csv")
    assert from_json == from_lines
    assert [{k: "" if v is None else str(v) for k, v in row.items()} for row in from_json] == from_csv
    assert [row["path"] for row in from_json] == paths
    assert from_json[-1]["label"] is None


def test_standard_output_streams_the_csv_and_nothing_else(faces: list[Path], tmp_path: Path) -> None:
    gender_batch("classify", *faces[:5], "--out", tmp_path / "rows.csv")
    streamed = gender_batch("classify", *faces[:5], "--out", "-")
    assert streamed.returncode == 0
    assert streamed.stdout == (tmp_path / "rows.csv").read_bytes()
    assert b"pictures: 5" in streamed.stderr


def test_summary_counts_every_status_and_label_and_names_the_device(faces: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    result = gender_batch("classify", *faces, tmp_path / "empty.jpg", "--out", tmp_path / "rows.csv")
    text = result.stderr.decode()
    assert "pictures: 61" in text
    assert "ok 60" in text
    assert "empty 1" in text
    assert "pictures/s" in text
    assert re.search(r"time: +read \d+%, decode \d+%, .*infer \d+%, write \d+%; what takes longest is to \w+", text)
    assert "device: cpu (" in text or "device: cuda (" in text
    labels = [row["label"] for row in read_csv(tmp_path / "rows.csv")]
    assert f"female {labels.count('female')}" in text
    assert f"male {labels.count('male')}" in text


def test_bad_files_get_their_rows_and_all_others_are_scored(faces: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "profiles"
    folder.mkdir()
    for number, path in enumerate(faces[:3]):
        shutil.copy(path, folder / f"good{number}.jpg")
    whole = faces[3].read_bytes()
    (folder / "corrupt.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").touch()
    (folder / "huge.png").write_bytes(huge_png())
    (folder / "text.jpg").write_text("dear diary")
    (folder / "gone.jpg").symlink_to(folder / "nowhere")
    picture(folder / "unreadable.jpg")
    (folder / "unreadable.jpg").chmod(0)
    result = gender_batch("classify", folder, "--out", tmp_path / "rows.csv")
    assert result.returncode == 3, result.stderr
    assert b"6 of 9 pictures failed, as their rows tell; more than --max-error-rate 0\n" in result.stderr
    rows = {Path(row["path"]).name: row for row in read_csv(tmp_path / "rows.csv")}
    assert {name: row["status"] for name, row in rows.items()} == {
        "corrupt.jpg": "corrupt",
        "empty.jpg": "empty",
        "gone.jpg": "unreadable",
        "good0.jpg": "ok",
        "good1.jpg": "ok",
        "good2.jpg": "ok",
        "huge.png": "too_large",
        "text.jpg": "unsupported",
        "unreadable.jpg": "unreadable",
    }
    for row in rows.values():
        assert bool(row["error"]) == (row["status"] != "ok")
        assert bool(row["label"]) == bool(row["p_female"]) == (row["status"] == "ok")
    assert "pixels" in rows["huge.png"]["error"]
    assert gender_batch("classify", folder, "--out", tmp_path / "rows.csv", "--max-error-rate", "0.7").returncode == 0


def test_as_many_failed_pictures_as_are_allowed_are_no_failure(tmp_path: Path) -> None:
    """29 of 50: the number that a computer has for 0.58, times 50, is a little less."""
    for number in range(50):
        (tmp_path / f"{number}.jpg").touch()
    for number in range(21):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.jpg")
    command = ("classify", tmp_path, "--out", tmp_path / "rows.csv", "--faces", "never", "--max-error-rate")
    assert [gender_batch(*command, rate).returncode for rate in ("0.58", "0.57")] == [0, 3]


NAMES = [b"new\nline.jpg", b"comma,.jpg", b'quote".jpg', b"=1+1.jpg", b"not-utf8-\xff\xfe.jpg", b"cr\r.jpg", b" .jpg",
         "größe-人.jpg".encode(), b"\\backslash.jpg", b"-dash.jpg", b"x" * 251 + b".jpg"]  # fmt: skip


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl"])
def test_any_file_name_is_read_back_exactly(tmp_path: Path, suffix: str) -> None:
    folder = os.fsencode(tmp_path / "names")
    os.mkdir(folder)
    for name in NAMES:
        picture(os.path.join(folder, name))
    out = tmp_path / f"rows.{suffix}"
    assert gender_batch("classify", folder, "--out", out).returncode == 0
    if suffix == "csv":
        paths = [row["path"] for row in read_csv(out)]
    elif suffix == "json":
        paths = [row["path"] for row in json.loads(out.read_bytes())]
    else:
        paths = [json.loads(line)["path"] for line in out.read_bytes().splitlines()]
    assert [os.fsencode(path) for path in paths] == [os.path.join(folder, name) for name in sorted(NAMES)]


def test_a_list_on_standard_input(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    for name in NAMES:
        picture(os.path.join(folder, name))
    paths = [os.path.join(folder, name) for name in NAMES] + [os.path.join(folder, b"gone.jpg")]
    result = gender_batch("classify", "-", "-0", "--out", "-", stdin=b"\0".join(paths) + b"\0")
    assert result.returncode == 3
    text = io.StringIO(result.stdout.decode(errors="surrogateescape"), newline="")
    rows = list(csv.DictReader(text))
    assert [os.fsencode(row["path"]) for row in rows] == paths
    assert rows[-1]["status"] == "unreadable"
    without_newline = [path for path in paths[:-1] if b"\n" not in path]
    result = gender_batch("classify", "-", "--out", "-", stdin=b"\n".join(without_newline))
    assert result.returncode == 0
    assert len(list(csv.DictReader(io.StringIO(result.stdout.decode(errors="surrogateescape"), newline="")))) == len(
        without_newline
    )


def test_a_list_from_windows(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    paths = [os.path.join(folder, name) for name in (b"a.jpg", b"called so\r")]
    for path in paths:
        picture(path)
    result = gender_batch("classify", "-", "--out", "-", stdin=paths[0] + b"\r\n" + paths[1] + b"\n")
    assert result.returncode == 0, result.stderr.decode()
    text = io.StringIO(result.stdout.decode(), newline="")
    assert [os.fsencode(row["path"]) for row in csv.DictReader(text)] == paths


def test_pictures_of_different_size_answer_together_as_alone(faces: list[Path], tmp_path: Path) -> None:
    with Image.open(faces[0]) as image:
        image.resize((900, 700)).save(tmp_path / "large.jpg")
        image.resize((40, 90)).save(tmp_path / "small.png")
    paths = [faces[0], tmp_path / "large.jpg", tmp_path / "small.png"]
    gender_batch("classify", *paths, "--out", tmp_path / "together.csv", "--workers", "1")
    alone = []
    for path in paths:
        gender_batch("classify", path, "--out", tmp_path / "alone.csv")
        alone += read_csv(tmp_path / "alone.csv")
    assert read_csv(tmp_path / "together.csv") == alone


def test_all_eight_orientations_agree(faces: list[Path], tmp_path: Path) -> None:
    undo = {1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90,
            7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270}  # fmt: skip
    folder = tmp_path / "orientations"
    folder.mkdir()
    for orientation, transposition in undo.items():
        with Image.open(faces[0]) as image:
            stored = image.crop((0, 0, 224, 200))
            if transposition is not None:
                stored = stored.transpose(transposition)
            exif = Image.Exif()
            exif[0x0112] = orientation
            stored.save(folder / f"{orientation}.png", exif=exif)
            stored.save(folder / f"{orientation}.jpg", exif=exif, quality=95, subsampling=0)
    gender_batch("classify", folder, "--out", tmp_path / "rows.csv")
    rows = read_csv(tmp_path / "rows.csv")
    assert len(rows) == 16
    assert {(row["width"], row["height"]) for row in rows} == {("224", "200")}
    lossless = {row["p_female"] for row in rows if row["path"].endswith("png")}
    assert len(lossless) == 1
    for row in rows:  # a JPEG of the turned pixels is another JPEG: equal but for its own rounding
        assert float(row["p_female"]) == pytest.approx(float(lossless.copy().pop()), abs=0.03)


def test_the_output_is_no_picture_of_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "inner" / "b.jpg")
    (tmp_path / "inner" / "rows.csv").write_text("another, which counts")
    for _night in range(2):
        result = gender_batch("classify", ".", "--out", "rows.csv", cwd=tmp_path)
        assert result.returncode == 3
        rows = read_csv(tmp_path / "rows.csv")
        assert [row["path"] for row in rows] == ["./a.jpg", "./inner/b.jpg", "./inner/rows.csv"]


def test_folders_links_and_special_files(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    picture(tree / "a.jpg")
    picture(tree / "inner" / "b.jpg")
    (tree / "inner" / "loop").symlink_to(tree)
    (tree / "link.jpg").symlink_to(tree / "a.jpg")
    os.mkfifo(tree / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tree / "socket"))

    def names(*options: str) -> list[str]:
        result = gender_batch("classify", tree, "--out", tmp_path / "rows.csv", *options)
        assert result.returncode == 0, result.stderr
        assert b"2 FIFOs, sockets or devices" in result.stderr
        return [os.path.relpath(row["path"], tree) for row in read_csv(tmp_path / "rows.csv")]

    assert names() == ["a.jpg", "link.jpg", "inner/b.jpg"]
    assert names("--no-recursive") == ["a.jpg", "link.jpg"]
    assert names("--follow-links") == ["a.jpg", "link.jpg", "inner/b.jpg"]


def test_wrong_use_is_exit_2(faces: list[Path], tmp_path: Path) -> None:
    for arguments, hint in (
        ((faces[0], "--out", tmp_path / "rows.xlsx"), b".csv, .json, .jsonl"),
        ((faces[0], "--out", tmp_path / "no" / "such" / "rows.csv"), b"does not exist"),
        ((tmp_path / "nowhere", "--out", tmp_path / "rows.csv"), b"does not exist"),
        ((faces[0],), b"--out"),
    ):
        result = gender_batch("classify", *arguments)
        assert result.returncode == 2
        assert hint in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_picture_is_exit_4_and_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows.csv").write_text("yesterday")
    assert gender_batch("classify", tmp_path / "empty", "--out", tmp_path / "rows.csv").returncode == 4
    assert (tmp_path / "rows.csv").read_text() == "yesterday"


def test_a_model_that_is_none_is_exit_1_and_leaves_the_old_file(faces: list[Path], tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("yesterday")
    (tmp_path / "model.onnx").write_bytes(b"no model")
    arguments = ("classify", faces[0], "--out", tmp_path / "rows.csv", "--model", tmp_path / "model.onnx")
    result = gender_batch(*arguments)
    assert result.returncode == 1
    assert b"model.onnx" in result.stderr
    assert b"gender-batch export" in result.stderr
    assert (tmp_path / "rows.csv").read_text() == "yesterday"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "rows.csv"]


def test_a_held_lock_is_exit_5_and_names_its_holder(faces: list[Path], tmp_path: Path) -> None:
    with (tmp_path / ".rows.csv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("pid 12345, since yesterday")
        lock.flush()
        result = gender_batch("classify", faces[0], "--out", tmp_path / "rows.csv")
    assert result.returncode == 5
    assert b"pid 12345, since yesterday" in result.stderr
    assert not (tmp_path / "rows.csv").exists()
    assert gender_batch("classify", faces[0], "--out", tmp_path / "rows.csv").returncode == 0


def test_a_gpu_that_is_required_and_missing_is_exit_6(faces: list[Path], tmp_path: Path) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a GPU")
    result = gender_batch("classify", faces[0], "--out", tmp_path / "rows.csv", "--device", "cuda")
    assert result.returncode == 6
    assert b"NVIDIA driver" in result.stderr
    assert not (tmp_path / "rows.csv").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_and_leaves_the_old_file(
    faces: list[Path], tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "rows.csv").write_text("yesterday")
    with subprocess.Popen(
        [COMMAND, "classify", "-", "--out", tmp_path / "rows.csv"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b"".join(os.fsencode(path) + b"\n" for path in faces))
        process.stdin.flush()  # and the list stays open: the run cannot end by itself
        assert b"device" in process.stderr.readline()
        time.sleep(1)
        process.send_signal(number)
        assert process.wait(timeout=10) == 128 + number
        assert number.name.encode() in process.stderr.read()
    assert (tmp_path / "rows.csv").read_text() == "yesterday"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".rows.csv.state", "rows.csv"]


def test_a_signal_stops_a_run_that_waits_for_its_list(tmp_path: Path) -> None:
    with subprocess.Popen(
        [COMMAND, "classify", "-", "--out", tmp_path / "rows.csv"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        caught = Path(f"/proc/{process.pid}/status")
        while not int(caught.read_text().split("SigCgt:")[1].split()[0], 16) & (1 << (signal.SIGTERM - 1)):
            time.sleep(0.05)  # until the program listens to the signal
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_rows_for_other_eyes(tmp_path: Path) -> None:
    picture(tmp_path / "=1+1.jpg")
    (tmp_path / "key").write_text("a key of more than sixteen bytes\n")
    arguments = ("classify", "=1+1.jpg", "--out", "rows.csv")
    assert gender_batch(*arguments, "--spreadsheet-safe", cwd=tmp_path).returncode == 0
    assert read_csv(tmp_path / "rows.csv")[0]["path"] == "'=1+1.jpg"
    assert gender_batch(*arguments, "--pseudonymise", "key", cwd=tmp_path).returncode == 0
    (row,) = read_csv(tmp_path / "rows.csv")
    assert len(row["path"]) == 64
    assert "=1+1" not in (tmp_path / "rows.csv").read_text()
    (tmp_path / "key").write_text("short")
    result = gender_batch(*arguments, "--pseudonymise", "key", cwd=tmp_path)
    assert result.returncode == 1
    assert b"openssl" in result.stderr


def test_a_log_for_collectors_is_json_to_the_last_line(faces: list[Path], tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    Image.effect_noise((64, 64), 50).convert("1").save(tmp_path / "odd.tif", compression="group4")
    damaged = bytearray((tmp_path / "odd.tif").read_bytes())
    damaged[40:200] = bytes(byte ^ 0x5A for byte in damaged[40:200])
    (tmp_path / "odd.tif").write_bytes(damaged)  # of which libtiff has a lot to tell
    Image.new("RGB", (4, 4)).save(tmp_path / "odder.tif")
    samples = b"\x15\x01\x03\x00\x01\x00\x00\x00"  # tag 277, SamplesPerPixel; Pillow logs 66 of them as an error
    (tmp_path / "odder.tif").write_bytes((tmp_path / "odder.tif").read_bytes().replace(samples + b"\3", samples + b"B"))
    odd = [tmp_path / "odd.tif", tmp_path / "odder.tif"]
    for sources, last in (([faces[0], *odd], "done"), ([tmp_path / "none"], "error")):
        result = gender_batch("classify", *sources, "--out", tmp_path / "rows.csv", "--log-format", "json")
        events = [json.loads(line) for line in result.stderr.splitlines()]
        assert events[-1]["event"] == last
        assert all({"time", "event"} < event.keys() for event in events)
        assert result.stdout == b""


@pytest.mark.parametrize(
    "options",
    [
        ("--out", "a.json", "--summary", "a.json"),
        ("--out", "a.csv", "--gallery", "a.csv"),
        ("--out", "a.csv", "--state", "./a.csv"),
        ("--out", "a.csv", "--state", "b", "--summary", "c", "--gallery", "link"),
    ],
)
def test_two_options_do_not_name_one_file(faces: list[Path], tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "link").symlink_to("b")
    result = gender_batch("classify", faces[0], *options, cwd=tmp_path)
    assert result.returncode == 2
    assert b"name another file" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_a_log_that_cannot_be_written_is_no_reason_to_stop(faces: list[Path], tmp_path: Path) -> None:
    command = f"{COMMAND} classify {faces[0]} --out rows.csv"
    for redirected in ("2>/dev/full", "2>&1 | true"):
        subprocess.run(["bash", "-c", f"set -o pipefail; {command} {redirected}"], cwd=tmp_path, check=True)
        (tmp_path / "rows.csv").unlink()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--max-error-rate", "nan"], "'nan' is not a number"),
        (["--picture-timeout", "nan"], "'nan' is not a number"),
        (["--include", ""], "'' is not a valid glob"),
        (["--include", "*.jpg", "--exclude", "*.[z-a]x"], "'*.[z-a]x' is not a valid glob: bad character range z-a"),
        (["--exclude", "/"], "is not a valid glob"),
    ],
)
def test_values_that_would_switch_off_what_they_are_of_are_refused(
    faces: list[Path], tmp_path: Path, options: list[str], told: str
) -> None:
    result = gender_batch("classify", faces[0], "--out", tmp_path / "rows.csv", *options)
    assert result.returncode == 2
    assert told in result.stderr.decode()


def test_a_list_that_cannot_be_read_is_told_as_such(tmp_path: Path) -> None:
    command = f"{COMMAND} classify - --out rows.csv 0> written"
    result = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, check=False)
    assert result.returncode == 1
    assert result.stderr.decode().startswith("gender-batch: Bad file descriptor, reading the list on standard input. ")


def test_an_output_that_this_user_may_replace_but_not_read_is_replaced(faces: list[Path], tmp_path: Path) -> None:
    runs = [("rows.csv", "summary"), ("other.csv", "gallery")]
    for out, option in runs:
        for name in (out, option):
            (tmp_path / name).touch(mode=0o200)
        result = gender_batch("classify", faces[0], "--out", out, f"--{option}", option, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert b"ok" in (tmp_path / out).read_bytes()


@pytest.mark.parametrize("option", ["--gallery", "--state"])
def test_the_file_that_cannot_be_written_is_named_and_nothing_is_published(
    faces: list[Path], tmp_path: Path, option: str
) -> None:
    (tmp_path / "rows.csv").write_text("yesterday")
    result = gender_batch("classify", faces[0], "--out", tmp_path / "rows.csv", option, "/proc/file")
    assert result.returncode == 1
    assert b"/proc/" in result.stderr
    assert b"Nothing is published, rows.csv is as it was" in result.stderr
    assert (tmp_path / "rows.csv").read_text() == "yesterday"


def test_links_are_followed_to_what_is_written_and_own_files_are_no_pictures(faces: list[Path], tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "face.jpg").symlink_to(faces[0])
    (tmp_path / "real" / "latest.csv").symlink_to("today.csv")
    (tmp_path / "real" / "key").write_text("a key of sixteen bytes, and more")
    for _ in range(2):
        result = gender_batch(
            "classify", tmp_path / "link", "--out", "latest.csv", "--pseudonymise", "key", cwd=tmp_path / "link"
        )
        assert result.returncode == 0, result.stderr
        assert (tmp_path / "real" / "latest.csv").is_symlink()
        assert len(read_csv(tmp_path / "real" / "today.csv")) == 1


def test_a_link_to_nothing_among_the_paths_has_its_row(faces: list[Path], tmp_path: Path) -> None:
    (tmp_path / "link.jpg").symlink_to("nowhere")
    result = gender_batch("classify", faces[0], tmp_path / "link.jpg", "--out", tmp_path / "rows.csv")
    assert result.returncode == 3
    assert [row["status"] for row in read_csv(tmp_path / "rows.csv")] == ["ok", "unreadable"]


def test_a_list_separated_by_nul_needs_the_option(faces: list[Path], tmp_path: Path) -> None:
    names = b"\0".join(os.fsencode(path) for path in faces[:3])
    summary = tmp_path / "run.json"
    result = gender_batch("classify", "-", "--out", tmp_path / "rows.csv", "--summary", summary, stdin=names)
    assert result.returncode == 2
    assert b"add -0" in result.stderr
    assert list(tmp_path.iterdir()) == [summary]
    assert json.loads(summary.read_text())["exit_code"] == 2


@pytest.mark.parametrize(("closed", "out"), [("<&-", "rows.csv"), (">&-", "-")])
def test_standard_streams_that_are_closed_are_told(tmp_path: Path, closed: str, out: str) -> None:
    paths = "-" if closed == "<&-" else str(REPOSITORY / "examples" / "profiles")
    result = subprocess.run(
        ["bash", "-c", f"{COMMAND} classify {paths} --out {out} {closed}"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert result.returncode == 2
    assert b"is closed" in result.stderr


def test_nothing_is_kept_in_the_home_of_who_runs_it(faces: list[Path], tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    result = subprocess.run(
        [COMMAND, "classify", faces[0], "--out", tmp_path / "rows.csv"],
        env=os.environ | {"HOME": str(home)},
        capture_output=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr.decode()
    assert not list(home.rglob("*"))  # ONNX Runtime would leave an id of the device, and events to send


@pytest.mark.parametrize(("broken", "code"), [(False, 1), (True, 3)])
def test_a_summary_that_cannot_be_written_hides_neither_the_rows_nor_the_exit_code(
    faces: list[Path], tmp_path: Path, broken: bool, code: int
) -> None:
    (tmp_path / "face.jpg").write_bytes(faces[0].read_bytes()[: 3000 if broken else None])
    out, folder = tmp_path / "rows.csv", tmp_path / "gone"
    folder.mkdir()
    process = subprocess.Popen(
        [COMMAND, "classify", "-", "--out", out, "--summary", folder / "run.json"],
        cwd=tmp_path, stdin=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    while not list(tmp_path.glob(".rows.csv*")):  # until it has begun
        assert process.poll() is None
        time.sleep(0.01)
    folder.rmdir()
    _, told = process.communicate(b"face.jpg\n")
    assert process.returncode == code, told.decode()
    assert f"the run's summary is not written. {out} is written, and complete" in told.decode()
    assert len(read_csv(out)) == 1
