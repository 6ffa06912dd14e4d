"""The residual feature pyramid of the real-time tracker, and the same in 0.44 and in 0.31 of its
multiplications.
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from cotracker_ros.model.lite0 import unit

STEM = 24  # channels at stride 2
STAGES = (48, 96, 128, 160)  # channels at strides 4, 8, 16, 32
BLOCKS = (1, 2, 2, 1)  # residual blocks per stage
SLIM_STEM = 16
SLIM_RANKS = (16, 32, 48, 48)  # rank of a 3x3 convolution, per stage
TUCKER_RANKS = (16, 24, 32, 32)  # rank of its inputs, per stage
SLIM_SUMS = (32, 40, 64)  # channels of the sums of fine and coarse maps, at strides 4, 8, 16


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """The way past the convolutions of a block."""
    same = inputs == outputs and stride == 1
    return nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, which inference folds into them."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip = shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, h, w) to (B, outputs, h / stride, w / stride)."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.skip(x) + self.norm2(self.conv2(y)))


class FeaturePyramid(nn.Module):
    """Frame to L2-normalised features at strides 4, 8 and 16, coarse levels summed into fine ones.

    Every convolution is centred on the top-left pixel of its stride: feature (i, j) is pixel
    (stride j, stride i), so feature coordinates are pixels / stride. The encoders below fill in
    the layers.
    """

    strides = (4, 8, 16)
    stem: nn.Sequential
    stages: nn.ModuleList  # to strides 4, 8, 16 and 32
    lateral: nn.ModuleList  # from each stage to the sums of fine and coarse maps
    down: nn.ModuleList  # from the sum of one level to what the next finer one adds
    smooth: nn.ModuleList  # from the sums to the features

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (B, 3, H, W) in 0..255 to features (B, C, H/s, W/s), fine to coarse."""
        x = self.stem(image / 127.5 - 1)
        skips = []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        top = self.lateral[-1](skips[-1])
        features = []
        for level in reversed(range(len(self.smooth))):
            coarse, size = self.down[level](top), skips[level].shape[-2:]
            up = F.interpolate(coarse, size=size, mode='bilinear', align_corners=False)
            top = self.lateral[level](skips[level]) + up
            features.insert(0, unit(self.smooth[level](top).float()))
        return features


class PyramidEncoder(FeaturePyramid):
    """The pyramid of plain convolutions."""

    def __init__(self, features: int = 64):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, STEM, 5, 2, 2, bias=False), nn.BatchNorm2d(STEM), nn.ReLU()
        )
        widths = (STEM, *STAGES)
        self.stages = nn.ModuleList(
            nn.Sequential(
                ResidualBlock(widths[i], widths[i + 1], 2),
                *(ResidualBlock(widths[i + 1], widths[i + 1]) for _ in range(BLOCKS[i] - 1)),
            )
            for i in range(len(STAGES))
        )
        self.lateral = nn.ModuleList(nn.Conv2d(c, features, 1) for c in STAGES)
        self.smooth = nn.ModuleList(nn.Conv2d(features, features, 3, 1, 1) for _ in self.strides)
        self.down = nn.ModuleList(nn.Identity() for _ in self.strides)


def low_rank(
    inputs: int, outputs: int, rank: int, stride: int = 1, narrow: int | None = None
) -> nn.Sequential:
    """A 3x3 convolution of a lower rank: one with few outputs, and all outputs of those. Where
    `narrow` is fewer than the inputs, it takes only so many mixtures of them.
    """
    mixed = inputs if narrow is None else min(inputs, narrow)
    first = [nn.Conv2d(inputs, mixed, 1, bias=False)] if mixed < inputs else []
    few = nn.Conv2d(mixed, rank, 3, stride, 1, bias=False)
    return nn.Sequential(*first, few, nn.Conv2d(rank, outputs, 1))


class LowRankBlock(nn.Module):
    """A `ResidualBlock` whose two convolutions are of a lower rank, without batch norm."""

    def __init__(
        self, inputs: int, outputs: int, rank: int, stride: int = 1, narrow: int | None = None
    ):
        super().__init__()
        self.conv1 = low_rank(inputs, outputs, rank, stride, narrow)
        self.conv2 = low_rank(outputs, outputs, rank, narrow=narrow)
        self.skip = shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, h, w) to (B, outputs, h / stride, w / stride)."""
        return F.relu(self.skip(x) + self.conv2(F.relu(self.conv1(x))))


class SlimEncoder(FeaturePyramid):
    """What `PyramidEncoder` gives, in 0.44 of its multiplications.

    The outputs of its 3x3 convolutions lie nearly in a few directions, so that few filters and a
    1x1 convolution give them again (Zhang et al., Accelerating Very Deep Convolutional Networks,
    2015, section 3.1); so do those of its sums of fine and coarse maps. It learns from a
    `PyramidEncoder` (train/objectives/distillation.py).
    """

    narrow: tuple[int | None, ...] = (None,) * len(STAGES)  # rank of the inputs, per stage

    def __init__(self, features: int = 64):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, SLIM_STEM, 5, 2, 2), nn.ReLU())
        widths = (SLIM_STEM, *STAGES)
        self.stages = nn.ModuleList(
            nn.Sequential(
                LowRankBlock(widths[i], widths[i + 1], rank, 2, narrow),
                *(
                    LowRankBlock(widths[i + 1], widths[i + 1], rank, 1, narrow)
                    for _ in range(BLOCKS[i] - 1)
                ),
            )
            for i, (rank, narrow) in enumerate(zip(SLIM_RANKS, self.narrow, strict=True))
        )
        kept = [min(n, features) for n in SLIM_SUMS]
        sums = (*kept, features)  # the last of the coarsest map alone
        self.lateral = nn.ModuleList(nn.Conv2d(c, n, 1) for c, n in zip(STAGES, sums, strict=True))
        self.down = nn.ModuleList(
            nn.Conv2d(coarse, fine, 1, bias=False) for fine, coarse in pairwise(sums)
        )
        self.smooth = nn.ModuleList(nn.Conv2d(n, features, 3, 1, 1) for n in kept)


class TuckerEncoder(SlimEncoder):
    """A `SlimEncoder` in 0.70 of its multiplications: its 3x3 convolutions take few mixtures of
    their inputs, too (Tucker-2 decomposition: Kim et al., Compression of Deep Convolutional Neural
    Networks for Fast and Low Power Mobile Applications, 2016, section 3.1).
    """

    narrow = TUCKER_RANKS
