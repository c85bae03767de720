"""`gender-batch export`: from a run's checkpoint to model files that have proved their equality."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gender_batch.cli.exits import Exit, fail, needing_extra, note, stopping_on_signals, telling


@click.command()
@click.argument("run", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The model file; its card goes beside it as .md, other precisions as .int8.onnx and .fp16.onnx.  "
    "[default: RUN/model.onnx]",
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    default=("fp32",),
    show_default=True,
    type=click.Choice(["fp32", "fp16", "int8"]),
    help="May be given several times: fp16 is for GPUs, int8 for CPUs.",
)
def export(run: Path | None, out: Path | None, precisions: tuple[str, ...]) -> None:
    """Convert the checkpoint in RUN to ONNX, and prove that it gives the same answers.

    Without RUN the newest run under runs/ is taken. The proof compares real held-out pictures through torch and
    through the path of `classify`. fp32: no probability differs by more than 1e-4, no label at all. fp16: 99.9% of
    the labels agree. int8: 98.5%, and 99.8% of those that the checkpoint gives with at least 0.8, and accuracy is
    within 0.3 points. fp16 and int8 are judged on at least 100 held-out pictures. What fails is not written, the
    reason is told and the exit code is 1; if fp32 fails, nothing is written.
    """
    if out is not None and out.suffix != ".onnx":
        raise click.UsageError(f"--out {out}: a model file is named .onnx")
    if out is not None and not out.absolute().parent.is_dir():
        raise click.UsageError(f"--out {out}: the folder {out.parent} does not exist")
    with stopping_on_signals("The same command starts again."):
        with needing_extra("train"):
            from gender_batch_export.export import MODEL, ExportError, newest_run
            from gender_batch_export.export import export as export_run
            from gender_batch_export.heldout import HeldOutError
            from gender_batch_export.precision import Precision

            from gender_batch.model.metadata import ModelError
            from gender_batch.outputs.publish import LockedError
            from gender_batch.pictures.read import PictureError
            from gender_batch.training.network import WeightsError

        try:
            folder = run or newest_run()
            result = export_run(folder, out, [Precision(name) for name in precisions])
        except (ExportError, HeldOutError, WeightsError, ModelError) as error:
            fail(str(error))
        except PictureError as error:
            fail(f"{folder}: a held-out picture changed while it was used ({error}); start again")
        except LockedError as error:
            fail(str(error), Exit.LOCKED)
        except OSError as error:  # of a full disk it does not say which file
            place = out or folder / MODEL
            remedy = f"{folder} must be readable, and where the file goes writable, with room; --out names another"
            fail(f"{error.filename or place}: {error.strerror or error}; {remedy}")
    with telling():
        for item in result.written:
            click.echo(f"{item.precision}: {item.proof}")
            click.echo(f"{item.file} ({item.file.stat().st_size / 1e6:.1f} MB), card in {result.card}")
    if result.gone:
        note(f"note: {result.gone} held-out pictures cannot be read any more; proof and figures are of the others")
    for refusal in result.refused:
        left = f"; {refusal.earlier} is of an earlier export and left as it was" if refusal.earlier else ""
        note(f"gender-batch: {refusal.precision}: {refusal.reason}{left}")
    if result.refused:
        sys.exit(Exit.FATAL)
