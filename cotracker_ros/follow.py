"""People between the answers of a pose detector: it is slow and sure, the tracker fast.

A detector names the 17 keypoints of people a few times a second; the tracker carries them on every
frame between. When it answers again, its people are matched to those that are followed, points
that went astray are moved without a new id, keypoints seen for the first time are added, and
people who are no longer found are given up.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from cotracker_ros.skeleton import KEYPOINTS
from cotracker_ros.streaming import StreamingTracker, Tracks

REMEMBERED = 128  # frames whose tracks are kept, for detections that come late
SAME = 0.35  # of a person's size: people further apart on average are two


class Pose(NamedTuple):
    """A person in one frame."""

    instance: int  # counts up from 1, never used again
    xy: np.ndarray  # (17, 2) px, NaN for keypoints that are not followed
    visible: np.ndarray  # (17,) bool


@dataclass
class _Person:
    ids: dict[int, int] = field(default_factory=dict)  # of the points, by keypoint
    seen: float = 0.0  # stamp of the last detection


class Follower:
    """Follows people with a tracker that nobody else adds points to.

    sure: score from which a detector is believed that it sees a keypoint. patience: seconds after
    which a person is given up whom the detector no longer finds. tolerance: how far a point may
    be off before it is moved, against the person's size; a point moved for every answer would
    inherit the detector's trembling.
    """

    def __init__(
        self,
        tracker: StreamingTracker,
        sure: float = 0.5,
        patience: float = 1.0,
        tolerance: float = 0.03,
    ) -> None:
        self.tracker, self.sure = tracker, sure
        self.patience, self.tolerance = patience, tolerance
        self._people: dict[int, _Person] = {}
        self._next = 1
        self._past: deque[Tracks] = deque(maxlen=REMEMBERED)

    def track(self, frame: np.ndarray, stamp: float) -> list[Pose]:
        """Follow everybody into a frame (H, W, 3) uint8 RGB taken at `stamp`, seconds."""
        tracks = self.tracker.track(frame, stamp)
        self._past.append(tracks)
        return [Pose(i, *_arrays(person, tracks)) for i, person in self._people.items()]

    def correct(self, people: np.ndarray, stamp: float) -> None:
        """Take a detector's answer for the frame of `stamp`: (P, 17, 3) of x, y px and score.

        The frame is one of those tracked, not older than the model's window, or the next one.
        Raises ValueError for another shape, and where the tracker is full or does not remember
        the frame; then nobody is added or moved.
        """
        people = np.asarray(people, float)
        if people.size == 0:
            people = people.reshape(0, len(KEYPOINTS), 3)
        if people.ndim != 3 or people.shape[1:] != (len(KEYPOINTS), 3):
            raise ValueError(f'people are (P, {len(KEYPOINTS)}, 3), not {people.shape}')
        people = np.where(people[..., 2:] >= self.sure, people, np.nan)
        people = people[np.isfinite(people[..., 0]).sum(1) >= 3]  # fewer are no person
        past = [t for t in self._past if t.stamp <= stamp + 1e-6]
        followed = {i: _arrays(person, past[-1])[0] for i, person in self._people.items() if past}
        add, move = [], []  # (person, keypoint, x, y), (id, x, y)
        for row, instance in zip(people, match(people[..., :2], followed), strict=True):
            if instance is None:
                instance = self._next
                self._next += 1
                self._people[instance] = _Person()
            person, at = self._people[instance], followed.get(instance)
            person.seen, reach = stamp, self.tolerance * _size(row[:, :2])
            for k in np.flatnonzero(np.isfinite(row[:, 0])).tolist():
                if k not in person.ids:
                    add.append((instance, k, *row[k, :2]))
                elif at is None or not np.linalg.norm(at[k] - row[k, :2]) <= reach:  # or NaN
                    move.append((person.ids[k], *row[k, :2]))
        self._give_up(stamp)
        try:
            if move:
                ids, xy = (
                    np.array([m[0] for m in move], np.uint32),
                    np.array([m[1:] for m in move]),
                )
                self.tracker.move_points(ids, xy, stamp)
            if add:
                numbers, xy = np.array([a[1] for a in add]), np.array([a[2:] for a in add])
                ids = self.tracker.add_points(xy, stamp, keypoints=numbers)
                for (instance, k, *_), number in zip(add, ids.tolist(), strict=True):
                    self._people[instance].ids[k] = number
        finally:
            self._people = {i: p for i, p in self._people.items() if p.ids}

    def _give_up(self, stamp: float) -> None:
        """Drop people who were not found for too long."""
        for i in [i for i, p in self._people.items() if stamp - p.seen > self.patience]:
            ids = self._people.pop(i).ids
            self.tracker.remove_points(np.array(list(ids.values()), np.uint32))


def match(found: np.ndarray, followed: dict[int, np.ndarray]) -> list[int | None]:
    """Return whom each of the people found (P, 17, 2) is, of those followed, (17, 2) by instance,
    None: somebody new. Nearest first; NaN where a keypoint is not known.
    """
    costs = []
    for n, xy in enumerate(found):
        for instance, other in followed.items():
            both = np.isfinite(xy).all(1) & np.isfinite(other).all(1)
            if both.any():
                apart = np.linalg.norm(xy[both] - other[both], axis=1)
                costs.append((float(np.median(apart)) / max(_size(xy), _size(other)), n, instance))
    result: list[int | None] = [None] * len(found)
    for cost, n, instance in sorted(costs):
        if cost < SAME and result[n] is None and instance not in result:
            result[n] = instance
    return result


def _size(xy: np.ndarray) -> float:
    """Return the longer side of the box of keypoints (17, 2), px, at least 1."""
    known = xy[np.isfinite(xy).all(1)]
    return max(1.0, float(np.ptp(known, axis=0).max()))


def _arrays(person: _Person, tracks: Tracks) -> tuple[np.ndarray, np.ndarray]:
    """Return xy (17, 2), NaN where there is no track, and visible (17,)."""
    xy, visible = np.full((len(KEYPOINTS), 2), np.nan), np.zeros(len(KEYPOINTS), bool)
    row = {int(i): n for n, i in enumerate(tracks.ids)}
    for k, number in person.ids.items():
        if number in row:
            xy[k], visible[k] = tracks.xy[row[number]], tracks.visible[row[number]]
    return xy, visible
