"""Augmentation of whole batches on the device that trains: one warp, one change of colour, one patch erased."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

SMALLEST_FACE = 0.25
"""Side of the smallest picture that zooming out leaves, as a share of the frame's."""

SOFTEST_EDGE = 0.15
"""Widest edge over which a picture that is zoomed out goes over into its background, as a share of half its side. A
wider one takes hair and chin away, which real photos show: of faces faded over a third, 88.5% were answered right in
place of 91.7%."""

CRISP_EDGE = 0.02
"""The same where it is judged what is made of small faces: all of the picture is seen."""


@dataclass(frozen=True)
class Augmentation:
    """How strongly training pictures are varied. Probabilities and shares are 0..1; 0 switches a step off.

    What each is worth stands in benchmarks/results/ablation.md.
    """

    rotation: float = 15.0
    """Largest rotation either way, in degrees."""
    smallest_crop: float = 0.5
    """Smallest area of a random resized crop, as a share of the picture's."""
    zoom_out: float = 0.5
    """Probability that a picture is shrunk to 25-100% of the frame's side instead of cropped."""
    colour: float = 0.3
    """Largest change of brightness, contrast and saturation, as a share."""
    grey: float = 0.05
    """Probability that a picture loses its colours."""
    erasing: float = 0.0
    """Probability that a rectangle of 2-20% of the area is erased (Zhong et al. 2020)."""
    trivial: bool = False
    """TrivialAugment's one random operation of random strength (Müller and Hutter 2021), before all else."""

    def __call__(self, pictures: Tensor, size: int) -> Tensor:
        """Augmented pictures (N, size, size, 3), float 0..255, of uint8 squares (N, S, S, 3).

        All randomness comes from torch's CPU generator, so that every device draws the same.
        """
        pixels = pictures.permute(0, 3, 1, 2)
        if self.trivial:
            operation = v2.TrivialAugmentWide()
            pixels = torch.stack([operation(picture) for picture in pixels])
        pixels = pixels.float()
        count = len(pixels)
        views = _crops(count, self.smallest_crop, self.rotation)
        shrunk = torch.rand(count) < self.zoom_out
        if shrunk.any():
            sides = torch.empty(count).uniform_(SMALLEST_FACE, 1)
            views = torch.where(shrunk.view(-1, 1, 1), _placements(sides, self.rotation), views)
        pixels = _view(pixels, views, size, SOFTEST_EDGE)
        pixels = _erase(_recolour(pixels, self.colour, self.grey), self.erasing)
        return pixels.permute(0, 2, 3, 1)


def zoom_out(pictures: Tensor, side: float, size: int) -> Tensor:
    """Pictures (N, size, size, 3), uint8, that show uint8 squares (N, S, S, 3) at `side` (0..1) of the frame's side,
    anywhere in it, before backgrounds of their own: what a model makes of small faces is measured on them."""
    pixels = pictures.permute(0, 3, 1, 2).float()
    placements = _placements(torch.full((len(pixels),), side), 0.0, mirrored=False)
    return _view(pixels, placements, size, CRISP_EDGE).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _crops(count: int, smallest: float, rotation: float) -> Tensor:
    """Random resized crops as affine maps (N, 2, 3) from the frame's coordinates -1..1 to the picture's."""
    area = torch.empty(count).uniform_(smallest, 1)
    aspect = torch.empty(count).uniform_(math.log(3 / 4), math.log(4 / 3)).exp()
    half = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], 1).clamp(max=1)
    centre = torch.empty(count, 2).uniform_(-1, 1) * (1 - half)
    return _affine(half, centre, rotation)


def _placements(sides: Tensor, rotation: float, mirrored: bool = True) -> Tensor:
    """Affine maps (N, 2, 3) that show the whole picture at `sides` (N,) of the frame, somewhere inside it."""
    offset = torch.empty(len(sides), 2).uniform_(-1, 1) * (1 - sides).unsqueeze(1)
    half = (1 / sides).unsqueeze(1).expand(-1, 2)
    return _affine(half, -offset * half, rotation, mirrored)


def _affine(half: Tensor, centre: Tensor, rotation: float, mirrored: bool = True) -> Tensor:
    angle = torch.empty(len(half)).uniform_(-rotation, rotation) * math.pi / 180
    flip = torch.randint(0, 2, (len(half),)) * 2 - 1 if mirrored else torch.ones(len(half))
    cos, sin = angle.cos(), angle.sin()
    x, y = half[:, 0] * flip, half[:, 1]
    rows = [torch.stack([cos * x, -sin * y, centre[:, 0]], 1), torch.stack([sin * x, cos * y, centre[:, 1]], 1)]
    return torch.stack(rows, 1)


