"""Pictures of tracks: tails, contact sheets and videos, with numpy and OpenCV only.

Used by the demo, the overlay topic and the evaluation. Frames are (H, W, 3) uint8 RGB; positions
are pixels, x right and y down, with (0, 0) the centre of the top-left pixel.
"""

import contextlib
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from cotracker_ros.files import opencv_name
from cotracker_ros.skeleton import LIMBS, SIDE, check_keypoints

_SHIFT = 4  # cv2 draws at 1/16 pixel, so slow tracks do not jump from pixel to pixel
_TAIL_OPACITY = 0.75
# Turns of hue and steps of lightness from one id to the next. Of 2,000 pairs tried, these keep the
# first 8, 12, 24 and 64 ids furthest apart; being fixed, they give an id the same colour always.
_SPREAD = (0.3420750439623803, 0.8242024408289295)


def id_colours(ids: np.ndarray) -> np.ndarray:
    """Return a colour for each id, (N,) -> (N, 3) uint8 RGB; the same id always gets the same.

    Hue and lightness advance by irrational steps in OKLCH (Ottosson 2020), where equal steps look
    equally different, so that hundreds of ids stay apart.
    """
    ids = np.asarray(ids).astype(np.int64)
    hue = 2 * np.pi * (ids * _SPREAD[0] % 1)
    lightness = 0.62 + 0.28 * (ids * _SPREAD[1] % 1)
    a, b = 0.19 * np.cos(hue), 0.19 * np.sin(hue)
    lms = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ],
        -1,
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(lms**3 @ to_rgb.T, 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(255 * srgb).astype(np.uint8)


def draw_tracks(
    frame: np.ndarray, xy: np.ndarray, visible: np.ndarray, ids: np.ndarray, tail: int = 16
) -> np.ndarray:
    """Draw tracks up to the newest frame on a copy of it.

    frame: (H, W, 3) uint8 RGB, the newest. xy: (T, N, 2) px, the history, newest last; NaN where
    a point did not exist yet. visible: (T, N) bool. ids: (N,) integers, which choose the colours.
    tail: number of past frames the tail reaches back; 0 draws points alone.

    Visible points are filled discs, occluded ones hollow rings; the tail is bold where the point
    was seen and thin where it was not. Sizes follow the frame's. Raises ValueError for shapes that
    do not belong together.
    """
    xy, visible, ids = np.asarray(xy, float), np.asarray(visible, bool), np.asarray(ids)
    _check_frame(frame)
    if xy.ndim != 3 or xy.shape[2] != 2 or visible.shape != xy.shape[:2]:
        raise ValueError(
            f'xy must be (T, N, 2) and visible (T, N); got {xy.shape} and {visible.shape}'
        )
    if ids.shape != xy.shape[1:2]:
        raise ValueError(f'{xy.shape[1]} tracks but ids of shape {ids.shape}')
    canvas = np.ascontiguousarray(frame).copy()
    if not len(xy):
        return canvas
    height, width = frame.shape[:2]
    xy, visible = xy[-tail - 1 :], visible[-tail - 1 :]
    exists = np.all(np.isfinite(xy), axis=2)
    # Far outside points are pulled to a frame's size away: cv2 draws in 32-bit integers.
    limit = np.array([width, height])
    fixed = np.clip(np.where(exists[..., None], xy, 0), -limit, 2 * limit)
    fixed = np.round(fixed * (1 << _SHIFT)).astype(np.int32)
    paths = np.ascontiguousarray(fixed.transpose(1, 0, 2))  # (N, T, 2): cv2 needs them whole
    colours = [tuple(map(int, colour)) for colour in id_colours(ids)]
    scale = max(height, width) / 640
    if len(xy) > 1:
        tails = canvas.copy()
        for n, colour in enumerate(colours):
            _draw_tail(tails, paths[n], visible[:, n], exists[:, n], colour, scale)
        canvas = cv2.addWeighted(tails, _TAIL_OPACITY, canvas, 1 - _TAIL_OPACITY, 0)
    for n in np.flatnonzero(exists[-1]):
        _draw_point(canvas, paths[n, -1], visible[-1, n], colours[n], scale)
    return canvas


LEFT_COLOUR, RIGHT_COLOUR, MIDDLE_COLOUR = (255, 150, 30), (60, 160, 255), (240, 240, 240)
_SIDE_COLOURS = {'left': LEFT_COLOUR, 'right': RIGHT_COLOUR, 'middle': MIDDLE_COLOUR}
KEYPOINT_COLOURS = tuple(_SIDE_COLOURS[side] for side in SIDE)


def _limb_colour(one: int, other: int) -> tuple[int, int, int]:
    sides = {SIDE[one], SIDE[other]} - {'middle'}
    return _SIDE_COLOURS[sides.pop() if len(sides) == 1 else 'middle']


LIMB_COLOURS = tuple(_limb_colour(*limb) for limb in LIMBS)


def draw_pose(
    frame: np.ndarray,
    xy: np.ndarray,
    visible: np.ndarray,
    keypoint: np.ndarray,
    instance: np.ndarray,
) -> np.ndarray:
    """Draw people as COCO's skeletons on a copy of the frame.

    xy: (N, 2) px, NaN where a point does not exist; visible: (N,) bool; keypoint: (N,) numbers of
    cotracker_ros.skeleton, -1 for points that are none and are left out; instance: (N,) whose
    keypoint it is. Limbs join the keypoints of one person: the person's own left in orange, right
    in blue, what joins the two in white; thin where an end is hidden. Hidden keypoints are hollow.
    Raises ValueError for shapes that do not belong together and numbers that are no keypoint.
    """
    _check_frame(frame)
    xy, visible = np.asarray(xy, float), np.asarray(visible, bool)
    keypoint, instance = check_keypoints(keypoint, len(xy)), np.asarray(instance)
    if xy.shape != (len(xy), 2) or visible.shape != (len(xy),) or instance.shape != (len(xy),):
        raise ValueError(
            f'xy must be (N, 2), visible and instance (N,); got {xy.shape}, {visible.shape} and '
            f'{instance.shape}'
        )
    canvas = np.ascontiguousarray(frame).copy()
    scale = max(frame.shape[:2]) / 640
    limit = np.array(frame.shape[1::-1])
    fixed = np.clip(np.nan_to_num(xy), -limit, 2 * limit) * (1 << _SHIFT)
    fixed = np.round(fixed).astype(int)
    named = np.flatnonzero((keypoint >= 0) & np.isfinite(xy).all(1))
    at = {(int(instance[n]), int(keypoint[n])): n for n in named}
    rim, bold, thin = (max(1, round(width * scale)) for width in (5, 3, 1.2))
    for person in sorted({who for who, _ in at}):
        for (one, other), colour in zip(LIMBS, LIMB_COLOURS, strict=True):
            if (person, one) not in at or (person, other) not in at:
                continue
            ends = [at[person, one], at[person, other]]
            first, last = ((int(fixed[n, 0]), int(fixed[n, 1])) for n in ends)
            seen = visible[ends].all()
            if seen:
                cv2.line(canvas, first, last, (16, 16, 16), rim, cv2.LINE_AA, _SHIFT)
            cv2.line(canvas, first, last, colour, bold if seen else thin, cv2.LINE_AA, _SHIFT)
    for n in named:
        colour = KEYPOINT_COLOURS[keypoint[n]]
        _draw_point(canvas, fixed[n], visible[n], colour, scale)
    return canvas


def draw_tracks_and_poses(
    frame: np.ndarray,
    xy: np.ndarray,
    visible: np.ndarray,
    ids: np.ndarray,
    body: tuple[np.ndarray, np.ndarray],
    tail: int = 16,
) -> np.ndarray:
    """Draw plain points as `draw_tracks` does, keypoints as skeletons without tails.

    body: keypoint (N,), -1 for plain points, and instance (N,), as `draw_pose` takes them. The
    rest as for `draw_tracks`.
    """
    keypoint, instance = body
    plain = keypoint < 0
    picture = draw_tracks(frame, xy[:, plain], visible[:, plain], ids[plain], tail)
    if plain.all() or not len(xy):
        return picture
    return draw_pose(picture, xy[-1], visible[-1], keypoint, instance)


def draw_errors(frame: np.ndarray, xy: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Draw where tracks are and should be, on a copy of the frame.

    xy, truth: (N, 2) px. A ring at the true place, a disc at the track and a line between, from
    green (right) over yellow (4 px of a 256-pixel frame) to red (8 px and more).
    """
    _check_frame(frame)
    canvas = np.ascontiguousarray(frame).copy()
    scale = max(frame.shape[:2]) / 640
    error = np.linalg.norm(np.subtract(xy, truth), axis=-1) * 256 / max(frame.shape[:2])
    severity = np.clip(error / 8, 0, 1)
    for position, target, bad in zip(xy, truth, severity, strict=True):
        if not (np.isfinite(position).all() and np.isfinite(target).all()):
            continue
        colour = (int(255 * min(1, 2 * bad)), int(255 * min(1, 2 - 2 * bad)), 0)
        start, end = (
            tuple(int(v) for v in np.round(np.clip(p, -32000, 32000) * (1 << _SHIFT)))
            for p in (position, target)
        )
        cv2.line(canvas, start, end, colour, max(1, round(1.5 * scale)), cv2.LINE_AA, _SHIFT)
        _draw_point(canvas, start, True, colour, scale)
        _draw_point(canvas, end, False, colour, scale)
    return canvas


def titled(frame: np.ndarray, text: str) -> np.ndarray:
    """Return the frame (H, W, 3) uint8 with a line of text, light on dark, in its upper left."""
    _check_frame(frame)
    canvas = np.ascontiguousarray(frame).copy()
    scale = max(frame.shape[:2]) / 640
    font, size, weight = cv2.FONT_HERSHEY_SIMPLEX, max(0.35, 0.7 * scale), max(1, round(scale))
    (width, height), below = cv2.getTextSize(text, font, size, weight)
    cv2.rectangle(canvas, (0, 0), (width + 2 * below, height + 2 * below), (16, 16, 16), -1)
    place = (below, height + below)
    cv2.putText(canvas, text, place, font, size, (240, 240, 240), weight, cv2.LINE_AA)
    return canvas


def contact_sheet(frames: Sequence[np.ndarray], columns: int = 4) -> np.ndarray:
    """Lay frames (H, W, 3) uint8 of one size out in rows, left to right, on a dark ground.

    Raises ValueError without frames or where their sizes differ.
    """
    if not len(frames):
        raise ValueError('a contact sheet needs at least one frame')
    for frame in frames:
        _check_frame(frame)
        if frame.shape != frames[0].shape:
            raise ValueError(f'frames of different sizes: {frames[0].shape} and {frame.shape}')
    height, width = frames[0].shape[:2]
    columns = min(columns, len(frames))
    rows = -(-len(frames) // columns)
    gap = max(2, width // 100)
    size = (rows * (height + gap) + gap, columns * (width + gap) + gap, 3)
    sheet = np.full(size, 24, np.uint8)
    for i, frame in enumerate(frames):
        row, column = divmod(i, columns)
        y, x = gap + row * (height + gap), gap + column * (width + gap)
        sheet[y : y + height, x : x + width] = frame
    return sheet


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    fps: float,
    times: Sequence[float] | None = None,
) -> str:
    """Write RGB frames, which may come from a generator, as .mp4.

    times: seconds of each frame, rising; may grow while the frames come. Without them, and where
    OpenCV writes, frames are 1 / fps apart.

    Returns the codec: with PyAV (the extra `video`) 'h264' or, for odd sizes and where it has no
    encoder of that, 'vp9'; browsers play both. Else OpenCV writes 'mpeg4', MPEG-4 part 2, which
    they do not play, at the nearest rate that it holds. H.264 and MPEG-4 repeat the last column or
    row of odd sizes. Raises ValueError for no frames, frames of
    different sizes or a path that does not end in .mp4, and OSError where it cannot be written.
    """
    path = check_video_path(path)
    part = path.with_name(f'.part-{path.name}')  # a video cut short by an error is none
    writer, size = None, None
    try:
        for number, frame in enumerate(frames):
            _check_frame(frame)
            if writer is None:
                size = frame.shape
                writer = _open_writer(part, size, fps)
            if frame.shape != size:  # cv2 would drop it without a word
                raise ValueError(f'{path}: frames of different sizes: {size} and {frame.shape}')
            writer.write(frame, number / fps if times is None else times[number])
        if writer is None:
            raise ValueError(f'{path}: no frames to write')
        codec = writer.codec
        writer.close()
        writer = None
        if not part.is_file() or not part.stat().st_size:
            raise OSError(f'{path}: nothing was written')
        part.replace(path)
        return codec
    finally:
        if writer is not None:
            with contextlib.suppress(OSError):  # the first error tells more
                writer.close()
        part.unlink(missing_ok=True)


def check_video_path(path: str | Path) -> Path:
    """Return the absolute path of a video to write, or raise ValueError or OSError.

    FFmpeg takes a colon in a relative name for a protocol.
    """
    path = Path(path)
    if path.suffix.lower() != '.mp4':
        raise ValueError(f'{path}: videos are written as .mp4')
    if not path.parent.is_dir():
        raise OSError(f'{path}: no folder {path.parent}')
    return path.absolute()


_ENCODERS = {  # of FFmpeg, best first: codec, options
    'libx264': ('h264', {'preset': 'veryfast', 'crf': '20'}),
    'libopenh264': ('h264', {}),
    'libvpx-vp9': ('vp9', {'deadline': 'realtime', 'cpu-used': '6', 'crf': '28', 'b': '0'}),
}


def _open_writer(path: Path, size: tuple, fps: float) -> '_AvWriter | _CvWriter':
    odd = size[0] % 2 or size[1] % 2
    encoders = sorted(_ENCODERS, key=lambda name: odd and _ENCODERS[name][0] == 'h264')
    for encoder in encoders:  # H.264 has no odd sizes in 4:2:0, which alone all browsers play
        with contextlib.suppress(ImportError, OSError):  # not installed, or without this encoder
            return _AvWriter(path, size, fps, encoder)
    return _CvWriter(path, size, fps)


_TICK = Fraction(1, 90_000)  # seconds


class _AvWriter:
    """Writes through PyAV."""

    def __init__(self, path: Path, size: tuple, fps: float, encoder: str) -> None:
        import av

        self._av = av
        self.codec, options = _ENCODERS[encoder]
        even = self.codec == 'h264'
        self._pad = [(0, size[0] % 2 if even else 0), (0, size[1] % 2 if even else 0), (0, 0)]
        self._last = -1
        self._file = None
        with self._as_os_error(path):
            # The index before the pictures: a browser begins before it has the whole file.
            self._file = av.open(str(path), 'w', format='mp4', options={'movflags': 'faststart'})
            try:
                rate = max(Fraction(fps).limit_denominator(10_000), Fraction(1, 10_000))
                self._stream = self._file.add_stream(encoder, rate=rate, options=options)
                height, width = (n + pad[1] for n, pad in zip(size, self._pad[:2], strict=False))
                self._stream.height, self._stream.width = height, width
                self._stream.codec_context.time_base = _TICK
                self._stream.pix_fmt = 'yuv420p'
                self._stream.codec_context.open()
            except BaseException:
                self._file.close()
                raise
        self._path = path

    @contextlib.contextmanager
    def _as_os_error(self, path: Path):
        try:
            yield
        except (self._av.FFmpegError, ValueError) as error:  # the latter: no such encoder
            raise OSError(f'{path}: {error}') from error

    def write(self, frame: np.ndarray, time: float) -> None:
        with self._as_os_error(self._path):
            padded = np.ascontiguousarray(np.pad(frame, self._pad, mode='edge'))
            picture = self._av.VideoFrame.from_ndarray(padded, 'rgb24')
            self._last = max(self._last + 1, round(time / _TICK))
            picture.pts, picture.time_base = self._last, _TICK
            self._file.mux(self._stream.encode(picture))

    def close(self) -> None:
        with self._as_os_error(self._path):
            try:
                self._file.mux(self._stream.encode(None))
            finally:
                self._file.close()


class _CvWriter:
    """Writes through OpenCV, MPEG-4 part 2: in every wheel of it, unlike H.264."""

    codec = 'mpeg4'

    def __init__(self, path: Path, size: tuple, fps: float) -> None:
        code, fps = cv2.VideoWriter.fourcc(*'mp4v'), _mpeg4_rate(fps)
        self._pad = size[0] % 2, size[1] % 2  # OpenCV would cut them off
        even = size[1] + self._pad[1], size[0] + self._pad[0]
        self._writer = cv2.VideoWriter(opencv_name(path), code, fps, even)
        if not self._writer.isOpened():
            raise OSError(f'{path}: OpenCV cannot write this video (mp4v, {fps} fps)')

    def write(self, frame: np.ndarray, time: float) -> None:
        bottom, right = self._pad
        bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        self._writer.write(
            cv2.copyMakeBorder(bgr, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
            if any(self._pad)
            else bgr
        )

    def close(self) -> None:
        self._writer.release()


def _mpeg4_rate(fps: float) -> float:
    """Return the nearest rate whose fraction MPEG-4 can hold: 16 bits, and OpenCV's tens."""
    for base in (1000, 100, 10, 1):
        if round(fps * base) < 1 << 16:
            return max(1, round(fps * base)) / base
    return float((1 << 16) - 1)


def _check_frame(frame: np.ndarray) -> None:
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise ValueError(f'a frame is (H, W, 3) uint8; got {frame.shape} {frame.dtype}')


def _draw_tail(canvas, points, visible, exists, colour, scale) -> None:
    """Draw one point's path; runs of seen frames bold, others thin, the older half thinner."""
    bold, thin = max(1, round(2.5 * scale)), max(1, round(scale))
    drawn = exists[:-1] & exists[1:]
    seen = visible[:-1] & visible[1:]
    recent = np.arange(len(drawn)) >= len(drawn) // 2
    style = np.where(drawn, np.where(seen, 1 + recent, 0), -1)
    edges = np.flatnonzero(np.diff(style)) + 1
    thickness = (thin, max(1, round(1.6 * scale)), bold)
    for first, last in zip([0, *edges], [*edges, len(style)], strict=True):
        if style[first] >= 0:
            line = points[first : last + 1].reshape(-1, 1, 2)
            width = thickness[style[first]]
            cv2.polylines(canvas, [line], False, colour, width, cv2.LINE_AA, _SHIFT)


def _draw_point(canvas, point, visible, colour, scale) -> None:
    """Draw a disc or a ring with a dark rim, which keeps it readable on any ground."""
    centre = (int(point[0]), int(point[1]))
    radius = round(max(2.0, 3.2 * scale) * (1 << _SHIFT))
    rim = radius + round(max(0.8, scale) * (1 << _SHIFT))
    if visible:
        cv2.circle(canvas, centre, rim, (16, 16, 16), -1, cv2.LINE_AA, _SHIFT)
        cv2.circle(canvas, centre, radius, colour, -1, cv2.LINE_AA, _SHIFT)
    else:
        radius += round(0.8 * scale * (1 << _SHIFT))
        width = max(1, round(1.4 * scale))
        outer = radius + (width << _SHIFT)
        cv2.circle(canvas, centre, outer, (16, 16, 16), width, cv2.LINE_AA, _SHIFT)
        cv2.circle(canvas, centre, radius, colour, width, cv2.LINE_AA, _SHIFT)
