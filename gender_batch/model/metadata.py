"""What a model file says of itself: one JSON text under the ONNX metadata key `gender_batch`."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from typing import Any

from gender_batch.pictures.preprocessing import FaceCrop, Preprocessing, PreprocessingError
from gender_batch.prediction import UNCERTAIN

KEY = "gender_batch"
FORMAT_VERSION = 1


class ModelError(Exception):
    """A model file that cannot be served. The message names the file, the cause and the remedy."""


@dataclass(frozen=True)
class Metadata:
    """Everything that is needed to feed the graph, to read its answers and to trust them.

    `pictures` is "face" for a model of face crops, "photo" for one of whole photos. A picture whose best
    probability is below `threshold` is answered `uncertain`. `training` says how and on what data (digest) it was
    trained, `figures` how well it did on pictures held out.
    """

    labels: tuple[str, ...]
    preprocessing: Preprocessing
    pictures: str
    threshold: float
    training: dict[str, Any]
    figures: dict[str, Any]
    attributions: tuple[str, ...]
    program: str
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        return json.dumps({**content, "preprocessing": self.preprocessing.to_dict()})

    @classmethod
    def from_json(cls, text: str | None, source: str) -> Metadata:
        """The metadata in `text`; `source` names the file in messages. Raises ModelError."""
        if text is None:
            raise ModelError(
                f"{source}: an ONNX file without gender-batch's metadata; "
                "make it with `gender-batch export`, so that it says its labels and preprocessing"
            )
        try:
            content = json.loads(text)
            version = content["format_version"]
            if version != FORMAT_VERSION:
                raise ModelError(
                    f"{source}: model format {version}, this program knows {FORMAT_VERSION}; "
                    "update the program that is older: pip install -U gender-batch, or export the model again"
                )
            preprocessing = Preprocessing.from_dict(content["preprocessing"])
            pictures = _one_of(content["pictures"], "face", "photo")
            if pictures == "face" and preprocessing.face is None:  # a file of before faces were cut out
                preprocessing = replace(preprocessing, face=FaceCrop())
            labels = _labels(content["labels"])
            if UNCERTAIN in labels:
                raise ModelError(
                    f"{source}: a class is called {UNCERTAIN!r}, as is the answer where none is probable; "
                    "give the class another name, train, and export the model again"
                )
            return cls(
                **{
                    **content,
                    "labels": labels,
                    "preprocessing": preprocessing,
                    "pictures": pictures,
                    "threshold": _share(content["threshold"]),
                    "training": _table(content["training"]),
                    "figures": _table(content["figures"]),
                    "attributions": _texts(content["attributions"]),
                }
            )
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            what = error if isinstance(error, PreprocessingError) else f"damaged metadata ({error!r})"
            raise ModelError(
                f"{source}: {what}; update gender-batch, or export the model again with this version"
            ) from None


def _labels(value: object) -> tuple[str, ...]:
    labels = _texts(value)
    if len(labels) < 2 or len(set(labels)) < len(labels) or not all(labels):
        raise ValueError(f"labels {value!r} are not two or more different names")
    return labels


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{value!r} is no list of texts")
    "".join(value).encode()  # half of a surrogate pair is no text that could be written
    return tuple(value)


def _table(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is no object")
    return value


def _share(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"threshold {value!r} is not between 0 and 1")
    return float(value)


def _one_of(value: object, *known: str) -> str:
    if value not in known:
        raise ValueError(f"{value!r} is not one of {', '.join(known)}")
    return str(value)
