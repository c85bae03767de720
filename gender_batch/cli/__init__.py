"""The command line: parse, call the library, print, choose the exit code. One file per command."""

from __future__ import annotations

import click

from gender_batch import __version__
from gender_batch.cli.classify import classify
from gender_batch.cli.compare import compare
from gender_batch.cli.doctor import doctor
from gender_batch.cli.evaluate import evaluate
from gender_batch.cli.exits import EPILOG
from gender_batch.cli.export import export
from gender_batch.cli.fetch_detector import fetch_detector
from gender_batch.cli.train import train


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gender-batch")
def main() -> None:
    """Apparent gender of profile pictures, in bulk: one trustworthy row per picture.

    classify scores trees of pictures with the model that comes with the program, or with one of your own:
    train it on labelled folders, export it, evaluate it.
    """


for command in (train, export, evaluate, classify, compare, doctor, fetch_detector):
    main.add_command(command)
