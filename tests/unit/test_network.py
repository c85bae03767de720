"""Initial weights, checkpoints, and a convolution with a gradient of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file

from gender_batch.training.network import Checkpoint, Network, WeightsError, load_initial_weights
from gender_batch.training.recipe import Recipe
from gender_batch.training.state import DamagedStateError, State


def test_the_program_has_features_to_start_from() -> None:
    network = Network(3)
    before = network.state_dict()["backbone.features.0.0.weight"].clone()
    origin = load_initial_weights(network, "embedded")
    assert any("FairFace" in credit for credit in origin.attributions)
    assert origin.training
    assert origin.training["epochs"] > 0
    state = network.state_dict()
    assert not torch.equal(state["backbone.features.0.0.weight"], before)
    assert all(bool(tensor.isfinite().all()) for tensor in state.values())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_strided_depthwise_convolution_trains_as_torch_would(precision: torch.dtype) -> None:
    """In whole numbers so small that bf16 holds them all: 256 is the last before which it has every one."""
    ours = Network(2).backbone.features[2].conv[1][0]
    plain = torch.nn.Conv2d(ours.in_channels, ours.out_channels, 3, 2, 1, groups=ours.groups, bias=False)
    luck = torch.Generator().manual_seed(0)
    weight = torch.randint(-1, 2, ours.weight.shape, generator=luck).float()
    pixels = torch.randint(-1, 2, (2, ours.in_channels, 9, 10), generator=luck).float()
    gradients = []
    for module in (ours, plain):
        module.load_state_dict({"weight": weight})
        pictures = pixels.to(precision).requires_grad_()
        output = module.to(precision).train()(pictures)
        (output.square().sum() / 2).backward()
        gradients.append((output, pictures.grad, module.weight.grad))
    for mine, theirs in zip(*gradients, strict=True):
        assert 0 < mine.abs().max() < 256
        assert torch.equal(mine, theirs)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save({"features.0.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"classifier.1.bias": torch.zeros(2)}, tmp_path / "head.pth")
    (tmp_path / "text.safetensors").write_text("no tensors")
    for name in ("other.pth", "list.pth", "head.pth", "text.safetensors"):
        with pytest.raises(WeightsError, match=name):
            load_initial_weights(Network(2), str(tmp_path / name))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"features": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(WeightsError):
        load_initial_weights(Network(2), str(tmp_path / "trap.pth"))
    with pytest.raises(DamagedStateError, match="UnpicklingError"):
        State.load(tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


TRAINING = {"program": "p", "epochs": 1, "data_sha256": "0", "pictures": {"train": 9}}


@pytest.mark.parametrize(
    ("description", "told"),
    [
        ({"attributions": None}, "damaged metadata"),
        ({"training": {"note": "merged by hand"}}, "KeyError('program')"),
        ({"training": {**TRAINING, "pictures": [9]}}, "pictures is [9]"),
        ({"training": {**TRAINING, "init_training": {"epochs": 2}}}, "KeyError('program')"),
        ({"training": "long"}, "damaged metadata"),
        ({"training": {**TRAINING, "init_training": TRAINING}}, None),
        ({"training": None}, None),
        ({}, None),
    ],
)
def test_what_a_checkpoint_to_start_from_says_is_looked_at_before_the_training(
    tmp_path: Path, description: dict[str, object], told: str | None
) -> None:
    """A card tells of it: the export at the end would fail, and the training could not be used."""
    path = tmp_path / "init.safetensors"
    save_file(Network(2).state_dict(), path, {"gender_batch": json.dumps(description)})
    if told is None:
        assert load_initial_weights(Network(2), str(path)).training == description.get("training")
        return
    with pytest.raises(WeightsError) as caught:
        load_initial_weights(Network(2), str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert told in str(caught.value)


def test_a_checkpoint_comes_back_whole(tmp_path: Path) -> None:
    written = Checkpoint(
        network=Network(2),
        labels=("a", "b"),
        preprocessing=Recipe(image_size=64).preprocessing,
        temperature=1.25,
        threshold=0.6,
        pictures="face",
        training={"seed": 1},
        figures={"val": None},
        attributions=("somebody",),
    )
    written.save(tmp_path / "checkpoint.safetensors")
    read = Checkpoint.load(tmp_path / "checkpoint.safetensors")
    for name in ("labels", "preprocessing", "temperature", "threshold", "pictures", "training", "figures"):
        assert getattr(read, name) == getattr(written, name)
    for name, tensor in written.network.state_dict().items():
        assert torch.equal(read.network.state_dict()[name], tensor)
    with pytest.raises(WeightsError, match="nothing"):
        Checkpoint.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("description", "told"),
    [
        ("{", "JSONDecodeError"),
        ("[1]", "damaged metadata"),
        ({"labels": ...}, "KeyError('labels')"),
        ({"temperature": ...}, "KeyError('temperature')"),
        ({"temperature": "warm"}, "warm"),
        ({"temperature": 10**400}, "OverflowError"),
        ({"labels": 2}, "damaged metadata"),
        ({"preprocessing": {"size": 64}}, "unknown preprocessing"),
        ({"labels": ["a", "b", "c"]}, "its 3 labels"),
    ],
)
def test_a_checkpoint_whose_metadata_do_not_fit_is_refused_and_named(
    tmp_path: Path, description: str | dict[str, object], told: str
) -> None:
    whole = {
        "labels": ["a", "b"],
        "preprocessing": Recipe(image_size=64).preprocessing.to_dict(),
        "temperature": 1.0,
        "threshold": 0.6,
        "pictures": "face",
        "training": {},
        "figures": {},
        "attributions": [],
    }
    if isinstance(description, dict):
        changed = {**whole, **description}
        description = json.dumps({name: value for name, value in changed.items() if value is not ...})
    path = tmp_path / "checkpoint.safetensors"
    save_file(Network(2).state_dict(), path, {"gender_batch": description})
    with pytest.raises(WeightsError) as caught:
        Checkpoint.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
