"""The ONNX Runtime session of a model file, on the device that was asked for, and no other."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from gender_batch.model.cuda import Missing, is_full, missing_for_cuda, missing_libraries
from gender_batch.model.metadata import KEY, Metadata, ModelError
from gender_batch.model.processor import CPU_INFO, instructions

DEFAULT_FOLDER = Path(__file__).parent / "default"
DEFAULT_NAME = "apparent-gender"
"""The model that comes with the program, in float32 as .onnx and in other precisions as .int8.onnx and .fp16.onnx."""

INT8 = "avx2"
"""The instructions with which int8 is quicker than float32: 1.4 times with them alone, twice with VNNI besides. (What
int8 is worth on processors other than x86 has not been measured.)"""

LARGEST = 256 * 1024 * 1024
"""Bytes of a model file: MobileNetV2 in float32 has 9 million."""

_ERRORS_ONLY, _NOTHING = 3, 4

_ROUNDING = 1e-3
"""More than the sum of a picture's probabilities may be off 1."""

OUT_OF_MEMORY = ("failed to allocate", "out of memory", "alloc_failed", "allocation_failed", "smaller than requested")
"""What ONNX Runtime's arenas, CUDA, cuBLAS and cuDNN mostly say of a full GPU, in small letters: there is no class of
error for it."""


class NoProbabilitiesError(ModelError):
    """The file's answers are no probabilities."""


class NoGpuError(Exception):
    """CUDA was required and the session did not get it. The message says what is missing."""


class GpuError(Exception):
    """The GPU failed in the middle of a run."""


class OutOfGpuMemoryError(GpuError):
    """A batch does not fit into the GPU's memory."""


@dataclass(frozen=True)
class Device:
    """Where inference really runs, "cuda" or "cpu", and why there, in words."""

    name: str
    reason: str


def default_model(device: str, folder: Path = DEFAULT_FOLDER, cpu_info: Path = CPU_INFO) -> Path:
    """The file of the program's own model that suits the device, "cuda" or "cpu": float16, int8, or else float32."""
    precision = "fp16" if device == "cuda" else "int8" if INT8 in instructions(cpu_info) else None
    file = folder / f"{DEFAULT_NAME}.{precision}.onnx"
    return file if precision and file.is_file() else folder / f"{DEFAULT_NAME}.onnx"


