"""How others would score a folder, each in the way its documentation shows; one process runs one of them.

    python -m benchmarks.peers NAME FOLDER MODEL

MODEL is a float32 model file; the torch peers take the weights of the embedded checkpoint beside it. Prints one JSON
object: the label of each picture (0 or 1), in the order of their names.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gender_batch.model.session import Model
from gender_batch.pictures.preprocessing import Preprocessing
from gender_batch.scoring.cores import usable_cores

CORES = usable_cores()
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 32


def plain(paths: list[str], model: Path, spec: Preprocessing) -> list[int]:
    """A Pillow + ONNX Runtime loop, float32, one picture at a time, the session's threads as they come."""
    import numpy as np
    import onnxruntime as ort
    from PIL import Image

    session = ort.InferenceSession(str(model))
    name = session.get_inputs()[0].name
    labels = []
    for path in paths:
        image = Image.open(path).convert("RGB").resize((spec.resize, spec.resize), Image.Resampling.BILINEAR)
        margin = (spec.resize - spec.size) // 2
        pixels = np.asarray(image.crop((margin, margin, margin + spec.size, margin + spec.size)))[np.newaxis]
        labels.append(int(session.run(None, {name: pixels})[0][0].argmax()))
    return labels


def torch_model(model: Path) -> Any:
    """torchvision's MobileNetV2 with the embedded weights."""
    from safetensors.torch import load_file
    from torchvision.models import mobilenet_v2

    network = mobilenet_v2(num_classes=2)
    weights = load_file(model.with_suffix(".safetensors"))
    network.load_state_dict({name.removeprefix("backbone."): value.float() for name, value in weights.items()})
    return network.eval()


def in_order_of(network: Any, model: Path) -> Any:
    """Another library's MobileNetV2 with the same weights: its tensors come in the same order."""
    theirs, ours = network.state_dict(), torch_model(model).state_dict()
    network.load_state_dict(dict(zip(theirs, ours.values(), strict=True)))
    return network.eval()


def dataloader(paths: list[str], model: Path, spec: Preprocessing) -> list[int]:
    """A torch DataLoader with torchvision's transforms, one worker per core."""
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    class Pictures(Dataset):  # type: ignore[type-arg]
        transform = transforms.Compose(
            [
                transforms.Resize(spec.resize),
                transforms.CenterCrop(spec.size),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> torch.Tensor:
            return self.transform(Image.open(paths[index]).convert("RGB"))

    network = torch_model(model)
    labels: list[int] = []
    with torch.inference_mode():
        for batch in DataLoader(Pictures(), batch_size=BATCH, num_workers=CORES):
            labels += network(batch).argmax(1).tolist()
    return labels


def timm(paths: list[str], model: Path, spec: Preprocessing) -> list[int]:
    """As timm's inference.py does: its dataset, its loader, its model."""
    import torch
    from timm import create_model
    from timm.data import create_dataset, create_loader

    network = in_order_of(create_model("mobilenetv2_100", num_classes=2), model)
    dataset = create_dataset("", root=str(Path(paths[0]).parent), is_training=False)
    loader = create_loader(
        dataset, (3, spec.size, spec.size), BATCH, use_prefetcher=False, interpolation="bilinear", mean=MEAN, std=STD,
        crop_pct=spec.size / spec.resize, num_workers=CORES, device=torch.device("cpu"),
    )  # fmt: skip
    labels: list[int] = []
    with torch.inference_mode():
        for batch, _ in loader:
            labels += network(batch).argmax(1).tolist()
    return labels


def huggingface(paths: list[str], model: Path, spec: Preprocessing) -> list[int]:
    """transformers' image-classification pipeline."""
    from transformers import (
        MobileNetV2Config,
        MobileNetV2ForImageClassification,
        MobileNetV2ImageProcessor,
        pipeline,
    )

    config = MobileNetV2Config(tf_padding=False, image_size=spec.size, num_labels=2, layer_norm_eps=1e-5)
    network = in_order_of(MobileNetV2ForImageClassification(config), model)
    processor = MobileNetV2ImageProcessor(
        size={"shortest_edge": spec.resize},
        crop_size={"height": spec.size, "width": spec.size},
        image_mean=MEAN,
        image_std=STD,
    )
    classify = pipeline("image-classification", model=network, image_processor=processor)
    answers = classify(paths, batch_size=BATCH, top_k=1)
    return [int(answer[0]["label"].removeprefix("LABEL_")) for answer in answers]


def ray(paths: list[str], model: Path, spec: Preprocessing) -> list[int]:
    """Ray Data: read_images, then map_batches over actors with an ONNX Runtime session of one thread each."""
    import numpy as np
    import ray as ray_
    from PIL import Image

    class Classify:
        def __init__(self) -> None:
            import onnxruntime as ort

            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            self.session = ort.InferenceSession(str(model), options)
            self.name = self.session.get_inputs()[0].name

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            margin = (spec.resize - spec.size) // 2
            pixels = []
            for picture in batch["image"]:
                image = Image.fromarray(picture).resize((spec.resize, spec.resize), Image.Resampling.BILINEAR)
                pixels.append(np.asarray(image.crop((margin, margin, margin + spec.size, margin + spec.size))))
            return {"path": batch["path"], "label": self.session.run(None, {self.name: np.stack(pixels)})[0].argmax(1)}

    with tempfile.TemporaryDirectory() as folder:
        ray_.init(num_cpus=CORES, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
        found = ray_.data.read_images(paths, mode="RGB", include_paths=True)
        answers = found.map_batches(Classify, batch_size=BATCH, concurrency=max(1, CORES // 2)).take_all()
        ray_.shutdown()
    return [int(answer["label"]) for answer in sorted(answers, key=lambda answer: answer["path"])]


PEERS: dict[str, tuple[Callable[[list[str], Path, Preprocessing], list[int]], tuple[str, ...]]] = {
    "Pillow + ONNX Runtime, fp32 loop": (plain, ()),
    "torch DataLoader + torchvision": (dataloader, ("torch", "torchvision")),
    "timm's inference": (timm, ("timm",)),
    "Hugging Face pipeline": (huggingface, ("transformers",)),
    "Ray Data map_batches": (ray, ("ray", "pyarrow")),
}
"""What runs a peer, and the packages it needs besides the program's own."""


def main() -> None:
    name, folder, model = sys.argv[1:]
    paths = sorted(str(path) for path in Path(folder).iterdir())
    spec = Model(Path(model)).metadata.preprocessing
    print(json.dumps(PEERS[name][0](paths, Path(model), spec)))


if __name__ == "__main__":
    main()
