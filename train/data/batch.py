"""What every source of training data gives: a batch of clips with true tracks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Clips:
    """A batch of rendered clips.

    video (B, T, H, W, 3) uint8 RGB; tracks (B, T, N, 2) px; visible (B, T, N) bool;
    query_frame (B, N) int64, a frame in which the point is visible.
    """

    video: Tensor
    tracks: Tensor
    visible: Tensor
    query_frame: Tensor

    def to(self, device: torch.device | str) -> Clips:
        """Move every tensor."""
        return Clips(*(x.to(device) for x in vars(self).values()))
