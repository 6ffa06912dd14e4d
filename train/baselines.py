"""Classical trackers as rows of every table: Lucas-Kanade, chained DIS flow, standing still.

Each takes a video (T, H, W, 3) uint8 RGB and queries (N, 3) of t, x, y px, and returns positions
(T, N, 2) px and visibility (T, N) bool, of frames from each query's on; before it a track stands
at its query, invisible. They use no future frames.
"""

from collections.abc import Callable

import cv2
import numpy as np

Tracker = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

ROUND_TRIP = 1.0  # px: a point that comes back further off was hidden or lost


def lucas_kanade(video: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Track from frame to frame by Lucas-Kanade, 21 x 21; visible while the way back agrees."""
    options = {'winSize': (21, 21), 'maxLevel': 3}

    def step(old, new, xy):
        xy = np.ascontiguousarray(xy, np.float32)
        there, found, _ = cv2.calcOpticalFlowPyrLK(old, new, xy, None, **options)
        back, found_back, _ = cv2.calcOpticalFlowPyrLK(new, old, there, None, **options)
        agrees = np.linalg.norm(back - xy, axis=1) < ROUND_TRIP
        return there, agrees & (found[:, 0] == 1) & (found_back[:, 0] == 1)

    return _chain(video, queries, step)


def dis_flow(video: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Follow DIS optical flow (medium) from frame to frame; visible while the flow back agrees."""
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def step(old, new, xy):
        there = xy + _sample(dis.calc(old, new, None), xy)
        back = there + _sample(dis.calc(new, old, None), there)
        return there, np.linalg.norm(back - xy, axis=1) < ROUND_TRIP

    return _chain(video, queries, step)


def standing_still(video: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leave every point where it was asked for, visible."""
    return _chain(video, queries, lambda old, new, xy: (xy, np.ones(len(xy), bool)))


BASELINES: dict[str, Tracker] = {
    'lucas-kanade': lucas_kanade,
    'dis-flow': dis_flow,
    'standing-still': standing_still,
}


def _chain(video, queries, step) -> tuple[np.ndarray, np.ndarray]:
    """Run step(old, new, xy (K, 2)) -> xy, visible over neighbouring grey frames.

    A point that leaves the picture or loses its way stays in the chain, invisible, because it may
    come back; where the flow cannot say where it went, it stands.
    """
    query_t, start = queries[:, 0].astype(int), queries[:, 1:].astype(np.float32)
    frames, count = len(video), len(queries)
    xy = np.repeat(start[None], frames, 0)
    visible = np.zeros((frames, count), bool)
    visible[query_t, np.arange(count)] = True
    height, width = video.shape[1:3]
    old = cv2.cvtColor(np.ascontiguousarray(video[0]), cv2.COLOR_RGB2GRAY)
    for t in range(1, frames):
        new = cv2.cvtColor(np.ascontiguousarray(video[t]), cv2.COLOR_RGB2GRAY)
        going = np.flatnonzero(query_t < t)
        if len(going):
            there, sure = step(old, new, xy[t - 1, going])
            finite = np.isfinite(there).all(1)
            xy[t, going] = np.where(finite[:, None], there, xy[t - 1, going])
            inside = (there > -0.5).all(1) & (there < (width - 0.5, height - 0.5)).all(1)
            visible[t, going] = sure & finite & inside
        old = new
    return xy, visible


def _sample(flow: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Return the flow (H, W, 2) at positions (K, 2), bilinear, clamped to the picture."""
    at = np.ascontiguousarray(xy[:, None], np.float32)
    return cv2.remap(flow, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[:, 0]
