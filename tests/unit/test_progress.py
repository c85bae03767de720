"""What a run says of itself, once a minute, where there is no terminal."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest

from gender_batch.cli.log import Log
from gender_batch.cli.progress import PLAIN_INTERVAL, ScoringProgress, TrainingProgress


@pytest.mark.parametrize(("expected", "left"), [(6400, 61 * 99), (0, None), (64, None)])
def test_a_line_a_minute_with_counts_speed_and_what_is_left(
    expected: int, left: float | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScoringProgress(Log(as_json=True), lambda: expected) as progress:
        progress.row(64, 2)  # too early
        progress.started -= PLAIN_INTERVAL + 1
        progress.told -= PLAIN_INTERVAL + 1
        progress.row(63, 2)
        progress.row(64, 2)
        progress.row(128, 2)
    (line,) = capsys.readouterr().err.splitlines()
    told = json.loads(line)
    assert (told["event"], told["rows"], told["failed"]) == ("progress", 64, 2)
    assert told["pictures_per_second"] == pytest.approx(64 / 61, rel=0.2)
    assert told["seconds_left"] == (left and pytest.approx(left, rel=0.2))


def test_the_line_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    with ScoringProgress(Log(as_json=False), lambda: 2_560_000) as progress:
        progress.started = progress.told = progress.told - 100
        progress.row(1_280_000, 2)
    told = capsys.readouterr().err
    assert re.fullmatch(r"1,280,000 rows, 2 failed, 1[12],\d\d\d pictures/s, about 0:01:\d\d left\n", told)


def test_the_log_of_a_training_has_what_was_told_before_it_had_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with TrainingProgress(folder) as progress:
        progress.note("faces are cut out")
        assert not folder.exists()
        folder.mkdir()
        progress.note("left out: a.txt")
        progress.note("fold 1 of 3")
    lines = (folder / "train.log").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["faces are cut out", "left out: a.txt", "fold 1 of 3"]


def test_a_training_goes_on_where_nobody_can_read_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr("sys.stderr", io.TextIOWrapper(full, write_through=True))
        with TrainingProgress(tmp_path) as progress:
            progress.note("kept")
        monkeypatch.undo()
    assert (tmp_path / "train.log").read_text().endswith(" kept\n")
