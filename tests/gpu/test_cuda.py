"""What only a GPU can show: the CUDA provider is really used, answers as the CPU does, and copes with little memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from installed import gender_batch, read_csv

from gender_batch.model.cuda import page_locked
from gender_batch.model.session import DEFAULT_FOLDER, Model
from gender_batch.scoring.batches import GPU_BATCH

pytestmark = pytest.mark.gpu

FP32 = DEFAULT_FOLDER / "apparent-gender.onnx"


@pytest.mark.parametrize(
    ("options", "nearly"),
    [
        pytest.param(["--model", FP32], 2e-3, id="float32"),  # TF32 convolutions
        pytest.param([], 2e-2, id="the default, float16"),
    ],
)
def test_cuda_is_used_and_agrees_with_the_cpu(
    faces: list[Path], tmp_path: Path, options: list[str | Path], nearly: float
) -> None:
    """More pictures than a batch, and no multiple of it; a failed one among them."""
    (tmp_path / "pictures").mkdir()
    for number in range(2 * GPU_BATCH + 7):
        (tmp_path / "pictures" / f"{number:04d}.jpg").symlink_to(faces[number % len(faces)])
    (tmp_path / "pictures" / "0030.jpg").unlink()
    (tmp_path / "pictures" / "0030.jpg").touch()
    rows = {}
    for device, asked in (("cuda", options), ("cpu", ["--model", FP32])):
        result = gender_batch(
            "classify", tmp_path / "pictures", "--out", tmp_path / f"{device}.csv", "--device", device,
            "--faces", "never", *asked,
        )  # fmt: skip
        assert result.returncode == 3, result.stderr
        assert f"device: {device} (".encode() in result.stderr
        rows[device] = read_csv(tmp_path / f"{device}.csv")
    differences = []
    for gpu, cpu in zip(rows["cuda"], rows["cpu"], strict=True):
        assert (gpu["path"], gpu["status"]) == (cpu["path"], cpu["status"])
        if cpu["status"] == "ok":
            differences.append(abs(float(gpu["p_female"]) - float(cpu["p_female"])))
    assert len(differences) == 2 * GPU_BATCH + 6
    assert max(differences) < nearly


@pytest.mark.parametrize("count", [1, GPU_BATCH])
def test_bound_batches_give_what_unbound_ones_give(count: int) -> None:
    model = Model(FP32, "cuda")
    size = model.metadata.preprocessing.size
    pictures = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    bound = model.bound(GPU_BATCH)
    for _ in range(3):
        assert bound(pictures) == pytest.approx(model.probabilities(pictures), abs=2e-3)


def test_batches_are_copied_from_page_locked_memory() -> None:
    model = Model(FP32, "cuda")
    size = model.metadata.preprocessing.size
    pictures = np.random.default_rng(0).integers(0, 256, (8, size, size, 3), dtype=np.uint8)
    expected = model.bound(8)(pictures)
    for _ in range(2):  # what is locked once can be again, so it was given back
        with page_locked(pictures) as locked:
            assert locked
            np.testing.assert_array_equal(model.bound(8)(pictures), expected)
