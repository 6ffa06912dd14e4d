"""A clip whose motion is known: photographs cut to ellipses that drift over each other."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from cotracker_ros import geometry

SIZE = (480, 640)  # H, W
FRAMES = 180
FPS = 30.0
_PHOTOGRAPHS = Path(__file__).parent / 'photographs'


@dataclass(frozen=True)
class Layer:
    """A picture and how it moves."""

    picture: np.ndarray  # (h, w, 4) uint8 RGB and opacity
    motion: Callable[[float], tuple[float, float, float, float]]  # turn in 0..1 of the clip ->
    # x, y of the centre as a fraction of the image, angle in radians, scale

    def transform(self, frame: int) -> np.ndarray:
        """Return the affine map (2, 3) from pixels of the picture to those of the image."""
        x, y, angle, scale = self.motion(frame / FRAMES)
        cos, sin = scale * math.cos(angle), scale * math.sin(angle)
        linear = np.array([[cos, -sin], [sin, cos]])
        height, width = self.picture.shape[:2]
        centre = np.array([x * SIZE[1], y * SIZE[0]])
        return np.column_stack([linear, centre - linear @ [(width - 1) / 2, (height - 1) / 2]])

    def opaque(self, xy: np.ndarray) -> np.ndarray:
        """Whether pixels (N, 2) of the picture cover what is behind them, (N,) bool."""
        height, width = self.picture.shape[:2]
        column, row = np.round(xy).astype(int).T
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        alpha = self.picture[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1), 3]
        return inside & (alpha > 127)


def _photograph(name: str, width: int, oval: bool) -> np.ndarray:
    path = _PHOTOGRAPHS / f'{name}.jpg'
    picture = cv2.imread(str(path))
    if picture is None:
        raise FileNotFoundError(f'{path} is missing or no JPEG')
    height = round(width * picture.shape[0] / picture.shape[1])
    shrinks = width < picture.shape[1]
    size = (width, height)
    picture = cv2.resize(
        picture, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    )
    alpha = np.full(picture.shape[:2], 0 if oval else 255, np.uint8)
    if oval:
        middle, axes = (width // 2, height // 2), (width // 2 - 3, height // 2 - 3)
        cv2.ellipse(alpha, middle, axes, 0, 0, 360, 255, -1, cv2.LINE_AA)
    return np.dstack([picture[..., ::-1], alpha])


def _wave(turn: float, times: float = 1.0) -> float:
    return math.sin(2 * math.pi * times * turn)


def _layers(strength: float) -> tuple[Layer, ...]:
    """Return the layers from back to front; `strength` scales how far and fast they move."""
    s = strength
    return (
        Layer(
            _photograph('coffee', 960, oval=False),
            lambda t: (0.5 + 0.09 * s * _wave(t), 0.5 + 0.05 * s * _wave(t, 2),
                       0.05 * s * _wave(t), 1.02 + 0.06 * s * _wave(t + 0.25)),
        ),
        Layer(
            _photograph('astronaut', 270, oval=True),
            lambda t: (0.34 - 0.20 * s * _wave(t + 0.2), 0.45 + 0.16 * s * _wave(t),
                       0.25 * s * _wave(t), 1.0 + 0.15 * s * _wave(t + 0.5)),
        ),
        Layer(
            _photograph('chelsea', 260, oval=True),
            lambda t: (0.62 + 0.26 * s * _wave(t + 0.6), 0.60 - 0.14 * s * _wave(t, 2),
                       -0.3 * s * _wave(t), 1.0 + 0.1 * s * _wave(t)),
        ),
    )  # fmt: skip


GENTLE, HARD = 0.25, 1.0  # for a first look; and with points that are often hidden, or leave


class Clip:
    """Layers from back to front."""

    def __init__(self, strength: float = GENTLE) -> None:
        self.layers = _layers(strength)

    def frame(self, index: int) -> np.ndarray:
        """Draw one frame (H, W, 3) uint8 RGB."""
        image = np.zeros((*SIZE, 3), np.float32)
        for layer in self.layers:
            drawn = cv2.warpAffine(
                layer.picture, layer.transform(index), SIZE[::-1], flags=cv2.INTER_LINEAR
            )
            alpha = drawn[..., 3:].astype(np.float32) / 255
            image += alpha * (drawn[..., :3] - image)
        return np.round(image).astype(np.uint8)

    def truth(self, xy: np.ndarray, frame: int) -> tuple[np.ndarray, np.ndarray]:
        """Follow points (N, 2) px of one frame through the clip.

        Returns their positions (FRAMES, N, 2) px and whether they are seen (FRAMES, N) bool: on
        the image and not behind another layer.
        """
        xy = np.asarray(xy, np.float64)
        owner = np.zeros(len(xy), int)
        for number, layer in enumerate(self.layers):
            owner[layer.opaque(_to_picture(layer, xy, frame))] = number
        tracks = np.empty((FRAMES, len(xy), 2))
        visible = np.empty((FRAMES, len(xy)), bool)
        for number, layer in enumerate(self.layers):
            mine = owner == number
            local = np.column_stack([_to_picture(layer, xy[mine], frame), np.ones(mine.sum())])
            for t in range(FRAMES):
                tracks[t, mine] = local @ layer.transform(t).T
        for t in range(FRAMES):
            visible[t] = geometry.inside(tracks[t], SIZE)
            for number, layer in enumerate(self.layers):
                hides = layer.opaque(_to_picture(layer, tracks[t], t)) & (owner < number)
                visible[t] &= ~hides
        return tracks, visible


def _to_picture(layer: Layer, xy: np.ndarray, frame: int) -> np.ndarray:
    inverse = cv2.invertAffineTransform(layer.transform(frame))
    return xy @ inverse[:, :2].T + inverse[:, 2]
