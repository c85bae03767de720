"""Which of the program's own files is taken, by device and processor, and that all processes take the same."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from installed import REPOSITORY, read_csv
from PIL import Image

from gender_batch.model import cuda, session
from gender_batch.model.cuda import Missing, page_locked
from gender_batch.model.metadata import KEY, ModelError
from gender_batch.model.processor import instructions
from gender_batch.model.session import (
    DEFAULT_FOLDER,
    GpuError,
    Model,
    NoGpuError,
    OutOfGpuMemoryError,
    default_model,
)

FP32, FP16, INT8 = (f"apparent-gender{precision}.onnx" for precision in ("", ".fp16", ".int8"))
INTEL = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu vme avx2 avx512f sse\nbugs\t\t: spectre_v1\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (FP32, FP16, INT8):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("device", "cpu_info", "expected"),
    [
        ("cpu", INTEL, INT8),
        ("cpu", INTEL.replace("avx2", "avx2_but_other"), FP32),
        ("cpu", INTEL.replace("avx2 ", ""), FP32),
        ("cpu", "Features\t: fp asimd avx2\n", FP32),
        ("cpu", "", FP32),
        ("cuda", "", FP16),
        ("cuda", INTEL, FP16),
    ],
)
def test_the_file_suits_the_device(folder: Path, device: str, cpu_info: str, expected: str) -> None:
    (folder / "cpuinfo").write_text(cpu_info)
    assert default_model(device, folder, folder / "cpuinfo") == folder / expected
    if expected != FP32:
        (folder / expected).unlink()
        assert default_model(device, folder, folder / "cpuinfo") == folder / FP32


def test_without_cpuinfo_nothing_is_relied_on(folder: Path) -> None:
    assert default_model("cpu", folder, folder / "missing") == folder / FP32


def test_a_model_that_is_named_is_the_one_taken() -> None:
    path = REPOSITORY / "gender_batch" / "model" / "default" / FP32
    assert Model(path).path == path
    assert Model(None).path == default_model("cpu")


@contextmanager
def edited(path: Path) -> Iterator[Any]:
    """The program's float32 model, of which a copy is at `path` as it is after the block."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(DEFAULT_FOLDER / FP32)
    yield model
    onnx.save(model, path)


def with_bias(path: Path, bias: list[float]) -> Path:
    """A copy of the program's float32 model at `path`, with another bias of the head."""
    onnx = pytest.importorskip("onnx")
    with edited(path) as model:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("classifier.1.bias"))
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(bias, np.float32), tensor.name))
    return path


