"""pictures/read.py: bytes of any kind in, an upright RGB picture or a reason out."""

import io
import os
import random
import socket
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from samples import (
    bmp_header,
    bmp_with_alpha,
    encoded,
    gif_header,
    jpeg_header,
    noise,
    oriented,
    png,
    smooth,
    tiff_header,
)

from gender_batch.pictures import read
from gender_batch.pictures.read import (
    BLOCK,
    PIXEL_LIMIT,
    Picture,
    PictureError,
    _take_needed,
    decode_picture,
    read_needed,
    read_picture,
)
from gender_batch.prediction import Status

LOSSLESS: dict[str, dict[str, object]] = {
    "PNG": {},
    "TIFF": {"compression": "tiff_lzw"},
    "WEBP": {"lossless": True},
    "BMP": {},
}
LOSSY: dict[str, dict[str, object]] = {"JPEG": {"quality": 95}, "AVIF": {"quality": 95}}


def pixels(picture: Picture) -> np.ndarray:
    assert picture.image.mode == "RGB"
    return np.asarray(picture.image).astype(int)


def refused(data: bytes) -> PictureError:
    with pytest.raises(PictureError) as caught:
        decode_picture(data)
    return caught.value


def refused_path(path: str | Path) -> PictureError:
    with pytest.raises(PictureError) as caught:
        read_picture(str(path))
    return caught.value


# Formats


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_give_the_very_pixels(kind: str) -> None:
    original = noise(37, 23)
    picture = decode_picture(encoded(original, kind, **LOSSLESS[kind]))
    assert (picture.width, picture.height) == (37, 23)
    assert np.array_equal(pixels(picture), np.asarray(original))


@pytest.mark.parametrize("kind", LOSSY)
def test_lossy_formats_give_nearly_the_pixels(kind: str) -> None:
    original = smooth(64, 48)
    picture = decode_picture(encoded(original, kind, **LOSSY[kind]))
    assert (picture.width, picture.height) == (64, 48)
    assert np.abs(pixels(picture) - np.asarray(original)).mean() < 3


def test_gif_gives_the_pixels_of_its_palette() -> None:
    original = smooth(40, 30)
    assert np.array_equal(pixels(decode_picture(encoded(original, "GIF"))), np.asarray(original))


def test_heic_is_read() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    original = smooth(64, 48)
    file = io.BytesIO()
    pillow_heif.from_pillow(original).save(file, quality=95)
    picture = decode_picture(file.getvalue())
    assert (picture.width, picture.height) == (64, 48)
    assert np.abs(pixels(picture) - np.asarray(original)).mean() < 3


@pytest.mark.parametrize(
    ("frames", "major", "compatible"),
    [(1, b"avif", b"mif1"), (1, b"mif1", b"avif"), (2, b"avis", b"mif1"), (2, b"mif1", b"avis"), (2, b"avif", b"avis")],
)
def test_an_avif_is_known_by_any_of_its_brands(frames: int, major: bytes, compatible: bytes) -> None:
    more = [smooth(64, 48)] * (frames - 1)
    data = bytearray(encoded(smooth(64, 48), "AVIF", quality=95, save_all=True, append_images=more))
    brands = range(16, data[3], 4)
    assert bytes(data[4:8]) == b"ftyp"
    data[8:12] = major
    for start in brands:
        data[start : start + 4] = compatible if start == brands[-1] else b"mif1"
    picture = decode_picture(bytes(data))
    assert np.abs(pixels(picture) - np.asarray(smooth(64, 48))).mean() < 3


def test_a_tiff_of_more_than_four_gigabytes_is_one_too() -> None:
    data = encoded(noise(8, 8), "TIFF", big_tiff=True)
    assert data[:4] == b"II+\0"
    assert np.array_equal(pixels(decode_picture(data)), np.asarray(noise(8, 8)))


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_baseline_and_progressive_jpeg(options: dict[str, bool]) -> None:
    picture = decode_picture(encoded(smooth(64, 48), "JPEG", quality=95, **options))
    assert np.abs(pixels(picture) - np.asarray(smooth(64, 48))).mean() < 3


def test_the_content_decides_not_the_suffix(tmp_path: Path) -> None:
    original = noise(8, 8)
    for name in ("picture.jpg", "picture.txt", "picture", "picture.png.part"):
        (tmp_path / name).write_bytes(encoded(original, "PNG"))
        assert np.array_equal(pixels(read_picture(str(tmp_path / name))), np.asarray(original))


