"""`gender-batch train`: fine-tune MobileNetV2 on labelled folders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gender_batch.cli.exits import Exit, fail, needing_extra, note, stopping_on_signals, telling
from gender_batch.cli.options import Numbers, detector_option
from gender_batch.cli.places import resolved
from gender_batch.outputs.publish import for_the_owner_alone

if TYPE_CHECKING:
    import torch

    from gender_batch.cli.progress import TrainingProgress
    from gender_batch.training.run import CrossValidation, Result


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="RUN",
    help="Folder of the run.  [default: runs/<date-time>]",
)
@click.option(
    "--init",
    default="embedded",
    show_default=True,
    metavar="embedded|imagenet|FILE",
    help="Features to start from: the program's own model's, torchvision's ImageNet ones (downloaded), "
    "or a state dict of mobilenet_v2 or a checkpoint, .pth or .safetensors. If a head comes with them, as with the "
    "program's own, the new head starts with its answers.",
)
@click.option(
    "--image-size",
    type=click.IntRange(32, 1024),
    help="Side of the square that the network sees, in pixels.  [default: 200 for faces, 288 for whole photos]",
)
@click.option(
    "--adapt-epochs",
    default=3,
    show_default=True,
    type=click.IntRange(0),
    help="Epochs of the adaptation: features frozen, new head.",
)
@click.option(
    "--fine-epochs",
    default=12,
    show_default=True,
    type=click.IntRange(0),
    help="Epochs of the fine-tuning: all weights.",
)
@click.option("--batch-size", default=32, show_default=True, type=click.IntRange(2), help="Pictures per step.")
@click.option(
    "--lr-adapt",
    default=3e-3,
    show_default=True,
    type=Numbers(0, min_open=True),
    help="Learning rate of the adaptation.",
)
@click.option(
    "--lr-fine",
    default=3e-4,
    show_default=True,
    type=Numbers(0, min_open=True),
    help="Largest learning rate of the fine-tuning.",
)
@click.option(
    "--group-by",
    metavar="REGEX",
    help="Searched in each picture's relative path; its first group names the person. "
    "All pictures of a person stay in one split.",
)
@click.option(
    "--labels",
    "labels_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="CSV",
    help="Column path, relative to DATA, and any of label, split (train, val, test) and group (the person); "
    "other columns, age for instance, give tables in the report.",
)
@click.option(
    "--folds",
    type=click.IntRange(2),
    metavar="K",
    help="Cross-validate: train K times, each time tested on another part of the people.",
)
@click.option("--allow-leaks", is_flag=True, help="Go on although a photo or a person is in two of the given splits.")
@click.option(
    "--class-weights",
    is_flag=True,
    help="Give every class the same weight, however few pictures it has: for data in which a class is rare.",
)
@click.option(
    "--balance",
    metavar="COLUMN",
    help="Give more weight to groups (the values of this column of --labels, within each class) with a higher loss.",
)
@click.option(
    "--auxiliary",
    multiple=True,
    metavar="COLUMN",
    help="Also learn this column of --labels, which makes better features; may be given several times.",
)
@click.option(
    "--target-precision",
    default=0.98,
    show_default=True,
    type=Numbers(0, 1, min_open=True),
    help="Accuracy to aim for among the answers that are given: below the confidence at which the validation pictures "
    "reach it, the answer is uncertain.",
)
@click.option(
    "--pictures",
    default="photo",
    show_default=True,
    type=click.Choice(["photo", "face"]),
    help="What DATA holds, and the model will expect: whole photos or face crops.",
)
@click.option(
    "--faces",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "never", "crop"]),
    help="crop: find the main face in each photo, cut it out as classify does, and train on that; "
    "auto: if there is a face detector and nearly all photos show a face.",
)
@detector_option
@click.option(
    "--attribution",
    "attributions",
    multiple=True,
    metavar="TEXT",
    help="Credit that the model file and its card must carry; may be given several times.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0, 2**32 - 1),
    help="Decides splits, order and augmentation.",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "cuda", "cpu"]),
    help="auto takes the GPU if torch can use it.",
)
@click.option("--resume", is_flag=True, help="Go on with the interrupted run in RUN.")
def train(
    data: Path, out: Path | None, init: str, image_size: int | None, adapt_epochs: int, fine_epochs: int,
    batch_size: int, lr_adapt: float, lr_fine: float, group_by: str | None, labels_file: Path | None,
    folds: int | None, allow_leaks: bool, class_weights: bool, balance: str | None, auxiliary: tuple[str, ...],
    target_precision: float, pictures: str, faces: str, detector: Path | None, attributions: tuple[str, ...],
    seed: int, device: str, resume: bool,
) -> None:  # fmt: skip
    """Fine-tune MobileNetV2 on the labelled photos in DATA.

    DATA holds train/<class>/... with optional val/ and test/, or <class>/... alone, which is then split.
    The class names are the folder names. Two phases: adaptation trains a new head on frozen features,
    fine-tuning trains all weights at a small rate. Of a training that starts from the program's own features or from
    a checkpoint, the mean of the weights before and after fine-tuning is kept; or those after it, if they are better
    and fine-tuning has helped by more than chance; or those before it, if the mean is worse by more than chance. Of any
    other, the best epoch, the last one or their mean, by validation loss.
    """
    if adapt_epochs + fine_epochs == 0:
        raise click.UsageError("--adapt-epochs and --fine-epochs cannot both be 0")
    if resume and out is None:
        raise click.UsageError("--resume needs --out RUN, the folder of the interrupted run")
    if out:
        resolved("--out", out)
    cropping = faces == "crop"
    looking = faces == "auto" and pictures == "photo"
    found = _detector(detector, needed=cropping) if cropping or looking else None
    folder = out or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")
    again = f"--resume goes on after the last finished epoch: --out {folder} --resume"
    with (
        _disk_errors_told(data, folder, again),
        stopping_on_signals(lambda: again if folder.exists() else "Nothing was written"),
        for_the_owner_alone(),
    ):
        with needing_extra("train"):
            import torch

            from gender_batch.training import run
            from gender_batch.training.network import WeightsError
            from gender_batch.training.order import IMAGE_SIZES, Order, suited
            from gender_batch.training.recipe import Machine, Recipe
            from gender_batch.training.samples import DatasetError
            from gender_batch.training.state import DamagedStateError
        from gender_batch.cli.progress import TrainingProgress
        from gender_batch.outputs.publish import LockedError
        from gender_batch.scoring.cores import usable_cores

        cores = usable_cores()
        torch.set_num_threads(min(cores, torch.get_num_threads()))  # it knows nothing of a container's quota
        machine = Machine(_device(device), workers=min(16, cores))
        try:
            if not folds:
                run.check_place(folder, resume)
            with TrainingProgress(folder) as progress:
                if looking:
                    cropping = _show_faces(data, group_by, labels_file, found, progress)
                sees = "face" if cropping else pictures
                recipe = Recipe(
                    image_size=image_size or IMAGE_SIZES[sees],
                    adapt_epochs=adapt_epochs,
                    fine_epochs=fine_epochs,
                    batch_size=batch_size,
                    lr_adapt=lr_adapt,
                    lr_fine=lr_fine,
                    class_weights=class_weights,
                    seed=seed,
                )
                order = Order(
                    data=data,
                    recipe=suited(recipe, init, cropping, sees),
                    init=init,
                    group_by=group_by,
                    labels_file=labels_file,
                    allow_leaks=allow_leaks,
                    balance=balance,
                    auxiliary=auxiliary,
                    target_precision=target_precision,
                    pictures=sees,
                    detector=found if cropping else None,
                    attributions=attributions,
                )
                if folds:
                    validated = run.cross_validate(order, folds, folder, machine, progress, resume)
                else:
                    result = run.train(order, folder, machine, progress, resume)
        except run.RunError as error:
            fail(str(error), Exit.USAGE)
        except LockedError as error:
            fail(str(error), Exit.LOCKED)
        except (DatasetError, WeightsError, DamagedStateError, FloatingPointError) as error:
            fail(str(error))
    with telling():
        if folds:
            _tell_folds(validated, folder)
        else:
            _tell(result, target_precision)


def _tell_folds(validated: CrossValidation, folder: Path) -> None:
    from gender_batch.evaluation.metrics import with_interval

    click.echo(f"accuracies of the folds {', '.join(f'{accuracy:.2%}' for accuracy in validated.accuracies)}")
    pictures, people = len(validated.answers), validated.people
    # A person who is not told apart counts as several, and the interval is too narrow.
    whose = f" of {people:,} people" if people < pictures else ", each counted as another person's (--group-by)"
    of = f"{pictures:,} pictures{whose}"
    click.echo(f"mean accuracy {with_interval(validated.mean, validated.interval)} of {of}")
    click.echo(f"reports and checkpoints in {folder}/fold-*; without --folds all the people train one model")


def _tell(result: Result, target_precision: float) -> None:
    from gender_batch.evaluation.metrics import with_interval

    for name, metrics in (("validation", result.val), ("test", result.test)):
        if metrics:
            accuracy = with_interval(metrics.accuracy.value, metrics.accuracy.interval)
            click.echo(f"{name + ' accuracy':<19} {accuracy} of {metrics.pictures}")
    if not result.threshold.reached:
        note(f"--target-precision {target_precision} is not reached at any threshold")
    click.echo(f"uncertain below {result.threshold.value:g}: {(result.test or result.val).coverage} answered, "
               f"{(result.test or result.val).decided_right} of those right")  # fmt: skip
    click.echo(f"report and checkpoint in {result.folder}; next: gender-batch export {result.folder}")


@contextmanager
def _disk_errors_told(data: Path, folder: Path, how_to_go_on: str) -> Iterator[None]:
    """An error of the file system becomes one line that names the place, the cause and the remedy, and exit code 1."""
    from gender_batch.scoring.state import NO_ROOM, volume_of

    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            remedy = f"make room on {volume_of(folder)}, or let this user write more. {how_to_go_on}"
        else:
            remedy = f"this user must be able to read {data}, and to write {folder}, which --out names"
        cause = "Not a directory" if isinstance(error, FileExistsError) else error.strerror or error
        fail(f"{error.filename or folder}: {cause}; {remedy}")


def _show_faces(
    data: Path, group_by: str | None, labels_file: Path | None, detector: Path | None, progress: TrainingProgress
) -> bool:
    from gender_batch.faces.fetch import GET_IT
    from gender_batch.training import run

    if detector:
        return run.photos_show_faces(data, group_by, labels_file, detector, progress.note)
    progress.note(f"no face detector, so photos are taken whole; of people, faces are learnt better; {GET_IT}")
    return False


def _detector(named: Path | None, needed: bool) -> Path | None:
    from gender_batch.faces.fetch import GET_IT, DetectorError, find_detector, verified

    try:
        found = find_detector(named)
        if found:
            verified(found)
        elif needed:
            raise DetectorError(f"--faces crop: there is no face detector yet; {GET_IT}")
    except DetectorError as error:
        fail(str(error))
    return found


def _device(name: str) -> torch.device:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        fail("--device cuda: torch finds no usable CUDA GPU", Exit.NO_GPU)
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
