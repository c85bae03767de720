"""What only a GPU can show: the CUDA provider is really used, answers as the CPU does, and copes with little memory.

Needs nothing but the repository: the pictures are blends of the example portraits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from installed import REPOSITORY, gender_batch, read_csv
from numpy.typing import NDArray
from PIL import Image

from gender_batch.model.cuda import page_locked
from gender_batch.model.session import DEFAULT_FOLDER, Model
from gender_batch.scoring.batches import GPU_BATCH

pytestmark = pytest.mark.gpu

FP32 = DEFAULT_FOLDER / "apparent-gender.onnx"
FP16 = DEFAULT_FOLDER / "apparent-gender.fp16.onnx"

NEARLY = 0.02
"""Between probabilities on CPU and GPU, whose convolutions round to 10 bits of mantissa, float16 or TF32: emulated on a
CPU that moved those of 60 faces by up to 0.010."""


@pytest.fixture(scope="module")
def blends(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """49 pictures between a woman and a man, of all probabilities."""
    folder = tmp_path_factory.mktemp("blends")
    women, men = (sorted((REPOSITORY / "examples" / "profiles").glob(f"*-{sex}.*")) for sex in ("female", "male"))
    assert len(women) == len(men) == 7
    paths = []
    for number, (woman, man) in enumerate(product(women, men)):
        of_her, of_him = (Image.open(path).convert("RGB").resize((224, 224)) for path in (woman, man))
        paths.append(folder / f"{number:02d}.png")
        Image.blend(of_her, of_him, 0.2 + 0.6 * number / 48).save(paths[-1])
    return paths


def pixels(paths: list[Path]) -> NDArray[np.uint8]:
    spec = Model(FP32).metadata.preprocessing
    return np.stack([spec.apply(spec.read(str(path)).image) for path in paths])


@pytest.mark.parametrize("options", [["--model", FP32], []], ids=["float32", "the default, float16"])
def test_cuda_is_used_and_agrees_with_the_cpu(blends: list[Path], tmp_path: Path, options: list[str | Path]) -> None:
    """More pictures than a batch, and no multiple of it; a failed one among them."""
    (tmp_path / "pictures").mkdir()
    for number in range(2 * GPU_BATCH + 7):
        (tmp_path / "pictures" / f"{number:04d}.png").symlink_to(blends[number % len(blends)])
    (tmp_path / "pictures" / "0030.png").unlink()
    (tmp_path / "pictures" / "0030.png").touch()
    rows = {}
    for device, asked in (("cuda", options), ("cpu", ["--model", FP32])):
        result = gender_batch(
            "classify", tmp_path / "pictures", "--out", tmp_path / f"{device}.csv", "--device", device,
            "--faces", "never", *asked,
        )  # fmt: skip
        assert result.returncode == 3, result.stderr
        assert f"device: {device} (".encode() in result.stderr
        rows[device] = read_csv(tmp_path / f"{device}.csv")
    both = [(gpu, cpu) for gpu, cpu in zip(rows["cuda"], rows["cpu"], strict=True) if cpu["status"] == "ok"]
    assert [row["path"] for row in rows["cuda"]] == [row["path"] for row in rows["cpu"]]
    assert [row["status"] for row in rows["cuda"]] == [row["status"] for row in rows["cpu"]]
    assert len(both) == 2 * GPU_BATCH + 6
    on_gpu, on_cpu = np.array([[float(row["p_female"]) for row in pair] for pair in both]).T
    assert np.abs(on_gpu - on_cpu).max() < NEARLY
    assert np.abs(np.roll(on_gpu, 1) - on_cpu).max() > 5 * NEARLY  # answers that are mixed up would be noticed


@pytest.mark.parametrize("count", [1, 49, GPU_BATCH])
def test_bound_batches_give_what_unbound_ones_give(blends: list[Path], count: int) -> None:
    model = Model(FP32, "cuda")
    each = pixels(blends)
    pictures = np.resize(each, (count, *each.shape[1:]))
    expected = Model(FP32, "cpu").probabilities(pictures)
    bound = model.bound(GPU_BATCH)
    for _ in range(3):
        assert bound(pictures) == pytest.approx(expected, abs=NEARLY)


def test_batches_are_copied_from_page_locked_memory(blends: list[Path]) -> None:
    model = Model(FP32, "cuda")
    pictures = pixels(blends[:8])
    expected = model.bound(8)(pictures)
    for _ in range(2):  # what is locked once can be again, so it was given back
        with page_locked(pictures) as locked:
            assert locked
            np.testing.assert_array_equal(model.bound(8)(pictures), expected)


@pytest.mark.parametrize("path", [FP32, FP16], ids=["float32", "float16"])
def test_no_part_of_the_model_is_left_to_the_cpu(path: Path) -> None:
    Model(path, "cuda")  # it finds NVIDIA's libraries
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = ort.InferenceSession(str(path), options, providers=["CUDAExecutionProvider"], enable_fallback=0)
    assert session.get_providers()[0] == "CUDAExecutionProvider"


@contextmanager
def nearly_full(left: int) -> Iterator[None]:
    """All memory of the GPU but `left` bytes is taken."""
    Model(FP32, "cuda")
    runtime = ctypes.CDLL(f"libcudart.so.{ort.cuda_version.split('.')[0]}")
    blocks: list[ctypes.c_void_p] = []

    def free() -> int:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        assert runtime.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)) == 0
        return free.value

    try:
        for size in (2**power * 1024 * 1024 for power in range(16, 0, -1)):  # not all of it is there in one piece
            while free() >= left + size:
                block = ctypes.c_void_p()
                if runtime.cudaMalloc(ctypes.byref(block), ctypes.c_size_t(size)):
                    runtime.cudaGetLastError()
                    break
                blocks.append(block)
        yield
    finally:
        for block in blocks:
            runtime.cudaFree(block)


@pytest.mark.parametrize("megabytes", [4, 700, 1000, 1400])
def test_with_little_memory_every_picture_is_answered_or_it_is_told(
    blends: list[Path], tmp_path: Path, megabytes: int
) -> None:
    """How much a context, cuDNN and a batch take depends on the GPU: somewhere between these batches are halved."""
    for number in range(GPU_BATCH):
        (tmp_path / f"{number:04d}.png").symlink_to(blends[number % len(blends)])
    with nearly_full(megabytes * 1024 * 1024):
        result = gender_batch(
            "classify", tmp_path, "--out", tmp_path / "rows.csv", "--device", "cuda", "--faces", "never"
        )
    assert result.returncode in (0, 1, 6), result.stderr
    if result.returncode:
        assert b"memory" in result.stderr
        assert not (tmp_path / "rows.csv").exists()
    else:
        assert {row["status"] for row in read_csv(tmp_path / "rows.csv")} == {"ok"}


def test_a_gpu_that_is_hidden_is_not_used(blends: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    command = ["classify", blends[0], "--out", tmp_path / "rows.csv", "--faces", "never"]
    wanted = gender_batch(*command, "--device", "cuda")
    assert wanted.returncode == 6
    assert b"CUDA_VISIBLE_DEVICES is ''" in wanted.stderr
    assert gender_batch(*command).returncode == 0


def test_the_doctor_finds_it(tmp_path: Path) -> None:
    result = gender_batch("doctor", tmp_path, "--device", "cuda")
    assert result.returncode == 0, result.stdout
    assert b"pictures were scored on it" in result.stdout
