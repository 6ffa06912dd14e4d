"""Frames and clicked points in, tracks with identities out."""

import bisect
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cotracker_ros import engines, geometry
from cotracker_ros.engines import EngineError, spec
from cotracker_ros.skeleton import KEYPOINTS
from cotracker_ros.streaming.image import check_frame, resize
from cotracker_ros.streaming.slots import NO_KEYPOINT, Slots

VISIBLE, NEW, OUTSIDE, QUERY_FRAME = 1, 2, 4, 8  # bits of Tracks.flags, as in /tracks
# Bits 8 to 15: 1 + the number of a body's keypoint; 16 to 31: whose. 0 both for plain points.
_KEYPOINT_BIT, _INSTANCE_BIT, _KEYPOINT_MASK = 8, 16, 0xFF
MAX_INSTANCE = 2**16 - 1

LATE_IN_A_ROW = 3  # frames with older stamps that are no accident: the clock was set back

_log = logging.getLogger(__name__)


class LateFrame(ValueError):
    """A frame that is a little older than the newest; it was not tracked, and nothing is lost."""


@dataclass(frozen=True, eq=False)
class Tracks:
    """All points of one frame, in the order of their ids."""

    stamp: float  # of the frame, seconds
    ids: np.ndarray  # (N,) uint32
    xy: np.ndarray  # (N, 2) float32, pixels of the camera image
    visibility: np.ndarray  # (N,) float32 in [0, 1]
    confidence: np.ndarray  # (N,) float32 in [0, 1]: that xy is right
    age: np.ndarray  # (N,) uint32, frames since the point's query frame
    flags: np.ndarray  # (N,) uint32, bits VISIBLE, NEW, OUTSIDE, QUERY_FRAME, and `body_of`

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def visible(self) -> np.ndarray:
        """(N,) bool."""
        return (self.flags & VISIBLE) != 0

    @property
    def body(self) -> tuple[np.ndarray, np.ndarray]:
        """Which keypoints the points are, (N,) int32, and whose, (N,) uint32; see `body_of`."""
        return body_of(self.flags)


