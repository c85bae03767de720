"""The run record: what one run was and what it counted, as a JSON file."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from gender_batch import __version__
from gender_batch.outputs.publish import published
from gender_batch.prediction import Status

RECORD_VERSION = 1

LARGEST_FILE = 1 << 20
"""Bytes. A record has about 1500; what is larger is something else, and is not read to its end."""

MOST = 10**10
"""Pictures, or seconds: more is damage. Two full ext4 file systems hold fewer files, and these are 317 years."""

WRITER = "`gender-batch classify --summary FILE` writes one"


class RecordError(Exception):
    """A file that is no run record of use. The message names the file, the cause and the remedy."""


@dataclass(frozen=True)
class Confidence:
    """Mean and standard deviation, each 0..1, of the confidence of all pictures with status ok."""

    mean: float
    std: float


@dataclass(frozen=True)
class Stage:
    """One stage of a run: how many pictures went through it, and the seconds that took; of `reading`, `decoding` and
    `inference` those of all workers together. `writing` happens between `scoring`, which does not count it."""

    pictures: int
    seconds: float

    @property
    def pictures_per_second(self) -> float | None:
        return self.pictures / self.seconds if self.seconds else None


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run. All counts are of pictures, but `folders_not_read`.

    `pictures` have a row; `scored` of them were scored in this run, `reused` were known. `statuses` add up to
    `pictures`, `labels` (`uncertain` is one) to those with status ok; `confidence` is None if there are none of these.
    `program` is this program's version, `versions` are those of what it runs on. `model` is the file's name and
    `model_digest` its SHA-256 in hexadecimal; `device` is where inference really ran, `device_reason` why there.
    `started` and `ended` are ISO 8601 in UTC, as by `datetime.now(UTC).isoformat()`.
    """

    record_version: int = RECORD_VERSION
    program: str = __version__
    versions: Mapping[str, str]
    model: str
    model_digest: str
    device: str
    device_reason: str
    pictures: int
    scored: int
    reused: int
    statuses: Mapping[str, int]
    labels: Mapping[str, int]
    confidence: Confidence | None
    stages: Mapping[str, Stage]
    folders_not_read: int
    started: str
    ended: str
    exit_code: int

    @property
    def answered(self) -> int:
        """Pictures with status ok."""
        return self.statuses.get(Status.OK, 0)

    def to_json(self) -> str:
        """The record as one JSON object in ASCII; each stage also says its pictures_per_second."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        content["confidence"] = asdict(self.confidence) if self.confidence else None
        content["stages"] = {
            name: {**asdict(stage), "pictures_per_second": stage.pictures_per_second}
            for name, stage in self.stages.items()
        }
        return json.dumps(content, indent=2) + "\n"

    def write(self, path: Path) -> None:
        """Publish the record at `path`, whole or not at all. Raises OSError."""
        with published(path) as file:
            file.write(self.to_json().encode("ascii"))

    @classmethod
    def read(cls, path: Path) -> RunRecord:
        """The record in a file, its types, ranges and sums checked. Raises RecordError."""
        try:
            with path.open("rb") as file:
                text = file.read(LARGEST_FILE + 1)
            content = json.loads(text if len(text) <= LARGEST_FILE else b"")
            version = content["record_version"]
        except OSError as error:
            raise RecordError(f"{path}: {error.strerror}; name a run record: {WRITER}") from None
        except (ValueError, TypeError, KeyError, RecursionError):
            raise RecordError(f"{path}: not a run record, or cut short; {WRITER}") from None
        if type(version) is int and version > RECORD_VERSION:
            raise RecordError(
                f"{path}: a run record of version {version}, this program knows {RECORD_VERSION}; "
                "update it: pip install -U gender-batch"
            )
        wrong = [name for name, is_right in _CHECKS.items() if not (name in content and is_right(content[name]))]
        if wrong:
            raise RecordError(f"{path}: a damaged run record, wrong in {', '.join(wrong)}; {WRITER}")
        values = {name: content[name] for name in _CHECKS}
        if confidence := values["confidence"]:
            values["confidence"] = Confidence(float(confidence["mean"]), float(confidence["std"]))
        values["stages"] = {
            name: Stage(stage["pictures"], float(stage["seconds"])) for name, stage in values["stages"].items()
        }
        record = cls(**values)
        if (sum(record.statuses.values()), sum(record.labels.values())) != (record.pictures, record.answered):
            raise RecordError(f"{path}: a damaged run record, its counts do not add up; {WRITER}")
        return record


def versions() -> dict[str, str]:
    """The versions of what the program runs on and what can change an answer."""
    return {
        "python": platform.python_version(),
        "onnxruntime": _installed("onnxruntime-gpu", "onnxruntime"),
        "pillow": _installed("pillow"),
        "numpy": _installed("numpy"),
    }


def _installed(*names: str) -> str:
    """The version of the first of these distributions that is installed."""
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= MOST


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= MOST


def _is_share(value: Any) -> bool:
    return _is_number(value) and value <= 1


def _is_time(value: object) -> bool:
    try:
        return isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def _is_confidence(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and all(_is_share(value.get(name)) for name in ("mean", "std")))


def _is_stage(value: Any) -> bool:
    return isinstance(value, dict) and _is_count(value.get("pictures")) and _is_number(value.get("seconds"))


def _all(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether a value is an object, all of whose members are right."""
    return lambda value: isinstance(value, dict) and all(map(is_right, value.values()))


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "record_version": lambda value: type(value) is int and value == RECORD_VERSION,
    "program": _is_text,
    "versions": _all(_is_text),
    "model": _is_text,
    "model_digest": _is_text,
    "device": _is_text,
    "device_reason": _is_text,
    "pictures": _is_count,
    "scored": _is_count,
    "reused": _is_count,
    "statuses": _all(_is_count),
    "labels": _all(_is_count),
    "confidence": _is_confidence,
    "stages": _all(_is_stage),
    "folders_not_read": _is_count,
    "started": _is_time,
    "ended": _is_time,
    "exit_code": _is_count,
}
"""Of each field, whether a JSON value can be its value."""
