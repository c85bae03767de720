"""How long the one process that keeps the state and writes the rows is busy with a picture, which nothing can share.

    python -m benchmarks.parent [--files 20000]

The pictures are empty files whose rows are known at once; the first night keeps them, the second one knows them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from gender_batch.outputs.rows import write_rows
from gender_batch.prediction import Prediction, Status, columns
from gender_batch.scoring.night import Night, Policy
from gender_batch.scoring.state import State

LABELS = ("female", "male")


class AtOnce:
    """Scores pictures without a look at them."""

    def rows(self, paths: Iterable[str]) -> Iterator[Prediction]:
        for path in paths:
            yield Prediction(path, Status.OK, "female", (0.912345, 0.087655), width=1080, height=1080)


@click.command()
@click.option("--files", default=20_000, show_default=True, type=click.IntRange(1))
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Of which the best one counts.")
def main(files: int, rounds: int) -> None:
    """Print microseconds per picture, of both nights."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [str(folder / f"picture{number:06}.jpg") for number in range(files)]
        for path in paths:
            Path(path).touch()
        nights = [[_night(folder, folder / f"{number}.db", paths) for _ in range(2)] for number in range(rounds)]
    first, second = (min(times) for times in zip(*nights, strict=True))
    click.echo(f"first night {first:.1f}, second night {second:.1f} microseconds per picture, of {files:,} pictures")


def _night(folder: Path, state: Path, paths: list[str]) -> float:
    """Microseconds per picture."""
    began = time.perf_counter()
    with (
        State(state, "a model") as kept,
        Night(kept, Policy()) as night,
        (folder / "rows.csv").open("wb") as file,
        write_rows(file, ".csv", columns(LABELS)) as rows,
    ):
        for row in night.rows(AtOnce(), paths):
            rows.write(row.values(len(LABELS)))
    return (time.perf_counter() - began) / len(paths) * 1e6


if __name__ == "__main__":
    main()
