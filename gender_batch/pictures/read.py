"""Read one picture file safely: bytes of any kind in, an upright RGB picture or a reason out."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import stat
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from gender_batch.pictures.bare import without_metadata
from gender_batch.pictures.scans import NeverEnoughError, ends_properly, shortened, without_late_scans
from gender_batch.prediction import Status

PIXEL_LIMIT = 89_478_485
"""Largest width x height that is decoded: Pillow's own bound, a quarter of a gigabyte of RGB."""

BYTE_LIMIT = 512 * 1024 * 1024
"""Largest file that is read into memory."""

BLOCK = 32 * 1024
"""Bytes that are asked for at a time where perhaps not all are needed."""

EXIF_ORIENTATION = 0x0112
"""Tag number of the orientation, 1..8 (Exif 2.32, 4.6.4 A)."""

BITS_PER_SAMPLE, PHOTOMETRIC, PLANAR_CONFIGURATION = 258, 262, 284
"""Tags of a TIFF (TIFF 6.0, section 8)."""

WHITE_IS_ZERO, SEPARATE = 0, 2
"""Values of the second and the third of them."""


class PictureError(Exception):
    """This file gives no picture. Carries the row's status, and the size as the header told it, if it did."""

    def __init__(self, status: Status, message: str, width: int | None = None, height: int | None = None):
        super().__init__(message)
        self.status = status
        self.width = width
        self.height = height


@dataclass(frozen=True)
class Picture:
    """An upright RGB picture; `width` and `height` are those of the oriented original, before any reduction."""

    image: Image.Image
    width: int
    height: int


def read_picture(path: str, shorter_side: int | None = None) -> Picture:
    """Read, decode, orient and flatten the picture at `path`.

    With `shorter_side` a JPEG is decoded at the smallest of the scales 1, 1/2, 1/4, 1/8 that leaves its
    shorter side at least that many pixels (libjpeg's scaled inverse DCT), a progressive one at 1/4 and 1/8 without
    the scans of its finest detail. Transparency is composed on white,
    16-bit greyscale is scaled to 8 bits, CMYK is converted, an animation gives its first frame.

    Raises PictureError; no other error leaves this function whatever the file holds.
    """
    return decode_picture(read_bytes(path), shorter_side)


def content_digest(path: str) -> bytes | None:
    """SHA-256 of the file, 32 bytes; None where it cannot be read as a picture's would be."""
    try:
        return hashlib.sha256(read_bytes(path)).digest()
    except PictureError:
        return None


def decode_picture(data: bytes, shorter_side: int | None = None) -> Picture:
    """`read_picture` for the bytes of a file."""
    if not data:
        raise PictureError(Status.EMPTY, "the file has no bytes")
    name = _format_of(data)
    if name is None:
        raise PictureError(Status.UNSUPPORTED, f"not a picture of a known format ({', '.join(_SIGNATURES)})")
    if name == "HEIF":
        _require_heif()
    width = height = None
    try:
        data, exif, ends = without_metadata(name, data)
        if name == "JPEG" and shorter_side is not None:
            data = without_late_scans(data, shorter_side)
        with warnings.catch_warnings():
            # Pillow warns of bombs (refused below), odd EXIF and odd ICC profiles: nobody reads that at night.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=[name]) as image:
                # An orientation in XMP is for editors. Pillow obeys it, but what has turned a picture often forgets it.
                image.info.pop("xmp", None)
                # Pillow turns a TIFF itself.
                orientation = 1 if name == "TIFF" else _orientation(exif or image.info.get("exif"))
                width, height = _oriented(image.size, orientation)
                if width * height > PIXEL_LIMIT:
                    raise PictureError(
                        Status.TOO_LARGE,
                        f"{width} x {height} pixels; the limit is {PIXEL_LIMIT:,} pixels",
                        width,
                        height,
                    )
                if name == "TIFF" and (kind := _misread(image)):
                    raise PictureError(Status.UNSUPPORTED, f"TIFF: {kind}", width, height)
                if not ends:
                    # Where zeros stand for the rest, as in a copy that was not finished, libjpeg takes them for grey.
                    raise PictureError(Status.CORRUPT, "JPEG: the file is truncated: no end marker", width, height)
                if shorter_side is not None:
                    image.draft(None, (shorter_side, shorter_side))
                if name == "PNG" and "transparency" in image.info:
                    _scale_transparent_value(image, bits=data[24])
                image.load()
                upright = _flatten(image)
                if orientation != 1:
                    upright = upright.transpose(_TRANSPOSITIONS[orientation])
                upright.info = {}  # colour profile and comments would go into whatever is made of it
                return Picture(upright, width, height)
    except PictureError:
        raise
    except Image.DecompressionBombError:
        raise PictureError(
            Status.TOO_LARGE, f"more than {2 * PIXEL_LIMIT:,} pixels; the limit is {PIXEL_LIMIT:,} pixels"
        ) from None
    except UnidentifiedImageError:
        raise _unidentified(name, data) from None
    except MemoryError:
        raise PictureError(Status.TOO_LARGE, "no memory to decode it", width, height) from None
    except Exception as error:  # noqa: BLE001 - decoders raise anything on damaged data; it is the file's row
        raise PictureError(
            Status.CORRUPT, f"{name}: {_one_line(error) or type(error).__name__}", width, height
        ) from None


