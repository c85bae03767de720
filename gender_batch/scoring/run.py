"""Score pictures: paths in, one row each out, in the same order, in constant memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from gender_batch.faces.fetch import GET_IT, SHA256, DetectorError, find_detector, verified
from gender_batch.faces.look import LOOKING, FaceSearch
from gender_batch.model.metadata import Metadata
from gender_batch.model.session import Device, Model
from gender_batch.pictures.preprocessing import READING, Preprocessing
from gender_batch.pictures.read import reads_heif
from gender_batch.prediction import PROBABILITY_DIGITS, UNCERTAIN, Person, Prediction, Reason, Status, decide
from gender_batch.scoring.batches import GPU_BATCH, BatchInference
from gender_batch.scoring.cores import usable_cores
from gender_batch.scoring.pool import WorkerPool
from gender_batch.scoring.slots import SharedBytes
from gender_batch.scoring.worker import Outcome, Read, ReadAndInfer

NO_NUMBER = "the model's answer for it is no number"


@dataclass(frozen=True)
class Faces:
    """Whether to look for faces: "always", "never", or "auto" if the model is one of face crops and there is a
    detector. `detector` None: the one that `find_detector` finds. `every` face gets a row of its own; a picture
    without a face is answered as a `whole`."""

    when: str = "auto"
    detector: Path | None = None
    every: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Options:
    """How to score. `workers` None: one process per core this program may use. `model` None: the program's own, in
    the precision that suits the device."""

    model: Path | None = None
    device: str = "auto"
    workers: int | None = None
    picture_timeout: float = 30.0
    faces: Faces = Faces()


@dataclass
class Summary:
    """What a run has counted so far; sums of the confidences and of their squares, for mean and deviation."""

    pictures: int = 0
    failed: int = 0
    confidences: float = 0.0
    squared_confidences: float = 0.0
    statuses: Counter[Status] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)

    def add(self, row: Prediction) -> None:
        self.pictures += 1
        self.failed += row.status.failed
        self.statuses[row.status] += 1
        if row.label is not None:
            self.labels[row.label] += 1
            confidence = max(row.probabilities)
            self.confidences += confidence
            self.squared_confidences += confidence * confidence


class Scorer:
    """A model and its workers, ready to score. A context manager.

    Counts the `pictures` it has scored, and the seconds that `reading`, `decoding`, `finding` faces and `inference`
    took, of all workers together. `search` says how faces are looked for; None: pictures are taken as they are.

    Raises ModelError, NoGpuError, DetectorError when made; PoolError, GpuError from `rows`.
    """

    def __init__(self, options: Options) -> None:
        # On a CPU the workers infer; this session is opened for its metadata, and to see which device there is.
        self._model = Model(options.model, options.device, threads=1)
        self._faces = options.faces
        self.search = _face_search(options.faces, self.metadata.pictures)
        spec = self.metadata.preprocessing
        self._batches = BatchInference(self._model) if self.device.name == "cuda" else None
        factory = Read(spec, self.search) if self._batches else self._on_cpu(spec)
        self.workers = options.workers or usable_cores()
        self.pictures, self.reading, self.decoding, self.finding, self.inference = 0, 0.0, 0.0, 0.0, 0.0
        side = spec.size if self._batches else None
        self._pool = WorkerPool(factory, self.workers, options.picture_timeout, side)

    def _on_cpu(self, spec: Preprocessing) -> ReadAndInfer:
        content: SharedBytes | bytes = self._model.content
        with suppress(OSError):  # no room to share it: each worker is sent its own, which starts them more slowly
            content = SharedBytes(self._model.content)
        return ReadAndInfer(self.model, content, spec, self.search)

    @property
    def model(self) -> Path:
        """The model file that is really used, by this process and by its workers."""
        return self._model.path

    @property
    def lacks_detector(self) -> str | None:
        """What to tell of a model of faces that gets whole pictures only because there is no detector."""
        if self.search or self._faces.when != "auto" or self.metadata.pictures != "face":
            return None
        return (
            "the model is one of faces, and there is no face detector: pictures are taken as face crops. "
            f"{GET_IT}; --faces never says that they are face crops"
        )

    @property
    def batch(self) -> int:
        """Pictures that are inferred at a time; fewer than `batch_wanted` where a GPU has no memory for these."""
        return self._batches.size if self._batches else 1

    @property
    def batch_wanted(self) -> int:
        return GPU_BATCH if self._batches else 1

    @property
    def metadata(self) -> Metadata:
        return self._model.metadata

    @property
    def device(self) -> Device:
        return self._model.device

    def digest(self) -> str:
        """Stands for all that decides an answer: the model file, in which threshold and preprocessing are written,
        how this version reads and resizes pictures, finds faces and chooses among them, and what is installed to read
        HEIC."""
        digest = f"{self._model.digest()} {READING}{' heif' if reads_heif() else ''}"
        if not self.search:
            return digest
        asked = f"{'every' if self.search.every else 'main'} {'whole' if self.search.whole else 'none'}"
        return f"{digest} faces {SHA256} {LOOKING} {asked}"

    def __enter__(self) -> Scorer:
        self._pool.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.__exit__(*exception)

    def rows(self, paths: Iterable[str]) -> Iterator[Prediction]:
        """One row per path, in their order."""
        outcomes = self._pool.outcomes(paths)
        if self._batches:
            outcomes = self._batches.answered(outcomes)
        for path, outcome in outcomes:
            self.pictures += 1
            self.reading += outcome.reading
            self.decoding += outcome.decoding
            self.finding += outcome.finding
            self.inference += outcome.inference
            yield self._row(path, outcome)

    def _row(self, path: str, outcome: Outcome) -> Prediction:
        of_each = outcome.probabilities or []
        if not all(map(math.isfinite, chain.from_iterable(of_each))):
            return Prediction(path, Status.CRASHED, error=NO_NUMBER, width=outcome.width, height=outcome.height)
        answers = [self._answer(values) for values in of_each]
        label, probabilities, reason = answers[0] if answers else (None, (), None)
        # Whom of several the picture is about cannot be told: their answers must agree, sure or not.
        if not (self.search and self.search.every) and len({values.index(max(values)) for values in of_each}) > 1:
            label, reason = UNCERTAIN, Reason.PEOPLE_DIFFER
        others = zip(answers[1:], outcome.boxes[1:], strict=True)
        return Prediction(
            path,
            outcome.status,
            label=label,
            probabilities=probabilities,
            faces=outcome.faces,
            width=outcome.width,
            height=outcome.height,
            error=outcome.error,
            box=outcome.boxes[0] if outcome.boxes else None,
            reason=reason,
            others=tuple([Person(other, shares, box, why) for (other, shares, why), box in others]),
        )

    def _answer(self, values: Sequence[float]) -> tuple[str, tuple[float, ...], Reason | None]:
        """Label, rounded probabilities and reason of one person."""
        probabilities = tuple([round(value, PROBABILITY_DIGITS) for value in values])
        label = decide(probabilities, self.metadata.labels, self.metadata.threshold)
        return label, probabilities, Reason.LOW_CONFIDENCE if label == UNCERTAIN else None


def _face_search(faces: Faces, pictures: str) -> FaceSearch | None:
    """How to look for faces with a model of these `pictures`; None: not at all. Raises DetectorError."""
    if faces.when == "never" or (faces.when == "auto" and pictures != "face"):
        return None
    detector = find_detector(faces.detector)
    if detector is None:
        if faces.when == "auto":
            return None
        raise DetectorError(f"--faces always: there is no face detector yet; {GET_IT}")
    verified(detector)  # here, and not in every worker first
    return FaceSearch(detector, faces.every, faces.whole)
