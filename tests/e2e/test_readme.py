"""The commands in README.md run as they stand, in order, and do what they say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from installed import COMMAND, REPOSITORY, gender_batch

from gender_batch.cli.exits import EPILOG

README = (REPOSITORY / "README.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"^```sh run\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]

FEW = 11
"""People in each class, two of them on two photos: the commands are tried, not the accuracy."""


def test_commands_of_the_readme(labelled: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    assert len(COMMANDS) >= 6
    shutil.copytree(REPOSITORY / "examples", tmp_path / "examples")
    for path in labelled.rglob("*.jpg"):
        person, photo = map(int, path.stem[1:].split("_"))
        if person < FEW and photo <= (person < 2):
            place = tmp_path / "photos" / path.relative_to(labelled)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
    path = f"{COMMAND.parent}{os.pathsep}{os.environ['PATH']}"
    for command in COMMANDS:
        result = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            capture_output=True,
            check=False,
        )
        assert result.returncode == 0, (command, result.stderr.decode())
    for name in ("preds.csv", "preds.jsonl", "runs/mine/model.onnx", "runs/mine/model.md", "report/metrics.json"):
        assert (tmp_path / name).is_file()


@pytest.mark.parametrize("command", ["train", "export", "evaluate", "classify", "doctor"])
def test_options_that_the_readme_names_exist(command: str) -> None:
    known = set(re.findall(r"--[a-z][a-z-]+", gender_batch(command, "--help").stdout.decode()))
    named = {
        option
        for line in COMMANDS
        if f"gender-batch {command}" in line
        for option in re.findall(r"--[a-z][a-z-]+", line.split(f"gender-batch {command}")[1])
    }
    assert named or command == "export"
    assert named <= known


def test_exit_codes_agree_with_the_help() -> None:
    codes = re.findall(r"^\| (\d|128\+N) \| (.*) \|$", README, re.MULTILINE)
    assert [code for code, _ in codes] == ["0", "1", "2", "3", "4", "5", "6", "7", "8", "128+N"]
    in_readme = "; ".join(f"{code} {meaning}" for code, meaning in codes)
    assert f"Exit codes: {in_readme}." == EPILOG
    # Lines are broken at hyphens, too.
    assert "".join(EPILOG.split()) in "".join(gender_batch("--help").stdout.decode().split())
