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


def rays(xy: np.ndarray, info: CameraInfo) -> np.ndarray:
    """Return pixels (N, 2) as points (N, 3) on the plane z = 1 of the optical frame, undistorted.

    Raises MessageError for a camera that is not calibrated or of an unknown distortion model.
    """
    matrix = np.array(info.k, np.float64).reshape(3, 3)
    if not (np.isfinite(matrix).all() and matrix[0, 0] > 0 and matrix[1, 1] > 0):
        raise MessageError(f'camera_info has no calibration: K = {list(info.k)}')
    distortion = np.array(info.d, np.float64)
    if not len(xy):
        return np.zeros((0, 3), np.float32)
    points = np.asarray(xy, np.float64).reshape(-1, 1, 2)
    if info.distortion_model == 'equidistant' and distortion.size == 4:
        flat = cv2.fisheye.undistortPoints(points, matrix, distortion)
    elif info.distortion_model in ('', 'plumb_bob', 'rational_polynomial') and distortion.size in (
        0, 4, 5, 8, 12, 14,
    ):  # fmt: skip
        flat = cv2.undistortPoints(points, matrix, distortion)
    else:
        raise MessageError(
            f'camera_info has the distortion model {info.distortion_model!r} with '
            f'{distortion.size} values'
        )
    return np.column_stack([flat.reshape(-1, 2), np.ones(len(xy))]).astype(np.float32)


def positions(
    tracks: Tracks, size: tuple[int, int], info: CameraInfo, depth: np.ndarray
) -> np.ndarray:
    """Return tracks of an image of `size` (H, W) as points (N, 3), metres in the optical frame.

    `depth` (H', W') is in metres along the optical axis, NaN where unknown, and aligned with the
    image, at any resolution; its nearest pixel counts, for a mean over an edge lies on neither
    side. NaN for points that are not visible: what is measured there is what hides them.
    """
    xyz = rays(tracks.xy, info)
    column, row = np.round(geometry.rescale(tracks.xy, size, depth.shape)).astype(int).T
    height, width = depth.shape
    there = depth[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
    return xyz * np.where(tracks.visible, there, np.nan)[:, None].astype(np.float32)


class Pairs:
    """Brings the tracks and the depth image of one moment together, whichever comes first."""

    def __init__(self, memory: int = 8) -> None:
        self._waiting = {kind: deque(maxlen=memory) for kind in ('tracks', 'depth')}
        self._lock = threading.Lock()  # tracks come from the worker, depth from the executor

    def match(self, kind: str, stamp: float, item):
        """Return the item of the other kind for `stamp`, or None and keep this one for it."""
        with self._lock:
            others = self._waiting['depth' if kind == 'tracks' else 'tracks']
            nearest = min(others, key=lambda other: abs(other[0] - stamp), default=None)
            if nearest is None or abs(nearest[0] - stamp) > SAME_MOMENT:
                self._waiting[kind].append((stamp, item))
                return None
            others.remove(nearest)
            return nearest[1]

    @property
    def starved(self) -> bool:
        """Whether as many tracks as are kept wait for their depth images."""
        waiting = self._waiting['tracks']
        return len(waiting) == waiting.maxlen
