"""The memory of a command and of all processes that it starts, while it runs."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

INTERVAL = 0.25
"""Seconds between two looks."""


class Watch:
    """`peak`: the most bytes that the command and its descendants held together, pages that they share counted once."""

    def __init__(self) -> None:
        self.peak = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, command: Sequence[str | Path], cwd: Path) -> bytes:
        """Run a command to its end, and give what it printed. Raises RuntimeError with what it complained."""
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=cwd) as self._process:
            output, complaints = self._process.communicate()
        if self._process.returncode:
            raise RuntimeError(f"{command}: {complaints.decode(errors='replace')[-2000:]}")
        return output

    def look(self) -> None:
        if self._process is not None:
            self.peak = max(self.peak, sum(map(_proportional, _family(self._process.pid))))


@contextmanager
def watched() -> Iterator[Watch]:
    """A Watch that looks every quarter of a second."""
    watch, ended = Watch(), threading.Event()

    def look() -> None:
        while not ended.wait(INTERVAL):
            watch.look()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        ended.set()
        thread.join()


def _family(pid: int) -> list[int]:
    family = [pid]
    for member in family:
        with suppress(OSError):
            for task in Path(f"/proc/{member}/task").iterdir():
                family += map(int, (task / "children").read_text().split())
    return family


def _proportional(pid: int) -> float:
    """Proportional set size in bytes (proc(5), smaps_rollup)."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024.0 * int(line.split()[1])
    return 0.0
