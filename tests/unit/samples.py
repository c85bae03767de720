"""Pictures made here and the bytes of their files; none shows a person."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ORIENTATION = 0x0112

INVERSE = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""By Exif orientation, what turns the upright picture into the one that a camera stores with that tag."""


def dark_and_light(folder: Path, count: int, side: int) -> None:
    """Two classes of so many pictures each, which anything can tell apart: `dark/0.png`, `light/0.png`, ..."""
    drawn = np.random.default_rng(0)
    for label in ("dark", "light"):
        (folder / label).mkdir(parents=True)
        for number in range(count):
            pixels = drawn.integers(0, 128, (side, side, 3)) + 127 * (label == "light")
            Image.fromarray(pixels.astype(np.uint8)).save(folder / label / f"{number}.png")


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture no two pixels of which agree but by chance: every shift and flip shows."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def smooth(width: int, height: int) -> Image.Image:
    """Four differently coloured quarters: survives lossy compression, and no flip or rotation leaves it the same."""
    picture = Image.new("RGB", (width, height), (250, 250, 250))
    picture.paste((220, 30, 30), (0, 0, width // 2, height // 2))
    picture.paste((30, 200, 30), (width // 2, 0, width, height // 2))
    picture.paste((30, 30, 220), (0, height // 2, width // 2, height))
    return picture


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of a file of Pillow's format `kind`."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def oriented(upright: Image.Image, orientation: int, kind: str, **options: Any) -> bytes:
    """A file that shows `upright` to whoever respects its Exif orientation."""
    inverse = INVERSE[orientation]
    stored = upright if inverse is None else upright.transpose(inverse)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(stored, kind, exif=exif, **options)


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(
    width: int, height: int, packed: bytes = b"", bits: int = 8, colour: int = 2, transparent: tuple[int, ...] = ()
) -> bytes:
    """A PNG by hand: `packed` is the compressed content of its only IDAT chunk, `transparent` the value that is."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    transparency = [(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))] if transparent else []
    chunks = [(b"IHDR", header), *transparency, (b"IDAT", packed), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(name, content) for name, content in chunks)


def bmp_with_alpha(image: Image.Image) -> bytes:
    """A 32-bit BMP of an RGBA picture, whose header says where its alpha is."""
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    information = struct.pack("<IiiHHIIiiIIIIII", 56, image.width, -image.height, 1, 32, 3, 0, 0, 0, 0, 0, *masks)
    return struct.pack("<2sIHHI", b"BM", 0, 0, 0, 70) + information + image.tobytes("raw", "BGRA")


def bmp_header(width: int, height: int) -> bytes:
    """A 24-bit BMP without its pixels."""
    information = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return struct.pack("<2sIHHI", b"BM", 54, 0, 0, 54) + information


def tiff_header(
    width: int, height: int, bits: int = 8, photometric: int = 1, samples: int = 1, planar: int = 1
) -> bytes:
    """An uncompressed TIFF in one strip, without its pixels; by default an 8-bit greyscale."""
    tags = (
        (256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, samples),
        (278, height), (279, 1), (284, planar),
    )  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)


def gif_header(width: int, height: int) -> bytes:
    """A GIF of one frame, without its pixels."""
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    return screen + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x01\x44\x00;"


def jpeg_header(width: int, height: int) -> bytes:
    """A greyscale JPEG up to the start of its scan."""
    frame = struct.pack(">HHBHHBBBB", 0xFFC0, 11, 8, height, width, 1, 1, 0x11, 0)
    scan = struct.pack(">HHBBBBBB", 0xFFDA, 8, 1, 1, 0, 0, 63, 0)
    return b"\xff\xd8" + frame + scan + b"\xff\xd9"
