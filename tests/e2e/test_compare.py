"""`gender-batch compare`, as the installed command: what it prints, and the exit code it leaves."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from installed import gender_batch
from records import NIGHT

DRIFTED = replace(
    NIGHT,
    model_digest="cd" * 32,
    pictures=10_100,
    statuses={"ok": 9900, "corrupt": 100, "no_face": 100},
    labels={"female": 5200, "male": 4200, "uncertain": 500},
)


@pytest.fixture
def records(tmp_path: Path) -> Path:
    NIGHT.write(tmp_path / "a.json")
    DRIFTED.write(tmp_path / "b.json")
    return tmp_path


def test_a_night_like_the_last(records: Path) -> None:
    result = gender_batch("compare", "a.json", "a.json", cwd=records)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.decode() == (
        "                 before   after   change   limit       p\n"
        "pictures         10,000  10,000  +0.0000  0.2000       -\n"
        "failure corrupt  0.0100  0.0100  +0.0000  0.0100  1.0000\n"
        "uncertain        0.0505  0.0505  +0.0000  0.0300  1.0000\n"
        "label female     0.5000  0.5000  +0.0000  0.0300  1.0000\n"
        "label male       0.5000  0.5000  +0.0000  0.0300  1.0000\n"
        "confidence       0.9300  0.9300  +0.0000  0.0200  1.0000\n"
        "no drift\n"
    )


def test_a_night_that_drifted(records: Path) -> None:
    result = gender_batch("compare", "a.json", "b.json", cwd=records)
    assert (result.returncode, result.stderr) == (8, b"")
    lines = result.stdout.decode().splitlines()
    assert [line.split()[:2] for line in lines if line.endswith("DRIFT")] == [["label", "female"], ["label", "male"]]
    assert "label female     0.5000  0.5532  +0.0532  0.0300  <0.0001  DRIFT" in lines
    assert lines[-2:] == [
        f"note: another model: apparent-gender.onnx ({'ab' * 6}), then apparent-gender.onnx ({'cd' * 6})",
        "drift: label female, label male",
    ]


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (["label=0.06"], 0),
        (["label=0.06,failure=0.009"], 8),
        (["label=0.06, pictures=0"], 8),
        (["label=0.06", "failure=0.009"], 8),
        (["label=0", "label=0.06"], 0),
        (["uncertain=0.5"], 8),
    ],
)
def test_limits(limits: list[str], code: int, records: Path) -> None:
    options = [word for limit in limits for word in ("--limits", limit)]
    assert gender_batch("compare", "a.json", "b.json", *options, cwd=records).returncode == code


@pytest.mark.parametrize("limits", ["lable=0.1", "label", "label=", "label=much", "label=-1", "label=nan", "", "0.1"])
def test_limits_that_are_none(limits: str, records: Path) -> None:
    result = gender_batch("compare", "a.json", "b.json", "--limits", limits, cwd=records)
    assert result.returncode == 2
    assert "one of label, uncertain, failure, confidence, pictures" in " ".join(result.stderr.decode().split())


@pytest.mark.parametrize("names", [("a.json", "none.json"), ("other.csv", "a.json"), ("a.json", ".")])
def test_a_file_that_is_no_record(names: tuple[str, str], records: Path) -> None:
    (records / "other.csv").write_text("path,status\r\n")
    result = gender_batch("compare", *names, cwd=records)
    assert (result.returncode, result.stdout) == (1, b"")
    (line,) = result.stderr.decode().splitlines()
    assert line.startswith("gender-batch: ")
    assert "--summary" in line


def test_what_stands_in_a_record_cannot_play_with_the_terminal(records: Path) -> None:
    replace(NIGHT, labels={"\x1b[2J": 9400, "\ud800": 0, "uncertain": 500}, device="\n").write(records / "c.json")
    result = gender_batch("compare", "a.json", "c.json", cwd=records)
    assert result.returncode == 8
    assert "label \\x1b[2J" in result.stdout.decode()
    assert b"\x1b" not in result.stdout
    assert b"Traceback" not in result.stderr


def test_the_help_names_every_limit_and_its_default() -> None:
    text = " ".join(gender_batch("compare", "--help").stdout.decode().split())
    assert "label=0.03, uncertain=0.03, failure=0.01, confidence=0.02, pictures=0.2" in text


def test_it_loads_none_of_the_large_libraries(records: Path) -> None:
    program = (
        "import sys; from gender_batch.cli import main; main(['compare', 'a.json', 'a.json'], standalone_mode=False); "
        "print(sorted({'torch', 'onnxruntime', 'numpy', 'PIL', 'rich'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=records)
    assert result.stdout.splitlines()[-1] == "[]"
