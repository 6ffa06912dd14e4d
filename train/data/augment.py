"""Changes to recorded clips that keep their tracks true (CoTracker, appendix; after RAFT, PIPs).

Pictures: brightness, contrast, saturation, hue; blur; patches that for some frames are erased, or
show another part of the picture upside down, which hides the points below. Geometry: a crop whose
place and scale drift over time, or that goes with what moves as a camera would, and flips.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from cotracker_ros.geometry import between_centres

# What a crop follows.
MOVES = 16.0  # px of the clip from where a point is first seen, for it to be one that moves
STEADY = 4.0  # frames, standard deviation of the smoothing of the path


@dataclass(frozen=True)
class AugmentConfig:
    """Probabilities are per clip, of patches per clip and kind."""

    colour: float = 0.8
    blur: float = 0.25
    erase: float = 0.5
    replace: float = 0.5
    patches: int = 5  # at most, of one kind
    patch: tuple[int, int] = (10, 80)  # px, side of a patch
    patch_speed: float = 0.0  # px per frame, typical along each axis
    scale: tuple[float, float] = (1.0, 1.6)  # of the least that fills the picture
    drift: float = 0.1  # change of scale, and of place against the room left, over a clip
    follow: float = 0.0  # the crop goes with the points that move; where none do it wanders
    flip: float = 0.5  # left and right; upside down half as often
    reverse: float = 0.3  # time runs backwards (the source does that)


def augment(
    video: np.ndarray,
    tracks: np.ndarray,
    visible: np.ndarray,
    size: tuple[int, int],
    config: AugmentConfig,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clip (T, H, W, 3) uint8 RGB with tracks (T, N, 2) px and visible (T, N) bool to one of
    `size` (H, W), with the tracks in its pixels. Points outside are not visible.
    """
    video, visible = video.copy(), visible.copy()
    if rng.random() < config.colour:
        video = recolour(video, rng)
    if rng.random() < config.blur:
        sigma = rng.uniform(0.3, 1.5)
        video = np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in video])
    video = np.ascontiguousarray(video)
    for kind in ('erase', 'replace'):
        if rng.random() < getattr(config, kind):
            for _ in range(rng.integers(1, config.patches + 1)):
                cover(video, tracks, visible, kind == 'replace', config, rng)
    return crop(video, tracks, visible, size, config, rng)


