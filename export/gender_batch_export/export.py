"""One export: the graph, its lower precisions, what each has proved, and the card of all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gender_batch.evaluation.groups import by_group
from gender_batch.evaluation.metrics import Proportion, measure, numbered
from gender_batch.model.metadata import ModelError
from gender_batch.model.session import Model, NoProbabilitiesError
from gender_batch.outputs.publish import locked, publish_all, temporary_folder
from gender_batch.pictures.preprocessing import Pixels, Preprocessing
from gender_batch.training.network import Checkpoint
from gender_batch.training.run import CHECKPOINT, FOLDS, STATE
from gender_batch_export.card import Variant, model_card, told_of_training
from gender_batch_export.graph import metadata_of, write_graph
from gender_batch_export.heldout import LEAST_JUDGED, HeldOut, check_answers, held_out
from gender_batch_export.parity import (
    LIMITS,
    Agreement,
    Parity,
    agreement,
    compare,
    served_probabilities,
    torch_probabilities,
)
from gender_batch_export.precision import FLOAT_CONVOLUTIONS, Precision, overflows, write_fp16, write_int8

MODEL = "model.onnx"
"""The model file's name in the folder of its run."""


class ExportError(Exception):
    """The run cannot be exported, or its export did not pass the gate."""


@dataclass(frozen=True)
class Written:
    """A file that passed its gate and is in its place, and how well it passed."""

    precision: Precision
    file: Path
    proof: str


@dataclass(frozen=True)
class Refused:
    """A precision that is not written, and why. `earlier` is the file of an earlier export that is still there."""

    precision: Precision
    reason: str
    earlier: Path | None


@dataclass(frozen=True)
class Exported:
    """What came of an export; the card tells of the written files. `gone` counts held-out pictures that could not be
    read any more: it is not proved on these."""

    written: tuple[Written, ...]
    refused: tuple[Refused, ...]
    card: Path
    gone: int


@dataclass(frozen=True)
class _Candidate:
    """A file that passed, not yet in its place."""

    precision: Precision
    file: Path
    proof: Parity | Agreement
    device: str = "cpu"
    float_convolutions: int = 0

    def __str__(self) -> str:
        told = str(self.proof)
        if self.float_convolutions:
            told += f" (first {self.float_convolutions} convolutions in float32)"
        if self.precision is Precision.FP16 and self.device == "cpu":
            told += " (judged on a CPU, which computes float16 in float32)"
        return told


@dataclass(frozen=True)
class _Gate:
    """What a lower precision is made and judged with: paths, their true classes, the checkpoint's probabilities
    (N, classes) of them, and other pictures for calibration."""

    pictures: Sequence[str]
    truth: Sequence[int]
    expected: NDArray[np.float32]
    calibration: Sequence[str]
    preprocessing: Preprocessing

    def pixels(self, pictures: Sequence[str]) -> Iterator[Pixels]:
        spec = self.preprocessing
        return (spec.apply(spec.read(path).image) for path in pictures)


def newest_run(folder: Path = Path("runs")) -> Path:
    """The run below `folder` whose checkpoint is the newest. Raises ExportError."""
    checkpoints = list(folder.glob(f"*/{CHECKPOINT}"))
    if not checkpoints:
        raise ExportError(f"{folder}: no finished run in it; name one: gender-batch export RUN, or train first")
    return max(checkpoints, key=lambda path: path.stat().st_mtime_ns).parent


def place(out: Path, precision: Precision) -> Path:
    """Where the file of a precision goes: FILE.onnx for float32, FILE.int8.onnx and FILE.fp16.onnx beside it."""
    return out if precision is Precision.FP32 else out.with_suffix(f".{precision}.onnx")


def export(run: Path, out: Path | None = None, precisions: Sequence[Precision] = (Precision.FP32,)) -> Exported:
    """Write the model in each of the precisions that passes its gate, and one card beside `out` (RUN/model.onnx).

    float32 is always made and proved: the others are made of it. Raises ExportError if it fails, or if nothing that
    was asked for passes; WeightsError, HeldOutError, ModelError, LockedError, OSError. Then earlier files in these
    places are left as they were.
    """
    if (run / FOLDS).is_file() and not (run / CHECKPOINT).is_file():  # trained there once more, it has both
        raise ExportError(
            f"{run}: a cross-validation, whose folds are to be judged, not used; train once more without --folds, into "
            f"another --out, or name a fold: {run / 'fold-1'}"
        )
    if not (run / CHECKPOINT).is_file():
        raise ExportError(f"{run}: no {CHECKPOINT} in it; name the folder of a finished `gender-batch train`")
    checkpoint = Checkpoint.load(run / CHECKPOINT)
    if (run / STATE).exists():
        raise ExportError(f"{run}: its training is not finished; `gender-batch train ... --out {run} --resume` goes on")
    try:
        told_of_training(metadata_of(checkpoint))  # now, and not after all proofs
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ExportError(
            f"{run / CHECKPOINT}: what it says of its training is not what a card tells ({error!r}); was it made by "
            "`gender-batch train`? Train again"
        ) from None
    pictures = held_out(run, checkpoint.labels, checkpoint.preprocessing, checkpoint.training.get("pictures"))
    out = out or run / MODEL
    with locked(out), temporary_folder(out) as folder:
        float32 = _float32(checkpoint, folder, pictures)
        candidates, refused = [float32], []
        lower = [precision for precision in dict.fromkeys(precisions) if precision is not Precision.FP32]
        gate = _gate(checkpoint, pictures) if lower else ""
        for precision in lower:
            result = _lower(float32.file, precision, gate) if isinstance(gate, _Gate) else gate
            if isinstance(result, _Candidate):
                candidates.append(result)
            else:
                earlier = place(out, precision)
                refused.append(Refused(precision, result, earlier if earlier.exists() else None))
        wanted = [candidate for candidate in candidates if candidate.precision in precisions]
        if not wanted:
            raise ExportError("; ".join(f"{item.precision}: {item.reason}" for item in refused))

        variants = _measure(candidates, wanted, out, pictures)
        text = model_card(Model(float32.file).metadata, variants, pictures, out.stem, isinstance(gate, _Gate))
        (folder / "card").write_text(text, encoding="utf-8")
        # All have passed.
        card = out.with_suffix(".md")
        places = {candidate.file: place(out, candidate.precision) for candidate in wanted}
        publish_all({**places, folder / "card": card})
    return Exported(
        tuple(Written(item.precision, place(out, item.precision), str(item)) for item in wanted),
        tuple(refused),
        card,
        pictures.gone,
    )


