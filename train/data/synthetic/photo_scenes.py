"""Scenes of real pixels with exact tracks: a photograph under a moving camera, cut-outs of free
video and pieces of photographs that move, turn, bend and pass before each other.

Everything that a track is made of is known in closed form: the camera is a homography of the
photograph, a cut-out follows a homography of its own picture, bent by a smooth wave for some.
Visibility is read from the map of which layer is on top in each pixel.

Tracks are pixels of the rendered frames, (0, 0) the centre of the top-left pixel, x before y.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from cotracker_ros.files import opencv_name
from cotracker_ros.geometry import between_centres

FRAMES_PER_VIDEO = 12  # cut-outs that are looked for in one video
VIDEOS = ('*.mp4', '*.mkv', '*.avi', '*.mov')


@dataclass(frozen=True)
class PhotoSceneConfig:
    """What the random scenes are made of; pairs are ranges, shares are probabilities."""

    size: tuple[int, int] = (512, 832)  # height and width of a frame, px
    frames: int = 32
    objects: tuple[int, int] = (2, 6)
    extent: tuple[float, float] = (0.15, 0.75)  # longer side of an object / frame height
    # Typical movement in a unit of time / frame height, log-uniform: of an object, and of the
    # background.
    speed: tuple[float, float] = (0.0007, 0.02)
    camera_speed: tuple[float, float] = (0.0003, 0.016)
    pace: tuple[float, float] = (0.7, 2.0)  # units of time from a frame to the next
    steady: bool = True  # one pace for a clip; otherwise every gap has its own (for matching)
    dropped: float = 0.05  # chance that frames are missing before a frame
    still_camera: float = 0.2  # share of clips whose camera does not move
    bend: float = 0.35  # share of objects that bend
    distractors: float = 0.2  # share of objects that look like the one before
    occluders: float = 0.5  # share of clips with an object that hides others for a while
    on_objects: float = 0.6  # share of the points that lie on objects
    # points near the outlines of objects, for each of those at corners and of those anywhere
    outlines: int = 1
    strip: int = 9  # px, width of the strip along an outline that such points are taken from
    late: float = 0.3  # share of the points that are queried after the first frame
    jpeg: float = 0.3  # share of clips compressed as a camera's driver does
    blur: float = 0.3  # share of clips out of focus or with motion blur


class CutOut(NamedTuple):
    """image (h, w, 3) uint8 RGB, alpha (h, w) float32 in [0, 1]."""

    image: np.ndarray
    alpha: np.ndarray


class PhotoClip(NamedTuple):
    """video (T, H, W, 3) uint8 RGB; tracks (T, N, 2) px; visible (T, N) bool; query_frame (N,)
    int64, a frame in which the point is visible; warp (T, N, 2, 2), how the surface around the
    point is deformed since then: the Jacobian of its places in a frame by those in the query's.
    """

    video: np.ndarray
    tracks: np.ndarray
    visible: np.ndarray
    query_frame: np.ndarray
    warp: np.ndarray


def crop_out(image: np.ndarray, mask: np.ndarray, limit: int = 360) -> CutOut | None:
    """The largest connected part of a mask (H, W) bool as a cut-out of at most `limit` px; None
    where it is too small, or too large to be an object.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if count < 2:
        return None
    best = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    x, y, w, h, area = stats[best]
    if area < 0.004 * mask.size or area > 0.5 * mask.size or min(w, h) < 24:
        return None
    part = np.s_[y : y + h, x : x + w]
    alpha = cv2.GaussianBlur((labels[part] == best).astype(np.float32), (0, 0), 0.8)
    scale = min(1.0, limit / max(w, h))
    size = max(1, round(w * scale)), max(1, round(h * scale))
    return CutOut(
        cv2.resize(image[part], size, interpolation=cv2.INTER_AREA),
        cv2.resize(alpha, size, interpolation=cv2.INTER_AREA),
    )


