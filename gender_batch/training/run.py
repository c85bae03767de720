"""One training run: data in, a folder with the checkpoint and the report of it out."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gender_batch import __version__
from gender_batch.evaluation.gallery import Answer
from gender_batch.evaluation.metrics import Metrics, Proportion, Threshold, numbered
from gender_batch.faces.look import FaceSearch, Looker
from gender_batch.outputs.publish import locked, published
from gender_batch.pictures.preprocessing import Preprocessing
from gender_batch.pictures.read import PictureError
from gender_batch.training.crops import Crops, with_a_face
from gender_batch.training.dataset import Dataset, check_known, folds, load_dataset
from gender_batch.training.findings import METRICS, write_findings
from gender_batch.training.fit import Labelled, fit
from gender_batch.training.judge import HeldOut, judge, squares_of, true_classes
from gender_batch.training.network import Checkpoint, Network, load_initial_weights
from gender_batch.training.order import IMAGE_SIZES, Order
from gender_batch.training.recipe import Machine
from gender_batch.training.samples import RUNS, DatasetError, find_samples
from gender_batch.training.state import State, Watcher

CHECKPOINT = "checkpoint.safetensors"
CONFIG = "config.json"
STATE = "state.pt"
LOOKED_AT = 60
"""Photos that are searched for faces before it is decided whether faces are to be learnt."""

MOSTLY = 0.9
"""Share of them that must show one. On 2,310 photos of people a model of their faces was right about 96.5%, one of
whole photos about 94.6%; but photos without a face are lost to it."""

RARE = 3
"""How many times the pictures of the rarest class the commonest must have before class weights are recommended. After
five men to a woman, 69.0% of as many women as men were answered right without them, 77.0% with them."""

CROPS = "faces"
"""The folder of the faces that were cut out, in the run's or, for all folds, in that of the cross-validation."""

PICTURES = "pictures_in"
"""Under this name the config says where the pictures are that were trained on, the data, or their faces: as seen from
the run."""

FOLDS = "folds.json"


class RunError(Exception):
    """The run's folder is not what the command expects. The message says which option to add."""


@dataclass(frozen=True)
class Result:
    """What came of it. `test` is None where no picture was left for a test; `answers` are those of the last split."""

    folder: Path
    val: Metrics
    test: Metrics | None
    threshold: Threshold
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class CrossValidation:
    """Results of all folds, every picture tested once."""

    folder: Path
    results: tuple[Result, ...]

    @property
    def answers(self) -> list[Answer]:
        return [answer for result in self.results for answer in result.answers]

    @property
    def people(self) -> int:
        return len({answer.group for answer in self.answers})

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the accuracy on all pictures, 0..1."""
        people = numbered(answer.group for answer in self.answers)
        return Proportion.of([answer.right for answer in self.answers], people).interval

    @property
    def accuracies(self) -> list[float]:
        return [result.test.accuracy.value for result in self.results if result.test]

    @property
    def mean(self) -> float:
        """Mean of the folds' accuracies, 0..1."""
        return float(np.mean(self.accuracies))


def train(order: Order, folder: Path, machine: Machine, watcher: Watcher, resume: bool = False) -> Result:
    """Train as ordered and leave everything in `folder`.

    With `resume` an interrupted run of the same order goes on after its last finished epoch.
    Raises RunError, LockedError, DatasetError, WeightsError, DamagedStateError, FloatingPointError, OSError.
    """
    with _alone(folder, order.data):
        _prepare(folder, order, resume)
        result = _train_on(_load(order, folder, watcher), order, folder, machine, watcher)
        (folder / STATE).unlink(missing_ok=True)
        return result


