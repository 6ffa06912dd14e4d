"""A rendered stream, points added late, removed and added again: engines are compared on it."""

from collections.abc import Iterator

import cv2
import numpy as np

from cotracker_ros.engines.metadata import Metadata


def rendered_frames(count: int, size: tuple[int, int], seed: int = 0) -> Iterator[np.ndarray]:
    """`count` frames (H, W, 3) uint8 of a textured scene that turns, a patch moving over it."""
    height, width = size
    rng = np.random.default_rng(seed)
    scene = _texture(rng, (2 * height, 2 * width))
    patch = _texture(rng, (height // 4, width // 5))
    for t in range(count):
        turn = cv2.getRotationMatrix2D((width, height), 0.4 * t, 1 + 0.002 * t)
        turn[:, 2] -= (width / 2 + 1.7 * t, height / 2 - 0.9 * t)
        frame = cv2.warpAffine(
            scene, turn, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
        x, y = int(0.1 * width + 0.011 * width * t) % (width - patch.shape[1]), int(0.35 * height)
        frame[y : y + patch.shape[0], x : x + patch.shape[1]] = patch
        yield frame


def scripted_stream(
    count: int, metadata: Metadata, cameras: int, slots: int, seed: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """`count` inputs of the step of such a model.

    Slots start over the first half, some from an older frame; a third are removed at two thirds of
    the way and half of these started again; some are always live. Every other slot is a keypoint.
    """
    rng, size = np.random.default_rng(seed), metadata.image_size
    begin = np.sort(rng.integers(0, max(count // 2, 1), (cameras, slots)), 1)
    begin[:, 0] = 0
    late = rng.integers(0, metadata.window, (cameras, slots)) * (
        rng.random((cameras, slots)) < 0.3
    )
    late = np.minimum(late, begin)
    removed = rng.random((cameras, slots)) < 1 / 3
    removed[:, 0] = False
    again = removed & (rng.random((cameras, slots)) < 0.5)
    gone, back = 2 * count // 3, 2 * count // 3 + 3
    margin = 0.08 * min(size)
    xy = rng.uniform((margin, margin), (size[1] - margin, size[0] - margin), (cameras, slots, 2))
    streams = [rendered_frames(count, metadata.picture_size, seed + k) for k in range(cameras)]
    number = np.arange(slots) % 17
    keypoint = np.tile(np.where(number % 2, number, -1).astype(np.int32), (cameras, 1))
    for t in range(count):
        restart = again & (t == back)
        yield {
            'image': np.stack([next(s) for s in streams]),
            'query_xy': xy.astype(np.float32),
            'query': (begin == t) | restart,
            'query_age': np.where(begin == t, late, 0).astype(np.int32),
            'live': (t >= begin) & ~(removed & (t >= gone) & ~(again & (t >= back))),
            'keypoint': keypoint,
        }


def _texture(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 noise of several scales."""
    total = np.zeros((*size, 3), np.float32)
    for cell, weight in ((4, 1.0), (12, 1.5), (40, 2.0)):
        small = rng.standard_normal((size[0] // cell + 2, size[1] // cell + 2, 3), np.float32)
        total += weight * cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(127 + 35 * total, 0, 255).astype(np.uint8)
