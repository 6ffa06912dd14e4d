"""Where the demo's frames come from: the rendered clip, a file, a folder or a camera."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from cotracker_ros.demo.clip import FPS, FRAMES, Clip
from cotracker_ros.demo.orientation import rotation
from cotracker_ros.files import listed, opencv_name
from cotracker_ros.streaming.image_range import ImageRange, to_8_bit

IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')

MIN_RATE, MAX_RATE = 0.01, 1000.0  # frames a second


class VideoError(ValueError):
    """A video that cannot be read; the text names it and says why."""


@dataclass(frozen=True)
class Video:
    """Frames (H, W, 3) uint8 RGB of one size."""

    name: str
    fps: float  # on the average
    count: int | None  # as the container has it. None: endless, a camera; 0: not known
    frames: Iterator[np.ndarray]
    # Seconds of the frames that were read so far, from the first: the container's own, which need
    # not be evenly spaced; n / fps where there are none or a rate was asked for.
    times: list[float] = field(default_factory=list)


def open_video(source: str | None, rate: float | None = None, image_range: str = 'auto') -> Video:
    """Open a file, a folder of images, a device such as /dev/video0, or None: the rendered clip.

    `rate` replaces the frame rate, which a folder does not have: 30 a second. `image_range` is
    for pictures of more than 8 bits. Frames are upright, as the file says. Raises VideoError, and
    ValueError for an `image_range` that is none.
    """
    if rate is not None and not MIN_RATE <= rate <= MAX_RATE:
        raise VideoError(f'the frame rate must be {MIN_RATE} to {MAX_RATE} a second, not {rate}')
    if source is None:
        clip = Clip()
        return _timed('clip', rate or FPS, FRAMES, (clip.frame(t) for t in range(FRAMES)))
    path = Path(source).absolute()  # FFmpeg takes a colon in a relative name for a protocol
    if path.is_dir():
        files = listed(path, IMAGE_SUFFIXES)
        if not files:
            raise VideoError(f'{source}: no images in this folder ({", ".join(IMAGE_SUFFIXES)})')
        pictures = _pictures(files, ImageRange(image_range))
        return _timed(source, rate or 30.0, len(files), pictures)
    if not path.exists():
        raise VideoError(f'{source}: no such file, folder or device')
    if path.suffix.lower() in IMAGE_SUFFIXES:  # OpenCV would read those numbered after it, too
        return _timed(source, rate or 30.0, 1, _pictures([path], ImageRange(image_range)))
    capture = cv2.VideoCapture(_name(path))
    if not capture.isOpened():
        raise VideoError(f'{source}: OpenCV cannot open it as a video or camera')
    is_device = path.is_char_device()
    turn = 0 if is_device else _upright(path, capture)
    fps = capture.get(cv2.CAP_PROP_FPS)
    fps = fps if np.isfinite(fps) and MIN_RATE <= fps <= MAX_RATE else 30.0
    count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    known = np.isfinite(count) and 0 < count < 1e9
    times: list[float] = []
    frames = _captured(source, capture, turn, times, fps, rate)
    return Video(
        source, rate or fps, None if is_device else int(count) if known else 0, frames, times
    )


def _name(path: Path) -> str:
    try:
        return opencv_name(path)
    except ValueError as error:
        raise VideoError(str(error)) from error


def is_short(video: Video) -> bool:
    """Return whether a file that was read to its end broke off.

    Containers promise a number of frames that is a frame or two off, and that means nothing where
    frames are not evenly spaced: then it is what their length would hold at an even rate.
    """
    promised, frames = video.count or 0, len(video.times)
    duration = video.times[-1] * video.fps + 1 if frames else 0  # in frames of the average rate
    return max(frames, duration) < 0.95 * promised - 2


def _timed(name: str, fps: float, count: int, frames: Iterator[np.ndarray]) -> Video:
    """Return a video of evenly spaced frames."""
    times: list[float] = []

    def read() -> Iterator[np.ndarray]:
        for number, frame in enumerate(frames):
            times.append(number / fps)
            yield frame

    return Video(name, fps, count, read(), times)


def _upright(path: Path, capture: cv2.VideoCapture) -> int:
    """Keep OpenCV from turning frames, which its versions do or do not; returns the degrees."""
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
    turn = rotation(path)
    if turn is None:
        meta = capture.get(cv2.CAP_PROP_ORIENTATION_META)
        turn = round(meta / 90) % 4 * 90 if np.isfinite(meta) else 0
    return turn


_TURNS = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}


def _captured(
    source: str,
    capture: cv2.VideoCapture,
    turn: int,
    times: list[float],
    fps: float,
    rate: float | None,
) -> Iterator[np.ndarray]:
    """Yield the frames; `times` grows by the container's time of each, or by 1 / rate."""
    size, first, last = None, 0.0, -np.inf
    try:
        while True:
            there, picture = capture.read()
            if not there:
                break
            size = size or picture.shape
            if picture.shape != size:
                raise VideoError(f'{source}: the frame size changes')
            if turn:
                picture = cv2.rotate(picture, _TURNS[turn])
            if rate:
                times.append(len(times) / rate)
            else:
                time = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                first = first if times else (time if np.isfinite(time) else 0.0)
                time -= first
                if not (np.isfinite(time) and time > last):  # none, or one that stands still
                    time = last + 1 / fps if times else 0.0
                last = time
                times.append(float(time))
            yield np.ascontiguousarray(picture[..., ::-1])
    finally:
        capture.release()
    if size is None:
        raise VideoError(f'{source}: the video has no frames that OpenCV can read')


def _pictures(files: list[Path], image_range: ImageRange) -> Iterator[np.ndarray]:
    first = None
    for file in files:
        # Turned as its EXIF tag says; 16 bits are kept, to be reduced in one range for all.
        picture = cv2.imread(_name(file), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
        if picture is None:
            raise VideoError(f'{file}: OpenCV cannot read this image')
        first = picture.shape if first is None else first
        if picture.shape != first:
            raise VideoError(
                f'{file} has {picture.shape[1]} x {picture.shape[0]} pixels, {files[0].name} has '
                f'{first[1]} x {first[0]}: a video needs images of one size'
            )
        limits = image_range.limits(picture)
        image_range.learn()
        yield np.ascontiguousarray(to_8_bit(picture, limits)[..., ::-1])
