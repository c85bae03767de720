"""Augmented batches: what they hold, that the seed decides them, and where a shrunk picture ends up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from gender_batch.pictures.preprocessing import Preprocessing
from gender_batch.training import loading
from gender_batch.training.augmentation import Augmentation, zoom_out
from gender_batch.training.loading import Squares, batches

STILL = Augmentation(rotation=0, smallest_crop=1, zoom_out=0, colour=0, grey=0)


def squares(count: int = 4, side: int = 40) -> torch.Tensor:
    return torch.randint(0, 256, (count, side, side, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_the_seed_decides_everything() -> None:
    strong = Augmentation(zoom_out=0.5, erasing=0.5, trivial=True)
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(strong(squares(), 32))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert drawn[0].shape == (4, 32, 32, 3)
    assert drawn[0].min() >= 0 and drawn[0].max() <= 255


def test_without_strength_a_picture_is_only_flipped_and_stretched() -> None:
    flat = torch.full((3, 20, 20, 3), 77, dtype=torch.uint8)
    assert torch.allclose(STILL(flat, 16), torch.full((3, 16, 16, 3), 77.0), atol=1e-3)


def test_all_colours_go_where_grey_is_certain() -> None:
    grey = Augmentation(grey=1)(squares(), 24)
    assert torch.allclose(grey[..., 0], grey[..., 2], atol=1e-2)


@pytest.mark.parametrize("side", [0.25, 0.5])
def test_a_shrunk_picture_fills_its_share_of_the_frame(side: float) -> None:
    torch.manual_seed(0)
    ramp = torch.zeros(64, 64, 64, 3, dtype=torch.uint8)
    ramp[:, :, :32] = 255  # left halves: a shrunk copy keeps its edge, a background has none as sharp
    shown = zoom_out(ramp, side, 64)
    assert shown.dtype == torch.uint8
    assert shown.shape == (64, 64, 64, 3)
    frames = shown.float().mean(-1)
    edges = ((frames[:, :, :-1] - frames[:, :, 1:]) > 100).any(1).sum(1)
    assert (edges >= 1).float().mean() > 0.7


def test_a_shrunk_picture_is_seen_up_to_its_edges() -> None:
    torch.manual_seed(0)
    framed = torch.zeros(64, 64, 64, 3, dtype=torch.uint8)
    framed[:, :4] = framed[:, -4:] = framed[:, :, :4] = framed[:, :, -4:] = 255
    frame = 32 * 32 - 28 * 28  # of 2 pixels, of a picture of half the side
    bright = (zoom_out(framed, 0.5, 64).float().mean(-1) > 128).sum((1, 2))
    assert (bright > 0.8 * frame).all()


def test_a_whole_picture_stays_where_it_is() -> None:
    torch.manual_seed(0)
    pictures = squares(side=32)
    shown = zoom_out(pictures, 1.0, 32)
    assert (shown.int() - pictures.int()).abs().max() <= 1


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    paths = []
    for index in range(7):
        paths.append(str(tmp_path / f"{index}.png"))
        Image.new("RGB", (20 + index, 30), (index * 30, 0, 0)).save(paths[-1])
    return paths


@pytest.mark.parametrize("share", [0.5, 0.0])
def test_cached_or_not_the_pictures_are_those_of_classify(
    files: list[str], tmp_path: Path, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "LARGEST_CACHE", share)
    preprocessing = Preprocessing(size=16, resize=18)
    found = Squares(files, preprocessing, tmp_path)
    assert (found.cache is None) == (share == 0)
    expected = [preprocessing.apply(preprocessing.read(path).image) for path in files]
    assert np.array_equal(found[[2, 5]].numpy(), np.stack([expected[2], expected[5]]))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(Path(path).name for path in files)


def test_batches_hold_everything_in_order_or_shuffled_by_the_seed(files: list[str], tmp_path: Path) -> None:
    found = Squares(files, Preprocessing(size=16, resize=18), tmp_path)
    cpu = torch.device("cpu")

    def indices(seed: tuple[int, ...] | None) -> list[int]:
        return [int(index) for _, part in batches(found, 3, 0, cpu, seed) for index in part]

    assert indices(None) == list(range(7))
    assert indices((0, 1)) == indices((0, 1)) != indices((0, 2))
    assert len(indices((0, 1))) == 6  # the odd rest is left out
    for pictures, part in batches(found, 3, 0, cpu, (5,)):
        assert torch.equal(pictures, found[part.tolist()])
