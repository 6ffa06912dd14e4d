"""What every source of training data gives: a batch of clips with true tracks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from cotracker_ros.points import support_grid
from train.data.augment import AugmentConfig


@dataclass(frozen=True)
class BatchConfig:
    """What a batch of clips holds."""

    clips: int = 2
    points: int = 64
    support: int = 0  # side of a grid of points beside them, which no loss counts
    bank: int = 64  # generated textures in use at a time
    # frame rate of a clip against the scene's own, log-uniform
    pace: tuple[float, float] = (0.5, 2.0)
    skip: float = 0.1  # chance that frames are dropped before a frame
    shuffle: bool = False  # unrelated frame times up to pace[1] apart: for matching, not tracking
    augment: AugmentConfig = AugmentConfig()  # noqa: RUF009 (frozen), of recorded data


@dataclass
class Clips:
    """A batch of clips of one source.

    video (B, T, H, W, 3) uint8 RGB; tracks (B, T, N, 2) px; visible (B, T, N) bool;
    query_frame (B, N) int64, a frame in which the point is visible. keypoint and instance (B, N)
    int64: the number of a body's keypoint (cotracker_ros.skeleton) and of its person in the clip;
    -1, as where they are left out: a plain point. known (B, T, N) bool, where the true place is;
    everywhere if left out. visibility_known (B, T, N) bool, where it is known whether the point is
    visible; where its place is known if left out. warp (B, T, N, 2, 2): how the surface around a
    point is deformed since its query frame, of sources that know it.
    """

    video: Tensor
    tracks: Tensor
    visible: Tensor
    query_frame: Tensor
    keypoint: Tensor = None  # type: ignore[assignment]
    instance: Tensor = None  # type: ignore[assignment]
    known: Tensor = None  # type: ignore[assignment]
    visibility_known: Tensor = None  # type: ignore[assignment]
    warp: Tensor | None = None
    source: str = ''  # name of the source

    def __post_init__(self) -> None:
        """Plain points of known truth where nothing else is said."""
        if self.keypoint is None:
            self.keypoint = torch.full_like(self.query_frame, -1)
        if self.instance is None:
            self.instance = torch.full_like(self.query_frame, -1)
        if self.known is None:
            self.known = torch.ones_like(self.visible)
        if self.visibility_known is None:
            self.visibility_known = self.known

    def to(self, device: torch.device | str) -> Clips:
        """Move every tensor."""
        parts = (getattr(self, field.name) for field in fields(self))
        return Clips(*(part.to(device) if isinstance(part, Tensor) else part for part in parts))

    def with_support(self, side: int, size: tuple[int, int]) -> Clips:
        """Add a grid of side x side points over `size` (H, W), px of the tracks, to the first
        frame. No truth is known of them; the other points attend to them, as to support points
        in use.
        """
        if not side:
            return self
        grid = torch.from_numpy(support_grid(side, size)).to(self.tracks)
        clips, frames = self.tracks.shape[:2]
        added = grid.expand(clips, frames, -1, -1)
        nothing = torch.zeros_like(added[..., 0], dtype=torch.bool)
        first, plain = nothing[:, 0].long(), nothing[:, 0].long() - 1
        return replace(
            self,
            tracks=torch.cat([self.tracks, added], 2),
            visible=torch.cat([self.visible, nothing], 2),
            query_frame=torch.cat([self.query_frame, first], 1),
            keypoint=torch.cat([self.keypoint, plain], 1),
            instance=torch.cat([self.instance, plain], 1),
            known=torch.cat([self.known, nothing], 2),
            visibility_known=torch.cat([self.visibility_known, nothing], 2),
            warp=None,
        )

    @classmethod
    def join(cls, parts: Sequence[Clips]) -> Clips:
        """One batch of the clips of several, of the same source."""
        rows = ([getattr(part, field.name) for field in fields(cls)] for part in parts)
        columns = zip(*rows, strict=True)
        return cls(*(torch.cat(x) if isinstance(x[0], Tensor) else x[0] for x in columns))
