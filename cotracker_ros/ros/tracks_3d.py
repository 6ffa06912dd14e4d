"""Tracks in space: as directions, or as points where a depth image shows how far they are."""

import threading
from collections import deque

import cv2
import numpy as np
from sensor_msgs.msg import CameraInfo

from cotracker_ros import geometry
from cotracker_ros.ros.messages import MessageError
from cotracker_ros.streaming import Tracks

# Seconds between an image and the depth image of the same moment: drivers that align them give
# both one stamp, or nearly; at 30 Hz the next one is 33 ms away.
SAME_MOMENT = 0.01
SLOWEST = 0.5  # seconds between depth images, at most, where stamps are no times
UNDISTORTED = 0.5  # px by which an undistorted point may miss its pixel when it is distorted again


def is_rectified(topic: str, choice: str = 'auto') -> bool:
    """Return whether images on a topic are rectified: `true`, `false` or, `auto`, by its name.

    image_proc publishes `image_rect`, `image_rect_color` and, compressed, topics below these.
    """
    if choice != 'auto':
        return choice == 'true'
    return any(part.startswith('image_rect') for part in topic.split('/'))


def rays(
    xy: np.ndarray,
    info: CameraInfo,
    size: tuple[int, int] | None = None,
    rectified: bool = False,
) -> np.ndarray:
    """Return pixels (N, 2) as points (N, 3) on the plane z = 1 of the optical frame.

    size: (H, W) of the image, checked against `info` where given. Pixels of a raw image are
    undistorted by K and D; those of a rectified one go back by P and then by R, which had turned
    the camera into the plane that a stereo pair shares. P's fourth column, the other camera's
    place, moves no direction. Matrices are of the full image: pixels of a binned image or of a
    region of interest are taken there first, as image_geometry does (x * binning + offset).
    NaN where the distortion cannot be undone.

    Raises MessageError for a camera that is not calibrated, of an unknown distortion model or of
    another size.
    """
    _check_size(info, size)
    xy = np.asarray(xy, np.float64).reshape(-1, 2)
    full = xy * _binning(info) + (info.roi.x_offset, info.roi.y_offset)
    if not rectified:
        flat = _undistorted(full, _matrix('K', info.k, 3), info)
        return np.column_stack([flat, np.ones(len(flat))]).astype(np.float32)
    matrix = _matrix('P', info.p, 4)
    flat = (full - matrix[:2, 2]) / matrix[[0, 1], [0, 1]]
    turn = np.array(info.r, np.float64).reshape(3, 3)
    directions = np.column_stack([flat, np.ones(len(flat))])
    if turn.any():  # all zeros: never set
        if not np.allclose(turn @ turn.T, np.eye(3), atol=1e-3):
            raise MessageError(f'camera_info has no rotation: R = {list(info.r)}')
        directions = directions @ turn
    with np.errstate(divide='ignore', invalid='ignore'):
        points = directions / np.where(directions[:, 2:] > 0, directions[:, 2:], np.nan)
    return points.astype(np.float32)


def _binning(info: CameraInfo) -> np.ndarray:
    return np.maximum((info.binning_x, info.binning_y), 1)  # 0 means 1, too


def _check_size(info: CameraInfo, size: tuple[int, int] | None) -> None:
    """Raise MessageError where an image of this size cannot be the camera's."""
    sensor = np.array((info.roi.width or info.width, info.roi.height or info.height))
    if size is None or not sensor.all():
        return
    binning = _binning(info)
    if (np.abs(np.array(size[::-1]) * binning - sensor) >= binning).any():
        width, height = sensor // binning
        raise MessageError(
            f'camera_info is of images of {width} x {height} pixels, but they have '
            f'{size[1]} x {size[0]}'
        )


def _matrix(name: str, values, columns: int) -> np.ndarray:
    matrix = np.array(values, np.float64).reshape(3, columns)
    if not (np.isfinite(matrix).all() and matrix[0, 0] > 0 and matrix[1, 1] > 0):
        raise MessageError(f'camera_info has no calibration: {name} = {list(values)}')
    return matrix


