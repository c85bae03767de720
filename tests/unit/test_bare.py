"""pictures/bare.py: profiles, comments and thumbnails go before the decoder sees the file, and no pixel changes."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from samples import encoded, noise, oriented, png_chunk, smooth

from gender_batch.pictures.bare import without_metadata
from gender_batch.pictures.read import PictureError, decode_picture
from gender_batch.prediction import Status

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
SIDEWAYS = struct.pack("<2sHIHHHIII", b"II", 42, 8, 1, 0x0112, 3, 1, 6, 0)
"""A block of EXIF: turn by 90 degrees."""


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def with_segments(data: bytes, *segments: bytes) -> bytes:
    return data[:2] + b"".join(segments) + data[2:]


def with_chunks(data: bytes, *chunks: bytes) -> bytes:
    """Before the pixels: IHDR ends at byte 33."""
    return data[:33] + b"".join(chunks) + data[33:]


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode_picture(data).image)


# JPEG


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"keep_rgb": True}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_has_the_same_pixels_without_its_metadata(mode: str, options: dict[str, bool]) -> None:
    image = smooth(64, 48).convert(mode)
    plain = encoded(image, "JPEG", **options)
    rich = encoded(
        image,
        "JPEG",
        icc_profile=noise(300, 300).tobytes(),
        comment=b"a comment",
        exif=bytes(60_000),
        xmp=XMP,
        **options,
    )
    assert len(rich) > len(plain) + 300_000
    assert len(without_metadata("JPEG", rich).data) <= len(plain)
    with Image.open(io.BytesIO(rich)) as opened:
        expected = np.asarray(opened.convert("RGB"))
    assert np.array_equal(pixels(rich), expected)


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(
            segment(0xE1, b"Exif\0\0" + struct.pack("<2sHIHHHI4sI", b"II", 42, 8, 1, 0x011A, 2, 4, b"abc\0", 0)),
            id="a resolution that is no number",
        ),
        pytest.param(segment(0xE2, b"ICC_PROFILE\0"), id="a profile without its number"),
        pytest.param(segment(0xE0, b"JFIF\0"), id="a JFIF header that is too short"),
        pytest.param(segment(0xE0, b""), id="an empty one"),
        pytest.param(segment(0xEE, b"Adobe"), id="an Adobe header that is too short"),
        pytest.param(segment(0xED, b"Photoshop 3.0\x008BIM\x04"), id="a Photoshop block cut short"),
        pytest.param(segment(0xE2, b"MPF\0II*\0"), id="an index of several pictures that is none"),
        pytest.param(b"\xff\xff\xff" + segment(0xFE, b"fill bytes"), id="fill bytes"),
    ],
)
def test_what_is_odd_beside_the_picture_does_not_matter(odd: bytes) -> None:
    data = encoded(noise(24, 16), "JPEG")
    assert np.array_equal(pixels(with_segments(data, odd)), pixels(data))


def test_only_the_first_of_many_blocks_of_exif_counts() -> None:
    first, second = (segment(0xE1, b"Exif\0\0" + SIDEWAYS[:18] + bytes((to,)) + SIDEWAYS[19:]) for to in (3, 6))
    data = encoded(smooth(64, 48), "JPEG", quality=95)
    picture = decode_picture(with_segments(data, segment(0xE1, b"Exif\0\0"), first, second))
    assert (picture.width, picture.height) == (64, 48)
    assert np.array_equal(np.asarray(picture.image), np.rot90(pixels(data), 2))


def test_millions_of_segments_take_little_memory() -> None:
    data = with_segments(encoded(noise(24, 16), "JPEG"), segment(0xFE, b"") * 200_000)
    tracemalloc.start()
    try:
        assert len(without_metadata("JPEG", data).data) < 2000
        assert tracemalloc.get_traced_memory()[1] < len(data)
    finally:
        tracemalloc.stop()


def test_of_several_pictures_in_a_file_the_first_is_read() -> None:
    data = encoded(smooth(64, 48), "MPO", save_all=True, append_images=[noise(64, 48)])
    assert b"MPF\0" in data
    assert np.array_equal(pixels(data), pixels(encoded(smooth(64, 48), "JPEG")))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("shorter_side", [None, 60])
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("exif", [b"", b"Exif\0\0" + bytes(30) + b"\xff\xd9"])
def test_zeros_in_place_of_the_rest_are_no_picture(
    share: float, shorter_side: int | None, options: dict[str, bool], exif: bytes
) -> None:
    """As of a copy for which the room was made before its bytes came."""
    data = encoded(smooth(640, 480), "JPEG", exif=exif, **options)
    arrived = int(share * len(data))
    with pytest.raises(PictureError, match="truncated") as caught:
        decode_picture(data[:arrived] + bytes(len(data) - arrived), shorter_side)
    assert (caught.value.status, caught.value.width, caught.value.height) == (Status.CORRUPT, 640, 480)


# PNG


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(png_chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(3 << 20))), id="a huge profile"),
        pytest.param(png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3 << 20))), id="a huge text"),
        pytest.param(png_chunk(b"zTXt", b"Comment\0\x07what"), id="a text compressed nobody knows how"),
        pytest.param(png_chunk(b"pHYs", bytes(9))[:-1] + b"?", id="a checksum that is wrong"),
        pytest.param(png_chunk(b"pHYs", b""), id="a chunk too short"),
        pytest.param(png_chunk(b"acTL", b""), id="an animation without frames"),
    ],
)
def test_what_is_odd_beside_the_pixels_of_a_png_does_not_matter(odd: bytes) -> None:
    data = encoded(noise(24, 16), "PNG")
    assert np.array_equal(pixels(with_chunks(data, odd)), np.asarray(noise(24, 16)))


def test_a_checksum_that_is_wrong_does_where_it_is_the_pixels() -> None:
    data = bytearray(encoded(noise(24, 16), "PNG"))
    data[data.index(b"IDAT") + 40] ^= 1
    with pytest.raises(PictureError):
        decode_picture(bytes(data))


def test_exif_may_follow_the_pixels() -> None:
    upright = noise(31, 17)
    data = oriented(upright, 6, "PNG")
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    last = data.index(b"IEND") - 4
    moved = data[:start] + data[end:last] + data[start:end] + data[last:]
    assert moved.index(b"eXIf") > moved.index(b"IDAT")
    assert np.array_equal(pixels(moved), np.asarray(upright))


# Any


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("WEBP", {"lossless": True}),
        ("AVIF", {"quality": 95}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
@pytest.mark.parametrize("exif", [b"", b"Exif\0\0" + SIDEWAYS[:18] + b"\1" + SIDEWAYS[19:]], ids=["none", "upright"])
def test_an_orientation_in_xmp_turns_nothing(kind: str, options: dict[str, object], exif: bytes) -> None:
    """No browser obeys it, and what turns the pixels and takes the EXIF away often leaves it."""
    options = {**options, **({"tiffinfo": {700: XMP}} if kind == "TIFF" else {"xmp": XMP})}
    data = encoded(smooth(64, 48), kind, **options, **({"exif": exif} if exif else {}))
    assert b'tiff:Orientation="6"' in data
    picture = decode_picture(data)
    assert (picture.width, picture.height) == picture.image.size == (64, 48)
    assert np.abs(np.asarray(picture.image).astype(int) - np.asarray(smooth(64, 48))).mean() < 3


def test_nor_does_it_in_a_png() -> None:
    text = png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)
    assert np.array_equal(pixels(with_chunks(encoded(noise(24, 16), "PNG"), text)), np.asarray(noise(24, 16)))


@given(
    data=st.one_of(
        st.binary(max_size=60).map(lambda rest: b"\xff\xd8" + rest),
        st.lists(
            st.builds(segment, st.sampled_from([0xE0, 0xE1, 0xEE, 0xFE, 0xDB, 0xDA, 0xD9]), st.binary(max_size=20))
        ).map(lambda segments: b"\xff\xd8" + b"".join(segments)),
        st.lists(
            st.builds(png_chunk, st.sampled_from([b"IDAT", b"tEXt", b"tRNS", b"eXIf"]), st.binary(max_size=20))
        ).map(lambda chunks: b"\x89PNG\r\n\x1a\n" + b"".join(chunks)),
    ),
    more=st.binary(max_size=10),
)
def test_what_is_bare_stays_as_it_is(data: bytes, more: bytes) -> None:
    kind = "PNG" if data.startswith(b"\x89") else "JPEG"
    once = without_metadata(kind, data + more)
    assert len(once.data) <= len(data + more)
    again = without_metadata(kind, once.data)
    assert again.data == once.data
    assert again.ends == once.ends