# Statuses


def test_no_bytes_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    assert refused_path(tmp_path / "a.jpg").status is Status.EMPTY


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.jpg", encoded(noise(8, 8), "JPEG"))
    return file.getvalue()


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: b"this is not a photo\n", id="text"),
        pytest.param(lambda: b"<html><body>403</body></html>", id="html"),
        pytest.param(lambda: b"\x00", id="one byte"),
        pytest.param(lambda: b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0" + bytes(24), id="a sound"),
        pytest.param(lambda: b"BM and no bitmap: text that begins so", id="BM"),
        pytest.param(lambda: b"\0\0\0\x14ftypisom\0\0\0\0mp41\0\0\0\x08avif", id="a film"),
        pytest.param(zipped, id="zip"),
        pytest.param(lambda: encoded(noise(16, 16), "ICO"), id="ICO"),
        pytest.param(lambda: encoded(noise(8, 8), "PPM"), id="PPM"),
        pytest.param(lambda: encoded(noise(8, 8), "TGA"), id="TGA"),
        pytest.param(lambda: encoded(noise(8, 8), "PDF"), id="PDF"),
        pytest.param(lambda: encoded(noise(8, 8), "EPS"), id="EPS"),
    ],
)
def test_what_is_no_picture_of_the_allowlist_is_unsupported(make: Callable[[], bytes], tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(make())
    assert refused_path(tmp_path / "a.jpg").status is Status.UNSUPPORTED


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("AVIF", {}),
    ],
)
def test_cut_short_is_corrupt(kind: str, options: dict[str, object], share: float) -> None:
    data = encoded(noise(64, 48), kind, **options)
    assert refused(data[: max(16, int(share * len(data)))]).status is Status.CORRUPT


def test_cut_short_is_corrupt_also_when_decoded_at_a_reduced_scale() -> None:
    data = encoded(noise(400, 300), "JPEG", progressive=True)
    with pytest.raises(PictureError) as caught:
        decode_picture(data[: len(data) // 2], shorter_side=30)
    assert caught.value.status is Status.CORRUPT
    assert (caught.value.width, caught.value.height) == (400, 300)


@pytest.mark.parametrize("position", [0.02, 0.3, 0.6, 0.9])
def test_damaged_png_is_corrupt(position: float) -> None:
    data = bytearray(encoded(noise(40, 60), "PNG"))
    start = int(position * len(data)) if position > 0.1 else 60
    data[start : start + 20] = b"\xff" * 20
    assert refused(bytes(data)).status is Status.CORRUPT


def test_png_whose_compressed_content_is_garbage_is_corrupt() -> None:
    assert refused(png(30, 20, b"\x78\x9c" + bytes(range(256)))).status is Status.CORRUPT


def test_damaged_webp_is_corrupt() -> None:
    data = bytearray(encoded(noise(64, 48), "WEBP", lossless=True))
    data[30:200] = b"\xff" * 170
    assert refused(bytes(data)).status is Status.CORRUPT


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\xff\xd8 not a photo", id="JPEG"),
        pytest.param(b"\x89PNG not a photo", id="PNG"),
        pytest.param(b"RIFF\0\0\0\0WEBP not a photo", id="WEBP"),
        pytest.param(b"GIF89a", id="GIF"),
        pytest.param(b"BM" + bytes(12) + b"\x28\0\0\0", id="BMP"),
        pytest.param(b"II*\0\xff\xff\xff\xff", id="TIFF"),
        pytest.param(b"\0\0\0\x18ftypavif\0\0\0\0avifmif1", id="AVIF"),
        # Another decoder would take it, which has no signature and guesses.
        pytest.param(b"\0\0\2\x10ftypavif\2\0\2\0\x18\x20" + bytes(12), id="AVIF, and a TGA of four pixels"),
    ],
)
def test_a_signature_alone_is_corrupt_and_its_message_is_the_same_every_time(data: bytes) -> None:
    error = refused(data)
    assert error.status is Status.CORRUPT
    message = str(error)
    assert message
    assert "\n" not in message
    # An address in memory differs from run to run: a resumed run would not end with the same output.
    assert " at 0x" not in message
    assert "BytesIO" not in message


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(png(60_000, 60_000, b"\x78\x9c"), id="PNG"),
        pytest.param(bmp_header(60_000, 60_000), id="BMP"),
        pytest.param(tiff_header(60_000, 60_000), id="TIFF"),
        pytest.param(gif_header(60_000, 60_000), id="GIF"),
        pytest.param(jpeg_header(60_000, 60_000), id="JPEG"),
    ],
)
def test_a_header_of_sixty_thousand_square_is_too_large(header: bytes) -> None:
    assert len(header) < 200
    error = refused(header)
    assert error.status is Status.TOO_LARGE
    assert f"{PIXEL_LIMIT:,}" in str(error)


