"""The published CoTracker networks as values of one configuration."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """Everything in which the networks differ; see VARIANTS for the published values."""

    name: str
    window: int  # S, frames refined together; not sliding: frames of the stored time table
    depth: int  # time blocks, and as many space blocks
    image_size: tuple[int, int] = (384, 512)  # H, W of the frames, pixels
    stride: int = 4  # pixels of the frame per feature pixel
    channels: int = 128  # C of the feature map
    levels: int = 4  # of the feature pyramid
    radius: int = 3  # of a correlation patch, pixels of its level
    width: int = 384  # of the transformer
    heads: int = 8
    virtual: int = 64  # virtual tracks; 0: points attend to each other directly
    patch_template: bool = True  # the template is a fixed patch; else a feature that evolves
    start_logit: float = 0.0  # of visibility (and confidence) at a point's start
    sliding: bool = True  # windows advance by S / 2; else one window covers the whole video
    zero_border: bool = False  # correlation reads 0 outside the map; else the border
    hide_unstarted: bool = False  # points not yet started are masked in attention
    drop_unstarted: bool = False  # ... and get no result, and repeated frames count as known
    aligned_corners: bool = True  # how predictors resize frames, and scale points, to image_size
    interleave_points: bool = False  # the quirk of the first weights: see cotracker.interleave

    def __post_init__(self) -> None:
        """Refuse what no network can run."""
        least = self.stride * 2 ** (self.levels - 1)
        if any(extent < least or extent % self.stride for extent in self.image_size):
            raise ValueError(
                f'image_size {self.image_size} (H, W) must be multiples of {self.stride}'
                f' and at least {least}'
            )
        if self.window < 2 or self.window % 2:
            raise ValueError(f'window {self.window} must be even and at least 2')

    @property
    def feature_size(self) -> tuple[int, int]:
        """Extent (h, w) of the feature map, feature pixels."""
        return self.image_size[0] // self.stride, self.image_size[1] // self.stride


_EVOLVING = {'window': 8, 'depth': 6, 'patch_template': False, 'start_logit': 10.0}
VARIANTS = {
    config.name: config
    for config in (
        Config(
            'cotracker1', **_EVOLVING, virtual=0, zero_border=True, hide_unstarted=True,
            drop_unstarted=True, aligned_corners=False, interleave_points=True,
        ),
        Config('cotracker2', **_EVOLVING, hide_unstarted=True),
        Config('cotracker3_online', window=16, depth=3),
        Config('cotracker3_offline', window=60, depth=3, sliding=False),
    )
}  # fmt: skip
