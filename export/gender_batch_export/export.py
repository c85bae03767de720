"""One export: the graph, its proof, its card; all of them or none."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import dataclass
from pathlib import Path

from gender_batch.model.session import Model
from gender_batch.pictures.read import PictureError, read_picture
from gender_batch.training.network import Checkpoint
from gender_batch.training.run import CHECKPOINT, CONFIG, HELD_OUT
from gender_batch_export.card import model_card
from gender_batch_export.graph import write_graph
from gender_batch_export.parity import Parity, compare

PARITY_PICTURES = 256
"""Held-out pictures that the gate compares, spread over the whole list."""


class ExportError(Exception):
    """The run cannot be exported, or its export did not pass the gate."""


@dataclass(frozen=True)
class Exported:
    """The file that passed, and how well."""

    file: Path
    card: Path
    parity: Parity


def newest_run(folder: Path = Path("runs")) -> Path:
    """The run below `folder` whose checkpoint is the newest. Raises ExportError."""
    checkpoints = list(folder.glob(f"*/{CHECKPOINT}"))
    if not checkpoints:
        raise ExportError(f"{folder}: no finished run in it; name one: gender-batch export RUN, or train first")
    return max(checkpoints, key=lambda path: path.stat().st_mtime_ns).parent


def export(run: Path, out: Path | None = None) -> Exported:
    """Write `out` (default: RUN/model.onnx) and its card beside it, if the file proves equal to the checkpoint.

    Raises ExportError, WeightsError, ModelError; then an earlier file in that place is left as it was.
    """
    if not (run / CHECKPOINT).is_file():
        raise ExportError(f"{run}: no {CHECKPOINT} in it; name the folder of a finished `gender-batch train`")
    checkpoint = Checkpoint.load(run / CHECKPOINT)
    pictures = held_out_pictures(run)
    out = out or run / "model.onnx"
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        write_graph(checkpoint, temporary)
        parity = compare(checkpoint, temporary, pictures)
        if not parity.passed:
            raise ExportError(f"the file does not give the checkpoint's answers ({parity}); it is not written")
        card = out.with_suffix(".md")
        served = Model(temporary)
        text = model_card(served.metadata, parity, out.stem, served.digest())
        os.replace(temporary, out)
        card.write_text(text)
    finally:
        temporary.unlink(missing_ok=True)
    return Exported(out, card, parity)


def held_out_pictures(run: Path) -> list[str]:
    """Paths of readable pictures that the run did not train on, at most 256. Raises ExportError."""
    root = Path(json.loads((run / CONFIG).read_text())["data"])
    with (run / HELD_OUT).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        names = [row["path"] for row in csv.DictReader(file)]
    step = max(1, len(names) // PARITY_PICTURES)
    readable = []
    for name in names[::step][:PARITY_PICTURES]:
        path = str(root / name)
        try:
            read_picture(path)
        except PictureError:
            continue
        readable.append(path)
    if not readable:
        raise ExportError(
            f"{root}: none of the run's held-out pictures is there any more; "
            "the export is proved on them, so bring the folder back to where it was trained from"
        )
    return readable
