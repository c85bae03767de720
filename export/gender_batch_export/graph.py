"""The ONNX graph: uint8 pictures in, calibrated probabilities out, and the metadata that describes it."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gender_batch import __version__
from gender_batch.model.metadata import KEY, Metadata
from gender_batch.training.network import Checkpoint, Network

OPSET = 20


class Serving(nn.Module):
    """The network, in evaluation mode, with temperature and softmax: uint8 (N, size, size, 3) to probabilities
    (N, classes).

    The first convolution divides by the standard deviation, which by itself takes 3% of an int8 inference. It
    cannot subtract the mean, too: what it pads pictures with stands for a pixel of the mean. Changes `network`.
    """

    mean: Tensor

    def __init__(self, network: Network, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature
        self.register_buffer("mean", 255 * network.mean)
        _simplify(network)
        first = next(module for module in network.features.modules() if isinstance(module, nn.Conv2d))
        first.weight = nn.Parameter(first.weight.detach() / (255 * network.std))

    def forward(self, pictures: Tensor) -> Tensor:
        pixels = pictures.permute(0, 3, 1, 2).to(self.mean.dtype) - self.mean
        logits: Tensor = self.network.head(self.network.pooled(pixels))
        return torch.softmax(logits / self.temperature, dim=1)


def _simplify(network: Network) -> None:
    """The same function with batch norms folded into the convolutions before them, and nothing computed in place.

    The exporter would do the former, too, and took 20 s over both, where it takes 7 s so.
    """
    for module in network.features.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = False
        elif isinstance(module, nn.Sequential):
            for (before, first), (after, second) in pairwise(list(module.named_children())):
                if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                    setattr(module, before, fuse_conv_bn_eval(first, second))
                    setattr(module, after, nn.Identity())


def metadata_of(checkpoint: Checkpoint) -> Metadata:
    """What the model file will say of itself."""
    return Metadata(
        labels=checkpoint.labels,
        preprocessing=checkpoint.preprocessing,
        pictures=checkpoint.pictures,
        threshold=checkpoint.threshold,
        training=checkpoint.training,
        figures=checkpoint.figures,
        attributions=checkpoint.attributions,
        program=f"gender-batch {__version__}",
    )


def write_graph(checkpoint: Checkpoint, path: Path) -> None:
    """Export, check with onnx.checker, and write one file with its metadata."""
    size = checkpoint.preprocessing.size
    serving = Serving(copy.deepcopy(checkpoint.network).eval(), checkpoint.temperature).eval()
    # Two pictures: torch.export takes a dimension of one for a constant.
    example = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    program = torch.onnx.export(
        serving,
        (example,),
        input_names=["pictures"],
        output_names=["probabilities"],
        dynamic_shapes={"pictures": {0: torch.export.Dim("batch", min=1)}},
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    model = program.model_proto
    # What the exporter notes beside every node: source lines of the machine it ran on. Nobody else's business.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.initializer):
        del value.metadata_props[:]
    onnx.helper.set_model_props(model, {KEY: metadata_of(checkpoint).to_json()})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
