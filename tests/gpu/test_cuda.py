"""What only a GPU can show: the CUDA provider is really used, and answers as the CPU does."""

from __future__ import annotations

from pathlib import Path

import pytest
from installed import gender_batch, read_csv

pytestmark = pytest.mark.gpu


def test_cuda_is_used_and_agrees_with_the_cpu(faces: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    paths = [*faces, tmp_path / "empty.jpg", *faces[:7]]
    for device in ("cuda", "cpu"):
        result = gender_batch("classify", *paths, "--out", tmp_path / f"{device}.csv", "--device", device)
        assert result.returncode == 3, result.stderr
        assert f"device: {device} (".encode() in result.stderr
    for gpu, cpu in zip(read_csv(tmp_path / "cuda.csv"), read_csv(tmp_path / "cpu.csv"), strict=True):
        assert (gpu["path"], gpu["status"]) == (cpu["path"], cpu["status"])
        if cpu["status"] == "ok":
            assert float(gpu["p_female"]) == pytest.approx(float(cpu["p_female"]), abs=2e-3)  # TF32 convolutions