@pytest.mark.skipif("avx2" not in instructions(), reason="int8 is chosen on processors with AVX2")
def test_parent_and_workers_take_the_int8_file_and_say_so(tmp_path: Path) -> None:
    """A copy of the package, in which the int8 file is another model: one that is always sure."""
    shutil.copytree(REPOSITORY / "gender_batch", tmp_path / "gender_batch")
    default = tmp_path / "gender_batch" / "model" / "default"
    with_bias(default / INT8, [99, 0])
    Image.new("RGB", (200, 200), "grey").save(tmp_path / "grey.png")

    def p_female(*options: str) -> tuple[float, str]:
        result = subprocess.run(
            [sys.executable, "-m", "gender_batch", "classify", "grey.png", "--out", "rows.csv", *options],
            cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        (row,) = read_csv(tmp_path / "rows.csv")
        return float(row["p_female"]), next(line for line in result.stderr.splitlines() if line.startswith("model: "))

    assert p_female("--device", "cpu") == (1.0, f"model: {default / INT8}")
    probability, told = p_female("--device", "cpu", "--model", str(default / FP32))
    assert probability < 0.999
    assert told == f"model: {default / FP32}"


def test_memory_is_page_locked_where_there_is_a_gpu_and_else_as_good_as_before() -> None:
    torch = pytest.importorskip("torch")  # it loads NVIDIA's runtime, on machines without a GPU, too
    array = np.arange(10_000)
    with page_locked(array) as locked:
        assert locked is torch.cuda.is_available()
        array += 1
    np.testing.assert_array_equal(array, np.arange(1, 10_001))


def with_metadata(path: Path, **values: Any) -> Path:
    """A copy of the program's float32 model beside `path`, whose metadata say something else."""
    onnx = pytest.importorskip("onnx")
    with edited(path) as model:
        content = json.loads(next(prop.value for prop in model.metadata_props if prop.key == KEY))
        onnx.helper.set_model_props(model, {KEY: json.dumps({**content, **values})})
    return path


@pytest.mark.parametrize(
    ("size", "labels", "told"),
    [
        (200, ["female", "male", "other"], "(N, 3)"),
        (192, ["female", "male"], "(N, 192, 192, 3)"),
        (200, ["female", "male"], None),
    ],
)
def test_metadata_that_do_not_fit_the_graph_are_refused_when_it_is_opened(
    tmp_path: Path, size: int, labels: list[str], told: str | None
) -> None:
    """Rows of such a model would be shifted by a column, or all its pictures crash."""
    spec = replace(Model(DEFAULT_FOLDER / FP32).metadata.preprocessing, size=size, resize=size)
    path = with_metadata(tmp_path / "mine.onnx", labels=labels, preprocessing=spec.to_dict())
    if told is None:
        assert Model(path).metadata.labels == tuple(labels)
        return
    with pytest.raises(ModelError) as caught:
        Model(path)
    for words in (str(path), told, "(N, 200, 200, 3)", "(N, 2)", "gender-batch export"):
        assert words in str(caught.value)


def test_a_graph_for_batches_of_one_size_is_refused(tmp_path: Path) -> None:
    with edited(tmp_path / "mine.onnx") as model:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(ModelError, match=r"uint8\) \(1, 200"):
        Model(tmp_path / "mine.onnx")


@pytest.mark.parametrize("bias", [float("nan"), float("inf")])
def test_a_model_whose_answers_are_no_numbers_is_refused(tmp_path: Path, bias: float) -> None:
    with pytest.raises(ModelError, match=r"mine\.onnx: it answers a black picture with nan.*gender-batch export"):
        Model(with_bias(tmp_path / "mine.onnx", [bias, 0]))


def test_weights_in_another_file_are_not_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of the model, and so its digest, would be the same when they are others."""
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "mine.onnx"
    options = {"save_as_external_data": True, "location": "weights", "size_threshold": 100}
    onnx.save(onnx.load(DEFAULT_FOLDER / FP32), path, **options)
    assert (tmp_path / "weights").stat().st_size > 8_000_000
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"mine\.onnx: ONNX Runtime cannot load it"):
        Model(path)


def test_metadata_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = with_metadata(tmp_path / "mine.onnx", program="mine")
    content = path.read_bytes()
    assert content.count(b'"program": "mine"') == 1
    path.write_bytes(content.replace(b'"program": "mine"', b'"program": "m\xffne"'))
    with pytest.raises(ModelError, match=r"mine\.onnx: damaged metadata .no UTF-8.; export the model again"):
        Model(path)


def test_a_graph_that_can_be_loaded_and_not_run_is_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    with edited(tmp_path / "mine.onnx") as model:
        output = model.graph.node[-1].output[0]
        model.graph.node[-1].output[0] = "all"
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, 9]), "index"))
        model.graph.node.append(onnx.helper.make_node("Gather", ["all", "index"], [output], axis=1))
    with pytest.raises(ModelError, match=r"mine\.onnx: ONNX Runtime cannot run it .*out of data bounds"):
        Model(tmp_path / "mine.onnx")


def test_what_is_too_new_for_the_runtime_is_told_as_it_tells_it(tmp_path: Path) -> None:
    with edited(tmp_path / "mine.onnx") as model:
        model.ir_version = 99
    with pytest.raises(ModelError, match=r"max supported IR version.*as new as it was there"):
        Model(tmp_path / "mine.onnx")


def test_the_digest_is_that_of_the_file_that_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "mine.onnx"
    shutil.copy(DEFAULT_FOLDER / FP32, path)
    model = Model(path)
    path.write_bytes(b"of another export")
    assert model.digest() == hashlib.sha256((DEFAULT_FOLDER / FP32).read_bytes()).hexdigest()


def test_a_file_that_must_not_be_read_is_told(unprivileged: Path) -> None:
    path = unprivileged / "mine.onnx"
    path.write_bytes(b"secret")
    path.chmod(0)
    with pytest.raises(ModelError, match=r"mine\.onnx: cannot be read \(Permission denied\)"):
        Model(path)


class FailingGpu:
    """Sessions as ONNX Runtime makes them on a GPU that cannot be used: the error comes when one is opened, or when it
    scores its first picture."""

    def __init__(self, error: str, when: str) -> None:
        self.error, self.when, self.on_cpu = error, when, session._session

    def __call__(self, path: Path, provider: str, threads: int | None) -> Any:
        if provider == "CPUExecutionProvider":
            return self.on_cpu(path, provider, threads)
        if self.when == "opened":
            raise RuntimeError(self.error)
        return self

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider"]

    def get_inputs(self) -> list[Any]:
        return self.on_cpu(default_model("cpu"), "CPUExecutionProvider", 1).get_inputs()

    def run(self, *_: object) -> None:
        raise RuntimeError(self.error)


@pytest.mark.parametrize("when", ["opened", "scored"])
@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("CUDA failure 2: out of memory ; GPU=0", "no memory left"),
        ("Available memory of 5 is smaller than requested bytes of 10", "no memory left"),
        ("CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", "no memory left"),
        ("cuDNN is unavailable or disabled for CUDA Execution Provider", "cuDNN is unavailable"),
    ],
)
def test_a_gpu_that_cannot_score_is_not_taken_and_the_reason_is_told(
    monkeypatch: pytest.MonkeyPatch, when: str, error: str, told: str
) -> None:
    monkeypatch.setattr(session, "missing_for_cuda", lambda: None)
    monkeypatch.setattr(session, "missing_libraries", lambda: None)
    monkeypatch.setattr(session, "_session", FailingGpu(error, when))
    with pytest.raises(NoGpuError, match=told):
        Model(None, "cuda")
    model = Model(None, "auto")
    assert (model.device.name, model.path) == ("cpu", default_model("cpu"))
    assert told in model.device.reason
    size = model.metadata.preprocessing.size
    assert model.probabilities(np.zeros((1, size, size, 3), np.uint8)).sum() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("code", "free", "full"),
    [(0, 2**33, False), (0, 2**26, True), (2, 0, True), (35, 0, False), (700, 0, False)],
)
def test_a_full_gpu_is_known_whatever_a_library_says_of_it(
    monkeypatch: pytest.MonkeyPatch, code: int, free: int, full: bool
) -> None:
    class Runtime:
        """CUDA's, as far as it is asked for the free memory."""

        last_error = 0

        def cudaMemGetInfo(self, told: Any, _total: Any) -> int:
            told._obj.value = free
            self.last_error = code
            return code

        def cudaGetLastError(self) -> None:
            self.last_error = 0

    runtime = Runtime()
    monkeypatch.setattr(cuda, "_runtime", lambda: runtime)
    assert session._is_out_of_memory(RuntimeError("CUDNN failure 1001: CUDNN_STATUS_NOT_INITIALIZED")) is full
    assert runtime.last_error == 0


def test_libraries_that_are_missing_are_named_rather_than_what_they_lead_to(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = Missing("libcudnn.so.9 not found", "pip install nvidia-cudnn-cu13")
    monkeypatch.setattr(session, "missing_for_cuda", lambda: None)
    monkeypatch.setattr(session, "missing_libraries", lambda: missing)
    monkeypatch.setattr(session, "_session", FailingGpu("CUDNN_FE failure 8", "scored"))
    with pytest.raises(NoGpuError) as caught:
        Model(None, "cuda")
    assert str(caught.value) == f"--device cuda: {missing}"


def test_a_file_that_is_no_model_is_not_blamed_on_the_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(session, "missing_for_cuda", lambda: None)
    monkeypatch.setattr(session, "_session", FailingGpu("out of memory", "opened"))
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    for path in ("broken.onnx", "missing.onnx"):
        with pytest.raises(ModelError, match=path):
            Model(tmp_path / path, "cuda")


@pytest.mark.parametrize(
    ("error", "kind"), [("CUDA failure 2: out of memory", OutOfGpuMemoryError), ("CUDA failure 700", GpuError)]
)
def test_a_gpu_that_fails_in_a_run_says_so(monkeypatch: pytest.MonkeyPatch, error: str, kind: type[GpuError]) -> None:
    model = Model(None, "cpu")
    bound = model.bound(2)

    def fail(_: object) -> None:
        raise RuntimeError(error)

    monkeypatch.setattr(model._session, "run_with_iobinding", fail)
    size = model.metadata.preprocessing.size
    with pytest.raises(GpuError) as caught:
        bound(np.zeros((2, size, size, 3), np.uint8))
    assert caught.type is kind
