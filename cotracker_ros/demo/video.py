"""Where the demo's frames come from: the rendered clip, a file, a folder or a camera."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from cotracker_ros.demo.clip import FPS, FRAMES, Clip

IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')


class VideoError(ValueError):
    """A video that cannot be read; the text names it and says why."""


@dataclass(frozen=True)
class Video:
    """Frames (H, W, 3) uint8 RGB of one size."""

    name: str
    fps: float
    count: int | None  # None: endless, a camera; 0: not known
    frames: Iterator[np.ndarray]


def open_video(source: str | None, rate: float | None = None) -> Video:
    """Open a file, a folder of images, a device such as /dev/video0, or None: the rendered clip.

    `rate` replaces the frame rate, which a folder does not have: 30 a second. Raises VideoError.
    """
    if source is None:
        clip = Clip()
        frames = (clip.frame(t) for t in range(FRAMES))
        return Video('clip', rate or FPS, FRAMES, frames)
    path = Path(source)
    if path.is_dir():
        return _folder(path, rate or 30.0)
    if not path.exists():
        raise VideoError(f'{source}: no such file, folder or device')
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise VideoError(f'{source}: OpenCV cannot open it as a video or camera')
    is_device = path.is_char_device()
    fps = capture.get(cv2.CAP_PROP_FPS)
    count = None if is_device else max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    sound = np.isfinite(fps) and 0 < fps <= 1000
    return Video(source, rate or (fps if sound else 30.0), count, _captured(source, capture))


def _captured(source: str, capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    size = None
    try:
        while True:
            there, picture = capture.read()
            if not there:
                break
            size = size or picture.shape
            if picture.shape != size:
                raise VideoError(f'{source}: the frame size changes')
            yield np.ascontiguousarray(picture[..., ::-1])
    finally:
        capture.release()
    if size is None:
        raise VideoError(f'{source}: the video has no frames that OpenCV can read')


def _folder(path: Path, fps: float) -> Video:
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise VideoError(f'{path}: no images in this folder ({", ".join(IMAGE_SUFFIXES)})')
    return Video(str(path), fps, len(files), _pictures(files))


def _pictures(files: list[Path]) -> Iterator[np.ndarray]:
    first = None
    for file in files:
        picture = cv2.imread(str(file))
        if picture is None:
            raise VideoError(f'{file}: OpenCV cannot read this image')
        first = picture.shape if first is None else first
        if picture.shape != first:
            raise VideoError(
                f'{file} has {picture.shape[1]} x {picture.shape[0]} pixels, {files[0].name} has '
                f'{first[1]} x {first[0]}: a video needs images of one size'
            )
        yield np.ascontiguousarray(picture[..., ::-1])
