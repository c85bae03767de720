"""What each ingredient of the recipe is worth: one change at a time, judged on validation.

    python -m benchmarks.ablation FACES LABELS WEIGHTS [--out benchmarks/results/ablation.md]

FACES holds train/<class>/...; its test/ is not looked at. LABELS has a column race. A fifth of the pictures is held out
to judge by (half of it chooses the best epoch), so that differences of half a point can be seen; the rest trains, or a
part of it.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gender_batch.evaluation.metrics import expected_calibration_error
from gender_batch.pictures.preprocessing import Preprocessing
from gender_batch.scoring.cores import usable_cores
from gender_batch.training.augmentation import Augmentation, zoom_out
from gender_batch.training.dataset import load_dataset
from gender_batch.training.fit import Labelled, fit
from gender_batch.training.loading import Squares
from gender_batch.training.network import Network, load_initial_weights
from gender_batch.training.predict import fit_temperature, predict_logits
from gender_batch.training.recipe import Machine, Recipe
from gender_batch.training.run import groups_of, others_of
from gender_batch.training.samples import Sample
from gender_batch.training.state import Epoch

BASE = Recipe(
    image_size=96,
    adapt_epochs=1,
    fine_epochs=4,
    lr_fine=1e-3,
    label_smoothing=0.05,
    augmentation=Augmentation(zoom_out=0.3),
)
"""Quick enough for two dozen rows. Labels are smoothed and fewer pictures zoomed out, as it was before these rows."""

SMALL_FACE = 0.4
"""Side of the picture in the frame for the second figure, as a share."""

RESAMPLES = 2000


@dataclass(frozen=True)
class Variant:
    """One row: a recipe, and what else is done to the training. `rare` keeps a fifth of the first class, `others` are
    columns learnt beside the classes."""

    recipe: Recipe
    balance: bool = False
    others: tuple[str, ...] = ()
    rare: bool = False


def variants() -> dict[str, Variant]:
    """One change of BASE each, by the name of its row."""
    varied = partial(replace, BASE.augmentation)
    recipes = {
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
        "adaptation at 1e-3": replace(BASE, lr_adapt=1e-3),
        "rate 3e-4": replace(BASE, lr_fine=3e-4),
        "twice the epochs": replace(BASE, fine_epochs=8),
        "trained at the judged size": replace(BASE, train_size=BASE.image_size),
        "128 pixels": replace(BASE, image_size=128),
    }
    return {
        **{name: Variant(recipe) for name, recipe in recipes.items()},
        "groups of race evened out": Variant(BASE, balance=True),
        "age and race learnt too": Variant(BASE, others=("age", "race")),
        "the same, weight 1": Variant(replace(BASE, auxiliary=1.0), others=("age", "race")),
        "one woman to five men": Variant(BASE, rare=True),
        "the same, class weights": Variant(replace(BASE, class_weights=True), rare=True),
    }


class Silent:
    """A watcher that looks away."""

    def reading(self, count: int) -> None: ...

    def batch(self, phase: str, epoch: int, done: int, total: int, loss: float) -> None: ...

    def epoch(self, epoch: Epoch, best: bool) -> None: ...

    def note(self, message: str) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """What one recipe gave on the pictures held out. `right`: (N,) bool, the same pictures for all recipes.

    `worst` is the accuracy of the race and class that has the lowest.
    """

    right: NDArray[np.bool_]
    worst: float
    flipped: float
    small: float
    log_loss: float
    calibration_error: float
    seconds: float


@click.command()
@click.argument("faces", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("labels", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("weights", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--pictures", default=6000, show_default=True, help="Most pictures to train on.")
@click.option("--only", multiple=True, help="Rows to measure besides the base; default all.")
def main(faces: Path, labels: Path, weights: Path, out: Path | None, pictures: int, only: tuple[str, ...]) -> None:
    """Print the table, and write it to FILE after every row."""
    data = load_dataset(faces / "train", labels_file=labels, seed=0)
    data = replace(data, train=data.train[:: -(-len(data.train) // pictures)])
    judged = data.val + data.test
    machine = Machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"), usable_cores())

    def measure(variant: Variant) -> Outcome:
        recipe, taken = variant.recipe, data
        if variant.rare:
            first = [sample for sample in data.train if sample.label == 0]
            rest = [sample for sample in data.train if sample.label != 0]
            taken = replace(data, train=(*first[::5], *rest))
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)

            def squares(samples: Sequence[Sample], preprocessing: Preprocessing) -> Squares:
                return Squares([data.path(sample) for sample in samples], preprocessing, folder)

            torch.manual_seed(recipe.seed)
            network = Network(len(data.labels))
            load_initial_weights(network, str(weights))
            started = time.monotonic()
            train = squares(taken.train, recipe.source), _truth(taken.train)
            held, truth = squares(judged, recipe.preprocessing), _truth(judged)
            val = Labelled(squares(data.val, recipe.preprocessing), _truth(data.val))
            groups = groups_of(taken, "race") if variant.balance else None
            others = others_of(taken, variant.others) if variant.others else None
            fit(network, Labelled(*train, groups, others), val, recipe, machine, folder / "state.pt", Silent())
            seconds = time.monotonic() - started
            logits = predict_logits(network, held, machine)
            mirrored = predict_logits(network, held, machine, view=lambda found: found.flip(2))
            torch.manual_seed(0)
            shrunk = partial(zoom_out, side=SMALL_FACE, size=recipe.image_size)
            small = predict_logits(network, squares(judged, recipe.source), machine, view=shrunk)
        chosen = len(data.val)
        temperature = fit_temperature(logits[:chosen], truth[:chosen].numpy())
        shares = torch.from_numpy(logits / temperature).double().softmax(1).numpy()
        right = shares.argmax(1) == truth.numpy()
        races = np.array([f"{sample.label} {sample.attributes['race']}" for sample in judged])
        return Outcome(
            right=right,
            worst=min(float(right[races == race].mean()) for race in np.unique(races)),
            flipped=float(((logits + mirrored).argmax(1) == truth.numpy()).mean()),
            small=float((small.argmax(1) == truth.numpy()).mean()),
            log_loss=float(-np.log(shares[np.arange(len(truth)), truth]).mean()),
            calibration_error=expected_calibration_error(shares.max(1), right),
            seconds=seconds,
        )

    lines = [
        "# What each ingredient is worth",
        "",
        f"{len(data.train)} pictures to train on, {len(judged)} to judge by, at {BASE.image_size} pixels, "
        f"{BASE.adapt_epochs} + {BASE.fine_epochs} epochs from ImageNet weights; "
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {machine.device.type}, "
        f"torch {torch.__version__}. Differences to the base in points of "
        "accuracy, with 95% intervals from resampled pictures; they do not hold the chance of another seed.",
        "",
        f"| recipe | accuracy | difference | worst race and class | flip averaged | face at {SMALL_FACE:.0%} "
        "| log-loss | ECE | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    base: Outcome | None = None
    for name, variant in variants().items():
        if only and name not in (*only, "base"):
            continue
        outcome = measure(variant)
        base = base or outcome
        lines.append(
            f"| {name} | {outcome.right.mean():.2%} | {_difference(outcome.right, base.right)} "
            f"| {outcome.worst:.2%} | {outcome.flipped:.2%} | {outcome.small:.2%} "
            f"| {outcome.log_loss:.4f} | {outcome.calibration_error:.3f} | {outcome.seconds:.0f} |"
        )
        click.echo(lines[-1])
        if out:
            out.write_text("\n".join(lines) + "\n")


def _truth(samples: Sequence[Sample]) -> Tensor:
    return torch.tensor([sample.label for sample in samples])


def _difference(one: NDArray[np.bool_], base: NDArray[np.bool_]) -> str:
    """Paired bootstrap of the difference in points."""
    change = one.astype(float) - base
    drawn = np.random.default_rng(0).integers(0, len(change), (RESAMPLES, len(change)))
    low, high = np.percentile(change[drawn].mean(1), [2.5, 97.5]) * 100
    return f"{change.mean() * 100:+.2f} [{low:+.2f}, {high:+.2f}]"


if __name__ == "__main__":
    main()
