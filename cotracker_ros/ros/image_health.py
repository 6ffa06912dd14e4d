"""Recognise images in which nothing can be tracked, and those that only repeat the last one."""

import cv2
import numpy as np

BLANK = 2.0  # standard deviation of the values of 8 bits; a lens cap with noise has less
SPECK = 16  # levels by which an object of a few pixels differs from an otherwise blank image


def is_blank(frame: np.ndarray) -> bool:
    """Return whether a frame (H, W, 3) uint8 has one colour: black, white, a lost signal.

    A small object before an empty ground is seen: single pixels, as noise makes them, are not.
    """
    if cv2.meanStdDev(np.ascontiguousarray(frame[::8, ::8]))[1].max() >= BLANK:
        return False
    whole = np.ascontiguousarray(frame)
    if cv2.meanStdDev(whole)[1].max() >= BLANK:
        return False
    smooth = cv2.medianBlur(whole, 3).reshape(-1, 3)
    return int(np.ptp(smooth, axis=0).max()) < SPECK


class Repetition:
    """Counts images that are the same as the last one, in every byte."""

    def __init__(self) -> None:
        self._last: np.ndarray | None = None
        self._count = 0

    def update(self, rows: np.ndarray) -> int:
        """Return how many images before this one had its very bytes (R, bytes) uint8."""
        last, self._last = self._last, rows
        same = (
            last is not None
            and last.shape == rows.shape
            and np.array_equal(last[::8, ::8], rows[::8, ::8])  # tells most images apart
            and np.array_equal(last, rows)
        )
        self._count = self._count + 1 if same else 0
        return self._count