def body_of(flags: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what the flags (N,) of tracks say of bodies: the numbers of the keypoints that the
    points are, (N,) int32, -1 for plain points, and whose they are, (N,) uint32, 0: nobody's.
    """
    keypoint = (flags >> _KEYPOINT_BIT & _KEYPOINT_MASK).astype(np.int32) - 1
    return keypoint, flags >> _INSTANCE_BIT


def body_flags(keypoint: np.ndarray, instance: np.ndarray) -> np.ndarray:
    """Return the flags (N,) uint32 from which `body_of` reads these."""
    return (keypoint + 1).astype(np.uint32) << _KEYPOINT_BIT | instance << _INSTANCE_BIT


def table(
    rows: Sequence[Mapping[str, np.ndarray]], ids: np.ndarray, names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Arrange rows of tracks, one a frame, by id: arrays (T, N, ...) of the columns `names`.

    rows: columns by name, among them `ids`, as `vars` of Tracks; ids: (N,), each once. Where a
    point is not in a row, xy is NaN and all else 0.
    """
    arrays = {}
    for name in names:
        shape, dtype = ((2,), np.float32) if name == 'xy' else ((), _COLUMNS[name])
        empty = np.nan if name == 'xy' else 0
        arrays[name] = np.full((len(rows), len(ids), *shape), empty, dtype)
    for t, row in enumerate(rows):
        _, there, here = np.intersect1d(ids, row['ids'], return_indices=True)
        for name in names:
            arrays[name][t, there] = row[name][here]
    return arrays


_COLUMNS = {
    'visibility': np.float32,
    'confidence': np.float32,
    'age': np.uint32,
    'flags': np.uint32,
}


@dataclass(frozen=True)
class _Frame:
    stamp: float
    size: tuple[int, int]  # (H, W) of the camera image


class StreamingTracker:
    """Tracks points through a stream of frames, one frame at a time, in constant memory.

    Stamps are seconds. A point starts in the **first frame not before its stamp**: in one of the
    frames of the model's window if that was already given, else when it arrives.

    Ids count up from 1 and are never used again. When a stamp jumps back (a bag that loops, a
    clock that was set) points cannot be followed: all are dropped, `jumps` is increased, and
    tracking goes on with the frame as the first of a new stream. A frame that is less than
    `late_within` seconds older than the newest is only late: `track` refuses it as LateFrame,
    but for the third in a row, which is a jump. A gap forward changes nothing. When the
    size of the camera image changes, the new image is taken as another resolution of the same
    view: tracks go on in its pixels.

    One thread may call `track` while others add and remove points; they do not wait for the model.
    """

    def __init__(
        self,
        model: str | Path | engines.Engine = 'realtime',
        max_points: int = 64,
        engine: str = 'auto',
        threads: int = 0,
        late_within: float = 1.0,
        query_timeout: float = math.inf,
    ) -> None:
        """Load `model` as `engines.load` does (EngineError), or take a loaded engine.

        late_within: seconds by which a stamp may go back without being a jump. query_timeout:
        seconds of the stream for which a point waits for a frame of its stamp. Both may be set
        later, as may `on_drop`, which is called with the reason when points are dropped that had
        not started.
        """
        if not isinstance(model, engines.Engine):
            model = engines.load(model, engine, slots=max_points, threads=threads)
        self.engine = model
        self.max_points = model.slots
        self.jumps = 0  # times that a stamp jumped back
        self.late_within, self.query_timeout = late_within, query_timeout
        self.on_drop: Callable[[str], None] = _log.warning
        self._late = 0  # frames in a row that came late
        self._slots = Slots(model.slots)
        self._frames: deque[_Frame] = deque(maxlen=model.metadata.window)
        self._is_visible = model.metadata.visible_rule
        self._move = geometry.POINTS[model.metadata.resize]  # between image sizes
        self._lock = threading.Lock()
        self._stepping = threading.Lock()  # held through a step: one frame at a time

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the model's image, in whose pixels it tracks."""
        return self.engine.metadata.image_size

    @property
    def ids(self) -> np.ndarray:
        """(N,) uint32: ids of all points held, those that have not started yet included."""
        with self._lock:
            return np.sort(self._slots.ids[self._slots.used])

    @property
    def waiting(self) -> np.ndarray:
        """(N,) uint32: ids of the points that have not started yet."""
        with self._lock:
            return np.sort(self._slots.ids[self._slots.waiting])

    @property
    def ahead(self) -> float:
        """Seconds from the newest frame to the latest stamp that a point waits for; 0: none."""
        with self._lock:
            stamps = self._slots.stamp[self._slots.waiting]
            later = stamps[np.isfinite(stamps)]
            if not (len(later) and self._frames):
                return 0.0
            return max(0.0, float(later.max()) - self._frames[-1].stamp)

    def add_points(
        self,
        xy: np.ndarray,
        stamp: float | None = None,
        replacing: np.ndarray | tuple = (),
        keypoints: np.ndarray | None = None,
        instances: np.ndarray | None = None,
    ) -> np.ndarray:
        """Track points seen at `xy` (N, 2), pixels of the camera image, in the frame of `stamp`.

        `stamp` None: the next frame. `replacing`: ids to stop tracking for them. `keypoints` (N,)
        int: the numbers of a body's keypoints that the points are, -1 for those that are none, for
        models that know keypoints. `instances` (N,) int: whose, from 1, 0: nobody's; both come
        back with the tracks (`Tracks.body`). Returns their ids (N,) uint32; they appear in the
        tracks when they start. Raises ValueError, and then changes nothing, if a value is not
        finite or lies outside the image, if there are not enough free slots, or if `stamp` is
        older than the frames that the model still remembers. Points added before the first frame
        are checked when it arrives; one outside is dropped, and `on_drop` is called.
        """
        xy = _checked_points(xy, stamp)
        count = len(xy)
        numbers = _whole('keypoints', keypoints, NO_KEYPOINT, count, (-1, len(KEYPOINTS) - 1))
        whose = _whole('instances', instances, 0, count, (0, MAX_INSTANCE))
        with self._lock:
            self._check_room(xy, stamp, replacing)
            self._slots.release(np.asarray(replacing).reshape(-1))
            since = self._frames[-1].stamp if self._frames else math.nan
            return self._slots.take(
                xy, math.nan if stamp is None else stamp, since, numbers, whose
            )

    def move_points(
        self, ids: np.ndarray, xy: np.ndarray, stamp: float | None = None
    ) -> np.ndarray:
        """Track points `ids` (N,) on from `xy` (N, 2), where they were seen in the frame of
        `stamp`, with the ids, keypoints and instances that they have; all else is as for new
        points.

        Returns which of them are held, (N,) bool; of others nothing changes. Raises ValueError as
        `add_points` does.
        """
        xy, ids = _checked_points(xy, stamp), np.asarray(ids, np.uint32).reshape(-1)
        if len(ids) != len(xy):
            raise ValueError(f'{len(ids)} ids but {len(xy)} places to move points to')
        with self._lock:
            self._check_room(xy, stamp, ids)
            since = self._frames[-1].stamp if self._frames else math.nan
            return self._slots.move(ids, xy, math.nan if stamp is None else stamp, since)

    def check_points(
        self, xy: np.ndarray, stamp: float | None = None, replacing: np.ndarray | tuple = ()
    ) -> None:
        """Raise the ValueError that `add_points` would raise for xy (N, 2); change nothing."""
        xy = _checked_points(xy, stamp)
        with self._lock:
            self._check_room(xy, stamp, replacing)

    def _check_room(self, xy: np.ndarray, stamp: float | None, replacing) -> None:
        if not len(xy):
            return
        size = self._size_when_seen(stamp)
        if size is not None and not geometry.inside(xy, size).all():
            bad = np.flatnonzero(~geometry.inside(xy, size))
            raise ValueError(
                f'{len(bad)} of {len(xy)} points are outside the image of '
                f'{size[1]} x {size[0]} pixels, such as {xy[bad[0]].tolist()}'
            )
        self._slots.check_room(len(xy), replacing)

    def remove_points(self, ids: np.ndarray) -> np.ndarray:
        """Stop tracking these ids; returns those of them that were held (N,) uint32."""
        with self._lock:
            return self._slots.release(np.asarray(ids).reshape(-1))

    def reset(self) -> None:
        """Drop all points and forget all frames; ids go on counting."""
        with self._stepping, self._lock:
            self._forget()

    def close(self) -> None:
        """Release the engine."""
        with self._stepping:
            self.engine.close()

    def track(self, frame: np.ndarray, stamp: float) -> Tracks:
        """Follow all points into `frame` (H, W, 3) uint8 RGB, any size, taken at `stamp`.

        Raises ValueError, and then changes nothing, for a frame of another kind or a stamp that
        is not finite or late (LateFrame); EngineError where the runtime fails.
        """
        check_frame(frame)
        if not math.isfinite(stamp):
            raise ValueError(f'the stamp of a frame must be finite, not {stamp}')
        with self._stepping:
            metadata = self.engine.metadata
            image = resize(frame, metadata.picture_size, metadata.resize)
            with self._lock:
                self._admit(_Frame(stamp, frame.shape[:2]))
                started = self._start_points()
                inputs = self._slots.inputs(started)
                ids = np.where(self._slots.live, self._slots.ids, 0)
            try:
                outputs = self.engine.step({'image': image[None], **inputs})
            except Exception:
                with self._lock:  # the model has not seen this frame: neither has the tracker
                    self._frames.pop()
                    self._slots.live[started[self._slots.ids[started] == ids[started]]] = False
                raise
            with self._lock:
                self._check(outputs['xy'])
                return self._read(outputs, ids, started)

    def _admit(self, frame: _Frame) -> None:
        """Append a frame to those remembered; deal with a stamp that is out of order."""
        frames = self._frames
        if frames and frame.stamp < frames[-1].stamp:
            self._late += 1
            back = frames[-1].stamp - frame.stamp
            if back < self.late_within and self._late < LATE_IN_A_ROW:
                raise LateFrame(
                    f'the frame of {frame.stamp:.6f} s came after that of '
                    f'{frames[-1].stamp:.6f} s; it is not tracked'
                )
            _log.warning(
                'stamps jumped back from %.3f to %.3f s: dropped all %d points',
                frames[-1].stamp,
                frame.stamp,
                int(self._slots.used.sum()),
            )
            self.jumps += 1
            self._forget()
        self._late = 0
        frames.append(frame)

    def _forget(self) -> None:
        self._frames.clear()
        self._slots.release(self._slots.ids[self._slots.used])
        self.engine.reset()

    def _size_when_seen(self, stamp: float | None) -> tuple[int, int] | None:
        """Camera size of the frame in which a point of `stamp` will start; None: not known yet."""
        if not self._frames:
            return None
        if stamp is None or stamp > self._frames[-1].stamp:
            return self._frames[-1].size
        # The next frame will push the oldest out of a full window.
        past = self.engine.metadata.window - 1
        known = list(self._frames)[-past:] if past else []
        if not known or stamp < known[0].stamp:
            raise ValueError(
                f'the points were seen at {stamp:.6f} s, before the frames that the '
                f'model remembers (from {(known or self._frames)[0].stamp:.6f} s); '
                'without a stamp they start in the next one'
            )
        return known[_first_not_before([f.stamp for f in known], stamp)].size

    def _start_points(self) -> np.ndarray:
        """Start the waiting points whose frame is here, give up those that waited too long.

        Returns the slots (K,) started.
        """
        slots, frames = self._slots, list(self._frames)
        stamps = [f.stamp for f in frames]
        started, expired = [], []
        for slot in np.flatnonzero(slots.waiting).tolist():
            stamp = float(slots.stamp[slot])
            if stamp > stamps[-1]:
                if math.isnan(slots.since[slot]):
                    slots.since[slot] = stamps[-1]
                if stamps[-1] - slots.since[slot] > self.query_timeout:
                    expired.append(slot)
                continue
            index = _first_not_before(stamps, stamp)
            size, xy = frames[index].size, slots.camera_xy[slot]
            if not geometry.inside(xy, size):
                self.on_drop(
                    f'dropped point {slots.ids[slot]} at {xy.tolist()}: outside the '
                    f'image of {size[1]} x {size[0]} pixels'
                )
                slots.release(slots.ids[slot])
                continue
            slots.start(slot, self._move(xy, size, self.image_size), len(frames) - 1 - index)
            started.append(slot)
        if expired:
            ahead = slots.stamp[expired].max() - stamps[-1]
            slots.release(slots.ids[expired])
            self.on_drop(
                f'gave up {len(expired)} points that no frame came for: their stamps are '
                f'up to {ahead:.1f} s ahead of the newest image'
            )
        return np.array(started, np.intp)

    def _check(self, xy: np.ndarray) -> None:
        """Stop what cannot be undone: one NaN in the state would spread to all points."""
        if not np.isfinite(xy).all():
            dropped = int(self._slots.used.sum())
            self._forget()
            raise EngineError(
                f'the model gave positions that are not finite: dropped all {dropped} points'
            )

    def _read(
        self, outputs: dict[str, np.ndarray], ids: np.ndarray, started: np.ndarray
    ) -> Tracks:
        """Rows of the slots that held `ids` (M,) in this step and still hold them after it."""
        slots, frame = self._slots, self._frames[-1]
        rows = np.flatnonzero((ids != 0) & (ids == slots.ids))
        rows = rows[np.argsort(ids[rows])]
        age = slots.age[rows]
        slots.age[rows] += 1
        new = np.isin(rows, started)
        at_query = new & (age == 0)
        model_xy, visibility, confidence = (outputs[n][0, rows] for n in spec.OUTPUT_NAMES)
        xy = self._move(model_xy, self.image_size, frame.size)
        inside = geometry.inside(xy, frame.size)
        visible = inside & self._is_visible(visibility, confidence)
        flags = VISIBLE * visible + NEW * new + OUTSIDE * ~inside + QUERY_FRAME * at_query
        flags = flags.astype(np.uint32) | body_flags(slots.keypoint[rows], slots.instance[rows])
        return Tracks(frame.stamp, ids[rows], xy, visibility, confidence, age, flags)


def _checked_points(xy: np.ndarray, stamp: float | None) -> np.ndarray:
    """Points as (N, 2) float32; raises ValueError for another shape or what is not finite."""
    xy = np.asarray(xy, np.float64)
    if xy.size == 0:
        return np.zeros((0, 2), np.float32)
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise ValueError(f'points must have the shape (N, 2), not {xy.shape}')
    if not np.isfinite(xy).all():
        bad = np.flatnonzero(~np.isfinite(xy).all(1))
        raise ValueError(f'point {bad[0]} is not finite: {xy[bad[0]]}')
    if stamp is not None and not math.isfinite(stamp):
        raise ValueError(f'the stamp of points must be finite, not {stamp}')
    with np.errstate(over='ignore'):  # infinite is outside of every image
        return xy.astype(np.float32)


def _whole(name: str, values, otherwise: int, count: int, limits: tuple[int, int]) -> np.ndarray:
    """Values (count,) as given, or `otherwise`; raises ValueError for what is no such number."""
    values = np.full(count, otherwise) if values is None else np.asarray(values)
    low, high = limits
    if values.shape != (count,) or values.dtype.kind not in 'iu':
        raise ValueError(f'{name} must be {count} whole numbers, {otherwise} for none')
    if ((values < low) | (values > high)).any():
        raise ValueError(f'{name} go from {low} to {high}, not {values.min()} to {values.max()}')
    return values


def _first_not_before(stamps: list[float], stamp: float) -> int:
    """Index in rising stamps, of which the last is not before `stamp` or `stamp` is NaN (now).

    Of several frames with one stamp (a camera that sets none) the newest.
    """
    if math.isnan(stamp):
        return len(stamps) - 1
    after = bisect.bisect_right(stamps, stamp)
    return after - 1 if after and stamps[after - 1] == stamp else after
