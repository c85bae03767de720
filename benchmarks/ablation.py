"""What each ingredient of the recipe is worth: one change at a time, judged on validation.

    python -m benchmarks.ablation FACES WEIGHTS [--out benchmarks/results/ablation.md]

FACES holds train/<class>/...; its test/ is not looked at. A fifth of the pictures is held out to judge by (half of it
chooses the best epoch), so that differences of half a point can be seen; the rest trains, or a part of it.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray

from gender_batch.evaluation.metrics import expected_calibration_error
from gender_batch.training.augmentation import zoom_out
from gender_batch.training.dataset import load_dataset
from gender_batch.training.fit import Epoch, Labelled, Machine, Recipe, fit, fit_temperature, predict_logits
from gender_batch.training.loading import Squares
from gender_batch.training.network import Network, load_initial_weights

BASE = Recipe(image_size=96, adapt_epochs=1, fine_epochs=4, lr_fine=1e-3)

SMALL_FACE = 0.4
"""Side of the picture in the frame for the second figure, as a share."""

RESAMPLES = 2000


def variants() -> dict[str, Recipe]:
    """One change of BASE each, by the name of its row."""
    varied = partial(replace, BASE.augmentation)
    return {
        "base": BASE,
        "base, another seed": replace(BASE, seed=1),
        "no moving average": replace(BASE, average=False),
        "no zoom-out": replace(BASE, augmentation=varied(zoom_out=0)),
        "zoom-out on half": replace(BASE, augmentation=varied(zoom_out=0.5)),
        "no label smoothing": replace(BASE, label_smoothing=0),
        "label smoothing 0.1": replace(BASE, label_smoothing=0.1),
        "mixup 0.2": replace(BASE, mixup=0.2),
        "CutMix 1.0": replace(BASE, cutmix=1.0),
        "TrivialAugment": replace(BASE, augmentation=varied(trivial=True)),
        "random erasing 0.25": replace(BASE, augmentation=varied(erasing=0.25)),
        "no colour": replace(BASE, augmentation=varied(colour=0, grey=0)),
        "gentler crops (70% of the area)": replace(BASE, augmentation=varied(smallest_crop=0.7)),
        "layer-wise rates 0.85": replace(BASE, layer_decay=0.85),
        "rate 3e-4": replace(BASE, lr_fine=3e-4),
        "twice the epochs": replace(BASE, fine_epochs=8),
        "128 pixels": replace(BASE, image_size=128),
        "trained at 96, judged at 112": replace(BASE, image_size=112, train_size=96),
    }


class Silent:
    """A watcher that looks away."""

    def batch(self, phase: str, epoch: int, done: int, total: int, loss: float) -> None: ...

    def epoch(self, epoch: Epoch, best: bool) -> None: ...

    def note(self, message: str) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """What one recipe gave on the pictures held out. `right`: (N,) bool, the same pictures for all recipes."""

    right: NDArray[np.bool_]
    flipped: float
    small: float
    log_loss: float
    calibration_error: float
    seconds: float


@click.command()
@click.argument("faces", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("weights", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--pictures", default=6000, show_default=True, help="Most pictures to train on.")
@click.option("--only", multiple=True, help="Rows to measure besides the base; default all.")
def main(faces: Path, weights: Path, out: Path | None, pictures: int, only: tuple[str, ...]) -> None:
    """Print the table, and write it to FILE after every row."""
    data = load_dataset(faces / "train", seed=0)
    train = data.train[:: -(-len(data.train) // pictures)]
    judged = data.val + data.test
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = Machine(device, workers=len(os.sched_getaffinity(0)))

    def measure(recipe: Recipe) -> Outcome:
        def labelled(samples: tuple, preprocessing: object) -> Labelled:  # type: ignore[type-arg]
            paths = [data.path(sample) for sample in samples]
            truth = torch.tensor([sample.label for sample in samples])
            return Labelled(Squares(paths, preprocessing, folder), truth)  # type: ignore[arg-type]

        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            torch.manual_seed(recipe.seed)
            network = Network(len(data.labels))
            load_initial_weights(network, str(weights))
            started = time.monotonic()
            sources = labelled(train, recipe.source)
            val = labelled(data.val, recipe.preprocessing)
            fit(network, sources, val, recipe, machine, folder / "state.pt", Silent())
            seconds = time.monotonic() - started
            held = labelled(judged, recipe.preprocessing)
            truth = held.truth.numpy()
            logits = predict_logits(network, held.squares, machine)
            mirrored = predict_logits(network, held.squares, machine, view=lambda found: found.flip(2))
            torch.manual_seed(0)
            shrunk = partial(zoom_out, side=SMALL_FACE, size=recipe.image_size)
            small = predict_logits(network, labelled(judged, recipe.source).squares, machine, view=shrunk)
        temperature = fit_temperature(logits[: len(data.val)], truth[: len(data.val)])
        shares = torch.from_numpy(logits / temperature).double().softmax(1).numpy()
        right = shares.argmax(1) == truth
        return Outcome(
            right=right,
            flipped=float(((logits + mirrored).argmax(1) == truth).mean()),
            small=float((small.argmax(1) == truth).mean()),
            log_loss=float(-np.log(shares[np.arange(len(truth)), truth]).mean()),
            calibration_error=expected_calibration_error(shares.max(1), right),
            seconds=seconds,
        )

    lines = [
        "# What each ingredient is worth",
        "",
        f"{len(train)} pictures to train on, {len(judged)} to judge by, at {BASE.image_size} pixels, "
        f"{BASE.adapt_epochs} + {BASE.fine_epochs} epochs from ImageNet weights; "
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {device.type}, "
        f"torch {torch.__version__}. Differences to the base in points of "
        "accuracy, with 95% intervals from resampled pictures; they do not hold the chance of another seed.",
        "",
        f"| recipe | accuracy | difference | flip averaged | face at {SMALL_FACE:.0%} | log-loss | ECE | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    base: Outcome | None = None
    for name, recipe in variants().items():
        if only and name not in (*only, "base"):
            continue
        outcome = measure(recipe)
        base = base or outcome
        lines.append(
            f"| {name} | {outcome.right.mean():.2%} | {_difference(outcome.right, base.right)} "
            f"| {outcome.flipped:.2%} | {outcome.small:.2%} "
            f"| {outcome.log_loss:.4f} | {outcome.calibration_error:.3f} | {outcome.seconds:.0f} |"
        )
        click.echo(lines[-1])
        if out:
            out.write_text("\n".join(lines) + "\n")


def _difference(one: NDArray[np.bool_], base: NDArray[np.bool_]) -> str:
    """Paired bootstrap of the difference in points."""
    change = one.astype(float) - base
    drawn = np.random.default_rng(0).integers(0, len(change), (RESAMPLES, len(change)))
    low, high = np.percentile(change[drawn].mean(1), [2.5, 97.5]) * 100
    return f"{change.mean() * 100:+.2f} [{low:+.2f}, {high:+.2f}]"


if __name__ == "__main__":
    main()
