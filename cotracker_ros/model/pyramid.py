"""The residual feature pyramid of the real-time tracker's first weights."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cotracker_ros.model.lite0 import unit

STEM = 24  # channels at stride 2
STAGES = (48, 96, 128, 160)  # channels at strides 4, 8, 16, 32
BLOCKS = (1, 2, 2, 1)  # residual blocks per stage


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, which inference folds into them."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip = (
            nn.Identity()
            if inputs == outputs and stride == 1
            else nn.Conv2d(inputs, outputs, 1, stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, h, w) to (B, outputs, h / stride, w / stride)."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.skip(x) + self.norm2(self.conv2(y)))


class PyramidEncoder(nn.Module):
    """Frame to L2-normalised features at strides 4, 8 and 16, coarse levels summed into fine ones.

    Every convolution is centred on the top-left pixel of its stride: feature (i, j) is pixel
    (stride j, stride i), so feature coordinates are pixels / stride.
    """

    strides = (4, 8, 16)

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
            up = F.interpolate(
                top, size=skips[level].shape[-2:], mode='bilinear', align_corners=False
            )
            top = self.lateral[level](skips[level]) + up
            features.insert(0, unit(self.smooth[level](top).float()))
        return features
