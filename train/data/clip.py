"""Recorded or rendered video with points to track and the truth, as readers yield it.

Pixels have (0, 0) at the centre of the top-left pixel.
"""

from dataclasses import dataclass, replace

import numpy as np


class DataError(ValueError):
    """A data set that cannot be read; the message says which file and why."""


@dataclass(frozen=True)
class Pose:
    """What errors of people's keypoints are measured against; see metrics.pose."""

    head: np.ndarray  # (T, N) px, size of the person's head; 0: unknown
    box: np.ndarray  # (T, N) px, longer side of the person's box; 0: unknown
    area: np.ndarray  # (T, N) px^2 of the person; 0: unknown
    keypoint: np.ndarray  # (N,) COCO's number, cotracker_ros.skeleton
    instance: np.ndarray  # (N,) number of the person in the clip


@dataclass(frozen=True)
class Clip:
    """A video with points to track and where they truly are."""

    name: str
    video: np.ndarray  # (T, H, W, 3) uint8 RGB
    queries: np.ndarray  # (N, 3) float32: frame, x px, y px
    tracks: np.ndarray  # (T, N, 2) float32 px; anything where the truth is not known
    visible: np.ndarray  # (T, N) bool; False where the truth is not known
    known: np.ndarray | None = None  # (T, N) bool, where tracks is true; None: everywhere
    area: np.ndarray | None = None  # (T,) px of the object's mask, NaN without annotation (BADJA)
    pose: Pose | None = None  # of people's keypoints (PoseTrack, people)
    # (T, N) bool, where it is known whether the point is visible; None: as `known`
    visibility_known: np.ndarray | None = None
    # (T, H, W) int8, 1 on the object, -1 beside it, 0 within 2 px of its edge (DAVIS: no tracks)
    side: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Raise DataError where the parts do not belong together."""
        frames, count = len(self.video), len(self.queries)
        if self.video.ndim != 4 or self.video.shape[3] != 3 or self.video.dtype != np.uint8:
            shape, kind = self.video.shape, self.video.dtype
            raise DataError(f'{self.name}: video is (T, H, W, 3) uint8, not {shape} {kind}')
        if len(self.tracks) != frames or len(self.visible) != frames:
            raise DataError(
                f'{self.name}: {frames} frames but tracks of {len(self.tracks)} '
                f'and visibility of {len(self.visible)}'
            )
        if self.tracks.shape != (frames, count, 2) or self.visible.shape != (frames, count):
            raise DataError(
                f'{self.name}: {count} queries but tracks {self.tracks.shape} '
                f'and visibility {self.visible.shape}'
            )
        if not (np.isfinite(self.tracks).all() and np.isfinite(self.queries).all()):
            raise DataError(f'{self.name}: tracks or queries hold NaN or infinity')
        if not count:
            raise DataError(f'{self.name}: no point to track')
        if ((self.queries[:, 0] < 0) | (self.queries[:, 0] >= frames)).any():
            raise DataError(f'{self.name}: a query lies beyond the {frames} frames of the clip')

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, px."""
        return self.video.shape[1], self.video.shape[2]


def first_queries(visible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return frame (K,) and index (K,) of each point's first visible frame, by index."""
    index = np.flatnonzero(visible.any(0))
    return visible.argmax(0)[index], index


def strided_queries(visible: np.ndarray, stride: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Return frame (K,) and index (K,) of every visible point of every stride-th frame."""
    t, index = np.nonzero(visible[::stride])
    return t * stride, index


def with_queries(
    name: str,
    video: np.ndarray,
    tracks: np.ndarray,
    visible: np.ndarray,
    strided: bool,
    hidden_known: bool,
) -> Clip | None:
    """Return the clip with one track for each query, or None where no point is ever visible."""
    t, index = (strided_queries if strided else first_queries)(visible)
    if not len(index):
        return None
    queries = np.concatenate([t[:, None], tracks[t, index]], 1).astype(np.float32)
    tracks, visible = tracks[:, index], visible[:, index]
    return Clip(name, video, queries, tracks, visible, None if hidden_known else visible)


def there_and_back(clip: Clip) -> Clip:
    """Return the clip played forwards and then backwards, (2 T - 1) frames."""
    parts = {
        name: np.concatenate([part, part[-2::-1]])
        for name in ('video', 'tracks', 'visible', 'known')
        if (part := getattr(clip, name)) is not None
    }
    return replace(clip, **parts)


def with_occluder(clip: Clip, start: int, frames: int) -> Clip:
    """Return the clip with an occluder before the picture's middle third in some frames, from
    `start` on; see train/data/occluders.py.

    Points behind it are not visible, their places known as before. For measuring a tracker on
    occlusions of one length.
    """
    import torch  # readers alone do without

    from train.data.occluders import hide, is_hidden

    width = clip.video.shape[2]
    columns = torch.zeros(len(clip.video), width, dtype=torch.bool)
    columns[start : start + frames, width // 3 : 2 * width // 3] = True
    video = hide(torch.from_numpy(clip.video).movedim(-1, 1), columns).movedim(1, -1).numpy()
    visible = clip.visible & ~is_hidden(columns, torch.from_numpy(clip.tracks)).numpy()
    t = clip.queries[:, 0].astype(int)
    kept = np.flatnonzero(visible[t, np.arange(len(t))])
    known = clip.visible if clip.known is None else clip.known
    parts = clip.queries[kept], clip.tracks[:, kept], visible[:, kept], known[:, kept]
    return Clip(f'{clip.name}, {frames} frames occluded', np.ascontiguousarray(video), *parts)


def beginning(clip: Clip, frames: int, asked_before: int) -> Clip | None:
    """Return the first frames of a clip with the points queried before frame
    `asked_before`; None where there are none.
    """
    early = clip.queries[:, 0] < asked_before
    if not early.any():
        return None
    known = None if clip.known is None else clip.known[:frames, early]
    tracks, visible = clip.tracks[:frames, early], clip.visible[:frames, early]
    return Clip(clip.name, clip.video[:frames], clip.queries[early], tracks, visible, known)
