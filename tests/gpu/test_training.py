"""What only a GPU can show of training: it comes to its end, and goes on where it was stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
from samples import dark_and_light
from watching import Interrupting, Told

torch = pytest.importorskip("torch")

from gender_batch.training import run
from gender_batch.training.network import Checkpoint
from gender_batch.training.order import Order
from gender_batch.training.recipe import Machine, Recipe

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("init", ["embedded", "some.pth"])
def test_a_training_is_stopped_and_goes_on_to_its_end(tmp_path: Path, init: str) -> None:
    dark_and_light(tmp_path / "data", 60, 64)
    if init == "some.pth":
        from torchvision.models import mobilenet_v2

        init = str(tmp_path / init)
        torch.save(mobilenet_v2(num_classes=2).state_dict(), init)
    recipe = Recipe(image_size=64, adapt_epochs=1, fine_epochs=3)
    order = Order(data=tmp_path / "data", recipe=recipe, init=init)
    machine = Machine(torch.device("cuda"), workers=2)
    with pytest.raises(KeyboardInterrupt):
        run.train(order, tmp_path / "run", machine, Interrupting(2))  # after the adaptation's one epoch
    run.train(order, tmp_path / "run", machine, Told(), resume=True)
    undisturbed = run.train(order, tmp_path / "whole", machine, Told())
    assert undisturbed.test is not None
    assert Checkpoint.load(tmp_path / "run" / run.CHECKPOINT).labels == ("dark", "light")