@pytest.mark.parametrize("make", [bmp_header, tiff_header, gif_header, jpeg_header, png])
def test_just_above_the_limit_is_too_large_and_says_its_size(make: Callable[[int, int], bytes]) -> None:
    error = refused(make(12_000, 10_000))  # more than the limit, less than twice the limit
    assert error.status is Status.TOO_LARGE
    assert (error.width, error.height) == (12_000, 10_000)
    assert "12000 x 10000" in str(error)


@pytest.mark.parametrize("make", [bmp_header, tiff_header, gif_header, jpeg_header, png])
def test_too_large_is_refused_before_any_pixel_is_decoded(
    make: Callable[[int, int], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    load = ImageFile.ImageFile.load

    def watched(image: ImageFile.ImageFile) -> object:
        decoded.append(image.size)
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", watched)
    assert refused(make(12_000, 10_000)).status is Status.TOO_LARGE
    assert decoded == []


def test_pictures_just_below_the_limit_are_not_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "PIXEL_LIMIT", 40 * 30)
    assert decode_picture(encoded(noise(40, 30), "PNG")).width == 40
    assert refused(encoded(noise(40, 31), "PNG")).status is Status.TOO_LARGE


def test_more_bytes_than_are_read_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    with path.open("wb") as file:
        file.truncate(read.BYTE_LIMIT + 1)  # a hole: takes no space
    assert refused_path(path).status is Status.TOO_LARGE


def test_as_many_bytes_as_the_limit_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(bytes(100))
    assert len(read.read_bytes(str(tmp_path / "a.jpg"), limit=100)) == 100
    with pytest.raises(PictureError, match="100 bytes; the limit is 99 bytes"):
        read.read_bytes(str(tmp_path / "a.jpg"), limit=99)


def test_no_memory_for_a_file_or_its_pixels_is_too_large(tmp_path: Path) -> None:
    (tmp_path / "pixels.bmp").write_bytes(bmp_header(9000, 9000))  # 324 MB
    with (tmp_path / "bytes.jpg").open("wb") as file:
        file.truncate(400_000_000)
    program = """
import resource, sys
from pathlib import Path
from PIL import Image
from gender_batch.pictures.read import PictureError, read_picture
Image.init()
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000, resource.RLIM_INFINITY))
for name in ("pixels.bmp", "bytes.jpg"):
    try:
        read_picture(name)
    except PictureError as error:
        print(error.status, error.width, error.height, error)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "too_large 9000 9000 no memory to decode it",
        "too_large None None no memory to read it",
    ]


def test_what_is_missing_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "file").touch()
    for path in ("missing.jpg", "dangling.jpg", "loop.jpg", "file/below", "x" * 300):
        error = refused_path(tmp_path / path)
        assert error.status is Status.UNREADABLE
        assert str(error)
        assert str(tmp_path) not in str(error)


def test_folders_and_sockets_are_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        assert refused_path("s").status is Status.UNREADABLE
    assert refused_path(tmp_path).status is Status.UNREADABLE
    assert refused_path("/dev/null").status is Status.UNREADABLE
    assert refused_path("/dev/zero").status is Status.UNREADABLE


def test_an_error_of_reading_is_unreadable() -> None:
    assert refused_path("/proc/self/mem").status is Status.UNREADABLE


def test_a_fifo_without_writer_is_unreadable_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.jpg")
    statuses = []
    reader = threading.Thread(target=lambda: statuses.append(refused_path(tmp_path / "fifo.jpg").status), daemon=True)
    reader.start()
    reader.join(30)
    assert statuses == [Status.UNREADABLE], "it waits for a writer"


def test_without_permission_is_unreadable(unprivileged: Path) -> None:
    path = unprivileged / "a.png"
    path.write_bytes(encoded(noise(8, 8), "PNG"))
    assert read_picture(str(path)).width == 8
    path.chmod(0)
    error = refused_path(path)
    assert error.status is Status.UNREADABLE
    assert str(error) == "Permission denied"


@pytest.mark.parametrize("mode", [0o400, 0o040, 0o004])
def test_root_reads_what_anybody_may_read(mode: int, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("the kernel keeps its owner from a file that only others may read")
    (tmp_path / "a.png").write_bytes(encoded(noise(8, 8), "PNG"))
    (tmp_path / "a.png").chmod(mode)
    assert read_picture(str(tmp_path / "a.png")).width == 8


@pytest.mark.parametrize("path", ["a\0b.jpg", "\ud800.jpg"])
def test_a_name_that_no_file_can_have_is_unreadable(path: str) -> None:
    assert refused_path(path).status is Status.UNREADABLE


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("text")
    (tmp_path / "good").write_bytes(encoded(noise(8, 8), "PNG"))
    before = os.listdir("/proc/self/fd")
    for name in ("fifo", "empty", "text", "missing", ""):
        refused_path(tmp_path / name)
    read_picture(str(tmp_path / "good"))
    assert os.listdir("/proc/self/fd") == before


# Modes


def test_sixteen_bit_greyscale_png_is_scaled_not_saturated() -> None:
    values = np.array([[0, 257, 25_700, 32_896, 65_278, 65_535, 128, 129]], dtype=np.uint16)
    data = encoded(Image.fromarray(values), "PNG")
    assert data[24] == 16, "not a 16-bit PNG"
    expected = [0, 1, 100, 128, 254, 255, 0, 1]
    assert pixels(decode_picture(data)).tolist() == [[[value] * 3 for value in expected]]


def test_sixteen_bit_greyscale_tiff_of_either_byte_order_is_scaled() -> None:
    values = np.array([[0, 25_700, 65_535]], dtype=np.uint16)
    little = encoded(Image.fromarray(values), "TIFF")
    big = encoded(Image.frombytes("I;16B", (3, 1), values.astype(">u2").tobytes()), "TIFF")
    assert (little[:2], big[:2]) == (b"II", b"MM")
    for data in (little, big):
        assert pixels(decode_picture(data))[0, :, 0].tolist() == [0, 100, 255]


def test_a_transparent_value_of_a_sixteen_bit_png_is_composed_on_white() -> None:
    values = np.array([[0, 300, 25_700, 65_535]], dtype=np.uint16)
    picture = decode_picture(encoded(Image.fromarray(values), "PNG", transparency=300))
    assert pixels(picture)[0, :, 0].tolist() == [0, 255, 100, 255]


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ({"bits": 16, "photometric": 0}, "white is 0"),
        ({"bits": 16, "photometric": 2, "samples": 3, "planar": 2}, "planes"),
    ],
)
def test_a_tiff_that_would_be_misread_is_unsupported(kind: dict[str, int], told: str) -> None:
    error = refused(tiff_header(4, 3, **kind))
    assert (error.status, error.width, error.height) == (Status.UNSUPPORTED, 4, 3)
    assert told in str(error)


def test_a_tiff_of_colours_too_deep_is_unsupported() -> None:
    error = refused(tiff_header(4, 3, bits=32, photometric=2, samples=3))
    assert error.status is Status.UNSUPPORTED
    assert "pixel mode" in str(error)


def test_a_jpeg_of_twelve_bits_is_unsupported() -> None:
    data = bytearray(encoded(noise(16, 16), "JPEG"))
    data[data.index(b"\xff\xc0") + 4] = 12  # bits per sample (ITU-T T.81, B.2.2)
    error = refused(bytes(data))
    assert error.status is Status.UNSUPPORTED
    assert "12-bit" in str(error)


@pytest.mark.parametrize(
    "kind",
    [
        {"photometric": 0},
        {"photometric": 2, "samples": 3, "planar": 2},
        {"bits": 16, "photometric": 2, "samples": 3},
    ],
)
def test_its_relatives_are_read(kind: dict[str, int]) -> None:
    assert decode_picture(tiff_header(4, 3, **kind)).image.size == (4, 3)


def test_wide_integers_within_sixteen_bits_are_scaled_by_that_range() -> None:
    values = np.array([[0, 25_700, 51_400]], dtype=np.int32)
    data = encoded(Image.fromarray(values), "TIFF")
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "I"
    assert pixels(decode_picture(data))[0, :, 0].tolist() == [0, 100, 200]


def test_wide_integers_beyond_are_scaled_by_their_own_range() -> None:
    values = np.array([[-1000, 0, 1000]], dtype=np.int32)
    assert pixels(decode_picture(encoded(Image.fromarray(values), "TIFF")))[0, ::2, 0].tolist() == [0, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.2, 1.0], [0, 51, 255]),
        ([0.0, 0.2, 0.4], [0, 51, 102]),
        ([0.0, 400.0, 1000.0], [0, 102, 255]),
        ([5.0, 5.0, 5.0], [0, 0, 0]),
        ([0.0, float("nan"), 1.0], [0, 0, 255]),
        ([0.0, float("inf"), 1.0], [0, 0, 255]),
        ([0.0, float("-inf"), 1.0], [0, 0, 255]),
    ],
)
def test_float_tiff_is_scaled(values: list[float], expected: list[int]) -> None:
    data = encoded(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF")
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "F"
    assert pixels(decode_picture(data))[0, :, 0].tolist() == expected


def test_black_and_white_and_greyscale() -> None:
    assert pixels(decode_picture(encoded(Image.new("1", (2, 2), 1), "PNG"))).tolist() == [[[255] * 3] * 2] * 2
    assert pixels(decode_picture(encoded(Image.new("L", (2, 2), 77), "PNG"))).tolist() == [[[77] * 3] * 2] * 2


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})])
def test_rgba_is_composed_on_white(kind: str, options: dict[str, object]) -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(255, 0, 0, 255), (0, 0, 0, 0), (0, 0, 0, 51)])
    assert pixels(decode_picture(encoded(image, kind, **options))).tolist() == [[[255, 0, 0], [255] * 3, [204] * 3]]


@pytest.mark.parametrize(("alpha", "expected"), [(255, 100), (51, 224), (0, 100)])
def test_alpha_of_a_bmp_that_is_0_everywhere_is_none(alpha: int, expected: int) -> None:
    picture = decode_picture(bmp_with_alpha(Image.new("RGBA", (2, 2), (100, 100, 100, alpha))))
    assert pixels(picture).tolist() == [[[expected] * 3] * 2] * 2


def test_grey_with_alpha_is_composed_on_white() -> None:
    image = Image.new("LA", (3, 1))
    image.putdata([(10, 255), (10, 0), (0, 51)])
    assert pixels(decode_picture(encoded(image, "PNG")))[0, :, 0].tolist() == [10, 255, 204]


@pytest.mark.parametrize(("mode", "right", "wrong"), [("L", b"II*\0", b"II\0*"), ("I;16B", b"MM\0*", b"MM*\0")])
def test_a_tiff_whose_version_is_in_the_wrong_byte_order_is_read(mode: str, right: bytes, wrong: bytes) -> None:
    data = encoded(Image.new(mode, (3, 2)), "TIFF")
    assert data.startswith(right)
    assert decode_picture(wrong + data[4:]).image.size == (3, 2)


def test_grey_multiplied_by_its_alpha_is_composed_on_white() -> None:
    """Pillow's mode La: a TIFF whose tag 338, ExtraSamples, is 1, not 2 (TIFF 6.0, section 18)."""
    plain = encoded(Image.new("LA", (4, 4), (60, 128)), "TIFF")
    tag = b"\x52\x01\x03\x00\x01\x00\x00\x00"
    multiplied = plain.replace(tag + b"\x02", tag + b"\x01")
    assert multiplied != plain
    grey = round(60 + 255 * (1 - 128 / 255))
    assert abs(pixels(decode_picture(multiplied)).astype(int) - grey).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_composed_on_white(kind: str) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    opaque = pixels(decode_picture(encoded(image, kind)))
    assert opaque.tolist() == [[[10, 20, 30], [200, 100, 50]]]
    transparent = pixels(decode_picture(encoded(image, kind, transparency=0)))
    assert transparent.tolist() == [[[255, 255, 255], [200, 100, 50]]]


def test_palette_with_alpha_per_entry_is_composed_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.putdata([0, 1])
    picture = decode_picture(encoded(image, "PNG", transparency=bytes([51, 255])))
    assert pixels(picture).tolist() == [[[204] * 3, [200, 100, 50]]]


def test_a_transparent_colour_of_an_rgb_png_is_composed_on_white() -> None:
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (200, 100, 50))
    picture = decode_picture(encoded(image, "PNG", transparency=(1, 2, 3)))
    assert pixels(picture).tolist() == [[[255, 255, 255], [200, 100, 50]]]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_transparent_grey_of_a_png_of_few_bits_is_composed_on_white(bits: int) -> None:
    steps = min(1 << bits, 16)
    greys = [value * 255 // ((1 << bits) - 1) for value in range(steps)]
    rows = np.arange(steps, dtype=np.uint8)[np.newaxis, :]
    packed = np.packbits(np.unpackbits(rows[..., np.newaxis], axis=2)[..., -bits:].reshape(1, -1), axis=1)
    transparent = steps - 2
    data = png(steps, 1, zlib.compress(b"\0" + packed.tobytes()), bits=bits, colour=0, transparent=(transparent,))
    expected = [255 if value == transparent else grey for value, grey in enumerate(greys)]
    assert pixels(decode_picture(data))[0, :, 0].tolist() == expected


def test_a_transparent_colour_of_a_png_of_sixteen_bits_is_composed_on_white() -> None:
    samples = np.array([[0x0102, 0x0304, 0x0506], [0x6402, 0x3204, 0x1E06]], ">u2")
    data = png(2, 1, zlib.compress(b"\0" + samples.tobytes()), bits=16, colour=2, transparent=tuple(samples[0]))
    assert pixels(decode_picture(data)).tolist() == [[[255] * 3, [0x64, 0x32, 0x1E]]]


def test_cmyk_jpeg_is_converted() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, full magenta and yellow: red
    data = encoded(image, "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.mode == "CMYK"
    assert np.abs(pixels(decode_picture(data)) - [255, 0, 0]).max() <= 4


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})])
def test_an_animation_gives_its_first_frame(kind: str, options: dict[str, object]) -> None:
    red, blue = Image.new("RGB", (20, 10), (255, 0, 0)), Image.new("RGB", (20, 10), (0, 0, 255))
    data = encoded(red, kind, save_all=True, append_images=[blue, red], duration=100, **options)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 3
    assert np.array_equal(pixels(decode_picture(data)), np.asarray(red))


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": True})],
)
def test_every_orientation_gives_the_same_upright_picture(
    kind: str, options: dict[str, object], orientation: int
) -> None:
    upright = noise(31, 17)
    picture = decode_picture(oriented(upright, orientation, kind, **options))
    assert (picture.width, picture.height) == (31, 17)
    assert np.array_equal(pixels(picture), np.asarray(upright))