def _float32(checkpoint: Checkpoint, folder: Path, pictures: HeldOut) -> _Candidate:
    file = folder / f"{Precision.FP32}.onnx"
    paths = [picture.path for picture in pictures.proof]
    expected = torch_probabilities(checkpoint, paths)
    check_answers(expected, pictures.proof)
    write_graph(checkpoint, file)
    try:
        parity = compare(expected, file, paths)
    except ModelError as error:
        raise ExportError(f"the checkpoint cannot be served: {error}; it is not written") from None
    if not parity.passed:
        raise ExportError(f"the file does not give the checkpoint's answers ({parity}); it is not written")
    return _Candidate(Precision.FP32, file, parity)


def _gate(checkpoint: Checkpoint, pictures: HeldOut) -> _Gate | str:
    """Or why there is none."""
    if len(pictures.gate) < LEAST_JUDGED:
        return (
            f"{len(pictures.gate)} readable held-out pictures are left to judge it on, and of fewer than "
            f"{LEAST_JUDGED} chance decides; train with more for validation, half of which calibrate, and for the test "
            "(in val/ and test/, or by the column `split` of --labels); it is not written"
        )
    paths = [picture.path for picture in pictures.gate]
    expected = torch_probabilities(checkpoint, paths)
    check_answers(expected, pictures.gate)
    return _Gate(
        paths,
        [picture.label for picture in pictures.gate],
        expected,
        [picture.path for picture in pictures.calibration],
        checkpoint.preprocessing,
    )


def _lower(float32: Path, precision: Precision, gate: _Gate) -> _Candidate | str:
    """The candidate with the fewest float convolutions that passes, or why none does."""
    file = float32.with_name(f"{precision}.onnx")
    if precision is Precision.INT8 and not gate.calibration:
        return (
            "no readable validation picture is left to calibrate it with, beside one that judges; train with more for "
            "validation (in val/, or by the column `split` of --labels); it is not written"
        )
    for float_convolutions in FLOAT_CONVOLUTIONS[precision]:
        if precision is Precision.FP16:
            write_fp16(float32, file, float_convolutions)
        else:
            write_int8(float32, file, float_convolutions, np.stack(list(gate.pixels(gate.calibration))))
        try:
            model = _open(file, precision)
            served = served_probabilities(model, gate.pictures)
        except NoProbabilitiesError:
            told = "numbers beyond the range of the format"
            continue
        except ModelError as error:
            return f"{error}; it is not written"
        finite = precision is not Precision.FP16 or not overflows(file, gate.pixels(gate.pictures))
        proof = agreement(served, gate.expected, gate.truth, LIMITS[precision], finite)
        candidate = _Candidate(precision, file, proof, model.device.name, float_convolutions)
        if proof.passed:
            return candidate
        told = str(candidate)
    return f"does not give the checkpoint's answers: {told}; it is not written"


def _open(file: Path, precision: Precision) -> Model:
    """On the device the precision is made for: float16 on a GPU if there is one."""
    return Model(file, "auto" if precision is Precision.FP16 else "cpu")


def _measure(
    candidates: Sequence[_Candidate], wanted: Sequence[_Candidate], out: Path, pictures: HeldOut
) -> list[Variant]:
    """Each file's figures, from its own answers over the same pictures."""
    paths = [picture.path for picture in pictures.figures]
    truth = np.array([picture.label for picture in pictures.figures])
    people = [picture.group for picture in pictures.figures]
    attributes = [picture.attributes for picture in pictures.figures]
    variants = []
    for candidate in candidates:
        model = _open(candidate.file, candidate.precision)
        labels = model.metadata.labels
        probabilities = served_probabilities(model, paths)
        answers = probabilities.argmax(1)
        if candidate.precision is Precision.FP32:
            check_answers(probabilities, pictures.figures)
            float32 = answers
        right = (answers == truth).tolist()
        variants.append(
            Variant(
                precision=candidate.precision.value,
                file=place(out, candidate.precision).name if candidate in wanted else None,
                size=candidate.file.stat().st_size,
                digest=model.digest(),
                proof=str(candidate),
                metrics=measure(probabilities, truth, labels, model.metadata.threshold, people),
                agreement=Proportion.of(answers == float32, numbered(people)),
                groups=by_group(attributes, [labels[index] for index in truth], right, people),
            )
        )
    return variants
