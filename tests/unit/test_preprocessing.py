"""pictures/preprocessing.py: one way from a picture to the network's input."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from samples import encoded, noise, smooth

from gender_batch.pictures.preprocessing import (
    LONGEST_ASPECT,
    FaceCrop,
    Preprocessing,
    PreprocessingError,
    bound_aspect,
)

SPEC = Preprocessing(size=160, resize=171)


def by_torchvision(image: Image.Image, spec: Preprocessing) -> np.ndarray:
    v2 = pytest.importorskip("torchvision.transforms.v2")
    return np.asarray(v2.CenterCrop(spec.size)(v2.Resize(spec.resize, antialias=True)(image)))


@st.composite
def specs(draw: st.DrawFn) -> Preprocessing:
    resize = draw(st.integers(1, 120))
    return Preprocessing(size=draw(st.integers(1, resize)), resize=resize)


@settings(max_examples=100)
@given(width=st.integers(1, 400), height=st.integers(1, 400), spec=specs(), seed=st.integers(0, 9))
def test_equal_to_torchvision_to_the_last_bit(width: int, height: int, spec: Preprocessing, seed: int) -> None:
    assume(max(width, height) <= LONGEST_ASPECT * min(width, height))
    image = noise(width, height, seed)
    assert np.array_equal(spec.apply(image), by_torchvision(image, spec))


@pytest.mark.parametrize(
    "size", [(171, 171), (160, 160), (171, 200), (200, 171), (1080, 1080), (1000, 250), (250, 1000), (333, 500)]
)
def test_equal_to_torchvision_at_usual_sizes(size: tuple[int, int]) -> None:
    image = noise(*size)
    assert np.array_equal(SPEC.apply(image), by_torchvision(image, SPEC))


@settings(max_examples=50)
@given(short=st.integers(1, 40), factor=st.floats(4.01, 30), upright=st.booleans(), spec=specs())
def test_a_longer_picture_is_first_cut_to_its_centre(
    short: int, factor: float, upright: bool, spec: Preprocessing
) -> None:
    long = max(4 * short + 1, round(short * factor))
    image = noise(short, long) if upright else noise(long, short)
    left = (image.width - min(image.width, 4 * short)) // 2
    top = (image.height - min(image.height, 4 * short)) // 2
    centre = image.crop((left, top, image.width - left, image.height - top))
    centre = centre.crop((0, 0, min(centre.width, 4 * short), min(centre.height, 4 * short)))
    assert np.array_equal(spec.apply(image), by_torchvision(centre, spec))


@given(width=st.integers(1, 300), height=st.integers(1, 300))
def test_bounded_aspect_keeps_what_is_within_it(width: int, height: int) -> None:
    bounded = bound_aspect(Image.new("RGB", (width, height)))
    assert min(bounded.size) == min(width, height)
    assert max(bounded.size) == min(max(width, height), LONGEST_ASPECT * min(width, height))


@pytest.mark.parametrize("size", [(1, 50_000), (50_000, 1)])
def test_an_extreme_aspect_needs_little_memory(size: tuple[int, int]) -> None:
    # Resized by its shorter side, it would be 171 x 8,550,000 pixels: 5.8 GB.
    program = f"""
import resource
from PIL import Image
from gender_batch.pictures.preprocessing import Preprocessing
resource.setrlimit(resource.RLIMIT_AS, (2 * 1024**3, 2 * 1024**3))
pixels = Preprocessing(size=160, resize=171).apply(Image.new("RGB", {size}, (7, 8, 9)))
assert pixels.shape == (160, 160, 3) and (pixels == (7, 8, 9)).all()
with open("/proc/self/status") as file:  # ru_maxrss would count the parent's memory before exec
    status = dict(line.split(":", 1) for line in file)
assert int(status["VmHWM"].split()[0]) < 300 * 1024, "kilobytes"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@settings(max_examples=50)
@given(width=st.integers(1, 200), height=st.integers(1, 200), spec=specs())
def test_shape_and_type(width: int, height: int, spec: Preprocessing) -> None:
    pixels = spec.apply(Image.new("RGB", (width, height), (1, 128, 255)))
    assert pixels.shape == (spec.size, spec.size, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == (1, 128, 255)).all()


def test_read_uses_the_scale_that_resize_needs(tmp_path: object) -> None:
    path = f"{tmp_path}/a.jpg"
    with open(path, "wb") as file:
        file.write(encoded(smooth(800, 600), "JPEG"))
    picture = Preprocessing(size=64, resize=75).read(path)
    assert (picture.width, picture.height) == (800, 600)
    assert picture.image.size == (100, 75)


@pytest.mark.parametrize(("size", "decoded"), [((1024, 768), (256, 192)), ((1000, 728), (500, 364))])
def test_a_picture_that_misses_a_scale_by_little_is_decoded_at_it(
    tmp_path: Path, size: tuple[int, int], decoded: tuple[int, int]
) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(smooth(*size), "JPEG"))
    spec = Preprocessing(size=184, resize=196)
    image = spec.read(str(tmp_path / "a.jpg")).image
    assert image.size == decoded
    assert spec.apply(image).shape == (184, 184, 3)


# The specification


@given(spec=specs())
def test_round_trip(spec: Preprocessing) -> None:
    assert Preprocessing.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize("margin", [0, 0.25, 2])
def test_a_face_may_have_any_margin_up_to_two_of_its_sides(margin: float) -> None:
    assert FaceCrop.from_dict({"margin": margin, "alignment": "landmarks"}).margin == margin
    with pytest.raises(PreprocessingError, match="margin"):
        FaceCrop(-0.01 - margin)
    with pytest.raises(PreprocessingError, match="margin"):
        FaceCrop(2.01 + margin)


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"size": 160},
        {"size": 160, "resize": 171},
        {**SPEC.to_dict(), "mean": [0.5, 0.5, 0.5]},
        {name: value for name, value in SPEC.to_dict().items() if name != "decoding"},
        {**SPEC.to_dict(), "interpolation": "bicubic"},
        {**SPEC.to_dict(), "interpolation": None},
        {**SPEC.to_dict(), "decoding": "whole"},
        {**SPEC.to_dict(), "size": 0},
        {**SPEC.to_dict(), "size": -1},
        {**SPEC.to_dict(), "size": 172},
        {**SPEC.to_dict(), "size": "160"},
        {**SPEC.to_dict(), "size": None},
        {**SPEC.to_dict(), "size": 160.5},
        {**SPEC.to_dict(), "resize": [171, 171]},
        {**SPEC.to_dict(), "face": {"margin": "0.25", "alignment": "landmarks"}},
        {**SPEC.to_dict(), "face": {"margin": True, "alignment": "landmarks"}},
        {**SPEC.to_dict(), "face": {"margin": 0.25, "alignment": "eyes"}},
        {**SPEC.to_dict(), "face": {"margin": 0.25}},
    ],
)
def test_what_is_not_understood_is_refused(spec: dict[str, object]) -> None:
    with pytest.raises(PreprocessingError):
        Preprocessing.from_dict(spec)


def test_a_refusal_says_what_is_unknown() -> None:
    with pytest.raises(PreprocessingError, match="mean"):
        Preprocessing.from_dict({**SPEC.to_dict(), "mean": 0.5})
    with pytest.raises(PreprocessingError, match="bicubic"):
        Preprocessing.from_dict({**SPEC.to_dict(), "interpolation": "bicubic"})