def video_cutouts(folder: str | Path) -> list[CutOut]:
    """What moves before a camera that stands still, cut out of the videos of a folder: pixels
    that differ from the median picture. Videos whose camera moves give nothing useful and are
    left out.
    """
    if not str(folder):
        return []
    files = sorted(f for pattern in VIDEOS for f in Path(folder).glob(pattern))
    if not files:
        raise ValueError(f'{folder}: no video there')
    found = []
    for file in tqdm(files, 'cut-outs'):
        frames = spread_frames(file)
        if len(frames) < 6:
            continue
        still = np.median(frames, 0).astype(np.int16)
        for frame in frames:
            change = np.abs(frame.astype(np.int16) - still).max(-1).astype(np.uint8)
            if np.median(change) > 12:  # the camera moved, or the light did
                continue
            mask = (cv2.GaussianBlur(change, (0, 0), 1.5) > 26).astype(np.uint8)
            side = max(3, round(min(mask.shape) / 60)) | 1
            kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
            mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, kernel, iterations=2)
            mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, kernel)
            part = crop_out(frame, mask > 0)
            if part is not None:
                found.append(part)
    return found


def spread_frames(file: Path, longest: int = 960) -> list[np.ndarray]:
    """Frames spread over a video, RGB, at most `longest` px."""
    capture = cv2.VideoCapture(opencv_name(file.resolve()))
    count = max(1, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    wanted = set(np.linspace(0, count - 1, FRAMES_PER_VIDEO).astype(int).tolist())
    frames = []
    for i in range(count):
        if not capture.grab():
            break
        if i in wanted:
            ok, frame = capture.retrieve()
            if ok:
                scale = min(1.0, longest / max(frame.shape))
                frame = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
                frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    capture.release()
    return frames


def piece(photograph: np.ndarray, rng: np.random.Generator) -> CutOut:
    """A piece of a photograph with a smooth random outline, or a box."""
    height, width = photograph.shape[:2]
    side = int(rng.uniform(0.25, 0.7) * min(height, width))
    w, h = (max(40, int(side * rng.uniform(0.5, 1))) for _ in range(2))
    y, x = rng.integers(height - h + 1), rng.integers(width - w + 1)
    image = photograph[y : y + h, x : x + w]
    scale = min(1.0, 320 / max(w, h))
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    h, w = image.shape[:2]
    v, u = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
    if rng.random() < 0.15:
        distance = 0.97 - np.maximum(abs(u), abs(v))
    else:
        theta, outline = np.arctan2(v, u), np.full((h, w), 0.72)
        for k in range(2, 7):
            outline += rng.normal(0, 0.22 / k) * np.cos(k * theta + rng.uniform(0, 6.3))
        distance = np.clip(outline, 0.3, 0.97) - np.hypot(u, v)
    return CutOut(image, np.clip(distance * 0.25 * min(h, w) + 0.5, 0, 1).astype(np.float32))


def smooth_path(
    rng: np.random.Generator, times: np.ndarray, speed: float | np.ndarray, count: int
) -> np.ndarray:
    """Smooth random paths (T, count) at times (T,) from 0 on, whose typical change in a unit of
    time is `speed`; 0 at first.
    """
    t = times[:, None]
    path = rng.normal(size=count) * t * 0.5
    for low, high in ((0.06, 0.15), (0.15, 0.35), (0.35, 0.7)):
        omega, phase = rng.uniform(low, high, count), rng.uniform(0, 6.3, count)
        wave = np.sin(omega * t + phase) - np.sin(phase)
        path = path + 0.6 * rng.normal(size=count) / omega * wave
    return path * speed


def similarity(scale: float, angle: float, x: float, y: float, aspect: float = 1.0) -> np.ndarray:
    """Scale (x by `aspect` more), turn, then move: (3, 3)."""
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[c * aspect, -s, x], [s * aspect, c, y], [0, 0, 1.0]])


