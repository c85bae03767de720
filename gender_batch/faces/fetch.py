"""Where the face detector's file comes from, where it is kept, and that it is the right one."""

from __future__ import annotations

import hashlib
import os
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path

import platformdirs

NAME = "face_detection_yunet_2023mar.onnx"
SOURCE = f"https://github.com/opencv/opencv_zoo/raw/main/models/face_detection_yunet/{NAME}"
SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
SIZE = 232_589
"""Bytes of the file; no more is ever read of another."""

VARIABLE = "GENDER_BATCH_DETECTOR"
"""Environment variable that names the file."""

GET_IT = f"`gender-batch fetch-detector` fetches it; or name its file with --detector or {VARIABLE}"

_TIMEOUT = 60.0


class DetectorError(Exception):
    """There is no detector, or the file is another one. The message names the file, the cause and the remedy."""


def default_place(folder: Path | None = None) -> Path:
    """Where `fetch` keeps the detector: in the user's data folder."""
    return (folder or platformdirs.user_data_path("gender-batch")) / NAME


def find_detector(named: Path | None = None, environment: Mapping[str, str] = os.environ) -> Path | None:
    """The detector's file: `named`, or what the environment names, or what was fetched; None if none of these is.

    Raises DetectorError where a file is named that is not there.
    """
    # Not Path.is_file, which raises where the folder of another user, as of cron's HOME, may not be entered.
    place = named or (Path(value) if (value := environment.get(VARIABLE)) else None)
    if place:
        if not os.path.isfile(place):
            raise DetectorError(f"{place}: no such file; {GET_IT}")
        return place
    place = default_place()
    return place if os.path.isfile(place) else None


def verified(path: Path) -> bytes:
    """The content of the detector's file. Raises DetectorError if it is not the pinned one."""
    try:
        with path.open("rb") as file:
            content = file.read(SIZE + 1)
    except OSError as error:
        raise DetectorError(f"{path}: {error.strerror}; {GET_IT}") from None
    _check(content, str(path))
    return content


def fetch(place: Path, source: str = SOURCE) -> None:
    """Download the detector to `place`, whole or not at all. Raises DetectorError."""
    if os.path.lexists(place) and not (place.is_file() or place.is_dir()):  # that a folder cannot be, the system tells
        raise DetectorError(f"{place}: not a file, and would be replaced by one; name another with --out")
    try:
        with urllib.request.urlopen(source, timeout=_TIMEOUT) as answer:  # noqa: S310 - the scheme is pinned above
            content = answer.read(SIZE + 1)
    except (OSError, HTTPException) as error:
        # The latter, of a proxy that speaks no HTTP or whose address is none, quotes what it got, line ends and all.
        reason = repr(error) if isinstance(error, HTTPException) else getattr(error, "reason", error)
        raise DetectorError(
            f"{source}: {reason}; where there is no network, bring the file and name it with --detector or {VARIABLE}"
        ) from None
    _check(content, source)
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)


def _check(content: bytes, source: str) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise DetectorError(
            f"{source}: not {NAME}, and not used: its SHA-256 is {digest[:16]}..., not {SHA256[:16]}...; bring "
            f"the right file, and name it with --detector or {VARIABLE}"
        )
