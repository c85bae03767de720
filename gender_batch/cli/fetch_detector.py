"""`gender-batch fetch-detector`: the face detector, from where it is published to the user's data folder."""

from __future__ import annotations

from pathlib import Path

import click

from gender_batch.cli.exits import fail, telling


@click.command("fetch-detector")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where to keep it; name it with --detector then.  [default: in the user's data folder]",
)
def fetch_detector(out: Path | None) -> None:
    """Download YuNet, a face detector of 230 kB, from OpenCV Zoo.

    `classify`, `evaluate` and `train` then find faces in whole photos. Only the one file is taken whose SHA-256 is
    written in this program.
    """
    from gender_batch.faces.fetch import DetectorError, default_place, fetch

    place = out or default_place()
    try:
        fetch(place)
    except DetectorError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{place}: {error.strerror}; name a file that can be written with --out")
    with telling():
        click.echo(f"{place}")
