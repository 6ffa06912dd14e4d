"""What every network states of itself, and the published CoTracker networks as values of one
configuration.
"""

from __future__ import annotations

from dataclasses import dataclass

from cotracker_ros.visible import VisibleRule

PERMISSIVE = 'Apache-2.0'
UNKNOWN = 'unknown'


@dataclass(frozen=True)
class Origin:
    """Under which licence weights may be used, an SPDX expression, and where they come from."""

    licence: str
    provenance: str

    def trained_on(self, licence: str, provenance: str) -> Origin:
        """The origin of weights that began as these and were trained on data that allow `licence`.

        They are under both licences; Apache-2.0 adds nothing to another one.
        """
        parts = [part for text in (self.licence, licence) for part in text.split(' AND ')]
        others = [part for part in dict.fromkeys(parts) if part != PERMISSIVE]
        whence = f'{provenance}; began as: {self.provenance}' if self != FRESH else provenance
        return Origin(' AND '.join(others) or PERMISSIVE, whence)


FRESH = Origin(PERMISSIVE, 'random weights')
PUBLISHED = Origin('CC-BY-NC-4.0', 'published CoTracker weights')


@dataclass(frozen=True)
class ModelFacts:
    """What others must know of a network to use it; every network has them as `facts`."""

    name: str  # in the registry
    image_size: tuple[int, int]  # (H, W) in pixels, in which all coordinates are
    image_scale: int  # frames are given to it so many times as high and wide
    window: int  # S frames; the largest query_age of a stream is S - 1
    iterations: int  # refinements of a frame in a stream, unless asked otherwise
    resize: str  # how frames are brought to its size and points with them: geometry.POINTS
    visible: VisibleRule  # frame by frame or window by window
    visible_whole: VisibleRule  # given a whole video, as CoTrackerPredictor has it
    sliding: bool  # windows of `window` frames, each advanced by half of it
    causal: bool  # a frame is never seen before those ahead of it, by whatever call
    support_grid: int  # side of the grid of helping points that papers add to whole videos
    not_streamable: str  # the reason; '' where it can be streamed
    origin: Origin

    @property
    def picture_size(self) -> tuple[int, int]:
        """(H, W) of the frames it is given."""
        return self.image_scale * self.image_size[0], self.image_scale * self.image_size[1]


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
    resize: str = 'aligned'  # how frames and points are brought to image_size: geometry.POINTS
    visible: VisibleRule = VisibleRule(0.6, with_confidence=True)  # noqa: RUF009 (frozen)
    support_grid: int = 5  # side of the grid of helping points that the papers add
    keypoints: int = 0  # numbers of a body's keypoints with an embedding of their own; 0: none
    interleave_points: bool = False  # the quirk of the first weights: see cotracker.interleave

    def __post_init__(self) -> None:
        """Refuse what no network can run."""
        least = self.stride * 2 ** (self.levels - 1)
        if any(extent < least or extent % self.stride for extent in self.image_size):
            raise ValueError(
                f'image_size {self.image_size} (H, W) must be multiples of {self.stride}'
                f' and at least {least}'
            )
        if self.keypoints < 0:
            raise ValueError(f'keypoints is {self.keypoints}, it must be 0 (none) or their number')
        if self.window < 2 or self.window % 2:
            raise ValueError(f'window {self.window} must be even and at least 2')

    @property
    def feature_size(self) -> tuple[int, int]:
        """Extent (h, w) of the feature map, feature pixels."""
        return self.image_size[0] // self.stride, self.image_size[1] // self.stride

    @property
    def not_streamable(self) -> str:
        """Why the network cannot be streamed; '' if it can."""
        if self.interleave_points:
            return (
                'its weights mix what they know of all points in one list, so that empty slots'
                ' would change the tracks'
            )
        return '' if self.sliding else 'it needs the whole video at once; use cotracker3_online'


VISIBLE_WHOLE = VisibleRule(0.9)  # of the published predictor of whole videos, for any network
_EVOLVING = {'window': 8, 'depth': 6, 'patch_template': False, 'start_logit': 10.0}
VARIANTS = {
    config.name: config
    for config in (
        Config(
            'cotracker1', **_EVOLVING, virtual=0, zero_border=True, hide_unstarted=True,
            drop_unstarted=True, resize='ratio', visible=VISIBLE_WHOLE, support_grid=6,
            interleave_points=True,
        ),
        Config('cotracker2', **_EVOLVING, hide_unstarted=True, visible=VisibleRule(0.6)),
        Config('cotracker3_online', window=16, depth=3),
        Config(
            'cotracker3_offline', window=60, depth=3, sliding=False, visible=VISIBLE_WHOLE,
        ),
    )
}  # fmt: skip
