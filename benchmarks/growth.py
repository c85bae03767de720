"""How speed and memory grow with the number of files: a table and a plot.

    python -m benchmarks.growth [--most 6] [--out benchmarks/results/growth]

10^3, 10^4, ... links to a few small pictures, each tree scored by `classify` with everything that a night writes.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
from matplotlib.figure import Figure

from benchmarks.memory import watched
from benchmarks.photos import Kind, make_set

ROOT = Path(__file__).parents[1]
FOLDER = 1000
"""Files in a folder."""

KIND = Kind("JPEG 224", (224, 224), 0, "JPEG", {"quality": 82})


@dataclass(frozen=True)
class Point:
    """One tree: pictures per second of the run and of a second one, that finds nothing new; bytes of memory."""

    files: int
    rate: float
    again: float
    memory: float


@click.command()
@click.option(
    "--most", default=6, show_default=True, type=click.IntRange(3, 8), help="Power of ten of the largest tree."
)
@click.option("--out", type=click.Path(path_type=Path), help="Write the table to OUT.md and the plot to OUT.svg.")
def main(most: int, out: Path | None) -> None:
    """Print the table."""
    points = []
    with tempfile.TemporaryDirectory() as name:
        make_set(KIND, Path(name), None, 8, [])
        originals = sorted((Path(name) / "originals").iterdir())
        for power in range(3, most + 1):
            points.append(_measure(Path(name), originals, 10**power))
            click.echo(points[-1], err=True)
    table = "\n".join(_table(points))
    click.echo(table)
    if out:
        out.with_suffix(".md").write_text(table + "\n")
        _plot(points, out.with_suffix(".svg"))


def _measure(folder: Path, originals: list[Path], files: int) -> Point:
    tree = folder / f"tree-{files}"
    for number in range(files):
        below = tree / f"{number // FOLDER:05d}"
        if number % FOLDER == 0:
            below.mkdir(parents=True)
        # ext4 gives a file at most 65,000 names.
        original = originals[number % len(originals)]
        link = below / f"{number % FOLDER:04d}.jpg"
        if original.stat().st_nlink < 60_000:
            os.link(original, link)
        else:
            link.symlink_to(original)
    command: list[str | Path] = [
        sys.executable, "-m", "gender_batch", "classify", tree, "--out", folder / "rows.csv", "--device", "cpu",
        "--faces", "never", "--state", folder / f"{files}.state", "--summary", folder / "summary.json",
    ]  # fmt: skip
    rates, memory = [], 0.0
    for _ in range(2):
        began = time.perf_counter()
        with watched() as watch:
            watch.run(command, cwd=ROOT)
        rates.append(files / (time.perf_counter() - began))
        memory = max(memory, watch.peak)
    counted = json.loads((folder / "summary.json").read_text())
    if (counted["pictures"], counted["reused"]) != (files, files):
        raise RuntimeError(f"{files} files, and the second run says {counted}")
    return Point(files, *rates, memory)


def _table(points: list[Point]) -> list[str]:
    return [
        "| files | pictures/s | second night, files/s | memory of all processes, MB |",
        "|---|---|---|---|",
        *(f"| {p.files:,} | {p.rate:,.0f} | {p.again:,.0f} | {p.memory / 1e6:,.0f} |" for p in points),
    ]


def _plot(points: list[Point], path: Path) -> None:
    figure = Figure(figsize=(8, 3), layout="constrained")
    files = [point.files for point in points]
    for place, (values, label) in enumerate(
        (([p.rate for p in points], "pictures/s"), ([p.memory / 1e6 for p in points], "MB, all processes together"))
    ):
        axes = figure.add_subplot(1, 2, place + 1)
        axes.plot(files, values, "o-")
        axes.set(xscale="log", xlabel="files", ylabel=label, ylim=(0, 1.25 * max(values)))
        axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
