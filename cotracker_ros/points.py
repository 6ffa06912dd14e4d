"""Where to put points: on grids and on corners. Pixels as in geometry.py."""

import cv2
import numpy as np


def grid(per_side: int, size: tuple[int, int], mask: np.ndarray | None = None) -> np.ndarray:
    """Return the cell centres (N, 2) px of a square grid over an image of `size` (H, W), rows
    outermost.

    With a mask (H, W), over the box around what is not 0, and only those that lie on it.
    """
    top, left, (height, width) = 0, 0, size
    if mask is not None:
        left, top, width, height = cv2.boundingRect((mask != 0).astype(np.uint8))
    steps = (np.arange(per_side) + 0.5) / max(per_side, 1)
    y, x = np.meshgrid(top + steps * height - 0.5, left + steps * width - 0.5, indexing='ij')
    xy = np.stack([x.ravel(), y.ravel()], 1).astype(np.float32)
    return xy if mask is None else xy[_at(mask, xy) != 0]


def support_grid(
    per_side: int, size: tuple[int, int], centre: tuple[float, float] | None = None
) -> np.ndarray:
    """Return the points (N, 2) px that the papers add to the queries, a square grid over a
    `size` (H, W) around a centre x, y, by default the middle.

    Rows outermost; margins of W / 64, above and below too, as published; one point is the middle.
    """
    height, width = size
    margin = width / 64
    rows = np.linspace(margin, height - margin, per_side) if per_side != 1 else [height / 2]
    columns = np.linspace(margin, width - margin, per_side) if per_side != 1 else [width / 2]
    y, x = np.meshgrid(rows, columns, indexing='ij')
    xy = np.stack([x.ravel(), y.ravel()], 1)
    return xy if centre is None else xy + np.asarray(centre) - (width / 2, height / 2)


def corners(
    frame: np.ndarray, count: int, taken: np.ndarray, mask: np.ndarray | None = None
) -> np.ndarray:
    """Return up to `count` Shi-Tomasi corners (N, 2) px of a frame (H, W, 3) RGB, best first.

    They keep away from each other and from the points `taken` (K, 2) px, and lie on the mask.
    """
    if count <= 0:
        return np.zeros((0, 2), np.float32)
    height, width = frame.shape[:2]
    distance = max(4, min(height, width) // 24)
    free = np.full((height, width), 255, np.uint8)
    if mask is not None:
        free[mask == 0] = 0
    for x, y in np.clip(taken, -1e4, 1e4):
        cv2.circle(free, (round(float(x)), round(float(y))), distance, 0, -1)
    grey = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
    found = cv2.goodFeaturesToTrack(grey, count, 0.01, distance, mask=free)
    return np.zeros((0, 2), np.float32) if found is None else found.reshape(-1, 2)


def _at(mask: np.ndarray, xy: np.ndarray) -> np.ndarray:
    height, width = mask.shape
    column, row = np.round(xy).astype(int).T
    return mask[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
