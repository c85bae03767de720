"""`gender-batch doctor`: what a run will find on this machine, and what mends what it lacks."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from gender_batch.cli.exits import Exit, telling
from gender_batch.cli.options import device_option, workers_option


@click.command()
@click.argument(
    "folder", default=Path(), metavar="[FOLDER]", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@device_option
@workers_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def doctor(folder: Path, device: str, workers: int | None, as_json: bool) -> None:
    """Tell whether `classify` can run well on this machine, with output and state in FOLDER (default: the current one).

    Each line is a check: whether a GPU will be used, and if not, the exact missing piece; the model files; the disk;
    limits of files and memory. The exit code is 1 if there is a problem; the line below it is what mends it. With
    --device cuda it is a problem that there is no GPU.
    """
    from gender_batch.evaluation.text import printable
    from gender_batch.scoring.cores import usable_cores
    from gender_batch.scoring.doctor import Level, Plan, examine

    findings = []
    for finding in examine(Plan(device, workers or usable_cores(), folder.absolute())):
        findings.append(finding)
        if not as_json:
            with telling():
                click.echo(printable(f"{finding.level:<8} {finding.check}: {finding.found}"))
                if finding.remedy:
                    click.echo(printable(f"{'':<8} {finding.remedy}"))
    problems = sum(finding.level is Level.PROBLEM for finding in findings)
    with telling():
        if as_json:
            checks = [asdict(finding) for finding in findings]
            click.echo(json.dumps({"problems": problems, "checks": checks}, indent=2))
        else:
            click.echo(f"{problems} problems" if problems != 1 else "1 problem")
    if problems:
        sys.exit(Exit.FATAL)