def recolour(video: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The clip in other colours: gain, offset, saturation, hue, the same in all frames."""
    gain, offset = rng.uniform(0.7, 1.3), rng.uniform(-25, 25)
    video = np.clip(video * gain + offset, 0, 255).astype(np.uint8)
    shift, saturation = rng.integers(-12, 13), rng.uniform(0.6, 1.4)
    out = []
    for frame in video:
        hsv = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV).astype(np.float32)
        hsv[..., 0] = (hsv[..., 0] + shift) % 180
        hsv[..., 1] = np.clip(hsv[..., 1] * saturation, 0, 255)
        out.append(cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB))
    return np.stack(out)


def cover(
    video: np.ndarray,
    tracks: np.ndarray,
    visible: np.ndarray,
    with_picture: bool,
    config: AugmentConfig,
    rng: np.random.Generator,
) -> None:
    """Lay one patch over a run of frames, in place, and hide the points under it. It moves evenly;
    of one that leaves the picture less is seen.
    """
    frames, height, width = video.shape[:3]
    first = rng.integers(frames)
    run = range(first, min(frames, first + int(rng.integers(1, frames + 1))))
    h, w = (min(int(rng.integers(*config.patch)), n // 2) for n in (height, width))
    y, x = rng.integers(height - h + 1), rng.integers(width - w + 1)
    v, u = rng.integers(height - h + 1), rng.integers(width - w + 1)
    dy, dx = config.patch_speed * rng.normal(size=2)
    for k, t in enumerate(run):
        patch = video[t, v : v + h, u : u + w][::-1].copy()  # so that no point is seen twice
        if not with_picture:
            patch[:] = video[t].mean((0, 1))
        top, left = y + round(dy * k), x + round(dx * k)
        rows, columns = (slice(max(n, 0), max(n + m, 0)) for n, m in ((top, h), (left, w)))
        part = video[t, rows, columns]
        part[:] = patch[max(-top, 0) :, max(-left, 0) :][: part.shape[0], : part.shape[1]]
        low, high = np.array([left, top]) - 0.5, np.array([left + w, top + h]) - 0.5
        visible[t] &= ~((tracks[t] > low) & (tracks[t] < high)).all(-1)


def crop(
    video: np.ndarray,
    tracks: np.ndarray,
    visible: np.ndarray,
    size: tuple[int, int],
    config: AugmentConfig,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A window on the clip whose scale and place drift evenly, or that goes with what moves, as
    the camera of a video of a runner does; flipped in some clips.
    """
    frames, height, width = video.shape[:3]
    t = np.linspace(-0.5, 0.5, frames)
    least = max(size[0] / height, size[1] / width)
    scale = least * rng.uniform(*config.scale) * np.exp(config.drift * rng.normal() * t)
    scale = np.maximum(scale, least)
    place = np.clip(rng.random((1, 2)) + config.drift * rng.normal(size=(1, 2)) * t[:, None], 0, 1)
    mirror = np.where(rng.random(2) < (config.flip, config.flip / 2), -1.0, 1.0)  # x, y
    extent = np.array([size[1], size[0]])
    room = np.array([width, height]) - extent / scale[:, None]  # px of the picture left over
    if config.follow and rng.random() < config.follow:
        target = middle_of_motion(tracks, visible)  # px of the clip
        if target is None:
            target = np.array([width, height]) * (0.5 + wander(frames, 0.25, rng))
        # Where in the crop the target is, px: off its middle, and never quite still.
        aim = extent * (0.5 + wander(frames, 0.04, rng)) + extent * rng.uniform(-0.15, 0.15, 2)
        corner = target - aim / scale[:, None]
        place = np.clip(corner / np.maximum(room, 1e-6), 0, 1)
    out, moved = [], np.empty((*tracks.shape[:2], 2), np.float32)
    for i, frame in enumerate(video):
        # Pixel centres: (x + 0.5) scales, and mirrors about the middle of the window.
        offset = 0.5 * scale[i] - 0.5 - place[i] * room[i] * scale[i]
        offset = np.where(mirror < 0, extent - 1 - offset, offset)
        matrix = np.array(
            [[mirror[0] * scale[i], 0, offset[0]], [0, mirror[1] * scale[i], offset[1]]]
        )
        out.append(cv2.warpAffine(frame, matrix, size[::-1], flags=cv2.INTER_LINEAR))
        moved[i] = tracks[i] * mirror * scale[i] + offset
    return np.stack(out), moved, visible & between_centres(moved, size)


def middle_of_motion(tracks: np.ndarray, visible: np.ndarray) -> np.ndarray | None:
    """Where the points that move are in the mean, smoothed over time, (T, 2) px; None where none
    of the tracks (T, N, 2) px, visible (T, N) bool, does.
    """
    frames = len(tracks)
    first = visible.argmax(0)
    way = np.linalg.norm(tracks - tracks[first, np.arange(tracks.shape[1])], axis=-1)
    moving = visible & (np.where(visible, way, 0).max(0) > MOVES)
    known = np.flatnonzero(moving.any(1))
    if not len(known):
        return None
    shown = moving[known, :, None]
    means = np.where(shown, tracks[known], 0).sum(1) / shown.sum(1)  # hidden ones may be NaN
    path = np.column_stack([np.interp(np.arange(frames), known, axis) for axis in means.T])
    return cv2.GaussianBlur(
        path[:, None], (1, 0), sigmaX=STEADY, sigmaY=STEADY, borderType=cv2.BORDER_REPLICATE
    )[:, 0]


def wander(frames: int, size: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth random path (T, 2) that stays around 0, `size` its standard deviation: three slow
    sines along each axis.
    """
    t = np.arange(frames)[:, None]
    waves = rng.uniform(0.005, 0.04, (3, 1, 2)) * t + rng.random((3, 1, 2))
    return size * np.sqrt(2 / 3) * np.sin(2 * np.pi * waves).sum(0)
