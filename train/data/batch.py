"""What every source of training data gives: a batch of clips with true tracks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Clips:
    """A batch of clips.

    video (B, T, H, W, 3) uint8 RGB; tracks (B, T, N, 2) px; visible (B, T, N) bool;
    query_frame (B, N) int64, a frame in which the point is visible. keypoint and instance (B, N)
    int64: the number of a body's keypoint (cotracker_ros.skeleton) and of its person in the clip;
    -1, as where they are left out: a plain point. known (B, T, N) bool, where the truth is;
    everywhere if left out.
    """

    video: Tensor
    tracks: Tensor
    visible: Tensor
    query_frame: Tensor
    keypoint: Tensor = None  # type: ignore[assignment]
    instance: Tensor = None  # type: ignore[assignment]
    known: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Plain points of known truth where nothing else is said."""
        if self.keypoint is None:
            self.keypoint = torch.full_like(self.query_frame, -1)
        if self.instance is None:
            self.instance = torch.full_like(self.query_frame, -1)
        if self.known is None:
            self.known = torch.ones_like(self.visible)

    def to(self, device: torch.device | str) -> Clips:
        """Move every tensor."""
        return Clips(*(x.to(device) for x in vars(self).values()))
