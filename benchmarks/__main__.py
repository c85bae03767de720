"""How fast `classify` is: beside what the machine could do at best, and beside others, on the same files and weights.

    python -m benchmarks [--out benchmarks/results/speed.md]

All is measured alternately in one run, several rounds, of which the median counts. A command's pictures per second are
those of a long run without those of a short one, in the seconds that it took longer: so starting up is nobody's loss,
and is told by itself. Peers need packages that the program does not; `--make-peers` installs them into .venv-peers/,
without it those that are missing are named.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import click

from benchmarks import ceiling
from benchmarks.peers import PEERS
from benchmarks.photos import Kind, kinds, make_set, portrait_kinds, unpacked_faces
from benchmarks.timing import FEW, ROOT, classify, rate
from gender_batch import __version__
from gender_batch.faces.fetch import NAME, VARIABLE, find_detector
from gender_batch.model.processor import CPU_INFO, instructions
from gender_batch.model.session import DEFAULT_FOLDER, DEFAULT_NAME, default_model
from gender_batch.outputs.record import versions
from gender_batch.scoring.cores import usable_cores

SHARED = Path(os.environ.get("GENDER_BATCH_SHARED", ROOT.parent / "shared"))
PEER_ENVIRONMENT = ROOT / ".venv-peers"

CEILINGS = ("decode", "infer", "both")
"""What the machine could do, measured around each run."""


@dataclass(frozen=True)
class Plan:
    """What is measured: each of `kinds` with `distinct` pictures, `rounds` times, peers on a share of the files."""

    kinds: tuple[Kind, ...]
    rounds: int
    distinct: int
    peers: tuple[str, ...]
    portraits: tuple[Kind, ...] = ()
    peer_share: float = 0.25
    python: Path = Path(sys.executable)


@click.command()
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Also write the report there, as Markdown."
)
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--only", multiple=True, metavar="TEXT", help="Only sets whose name has TEXT, such as '1080'.")
@click.option("--scale", default=1.0, show_default=True, help="Factor on the number of files.")
@click.option("--peers/--no-peers", default=True, show_default=True)
@click.option("--make-peers", is_flag=True, help="First make .venv-peers with the packages that peers need.")
@click.option("--quick", is_flag=True, help="Tiny sets, one round: shows that all runs, and no figure of use.")
def main(
    out: Path | None, rounds: int, only: tuple[str, ...], scale: float, peers: bool, make_peers: bool, quick: bool
) -> None:
    """Measure, print a report of ratios, and write it with the machine and the versions."""
    if make_peers:
        _make_peers()
    python = PEER_ENVIRONMENT / "bin" / "python"

    def wanted(found: tuple[Kind, ...]) -> tuple[Kind, ...]:
        some = (kind for kind in found if not only or any(text in kind.name for text in only))
        return tuple(replace(kind, files=max(2 * FEW, int(scale * kind.files))) for kind in some)

    plan = Plan(
        wanted(kinds()),
        rounds,
        distinct=24,
        peers=tuple(PEERS) if peers else (),
        portraits=wanted(portrait_kinds()),
        python=python if python.exists() else Path(sys.executable),
    )
    if quick:
        tiny = [replace(kind, files=2 * FEW) for kind in plan.kinds if kind.name in ("JPEG 400 progressive", "PNG 400")]
        portraits = tuple(replace(kind, files=2 * FEW) for kind in plan.portraits[:1])
        plan = replace(
            plan, kinds=tuple(tiny), rounds=1, distinct=2, peers=plan.peers[:1], portraits=portraits, peer_share=1
        )
    report = "\n".join(_report(plan))
    click.echo(report)
    if out:
        out.write_text(report + "\n")


def _make_peers() -> None:
    subprocess.run([sys.executable, "-m", "venv", PEER_ENVIRONMENT], check=True)
    packages = ["timm", "transformers", "ray[data]"]
    subprocess.run([PEER_ENVIRONMENT / "bin" / "pip", "install", f"{ROOT}[train]", *packages], check=True)


def _report(plan: Plan) -> list[str]:
    absent = {name: missing for name in plan.peers if (missing := _missing(plan.python, PEERS[name][1]))}
    present = [name for name in plan.peers if name not in absent]
    lines = [
        "# Speed",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, gender-batch {__version__}, {_processor()}, {usable_cores()} cores, "
        f"{', '.join(f'{name} {version}' for name, version in versions().items())}; model {default_model('cpu').name}. "
        f"Medians of {plan.rounds} rounds, in pictures per second. `reckoned`: from the two columns before it, as if "
        f"each core did both for a picture and neither slowed the other. `both`: measured, one process a core that "
        f"decodes {ceiling.DECODED} pictures, infers them 1, 2, 4 or 8 (the quickest) at a time and does no more. "
        "`outside both`: microseconds of a core that a picture took beyond that.",
        "",
        "| photos | KB | decode alone | infer alone | reckoned | both | classify | of both | range | of reckoned "
        "| outside both |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    beside = [
        "| photos | classify | " + " | ".join(present) + " |",
        "|---|---|" + "---|" * len(present),
    ]
    starts: list[float] = []
    most_memory = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        faces = unpacked_faces(SHARED, folder / "faces")
        for kind in plan.kinds:
            some = max(2 * FEW, int(plan.peer_share * kind.files))
            place = folder / kind.name.replace(" ", "-")
            size = make_set(kind, place, faces, plan.distinct, sorted({FEW, some, kind.files}))
            found = _measure(plan, kind, place, some, present)
            decode, infer, both, ours, ratio, of_reckoned = (
                statistics.median(found[key]) for key in ("decode", "infer", "both", "classify", "ratio", "of reckoned")
            )
            starts += found["first row"]
            most_memory = max([most_memory, *found["memory"]])
            lines.append(
                f"| {kind.name} | {size / 1000:.0f} | {decode:,.0f} | {infer:,.0f} "
                f"| {ceiling.reckoned(decode, infer):,.0f} | {both:,.0f} | {ours:,.0f} | **{ratio:.2f}** "
                f"| {min(found['ratio']):.2f}..{max(found['ratio']):.2f} | {of_reckoned:.2f} "
                f"| {1e6 * usable_cores() * (1 / ours - 1 / both):.0f} |"
            )
            click.echo(lines[-1], err=True)
            if kind.peers and present:
                cells = [
                    f"{statistics.median(found[peer]):,.0f} (**{statistics.median(found[f'x {peer}']):.1f}x**), "
                    f"{statistics.median(found[f'same {peer}']):.0%}"
                    for peer in present
                ]
                beside.append(f"| {kind.name} | {ours:,.0f} | {' | '.join(cells)} |")
                click.echo(beside[-1], err=True)
        found_faces = _report_portraits(plan, folder, faces)
    if starts:
        lines += [
            "",
            f"From the start of the command to its first row: {statistics.median(starts):.2f} s. "
            f"Most memory of all its processes together: {most_memory / 1e6:,.0f} MB (proportional set size).",
        ]
    if len(beside) > 2:
        lines += [
            "",
            "## Beside others",
            "",
            "The others compute in float32, with the weights of the same model.",
            "In brackets how many times faster `classify` is; then on how many pictures",
        ]
        lines += ["both give the same label.", "", *beside]
    lines += found_faces
    if faces is None:
        lines += ["", "Without real photos at hand: of noise with a natural spectrum."]
    lines += [f"\n{name}: absent here, it needs {', '.join(missing)}." for name, missing in absent.items()]
    return lines


def _report_portraits(plan: Plan, folder: Path, faces: Path | None) -> list[str]:
    """What it takes to find faces. Real ones are needed for it, and the detector."""
    if not plan.portraits:
        return []
    lines = ["", "## With faces found", ""]
    ours = SHARED / "models" / NAME
    detector = ours if ours.is_file() else find_detector()
    if faces is None or detector is None:
        return [*lines, f"Absent here: it needs {'real faces' if faces is None else 'the face detector'}."]
    os.environ[VARIABLE] = str(detector)  # for all processes that are started
    lines += [
        "`bare loop`: one process a core that decodes, finds, cuts out and infers, and does nothing else.",
        "",
        "| photos | bare loop | classify | of the loop | range | without faces looked for | times as fast |",
        "|---|---|---|---|---|---|---|",
    ]
    model = default_model("cpu")
    for kind in plan.portraits:
        place = folder / kind.name.replace(" ", "-")
        make_set(kind, place, faces, plan.distinct, sorted({FEW, kind.files}))
        paths = sorted(str(path) for path in (place / str(kind.files)).iterdir())
        found: dict[str, list[float]] = defaultdict(list)
        for _ in range(plan.rounds):
            before = ceiling.on_all_cores("find", model, paths)
            for way in ("always", "never"):
                command = partial(_scoring, place, way)
                found[way].append(rate(command, kind.files, found["memory"])[0])
            found["loop"].append((before + ceiling.on_all_cores("find", model, paths)) / 2)
            found["of"].append(found["always"][-1] / found["loop"][-1])
            found["times"].append(found["never"][-1] / found["always"][-1])
        loop, always, of, never, times = (
            statistics.median(found[key]) for key in ("loop", "always", "of", "never", "times")
        )
        lines.append(
            f"| {kind.name} | {loop:,.0f} | {always:,.0f} | **{of:.2f}** "
            f"| {min(found['of']):.2f}..{max(found['of']):.2f} | {never:,.0f} | {times:.1f} |"
        )
        click.echo(lines[-1], err=True)
    return lines


def _scoring(place: Path, faces: str, count: int) -> list[str | Path]:
    return classify(place / str(count), place / "rows.csv", "cpu", faces)


def _measure(plan: Plan, kind: Kind, place: Path, some: int, peers: list[str]) -> dict[str, list[float]]:
    """By what was measured, one value per round."""
    model = default_model("cpu")
    fp32 = DEFAULT_FOLDER / f"{DEFAULT_NAME}.onnx"
    paths = sorted(str(path) for path in (place / str(kind.files)).iterdir())
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(plan.rounds):
        before = {work: ceiling.on_all_cores(work, model, paths) for work in CEILINGS}
        ours, _ = rate(partial(_scoring, place, "never"), kind.files, found["memory"])
        found["first row"].append(_first_row(place / str(FEW)))
        # Before and after: what the machine does besides changes slowly.
        now = {work: (before[work] + ceiling.on_all_cores(work, model, paths)) / 2 for work in CEILINGS}
        for work, best in now.items():
            found[work].append(best)
        found["classify"].append(ours)
        found["ratio"].append(ours / now["both"])
        found["of reckoned"].append(ours / ceiling.reckoned(now["decode"], now["infer"]))
        if kind.peers:
            for peer in peers:
                command = [plan.python, "-m", "benchmarks.peers", peer]
                theirs, answers = rate(lambda count, command=command: [*command, place / str(count), fp32], some, [])
                found[peer].append(theirs)
                found[f"x {peer}"].append(ours / theirs)
                found[f"same {peer}"].append(_agreement(json.loads(answers.splitlines()[-1]), place / "rows.csv"))
    return found


def _agreement(labels: list[int], rows: Path) -> float:
    """Share of pictures, the first ones of a CSV, of which a peer says what `classify` says."""
    with rows.open(newline="") as file:
        ours = [float(row["p_male"]) > float(row["p_female"]) for row in csv.DictReader(file)]
    return sum(bool(label) == own for label, own in zip(labels, ours, strict=False)) / len(labels)


def _first_row(folder: Path) -> float:
    """Seconds from the start of the command to the first row on standard output."""
    began = time.perf_counter()
    with subprocess.Popen(
        classify(folder, "-", "cpu"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT
    ) as running:
        if running.stdout:
            running.stdout.readline()  # the names of the columns
            running.stdout.readline()
            seconds = time.perf_counter() - began
            running.stdout.read()
    return seconds


def _missing(python: Path, packages: tuple[str, ...]) -> list[str]:
    """Those of the packages that this Python does not have."""
    program = (
        "import importlib.util, json, sys; "
        "print(json.dumps([name for name in sys.argv[1:] if not importlib.util.find_spec(name)]))"
    )
    done = subprocess.run([python, "-c", program, *packages], capture_output=True, text=True, check=True)
    missing: list[str] = json.loads(done.stdout)
    return missing


def _processor() -> str:
    vnni = instructions() & {"avx512_vnni", "avx_vnni"}
    lines = CPU_INFO.read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model} ({'with' if vnni else 'without'} VNNI)"


if __name__ == "__main__":
    main()
