"""MobileNetV2 with a new head: uint8 pictures in, logits out; and its checkpoint file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

from gender_batch import model
from gender_batch.outputs.publish import published
from gender_batch.pictures.preprocessing import Preprocessing, PreprocessingError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of RGB in 0..1, as torchvision's classification weights were trained with."""

EMBEDDED_WEIGHTS = Path(model.__file__).parent / "default" / "apparent-gender.safetensors"

DOWNLOADED_ATTRIBUTION = "ImageNet backbone: torchvision MobileNet_V2_Weights.IMAGENET1K_V2, BSD-3-Clause"


class WeightsError(Exception):
    """Initial weights or a checkpoint that cannot be used. The message names the file and the remedy."""


class _StridedDepthwise(nn.Conv2d):
    """A depthwise convolution of stride 2 that trains on a CPU without oneDNN's slow gradient of it in bf16.

    Every second pixel of the same convolution at stride 1 is the same function. Its gradient took 9 instead of
    134 ms (96 channels, 64x64, batch 64, AVX-512), which made the whole training step 1.3 to 1.5 times faster.
    In float32 that gradient is quick (AVX2), and the detour would cost a fifth.
    """

    def forward(self, pictures: Tensor) -> Tensor:
        if not (self.training and pictures.device.type == "cpu" and pictures.dtype == torch.bfloat16):
            return super().forward(pictures)
        everywhere = nn.functional.conv2d(pictures, self.weight, self.bias, 1, self.padding, 1, self.groups)
        return everywhere[:, :, ::2, ::2].contiguous(memory_format=torch.channels_last)


EMBEDDING = 1280
"""Numbers that the head sees of a picture."""


class Network(nn.Module):
    """MobileNetV2 (Sandler et al. 2018, width 1.0) on pictures as they come: normalisation is its first step.

    `forward` takes uint8 (N, size, size, 3) RGB and gives float logits (N, classes).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.backbone = mobilenet_v2(num_classes=classes)
        for module in self.backbone.modules():
            if isinstance(module, nn.Conv2d) and module.groups > 1 and module.stride == (2, 2):
                module.__class__ = _StridedDepthwise
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embedding(pictures))
        return logits

    def embedding(self, pictures: Tensor) -> Tensor:
        """What the head sees of the pictures: (N, 1280), the features averaged over the picture."""
        # The permuted view of NHWC pixels is what torch calls channels_last: no copy is made.
        pixels = pictures.permute(0, 3, 1, 2).to(self.mean.dtype) / 255.0
        return self.pooled((pixels - self.mean) / self.std)

    def pooled(self, normalised: Tensor) -> Tensor:
        """`embedding` of pixels (N, 3, size, size) that are normalised already."""
        features: Tensor = self.features(normalised)
        return features.mean((2, 3))  # adaptive_avg_pool2d is exported as ten nodes

    @property
    def features(self) -> nn.Module:
        """Everything but the head."""
        features: nn.Module = self.backbone.features
        return features

    @property
    def head(self) -> nn.Module:
        head: nn.Module = self.backbone.classifier
        return head

    @property
    def linear(self) -> nn.Linear:
        """The head without its dropout."""
        linear: nn.Linear = self.backbone.classifier[1]
        return linear


@dataclass(frozen=True)
class Origin:
    """Where initial weights come from: the credits that whatever comes of them must carry; and, where they are a
    checkpoint's, how they were trained and the head that answered by these features."""

    attributions: tuple[str, ...] = ()
    training: dict[str, Any] | None = None
    head: nn.Linear | None = None


def load_initial_weights(network: Network, init: str) -> Origin:
    """Fill the features; the head keeps its random start, and that of a checkpoint comes back beside it.

    `init` is "embedded" for the features of the program's own model, which know faces; "imagenet" for those that
    torchvision downloads; or the path of a checkpoint or of a MobileNetV2 state dict. Raises WeightsError.
    """
    state: dict[str, Tensor]
    origin = Origin()
    if init == "imagenet":
        state, origin = _downloaded(), Origin((DOWNLOADED_ATTRIBUTION,))
    else:
        path = EMBEDDED_WEIGHTS if init == "embedded" else Path(init)
        state = _state_dict(path)
        if path.suffix == ".safetensors":
            description = _description(path)
            with _damage_told(path):
                training = _training(description["training"]) if description.get("training") else None
                origin = Origin(tuple(description.get("attributions", ())), training, _head(state))
    features = {
        name.removeprefix("backbone."): tensor
        for name, tensor in state.items()
        if name.removeprefix("backbone.").startswith("features.")
    }
    missing, unexpected = _load(network.backbone, features, init)
    if unexpected or any(name.startswith("features.") for name in missing):
        raise WeightsError(
            f"{init}: not a state dict of torchvision's mobilenet_v2 (width 1.0): "
            f"{len(missing)} tensors missing, {len(unexpected)} unknown"
        )
    return origin


