"""Teachers of pseudo-labels: what a tracker says about a clip of unlabelled video, and how much of
it is used (CoTracker3, section 5).

Queries are SIFT keypoints on a few frames, more of them early. A teacher tracks them; a point is
visible where its probability is above a threshold. A track is used where it passes a
forward-backward check (tracked back from the last frame that shows the point, it returns to the
query along the same way) and where the patch around the point still correlates with that of the
query: an outline that passes drags points of the background along, there and back, and they end
on something else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from cotracker_ros import geometry
from train.trackers import BASELINES, Tracker, open_tracker

# Where a picture changes: so many frames later by so many grey levels, averaged over some pixels,
# which noise and compression do not reach.
CHANGE_AFTER, CHANGE = 5, 8
PATCH = 21  # px, side of the patches that are correlated


class TooFewPoints(ValueError):
    """A clip that cannot be labelled: too few keypoints, or too few tracks worth keeping."""


@dataclass(frozen=True)
class LabelConfig:
    """What labels depend on, beside the video and the teachers."""

    seed: int = 0
    frames: int = 96  # of a clip; a video's last clip may be shorter
    min_frames: int = 24  # frames of the shortest clip
    size: int = 512  # px, what a frame's longer side is shrunk to; 0: as recorded
    points: int = 384  # queries of a clip
    query_frames: int = 8  # frames that queries are taken from
    moving_share: float = 0.0  # of the queries, taken where the picture changes, if it does enough
    min_tracks: int = 64  # a clip with fewer that pass the checks is skipped
    visibility_threshold: float = 0.9  # probability above which a network's point is visible
    round_trip: float = 2.0  # px, largest forward-backward error; 0: not checked
    min_correlation: float = 0.5  # of a visible point's patch with its query's; 0: not checked
    together: bool = False  # every teacher tracks every clip, and they must agree; else one drawn
    agree: float = 2.0  # px from the median of the teachers that see a point
    store: str = 'jpeg'  # pictures in the labels; or reference: the video is read again
    quality: int = 92  # of the pictures, JPEG

    def __post_init__(self) -> None:
        """Raise ValueError for values that no labels can come of."""
        if not 2 <= self.min_frames <= self.frames:
            raise ValueError(
                f'min_frames {self.min_frames} must be from 2 to frames, {self.frames}'
            )
        if min(self.points, self.query_frames) < 1:
            raise ValueError('points and query_frames are at least 1')
        if not 1 <= self.min_tracks <= self.points:
            raise ValueError(
                f'min_tracks {self.min_tracks} must be from 1 to points, {self.points}'
            )
        if not 0 < self.visibility_threshold < 1:
            raise ValueError(
                f'visibility_threshold {self.visibility_threshold} must lie between 0 and 1'
            )
        if not 0 <= self.moving_share <= 1:
            raise ValueError(f'moving_share {self.moving_share} must be from 0 to 1')
        if not 0 <= self.min_correlation < 1:
            raise ValueError(
                f'min_correlation {self.min_correlation} must be from 0 (not checked) to below 1'
            )
        if min(self.size, self.round_trip, self.agree) < 0:
            raise ValueError('size, round_trip and agree are px, not negative')
        if self.store not in ('jpeg', 'reference'):
            raise ValueError(f'store is jpeg or reference, not {self.store!r}')
        if not 1 <= self.quality <= 100:
            raise ValueError(f'quality {self.quality} is from 1 to 100')


@dataclass(frozen=True)
class Teacher:
    """A tracker whose results are taken as labels; nothing of it changes."""

    name: str
    sha256: str  # of its weights; of a classical tracker, of OpenCV's version
    tracks_hidden: bool  # whether its positions of hidden points mean anything
    track: Tracker


def load_teacher(
    name: str, visibility_threshold: float, device: str = 'cpu', threads: int = 1
) -> Teacher:
    """Open a tracker by the names of `trackers.open_tracker`. Raises what that raises."""
    return Teacher(
        name=name if name in BASELINES else Path(name).name,
        sha256=weights_hash(name),
        tracks_hidden=name not in BASELINES,
        track=open_tracker(name, visibility_threshold, device, threads),
    )


def try_out(teacher: Teacher) -> None:
    """Let a network track a point through two grey frames: what its runtime refuses, it refuses
    here, before there is work to lose. Raises what the tracker raises.
    """
    if teacher.tracks_hidden:
        teacher.track(np.full((2, 64, 64, 3), 128, np.uint8), np.array([[0, 32, 32]], np.float32))


def weights_hash(name: str) -> str:
    """The sha256 of what a teacher's results come from. Raises EngineError or OSError."""
    if name in BASELINES:
        return hashlib.sha256(f'{name}, OpenCV {cv2.__version__}'.encode()).hexdigest()
    path = Path(name)
    if not path.is_file():
        from cotracker_ros import engines

        path = Path(engines.find_model(name))
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Labels(NamedTuple):
    """Tracks (T, N, 2) float32 px, visible (T, N) bool, and weight (T, N) float32 in [0, 1]: how
    far each position and visibility is trusted; 0 where nothing is known.
    """

    tracks: np.ndarray
    visible: np.ndarray
    weight: np.ndarray


