"""The exported graph answers as the network does, at its temperature, and says what the checkpoint says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from gender_batch_export.graph import OPSET, Serving, write_graph

from gender_batch import __version__
from gender_batch.model.metadata import KEY, Metadata
from gender_batch.training.network import Checkpoint, Network, load_initial_weights
from gender_batch.training.recipe import Recipe

SIZE = 32
TEMPERATURE = 0.25


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    network = Network(3).eval()
    load_initial_weights(network, "embedded")
    network.linear.weight.data *= 30  # so that the answers differ from picture to picture
    return Checkpoint(
        network=network,
        labels=("a", "b", "c"),
        preprocessing=Recipe(image_size=SIZE).preprocessing,
        temperature=TEMPERATURE,
        threshold=0.6,
        pictures="photo",
        training={"seed": 1},
        figures={"val": None},
        attributions=("somebody",),
    )


@pytest.fixture(scope="module")
def written(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("graph") / "model.onnx"
    write_graph(checkpoint, file)
    return file


def drawn(count: int) -> torch.Tensor:
    """Of different brightness and colour, so that the answers differ."""
    random = torch.Generator().manual_seed(0)
    tone = torch.randint(0, 200, (count, 1, 1, 3), generator=random)
    return (tone + torch.randint(0, 56, (count, SIZE, SIZE, 3), generator=random)).to(torch.uint8)


def expected(checkpoint: Checkpoint, pictures: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return (checkpoint.network(pictures) / TEMPERATURE).softmax(1)


def test_serving_answers_as_the_network_at_its_temperature(checkpoint: Checkpoint) -> None:
    pictures, network = drawn(5), Network(3).eval()
    network.load_state_dict(checkpoint.network.state_dict())
    with torch.inference_mode():
        served = Serving(network, TEMPERATURE)(pictures)
    assert torch.allclose(served, expected(checkpoint, pictures), atol=1e-6)
    assert served.std(0).min() > 1e-3  # pictures differ a thousand times more than is tolerated


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_graph_answers_batches_of_any_size_as_the_network_does(
    checkpoint: Checkpoint, written: Path, count: int
) -> None:
    session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(["probabilities"], {"pictures": drawn(count).numpy()})
    # Writing it has left the network as it was.
    assert np.allclose(probabilities, expected(checkpoint, drawn(count)).numpy(), atol=1e-5)


def test_the_file_is_whole_says_what_the_checkpoint_says_and_nothing_of_the_machine(
    checkpoint: Checkpoint, written: Path
) -> None:
    assert [path.name for path in written.parent.iterdir()] == [written.name]
    model = onnx.load(written)
    assert [(opset.domain, opset.version) for opset in model.opset_import if not opset.domain] == [("", OPSET)]
    (said,) = model.metadata_props
    assert said.key == KEY
    assert Metadata.from_json(said.value, written.name) == Metadata(
        checkpoint.labels, checkpoint.preprocessing, "photo", 0.6, {"seed": 1}, {"val": None}, ("somebody",),
        f"gender-batch {__version__}",
    )  # fmt: skip
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.initializer):
        assert not part.metadata_props
        assert not part.doc_string
