"""`gender-batch export`: from a run's checkpoint to a model file that has proved its equality."""

from __future__ import annotations

from pathlib import Path

import click

from gender_batch.cli.exits import fail, needing_extra


@click.command()
@click.argument("run", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The model file; its card goes beside it as .md.  [default: RUN/model.onnx]",
)
def export(run: Path | None, out: Path | None) -> None:  # fmt: skip
    """Convert the checkpoint in RUN to ONNX, and prove that both give the same answers.

    Without RUN the newest run under runs/ is taken. The proof compares real held-out pictures through torch and
    through the path of `classify`; if a probability differs by more than 1e-4, or a label at all, no file is left
    and the exit code is 1.
    """
    with needing_extra("train"):
        from gender_batch_export.export import ExportError, newest_run
        from gender_batch_export.export import export as export_run

        from gender_batch.model.metadata import ModelError
        from gender_batch.training.network import WeightsError

    if out is not None and out.suffix != ".onnx":
        raise click.UsageError(f"--out {out}: a model file is named .onnx")
    if out is not None and not out.absolute().parent.is_dir():
        raise click.UsageError(f"--out {out}: the folder {out.parent} does not exist")
    try:
        result = export_run(run or newest_run(), out)
    except (ExportError, WeightsError, ModelError) as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")
    click.echo(f"parity: {result.parity}")
    click.echo(f"{result.file} ({result.file.stat().st_size / 1e6:.1f} MB), card in {result.card}")
