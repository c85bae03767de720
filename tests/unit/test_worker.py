"""scoring/worker.py: what is read is inferred together, and each picture gets its own answer."""

import subprocess
import sys
import time
from math import ceil
from pathlib import Path

import numpy as np
import pytest
from samples import bmp_header, encoded, noise

from gender_batch.faces.look import FaceSearch
from gender_batch.model.session import DEFAULT_FOLDER, Model
from gender_batch.pictures.preprocessing import Preprocessing
from gender_batch.pictures.read import read_bytes
from gender_batch.prediction import Status
from gender_batch.scoring.slots import SharedBytes
from gender_batch.scoring.worker import Outcome, Read, ReadAndInfer, _Inference, _reading_early


def outcomes(model: Model, counts: list[int], seed: int) -> list[Outcome]:
    """So many squares each; none: a failed picture."""
    side = model.metadata.preprocessing.size
    drawn = np.random.default_rng(seed)
    return [
        Outcome(Status.OK, drawn.integers(0, 256, (count, side, side, 3), dtype=np.uint8), 7, number)
        if count
        else Outcome(Status.CORRUPT, error=f"{number}")
        for number, count in enumerate(counts)
    ]


@pytest.mark.parametrize("name", ["apparent-gender.onnx", "apparent-gender.int8.onnx", "apparent-gender.fp16.onnx"])
def test_answers_are_to_the_last_bit_those_of_each_picture_alone_however_many_are_inferred_together(name: str) -> None:
    model = Model(DEFAULT_FOLDER / name, "cpu", threads=1)
    infer = _Inference(model)
    tried = set()
    for number in range(len(infer.SIZES) * infer.TRIALS + 1):
        size = infer._size()
        tried.add(size)
        given = outcomes(model, [1, 0, 2, 1, 1, 3, 0, 1], seed=number)
        begun: list[None] = []
        for before, after in zip(given, infer(given, lambda begun=begun: begun.append(None)), strict=True):
            if before.result is None:
                assert after == before
                continue
            alone = np.concatenate([model.probabilities(square[np.newaxis]) for square in before.result])
            assert after.result is None
            assert np.array_equal(after.probabilities, alone)
            assert after.inference > 0
            assert (after.status, after.width, after.height) == (before.status, before.width, before.height)
        assert len(begun) == ceil(9 / size)
    assert tried == set(infer.SIZES)
    assert {len(taken) for taken in infer._taken.values()} == {infer.TRIALS}  # no more are kept, however long it runs


def test_the_time_of_an_inference_is_shared_by_the_squares() -> None:
    model = Model(DEFAULT_FOLDER / "apparent-gender.onnx", "cpu", threads=1)
    infer, given = _Inference(model), outcomes(model, [1, 3], seed=0)
    infer._taken[1] = [1.0] * infer.TRIALS  # so that two squares are inferred together
    began = time.perf_counter()
    one, three = infer(given, lambda: None)
    elapsed = time.perf_counter() - began
    assert three.inference == pytest.approx(3 * one.inference)
    assert one.inference + three.inference <= elapsed  # no second is told twice


def test_a_picture_has_its_width_and_height_also_where_it_failed() -> None:
    step = Read(Preprocessing(size=4, resize=4))()
    outcome = step("picture", lambda: encoded(noise(30, 20), "PNG"))
    assert (outcome.status, outcome.width, outcome.height) == (Status.OK, 30, 20)
    outcome = step("bomb", lambda: bmp_header(12_000, 10_000))
    assert (outcome.status, outcome.width, outcome.height) == (Status.TOO_LARGE, 12_000, 10_000)


def test_all_of_a_file_is_read_where_faces_are_looked_for() -> None:
    """They are looked at closer, by another decoding than the one that a network's square needs."""
    spec = Preprocessing(size=160, resize=171)
    for search, needed in ((None, spec.shorter_side), (FaceSearch(Path("detector.onnx")), None)):
        assert Read(spec, search).shorter_side == needed
        assert ReadAndInfer(Path("model.onnx"), SharedBytes(b"model"), spec, search).shorter_side == needed


@pytest.mark.parametrize(("side", "whole"), [(None, True), (64, False)])
def test_of_a_file_on_a_slow_disk_all_is_read_early_where_all_is_needed(
    tmp_path: Path, side: int | None, whole: bool
) -> None:
    content = encoded(noise(700, 700), "JPEG", progressive=True)
    (tmp_path / "picture.jpg").write_bytes(content)
    read = _reading_early(side) or read_bytes  # as ReadAhead takes it
    assert (read(str(tmp_path / "picture.jpg"), 2 * len(content)) == content) is whole


def test_less_memory_than_a_worker_would_allow_itself_is_no_obstacle() -> None:
    program = """
import resource
from gender_batch.scoring import worker
for hard in (worker.MEMORY + 2**40, worker.MEMORY):
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    worker._limit_memory()
    print(worker.MEMORY <= resource.getrlimit(resource.RLIMIT_AS)[0] <= 4 * worker.MEMORY)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("True\nTrue\n", "")


def test_the_quickest_size_is_kept() -> None:
    model = Model(DEFAULT_FOLDER / "apparent-gender.onnx", "cpu", threads=1)
    infer = _Inference(model)
    infer._taken = {size: [3.0, 2.0 if size == 4 else 2.5, 9.0, 9.0] for size in infer.SIZES}
    assert infer._size() == 4


def test_pictures_that_all_failed_ask_the_model_nothing() -> None:
    model = Model(DEFAULT_FOLDER / "apparent-gender.onnx", "cpu", threads=1)
    failed = outcomes(model, [0, 0], seed=0)
    assert _Inference(model)(failed, lambda: None) == failed