@pytest.mark.parametrize("shorter_side", [None, 24])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", LOSSY)
def test_every_orientation_of_a_lossy_picture(kind: str, orientation: int, shorter_side: int | None) -> None:
    picture = decode_picture(oriented(smooth(128, 64), orientation, kind, **LOSSY[kind]), shorter_side)
    assert (picture.width, picture.height) == (128, 64)
    assert picture.image.size == ((64, 32) if shorter_side and kind == "JPEG" else (128, 64))
    expected = np.asarray(smooth(*picture.image.size))
    assert np.abs(pixels(picture) - expected).mean() < 3


def test_the_size_of_a_failed_picture_is_that_of_the_oriented_original() -> None:
    data = oriented(noise(64, 48), 6, "JPEG")
    error = refused(data[: len(data) // 2])
    assert (error.status, error.width, error.height) == (Status.CORRUPT, 64, 48)


@pytest.mark.parametrize("value", [0, 9, 255, 65_535])
def test_an_orientation_that_does_not_exist_counts_as_none(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    upright = noise(31, 17)
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(pixels(decode_picture(encoded(upright, kind, exif=exif))), np.asarray(upright))


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"\0" * 20])
def test_a_broken_exif_block_counts_as_none(exif: bytes) -> None:
    picture = decode_picture(encoded(smooth(64, 48), "JPEG", exif=exif, quality=95))
    assert np.abs(pixels(picture) - np.asarray(smooth(64, 48))).mean() < 3


# Reduced scale


def test_a_jpeg_is_decoded_smaller_but_not_below_what_is_needed() -> None:
    data = encoded(smooth(2000, 1500), "JPEG")
    picture = decode_picture(data, shorter_side=171)
    assert (picture.width, picture.height) == (2000, 1500)
    assert picture.image.size == (250, 188)
    assert decode_picture(data).image.size == (2000, 1500)


@settings(max_examples=40)
@given(width=st.integers(1, 500), height=st.integers(1, 500), shorter_side=st.integers(1, 600))
def test_the_shorter_side_is_never_below_what_is_needed(width: int, height: int, shorter_side: int) -> None:
    picture = decode_picture(encoded(Image.new("RGB", (width, height)), "JPEG"), shorter_side)
    assert (picture.width, picture.height) == (width, height)
    assert min(picture.image.size) >= min(shorter_side, width, height)
    assert max(picture.image.size) <= max(width, height)


# Whatever the bytes


def test_no_global_of_pillow_is_changed() -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    data = encoded(noise(64, 48), "JPEG")
    decode_picture(data, 24)
    refused(data[:1000])
    refused(png(60_000, 60_000))
    refused(png(12_000, 10_000))
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


def test_pictures_of_one_call_are_independent_of_the_next() -> None:
    first = decode_picture(encoded(noise(8, 8, seed=1), "BMP"))
    kept = np.asarray(first.image).copy()
    decode_picture(encoded(noise(8, 8, seed=2), "BMP"))
    assert np.array_equal(np.asarray(first.image), kept)


def gives_a_picture_or_a_reason(data: bytes, shorter_side: int | None = None) -> None:
    try:
        picture = decode_picture(data, shorter_side)
    except PictureError as error:
        assert error.status in (Status.EMPTY, Status.UNSUPPORTED, Status.CORRUPT, Status.TOO_LARGE)
        assert str(error)
        assert (error.width is None) == (error.height is None)
        return
    assert picture.image.mode == "RGB"
    assert np.asarray(picture.image).shape == (picture.image.height, picture.image.width, 3)
    if shorter_side is None:
        assert picture.image.size == (picture.width, picture.height)


REAL = [
    encoded(noise(24, 16), "JPEG"),
    encoded(noise(24, 16), "JPEG", progressive=True),
    oriented(noise(24, 16), 6, "JPEG"),
    encoded(Image.new("CMYK", (24, 16)), "JPEG"),
    encoded(noise(24, 16), "PNG"),
    oriented(noise(24, 16), 6, "PNG"),
    encoded(noise(24, 16).convert("P"), "PNG", transparency=0),
    encoded(Image.fromarray(np.arange(384, dtype=np.uint16).reshape(16, 24)), "PNG"),
    encoded(noise(24, 16), "WEBP"),
    encoded(noise(24, 16), "WEBP", lossless=True),
    encoded(noise(24, 16), "GIF", save_all=True, append_images=[noise(24, 16, seed=1)]),
    encoded(noise(24, 16), "BMP"),
    encoded(noise(24, 16).convert("P"), "BMP"),
    encoded(noise(24, 16), "TIFF"),
    oriented(noise(24, 16), 6, "TIFF"),
    encoded(noise(24, 16), "TIFF", compression="tiff_lzw"),
    encoded(noise(24, 16), "TIFF", compression="jpeg"),
    encoded(Image.fromarray(np.linspace(0, 1, 384, dtype=np.float32).reshape(16, 24)), "TIFF"),
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A real file, cut, with bits flipped, with another's header before it, or with bytes put in."""
    data = bytearray(draw(st.sampled_from(REAL)))
    for harm in draw(st.lists(st.sampled_from(["cut", "flip", "flip", "header", "insert"]), min_size=1, max_size=3)):
        # Headers are where a few bytes matter most.
        last = draw(st.sampled_from([min(100, len(data)), len(data)])) - 1
        at = draw(st.integers(0, max(0, last)))
        if harm == "cut":
            del data[at:]
        elif harm == "flip":
            for place in draw(st.lists(st.integers(0, max(0, last)), min_size=1, max_size=8)):
                if place < len(data):
                    data[place] ^= 1 << draw(st.integers(0, 7))
        elif harm == "header":
            data[:at] = draw(st.sampled_from(REAL))[: draw(st.integers(0, 100))]
        else:
            data[at:at] = draw(st.binary(min_size=1, max_size=16))
    return bytes(data)


@given(data=st.binary(max_size=200))
def test_any_bytes_give_a_picture_or_a_reason(data: bytes) -> None:
    gives_a_picture_or_a_reason(data)


@given(
    signature=st.sampled_from(
        [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x40\0\0\0WEBP", b"GIF89a", b"BM", b"II*\0\x08\0\0\0", b"MM\0*"]
    ),
    rest=st.binary(max_size=200),
)
def test_any_bytes_after_a_signature_give_a_picture_or_a_reason(signature: bytes, rest: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read, "PIXEL_LIMIT", 1_000_000)  # what a header claims is not worth the memory here
        gives_a_picture_or_a_reason(signature + rest)


@settings(max_examples=250)
@given(data=damaged(), shorter_side=st.sampled_from([None, 4]))
def test_damaged_files_give_a_picture_or_a_reason(data: bytes, shorter_side: int | None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read, "PIXEL_LIMIT", 1_000_000)
        gives_a_picture_or_a_reason(data, shorter_side)


@pytest.mark.parametrize("number", range(len(REAL)))
def test_every_short_cut_gives_a_picture_or_a_reason(number: int) -> None:
    data = REAL[number]
    cuts = sorted(random.Random(number).sample(range(len(data)), min(40, len(data))))
    for cut in cuts:
        gives_a_picture_or_a_reason(data[:cut])


# What need not be read


@pytest.mark.parametrize(
    "options",
    [{"progressive": True}, {"progressive": True, "quality": 97}, {}],
    ids=["progressive", "finer", "baseline"],
)
@pytest.mark.parametrize("shorter_side", [128, 60, 400])
@pytest.mark.parametrize("harm", ["sound", "no end", "cut short", "more behind", "a start"])
def test_what_is_needed_of_a_file_gives_the_picture_that_all_of_it_gives(
    tmp_path: Path, options: dict[str, Any], shorter_side: int, harm: str
) -> None:
    data = encoded(noise(640, 520), "JPEG", **options)
    assert len(data) > 2 * BLOCK
    data = {
        "sound": data,
        "no end": data[:-2],
        "cut short": data[: len(data) * 2 // 3],
        "more behind": data + b"a film",
        "a start": data[:300],
    }[harm]
    file = tmp_path / "picture"
    file.write_bytes(data)
    needed = read_needed(str(file), shorter_side)
    saved = harm == "sound" and bool(options) and shorter_side < 400
    assert (len(needed) < 0.7 * len(data)) == saved
    assert _decoded(needed, shorter_side) == _decoded(data, shorter_side)


def test_fewer_bytes_are_read_of_a_progressive_file(tmp_path: Path) -> None:
    file = tmp_path / "picture"
    file.write_bytes(encoded(noise(1080, 1080), "JPEG", progressive=True))

    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = bytes_read()
    needed = read_needed(str(file), 171)
    assert bytes_read() - before < 0.7 * file.stat().st_size
    assert len(needed) < 0.7 * file.stat().st_size


@pytest.mark.parametrize("had", [10, BLOCK - 1, BLOCK + 100])
@pytest.mark.parametrize("progressive", [False, True])
def test_of_a_file_that_grows_no_more_is_read_than_it_had(tmp_path: Path, had: int, progressive: bool) -> None:
    """One more, at most: as of a file that is read whole."""
    whole = encoded(noise(640, 520), "JPEG", progressive=progressive)
    path = tmp_path / "picture"
    path.write_bytes(whole[: had - 2] + whole[-2:] + bytes(10 * BLOCK))
    with path.open("rb") as file:
        assert len(_take_needed(128, file, had)) <= had + 1
        assert file.tell() <= had + 1


def _decoded(data: bytes, shorter_side: int) -> bytes | Status:
    try:
        return decode_picture(data, shorter_side).image.tobytes()
    except PictureError as error:
        return error.status


@pytest.mark.parametrize("shorter_side", [None, 20])
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("JPEG", {"icc_profile": bytes(70_000), "comment": bytes(60_000)}),
        ("PNG", {"icc_profile": bytes(70_000)}),
        ("GIF", {"comment": bytes(70_000)}),
        ("WEBP", {"icc_profile": bytes(70_000), "exif": bytes(9)}),
    ],
)
def test_nothing_but_pixels_goes_on(kind: str, more: dict[str, bytes], shorter_side: int | None) -> None:
    """Pillow would write a profile or comment into the next file, as one that cannot be read again, or not at all."""
    picture = decode_picture(encoded(smooth(64, 48), kind, **more), shorter_side)
    assert not picture.image.info
    assert len(encoded(picture.image, "PNG")) < 70_000