class Model:
    """A model file opened for inference; with `path` None the program's own, in the precision that suits the device.

    `path` is then the file that was taken, `content` what it held, and `digest()` the SHA-256 of that: it may have been
    replaced since, by tonight's export. Whoever has its `content` already gives it, and `path` is but its name.
    With `threads` None ONNX Runtime uses all cores; a worker that has one core to itself passes 1.
    Raises ModelError for a file that cannot be served, NoGpuError where `device` is "cuda" and CUDA is not usable.
    """

    def __init__(
        self, path: Path | None, device: str = "cpu", threads: int | None = None, content: bytes | None = None
    ) -> None:
        self.path, self.content, self._session, self.device = _open(path, device, threads, content)
        self.metadata = _metadata(self._session, self.path)
        self._input = self._session.get_inputs()[0].name
        self._check()

    def probabilities(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Calibrated probabilities (N, classes) of uint8 pictures (N, size, size, 3)."""
        output: NDArray[np.float32] = self._session.run(None, {self._input: pictures})[0]
        return output

    def _check(self) -> None:
        """A file whose weights are not numbers would give no picture an answer, one that cannot be run would end all.

        Raises NoProbabilitiesError, ModelError."""
        size = self.metadata.preprocessing.size
        try:
            answer = self.probabilities(np.zeros((1, size, size, 3), np.uint8))[0]
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's own errors share no public base class
            raise ModelError(
                f"{self.path}: ONNX Runtime cannot run it ({_in_a_line(error)}); "
                "export the model again with `gender-batch export`"
            ) from None
        if not abs(float(answer.sum()) - 1) < _ROUNDING:
            raise NoProbabilitiesError(
                f"{self.path}: it answers a black picture with {', '.join(map(str, answer))}, which are no "
                "probabilities; export the model again with `gender-batch export`"
            )

    def bound(self, batch: int) -> BoundModel:
        """The model for batches of that size alone, with input and output in the device's memory."""
        return BoundModel(self._session, self.device.name, batch, self.metadata)

    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


class BoundModel:
    """A session with its input and output bound (ONNX Runtime's I/O binding): nothing is allocated for a batch, and
    one copy takes the pixels to the device, one the probabilities back. For one thread at a time.
    """

    def __init__(self, session: Any, device: str, batch: int, metadata: Metadata) -> None:
        size = metadata.preprocessing.size
        self._session, self._binding = session, session.io_binding()
        self._shape = (batch, size, size, 3)
        (pictures,), (probabilities,) = session.get_inputs(), session.get_outputs()
        with _gpu_errors_told(batch):
            self._pictures = ort.OrtValue.ortvalue_from_shape_and_type(self._shape, np.uint8, device, 0)
            self._probabilities = ort.OrtValue.ortvalue_from_shape_and_type(
                (batch, len(metadata.labels)), np.float32, device, 0
            )
        self._binding.bind_ortvalue_input(pictures.name, self._pictures)
        self._binding.bind_ortvalue_output(probabilities.name, self._probabilities)

    def __call__(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities (N, classes) of uint8 pictures (N, size, size, 3), N at most the batch; fewer are padded with
        black ones. Raises GpuError, OutOfGpuMemoryError."""
        count = len(pictures)
        if count < self._shape[0]:
            pictures = np.concatenate([pictures, np.zeros((self._shape[0] - count, *self._shape[1:]), np.uint8)])
        with _gpu_errors_told(self._shape[0]):
            self._pictures.update_inplace(np.ascontiguousarray(pictures))
            self._session.run_with_iobinding(self._binding)
            output: NDArray[np.float32] = self._probabilities.numpy()
        return output[:count]


@contextmanager
def _gpu_errors_told(batch: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's own errors share no public base class
        if _is_out_of_memory(error):
            raise OutOfGpuMemoryError(
                f"the GPU has not enough memory to infer {batch} pictures at a time; is another program using it?"
            ) from None
        raise GpuError(f"the GPU failed: {_in_a_line(error)}") from None


def _is_out_of_memory(error: Exception) -> bool:
    return any(words in str(error).lower() for words in OUT_OF_MEMORY) or is_full()


def _in_a_line(error: Exception) -> str:
    """What it says, of much its beginning and its end, where ONNX Runtime often has the cause."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:100]} ... {text[-195:]}"


def _open(
    path: Path | None, device: str, threads: int | None, content: bytes | None
) -> tuple[Path, bytes, Any, Device]:
    """The file that is taken, its content, its session, and where that runs."""
    missing: Missing | None = None
    if device != "cpu":
        missing = missing_for_cuda()
        if missing is None:
            on_cuda = path or default_model("cuda")
            for_cuda = content or _read(on_cuda)
            session = _session_on_gpu(on_cuda, for_cuda, threads)
            if not isinstance(session, Missing):
                reason = "a picture was scored with ONNX Runtime's CUDA provider"
                return on_cuda, for_cuda, session, Device("cuda", reason)
            missing = session
        if device == "cuda":
            raise NoGpuError(f"--device cuda: {missing}")
    on_cpu = path or default_model("cpu")
    for_cpu = content or _read(on_cpu)
    reason = str(missing) if missing else "as asked for"
    return on_cpu, for_cpu, _session_on_cpu(on_cpu, for_cpu, threads), Device("cpu", reason)


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise ModelError(f"{path}: no such model file; `gender-batch export` makes one")
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); see to its permissions and its disk") from None
    if len(content) > LARGEST:
        raise ModelError(f"{path}: larger than {LARGEST:,} bytes, so no model of `gender-batch export`")
    return content


def _session_on_cpu(path: Path, content: bytes, threads: int | None) -> Any:
    try:
        return _session(content, "CPUExecutionProvider", threads)
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's own errors share no public base class
        raise ModelError(
            f"{path}: ONNX Runtime cannot load it ({_in_a_line(error)}); "
            "is it complete, made by `gender-batch export`, and onnxruntime here as new as it was there?"
        ) from None


def _session_on_gpu(path: Path, content: bytes, threads: int | None) -> Any | Missing:
    """A session that has scored a picture on the GPU, or why there is none. Raises ModelError.

    Nothing less tells: the list of available providers is what the wheel was built with, and a session may get CUDA's
    provider and find with the first convolution that cuDNN is not there, or that the GPU is full.
    """
    # Whatever fails after this is not the file's fault.
    size = _metadata(_session_on_cpu(path, content, threads), path).preprocessing.size
    ort.set_default_logger_severity(_NOTHING)  # what is missing is told in our words
    try:
        session = _session(content, "CUDAExecutionProvider", threads)
        if session.get_providers()[0] == "CUDAExecutionProvider":
            session.run(None, {session.get_inputs()[0].name: np.zeros((1, size, size, 3), np.uint8)})
            return session
        reason = "ONNX Runtime could not load its CUDA provider"
    except Exception as error:  # noqa: BLE001 - as above
        if _is_out_of_memory(error):
            return Missing("the GPU has no memory left for the model", "see with nvidia-smi what else uses it")
        reason = f"ONNX Runtime cannot use the GPU ({_in_a_line(error)})"
    return missing_libraries() or Missing(reason, "pip install --upgrade 'gender-batch[cuda]'")


def _session(content: bytes, provider: str, threads: int | None) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    # Weights in another file would be looked for in the working directory, and no digest would know them.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    with contextlib.redirect_stdout(io.StringIO()):  # it prints when a provider fails, where rows may go
        # Without its fallback, which would go on with a CPU and say why on standard output only.
        return ort.InferenceSession(content, options, providers=[provider], enable_fallback=0)


def _metadata(session: Any, path: Path) -> Metadata:
    """What the file says of itself, if that is true of its graph. Raises ModelError."""
    try:
        text = session.get_modelmeta().custom_metadata_map.get(KEY)
    except UnicodeDecodeError:
        raise ModelError(f"{path}: damaged metadata (no UTF-8); export the model again") from None
    metadata = Metadata.from_json(text, str(path))
    size = metadata.preprocessing.size
    said = f"tensor(uint8) (N, {size}, {size}, 3) -> tensor(float) (N, {len(metadata.labels)})"
    pictures, probabilities = (
        ", ".join(map(_form, values)) for values in (session.get_inputs(), session.get_outputs())
    )
    if said != f"{pictures} -> {probabilities}":
        raise ModelError(
            f"{path}: its graph, {pictures} -> {probabilities}, is not that of its metadata's labels and size, {said}; "
            "export the model again with `gender-batch export`"
        )
    return metadata


def _form(value: Any) -> str:
    """Type and shape of an input or output: tensor(float) (N, 2), where N is any number of pictures."""
    sides = ["N" if index == 0 and not isinstance(side, int) else str(side) for index, side in enumerate(value.shape)]
    return f"{value.type} ({', '.join(sides)})"
