"""What only a GPU can show of training: it comes to its end, goes on where it was stopped, and can be exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from watching import Told

torch = pytest.importorskip("torch")

from gender_batch.training import run
from gender_batch.training.network import Checkpoint
from gender_batch.training.order import Order
from gender_batch.training.recipe import Machine, Recipe

pytestmark = pytest.mark.gpu


class Interrupting(Told):
    """Whose user has had enough after the first epoch of the fine-tuning."""

    def epoch(self, epoch: object, *_: object) -> None:
        if "fine-tuning" in str(epoch):
            raise KeyboardInterrupt


@pytest.mark.parametrize("init", ["embedded", "some.pth"])
def test_a_training_is_stopped_and_goes_on_to_its_end(tmp_path: Path, init: str) -> None:
    drawn = np.random.default_rng(0)
    for label in ("dark", "light"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(60):
            pixels = drawn.integers(0, 128, (64, 64, 3)) + 127 * (label == "light")
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "data" / label / f"{number}.png")
    if init == "some.pth":
        from torchvision.models import mobilenet_v2

        init = str(tmp_path / init)
        torch.save(mobilenet_v2(num_classes=2).state_dict(), init)
    recipe = Recipe(image_size=64, adapt_epochs=1, fine_epochs=3)
    order = Order(data=tmp_path / "data", recipe=recipe, init=init)
    machine = Machine(torch.device("cuda"), workers=2)
    with pytest.raises(KeyboardInterrupt):
        run.train(order, tmp_path / "run", machine, Interrupting())
    run.train(order, tmp_path / "run", machine, Told(), resume=True)
    undisturbed = run.train(order, tmp_path / "whole", machine, Told())
    assert undisturbed.test is not None
    assert Checkpoint.load(tmp_path / "run" / run.CHECKPOINT).labels == ("dark", "light")
