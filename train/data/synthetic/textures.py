"""Textures with natural statistics: fractal noise, dead leaves, stripes, checks, spots, flats
and mixtures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cotracker_ros.files import opencv_name
from train.data.synthetic.random_source import RandomSource

SIDE = 512  # px of a texture in the bank


def read_photographs(folder: str | Path) -> list[np.ndarray]:
    """The images of a folder, (H, W, 3) uint8 RGB; none where no folder is named.

    Raises ValueError for a folder without images and for a file that is none.
    """
    if not str(folder):
        return []
    photographs = []
    for file in sorted(Path(folder).glob('*.[jp][pn]g')):
        image = cv2.imread(opencv_name(file), cv2.IMREAD_COLOR)
        if image is None:
            raise ValueError(f'{file} is not an image')
        photographs.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
    if not photographs:
        raise ValueError(f'{folder}: no .jpg or .png there')
    return photographs


class TextureBank(RandomSource):
    """A bank of square RGB textures, (count, 3, SIDE, SIDE) in [0, 1], and photographs beside
    them.
    """

    def __init__(
        self,
        count: int,
        rng: torch.Generator,
        photographs: Sequence[np.ndarray] = (),
    ):
        super().__init__(rng)
        self.generated = torch.stack([self.make() for _ in range(count)])
        self.photographs = [
            torch.from_numpy(p).to(self.device).movedim(-1, 0).float() / 255 for p in photographs
        ]

    def draw(self, count: int, side: int) -> Tensor:
        """Random crops, flips and recolourings of the bank: (count, 3, side, side) in [0, 1]."""
        return torch.stack([self.crop(side) for _ in range(count)])

    def crop(self, side: int) -> Tensor:
        """A random part of a random texture, recoloured: (3, side, side) in [0, 1]."""
        # From twice magnified to the whole texture: frames of a camera are sharp and full of
        # detail, and some of their surfaces are smooth.
        texture = self.generated[self.integer(len(self.generated))]
        if self.photographs and self.number() < 0.7:
            texture = self.photographs[self.integer(len(self.photographs))]
        limit = min(texture.shape[1:])
        extent = int(self.size(min(limit, side // 2), limit))
        top, left = (self.integer(n - extent + 1) for n in texture.shape[1:])
        crop = texture[:, top : top + extent, left : left + extent]
        if self.number() < 0.5:
            crop = crop.flip(-1)
        if self.number() < 0.5:
            crop = crop.transpose(-1, -2)
        crop = F.interpolate(crop[None], (side, side), mode='bilinear', antialias=True)[0]
        contrast, mean = 0.35 + 0.9 * self.number(), crop.mean((1, 2), keepdim=True)
        mix = torch.eye(3, device=self.device)
        if self.number() < 0.5:  # the other half keeps its colours
            mix = 0.5 * mix + 0.2 + 0.2 * self.normal(3, 3)
        crop = torch.einsum('ij,jhw->ihw', mix, crop - mean) * contrast
        grey, tint = 0.2 + 0.6 * self.number(), 0.3 * self.number() * (self.uniform(3, 1, 1) - 0.5)
        return (crop + grey + tint).clamp(0, 1)

    def make(self) -> Tensor:
        """One new texture of a random kind."""
        kinds = (
            self.fractal,
            self.fractal,
            self.leaves,
            self.leaves,
            self.stripes,
            self.spots,
            self.flat,
            self.mixture,
            self.mixture,
        )
        return kinds[self.integer(len(kinds))]()

    def fractal(self) -> Tensor:
        """Noise with spectrum 1 / f^b, b between 0.3 and 1.3."""
        fall, out = 2 ** -(0.3 + self.number()), torch.zeros(3, SIDE, SIDE, device=self.device)
        scale, mix = 1.0, torch.eye(3, device=self.device) * 0.3 + 0.7
        for octave in range(8):
            grid = self.normal(1, 3, 2 ** (octave + 2), 2 ** (octave + 2))
            out += scale * F.interpolate(grid, (SIDE, SIDE), mode='bicubic', align_corners=True)[0]
            scale *= fall
        return self.stretch(torch.einsum('ij,jhw->ihw', mix, out))

    def leaves(self) -> Tensor:
        """Dead leaves: discs and boxes of radius density r^-3 that hide each other, each with
        its own shade.
        """
        count, small = 500, SIDE // 2
        axis = torch.arange(small, device=self.device).float()
        low, high = 2.0, 60.0
        radius = (low**-2 - self.uniform(count) * (low**-2 - high**-2)) ** -0.5
        centre = self.uniform(count, 2) * small
        round_, turn, colour = (
            self.uniform(count) < 0.5,
            self.uniform(count) * math.pi,
            self.uniform(count, 3),
        )
        image = self.uniform(3, 1, 1).expand(3, small, small).clone()
        for i in range(count):
            r = float(radius[i]) * 1.5
            x0, x1 = (int(min(max(float(centre[i, 0]) + s * r, 0), small)) for s in (-1, 1))
            y0, y1 = (int(min(max(float(centre[i, 1]) + s * r, 0), small)) for s in (-1, 1))
            dx, dy = axis[x0:x1][None] - centre[i, 0], axis[y0:y1][:, None] - centre[i, 1]
            if round_[i]:
                inside = dx**2 + dy**2 < radius[i] ** 2
            else:
                c, s = turn[i].cos(), turn[i].sin()
                inside = ((dx * c + dy * s).abs() < radius[i]) & (
                    (dy * c - dx * s).abs() < 0.6 * radius[i]
                )
            shade = (
                colour[i][:, None, None]
                + 0.15 * (dx * turn[i].cos() + dy * turn[i].sin()) / radius[i]
            )
            image[:, y0:y1, x0:x1] = torch.where(inside, shade, image[:, y0:y1, x0:x1])
        image = F.interpolate(image[None], (SIDE, SIDE), mode='bilinear', align_corners=True)[0]
        return (image + 0.6 * self.number() * (self.fractal() - 0.5)).clamp(0, 1)

    def stripes(self) -> Tensor:
        """Straight or wavy stripes, or checks; a repeated pattern that is hard to tell apart."""
        axis = torch.linspace(0, 1, SIDE, device=self.device)
        bend = (
            0.05
            * self.number()
            * F.interpolate(
                self.normal(1, 2, 4, 4), (SIDE, SIDE), mode='bicubic', align_corners=True
            )[0]
        )
        x, y = axis[None] + bend[0], axis[:, None] + bend[1]
        angle, period = self.number() * math.pi, 6 + 40 * self.number()
        a = torch.sin(2 * math.pi * period * (x * math.cos(angle) + y * math.sin(angle)))
        b = torch.sin(2 * math.pi * period * (y * math.cos(angle) - x * math.sin(angle)))
        wave = a * b if self.number() < 0.4 else a
        wave = (wave * (1 + 6 * self.number())).clamp(-1, 1) * 0.5 + 0.5
        one, two = self.uniform(3, 1, 1), self.uniform(3, 1, 1)
        return (one + (two - one) * wave + 0.25 * (self.fractal() - 0.5)).clamp(0, 1)

    def spots(self) -> Tensor:
        """Level sets of noise: fur, foliage, camouflage."""
        cells = 8 + self.integer(40)
        noise = F.interpolate(
            self.normal(1, 1, cells, cells), (SIDE, SIDE), mode='bicubic', align_corners=True
        )[0]
        mask = ((noise - 0.3 * self.number()) * (2 + 8 * self.number())).sigmoid()
        one, two = self.uniform(3, 1, 1), self.uniform(3, 1, 1)
        return (one + (two - one) * mask + 0.3 * (self.fractal() - 0.5)).clamp(0, 1)

    def flat(self) -> Tensor:
        """One colour with a faint gradient and grain."""
        return (self.uniform(3, 1, 1) + 0.2 * self.number() * (self.fractal() - 0.5)).clamp(0, 1)

    def mixture(self) -> Tensor:
        """Two textures divided by a smooth border."""
        noise = F.interpolate(
            self.normal(1, 1, 5, 5), (SIDE, SIDE), mode='bicubic', align_corners=True
        )[0]
        mask = (noise * 12).sigmoid()
        kinds = (self.fractal, self.leaves, self.stripes, self.spots, self.flat)
        one, two = kinds[self.integer(5)](), kinds[self.integer(5)]()
        return (one + (two - one) * mask + 0.3 * self.number() * (self.fractal() - 0.5)).clamp(
            0, 1
        )

    def stretch(self, x: Tensor) -> Tensor:
        """Scale each channel of x (3, h, w) to [0, 1]."""
        low, high = x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
        return (x - low) / (high - low + 1e-6)
