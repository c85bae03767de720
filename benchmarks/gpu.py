"""How fast `classify` is with a GPU: beside its cores that only decode, and beside the GPU that only infers.

    python -m benchmarks.gpu [--out benchmarks/results/gpu.md]

Measured alternately in one run, several rounds, of which the median counts.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path

import click
import numpy as np
import onnxruntime as ort

from benchmarks import ceiling
from benchmarks.photos import Kind, kinds, make_set
from benchmarks.timing import FEW, classify, rate
from gender_batch import __version__
from gender_batch.model.cuda import page_locked
from gender_batch.model.session import Model
from gender_batch.outputs.record import versions
from gender_batch.prediction import Status
from gender_batch.scoring.batches import GPU_BATCH, BatchInference
from gender_batch.scoring.cores import usable_cores
from gender_batch.scoring.worker import Outcome

SETS = ("JPEG 400 progressive", "JPEG 1080 baseline", "JPEG 1080 progressive")

BATCHES = (32, 64, 128, 256, 512)
"""Pictures per inference that are tried."""


@click.command()
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Also write the report there.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--files", default=4000, show_default=True, type=click.IntRange(2 * FEW), help="Pictures for each core.")
@click.option("--device", default="cuda", show_default=True, help="cpu shows that all runs, and no figure of use.")
def main(out: Path | None, rounds: int, files: int, device: str) -> None:
    """Measure, and print the report line by line, with the machine and the versions."""
    lines = []
    for line in _report(rounds, files * usable_cores(), device):
        click.echo(line)
        lines.append(line)
        if out:  # a machine that is lent for minutes may be gone before the last line
            out.write_text("\n".join(lines) + "\n")


def _report(rounds: int, files: int, device: str) -> Iterator[str]:
    model = Model(None, device)
    yield "# Speed with a GPU"
    yield ""
    yield (
        f"{datetime.now(UTC):%Y-%m-%d}, gender-batch {__version__}, {_gpu(device)}, {usable_cores()} cores, "
        f"{', '.join(f'{name} {version}' for name, version in versions().items())}; model {model.path.name}. "
        f"Medians of {rounds} rounds, in pictures per second."
    )
    yield ""
    yield from _batch_sizes(model, rounds)
    yield ""
    yield "| photos | cores decode alone | GPU infers alone | classify | of the lesser |"
    yield "|---|---|---|---|---|"
    with tempfile.TemporaryDirectory() as name:
        for kind in (kind for kind in kinds() if kind.name in SETS):
            yield _row(kind, model, Path(name) / kind.name.replace(" ", "-"), files, rounds)


def _row(kind: Kind, model: Model, place: Path, files: int, rounds: int) -> str:
    make_set(kind, place, None, 24, [FEW, files])
    paths = sorted(str(path) for path in (place / str(files)).iterdir())
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        found["decode"].append(ceiling.on_all_cores("decode", model.path, paths))
        found["infer"].append(_inference_alone(model, GPU_BATCH))
        out = place / "rows.csv"
        ours, _ = rate(lambda count, out=out: classify(place / str(count), out, model.device.name), files)
        found["classify"].append(ours)
        found["ratio"].append(ours / min(found["decode"][-1], found["infer"][-1]))
    decode, infer, ours, ratio = (statistics.median(found[key]) for key in ("decode", "infer", "classify", "ratio"))
    return f"| {kind.name} | {decode:,.0f} | {infer:,.0f} | {ours:,.0f} | **{ratio:.2f}** |"


def _batch_sizes(model: Model, rounds: int) -> Iterator[str]:
    """What the choices of GPU_BATCH and of a layout rest on: inference alone, pixels copied to the device and answers
    back, with the batches gathered as `classify` does it, and without."""
    ways = {"GPU infers alone": partial(_inference_alone, model), "one batch, again and again": partial(_bare, model)}
    if model.device.name == "cuda" and (other := _channels_last(model)):
        ways["the same with prefer_nhwc"] = partial(_bare, other)
    found = defaultdict(list)
    for _ in range(rounds):
        for way, size in product(ways, BATCHES):
            found[way, size].append(ways[way](size))
    yield "| pictures at a time | " + " | ".join(map(str, BATCHES)) + " |"
    yield "|---" * (len(BATCHES) + 1) + "|"
    for way in ways:
        yield f"| {way} | " + " | ".join(f"{statistics.median(found[way, size]):,.0f}" for size in BATCHES) + " |"


def _channels_last(model: Model) -> Model | None:
    """The model with an option of ONNX Runtime's CUDA provider that may suit the GPU better; None where it fails."""
    other = copy.copy(model)
    try:
        provider = ("CUDAExecutionProvider", {"prefer_nhwc": "1"})
        other._session = ort.InferenceSession(str(model.path), providers=[provider], enable_fallback=0)
        side = model.metadata.preprocessing.size
        other.bound(GPU_BATCH)(np.zeros((GPU_BATCH, side, side, 3), np.uint8))
    except Exception as error:  # noqa: BLE001 - an attempt must not cost the other figures
        click.echo(f"prefer_nhwc: {error}", err=True)
        return None
    return other


def _inference_alone(model: Model, size: int, seconds: float = 2.0) -> float:
    """Pictures per second of `classify`'s own consumer, if the next picture is always there."""
    side = model.metadata.preprocessing.size
    pixels = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    inference = BatchInference(model, size)

    def pictures(deadline: float) -> Iterator[tuple[str, Outcome]]:
        while time.perf_counter() < deadline:
            for _ in range(size):
                yield "", Outcome(Status.OK, pixels)

    for _ in inference.answered(pictures(time.perf_counter() + seconds / 4)):
        pass
    began = time.perf_counter()
    count = sum(1 for _ in inference.answered(pictures(began + seconds)))
    return count / (time.perf_counter() - began)


def _bare(model: Model, size: int, seconds: float = 2.0) -> float:
    """Pictures per second of the same batch, which nobody has to gather."""
    side = model.metadata.preprocessing.size
    pixels = np.random.default_rng(0).integers(0, 256, (size, side, side, 3), dtype=np.uint8)
    infer = model.bound(size)
    with page_locked(pixels):
        infer(pixels)
        began, count = time.perf_counter(), 0
        while (taken := time.perf_counter() - began) < seconds:
            infer(pixels)
            count += size
    return count / taken


def _gpu(device: str) -> str:
    from gender_batch.model import cuda

    return cuda.gpu_name() if device == "cuda" else "no GPU"


if __name__ == "__main__":
    main()
