"""Augmented batches: what they hold, that the seed decides them, and where a shrunk picture ends up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from gender_batch.pictures.preprocessing import Preprocessing
from gender_batch.training import loading
from gender_batch.training.augmentation import Augmentation, _backgrounds, _crops, _placements, _view, zoom_out
from gender_batch.training.loading import Squares, batches

STILL = Augmentation(rotation=0, smallest_crop=1, zoom_out=0, colour=0, grey=0)


def squares(count: int = 4, side: int = 40) -> torch.Tensor:
    return torch.randint(0, 256, (count, side, side, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def white_and_black(whites: int, blacks: int, side: int = 32) -> torch.Tensor:
    colours = torch.tensor([255] * whites + [0] * blacks, dtype=torch.uint8)
    return colours.view(-1, 1, 1, 1).expand(-1, side, side, 3)


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
    ramp = torch.zeros(64, 64, 64, 3, dtype=torch.uint8)
    ramp[:, :, :32] = 255  # left halves: a shrunk copy keeps its edge, a background has none as sharp
    shown = zoom_out(ramp, side, 64)
    assert shown.dtype == torch.uint8
    assert shown.shape == (64, 64, 64, 3)
    frames = shown.float().mean(-1)
    edges = ((frames[:, :, :-1] - frames[:, :, 1:]) > 100).any(1).sum(1)
    assert (edges >= 1).float().mean() > 0.7


def test_a_shrunk_picture_is_seen_up_to_its_edges() -> None:
    framed = torch.zeros(64, 64, 64, 3, dtype=torch.uint8)
    framed[:, :4] = framed[:, -4:] = framed[:, :, :4] = framed[:, :, -4:] = 255
    frame = 32 * 32 - 28 * 28  # of 2 pixels, of a picture of half the side
    bright = (zoom_out(framed, 0.5, 64).float().mean(-1) > 128).sum((1, 2))
    assert (bright > 0.8 * frame).all()


def test_a_whole_picture_stays_as_it_is() -> None:
    pictures = squares(side=32)
    assert torch.equal(zoom_out(pictures, 1.0, 32), pictures)


def test_a_shrunk_picture_is_rounded_to_the_nearest_values() -> None:
    pictures = torch.ones(2, 64, 64, 3, dtype=torch.uint8)
    pictures[:, ::2, ::2] = 0  # three quarters on average
    assert (zoom_out(pictures, 1.0, 32) == 1).all()


def test_a_noisy_background_goes_beyond_neither_white_nor_black() -> None:
    assert zoom_out(white_and_black(64, 0), 0.5, 32).min() > 190
    assert zoom_out(white_and_black(0, 64), 0.5, 32).max() < 65


# What is seen of a picture


def test_crops_are_parts_of_the_picture_slightly_turned_and_stretched_and_half_of_them_mirrored() -> None:
    maps = _crops(4000, 0.5, 15.0)
    across, down, centre = maps.unbind(2)  # the frame's half axes in the picture
    width, height = across.norm(dim=1), down.norm(dim=1)
    assert (across * down).sum(1).abs().max() < 1e-6  # not sheared
    assert (down[:, 1] > 0).all()  # nor upside down
    assert (across[:, 0] < 0).float().mean() == pytest.approx(0.5, abs=0.05)
    angles = torch.atan2(-down[:, 0], down[:, 1]).rad2deg()
    turned = (angles.min(), angles.median(), angles.max())
    assert turned == (pytest.approx(-15, abs=0.1), pytest.approx(0, abs=1), pytest.approx(15, abs=0.1))
    areas, aspects = width * height, width / height
    assert (areas.min(), areas.max()) == (pytest.approx(0.5, abs=0.01), pytest.approx(1, abs=0.02))
    assert (aspects.min(), aspects.max()) == (pytest.approx(3 / 4, abs=0.01), pytest.approx(4 / 3, abs=0.01))
    for half, middle in ((width, centre[:, 0]), (height, centre[:, 1])):
        assert half.max() == pytest.approx(1)
        assert (middle.abs() + half).max() <= 1 + 1e-6  # they end where the picture ends,
        moved = (middle / (1 - half))[half < 0.9]
        assert (moved.min(), moved.max()) == (pytest.approx(-1, abs=0.02), pytest.approx(1, abs=0.02))  # on each side


@pytest.mark.parametrize("mirrored", [True, False])
def test_shrunk_pictures_lie_whole_in_the_frame_and_anywhere_in_it(mirrored: bool) -> None:
    sides = torch.empty(2000).uniform_(0.25, 1)
    maps = _placements(sides, 0.0, mirrored)
    # Where the frame shows the picture's corners.
    upper, lower = (torch.linalg.solve(maps[:, :, :2], corner - maps[:, :, 2]) for corner in (-1, 1))
    assert ((upper - lower).abs() / 2).amax(1) == pytest.approx(sides, abs=1e-4)
    assert torch.maximum(upper.abs(), lower.abs()).max() <= 1 + 1e-4
    assert (lower[:, 1] > upper[:, 1]).all()
    assert (lower[:, 0] < upper[:, 0]).float().mean() == pytest.approx(0.5 if mirrored else 0, abs=0.05)
    moved = ((upper + lower) / 2 / (1 - sides)[:, None])[sides < 0.9]
    assert moved.amin(0) == pytest.approx(-1, abs=0.02)
    assert moved.amax(0) == pytest.approx(1, abs=0.02)


def test_a_frame_shows_what_its_map_says() -> None:
    """Of a picture whose red grows to the right, and whose green grows downwards."""
    ramp = (torch.arange(256) + 0.5).expand(256, 256) / 128 - 1
    pixels = torch.stack([ramp, ramp.T, ramp]).expand(3, -1, -1, -1)
    maps = torch.tensor([
        [[0.5, 0.1, 0.2], [-0.1, 0.4, -0.3]],
        [[-0.05, 0.01, -0.5], [0.02, 0.06, 0.6]],
        [[0.9, 0.0, 0.0], [0.0, 0.9, 0.0]],
    ])  # fmt: skip
    frames = _view(pixels, maps, 32, 0.15)
    at = (torch.arange(32) + 0.5) / 16 - 1
    points = torch.stack([at.expand(32, 32), at.expand(32, 32).T, torch.ones(32, 32)])
    assert torch.allclose(frames[:, :2], torch.einsum("nij,jyx->niyx", maps, points), atol=1e-3)


@pytest.mark.parametrize("shrinking", [1.3, 1.5, 1.9, 2.7, 3.0, 3.9])
def test_a_shrunk_picture_is_smoothed_as_much_as_it_is_shrunk(shrinking: float) -> None:
    noise = torch.randn(40, 3, 256, 256)
    half = shrinking * 32 / 256
    maps = torch.tensor([[half, 0, 0.011], [0, half, 0.007]]).expand(40, 2, 3)
    ideal = 1 / shrinking  # the mean of so many pixels in a row and column
    assert 0.45 * ideal < _view(noise, maps, 32, 0.15).std() < ideal


def test_crops_and_shrunk_pictures_are_as_strong_as_is_asked_for() -> None:
    """Of a picture whose red grows to the right, and whose green grows downwards, as before."""
    ramp = (4 * torch.arange(64) + 2).to(torch.uint8).expand(64, 64)
    pictures = torch.stack([ramp, ramp.T, ramp], -1).expand(200, -1, -1, -1)

    def axes(augmentation: Augmentation) -> tuple[torch.Tensor, torch.Tensor]:
        frames = augmentation(pictures, 32)[:, 8:24, 8:24, :2] / 128  # where no corner is uncovered
        return (frames[:, :, -1] - frames[:, :, 0]).mean(1) / 15 * 16, (frames[:, -1] - frames[:, 0]).mean(1) / 15 * 16

    across, down = axes(replace(STILL, rotation=15))
    assert (down[:, 0] / down[:, 1]).max() == pytest.approx(0.25, abs=0.05)  # the tangent
    assert (across.norm(dim=1) * down.norm(dim=1)).min() > 0.7
    across, down = axes(replace(STILL, smallest_crop=0.3))
    assert (down[:, 0] / down[:, 1]).abs().max() < 0.01
    assert (across.norm(dim=1) * down.norm(dim=1)).min() == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize(("rotation", "filled"), [(0, 0.85), (45, 0.6)])
def test_a_picture_that_is_zoomed_out_is_turned_too(rotation: float, filled: float) -> None:
    """Of the least upright rectangle around it, it fills all, or, on a corner, half."""
    frames = replace(STILL, zoom_out=1, rotation=rotation)(white_and_black(60, 200), 64).mean(-1)[:60]
    seen = frames > 128
    rows, columns = seen.any(2), seen.any(1)
    inside = ~(seen[:, 0].any(1) | seen[:, -1].any(1) | seen[:, :, 0].any(1) | seen[:, :, -1].any(1))
    shares = (seen.sum((1, 2)) / (rows.sum(1) * columns.sum(1)))[inside]
    assert len(shares) > 5
    assert (shares.min() < filled) == bool(rotation)


def test_pictures_are_zoomed_out_each_by_its_own_luck() -> None:
    frames = replace(STILL, zoom_out=0.2)(white_and_black(200, 2000, 16), 16).mean((1, 2, 3))[:200]
    # Half of the backgrounds are of another picture.
    assert (frames < 250).float().mean() == pytest.approx(0.09, abs=0.05)


def test_what_is_zoomed_out_keeps_a_quarter_of_the_side_and_has_edges_of_any_softness() -> None:
    frames = replace(STILL, zoom_out=1)(white_and_black(80, 160), 96).mean(-1)[:80] / 255
    others = frames[frames.mean((1, 2)) < 0.95]
    full = (others > 0.9).float().mean((1, 2))
    assert full.min() == pytest.approx(0.25**2, abs=0.02)
    assert full.max() > 0.6
    edges = (((others > 0.1) & (others < 0.9)).float().mean((1, 2)) / full)[full > 0.2]
    assert edges.min() < 0.1
    assert 0.15 < edges.max() < 0.5


def test_a_picture_goes_over_into_its_background_inside_of_its_edge() -> None:
    pixels = white_and_black(50, 50).permute(0, 3, 1, 2).float()
    frames = _view(pixels, torch.tensor([[2.0, 0, 0], [0, 2.0, 0]]).expand(100, 2, 3), 64, 0.3).mean(1)[:50]
    frames = frames[frames[:, 0, 0] < 100]  # before something black
    assert len(frames) > 5
    assert (frames[:, 22:42, 22:42] == 255).all()
    outside = torch.ones(64, 64, dtype=torch.bool)
    outside[16:48, 16:48] = False
    assert frames[:, outside].max() < 100
    assert frames[:, 32, 16].min() < 128 < frames[:, 32, 18].max()


# What stands behind it


def test_backgrounds_are_in_equal_parts_of_four_kinds() -> None:
    """The picture goes from black to red, left to right; the other is green in its upper half, with fine blue noise."""
    own, other = torch.zeros(2, 3, 64, 64)
    own[0, :, 32:] = other[1, :32] = 255
    other[2] = 255 * torch.randint(0, 2, (32, 32)).float().repeat_interleave(2, 0).repeat_interleave(2, 1)
    shown = _backgrounds(torch.stack([own, other]), torch.zeros(800, dtype=torch.long), 32)
    red, green, blue = shown.mean((2, 3)).T
    fine = shown[:, 2].std((1, 2))
    rising = (shown[:, 0, :, -4:] - shown[:, 0, :, :4]).mean((1, 2))
    falling = (shown[:, 1, :4] - shown[:, 1, -4:]).mean((1, 2))
    kinds = {
        "a patch of the other's upper edge": (red < 10) & (green > 245) & (fine > 60),
        "the other, blurred": (red < 10) & (falling > 150) & (fine < 40),
        "the picture, blurred": (green < 10) & (rising > 150) & (blue < 10),
        "its mean": (red - 127.5).abs().lt(10) & (rising.abs() < 20) & (green < 10) & (blue < 10),
    }
    assert {name: float(kind.float().mean()) for name, kind in kinds.items()} == {
        name: pytest.approx(0.25, abs=0.05) for name in kinds
    }
    grain = shown[kinds["its mean"]].std((2, 3)).mean(1)
    assert (grain.min(), grain.max()) == (pytest.approx(0, abs=0.5), pytest.approx(12, abs=1))
    assert grain.median() == pytest.approx(3, abs=1)  # few are noisy


def test_the_other_picture_of_a_background_may_be_any_but_the_picture_itself() -> None:
    colours = torch.tensor([0.0, 80, 160, 240]).view(4, 1, 1, 1).expand(4, 3, 16, 16)
    for own in range(4):
        shown = _backgrounds(colours, torch.full((600,), own), 16).mean((1, 2, 3))
        counts = (shown / 80).round().long().bincount(minlength=4) / 600
        assert counts.tolist() == pytest.approx([1 / 2 if number == own else 1 / 6 for number in range(4)], abs=0.06)
    alone = _backgrounds(colours[1:2], torch.zeros(20, dtype=torch.long), 16)
    assert alone.mean((1, 2, 3)) == pytest.approx(80, abs=5)


# Colours and patches


@pytest.mark.parametrize(("colour", "grey"), [(0.3, 0.0), (0.0, 0.3), (0.2, 0.1), (0.0, 0.0)])
def test_brightness_contrast_and_saturation_each_change_as_much_as_is_asked_for(colour: float, grey: float) -> None:
    """Pictures of two halves, dark ones and light ones: from what became of them follows what was done."""
    luma = torch.tensor([0.299, 0.587, 0.114])
    halves = torch.tensor([[[110, 90, 60], [70, 105, 115]], [[60, 35, 40], [50, 55, 60]]], dtype=torch.uint8)
    pictures = halves[torch.arange(1000) % 2].repeat_interleave(8, 1)[:, :, None].expand(-1, -1, 16, -1)
    frames = replace(STILL, colour=colour, grey=grey)(pictures, 16)
    before, after = (torch.stack([part[:, 0, 8], part[:, -1, 8]], 1).float() for part in (pictures, frames))
    light = [part @ luma for part in (before, after)]
    brightness = light[1].sum(1) / light[0].sum(1)
    contrast = (light[1][:, 1] - light[1][:, 0]) / (light[0][:, 1] - light[0][:, 0]) / brightness
    chroma = [part[:, 0, 0] - part[:, 0, 2] for part in (before, after)]
    saturation = chroma[1] / chroma[0] / contrast / brightness
    assert (saturation.abs() < 0.01).float().mean() == pytest.approx(grey, abs=0.05 * bool(grey))
    for change in (brightness, contrast, saturation[saturation > 0.01]):
        extremes = (float(change.min()), float(change.max()))
        assert extremes == pytest.approx((1 - colour, 1 + colour), abs=0.01)
    changes = torch.stack([brightness, contrast, saturation]) + 1e-3 * torch.randn(3, 1000)
    assert torch.corrcoef(changes).triu(1).abs().max() < 0.2


def test_erased_patches_are_rectangles_of_noise_of_any_place_size_and_shape() -> None:
    flat = torch.full((1200, 8, 8, 3), 77, dtype=torch.uint8)
    frames = replace(STILL, erasing=0.4)(flat, 64)
    masks = ((frames - 77).abs() > 0.01).any(-1)
    hit = masks.any((1, 2))
    assert hit.float().mean() == pytest.approx(0.4, abs=0.05)
    assert frames[masks].mean() == pytest.approx(127.5, abs=5)
    assert frames[masks].std() == pytest.approx(255 / 12**0.5, abs=5)
    masks = masks[hit]
    widths, heights = masks.any(1).sum(1), masks.any(2).sum(1)
    assert torch.equal(widths * heights, masks.sum((1, 2)))
    whole = ~(masks[:, 0].any(1) | masks[:, -1].any(1) | masks[:, :, 0].any(1) | masks[:, :, -1].any(1))
    areas, shapes = ((widths * heights) / 64**2)[whole], (widths / heights)[whole]
    assert (areas.min(), areas.max()) == (pytest.approx(0.02, abs=0.005), pytest.approx(0.2, abs=0.02))
    assert (shapes.min(), shapes.max()) == (pytest.approx(1 / 3, abs=0.07), pytest.approx(3, abs=0.6))
    # Somewhere each pixel is erased, and hardly one more often than a few others.
    often = masks.float().mean(0)
    assert often.min() > 0.01
    assert often[16:48, 16:48].max() < 0.3


def test_an_operation_of_trivial_augment_comes_before_all_else() -> None:
    flat = torch.full((60, 16, 16, 3), 77, dtype=torch.uint8)
    changed = ((replace(STILL, trivial=True)(flat, 16) - 77).abs() > 1).any(1).any(1).any(1)
    assert 0.3 < changed.float().mean() < 1


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
