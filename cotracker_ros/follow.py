"""Tracks people between the detections of a slow pose detector.

A detector finds the 17 keypoints of people a few times a second; the tracker follows them on every
frame between. The people of each detection are matched to those that are tracked: points that have
drifted are moved without a new id, keypoints seen for the first time are added, and people who are
no longer detected are removed.

Which keypoint of whom a point is, the tracks themselves say (`Tracks.body`), so a follower that is
started anew goes on with the people it finds there.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from cotracker_ros.skeleton import KEYPOINTS
from cotracker_ros.streaming import MAX_INSTANCE, StreamingTracker, Tracks

REMEMBERED = 128  # frames whose tracks are kept, for detections that come late
SAME = 0.35  # of a person's size: people further apart on average are two
RETRY_AFTER = 15  # frames after which a point that was requested and never came is requested again


class Pose(NamedTuple):
    """A person in one frame."""

    instance: int  # counts up from 1
    xy: np.ndarray  # (17, 2) px, NaN for keypoints that are not followed
    visible: np.ndarray  # (17,) bool
    found: float  # stamp of the last detection that found this person


class Changes(NamedTuple):
    """What a detection changes in the tracker."""

    stamp: float  # of the frame that places are in
    add: np.ndarray  # (N, 2) px: new points ...
    keypoint: np.ndarray  # (N + J,) int32: which keypoints they and those to move are
    instance: np.ndarray  # (N + J,) int32: whose
    move: np.ndarray  # (J,) uint32: ids of points to track on from elsewhere ...
    to: np.ndarray  # (J, 2) px, where
    remove: np.ndarray  # (K,) uint32: ids to stop tracking


@dataclass
class _Person:
    found: float  # stamp of the last detection
    pose: Pose | None = None  # in the newest frame
    ids: np.ndarray = field(default_factory=lambda: np.zeros(len(KEYPOINTS), np.uint32))  # 0: none
    # By keypoint: where a point was requested that has not come yet, and frames since.
    pending: dict[int, tuple[np.ndarray, int]] = field(default_factory=dict)


class People:
    """The people that are followed, by the tracks of a tracker in this process or elsewhere.

    min_score: least score of a keypoint that is used. patience: seconds after which a person is
    removed whom the detector no longer finds. tolerance: how far a point may be off before it is
    moved, relative to the person's size; a point moved at every detection would inherit the
    detector's jitter.
    """

    def __init__(
        self, min_score: float = 0.5, patience: float = 1.0, tolerance: float = 0.03
    ) -> None:
        self.min_score, self.patience, self.tolerance = min_score, patience, tolerance
        self._people: dict[int, _Person] = {}
        self._last = 0  # instance that was given last
        self._past: deque[Tracks] = deque(maxlen=REMEMBERED)

    def see(self, tracks: Tracks) -> list[Pose]:
        """Take the tracks of the next frame; returns everybody in it."""
        if self._past and tracks.stamp < self._past[-1].stamp:  # the stream began anew
            self._past.clear()
            self._people.clear()
        self._past.append(tracks)
        _, instances = tracks.body
        for instance in np.unique(instances[instances > 0]).tolist():
            if instance not in self._people:
                self._people[instance] = _Person(tracks.stamp)
                self._last = max(self._last, instance)
        for instance, person in list(self._people.items()):
            person.pose, person.ids = _pose(instance, person.found, tracks)
            person.pending = {
                k: (xy, frames + 1)
                for k, (xy, frames) in person.pending.items()
                if not person.ids[k] and frames < RETRY_AFTER
            }
            if not (person.ids.any() or person.pending):  # all its points were removed or refused
                del self._people[instance]
        return [p.pose for p in self._people.values() if p.pose is not None and p.ids.any()]

    def correct(self, people: np.ndarray, stamp: float) -> Changes:
        """Take the detections of the frame of `stamp`: (P, 17, 3) of x, y px and score.

        The frame is one of those seen, or the next one. Detectors are slow: what was found in an
        earlier frame is carried into the newest by how the person has moved since; of a frame
        from before those remembered, it stays there. Raises ValueError for another shape.
        """
        people = np.asarray(people, float)
        if people.size == 0:
            people = people.reshape(0, len(KEYPOINTS), 3)
        if people.ndim != 3 or people.shape[1:] != (len(KEYPOINTS), 3):
            raise ValueError(f'people are (P, {len(KEYPOINTS)}, 3), not {people.shape}')
        xy = np.where(people[..., 2:] >= self.min_score, people[..., :2], np.nan)
        xy = xy[np.isfinite(xy).all(2).sum(1) >= 3]  # fewer are no person
        remembered = self._frame(stamp) is not None
        newest = max(stamp, self._past[-1].stamp) if remembered else stamp
        followed, places = self._at(stamp), self._at(newest)
        add, move = [], []  # (keypoint, instance, x, y, id)
        for row, instance in zip(xy, match(xy, followed), strict=True):
            if instance is None:
                instance = self._new(stamp)
            person, now = self._people[instance], places.get(instance, np.full_like(row, np.nan))
            person.found, radius = max(person.found, stamp), self.tolerance * _size(row)
            row = row + self._moved(instance, stamp)
            for k in np.flatnonzero(np.isfinite(row).all(1)).tolist():
                if person.ids[k]:
                    if not np.linalg.norm(now[k] - row[k]) <= radius:  # or NaN
                        move.append((k, instance, *row[k], person.ids[k]))
                elif k not in person.pending:
                    person.pending[k] = row[k], 0
                    add.append((k, instance, *row[k], 0))
        rows = np.array([*add, *move], float).reshape(-1, 5)
        return Changes(
            newest,
            rows[: len(add), 2:4],
            rows[:, 0].astype(np.int32),
            rows[:, 1].astype(np.int32),
            rows[len(add) :, 4].astype(np.uint32),
            rows[len(add) :, 2:4],
            self._given_up(stamp),
        )

    def refused(self, changes: Changes) -> None:
        """Forget points that were requested and that the tracker did not take."""
        new = slice(len(changes.add))
        for k, instance in zip(changes.keypoint[new], changes.instance[new], strict=True):
            person = self._people.get(int(instance))
            if person is not None:
                person.pending.pop(int(k), None)
                if not (person.ids.any() or person.pending):
                    del self._people[int(instance)]

    def _at(self, stamp: float) -> dict[int, np.ndarray]:
        """Return where everybody was in the frame of `stamp`: (17, 2) px by instance."""
        tracks, places = self._frame(stamp), {}
        for instance, person in self._people.items():
            xy = np.full((len(KEYPOINTS), 2), np.nan)
            if tracks is not None:
                xy = _pose(instance, 0.0, tracks)[0].xy
            for k, (requested, _) in person.pending.items():
                xy[k] = requested
            places[instance] = xy
        return places

    def _moved(self, instance: int, stamp: float) -> np.ndarray:
        """Return how far a person's keypoints have gone since the frame of `stamp`, (17, 2) px:
        those not followed all the time like the median of the others, without any 0.
        """
        then = self._frame(stamp)
        if then is None:
            return np.zeros((len(KEYPOINTS), 2))
        was, now = (_pose(instance, 0.0, tracks)[0].xy for tracks in (then, self._past[-1]))
        moved = now - was
        known = moved[np.isfinite(moved).all(1)]
        usual = np.median(known, 0) if len(known) else np.zeros(2)
        return np.where(np.isfinite(moved), moved, usual)

    def _frame(self, stamp: float) -> Tracks | None:
        """Return the tracks of the frame of `stamp`, or the last before; None: forgotten."""
        past = [tracks for tracks in self._past if tracks.stamp <= stamp + 1e-6]
        return past[-1] if past else None

    def _new(self, stamp: float) -> int:
        """Return a number that nobody has; after the largest they begin again from 1."""
        for _ in range(MAX_INSTANCE):
            self._last = self._last % MAX_INSTANCE + 1
            if self._last not in self._people:
                self._people[self._last] = _Person(stamp)
                return self._last
        raise ValueError(f'{MAX_INSTANCE} people are followed at once')

    def _given_up(self, stamp: float) -> np.ndarray:
        """Drop people who were not found for too long; returns the ids of their points, and of
        points beside another that is the same keypoint of the same person.
        """
        gone = [i for i, p in self._people.items() if stamp - p.found > self.patience]
        for instance in gone:
            del self._people[instance]
        if not self._past:
            return np.zeros(0, np.uint32)
        tracks = self._past[-1]
        keypoint, instance = tracks.body
        kept = np.array([i for p in self._people.values() for i in p.ids[p.ids > 0]], np.uint32)
        twice = np.isin(instance, list(self._people)) & (keypoint >= 0)
        twice &= ~np.isin(tracks.ids, kept)
        return tracks.ids[np.isin(instance, gone) | twice]


class Follower:
    """Follows people with a tracker that runs here."""

    def __init__(self, tracker: StreamingTracker, people: People | None = None) -> None:
        self.tracker, self.people = tracker, people or People()

    def track(self, frame: np.ndarray, stamp: float) -> list[Pose]:
        """Follow everybody into a frame (H, W, 3) uint8 RGB taken at `stamp`, seconds."""
        return self.people.see(self.tracker.track(frame, stamp))

    def correct(self, people: np.ndarray, stamp: float) -> None:
        """Take the detections of the frame of `stamp`: (P, 17, 3) of x, y px and score.

        The frame is one of those tracked, or the next one. Raises ValueError for another shape,
        where the tracker is full, and for a frame forgotten; then nobody is added or moved.
        """
        changes = self.people.correct(people, stamp)
        new = len(changes.add)
        self.tracker.remove_points(changes.remove)
        try:
            ids = self.tracker.add_points(
                changes.add, changes.stamp, (), changes.keypoint[:new], changes.instance[:new]
            )
        except ValueError:
            self.people.refused(changes)
            raise
        try:
            self.tracker.move_points(changes.move, changes.to, changes.stamp)
        except ValueError:
            self.tracker.remove_points(ids)
            self.people.refused(changes)
            raise


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


def _pose(instance: int, found: float, tracks: Tracks) -> tuple[Pose, np.ndarray]:
    """Return a person in a frame and the ids (17,) of its points, 0: none. Of two points that are
    the same keypoint the older counts.
    """
    xy, visible = np.full((len(KEYPOINTS), 2), np.nan), np.zeros(len(KEYPOINTS), bool)
    ids = np.zeros(len(KEYPOINTS), np.uint32)
    keypoint, whose = tracks.body
    for row in np.flatnonzero((whose == instance) & (keypoint >= 0))[::-1]:
        k = keypoint[row]
        if k < len(KEYPOINTS):
            xy[k], visible[k], ids[k] = tracks.xy[row], tracks.visible[row], tracks.ids[row]
    return Pose(instance, xy, visible, found), ids