def _undistorted(pixels: np.ndarray, matrix: np.ndarray, info: CameraInfo) -> np.ndarray:
    """Return raw pixels (N, 2) on the plane z = 1."""
    model, distortion = info.distortion_model, np.array(info.d, np.float64)
    flat = (pixels - matrix[:2, 2]) / matrix[[0, 1], [0, 1]]
    if not np.isfinite(distortion).all():
        raise MessageError(f'camera_info has no calibration: D = {list(info.d)}')
    if not len(pixels) or not distortion.any():
        return flat
    zero = np.zeros(3)
    if model == 'equidistant' and distortion.size == 4:
        flat = cv2.fisheye.undistortPoints(pixels[:, None], matrix, distortion)[:, 0]

        def project(points):
            return cv2.fisheye.projectPoints(points[:, None], zero, zero, matrix, distortion)[0]
    elif model in ('', 'plumb_bob', 'rational_polynomial') and distortion.size in (
        4,
        5,
        8,
        12,
        14,
    ):
        flat = cv2.undistortPoints(pixels[:, None], matrix, distortion)[:, 0]

        def project(points):
            return cv2.projectPoints(points[:, None], zero, zero, matrix, distortion)[0]
    else:
        raise MessageError(
            f'camera_info has the distortion model {model!r} with {distortion.size} values; '
            'known are plumb_bob (4 or 5), rational_polynomial (8, 12 or 14) and equidistant (4)'
        )
    # How often OpenCV iterates differs between its versions, and a strong lens needs more.
    with np.errstate(over='ignore', invalid='ignore'):
        for _ in range(20):
            miss = pixels - project(np.column_stack([flat, np.ones(len(flat))]))[:, 0]
            if not (np.abs(miss) > 1e-6).any():
                break
            flat = flat + miss / matrix[[0, 1], [0, 1]]
        miss = pixels - project(np.column_stack([flat, np.ones(len(flat))]))[:, 0]
        return np.where(np.abs(miss).max(1, keepdims=True) < UNDISTORTED, flat, np.nan)


def positions(
    tracks: Tracks,
    size: tuple[int, int],
    info: CameraInfo,
    depth: np.ndarray,
    rectified: bool = False,
) -> np.ndarray:
    """Return tracks of an image of `size` (H, W) as points (N, 3), metres in the optical frame.

    `depth` (H', W') is in metres along the optical axis, NaN where unknown, and aligned with the
    image, at any resolution; its nearest pixel counts, for a mean over an edge lies on neither
    side. NaN for points that are not visible: what is measured there is what hides them.
    """
    xyz = rays(tracks.xy, info, size, rectified)
    column, row = np.round(geometry.rescale(tracks.xy, size, depth.shape)).astype(int).T
    height, width = depth.shape
    there = depth[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
    return xyz * np.where(tracks.visible, there, np.nan)[:, None].astype(np.float32)


class Pairs:
    """Brings the tracks and the depth image of one moment together, whichever comes first.

    One moment: stamps within SAME_MOMENT or, where one of the two has a stamp that is no time,
    publications that lie closer than half of what lies between two depth images, at the rate
    of the last of them; lost ones count in that rate.
    """

    def __init__(self, memory: int = 8) -> None:
        self._waiting = {kind: deque(maxlen=memory) for kind in ('tracks', 'depth')}
        self._published: float | None = None  # when the last depth image was
        # Seconds between depth images. The least counts: not every middleware tells of lost ones.
        self._intervals = deque(maxlen=memory)
        self._lock = threading.Lock()  # tracks come from the worker, depth from the executor

    def match(self, kind: str, stamp: float | None, item, published: float = 0.0, lost: int = 0):
        """Return the item of the other kind for `stamp`, or None and keep this one for it.

        stamp: seconds, None if it is no time; published: seconds at which the image was; lost: of
        a depth image, how many never came since the last one.
        """
        with self._lock:
            if kind == 'depth':
                if self._published is not None:
                    self._intervals.append((published - self._published) / (lost + 1))
                self._published = published
            others = self._waiting['depth' if kind == 'tracks' else 'tracks']
            distances = [self._distance(stamp, published, *other[:2]) for other in others]
            if not distances or min(distances) > 1:
                self._waiting[kind].append((stamp, published, item))
                return None
            found = others[distances.index(min(distances))]
            others.remove(found)
            return found[2]

    def _distance(self, stamp, published, other_stamp, other_published) -> float:
        """Return how far apart two items are; more than 1 is too far."""
        if stamp is None or other_stamp is None:
            interval = min(self._intervals, default=0.0)
            limit = min(max(SAME_MOMENT, interval / 2), SLOWEST / 2)
            return abs(published - other_published) / limit
        return abs(stamp - other_stamp) / SAME_MOMENT

    @property
    def starved(self) -> bool:
        """Whether as many tracks as are kept wait for their depth images."""
        waiting = self._waiting['tracks']
        return len(waiting) == waiting.maxlen
