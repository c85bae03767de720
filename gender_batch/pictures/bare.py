"""Take what is no picture out of a JPEG or PNG before it is decoded, without decoding it.

Pillow reads profiles, comments and thumbnails whether or not anybody asks for them, and gives up a picture that is
sound for what is odd in them, or for their size.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_EOI, _APP0, _APP1, _APP14 = 0xD9, 0xE0, 0xE1, 0xEE

_SEGMENT = re.compile(rb"\xff+([\xc0-\xcf\xdb-\xef\xfe])(..)", re.DOTALL)
"""A header's segment: its marker, before which there may be any number of fill bytes, and its length (T.81, B.1.1.4).
Those from APP0 on, APPn and COM, are not needed to decode the picture; the first scan, SOS, ends the header."""

_EXIF = b"Exif\0\0"

_JFIF, _JFIF_LENGTH = b"JFIF\0", 14
_ADOBE, _ADOBE_LENGTH = b"Adobe", 12
"""The two segments that tell libjpeg what the colours are, and the bytes it heeds them from (jdmarker.c)."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ANCILLARY = 0x20
"""The bit of a chunk type's first letter that says: not necessary to show the picture (PNG, 5.4)."""


class Bare(NamedTuple):
    """`data` is the file without what is no picture; `exif` the block that was cut out of it, if any, as Pillow takes
    it; `ends` tells of a JPEG whether there is an end marker behind its header."""

    data: bytes
    exif: bytes | None = None
    ends: bool = True


def without_metadata(kind: str, data: bytes) -> Bare:
    """The file in `data`, of the format that Pillow calls `kind`, without what does not change its pixels.

    Of a JPEG's header all APPn segments and comments go but those that say what its colours are; of a PNG all ancillary
    chunks but the transparency, so also the frames of an animation that follow the first. What is irregular, and all
    behind it, stays, so that the decoder says of it what it always says. Other formats come back as they are.
    """
    if kind == "JPEG":
        return _bare_jpeg(data)
    if kind == "PNG" and data.startswith(_PNG_SIGNATURE):
        return _bare_png(data)
    return Bare(data)


def _bare_jpeg(data: bytes) -> Bare:
    kept: list[bytes] = []
    exif = None
    kept_from, position = 0, 2
    while header := _SEGMENT.match(data, position):
        marker = header[1][0]
        content_from = header.end()
        end = content_from - 2 + (header[2][0] << 8 | header[2][1])
        if not content_from <= end <= len(data):
            break
        start, position = position, end
        if marker >= _APP0:
            content = data[content_from:end]
            if exif is None and marker == _APP1 and content.startswith(_EXIF) and content != _EXIF:
                exif = content
            if not _tells_colours(marker, content):
                if kept_from < start:  # a hostile file has millions of segments, one behind the other
                    kept.append(data[kept_from:start])
                kept_from = end
    return Bare(b"".join([*kept, data[kept_from:]]), exif, data.rfind(bytes((0xFF, _EOI))) >= position)


def _tells_colours(marker: int, content: bytes) -> bool:
    return (marker == _APP0 and content.startswith(_JFIF) and len(content) >= _JFIF_LENGTH) or (
        marker == _APP14 and content.startswith(_ADOBE) and len(content) >= _ADOBE_LENGTH
    )


def _bare_png(data: bytes) -> Bare:
    kept: list[bytes] = []
    exif = None
    kept_from, position = 0, len(_PNG_SIGNATURE)
    while position + 12 <= len(data):
        kind = data[position + 4 : position + 8]
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")  # length, type, content, CRC
        if end > len(data) or not kind.isalpha():
            break
        if kind == b"eXIf" and exif is None:
            exif = _EXIF + data[position + 8 : end - 4]
        if kind[0] & _ANCILLARY and kind != b"tRNS":
            if kept_from < position:
                kept.append(data[kept_from:position])
            kept_from = end
        position = end
    return Bare(b"".join([*kept, data[kept_from:]]), exif)