def apply(homography: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Points (..., 2) through a homography (3, 3)."""
    x, y, w = np.moveaxis(xy @ homography[:, :2].T + homography[:, 2], -1, 0)
    return np.stack([x / w, y / w], -1)


class Wave(NamedTuple):
    """How an object bends: u = v + amplitude * sin(frequency * swap(v) + phase), v the place in
    the upright object and u in its picture, both in px of the picture; phase (T, 2).
    """

    amplitude: np.ndarray
    frequency: np.ndarray
    phase: np.ndarray

    def to_picture(self, v: np.ndarray, t: int) -> np.ndarray:
        """Places (..., 2) of the bent object in its picture."""
        return v + self.amplitude * np.sin(self.frequency * v[..., ::-1] + self.phase[t])

    def to_object(self, u: np.ndarray, t: int) -> np.ndarray:
        """The inverse, by fixed-point iteration: a contraction of at most 0.5."""
        v = u
        for _ in range(30):
            v = u - self.amplitude * np.sin(self.frequency * v[..., ::-1] + self.phase[t])
        return v


@dataclass
class Layer:
    """A picture with its place in every frame: homography (T, 3, 3) from px of the picture."""

    image: np.ndarray
    alpha: np.ndarray | None  # None: covers everything
    homography: np.ndarray
    wave: Wave | None = None

    def to_frame(self, u: np.ndarray, t: int) -> np.ndarray:
        """Places (N, 2) of the picture in frame t."""
        return apply(self.homography[t], self.wave.to_object(u, t) if self.wave else u)

    def to_picture(self, xy: np.ndarray, t: int) -> np.ndarray:
        """Places (N, 2) of frame t in the picture."""
        v = apply(np.linalg.inv(self.homography[t]), xy)
        return self.wave.to_picture(v, t) if self.wave else v

    def box(self, t: int, size: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns of the frame outside which the layer covers nothing."""
        h, w = self.image.shape[:2]
        reach = 2 + (np.abs(self.wave.amplitude).max() if self.wave else 0)
        corners = np.array(
            [[-reach, -reach], [w + reach, -reach], [-reach, h + reach], [w + reach, h + reach]]
        )
        xy = apply(self.homography[t], corners)
        low = np.clip(np.floor(xy.min(0)), 0, [size[1], size[0]]).astype(int)
        high = np.clip(np.ceil(xy.max(0)) + 1, 0, [size[1], size[0]]).astype(int)
        return slice(low[1], high[1]), slice(low[0], high[0])


class PhotoScenes:
    """Clips as a function of the seed and their number alone."""

    def __init__(
        self,
        config: PhotoSceneConfig,
        photographs: Sequence[np.ndarray],
        cutouts: Sequence[CutOut] = (),
        seed: int = 0,
    ):
        """Raises ValueError where there is no photograph."""
        if not photographs:
            raise ValueError('scenes of photographs need photographs')
        self.config, self.photographs, self.cutouts = config, photographs, cutouts
        self.seed = seed

    def clip(self, index: int, points: int) -> PhotoClip:
        """Clip `index` with `points` tracks."""
        rng = np.random.default_rng((self.seed, index))
        while True:  # a scene may show too few points: it is drawn anew, from the same generator
            layers = self.layers(rng)
            video, owner = render(layers, self.config)
            tracks = self.tracks(video, layers, owner, points, rng)
            if tracks is not None:
                return PhotoClip(self.photometric(video, rng), *tracks)

    def times(self, rng: np.random.Generator) -> np.ndarray:
        """Times (T,) of the frames, the first at 0."""
        c = self.config
        if c.steady:
            missing = (rng.random(c.frames) < c.dropped) * rng.integers(1, 4, c.frames)
            gaps = log_uniform(rng, c.pace) * (1.0 + missing)
        else:
            gaps = rng.uniform(*c.pace, c.frames)
        return np.cumsum(gaps) - gaps[0]

    def layers(self, rng: np.random.Generator) -> list[Layer]:
        """The background and the objects, back to front."""
        c, (height, width), times = self.config, self.config.size, self.times(rng)
        photograph = self.photographs[int(rng.integers(len(self.photographs)))]
        if rng.random() < 0.5:
            photograph = photograph[:, ::-1]
        pace = log_uniform(rng, c.camera_speed) * (rng.random() >= c.still_camera)
        slow = min(pace, 0.01)  # of zoom and turn
        middle = np.array(photograph.shape[1::-1]) / 2
        fit = max(height / photograph.shape[0], width / photograph.shape[1])
        scale = max(fit * rng.uniform(0.9, 1.4), 0.5)
        move = smooth_path(rng, times, pace * height, 2)
        zoom, turn = smooth_path(rng, times, 0.7 * slow, 2).T
        tilt = smooth_path(rng, times, 0.8 * slow / height, 2)
        tilt = np.clip(tilt, -0.18 / height, 0.18 / height)
        camera = np.stack(
            [
                similarity(1, 0, width / 2 + move[t, 0], height / 2 + move[t, 1])
                @ np.array([[1, 0, 0], [0, 1, 0], [*tilt[t], 1]])
                @ similarity(scale * np.exp(np.clip(zoom[t], -0.6, 0.6)), turn[t], 0, 0)
                for t in range(c.frames)
            ]
        )
        shift = similarity(1, 0, *(-middle))
        layers = [Layer(np.ascontiguousarray(photograph), None, camera @ shift)]
        held = rng.random() < 0.5  # whether objects move with the camera, or by themselves
        for _ in range(rng.integers(c.objects[0], c.objects[1] + 1)):
            distractor = len(layers) > 1 and rng.random() < c.distractors
            layers.append(
                self.object(rng, times, layers[-1] if distractor else None, camera, held)
            )
        if rng.random() < c.occluders:
            layers.append(self.occluder(rng))
        return layers

    def draw(self, rng: np.random.Generator) -> CutOut:
        """A cut-out of video or of a photograph, flipped and recoloured at random."""
        if self.cutouts and rng.random() < 0.5:
            image, alpha = self.cutouts[int(rng.integers(len(self.cutouts)))]
        else:
            for _ in range(6):  # rather one with something to see on it
                image, alpha = piece(
                    self.photographs[int(rng.integers(len(self.photographs)))], rng
                )
                if image.std() > 28:
                    break
        if rng.random() < 0.5:
            image, alpha = image[:, ::-1], alpha[:, ::-1]
        if rng.random() < 0.4:
            gain, offset = rng.uniform(0.6, 1.3, 3), rng.uniform(-25, 25)
            image = np.clip(image * gain + offset, 0, 255).astype(np.uint8)
        return CutOut(np.ascontiguousarray(image), np.ascontiguousarray(alpha))

    def object(
        self,
        rng: np.random.Generator,
        times: np.ndarray,
        original: Layer | None,
        camera: np.ndarray,
        held: bool,
    ) -> Layer:
        """One object, a copy of `original` with a way of its own where there is one; it moves with
        the camera (T, 3, 3) where it is `held`.
        """
        c, (height, width) = self.config, self.config.size
        if original is not None and original.alpha is not None:
            image, alpha = original.image, original.alpha
        else:
            image, alpha = self.draw(rng)
        h, w = image.shape[:2]
        scale = log_uniform(rng, c.extent) * height / max(h, w)
        pace = log_uniform(rng, c.speed)
        at = rng.uniform([0.1, 0.1], [0.9, 0.9]) * [width, height]
        move = smooth_path(rng, times, pace * height, 2)
        slow = min(pace, 0.009)
        zoom, turn, wide = smooth_path(rng, times, np.array([2.5, 3.5, 1.3]) * slow, 3).T
        start = rng.normal() * 0.3
        homography = np.stack(
            [
                similarity(
                    scale * np.exp(np.clip(zoom[t], -0.7, 0.7)),
                    start + turn[t],
                    *(at + move[t]),
                    aspect=np.exp(np.clip(wide[t], -0.5, 0.5)),
                )
                @ similarity(1, 0, -w / 2, -h / 2)
                for t in range(c.frames)
            ]
        )
        if held:
            homography = camera @ np.linalg.inv(camera[0]) @ homography
        wave = None
        if rng.random() < c.bend:
            frequency = rng.uniform(1, 4, 2) * 2 / np.array([h, w])
            amplitude = rng.uniform(0.05, 0.45, 2) / frequency[::-1].max()
            phase = rng.uniform(0, 6.3, 2) + smooth_path(rng, times, 13 * slow, 2)
            wave = Wave(amplitude, frequency, phase)
        return Layer(image, alpha, homography, wave)

    def occluder(self, rng: np.random.Generator) -> Layer:
        """A large object that comes in from a side, may stay for a while, and leaves."""
        c, (height, width) = self.config, self.config.size
        image, alpha = self.draw(rng)
        h, w = image.shape[:2]
        scale = rng.uniform(0.35, 0.9) * height / max(h, w)
        angle = rng.uniform(0, 6.3)
        direction = np.array([np.cos(angle), np.sin(angle)])
        target = rng.uniform([0.2, 0.2], [0.8, 0.8]) * [width, height]
        far = 0.75 * np.hypot(width, height)
        come = rng.integers(1, max(2, c.frames // 2))
        stay = rng.integers(0, max(1, int(0.7 * c.frames)))
        quick = rng.uniform(4, 14)  # frames to come in
        t = np.arange(c.frames)
        away = np.clip((come - t) / quick, 0, 1) - np.clip((t - come - stay) / quick, 0, 1)
        homography = np.stack(
            [
                similarity(scale, angle, *(target + direction * far * a))
                @ similarity(1, 0, -w / 2, -h / 2)
                for a in away
            ]
        )
        return Layer(image, alpha, homography)

    def tracks(
        self,
        video: np.ndarray,
        layers: list[Layer],
        owner: np.ndarray,
        points: int,
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
        """Tracks, visibility, query frames and warps; None where too few points can be seen."""
        c, (frames, height, width) = self.config, owner.shape
        when = [0, *rng.integers(1, max(2, frames - 2), 2)]
        late = rng.binomial(points, c.late)
        counts = [points - late, late // 2, late - late // 2]
        picked = []
        for t, count in zip(when, counts, strict=True):
            xy = candidates(video[t], owner[t], 4 * count, rng, c.outlines, c.strip)
            on = owner[t][tuple(xy.round().astype(int).T[::-1])]
            order = rng.permutation(len(xy))
            wanted = min(round(c.on_objects * count), int((on > 0).sum()))
            objects = [i for i in order if on[i] > 0][:wanted]
            others = [i for i in order if on[i] == 0][: count - wanted]
            rest = [i for i in order if on[i] > 0][wanted : count - len(others)]
            chosen = (objects + others + rest)[:count]
            if len(chosen) < count:
                return None
            picked.append((np.full(count, t), xy[chosen], on[chosen]))
        query_frame, start, layer = (np.concatenate(x) for x in zip(*picked, strict=True))
        # Every point, and what is a pixel to its right and below it.
        corners = np.array([[0, 0], [1, 0], [0, 1]])
        places = np.zeros((frames, points, 3, 2))
        for k in np.unique(layer):
            mine = np.flatnonzero(layer == k)
            u = np.concatenate(
                [
                    layers[k].to_picture(start[i] + corners, t)
                    for i, t in zip(mine, query_frame[mine], strict=True)
                ]
            )
            for t in range(frames):
                places[t, mine] = layers[k].to_frame(u, t).reshape(-1, 3, 2)
        tracks = places[:, :, 0]
        warp = (places[:, :, 1:] - places[:, :, :1]).swapaxes(-1, -2)
        last = np.array([width - 1, height - 1])
        seen = between_centres(tracks, (height, width))
        x, y = np.clip(tracks.round(), 0, last).astype(int).transpose(2, 0, 1)
        visible = seen & (owner[np.arange(frames)[:, None], y, x] == layer)
        visible[query_frame, np.arange(points)] = True
        return (
            tracks.astype(np.float32),
            visible,
            query_frame.astype(np.int64),
            warp.astype(np.float32),
        )

    def photometric(self, video: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Light that changes, blur, noise and compression, the same kind in all frames."""
        c, frames = self.config, len(video)
        gain = 1 + smooth_path(rng, np.arange(frames), 0.006 * rng.random(), 1)[:, 0]
        sigma = 6 * rng.random() ** 2
        noise = (rng.normal(size=(64, *video.shape[2:])) * sigma).astype(np.float32)
        kernel = blur_kernel(rng) if rng.random() < c.blur else None
        quality = int(rng.integers(25, 90)) if rng.random() < c.jpeg else None
        out = np.empty_like(video)
        rows = np.arange(video.shape[1])
        for t, frame in enumerate(video):
            if kernel is not None:
                frame = cv2.filter2D(frame, -1, kernel, borderType=cv2.BORDER_REFLECT)
            grain = noise[(rows * 17 + rng.integers(64)) % 64]
            grain = np.roll(grain, int(rng.integers(video.shape[2])), 1)
            frame = np.clip(frame * np.float32(np.clip(gain[t], 0.5, 1.5)) + grain, 0, 255)
            frame = frame.astype(np.uint8)
            if quality is not None:
                packed = cv2.imencode('.jpg', frame, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
                frame = cv2.imdecode(packed, cv2.IMREAD_COLOR)
            out[t] = frame
        return out


def log_uniform(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    """Draw a number between the limits, evenly distributed in its logarithm."""
    return limits[0] * (limits[1] / limits[0]) ** rng.random()


def blur_kernel(rng: np.random.Generator) -> np.ndarray:
    """A disc or a straight line, up to 7 px."""
    y, x = np.mgrid[-4:5, -4:5]
    if rng.random() < 0.5:
        kernel = np.exp(-0.5 * (x**2 + y**2) / rng.uniform(0.4, 1.6) ** 2)
    else:
        angle, length = rng.uniform(0, np.pi), rng.uniform(0.5, 3.5)
        along, across = (
            x * np.cos(angle) + y * np.sin(angle),
            y * np.cos(angle) - x * np.sin(angle),
        )
        kernel = np.exp(-0.5 * (across / 0.6) ** 2) * (abs(along) <= length)
    return (kernel / kernel.sum()).astype(np.float32)


def candidates(
    frame: np.ndarray,
    owner: np.ndarray,
    count: int,
    rng: np.random.Generator,
    outlines: int,
    strip: int,
) -> np.ndarray:
    """Places (K, 2) px to take points from, with a fraction of a pixel: `count` anywhere, as many
    corners, and `outlines` times as many in strips of `strip` px along the outlines of objects,
    where a point is taken for one of the other side.
    """
    height, width = frame.shape[:2]
    low, high = np.ones(2), np.array([width - 2, height - 2])
    places = [rng.uniform(low, high, (count, 2))]
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    corners = cv2.goodFeaturesToTrack(grey, count, 0.005, 6)
    kernel = np.ones((strip, strip), np.uint8)
    outline = cv2.morphologyEx(owner, cv2.MORPH_GRADIENT, kernel)
    near = np.column_stack(np.nonzero(outline)[::-1])
    near = near[rng.permutation(len(near))[: outlines * count]]
    for whole in (near, [] if corners is None else corners[:, 0]):
        if len(whole):
            places.append(np.clip(whole + rng.uniform(-0.5, 0.5, (len(whole), 2)), low, high))
    return np.concatenate(places)


def render(layers: list[Layer], config: PhotoSceneConfig) -> tuple[np.ndarray, np.ndarray]:
    """Frames (T, H, W, 3) uint8 and, per pixel, the number of the layer on top (T, H, W) uint8."""
    (height, width), frames = config.size, config.frames
    video = np.empty((frames, height, width, 3), np.uint8)
    owner = np.zeros((frames, height, width), np.uint8)
    for t in range(frames):
        back = layers[0]
        frame = cv2.warpPerspective(
            back.image,
            back.homography[t],
            (width, height),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        for k, layer in enumerate(layers[1:], 1):
            rows, columns = layer.box(t, config.size)
            if rows.stop <= rows.start or columns.stop <= columns.start:
                continue
            x, y = np.meshgrid(
                np.arange(columns.start, columns.stop), np.arange(rows.start, rows.stop)
            )
            place = layer.to_picture(np.stack([x, y], -1).astype(np.float64), t)
            u, v = (np.ascontiguousarray(p, np.float32) for p in np.moveaxis(place, -1, 0))
            colour = cv2.remap(
                layer.image, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
            )
            cover = cv2.remap(layer.alpha, u, v, cv2.INTER_LINEAR)
            part = frame[rows, columns]
            frame[rows, columns] = (
                part + (colour.astype(np.float32) - part) * cover[..., None]
            ).astype(np.uint8)
            owner[t, rows, columns][cover > 0.5] = k
        video[t] = frame
    return video, owner
