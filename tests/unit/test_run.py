"""Scoring with a model so small that its answer is known: the mean brightness is the probability."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

onnx = pytest.importorskip("onnx")

from gender_batch.faces.fetch import DetectorError
from gender_batch.faces.look import FaceSearch
from gender_batch.model.metadata import KEY, Metadata, ModelError
from gender_batch.model.session import Model, OutOfGpuMemoryError
from gender_batch.pictures.preprocessing import Preprocessing
from gender_batch.prediction import Person, Prediction, Reason, Status
from gender_batch.scoring import batches, run
from gender_batch.scoring.batches import BatchInference
from gender_batch.scoring.pool import WorkerPool
from gender_batch.scoring.run import Faces, Options, Scorer, Summary
from gender_batch.scoring.worker import Outcome, Read

METADATA = Metadata(
    labels=("bright", "dark"),
    preprocessing=Preprocessing(size=4, resize=4),
    pictures="photo",
    threshold=0.7,
    training={},
    figures={},
    attributions=(),
    program="test",
)


@pytest.fixture(scope="module")
def brightness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """p(bright) = mean of all pixels / 255, p(dark) = 1 - p(bright)."""
    node = onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [
            node("Cast", ["pictures"], ["floats"], to=onnx.TensorProto.FLOAT),
            node("Flatten", ["floats"], ["flat"], axis=1),
            node("ReduceMean", ["flat", "axes"], ["mean"], keepdims=1),
            node("Div", ["mean", "white"], ["bright"]),
            node("Sub", ["one", "bright"], ["dark"]),
            node("Concat", ["bright", "dark"], ["probabilities"], axis=1),
        ],
        "brightness",
        [onnx.helper.make_tensor_value_info("pictures", onnx.TensorProto.UINT8, ["batch", 4, 4, 3])],
        [onnx.helper.make_tensor_value_info("probabilities", onnx.TensorProto.FLOAT, ["batch", 2])],
        [
            onnx.numpy_helper.from_array(np.array([1], np.int64), "axes"),
            onnx.numpy_helper.from_array(np.array(255, np.float32), "white"),
            onnx.numpy_helper.from_array(np.array(1, np.float32), "one"),
        ],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.helper.set_model_props(model, {KEY: METADATA.to_json()})
    path = tmp_path_factory.mktemp("model") / "brightness.onnx"
    onnx.save(model, path)
    return path


def grey(path: Path, value: int) -> str:
    Image.new("L", (8, 8), value).save(path)
    return str(path)


def test_rows_follow_the_threshold_and_the_order(brightness: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    paths = [grey(tmp_path / f"{number}.png", value) for number, value in enumerate((255, 0, 128, 180))]
    paths.insert(2, str(tmp_path / "broken.png"))
    summary = Summary()
    with Scorer(Options(model=brightness, device="cpu", workers=2)) as scorer:
        rows = list(scorer.rows(paths))
    for row in rows:
        summary.add(row)
    assert [row.path for row in rows] == paths
    assert [row.label for row in rows] == ["bright", "dark", None, "uncertain", "bright"]
    assert rows[3].probabilities == (0.501961, 0.498039)
    assert rows[2].status is Status.CORRUPT
    assert (summary.pictures, summary.failed) == (5, 1)
    assert summary.labels == {"bright": 2, "dark": 1, "uncertain": 1}


def test_the_label_follows_from_the_probabilities_of_its_row(brightness: Path, tmp_path: Path) -> None:
    model = onnx.load(brightness)
    onnx.helper.set_model_props(model, {KEY: replace(METADATA, threshold=0.666667).to_json()})
    onnx.save(model, tmp_path / "model.onnx")
    with Scorer(Options(model=tmp_path / "model.onnx", device="cpu", workers=1)) as scorer:
        (row,) = scorer.rows([grey(tmp_path / "grey.png", 170)])  # 0.66666...
    assert (row.probabilities[0], row.label) == (0.666667, "bright")


def test_a_model_that_is_replaced_during_a_run_answers_to_its_end(brightness: Path, tmp_path: Path) -> None:
    """Also in a worker that is started afterwards."""
    model = tmp_path / "model.onnx"
    model.write_bytes(brightness.read_bytes())
    with Scorer(Options(model=model, device="cpu", workers=1)) as scorer:
        model.write_bytes(b"of another export")
        (row,) = scorer.rows([grey(tmp_path / "grey.png", 255)])
    assert (row.label, row.status) == ("bright", Status.OK)


def test_an_answer_that_is_no_number_is_that_picture_s_fault_and_no_label(brightness: Path, tmp_path: Path) -> None:
    """As where a GPU computes in float16, and one picture is too much for it."""
    model = onnx.load(brightness)
    output = model.graph.node[-1].output[0]
    model.graph.node[-1].output[0] = "before"
    # No root where bright has more than three quarters.
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0.75, np.float32), "limit"))
    model.graph.node.append(onnx.helper.make_node("Sub", ["limit", "bright"], ["left"]))
    model.graph.node.append(onnx.helper.make_node("Sqrt", ["left"], ["root"]))
    model.graph.node.append(onnx.helper.make_node("Sub", ["root", "root"], ["nothing"]))
    model.graph.node.append(onnx.helper.make_node("Add", ["before", "nothing"], [output]))
    onnx.save(model, tmp_path / "model.onnx")
    paths = [grey(tmp_path / f"{value}.png", value) for value in (140, 255, 120)]
    with Scorer(Options(model=tmp_path / "model.onnx", device="cpu", workers=1)) as scorer:
        rows = list(scorer.rows(paths))
    assert [row.status for row in rows] == [Status.OK, Status.CRASHED, Status.OK]
    assert (rows[1].label, rows[1].probabilities, rows[1].error) == (None, (), run.NO_NUMBER)
    assert (rows[1].width, rows[1].height) == (rows[0].width, rows[0].height)


def test_without_room_for_shared_memory_workers_have_the_model_all_the_same(
    brightness: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run, "SharedBytes", full)
    with Scorer(Options(model=brightness, device="cpu", workers=2)) as scorer:
        (row,) = scorer.rows([grey(tmp_path / "grey.png", 255)])
    assert (row.label, row.status) == ("bright", Status.OK)


def test_what_is_installed_for_heic_decides_an_answer(brightness: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = Scorer(Options(model=brightness, device="cpu"))
    digests = set()
    for reads_heif in (False, True):
        monkeypatch.setattr(run, "reads_heif", lambda answer=reads_heif: answer)
        digests.add(scorer.digest())
    assert len(digests) == 2


def test_another_way_of_reading_or_of_looking_for_faces_decides_an_answer(
    brightness: Path, detector: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorers = [Scorer(Options(model=brightness, faces=Faces(when, detector))) for when in ("never", "always")]
    digests = {scorer.digest() for scorer in scorers}
    # For what concerns faces, those who look for none are the same.
    for name, known in (("READING", 4), ("LOOKING", 5), ("SHA256", 6)):
        monkeypatch.setattr(run, name, "another")
        digests |= {scorer.digest() for scorer in scorers}
        assert len(digests) == known


def test_another_model_or_another_question_decides_an_answer(brightness: Path, detector: Path, tmp_path: Path) -> None:
    model = onnx.load(brightness)
    onnx.helper.set_model_props(model, {KEY: replace(METADATA, threshold=0.8).to_json()})
    onnx.save(model, tmp_path / "model.onnx")
    assert Scorer(Options(tmp_path / "model.onnx")).digest() != Scorer(Options(brightness)).digest()
    digests = set()
    for every in (False, True):
        for whole in (False, True):
            scorer = Scorer(Options(brightness, faces=Faces("always", detector, every, whole)))
            assert scorer.search == FaceSearch(detector, every=every, whole=whole)
            digests.add(scorer.digest())
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("pictures", "when", "looks"),
    [
        ("photo", "auto", False),
        ("photo", "always", True),
        ("face", "auto", True),
        ("face", "never", False),
    ],
)
def test_faces_are_looked_for_where_the_model_knows_them_or_where_that_is_asked_for(
    brightness: Path, detector: Path, tmp_path: Path, pictures: str, when: str, looks: bool
) -> None:
    model = onnx.load(brightness)
    onnx.helper.set_model_props(model, {KEY: replace(METADATA, pictures=pictures).to_json()})
    onnx.save(model, tmp_path / "model.onnx")
    with Scorer(Options(tmp_path / "model.onnx", "cpu", 1, faces=Faces(when, detector))) as scorer:
        (row,) = scorer.rows([grey(tmp_path / "grey.png", 255)])
    assert (row.status, row.faces) == ((Status.NO_FACE, 0) if looks else (Status.OK, None))
    assert scorer.lacks_detector is None


def test_a_detector_that_is_missing_or_another_file_is_told(brightness: Path, tmp_path: Path) -> None:
    model = onnx.load(brightness)
    onnx.helper.set_model_props(model, {KEY: replace(METADATA, pictures="face").to_json()})
    onnx.save(model, tmp_path / "model.onnx")
    scorer = Scorer(Options(tmp_path / "model.onnx", "cpu", faces=Faces("auto")))
    assert (scorer.search, "no face detector" in str(scorer.lacks_detector)) == (None, True)
    with pytest.raises(DetectorError, match="no face detector yet"):
        Scorer(Options(tmp_path / "model.onnx", "cpu", faces=Faces("always")))
    with pytest.raises(DetectorError, match=r"model\.onnx"):
        Scorer(Options(tmp_path / "model.onnx", "cpu", faces=Faces("always", tmp_path / "model.onnx")))


def test_how_many_work_and_how_long_a_picture_may_take(brightness: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "usable_cores", lambda: 5)
    scorers = [Scorer(Options(brightness, "cpu", workers, picture_timeout=7.0)) for workers in (None, 3)]
    assert [scorer.workers for scorer in scorers] == [5, 3]
    assert [(scorer._pool.count, scorer._pool.picture_timeout) for scorer in scorers] == [(5, 7.0), (3, 7.0)]


def couple(people: list[list[float]]) -> Outcome:
    return Outcome(Status.OK, width=8, height=6, faces=2, boxes=((0, 0, 4, 4), (4, 0, 4, 4)), probabilities=people)


def scorer_of(outcome: Outcome, model: Path, faces: Faces | None = None) -> Scorer:
    """One whose workers say the same of every picture."""

    class Pool:
        def outcomes(self, paths: Iterable[str]) -> Iterator[tuple[str, Outcome]]:
            for path in paths:
                yield path, outcome

    scorer = Scorer(Options(model=model, device="cpu", faces=faces or Faces()))
    scorer._pool = Pool()  # type: ignore[assignment]
    return scorer


@pytest.mark.parametrize(
    ("people", "label", "reason"),
    [
        ([[0.9, 0.1], [0.6, 0.4]], "bright", None),
        ([[0.6, 0.4], [0.9, 0.1]], "uncertain", Reason.LOW_CONFIDENCE),
        ([[0.9, 0.1], [0.4, 0.6]], "uncertain", Reason.PEOPLE_DIFFER),
        ([[0.6, 0.4], [0.4, 0.6]], "uncertain", Reason.PEOPLE_DIFFER),
    ],
)
def test_people_differ_where_what_is_most_probable_of_them_does_sure_or_not(
    brightness: Path, detector: Path, people: list[list[float]], label: str, reason: Reason | None
) -> None:
    for faces in (Faces("never"), Faces("always", detector)):
        (row,) = scorer_of(couple(people), brightness, faces).rows(["couple.jpg"])
        assert (row.label, row.reason, row.probabilities) == (label, reason, tuple(people[0]))


def test_with_every_face_each_has_its_own_answer_and_box(brightness: Path, detector: Path) -> None:
    scorer = scorer_of(couple([[0.9, 0.1], [0.4, 0.6]]), brightness, Faces("always", detector, every=True))
    (row,) = scorer.rows(["couple.jpg"])
    assert (row.label, row.reason, row.probabilities, row.box) == ("bright", None, (0.9, 0.1), (0, 0, 4, 4))
    assert row.others == (Person("uncertain", (0.4, 0.6), (4, 0, 4, 4), Reason.LOW_CONFIDENCE),)
    assert (row.faces, row.width, row.height) == (2, 8, 6)


def test_what_took_the_time_is_counted(brightness: Path) -> None:
    scorer = scorer_of(couple([[0.9, 0.1]] * 2)._replace(reading=1, decoding=2, finding=3, inference=4), brightness)
    list(scorer.rows(["couple.jpg", "again.jpg"]))
    assert (scorer.pictures, scorer.reading, scorer.decoding, scorer.finding, scorer.inference) == (2, 2, 4, 6, 8)


def test_a_summary_counts_what_became_of_the_pictures() -> None:
    summary = Summary()
    for label, probabilities in (("dark", (0.25, 0.75)), ("uncertain", (0.5, 0.5))):
        summary.add(Prediction("a.jpg", Status.OK, label=label, probabilities=probabilities))
    for status in (Status.NO_FACE, Status.CORRUPT, Status.CORRUPT):
        summary.add(Prediction("a.jpg", status))
    assert (summary.pictures, summary.failed) == (5, 2)  # a picture of nobody is as good as any
    assert summary.statuses == {Status.OK: 2, Status.NO_FACE: 1, Status.CORRUPT: 2}
    assert summary.labels == {"dark": 1, "uncertain": 1}
    assert (summary.confidences, summary.squared_confidences) == (1.25, 0.75**2 + 0.5**2)


PEOPLE = (1, 2, 1, 3, 4)
"""By number of the picture: batches of 4 begin and end with some, and end in the middle of others."""


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 11])
def test_batches_give_each_picture_its_own_answer(brightness: Path, count: int) -> None:
    model = Model(brightness)
    outcomes = []
    for number in range(count):
        people = PEOPLE[number % 5]
        pixels = np.full((people, 4, 4, 3), 20 * number, np.uint8)
        pixels[1:] += 1
        outcomes.append((f"{number}", Outcome(Status.OK, pixels, 8, 9)))
        if number % 3 == 1:
            outcomes.append((f"bad {number}", Outcome(Status.CORRUPT, error="broken")))
    results = list(BatchInference(model, 4).answered(iter(outcomes)))
    assert [path for path, _ in results] == [path for path, _ in outcomes]
    for (path, result), (_, given) in zip(results, outcomes, strict=True):
        assert (result.status, result.width, result.error) == (given.status, given.width, given.error)
        if result.status is Status.OK:
            assert result.result is None
            assert result.probabilities is not None
            expected = [20 * int(path) / 255] + [(20 * int(path) + 1) / 255] * (PEOPLE[int(path) % 5] - 1)
            assert [values[0] for values in result.probabilities] == pytest.approx(expected, abs=1e-6)


def test_the_time_of_a_batch_is_shared_by_the_squares(brightness: Path) -> None:
    pictures = [(f"{count}", Outcome(Status.OK, np.zeros((count, 4, 4, 3), np.uint8), 8, 9)) for count in (1, 3)]
    (_, one), (_, three) = BatchInference(Model(brightness), 4).answered(pictures)
    assert one.inference > 0
    assert three.inference == pytest.approx(3 * one.inference)


def test_batches_do_not_wait_for_ever_behind_failed_pictures(brightness: Path) -> None:
    def outcomes():
        yield "good", Outcome(Status.OK, np.zeros((1, 4, 4, 3), np.uint8), 4, 4)
        for number in range(1000):
            yield f"bad {number}", Outcome(Status.CORRUPT, error="broken")

    source = outcomes()
    path, _ = next(BatchInference(Model(brightness), 4).answered(source))
    assert path == "good"
    assert len(list(source)) > 900


def test_reading_in_workers_and_inferring_in_batches_gives_what_workers_that_infer_give(
    brightness: Path, tmp_path: Path
) -> None:
    """What a GPU gets, on the CPU provider: pixels through shared memory, batches through I/O binding."""
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    paths = [grey(tmp_path / f"{number}.png", number) for number in range(100)]
    paths[40:40] = [str(tmp_path / "broken.png"), str(tmp_path / "missing.png")]
    with Scorer(Options(model=brightness, device="cpu", workers=2)) as scorer:
        expected = list(scorer.rows(paths))
    with WorkerPool(Read(METADATA.preprocessing), 2, 60.0, METADATA.preprocessing.size) as pool:
        outcomes = list(BatchInference(Model(brightness), 16).answered(pool.outcomes(paths)))
    assert [path for path, _ in outcomes] == paths
    for (_, outcome), row in zip(outcomes, expected, strict=True):
        assert (outcome.status, outcome.width, outcome.error) == (row.status, row.width, row.error)
        if row.status is Status.OK:
            assert outcome.probabilities is not None
            assert outcome.probabilities[0] == pytest.approx(row.probabilities, abs=1e-6)
            assert outcome.inference > 0


class SmallGpu:
    """A model on a device that has memory for batches of `most` alone: then it is `model`. One of more than `bindable`
    pictures fails when it is bound, others when they are inferred."""

    def __init__(self, model: Model, most: int, bindable: int = 1000) -> None:
        self.model, self.metadata, self.most, self.bindable = model, model.metadata, most, bindable

    def bound(self, size: int) -> Callable[[np.ndarray], np.ndarray]:
        if size > self.bindable:
            raise OutOfGpuMemoryError("too many")

        def infer(pictures: np.ndarray) -> np.ndarray:
            assert len(pictures) == size
            if size > self.most:
                raise OutOfGpuMemoryError("too many")
            return self.model.probabilities(pictures)

        return infer


def some(count: int) -> Iterator[tuple[str, Outcome]]:
    for number in range(count):
        yield f"{number}", Outcome(Status.OK, np.full((1, 4, 4, 3), number, np.uint8), 8, 9)


@pytest.mark.parametrize("bindable", [1000, 16, 8, 4, 1])
@pytest.mark.parametrize(("most", "size"), [(16, 16), (15, 8), (5, 4), (1, 1)])
def test_without_memory_for_a_batch_it_is_halved_and_no_answer_is_lost(
    brightness: Path, most: int, size: int, bindable: int
) -> None:
    inference = BatchInference(SmallGpu(Model(brightness), most, bindable), 16)  # type: ignore[arg-type]
    answers = [outcome.probabilities[0][0] for _, outcome in inference.answered(some(50)) if outcome.probabilities]
    assert answers == pytest.approx([number / 255 for number in range(50)], abs=1e-6)
    assert inference.size == min(size, bindable)


@pytest.mark.parametrize("bindable", [1000, 0])
def test_without_memory_for_a_single_picture_the_run_ends(brightness: Path, bindable: int) -> None:
    inference = BatchInference(SmallGpu(Model(brightness), 0, bindable), 4)  # type: ignore[arg-type]
    with pytest.raises(OutOfGpuMemoryError):
        list(inference.answered(some(10)))


def test_one_batch_runs_while_the_next_one_fills(brightness: Path) -> None:
    """Drawing the second batch's pictures goes on although the first one's inference has not come to its end."""
    drawn_on = threading.Event()

    class Waiting(SmallGpu):
        def bound(self, size: int) -> Callable[[np.ndarray], np.ndarray]:
            infer = super().bound(size)

            def when_drawn(pictures: np.ndarray) -> np.ndarray:
                assert drawn_on.wait(60), "the next batch is not filled meanwhile"
                return infer(pictures)

            return when_drawn

    def source() -> Iterator[tuple[str, Outcome]]:
        for number, outcome in enumerate(some(12)):
            if number == 7:
                drawn_on.set()
            yield outcome

    assert len(list(BatchInference(Waiting(Model(brightness), 4), 4).answered(source()))) == 12  # type: ignore[arg-type]


def test_all_batches_lie_in_memory_that_is_locked_at_once(brightness: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pieces of memory may share a page, which can be locked only once: of 15 MB each they did from the second run
    of a process on."""
    locked: list[NDArray[np.uint8]] = []

    @contextmanager
    def lock(array: NDArray[np.uint8]) -> Iterator[bool]:
        locked.append(array)
        yield True

    class Seeing(SmallGpu):
        def bound(self, size: int) -> Callable[[np.ndarray], np.ndarray]:
            infer = super().bound(size)

            def seeing(pictures: np.ndarray) -> np.ndarray:
                assert np.shares_memory(pictures, locked[0])
                return infer(pictures)

            return seeing

    monkeypatch.setattr(batches, "page_locked", lock)
    assert len(list(BatchInference(Seeing(Model(brightness), 4), 4).answered(some(20)))) == 20  # type: ignore[arg-type]
    assert len(locked) == 1


@pytest.mark.parametrize("count", [0, 1, 4])
def test_a_bound_model_answers_as_the_model_does(brightness: Path, count: int) -> None:
    model = Model(brightness)
    bound = model.bound(4)
    pictures = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    for _ in range(2):
        answers = bound(pictures)
        assert answers.shape == (count, 2)
        if count:
            assert answers == pytest.approx(model.probabilities(pictures), abs=1e-6)


def test_a_file_without_metadata_is_refused(brightness: Path, tmp_path: Path) -> None:
    model = onnx.load(brightness)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "plain.onnx")
    with pytest.raises(ModelError, match=r"plain\.onnx.*gender-batch export"):
        Model(tmp_path / "plain.onnx")


def test_metadata_survives_the_file(brightness: Path) -> None:
    assert Model(brightness).metadata == METADATA
    assert json.loads(METADATA.to_json())["labels"] == ["bright", "dark"]
