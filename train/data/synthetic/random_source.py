"""Random numbers of one seeded generator, on one device."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Dice:
    """Draws from a generator; the same seed gives the same numbers on the same device."""

    def __init__(self, rng: torch.Generator):
        self.rng, self.device = rng, rng.device

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(shape, generator=self.rng, device=self.device) * (high - low) + low

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.rng, device=self.device)

    def chance(self, p: float, *shape: int) -> Tensor:
        return self.uniform(*shape) < p

    def number(self, low: float = 0.0, high: float = 1.0) -> float:
        return float(self.uniform(1, low=low, high=high))

    def size(self, low: float, high: float) -> float:
        """A number as likely between 1 and 2 as between 2 and 4."""
        return low * (high / low) ** self.number()

    def integer(self, below: int) -> int:
        return int(torch.randint(below, (1,), generator=self.rng, device=self.device))

    def path(self, shape: tuple[int, ...], times: Tensor, speed: Tensor | float) -> Tensor:
        """Smooth random paths (*shape, T) whose typical change per frame is `speed`; 0 at no time.

        A steady drift and three sines of period 8 to 80 frames, amplitudes inverse to frequency.
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
