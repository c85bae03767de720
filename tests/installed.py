"""The installed command, started as a user starts it, and what it wrote, read as a user reads it."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from click.testing import CliRunner

REPOSITORY = Path(__file__).parents[1]
COMMAND = Path(sys.executable).with_name("gender-batch")


def gender_batch(
    *arguments: str | bytes | Path, stdin: bytes = b"", cwd: Path | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[bytes]:
    """Run the installed command to its end."""
    return subprocess.run(
        [COMMAND, *arguments], input=stdin, cwd=cwd, timeout=timeout, capture_output=True, check=False
    )


def in_this_process(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Run the command where torch, which takes seconds to import, is imported already."""
    from gender_batch.cli import main

    result = CliRunner().invoke(main, list(map(str, arguments)))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout_bytes, result.stderr_bytes)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def accuracy(rows: Sequence[dict[str, str]]) -> float:
    """Share of rows whose larger probability is that of the folder they lie in."""
    right = 0
    for row in rows:
        answer = "female" if float(row["p_female"]) >= float(row["p_male"]) else "male"
        right += answer == Path(row["path"]).parent.name
    return right / len(rows)