def _view(pixels: Tensor, maps: Tensor, size: int, softest: float) -> Tensor:
    """Frames (N, 3, size, size) of pictures (N, 3, S, S) seen through affine maps (N, 2, 3).

    A picture is sampled from the level of its pyramid that has about the frame's resolution, which keeps shrunk
    pictures free of aliasing. Where a map leaves its picture wide, the rest of the frame is background, behind an edge
    of up to `softest` of half the picture's side.
    """
    # Columns of a map are the frame's half axes in the picture: their length tells by how much it shrinks.
    shrinking = maps[:, :, :2].norm(dim=1).amin(1) * pixels.shape[-1] / size
    levels = shrinking.log2().round().clamp(0, 2).int()
    outside = maps[:, :, :2].norm(dim=1).amin(1) > 1.001
    device_maps = maps.to(pixels.device)
    grid = functional.affine_grid(device_maps, [len(pixels), 3, size, size], align_corners=False)
    frames = torch.empty(len(pixels), 3, size, size, device=pixels.device)
    for level in levels.unique().tolist():
        index = (levels == level).nonzero()[:, 0].to(pixels.device)
        source = functional.avg_pool2d(pixels[index], 2**level) if level else pixels[index]
        # Reflection: the corners that a rotation uncovers look like the picture.
        frames[index] = functional.grid_sample(source, grid[index], padding_mode="reflection", align_corners=False)
    if outside.any():
        index = outside.nonzero()[:, 0].to(pixels.device)
        # 1 inside the picture, 0 outside: photos have no frames in them.
        softness = torch.empty(len(index), 1, 1).uniform_(0.01, softest).to(pixels.device)
        inside = ((1 - grid[index].abs().amax(-1)) / softness).clamp(0, 1).unsqueeze(1)
        frames[index] = frames[index] * inside + _backgrounds(pixels, index, size) * (1 - inside)
    return frames


def _backgrounds(pixels: Tensor, index: Tensor, size: int) -> Tensor:
    """Something to stand behind pictures `index`, (n, 3, size, size): no second face, but what surrounds faces.

    In equal parts: a small patch of another picture, enlarged to a texture; another picture blurred beyond
    recognition; the picture's own blurred colours; a plain colour. Some are noisy.
    """
    count = len(index)
    others = pixels[(index + 1 + torch.randint(0, max(1, len(pixels) - 1), (count,)).to(index.device)) % len(pixels)]
    kind = torch.randint(0, 4, (count, 1, 1, 1)).to(pixels.device)
    # Patches lie along the upper edge, where hair and walls are, not eyes and mouths.
    half = torch.empty(count, 1).uniform_(0.1, 0.35).expand(-1, 2)
    centre = torch.stack([torch.empty(count).uniform_(-0.8, 0.8), torch.full((count,), -0.8)], 1)
    patches = _affine(half, centre, rotation=180).to(pixels.device)
    grid = functional.affine_grid(patches, [count, 3, size, size], align_corners=False)
    texture = functional.grid_sample(others, grid, padding_mode="reflection", align_corners=False)
    blurred = _blur(torch.where(kind == 1, others, pixels[index]), size)
    plain = blurred.mean((2, 3), keepdim=True)
    background = torch.where(kind == 0, texture, torch.where(kind == 3, plain, blurred))
    noise = 12 * torch.rand(count, 1, 1, 1).square().to(pixels.device)
    grain = torch.randn(1, 1, size, size).to(pixels.device)  # one grain for all: it is the strength that matters
    return background + noise * grain


def _blur(pixels: Tensor, size: int) -> Tensor:
    """Pictures without anything smaller than a fifth of them."""
    small = functional.adaptive_avg_pool2d(pixels, 5)
    return functional.interpolate(small, (size, size), mode="bilinear", align_corners=False)


def _recolour(pixels: Tensor, strength: float, grey: float) -> Tensor:
    """Brightness, contrast and saturation, each changed by up to `strength`, of (N, 3, H, W) in 0..255."""
    if not strength and not grey:
        return pixels
    count = len(pixels)
    brightness, contrast, saturation = (
        torch.empty(count, 1, 1, 1).uniform_(1 - strength, 1 + strength) for _ in range(3)
    )
    saturation = torch.where(torch.rand(count, 1, 1, 1) < grey, 0.0, saturation).to(pixels.device)
    weights = torch.tensor([0.299, 0.587, 0.114], device=pixels.device).view(1, 3, 1, 1)  # luma, ITU-R BT.601
    luma = (pixels * weights).sum(1, keepdim=True)
    mean = luma.mean((2, 3), keepdim=True)
    contrast, brightness = contrast.to(pixels.device), brightness.to(pixels.device)
    colours = luma.lerp(pixels, saturation)
    return (mean.lerp(colours, contrast) * brightness).clamp(0, 255)


def _erase(pixels: Tensor, probability: float) -> Tensor:
    """A rectangle of 2-20% of the area, of aspect 1:3 to 3:1, replaced by noise around grey."""
    if not probability:
        return pixels
    count, _, height, width = pixels.shape
    area = torch.empty(count).uniform_(0.02, 0.2) * (torch.rand(count) < probability)
    aspect = torch.empty(count).uniform_(-math.log(3), math.log(3)).exp()
    half = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], 1) / 2
    centre = torch.rand(count, 2)
    x = torch.linspace(0, 1, width).view(1, 1, width)
    y = torch.linspace(0, 1, height).view(1, height, 1)
    across = (x - centre[:, 0].view(-1, 1, 1)).abs() < half[:, 0].view(-1, 1, 1)
    along = (y - centre[:, 1].view(-1, 1, 1)).abs() < half[:, 1].view(-1, 1, 1)
    erased = (across & along).unsqueeze(1).to(pixels.device)
    noise = torch.empty(1, 3, height, width).uniform_(0, 255).to(pixels.device)
    return torch.where(erased, noise, pixels)
