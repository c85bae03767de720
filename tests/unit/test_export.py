"""gender_batch_export/export.py: what is refused before anything is made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from gender_batch_export.export import ExportError, _Gate, _lower, export
from gender_batch_export.precision import Precision

from gender_batch.training.network import Checkpoint, Network, WeightsError
from gender_batch.training.recipe import Recipe
from gender_batch.training.run import CHECKPOINT, FOLDS


def test_a_cross_validation_is_no_run_but_a_training_in_its_folder_is(tmp_path: Path) -> None:
    (tmp_path / FOLDS).write_text("{}")
    with pytest.raises(ExportError, match="a cross-validation, whose folds are to be judged"):
        export(tmp_path)
    (tmp_path / CHECKPOINT).write_bytes(b"of the training")
    with pytest.raises(WeightsError, match=CHECKPOINT):
        export(tmp_path)


def test_a_checkpoint_of_which_no_card_could_tell_is_refused_before_all_proofs(tmp_path: Path) -> None:
    checkpoint = Checkpoint(
        network=Network(2),
        labels=("a", "b"),
        preprocessing=Recipe(image_size=64).preprocessing,
        temperature=1.0,
        threshold=0.6,
        pictures="face",
        training={"note": "merged by hand"},
        figures={},
        attributions=(),
    )
    checkpoint.save(tmp_path / CHECKPOINT)
    with pytest.raises(ExportError, match=rf"{CHECKPOINT}: what it says of its training .*KeyError\('recipe'\)"):
        export(tmp_path)


def test_int8_is_not_made_without_pictures_to_calibrate_it_with(tmp_path: Path) -> None:
    gate = _Gate(["a.png"], [0], np.zeros((1, 2), np.float32), [], Recipe(image_size=64).preprocessing)
    told = _lower(tmp_path / "fp32.onnx", Precision.INT8, gate)
    assert isinstance(told, str)
    assert "no readable validation picture is left to calibrate it with" in told
    assert list(tmp_path.iterdir()) == []
