"""Attention blocks of CoTracker 1 to 3, and the transformer that turns tokens of points and frames
into updates. Masks are those of `Attention`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cotracker_ros.model.attention import Attention


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, size: int, hidden: int, out: int, approximate: str = 'tanh') -> None:
        super().__init__()
        self.fc1 = nn.Linear(size, hidden)
        self.fc2 = nn.Linear(hidden, out)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., size) to (..., out)."""
        return self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))


class AttentionBlock(nn.Module):
    """Pre-norm self-attention and MLP, each with a residual."""

    def __init__(self, width: int, heads: int, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attention = Attention(width, heads)
        self.mlp = Mlp(width, mlp_ratio * width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None, wanted: int = 0) -> Tensor:
        """Mix (A, N, D) over N; mask (A, N, N) or 1s of these; give the last `wanted`, 0: all."""
        y = self.norm1(x)
        x = x[:, -wanted:] + self.attention(y[:, -wanted:], y, mask)
        return x + self.mlp(self.norm2(x))


class CrossBlock(AttentionBlock):
    """Pre-norm attention on a context with its own learned norm, and MLP."""

    def __init__(self, width: int, heads: int, mlp_ratio: int = 4) -> None:
        super().__init__(width, heads, mlp_ratio)
        self.norm_context = nn.LayerNorm(width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Update x (A, N, D) from context (A, M, D); mask (A, N, M) or 1s of these."""
        x = x + self.attention(self.norm1(x), self.norm_context(context), mask)
        return x + self.mlp(self.norm2(x))


class DirectSpace(nn.Module):
    """Every point attends to every point of its frame (CoTracker 1)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.points = AttentionBlock(width, heads)

    def forward(self, x: Tensor, count: int, shown: Tensor | None) -> Tensor:
        """Mix (A, N, D) over N; points outside `shown` (A, N) are not looked at."""
        return self.points(x, None if shown is None else shown[:, None, :])


class VirtualSpace(nn.Module):
    """Points exchange through a few virtual tracks: linear in the number of points."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.virtual_from_points = CrossBlock(width, heads)
        self.virtual = AttentionBlock(width, heads)
        self.points_from_virtual = CrossBlock(width, heads)

    def forward(self, x: Tensor, count: int, shown: Tensor | None) -> Tensor:
        """Mix (A, N + V, D), points first; points outside `shown` (A, N) give nothing."""
        points, virtual = x[:, :count], x[:, count:]
        keys, rows = (None, None) if shown is None else (shown[:, None, :], shown[:, :, None])
        virtual = self.virtual_from_points(virtual, points, keys)
        virtual = self.virtual(virtual)
        points = self.points_from_virtual(points, virtual, rows)
        return torch.cat([points, virtual], dim=1)


class UpdateTransformer(nn.Module):
    """Alternate attention over the frames of a track and over the tracks of a frame."""

    def __init__(
        self, size: int, out: int, width: int, heads: int, depth: int, virtual: int
    ) -> None:
        super().__init__()
        self.input = nn.Linear(size, width)
        self.head = nn.Linear(width, out)
        self.virtual = nn.Parameter(torch.randn(1, virtual, 1, width)) if virtual else None
        space = VirtualSpace if virtual else DirectSpace
        self.time = nn.ModuleList(AttentionBlock(width, heads) for _ in range(depth))
        self.space = nn.ModuleList(space(width, heads) for _ in range(depth))

    def forward(self, tokens: Tensor, shown: Tensor | None = None, wanted: int = 0) -> Tensor:
        """Map tokens (B, N, S, size) to (B, N, S, out); `shown` (B, N) bool hides points.

        Where only the last `wanted` frames are of use, the last blocks leave out the others.
        """
        batch, count, frames, _ = tokens.shape
        x = self.input(tokens)
        for depth, (time, space) in enumerate(zip(self.time, self.space, strict=True)):
            if time is self.time[-1]:
                frames = wanted or frames
            x = time(x.flatten(0, 1), wanted=frames).unflatten(0, (batch, -1))
            if self.virtual is not None and depth == 0:
                # Until they have looked at points, virtual tracks are the same in all frames.
                virtual = time(self.virtual[0]).expand(batch, -1, frames, -1)
                x = torch.cat([x, virtual], dim=1)
            rows = None if shown is None else shown[:, None].expand(-1, frames, -1).flatten(0, 1)
            x = space(x.transpose(1, 2).flatten(0, 1), count, rows)
            x = x.unflatten(0, (batch, frames)).transpose(1, 2)
        return self.head(x[:, :count])
