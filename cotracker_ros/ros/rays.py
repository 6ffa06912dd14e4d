"""Tracks as directions in space."""

import cv2
import numpy as np
from sensor_msgs.msg import CameraInfo

from cotracker_ros.ros.messages import MessageError


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
