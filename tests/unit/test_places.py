"""What `classify` may write to."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest

from gender_batch.cli.places import places


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


@pytest.mark.parametrize("option", ["--out", "--state", "--summary", "--gallery"])
@pytest.mark.parametrize("linked", [False, True])
def test_no_fifo_or_device_is_replaced_by_a_file(fifo: Path, tmp_path: Path, option: str, linked: bool) -> None:
    link = tmp_path / "rows.csv"
    link.symlink_to(fifo)
    with pytest.raises(click.UsageError, match=f"{option} .*: not a file, and would be replaced"):
        places({option: link if linked else fifo})
    assert fifo.is_fifo()


def test_a_link_that_leads_to_itself_is_told(tmp_path: Path) -> None:
    link = tmp_path / "rows.csv"
    link.symlink_to(link)
    with pytest.raises(click.UsageError, match=r"--out .*rows\.csv: a link that leads to itself"):
        places({"--out": link})


def test_files_and_new_names_are_taken_where_links_lead(tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text("yesterday")
    (tmp_path / "link.csv").symlink_to("old.csv")
    named = {"--out": tmp_path / "link.csv", "--state": tmp_path / "new.db", "--summary": None}
    assert places(named) == [tmp_path / "old.csv", tmp_path / "new.db", None]


@pytest.mark.parametrize("option", ["--summary", "--gallery"])
def test_a_folder_that_cannot_be_written_to_is_told_before_the_work(unprivileged: Path, option: str) -> None:
    (unprivileged / "locked").mkdir(mode=0o500)
    with pytest.raises(click.UsageError, match=rf"{option} .*/locked cannot be written to; see to its permissions"):
        places({option: unprivileged / "locked" / "file.csv"})
    places({option: unprivileged / "file.csv"})
    places({"--out": unprivileged / "locked" / "file.csv"})  # which cannot be locked
