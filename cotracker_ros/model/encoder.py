"""The convolutional encoder: one frame in, one feature map out, frames independent."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with instance norm; the shortcut is projected where it is strided."""

    def __init__(self, size: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(size, out, 3, stride, padding=1)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Conv2d(size, out, 1, stride) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (F, size, H, W) to (F, out, H / stride, W / stride)."""
        y = F.relu(F.instance_norm(self.conv1(x)))
        y = F.relu(F.instance_norm(self.conv2(y)))
        if self.shortcut is not None:
            x = F.instance_norm(self.shortcut(x))
        return F.relu(x + y)


class Encoder(nn.Module):
    """Four residual stages, brought to one size, joined and mixed."""

    widths = (64, 96, 128, 128)

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(3, self.widths[0], 7, 2, padding=3)
        sizes = (self.widths[0], *self.widths[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(ResidualBlock(a, b, 1 if i == 0 else 2), ResidualBlock(b, b, 1))
            for i, (a, b) in enumerate(zip(sizes, self.widths, strict=True))
        )
        self.conv2 = nn.Conv2d(sum(self.widths), 2 * channels, 3, padding=1)
        self.conv3 = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, frames: Tensor) -> Tensor:
        """Map frames (F, 3, H, W) in [-1, 1] to features (F, C, H / stride, W / stride)."""
        size = tuple(extent // self.stride for extent in frames.shape[-2:])
        x = F.relu(F.instance_norm(self.conv1(frames)))
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(F.interpolate(x, size, mode='bilinear', align_corners=True))
        x = F.relu(F.instance_norm(self.conv2(torch.cat(outputs, dim=1))))
        return self.conv3(x)
