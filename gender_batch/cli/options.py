"""Options that mean the same in every command that scores pictures."""

from __future__ import annotations

from pathlib import Path

import click

model_option = click.option(
    "--model",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A model made by `gender-batch export`.  [default: the one that comes with the program]",
)

device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "cuda", "cpu"]),
    help="auto takes the GPU if ONNX Runtime can really use it, and says why not.",
)

workers_option = click.option(
    "--workers",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Processes that read pictures.  [default: one per core]",
)
