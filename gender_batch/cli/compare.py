"""`gender-batch compare`: whether two nights differ by more than a limit, and by more than chance."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from math import isfinite
from pathlib import Path

import click

from gender_batch.cli.exits import Exit, fail, telling
from gender_batch.evaluation.drift import Change, Limits, reasons
from gender_batch.evaluation.drift import compare as compare_runs
from gender_batch.evaluation.text import printable

DEFAULTS = asdict(Limits())
HEADER = ("", "before", "after", "change", "limit", "p")


def limits(text: str) -> dict[str, float]:
    """The limits in `uncertain=0.05,label=0.02`: the type of an option."""
    found = {}
    for item in text.split(","):
        name, _, value = item.partition("=")
        try:
            limit = float(value)
        except ValueError:
            limit = -1.0
        if name.strip() not in DEFAULTS or not isfinite(limit) or limit < 0:
            raise click.BadParameter(f"{item!r} is no NAME=NUMBER, 0 or more, with NAME one of {', '.join(DEFAULTS)}")
        found[name.strip()] = limit
    return found


@click.command()
@click.argument("before", metavar="A", type=click.Path(path_type=Path))
@click.argument("after", metavar="B", type=click.Path(path_type=Path))
@click.option(
    "--limits",
    "given",
    multiple=True,
    type=limits,
    metavar="NAME=NUMBER,...",
    help="Differences up to which nothing has drifted.  [default: "
    + ", ".join(f"{name}={limit:g}" for name, limit in DEFAULTS.items())
    + "]",
)
def compare(before: Path, after: Path, given: tuple[dict[str, float], ...]) -> None:
    """Tell what has drifted between two runs, from the records A and B that `classify --summary` wrote.

    Compared are the share of each label among the pictures that got one (limit: label), of `uncertain` among the
    readable ones, of each reason of failure and of no_face among all (failure), the mean confidence, and the number of
    pictures, relative to A. A difference is a drift, which gives exit code 8, if it is larger than its limit and not
    due to chance: p, the probability that chance alone gives one as large, is at most 0.01, corrected for the number
    of tests. The number of pictures is not tested; its limit decides.
    """
    from gender_batch.outputs.record import RecordError, RunRecord

    try:
        runs = RunRecord.read(before), RunRecord.read(after)
    except RecordError as error:
        fail(str(error))
    merged = {name: limit for some in given for name, limit in some.items()}
    changes = compare_runs(*runs, Limits(**merged))
    drifted = [printable(change.what) for change in changes if change.flagged]
    with telling():
        _tell(changes)
        for reason in reasons(*runs):
            click.echo(f"note: {printable(reason)}")
        click.echo(f"drift: {', '.join(drifted)}" if drifted else "no drift")
    if drifted:
        sys.exit(Exit.DRIFT)


def _tell(changes: Sequence[Change]) -> None:
    """A table, one line per figure."""
    table = [HEADER, *(_cells(change) for change in changes)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for flag, (name, *numbers) in zip(
        ["", *("DRIFT" if change.flagged else "" for change in changes)], table, strict=True
    ):
        line = "  ".join(number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True))
        click.echo(f"{name:<{widths[0]}}  {line}  {flag}".rstrip())


def _cells(change: Change) -> tuple[str, ...]:
    return (
        printable(change.what),
        _number(change.before),
        _number(change.after),
        "-" if change.difference is None else f"{change.difference:+.4f}",
        f"{change.limit:.4f}",
        "-" if change.p_value is None else "<0.0001" if change.p_value < 0.0001 else f"{change.p_value:.4f}",
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
