"""`gender-batch evaluate`, as the installed command: what it prints and writes, whoever reads it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from installed import COMMAND, gender_batch
from PIL import Image


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two pictures of one class, none of the other."""
    for label in ("female", "male"):
        (tmp_path / "data" / label).mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (40, 40), (100 * number, 50, 50)).save(tmp_path / "data" / "female" / f"{number}.png")
    return tmp_path / "data"


def test_a_reader_that_has_had_enough_costs_no_report(data: Path, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    arguments = [COMMAND, "evaluate", data, "--faces", "never", "--out", tmp_path / "report"]
    result = subprocess.run(arguments, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert result.returncode == 1
    assert b"Broken pipe" not in result.stderr
    assert json.loads((tmp_path / "report" / "metrics.json").read_text())["pictures"] == 2
    assert (tmp_path / "report" / "gallery.png").exists()


@pytest.mark.parametrize("command", ["evaluate", "compare", "doctor"])
def test_a_full_disk_behind_standard_output_is_told(command: str, data: Path, tmp_path: Path) -> None:
    record = tmp_path / "night.json"
    gender_batch("classify", data, "--faces", "never", "--out", tmp_path / "rows.csv", "--summary", record)
    arguments = {"evaluate": [data, "--faces", "never"], "compare": [record, record], "doctor": [data]}[command]
    with open("/dev/full", "wb") as full:
        result = subprocess.run([COMMAND, command, *arguments], stdout=full, stderr=subprocess.PIPE, check=False)
    assert result.returncode == 1
    assert result.stderr.decode().splitlines()[-1] == "gender-batch: standard output: No space left on device"


@pytest.mark.parametrize("command", ["evaluate", "doctor"])
def test_a_full_disk_behind_standard_error_is_no_reason_to_stop(command: str, data: Path) -> None:
    arguments = {"evaluate": ["--faces", "never"], "doctor": ["--device", "cpu"]}[command]
    with open("/dev/full", "wb") as full:
        result = subprocess.run([COMMAND, command, data, *arguments], stdout=subprocess.PIPE, stderr=full, check=False)
    assert result.returncode == 0
    assert {"evaluate": b"measured on                 2 pictures", "doctor": b"0 problems"}[command] in result.stdout


def test_figures_are_told_where_the_report_cannot_be_written(data: Path, tmp_path: Path) -> None:
    (tmp_path / "report" / "metrics.json").mkdir(parents=True)
    result = gender_batch("evaluate", data, "--faces", "never", "--out", tmp_path / "report")
    assert result.returncode == 1
    assert result.stderr.decode().splitlines()[-1] == (
        f"gender-batch: {tmp_path}/report/metrics.json: Is a directory; the report is not complete: name another "
        "folder with --out"
    )
    assert b"measured on                 2 pictures" in result.stdout


def test_a_report_takes_the_place_of_an_earlier_one_where_a_link_leads(data: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("report")  # which is not there yet
    assert gender_batch("evaluate", data, "--faces", "never", "--out", tmp_path / "link").returncode == 0
    before = {path.name: path.stat() for path in (tmp_path / "report").iterdir()}
    assert set(before) >= {"metrics.json", "answers.csv", "confusion.png", "reliability.png", "gallery.png"}
    for name in before:
        (tmp_path / "report" / name).chmod(0o644)
    assert gender_batch("evaluate", data, "--faces", "never", "--out", tmp_path / "link").returncode == 0
    assert {path.name: path.stat().st_mode for path in (tmp_path / "report").iterdir()} == {
        name: status.st_mode for name, status in before.items()
    }


@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_a_link_that_leads_to_itself_is_wrong_use(command: str, data: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    result = gender_batch(command, data, "--out", tmp_path / "loop")
    assert result.returncode == 2
    assert f"--out {tmp_path / 'loop'}: a link that leads to itself" in result.stderr.decode()


@pytest.mark.parametrize("out", ["run", "run/sub/.."])
def test_a_training_keeps_its_figures_finished_or_not(data: Path, tmp_path: Path, out: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    result = gender_batch("evaluate", data, "--faces", "never", "--out", out, cwd=tmp_path)
    assert result.returncode == 2
    assert b"holds a training" in result.stderr
    assert os.listdir(tmp_path / "run") == ["config.json"]


def test_a_report_that_is_stopped_says_so_after_the_figures(data: Path, tmp_path: Path) -> None:
    arguments = [COMMAND, "evaluate", data, "--faces", "never", "--out", tmp_path / "report"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while process.poll() is None and not (tmp_path / "report" / "metrics.json").exists():
            time.sleep(0.001)
        process.terminate()  # before the plots, for which matplotlib must be imported
        told, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert b"measured on                 2 pictures" in told
    assert f"stopped by SIGTERM. The report in {tmp_path}/report is not complete." in said.decode()


def test_folders_without_a_picture_have_the_exit_code_of_classify(data: Path) -> None:
    for picture in (data / "female").iterdir():
        picture.unlink()
    result = gender_batch("evaluate", data, "--faces", "never")
    assert result.returncode == 4
    last = result.stderr.decode().splitlines()[-1]
    assert last == f"gender-batch: {data}: no picture in its folders female, male"


def test_a_class_without_pictures_has_no_recall(data: Path) -> None:
    result = gender_batch("evaluate", data, "--faces", "never")
    assert result.returncode == 0, result.stderr
    assert b"recall    none\n" in result.stdout
    assert b"nan" not in result.stdout


def test_what_stands_in_a_table_cannot_play_with_the_terminal(data: Path, tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text('path,c\x1b[1m\nfemale/0.png,\x1b[31mred\nfemale/1.png,"two\nlines"\n')
    result = gender_batch("evaluate", data, "--faces", "never", "--groups", tmp_path / "groups.csv")
    assert result.returncode == 0, result.stderr
    assert b"\x1b" not in result.stdout
    assert b"\nc\\x1b[1m\n  \\x1b[31mred " in result.stdout
    assert b"\n  two\\nlines " in result.stdout

    (tmp_path / "groups.csv").write_bytes("\ufeffpath,age\n".encode("utf-16-le"))
    result = gender_batch("evaluate", data, "--faces", "never", "--groups", tmp_path / "groups.csv")
    assert result.returncode == 1
    last = result.stderr.decode().splitlines()[-1]
    assert r"groups.csv: no column `path`; it has \xff\xfep\x00a\x00t\x00h\x00, \x00a\x00g\x00e\x00; " in last
