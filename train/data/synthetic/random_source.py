"""Random numbers from one seeded generator, on one device."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class RandomSource:
    """Draws from a generator: the same seed gives the same numbers on the same device."""

    def __init__(self, rng: torch.Generator):
        self.rng, self.device = rng, rng.device

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Draw numbers evenly distributed in [low, high)."""
        return torch.rand(shape, generator=self.rng, device=self.device) * (high - low) + low

    def normal(self, *shape: int) -> Tensor:
        """Draw from the standard normal distribution."""
        return torch.randn(shape, generator=self.rng, device=self.device)

    def chance(self, p: float, *shape: int) -> Tensor:
        """Draw bools, each true with probability p."""
        return self.uniform(*shape) < p

    def number(self, low: float = 0.0, high: float = 1.0) -> float:
        """Draw one number evenly distributed in [low, high)."""
        return float(self.uniform(1, low=low, high=high))

    def size(self, low: float, high: float) -> float:
        """Draw one number in [low, high), evenly distributed in its logarithm."""
        return low * (high / low) ** self.number()

    def integer(self, below: int) -> int:
        """Draw one of 0, 1, ..., below - 1."""
        return int(torch.randint(below, (1,), generator=self.rng, device=self.device))

    def path(self, shape: tuple[int, ...], times: Tensor, speed: Tensor | float) -> Tensor:
        """Draw smooth random paths (*shape, T) at `times` (..., T), in frames; `speed` is their
        typical change per frame. They need not pass through 0.

        Each is a steady drift and three sines of period 8 to 80 frames, with amplitudes inverse
        to their frequencies.
        """
        t = times.expand(*shape, -1)
        speed = torch.as_tensor(speed, device=self.device)
        speed = speed.expand(shape)[..., None] if speed.ndim else speed
        out = self.normal(*shape, 1) * t * 0.6
        for low, high in ((0.08, 0.2), (0.2, 0.45), (0.4, 0.8)):
            omega = self.uniform(*shape, 1, low=low, high=high)
            phase = self.uniform(*shape, 1, high=2 * math.pi)
            out = out + 0.6 * self.normal(*shape, 1) / omega * torch.sin(omega * t + phase)
        return out * speed
