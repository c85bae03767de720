"""One photo is recognised in its copies, and strangers, blank pictures and gradients are not taken for one."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

pytest.importorskip("imagehash")

from gender_batch.pictures.read import decode_picture
from gender_batch.training.duplicates import (
    COLUMNS,
    HASH_BITS,
    MOST_BITS,
    SHORTER_SIDE,
    Fingerprint,
    connect,
    near_duplicates,
    perceptual_hash,
)


def photo(seed: int, size: tuple[int, int] = (240, 300)) -> Image.Image:
    """Something with the spectrum of a photo: coarse shapes, finer ones on them, a little grain."""
    chance = np.random.default_rng(seed)
    layers = [
        np.asarray(Image.fromarray(chance.integers(0, 256, (side, side, 3), np.uint8)).resize(size), np.float64)
        for side in (4, 12, 40)
    ]
    pixels = 0.6 * layers[0] + 0.3 * layers[1] + 0.1 * layers[2]
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image: Image.Image, format: str = "JPEG", quality: int = 95) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, quality=quality)
    return buffer.getvalue()


def fingerprint(data: bytes) -> Fingerprint:
    return Fingerprint(data.hex(), perceptual_hash(decode_picture(data, SHORTER_SIDE).image))


def cropped(image: Image.Image, share: float) -> Image.Image:
    x, y = image.width * share, image.height * share
    return image.crop((round(x), round(y), round(image.width - x), round(image.height - y)))


@pytest.mark.parametrize(
    "copy",
    [
        pytest.param(lambda image: encoded(image, quality=60), id="JPEG at quality 60"),
        pytest.param(lambda image: encoded(image, "PNG"), id="PNG"),
        pytest.param(lambda image: encoded(image.reduce(2)), id="half the size"),
        pytest.param(lambda image: encoded(image.resize((960, 1200))), id="four times the size"),
        pytest.param(lambda image: encoded(cropped(image, 0.01)), id="1% cropped on every side"),
        pytest.param(lambda image: encoded(ImageEnhance.Brightness(image).enhance(0.8)), id="darker"),
        pytest.param(lambda image: encoded(ImageEnhance.Brightness(image).enhance(1.2)), id="brighter"),
        pytest.param(lambda image: encoded(image.convert("L")), id="greyscale"),
    ],
)
def test_copies_of_a_photo_are_found(copy: object) -> None:
    assert callable(copy)
    originals = [photo(seed) for seed in range(20)]
    pictures = [fingerprint(encoded(image)) for image in originals] + [fingerprint(copy(image)) for image in originals]
    assert near_duplicates(pictures) == [(index, index + 20) for index in range(20)]


def test_different_faces_are_not_near(faces: list[Path]) -> None:
    assert near_duplicates([fingerprint(path.read_bytes()) for path in faces]) == []


def test_a_copy_of_a_real_face_is_found(faces: list[Path]) -> None:
    images = [Image.open(path) for path in faces]
    copies = [encoded(cropped(image, 0.005).resize((150, 150)), quality=60) for image in images]
    pictures = [fingerprint(data) for data in [*(path.read_bytes() for path in faces), *copies]]
    assert near_duplicates(pictures) == [(index, index + len(faces)) for index in range(len(faces))]


def test_pictures_that_show_nothing_are_the_same_only_as_files() -> None:
    gradient = Image.linear_gradient("L")
    blank = [Image.new("RGB", (64, 64), colour) for colour in ("white", "black", "grey", "grey")]
    images = [*blank, gradient, gradient.rotate(90), gradient.rotate(180), gradient.point(lambda value: value // 2)]
    pictures = [fingerprint(encoded(image, "PNG")) for image in images]
    assert {picture.look for picture in pictures} == {None}
    assert near_duplicates(pictures) == [(2, 3)]


def test_many_copies_are_connected_without_a_pair_for_each_two() -> None:
    look = bytes(32)
    pictures = [Fingerprint(str(number), look) for number in range(1000)]
    pairs = near_duplicates(pictures)
    assert len(pairs) == 999
    assert set(connect(1000, pairs)) == {0}


def flip(look: bytes, bits: list[int]) -> bytes:
    number = int.from_bytes(look, "big")
    for bit in bits:
        number ^= 1 << bit
    return number.to_bytes(len(look), "big")


BITS = st.lists(st.integers(0, HASH_BITS - 1), unique=True)


@given(BITS)
def test_the_limit_is_exact_wherever_the_bits_are(bits: list[int]) -> None:
    look = np.random.default_rng(0).bytes(HASH_BITS // 8)
    pictures = [Fingerprint("a", look), Fingerprint("b", flip(look, bits))]
    assert near_duplicates(pictures) == ([(0, 1)] if len(bits) <= MOST_BITS else [])


@given(st.integers(0, HASH_BITS - 1), st.integers(MOST_BITS - 1, MOST_BITS + 2))
def test_the_limit_is_exact_where_all_the_bits_are_neighbours(first: int, count: int) -> None:
    look = np.random.default_rng(0).bytes(HASH_BITS // 8)
    near = flip(look, [bit % HASH_BITS for bit in range(first, first + count)])
    pictures = [Fingerprint("a", look), Fingerprint("b", near)]
    assert near_duplicates(pictures) == ([(0, 1)] if count <= MOST_BITS else [])


def test_the_negative_is_not_the_picture() -> None:
    """All 256 bits differ, which wraps to none where a byte counts them."""
    look = np.random.default_rng(0).bytes(HASH_BITS // 8)
    negative = flip(look, list(range(HASH_BITS)))
    assert near_duplicates([Fingerprint("a", look), Fingerprint("b", negative)]) == []


def test_pairs_are_found_across_all_blocks() -> None:
    chance = np.random.default_rng(1)
    looks = [chance.bytes(HASH_BITS // 8) for _ in range(9000)]
    expected = []
    for first, second in ((0, 8999), (1, 8191), (2, 8192), (63, 64), (65, 127), (129, 300), (8190, 8192 + 64)):
        looks[second] = flip(looks[first], [5, 80, 140, 255])
        expected.append((first, second))
    assert near_duplicates([Fingerprint(str(i), look) for i, look in enumerate(looks)]) == sorted(expected)


def test_a_picture_that_is_alone_in_its_block_is_compared_too() -> None:
    chance = np.random.default_rng(1)
    looks = [chance.bytes(HASH_BITS // 8) for _ in range(COLUMNS)]
    looks.append(flip(looks[0], [5]))
    assert near_duplicates([Fingerprint(str(i), look) for i, look in enumerate(looks)]) == [(0, COLUMNS)]


@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_connected_is_reachable(graph: tuple[int, list[tuple[int, int]]]) -> None:
    count, pairs = graph
    reach = np.eye(count, dtype=bool)
    for i, j in pairs:
        reach[i, j] = reach[j, i] = True
    for _ in range(count):
        reach = reach @ reach
    number = connect(count, pairs)
    assert np.array_equal(reach, number[:, None] == number)
