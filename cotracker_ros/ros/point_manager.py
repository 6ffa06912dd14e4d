"""The points of one camera: initial ones, those requested, those given up."""

import math
import threading
from collections.abc import Callable

import cv2
import numpy as np

from cotracker_ros.points import corners, grid
from cotracker_ros.ros.messages import Queries
from cotracker_ros.streaming import StreamingTracker, Tracks

REFILL_SECONDS = 0.5  # between searches for corners, which cost milliseconds


class PointManager:
    """Adds and removes the points of one tracker.

    The executor asks for points while the worker places the initial ones and replaces lost ones.
    One lock makes each of these methods whole: none sees another half done.
    """

    def __init__(self, tracker: StreamingTracker, refuse: Callable[[str], None]) -> None:
        """`refuse(reason)` is called when points could not be added."""
        self._tracker, self._refuse = tracker, refuse
        self._lock = threading.Lock()
        self._placing = True  # whether the initial points go into the next frame
        self._query_ids = np.zeros(0, np.uint32)  # points of the parameter query_points
        self._query_xy = np.zeros((0, 2), np.float32)
        self._mask: np.ndarray | None = None
        self._invisible = InvisibleFrames()
        self._filled = -math.inf  # stamp of the last search for new points

    # Requests of the executor

    def add(self, xy, stamp: float | None) -> None:
        """Track points (N, 2) px seen at `stamp`, None: in the next frame."""
        with self._lock:
            self._add(xy, stamp)

    def follow(self, queries: Queries) -> None:
        """Remove, move and add what a message of ~/queries asks for.

        A point to move that is gone, given up meanwhile, comes back under a new id, as the
        keypoint that the message says.
        """
        with self._lock:
            if queries.remove.size:
                self._tracker.remove_points(queries.remove)
            gone = np.zeros(len(queries.move), bool)
            if queries.move.size:
                try:
                    gone = ~self._tracker.move_points(queries.move, queries.to, queries.stamp)
                except ValueError as error:
                    self._refuse(str(error))
            xy = np.concatenate([queries.add, queries.to[gone]])
            new = np.concatenate([np.ones(len(queries.add), bool), gone])
            body = queries.keypoint[new], queries.instance[new]
            self._add(xy, queries.stamp, (), *body)

    def set_mask(self, mask: np.ndarray) -> None:
        """Place points on this mask (H, W) from now on, where it is not 0."""
        with self._lock:
            self._mask = mask

    def check_query_points(self, numbers: tuple[float, ...]) -> None:
        """Raise ValueError where `set_query_points` would be refused."""
        with self._lock:
            if not self._placing:
                self._tracker.check_points(_pairs(numbers), replacing=self._query_ids)

    def set_query_points(self, numbers: tuple[float, ...]) -> None:
        """Track x1, y1, x2, y2, ... instead of the points that this was given before."""
        with self._lock:
            self._query_xy = _pairs(numbers)
            if not self._placing:
                self._query_ids = self._add(self._query_xy, None, replacing=self._query_ids)

    def clear(self) -> int:
        """Drop all points; returns how many."""
        with self._lock:
            return self._clear()

    def resample(self) -> int:
        """Drop all points and put the initial ones into the next frame; returns how many went."""
        with self._lock:
            self._placing = True
            return self._clear()

    def reset(self) -> int:
        """As `resample`, and forget all frames, as after a new start."""
        with self._lock:
            self._placing = True
            dropped = len(self._tracker.ids)
            self._tracker.reset()
            return dropped

    # Steps of the worker

    def before(self, frame: np.ndarray, p) -> None:
        """Put the initial points into the frame (H, W, 3) that is tracked next, if it is time."""
        with self._lock:
            if self._placing:
                self._place(frame, None, p)

    def after(self, frame: np.ndarray, tracks: Tracks, p) -> int:
        """Give up points that stay invisible and replace missing ones, after `frame` (H, W, 3) was
        tracked; returns how many were given up. p: the node's parameters.
        """
        with self._lock:
            if self._placing:  # a service dropped all points while the model ran
                return 0
            gone = self._tracker.remove_points(self._invisible.update(tracks, p.retire_after))
            missing = p.target_points - len(self._tracker.ids)
            if missing > 0 and not 0 <= tracks.stamp - self._filled < REFILL_SECONDS:
                self._filled = tracks.stamp
                taken = tracks.xy[~np.isin(tracks.ids, gone)]
                found = corners(frame, missing, taken, self._mask_of(frame))
                self._add(found, tracks.stamp)
            return len(gone)

    def restart(self, frame: np.ndarray, stamp: float, p) -> None:
        """Put the initial points into a frame (H, W, 3) just tracked, where all were dropped."""
        with self._lock:
            self._place(frame, stamp, p)

    # With the lock held

    def _add(self, xy, stamp: float | None, replacing=(), *body) -> np.ndarray:
        try:
            xy = np.array(xy, np.float64)
            return self._tracker.add_points(xy, stamp, replacing, *body)
        except ValueError as error:
            self._refuse(str(error))
            return np.zeros(0, np.uint32)

    def _clear(self) -> int:
        return len(self._tracker.remove_points(self._tracker.ids))

    def _place(self, frame: np.ndarray, stamp: float | None, p) -> None:
        """Put the initial points into the frame of `stamp` (None: it is tracked next)."""
        self._placing = False
        mask = self._mask_of(frame)
        self._query_ids = self._add(self._query_xy, stamp)
        regular = grid(p.initial_grid, frame.shape[:2], mask)
        self._add(regular, stamp)
        taken = np.concatenate([self._query_xy, regular])
        self._add(corners(frame, p.initial_corners, taken, mask), stamp)

    def _mask_of(self, frame: np.ndarray) -> np.ndarray | None:
        """Return the mask in the size of a frame, None without one."""
        mask, size = self._mask, frame.shape[1::-1]
        if mask is None or mask.shape == frame.shape[:2]:
            return mask
        return cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)


class InvisibleFrames:
    """Counts the consecutive frames in which each point was invisible."""

    def __init__(self) -> None:
        self._ids = np.zeros(0, np.uint32)
        self._frames = np.zeros(0, int)

    def update(self, tracks: Tracks, limit: int) -> np.ndarray:
        """Take the tracks of a frame; return the ids (K,) that have now been invisible in `limit`
        consecutive frames. A limit of 0 returns none.
        """
        frames = np.zeros(len(tracks), int)
        _, now, before = np.intersect1d(tracks.ids, self._ids, return_indices=True)
        frames[now] = self._frames[before]
        frames = np.where(tracks.visible, 0, frames + 1)
        self._ids, self._frames = tracks.ids, frames
        return tracks.ids[frames >= limit] if limit else np.zeros(0, np.uint32)


def _pairs(numbers: tuple[float, ...]) -> np.ndarray:
    return np.array(numbers, np.float32).reshape(-1, 2)
