"""`gender-batch evaluate`: how good a model is on labelled pictures, through the path of `classify`."""

from __future__ import annotations

import json
import os
import sys
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gender_batch.cli.exits import Exit, fail, note, stopping_on_signals, telling
from gender_batch.cli.options import device_option, face_options, model_option, workers_option
from gender_batch.cli.places import check_writable, resolved

if TYPE_CHECKING:
    from gender_batch.evaluation.labelled import Evaluation
    from gender_batch.model.metadata import Metadata


REPORT = ("metrics.json", "answers.csv", "confusion.png", "reliability.png", "gallery.png")


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@model_option
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder for metrics.json, answers.csv and the plots.",
)
@click.option(
    "--groups",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="CSV",
    help="A table with a column `path`, as train --labels takes it: `group` is the person; every other column but "
    "`label` and `split` gives an accuracy for each of its values.",
)
@device_option
@workers_option
@face_options
def evaluate(
    data: Path, model: Path | None, out: Path | None, groups: Path | None, device: str, workers: int | None,
    faces: str, detector: Path | None, no_face: str,
) -> None:  # fmt: skip
    """Score the labelled pictures in DATA and compare the answers with the labels.

    DATA holds one folder per label of the model, or a test/ with these in it. Accuracy counts every picture by its
    most probable label; coverage and accuracy at the threshold tell what is left when `uncertain` is an answer.
    """
    from gender_batch.cli.log import Log
    from gender_batch.cli.progress import ScoringProgress
    from gender_batch.evaluation.labelled import LabelsError, NoPictureError
    from gender_batch.evaluation.labelled import evaluate as evaluate_labelled
    from gender_batch.faces.fetch import DetectorError
    from gender_batch.model.metadata import ModelError
    from gender_batch.model.session import GpuError, NoGpuError
    from gender_batch.outputs.publish import for_the_owner_alone
    from gender_batch.scoring.pool import PoolError
    from gender_batch.scoring.run import Faces, Options, Scorer

    if out:
        place = resolved("--out", out)
        if any(os.path.exists(place / name) for name in ("checkpoint.safetensors", "config.json")):
            fail(f"{out}: holds a training, whose metrics.json must stay; name another folder with --out", Exit.USAGE)
        # What is in a folder that may not be entered counts as not there.
        check_writable("--out", out, next(filter(os.path.exists, (place, *place.parents))))
    options = Options(model, device, workers, faces=Faces(faces, detector, whole=no_face == "whole"))
    try:
        with stopping_on_signals("Nothing was written."), Scorer(options) as scorer:
            note(f"device: {scorer.device.name} ({scorer.device.reason})")
            note(f"model: {scorer.model}")
            if scorer.lacks_detector:
                note(f"warning: {scorer.lacks_detector}")
            with ScoringProgress(Log(as_json=False)) as progress:
                result = evaluate_labelled(scorer, data, groups, progress.row)
    except NoGpuError as error:
        fail(str(error), Exit.NO_GPU)
    except NoPictureError as error:
        fail(str(error), Exit.NO_PICTURE)
    except (ModelError, GpuError, DetectorError, LabelsError, PoolError) as error:
        fail(str(error))

    try:
        if out:
            with stopping_on_signals(f"The report in {out} is not complete."), for_the_owner_alone():
                _write(result, place, scorer.metadata)
    except OSError as error:
        fail(f"{error.filename or out}: {error.strerror}; the report is not complete: name another folder with --out")
    finally:
        # Afterwards: who reads standard output may have had enough before the last line.
        with telling():
            _tell(result)
    if out:
        note(f"report in {out}")
    if result.failed or result.unreadable_folders:
        sys.exit(Exit.FAILED_PICTURES)


def _tell(result: Evaluation) -> None:
    from gender_batch.evaluation.text import printable

    metrics, labels = result.metrics, [printable(label) for label in result.metrics.labels]
    click.echo(f"measured on                 {metrics.pictures}")
    click.echo(f"accuracy                    {metrics.accuracy}")
    click.echo(f"answered at the threshold   {metrics.coverage}")
    click.echo(f"accuracy of those           {metrics.decided_right}")
    click.echo(f"expected calibration error  {metrics.calibration_error:.4f}")
    width = max(map(len, labels))
    for index, label in enumerate(labels):
        click.echo(f"{label:<{width}}  precision {metrics.precisions[index]}")
        click.echo(f"{'':<{width}}  recall    {metrics.recalls[index]}")
        answered = ", ".join(f"{name} {metrics.confusion[index, j]:,}" for j, name in enumerate(labels))
        click.echo(f"{'':<{width}}  answered  {answered}")
    for column, groups in groupby(result.groups, key=lambda group: group.column):
        click.echo(f"\n{printable(column)}")
        for group in groups:
            click.echo(f"  {printable(group.value):<28} {group.accuracy}")
    for row in result.failed[:20]:
        note(f"not scored: {row.path!r}: {row.status.value}: {row.error}")
    if result.failed:
        note(f"not scored: {len(result.failed):,} in all")
    if result.faceless:
        count, first = len(result.faceless), result.faceless[0].path
        note(f"no face: {count:,} pictures, {first!r} among them; no figure counts them")
    for folder, reason in result.unreadable_folders:
        note(f"folder not read: {folder!r}: {reason}")
    for remark in result.notes:
        note(printable(remark))


def _write(result: Evaluation, out: Path, metadata: Metadata) -> None:
    from gender_batch.outputs.rows import write_rows
    from gender_batch.prediction import columns

    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in REPORT:  # others may be able to read an earlier report, and this one may have fewer plots
        (out / name).unlink(missing_ok=True)
    (out / "metrics.json").write_text(json.dumps(result.to_dict(), indent=2) + "\n")
    labels = metadata.labels
    with (out / "answers.csv").open("wb") as file, write_rows(file, ".csv", ("truth", *columns(labels))) as rows:
        for row, truth in result.pictures:
            rows.write((labels[truth], *row.values(len(labels))))
    if find_spec("matplotlib") is None:
        note("no plots: they need matplotlib: pip install 'gender-batch[train]'")
        return
    from gender_batch.evaluation.gallery import Answer, draw_gallery
    from gender_batch.evaluation.plots import plot_confusion, plot_reliability

    metrics, preprocessing = result.metrics, metadata.preprocessing
    plot_confusion(metrics.confusion, metrics.labels, out / "confusion.png")
    plot_reliability(metrics.bins, metrics.calibration_error, out / "reliability.png")
    answers = [
        Answer(row.path, row.path, truth, row.probabilities, row.path, box=row.box) for row, truth in result.answered
    ]
    draw_gallery(answers, preprocessing, out / "gallery.png", metrics.labels)
