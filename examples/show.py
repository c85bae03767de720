"""Show a CSV of predictions as a table in the terminal."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

COLOURS = {"uncertain": "yellow"}


def main(path: Path) -> None:
    with path.open(newline="", encoding="utf-8", errors="backslashreplace") as file:
        rows = list(csv.DictReader(file))
    table = Table(title=f"{path}: {len(rows)} rows")
    table.add_column("picture", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("label", no_wrap=True)
    table.add_column("confidence", justify="right", no_wrap=True)
    for row in rows:
        colour = "red" if row["status"] != "ok" else COLOURS.get(row["label"], "")
        confidence = f"{float(row['confidence']):.3f}" if row["confidence"] else ""
        table.add_row(Path(row["path"]).name, row["status"], row["label"], confidence, style=colour)
    console = Console()
    console.print(table)
    for row in rows:
        if row["error"]:
            console.print(f"{Path(row['path']).name}: {row['error']}", style="red", markup=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
