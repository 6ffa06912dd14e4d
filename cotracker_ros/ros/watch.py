"""Recognise images in which nothing can be tracked."""

import cv2
import numpy as np

BLANK = 2.0  # standard deviation of the grey values; a lens cap with noise has less


class ImageWatch:
    """Tells blank images (one colour: black, white, a lost signal) and frozen ones.

    An image counts as frozen after `repeats` images with the very same pixels: sensors have noise,
    so a living camera never repeats itself. It looks at every 8th pixel of every 8th row.
    """

    def __init__(self) -> None:
        self._last: np.ndarray | None = None
        self._same = 0

    def trouble(self, frame: np.ndarray, repeats: int) -> str:
        """Return what is wrong with a frame (H, W, 3), or ''. `repeats` 0: never frozen."""
        sample = np.ascontiguousarray(frame[::8, ::8])
        same = self._last is not None and np.array_equal(sample, self._last)
        self._last, self._same = sample, self._same + 1 if same else 0
        if cv2.meanStdDev(sample)[1].max() < BLANK:
            return 'the image is blank'
        if repeats and self._same >= repeats:
            return f'the image is frozen: the last {self._same + 1} are the same'
        return ''
