"""Which point sits in which slot of the model."""

import math

import numpy as np

from cotracker_ros.engines import spec

LAST_ID = 2**32 - 1
NO_KEYPOINT = spec.INPUT['keypoint'].otherwise or -1


class Slots:
    """A fixed table of `count` slots; a slot is free, waiting for its frame, or live.

    All arrays are (count,): `ids` uint32 (0: free), `live`, `age` frames since the query frame,
    `stamp` of the query (NaN: the next frame), `since` the stamp of the frame that was newest
    when the slot was taken (NaN: none), and (count, 2) `camera_xy` where the point was put and,
    once it has started, `model_xy`; `keypoint` int32, its number or NO_KEYPOINT; `instance`
    uint32, whose keypoint it is, 0: nobody's.
    """

    def __init__(self, count: int) -> None:
        self.ids = np.zeros(count, np.uint32)
        self.live = np.zeros(count, bool)
        self.age = np.zeros(count, np.uint32)
        self.stamp = np.zeros(count, np.float64)
        self.since = np.zeros(count, np.float64)
        self.camera_xy = np.zeros((count, 2), np.float32)
        self.model_xy = np.zeros((count, 2), np.float32)
        self.keypoint = np.full(count, NO_KEYPOINT, np.int32)
        self.instance = np.zeros(count, np.uint32)
        self._next_id = 1

    @property
    def used(self) -> np.ndarray:
        """(count,) bool: not free."""
        return self.ids != 0

    @property
    def waiting(self) -> np.ndarray:
        """(count,) bool: taken, not yet started."""
        return self.used & ~self.live

    def check_room(self, count: int, replacing=()) -> None:
        """Raise ValueError unless `count` points can be taken, once `replacing` ids are free."""
        size = len(self.ids)
        used = int((self.used & ~np.isin(self.ids, replacing)).sum())
        if count > size - used:
            raise ValueError(
                f'{count} points to add, but {used} of max_points = {size} are in '
                f'use: {size - used} are free; remove points or raise max_points'
            )
        if self._next_id + count - 1 > LAST_ID:
            raise ValueError('all 4294967295 ids are used up; restart the tracker')

    def take(
        self,
        xy: np.ndarray,
        stamp: float,
        since: float = math.nan,
        keypoint: np.ndarray | int = NO_KEYPOINT,
        instance: np.ndarray | int = 0,
    ) -> np.ndarray:
        """Give points (N, 2) free slots: new ids (N,) uint32, or ValueError.

        `since`: stamp of the newest frame, NaN where none has come yet.
        """
        self.check_room(len(xy))
        slots = np.flatnonzero(~self.used)[: len(xy)]
        self.ids[slots] = np.arange(self._next_id, self._next_id + len(xy), dtype=np.uint32)
        self._next_id += len(xy)
        self.camera_xy[slots] = xy
        self.stamp[slots] = stamp
        self.since[slots] = since
        self.keypoint[slots], self.instance[slots] = keypoint, instance
        self.live[slots] = False
        return self.ids[slots].copy()

    def move(
        self, ids: np.ndarray, xy: np.ndarray, stamp: float, since: float = math.nan
    ) -> np.ndarray:
        """Let the slots of `ids` (N,) wait anew, for a query at `xy` (N, 2); returns which ids are
        held, (N,) bool. `since` as for `take`.
        """
        slots = {int(i): slot for slot, i in enumerate(self.ids) if i}
        held = np.array([int(i) in slots for i in ids], bool)
        own = np.array([slots[int(i)] for i in ids[held]], np.intp)
        self.camera_xy[own], self.stamp[own], self.since[own] = xy[held], stamp, since
        self.live[own] = False
        return held

    def release(self, ids: np.ndarray) -> np.ndarray:
        """Free the slots of these ids (N,); returns those that were held, (K,) uint32, sorted."""
        slots = np.flatnonzero(np.isin(self.ids, ids) & self.used)
        held = np.sort(self.ids[slots])
        self.ids[slots] = 0
        self.live[slots] = False
        return held

    def start(self, slot: int, model_xy: np.ndarray, age: int) -> None:
        """Make a waiting slot live at `model_xy` (2,), model pixels, where it was seen
        `age` frames ago.
        """
        self.live[slot] = True
        self.age[slot] = age
        self.model_xy[slot] = model_xy

    def inputs(self, started: np.ndarray) -> dict[str, np.ndarray]:
        """Copies of the per-slot inputs of a step of one camera; `started` (K,) begin."""
        query = np.zeros(len(self.ids), bool)
        query[started] = True
        return {
            'query_xy': self.model_xy[None].copy(),
            'query': query[None],
            'query_age': np.where(query, self.age, 0).astype(np.int32)[None],
            'live': self.live[None].copy(),
            'keypoint': self.keypoint[None].copy(),
        }