def photos_show_faces(
    data: Path, group_by: str | None, labels_file: Path | None, detector: Path, note: Callable[[str], None]
) -> bool:
    """Whether most of some photos that are looked at show a face, so that faces should be cut out and learnt; which it
    is, is noted. Raises DatasetError."""
    found = find_samples(data, group_by, labels_file)
    names = sorted(sample.name for samples in found.splits.values() for sample in samples)
    if not names:
        return False  # training tells which classes are empty
    looked_at = [str(data / name) for name in names[:: -(-len(names) // LOOKED_AT)]]
    any_size = Preprocessing(IMAGE_SIZES["face"], IMAGE_SIZES["face"])
    count = with_a_face(looked_at, Looker(FaceSearch(detector), any_size))
    seen = f"{count} of {len(looked_at)} photos that were looked at show a face"
    if count < MOSTLY * len(looked_at):
        note(f"{seen}: all are taken whole; --faces crop cuts faces out all the same")
        return False
    note(f"{seen}: faces are cut out and learnt; --faces never takes photos whole")
    return True


def cross_validate(
    order: Order, count: int, folder: Path, machine: Machine, watcher: Watcher, resume: bool = False
) -> CrossValidation:
    """Train `count` times as ordered, each time tested on another part of the groups; a run per fold in `folder`.

    With `resume` an interrupted validation goes on: folds keep their states until all are done. Raises as `train`.
    """
    with _alone(folder, order.data):
        if resume and not folder.exists():
            raise RunError(f"{folder}: no run to resume; leave --resume out")
        if (folder / FOLDS).exists():
            for state in folder.glob(f"fold-*/{STATE}"):  # of a validation that was killed in its last moment
                state.unlink()
            raise RunError(f"{folder}: holds a finished cross-validation; name another folder with --out")
        for part in sorted(folder.glob("fold-*")):  # before the pictures are read, which takes its time
            _check(part, order, resume and (part / STATE).exists())
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        data = _load(order, folder, watcher, pooled=True)
        results = []
        for number, fold in enumerate(folds(data, count, order.recipe.seed), 1):
            watcher.note(f"fold {number} of {count}")
            part = folder / f"fold-{number}"
            _prepare(part, order, resume and (part / STATE).exists(), data.crops)
            results.append(_train_on(fold, order, part, machine, watcher))
        validated = CrossValidation(folder, tuple(results))
        content = {
            "folds": validated.accuracies,
            "mean_accuracy": validated.mean,
            "interval_95": list(validated.interval),
            "pictures": len(validated.answers),
            "groups": validated.people,
        }
        with published(folder / FOLDS) as file:  # from here on it is finished
            file.write((json.dumps(content, indent=2) + "\n").encode())
        for result in results:
            (result.folder / STATE).unlink(missing_ok=True)
        return validated


def groups_of(data: Dataset, column: str) -> Tensor:
    """Indices (N,) of the groups of an attribute by class, of the training pictures. Raises DatasetError."""
    check_known(data.root, data.train, column)
    keys = [f"{sample.label} {sample.attributes.get(column, '')}" for sample in data.train]
    return torch.from_numpy(np.unique(np.array(keys), return_inverse=True)[1])


def others_of(data: Dataset, names: Sequence[str]) -> Tensor:
    """Indices (N, columns) of the values of attributes of the training pictures, -1 unknown. Raises DatasetError."""
    columns = []
    for name in names:
        check_known(data.root, data.train, name)
        found = [sample.attributes.get(name, "") for sample in data.train]
        index = {value: number for number, value in enumerate(sorted(set(found) - {""}))}
        columns.append(torch.tensor([index.get(value, -1) for value in found]))
    return torch.stack(columns, 1)


def _load(order: Order, folder: Path, watcher: Watcher, pooled: bool = False) -> Dataset:
    torch.manual_seed(order.recipe.seed)
    # Checked before the pictures are read: a wrong --init should not cost minutes.
    load_initial_weights(Network(1), order.init)
    crops = None
    if order.detector:
        crops = Crops((folder / CROPS).resolve(), Looker(FaceSearch(order.detector), order.preprocessing()))
    data = load_dataset(
        order.data,
        group_by=order.group_by,
        labels_file=order.labels_file,
        seed=order.recipe.seed,
        allow_leaks=order.allow_leaks,
        pooled=pooled,
        columns=(*order.auxiliary, *((order.balance,) if order.balance else ())),
        crops=crops,
        shorter_side=order.recipe.source.shorter_side,
        advance=watcher.reading,
    )
    for name, reason in data.unreadable:
        watcher.note(f"left out: {name}: {reason}")
    for note in data.notes:
        watcher.note(note)
    return data


def _train_on(data: Dataset, order: Order, folder: Path, machine: Machine, watcher: Watcher) -> Result:
    recipe = order.recipe
    learnt_from = _learnt_from(data)
    if (folder / STATE).exists() and State.load(folder / STATE).data != learnt_from:
        raise RunError(
            f"{folder}: was begun with other data or splits, and might be tested on what it has learnt; "
            "start again, with another --out"
        )
    people = f", of {len({sample.group for sample in data.all})} people in all" if _grouped_by(order, data) else ""
    watcher.note(
        f"{len(data.train)} pictures to train on, {len(data.val)} to validate, {len(data.test)} to test{people}; "
        f"classes {', '.join(data.labels)}; on {machine.device.type} in {str(machine.precision)[6:]}"
    )
    counts = Counter(data.labels[sample.label] for sample in data.train)
    (common, most), *_, (rare, least) = counts.most_common()
    if most >= RARE * least and not recipe.class_weights:
        watcher.note(f"{common} has {most} pictures to train on, {rare} {least}: --class-weights lets them count alike")
    torch.manual_seed(recipe.seed)
    network = Network(len(data.labels))
    origin = load_initial_weights(network, order.init)

    groups = groups_of(data, order.balance) if order.balance else None
    others = others_of(data, order.auxiliary) if order.auxiliary else None
    try:
        held_out = HeldOut.of(data, recipe, folder, order.pictures)
        learnt = squares_of(data, data.train, recipe.source, folder)
        state = fit(
            network,
            Labelled(learnt, torch.from_numpy(true_classes(data.train)), groups, others),
            Labelled(
                held_out.squares["val"],
                torch.from_numpy(true_classes(data.val)),
                people=torch.from_numpy(numbered(sample.group for sample in data.val)),
            ),
            recipe,
            machine,
            folder / STATE,
            watcher,
            origin.head,
            learnt_from,
        )
        # From here on the weights stand.
        findings = judge(network, held_out, data, recipe, machine, order.target_precision)
    except PictureError as error:
        raise DatasetError(f"{data.root}: a picture changed while it was used ({error}); start again") from None

    figures = findings.figures(data)
    training = {
        "program": f"gender-batch {__version__}",
        "init": order.init if order.init in ("embedded", "imagenet") else Path(order.init).name,
        "init_training": origin.training,
        "recipe": asdict(recipe),
        "epochs": len(state.history),
        "kept": state.kept,
        "pictures": {"train": len(data.train), "val": len(data.val), "test": len(data.test)},
        "balance": order.balance,
        "auxiliary_columns": list(order.auxiliary),
        "groups": _grouped_by(order, data),
        "data_sha256": data.digest,
    }
    Checkpoint(
        network=network.cpu(),
        labels=data.labels,
        preprocessing=order.preprocessing(),
        temperature=findings.temperature,
        threshold=findings.threshold.value,
        pictures=order.pictures,
        training=training,
        figures=figures,
        attributions=tuple(dict.fromkeys((*order.attributions, *origin.attributions))),
    ).save(folder / CHECKPOINT)
    write_findings(folder, data, held_out, findings, figures, state.history, recipe, machine)
    metrics = findings.metrics
    return Result(folder, metrics["val"], metrics.get("test"), findings.threshold, findings.answers)


def _learnt_from(data: Dataset) -> str:
    """SHA-256 over the pictures of the data and the names of those that are trained on."""
    return hashlib.sha256(json.dumps([data.digest, [sample.name for sample in data.train]]).encode()).hexdigest()


@contextmanager
def _alone(folder: Path, data: Path) -> Iterator[None]:
    """No other training writes into the folder meanwhile, nor is it among the pictures, where the next training would
    take it for a class. Raises RunError, LockedError."""
    folder, data = folder.resolve(), data.resolve()
    if folder.is_relative_to(data) and not folder.is_relative_to(data / RUNS):
        raise RunError(f"{folder}: lies in the data; name a folder outside of {data}, or in its {RUNS}/, with --out")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        yield


def _grouped_by(order: Order, data: Dataset) -> str | None:
    """What told people apart; None where every picture counted as a person of its own."""
    if all(sample.group == sample.name for sample in data.all):
        return None
    return order.group_by or (order.labels_file.name if order.labels_file else None)


def check_place(folder: Path, resume: bool) -> None:
    """Raises RunError where no run must go on, or begin, in the folder, whatever is ordered."""
    config = folder / CONFIG
    unfinished = (folder / STATE).exists()  # it goes last: a checkpoint beside it may lack its report
    if unfinished and not resume:
        raise RunError(f"{folder}: holds an unfinished run; add --resume, or name another folder with --out")
    if (folder / CHECKPOINT).exists() and not unfinished:
        raise RunError(f"{folder}: holds a finished run; name another folder with --out")
    if not resume and config.exists() and PICTURES not in config.read_text(errors="replace"):
        raise RunError(f"{config}: is no training's, and would be overwritten; name another folder with --out")
    if not config.exists() and (folder / METRICS).exists():
        raise RunError(f"{folder}: holds a report of `evaluate`, which must stay; name another folder with --out")
    if resume and not config.exists():
        raise RunError(f"{folder}: no run to resume; leave --resume out")


def _check(folder: Path, order: Order, resume: bool) -> None:
    """Raises RunError where the run must not go on, or begin, in the folder."""
    check_place(folder, resume)
    if resume:
        try:
            before = dict(json.loads((folder / CONFIG).read_text()))
        except (ValueError, TypeError) as error:
            raise RunError(
                f"{folder / CONFIG}: damaged ({error}), so that the run cannot go on; start again with another --out"
            ) from None
        changed = [name for name, value in order.to_dict().items() if before.get(name) != value]
        if changed:
            raise RunError(f"{folder}: was begun with another {', '.join(changed)}; --resume needs the same")


def _prepare(folder: Path, order: Order, resume: bool, crops: Path | None = None) -> None:
    _check(folder, order, resume)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # report and gallery show people
    faces = crops or (folder / CROPS if order.detector else None)
    # Faces move with the run, or with the cross-validation.
    place = os.path.relpath(faces.resolve(), folder.resolve()) if faces else str(order.data.resolve())
    content = json.dumps({**order.to_dict(), PICTURES: place}, indent=2) + "\n"
    with published(folder / CONFIG) as file:  # half of it, on a full disk, could not be resumed
        file.write(content.encode())