def _head(state: dict[str, Tensor]) -> nn.Linear | None:
    """The linear layer of a checkpoint's head; None where there is none of its form."""
    weight, bias = state.get("backbone.classifier.1.weight"), state.get("backbone.classifier.1.bias")
    if weight is None or bias is None or weight.shape != (len(bias), EMBEDDING):
        return None
    head = nn.Linear(EMBEDDING, len(bias))
    head.load_state_dict({"weight": weight, "bias": bias})
    return head


def _load(module: nn.Module, state: dict[str, Tensor], path: str) -> tuple[list[str], list[str]]:
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise WeightsError(f"{path}: tensors of other shapes than mobilenet_v2 (width 1.0) has: {error}") from None
    return missing, unexpected


def _downloaded() -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = dict(MobileNet_V2_Weights.IMAGENET1K_V2.get_state_dict(check_hash=True))
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"torchvision's ImageNet weights could not be downloaded ({error}). "
            "Fetch them where there is a network and name the file: --init mobilenet_v2-7ebf99e0.pth, "
            "or leave --init out to start from the program's own model"
        ) from None
    return state


def _state_dict(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - the unpickler and zipfile raise anything on a foreign file
        # torch's words are many, and advise to unpickle it.
        raise WeightsError(
            f"{path}: cannot be read as a state dict ({type(error).__name__}); name a .pth that torch.save wrote of "
            "model.state_dict(), a .safetensors file, or a checkpoint of `gender-batch train`"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path}: holds no plain state dict; save model.state_dict()")
    return state


def _description(path: Path) -> dict[str, Any]:
    """What a checkpoint's metadata say; empty for another .safetensors file."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: cannot be read as a checkpoint ({error})") from None
    with _damage_told(path):
        found: dict[str, Any] = dict(json.loads(metadata.get("gender_batch", "{}")))
    return found


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    """What a checkpoint's metadata lack, or hold of another kind, becomes a WeightsError."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        what = error if isinstance(error, PreprocessingError) else f"damaged metadata ({error!r})"
        raise WeightsError(f"{path}: {what}; update gender-batch, or train again with this version") from None


def _training(training: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of its training, if it is what the card of a model that comes of it will tell of that, and
    of the trainings before it. Raises TypeError, KeyError, AttributeError."""
    told: dict[str, Any] | None = training
    while told:
        for name, kind in {"program": str, "epochs": int, "data_sha256": str, "pictures": dict}.items():
            if not isinstance(told[name], kind):
                raise TypeError(f"training: {name} is {told[name]!r}")
        if not isinstance(told["pictures"]["train"], int):
            raise TypeError(f"training: pictures are {told['pictures']!r}")
        told = told.get("init_training")
    return training


@dataclass(frozen=True)
class Checkpoint:
    """What training leaves behind: weights, and all that is needed to serve and to judge them.

    `temperature` divides the logits before the softmax (Guo et al. 2017); a picture whose best probability is
    below `threshold` is answered `uncertain`. `pictures` is "face" for face crops, "photo" for whole photos.
    """

    network: Network
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    temperature: float
    threshold: float
    pictures: str
    training: dict[str, Any]
    figures: dict[str, Any]
    attributions: tuple[str, ...]

    def save(self, path: Path) -> None:
        """Write a .safetensors file whose metadata holds the rest; whole or not at all."""
        description = {
            "labels": self.labels,
            "preprocessing": self.preprocessing.to_dict(),
            "temperature": self.temperature,
            "threshold": self.threshold,
            "pictures": self.pictures,
            "training": self.training,
            "figures": self.figures,
            "attributions": self.attributions,
        }
        state = {name: tensor.contiguous().cpu() for name, tensor in self.network.state_dict().items()}
        content = save(state, {"gender_batch": json.dumps(description)})
        with published(path) as file:
            file.write(content)

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read what `save` wrote; nothing is unpickled. Raises WeightsError."""
        description = _description(path)
        if not description:
            raise WeightsError(f"{path}: not a checkpoint of `gender-batch train`")
        with _damage_told(path):
            checkpoint = cls(
                network=Network(len(description["labels"])),
                labels=tuple(description["labels"]),
                preprocessing=Preprocessing.from_dict(description["preprocessing"]),
                temperature=float(description["temperature"]),
                threshold=float(description["threshold"]),
                pictures=description["pictures"],
                training=dict(description["training"]),
                figures=dict(description["figures"]),
                attributions=tuple(description["attributions"]),
            )
        try:
            checkpoint.network.load_state_dict(_state_dict(path))
        except RuntimeError as error:
            what = " ".join(str(error).split())[:300]
            raise WeightsError(
                f"{path}: its tensors are not those of a network for its {len(checkpoint.labels)} labels ({what}); "
                "train again"
            ) from None
        checkpoint.network.eval()
        return checkpoint
