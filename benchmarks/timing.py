"""How long a command takes for a picture, whatever it takes to start."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from benchmarks import memory

ROOT = Path(__file__).parents[1]

FEW = 16
"""Pictures of a short run."""


def classify(folder: Path, out: Path | str, device: str, faces: str = "never") -> list[str | Path]:
    """The command that scores a folder, of face crops or, with `faces` "always", of photos to find them in."""
    options = ("--device", device, "--faces", faces)
    return [sys.executable, "-m", "gender_batch", "classify", folder, "--out", out, *options]


def rate(
    command: Callable[[int], list[str | Path]], many: int, peaks: list[float] | None = None
) -> tuple[float, bytes]:
    """Pictures per second between a run of FEW pictures and one of `many`; what the latter printed is given, too.

    Its peak of memory is noted in `peaks`. Where there are none, nobody looks: with many processes that share pixels a
    look takes a core tenths of a second."""
    seconds = {}
    for count in (FEW, many):
        began = time.perf_counter()
        with nullcontext(memory.Watch()) if peaks is None else memory.watched() as watch:
            output = watch.run(command(count), cwd=ROOT)
        seconds[count] = time.perf_counter() - began
    if peaks is not None:
        peaks.append(watch.peak)
    return (many - FEW) / max(1e-3, seconds[many] - seconds[FEW]), output