_ANYBODY_READS = stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH


def read_bytes(path: str, limit: int = BYTE_LIMIT) -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises PictureError."""
    return _read(path, limit, lambda file, size: file.read(size + 1))


def read_needed(path: str, shorter_side: int, limit: int = BYTE_LIMIT) -> bytes:
    """`read_bytes`, but of a file of which `decode_picture` leaves out scans for `shorter_side` only what it keeps:
    less than half of the bytes, asked for one after another, which pays where bytes come slowly."""
    return _read(path, limit, partial(_take_needed, shorter_side))


def _take_needed(shorter_side: int, file: BinaryIO, size: int) -> bytes:
    # Otherwise the system would read on, unasked.
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
    enough = size + 1  # also of a file that has grown meanwhile, as one that is still being copied
    data = file.read(min(BLOCK, enough))
    try:
        short = shortened(data, shorter_side)
        if not ends_properly(os.pread(file.fileno(), 2, max(0, size - 2))):
            raise NeverEnoughError
        # By a quarter more each time: what is there is looked at from its start again.
        while short is None and (more := file.read(min(max(BLOCK, len(data) // 4), enough - len(data)))):
            data += more
            short = shortened(data, shorter_side)
    except NeverEnoughError:
        short = None
    return data + file.read(enough - len(data)) if short is None else short


def _read(path: str, limit: int, take: Callable[[BinaryIO, int], bytes]) -> bytes:
    """What is taken of a file of so many bytes."""
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise PictureError(Status.UNREADABLE, "not a regular file")
            if not status.st_mode & _ANYBODY_READS:
                # The kernel lets root read it all the same; who locked it meant everybody.
                raise PictureError(Status.UNREADABLE, os.strerror(errno.EACCES))
            if status.st_size > limit:
                raise PictureError(Status.TOO_LARGE, f"{status.st_size:,} bytes; the limit is {limit:,} bytes")
            return take(file, status.st_size)
    except ValueError:  # a NUL, or a surrogate that stands for no byte
        raise PictureError(Status.UNREADABLE, "no file can have this name") from None
    except OSError as error:
        # The path is in the row already, and a message must not depend on it.
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        if error.errno == errno.ENOENT:
            reason = "the file is gone, or the link points nowhere"
        raise PictureError(Status.UNREADABLE, reason) from None
    except MemoryError:
        raise PictureError(Status.TOO_LARGE, "no memory to read it") from None


def _open_without_waiting(path: str, flags: int) -> int:
    """Opening a FIFO must not wait for its writer."""
    return os.open(path, flags | os.O_NONBLOCK)


_SIGNATURES = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")

# Lengths of the known headers that can follow a BMP's file header, as its bytes 14..17 give them.
_BMP_HEADERS = frozenset({12, 16, 40, 52, 56, 64, 108, 124})


def _format_of(data: bytes) -> str | None:
    """Pillow's name of the format whose signature the data begins with; the file's suffix plays no part."""
    if data.startswith(b"\xff\xd8"):
        return "JPEG"
    if data.startswith(b"\x89PNG"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith(b"GIF8"):
        return "GIF"
    # The last two are no TIFF by the book, but there are writers of them, and Pillow reads what they write.
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"II\0*", b"MM*\0")):
        return "TIFF"
    if data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if data[4:8] == b"ftyp":
        # ISO base media: the major brand, then the compatible ones, four letters each.
        brands = {data[start : start + 4] for start in range(8, min(len(data), data[3]), 4)}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        if brands & {b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"}:
            return "HEIF"
    return None


def reads_heif() -> bool:
    """Whether what HEIC pictures need is installed."""
    return find_spec("pillow_heif") is not None


def _require_heif() -> None:
    try:
        import pillow_heif
    except ImportError:
        raise PictureError(Status.UNSUPPORTED, "HEIC pictures need: pip install 'gender-batch[heic]'") from None
    if "HEIF" not in Image.OPEN:
        pillow_heif.register_heif_opener()


_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(block: bytes | None) -> int:
    """The orientation, 1..8, in a block of EXIF."""
    exif = Image.Exif()
    try:
        exif.load(block or b"")
        value = exif.get(EXIF_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - a damaged EXIF block does not make the picture unusable
        return 1
    return value if value in _TRANSPOSITIONS else 1


def _oriented(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return (size[1], size[0]) if orientation >= 5 else size


def _flatten(image: Image.Image) -> Image.Image:
    """RGB of any of Pillow's modes, transparency on white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if _is_wide(image):
        return _greyscale(image).convert("RGB")
    if image.mode == "La":  # grey that is multiplied by its alpha already: Pillow converts it to nothing but LA
        image = image.convert("LA")
    if image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getbbox() is None:
        return image.convert("RGB")  # many writers leave the fourth byte 0, and mean no transparency
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return image.convert("RGB")