def sift_queries(
    video: np.ndarray, count: int, frames: int, rng: np.random.Generator, moving_share: float = 0.0
) -> np.ndarray:
    """Queries (count, 3) of t, x, y px: SIFT keypoints of random frames of a video (T, H, W, 3),
    every frame at most once, early ones more likely; at least `moving_share` of them where the
    picture changes, if it has so many (ours: before a camera that stands still, most keypoints do
    too). Raises TooFewPoints.
    """
    early = np.linspace(1.0, 0.0, len(video), endpoint=False)  # falls evenly to nearly nothing
    times = np.sort(
        rng.choice(len(video), min(frames, len(video)), replace=False, p=early / early.sum())
    )
    sift, found, share = cv2.SIFT.create(), [], -(-count // len(times))
    for t in times:
        grey = cv2.cvtColor(np.ascontiguousarray(video[t]), cv2.COLOR_RGB2GRAY)
        corners = [keypoint.pt for keypoint in sift.detect(grey, None)]
        # One keypoint has an entry for each of its orientations.
        places = np.unique(np.array(corners, np.float32).reshape(-1, 2), axis=0)
        places = rng.permutation(places)
        if moving_share and len(places):
            x, y = places.round().astype(int).T
            first = np.flatnonzero(changing(video, t)[y, x])[: round(moving_share * share)]
            places = np.concatenate([places[first], np.delete(places, first, axis=0)])
        found.append(np.insert(places, 0, t, axis=1))
    # An equal share of each frame; what some lack, the others give.
    chosen = np.concatenate([part[:share] for part in found] + [part[share:] for part in found])
    if len(chosen) < count:
        raise TooFewPoints(f'{len(chosen)} keypoints in {len(times)} frames, {count} are wanted')
    return chosen[:count].astype(np.float32)


def changing(video: np.ndarray, t: int) -> np.ndarray:
    """Where frame t of a video (T, H, W, 3) differs from one a little later, or, near the end,
    earlier: (H, W) bool.
    """
    other = t + CHANGE_AFTER if t + CHANGE_AFTER < len(video) else max(0, t - CHANGE_AFTER)
    here, there = (
        cv2.cvtColor(np.ascontiguousarray(video[i]), cv2.COLOR_RGB2GRAY) for i in (t, other)
    )
    return cv2.GaussianBlur(cv2.absdiff(here, there), (0, 0), 4) > CHANGE


def track_queries(
    teacher: Teacher,
    video: np.ndarray,
    queries: np.ndarray,
    round_trip: float,
    min_correlation: float = 0.0,
) -> Labels:
    """Labels of queries (N, 3) by one teacher, from each one's frame on; round_trip (px) and
    min_correlation as in LabelConfig. Raises ValueError for results of another shape, or not
    finite.
    """
    count, frames = len(queries), len(video)
    xy, visible = _checked(teacher, video, queries)
    query_frame = queries[:, 0].astype(int)
    after = np.arange(frames)[:, None] >= query_frame
    visible = visible & after & geometry.inside(xy, video.shape[1:3])
    known = after & (visible | teacher.tracks_hidden)
    if round_trip:
        last = np.where(visible.any(0), frames - 1 - visible[::-1].argmax(0), query_frame)
        there = xy[last, np.arange(count)]
        back = np.concatenate([(frames - 1 - last)[:, None], there], 1).astype(np.float32)
        returned = _checked(teacher, video[::-1], back)[0][::-1]
        near = np.linalg.norm(returned - xy, axis=-1) <= round_trip
        between = np.arange(frames)[:, None] <= last
        known &= (near | ~between) & near[query_frame, np.arange(count)]
    if min_correlation:
        known &= (correlation(video, queries, xy) >= min_correlation) | ~visible
    return Labels(xy.astype(np.float32), visible & known, known.astype(np.float32))


def correlation(video: np.ndarray, queries: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Normalised cross-correlation (T, N), from -1 to 1, of the grey patches around tracks xy
    (T, N, 2) px in a video (T, H, W, 3) with those around their queries (N, 3).
    """
    offset = np.arange(PATCH, dtype=np.float32) - PATCH // 2
    around = np.stack(np.meshgrid(offset, offset), -1).reshape(-1, 2)

    def patches(t: int, at: np.ndarray) -> np.ndarray:
        grey = cv2.cvtColor(np.ascontiguousarray(video[t]), cv2.COLOR_RGB2GRAY)
        x, y = np.moveaxis(at[:, None].astype(np.float32) + around, -1, 0)
        patch = cv2.remap(grey, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        patch = patch - patch.mean(1, keepdims=True, dtype=np.float32)
        return patch / np.linalg.norm(patch, axis=1, keepdims=True).clip(1e-3)

    query_frame = queries[:, 0].astype(int)
    first = np.zeros((len(queries), PATCH**2), np.float32)
    for t in np.unique(query_frame):
        first[query_frame == t] = patches(t, queries[query_frame == t, 1:])
    return np.stack([(patches(t, xy[t]) * first).sum(1) for t in range(len(video))])


def _checked(
    teacher: Teacher, video: np.ndarray, queries: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    xy, visible = teacher.track(np.ascontiguousarray(video), queries)
    shape = len(video), len(queries)
    if xy.shape != (*shape, 2) or visible.shape != shape:
        raise ValueError(f'{teacher.name} gave tracks {xy.shape} and visibility {visible.shape}')
    if not np.isfinite(xy).all():
        raise ValueError(f'{teacher.name} gave positions that are not finite')
    return xy, visible.astype(bool)


def consensus(labels: Sequence[Labels], limit: float) -> Labels:
    """The labels of more than half of the teachers, and at least two: the median position of
    those that see a point, weighted by the share of all that lie within `limit` px of it.

    Where they do not agree, nothing is known, hidden points included.
    """
    tracks, seen = np.stack([x.tracks for x in labels]), np.stack([x.visible for x in labels])
    some = seen.any(0)
    masked = np.where((seen | ~some)[..., None], tracks, np.nan)  # where none sees it: of all
    middle = np.nanmedian(masked, axis=0)
    near = seen & (np.linalg.norm(tracks - middle, axis=-1) <= limit)
    votes = near.sum(0)
    share = votes / len(labels)
    visible = (share > 0.5) & (votes >= 2)
    return Labels(
        middle.astype(np.float32), visible, np.where(visible, share, 0).astype(np.float32)
    )


def label(
    video: np.ndarray, teachers: Sequence[Teacher], config: LabelConfig, rng: np.random.Generator
) -> tuple[np.ndarray, Labels, list[Teacher]]:
    """Queries (N, 3), their labels, and the teachers that gave them, of a clip (T, H, W, 3).

    Tracks that are seen in fewer than two frames are left out. Raises TooFewPoints, and whatever
    a teacher raises.
    """
    drawn = [teachers[int(rng.integers(len(teachers)))]]
    used = list(teachers) if config.together else drawn
    queries = sift_queries(video, config.points, config.query_frames, rng, config.moving_share)
    checks = config.round_trip, config.min_correlation
    each = [track_queries(teacher, video, queries, *checks) for teacher in used]
    labels = consensus(each, config.agree) if config.together else each[0]
    good = labels.visible.sum(0) >= 2
    if good.sum() < config.min_tracks:
        raise TooFewPoints(f'{good.sum()} of {len(queries)} tracks pass the checks')
    return queries[good], Labels(*(part[:, good] for part in labels)), used
