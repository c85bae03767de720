"""Options that mean the same in every command that scores pictures."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import isnan
from pathlib import Path
from typing import Any

import click

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}

LONGEST = 366 * 86400
"""Seconds: more than any run, and less than what the system's timer takes."""


def duration(text: str) -> float:
    """Seconds of 90, 90s, 15m, 6h or 2d: the type of an option."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if not found or not 0 < (seconds := float(found[1]) * _SECONDS[found[2]]) <= LONGEST:
        raise click.BadParameter(f"{text!r} is not a duration such as 90s, 15m, 6h or 2d, of a year at most")
    return seconds


class Numbers(click.FloatRange):
    """A range of numbers. `nan`, which is neither within nor without, is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if isnan(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return number


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
    help="auto takes the GPU if ONNX Runtime can really use it, else it says why not.",
)

workers_option = click.option(
    "--workers",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Worker processes.  [default: one per core]",
)

detector_option = click.option(
    "--detector",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The face detector, YuNet's file.  [default: GENDER_BATCH_DETECTOR, or what `fetch-detector` fetched]",
)

_FACES = (
    click.option(
        "--faces",
        default="auto",
        show_default=True,
        type=click.Choice(["auto", "always", "never"]),
        help="Find faces first and classify these. auto: if the model knows faces and there is a detector.",
    ),
    detector_option,
    click.option(
        "--no-face",
        default="skip",
        show_default=True,
        type=click.Choice(["skip", "whole"]),
        help="If no face is found: skip gives the status no_face and no label, whole classifies the whole picture.",
    ),
)


def face_options(command: Callable[..., None]) -> Callable[..., None]:
    """--faces, --detector and --no-face."""
    for option in reversed(_FACES):
        command = option(command)
    return command