def _scale_transparent_value(image: Image.Image, bits: int) -> None:
    """The value of a PNG that is transparent as the pixels have it: Pillow makes them 8 bits wide, but not that."""
    value = image.info["transparency"]
    if image.mode == "L" and bits < 8:
        image.info["transparency"] = value % (1 << bits) * (255 // ((1 << bits) - 1))
    elif image.mode == "RGB" and bits == 16:
        image.info["transparency"] = tuple(sample >> 8 for sample in value)


_NOT_FOR_PILLOW = ("cannot handle", "unknown pixel mode")
"""How its readers begin to speak of pictures that they do not know: JPEGs of 12 bits, TIFFs of 32-bit colours."""


def _unidentified(name: str, data: bytes) -> PictureError:
    """Why Pillow did not take the bytes for a picture of that format: `Image.open` does not pass on what the format's
    own reader said."""
    reason = "its header cannot be read"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.OPEN[name][0](io.BytesIO(data), "").close()
    except Exception as error:  # noqa: BLE001 - as above
        reason = _one_line(error) or reason
    status = Status.UNSUPPORTED if reason.startswith(_NOT_FOR_PILLOW) else Status.CORRUPT
    return PictureError(status, f"{name}: {reason}")


def _is_wide(image: Image.Image) -> bool:
    """Greyscale of more than 8 bits."""
    return image.mode.startswith("I;16") or image.mode in ("I", "F")


def _misread(image: Image.Image) -> str:
    """What Pillow takes for something else without a word, as the tags of a TIFF tell it; empty for all else."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    if _is_wide(image) and tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        return "greyscale of more than 8 bits whose white is 0"
    if image.mode == "RGB" and tags.get(PLANAR_CONFIGURATION) == SEPARATE and max(tags.get(BITS_PER_SAMPLE, (8,))) > 8:
        return "colours of more than 8 bits in planes of their own"
    return ""


def _greyscale(image: Image.Image) -> Image.Image:
    """8-bit greyscale of 16-bit, 32-bit integer and float greyscale.

    16-bit values are scaled by 1/257. Wider integers and floats have no agreed range: a picture within
    0..65535 or 0..1 is scaled by that range, any other by its own smallest and largest value.
    """
    values = np.asarray(image).astype(np.float64)
    values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    natural = 1.0 if image.mode == "F" else 65535.0
    if low >= 0.0 and high <= natural:
        low, high = 0.0, natural
    scaled = (values - low) * (255.0 / max(high - low, 1e-12))
    if "transparency" in image.info:  # of a PNG: one of its values
        scaled[values == image.info["transparency"]] = 255.0
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def _one_line(error: Exception) -> str:
    with contextlib.suppress(Exception):
        return " ".join(str(error).split())[:200]
    return ""
