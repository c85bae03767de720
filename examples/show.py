"""Show a CSV of predictions as a table in the terminal."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

COLOURS = {"ok": "green", "uncertain": "yellow"}


def main(path: Path) -> None:
    with path.open(newline="", encoding="utf-8", errors="backslashreplace") as file:
        rows = list(csv.DictReader(file))
    table = Table(title=f"{path}: {len(rows)} rows")
    for column in ("path", "status", "label", "confidence", "width", "height", "error"):
        table.add_column(column, justify="right" if column in ("confidence", "width", "height") else "left")
    for row in rows:
        colour = "red" if row["status"] != "ok" else COLOURS.get(row["label"], "")
        table.add_row(*(row[str(column.header)] for column in table.columns), style=colour)
    Console().print(table)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
