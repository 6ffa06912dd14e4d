"""The measure that shipped weights are chosen by, and nothing else is.

One number, the mean of four percentages that no benchmark shares:

- `photo`: average Jaccard on scenes of real pixels (train/data/synthetic/photo_scenes.py) made of
  DAVIS pictures and of cut-outs by its masks;
- `bodies`: average Jaccard on rendered bodies that walk and turn, textured with DAVIS pictures;
- `masks`: share of points of DAVIS videos that are still on the object they were taken from, said
  to be visible or not: the masks do not tell what hides behind a part of the object itself. Half
  of it is measured among a grid of other points: what else is tracked must not move a point;
- `return`: share of points of free video that are visible in its last frame and from there, as new
  points, come back to where they began when it is played backwards, each weighted by how far it
  went (forward-backward error: Kalal et al., Forward-Backward Error, 2010).

BADJA's joints take no part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from cotracker_ros.points import support_grid
from train import metrics
from train.data import readers
from train.data.batch import Clips
from train.data.clip import Clip, DataError
from train.data.synthetic.photo_scenes import (
    CutOut,
    PhotoSceneConfig,
    PhotoScenes,
    crop_out,
)
from train.data.synthetic.procedural import ProceduralVideo, SceneConfig
from train.trackers import Tracker, in_first_frame

SCENES, BODIES, MASK_FRAMES, RETURNS = 8, 6, 40, 10  # clips of each part, frames of a mask video
GRID = 8  # points along each side of the grid that `masks` are tracked among
GONE = 64.0  # px: a point that went further weighs no more
BACK = 3.0  # px of its start within which a point is back
PARTS = ('photo', 'bodies', 'masks', 'return')


def selection(tracker: Tracker, data: Path, seeds: Sequence[int] = (0,)) -> dict[str, float]:
    """The parts, in the mean over the draws of `seeds`, and their mean, `selection`, in percent;
    where there are several, also the least and the largest `selection` of a single draw.

    data: a folder with `davis/` (JPEGImages, Annotations) and `video/`. A seed draws the rendered
    scenes and the points; `masks` depends on none. Raises DataError where a folder is missing.
    """
    for name in ('davis/JPEGImages', 'davis/Annotations', 'video'):
        if not (data / name).is_dir():
            raise DataError(f'{data / name}: not there; selection measures on it')
    pictures, cutouts = davis_pictures(data / 'davis')
    masks = on_objects(tracker, data / 'davis')
    draws = [
        {
            'photo': jaccard(tracker, photo_clips(pictures, cutouts, seed), SCENES, 'photo'),
            'bodies': jaccard(tracker, body_clips(pictures, seed), BODIES, 'bodies'),
            'masks': masks,
            'return': forward_backward(tracker, data / 'video', seed),
        }
        for seed in tqdm(seeds, 'draws', leave=False, disable=len(seeds) == 1)
    ]
    scores = {part: float(np.mean([draw[part] for draw in draws])) for part in PARTS}
    means = [float(np.mean(list(draw.values()))) for draw in draws]
    spread = {'least': min(means), 'largest': max(means)} if len(draws) > 1 else {}
    return scores | {'selection': float(np.mean(means)), **spread}


def davis_pictures(root: Path) -> tuple[list[np.ndarray], list[CutOut]]:
    """The first picture of every video, (H, W, 3) uint8 RGB, and its object cut out of a later
    one.
    """
    pictures, cutouts = [], []
    for folder in sorted((root / 'JPEGImages').iterdir()):
        files = sorted(folder.glob('*.jpg'))
        pictures.append(cv2.cvtColor(cv2.imread(str(files[0])), cv2.COLOR_BGR2RGB))
        later = files[min(10, len(files) - 1)]
        mask = cv2.imread(str(root / 'Annotations' / folder.name / f'{later.stem}.png'), 0)
        part = None if mask is None else crop_out(cv2.imread(str(later))[..., ::-1], mask > 0)
        if part is not None:
            cutouts.append(part)
    return pictures, cutouts


def photo_clips(
    pictures: list[np.ndarray], cutouts: list[CutOut], seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Endless scenes of 384 x 512 px and 48 frames: video, tracks, visible, query frames."""
    config = PhotoSceneConfig(size=(384, 512), frames=48, pace=(1.0, 1.0), late=0.0)
    scenes = PhotoScenes(config, pictures, cutouts, 9_000 + seed)
    index = 0
    while True:
        yield scenes.clip(index, 48)[:4]
        index += 1


def body_clips(
    pictures: list[np.ndarray], seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Endless clips of 320 x 512 px and 40 frames with a body in each; as `photo_clips`."""
    config = SceneConfig(size=(320, 512), frames=40, bodies=1.0)
    video = ProceduralVideo(config, 9_000 + seed, textures=pictures, bank=16)
    while True:
        times = video.uniform(1, 1, low=0.7, high=1.5) * video.uniform(1, 40).fill_(1).cumsum(1)
        clips: Clips = video.clips(1, 48, times)
        yield tuple(
            x[0].numpy() for x in (clips.video, clips.tracks, clips.visible, clips.query_frame)
        )


def jaccard(tracker: Tracker, clips: Iterator, count: int, name: str) -> float:
    """Average Jaccard over `count` clips, first queries."""
    scores = []
    for video, tracks, visible, start in tqdm(islice(clips, count), name, count, leave=False):
        queries = np.column_stack([start, tracks[start, np.arange(len(start))]])
        xy, seen = tracker(video, queries.astype(np.float32))
        size = video.shape[1:3]
        scores.append(metrics.tapvid(start, tracks, visible, xy, seen, size)['average_jaccard'])
    return float(np.mean(scores))


def on_objects(tracker: Tracker, root: Path) -> float:
    """Share of points on the object they were taken from, on videos without BADJA's joints, in
    all frames: whether they can be seen is not known. The mean of two runs, one of which tracks a
    grid over the whole first frame beside them.
    """
    shares = []
    for clip in tqdm(readers.davis_masks(root), 'masks', leave=False):
        short = first_frames(clip, MASK_FRAMES)
        start, side = short.queries[:, 0].astype(int), np.asarray(short.side)
        everywhere = np.ones((len(side), len(start)), bool)
        for others in (0, GRID):
            grid = in_first_frame(support_grid(others, short.video.shape[1:3]))
            xy, _ = tracker(short.video, np.concatenate([short.queries, grid]))
            scores = metrics.on_object(start, xy[:, : len(start)], everywhere, side)
            shares.append(scores['on_object'])
    return float(np.mean(shares))


def first_frames(clip: Clip, count: int) -> Clip:
    """The beginning of a mask clip, with the points that are queried in it."""
    kept = clip.queries[:, 0] < count
    return Clip(
        clip.name,
        clip.video[:count],
        clip.queries[kept],
        clip.tracks[:count, kept],
        clip.visible[:count, kept],
        None if clip.known is None else clip.known[:count, kept],
        side=clip.side[:count],
    )


def forward_backward(tracker: Tracker, folder: Path, seed: int) -> float:
    """Share of points that are visible where a video ends and, tracked anew from there to its
    beginning, are back at their start, weighted by how far they went, at most GONE px. New points
    know nothing of where they came from, so one that was lost on the way does not come back.
    """
    files = sorted(f for f in folder.iterdir() if f.suffix in ('.mp4', '.mkv'))
    chosen = files[:: max(1, len(files) // RETURNS)][:RETURNS]
    rng = np.random.default_rng(seed)
    weights, hits, moved = 0.0, 0.0, False
    for file in tqdm(chosen, 'return', leave=False):
        frames = run_of_frames(file, 20)
        if len(frames) < 8:
            continue
        grey = cv2.cvtColor(frames[0], cv2.COLOR_RGB2GRAY)
        moving = cv2.absdiff(grey, cv2.cvtColor(frames[-1], cv2.COLOR_RGB2GRAY))
        moving = (cv2.GaussianBlur(moving, (0, 0), 4) > 8).astype(np.uint8)
        corners = cv2.goodFeaturesToTrack(grey, 60, 0.005, 6, mask=moving)
        if corners is None:
            continue
        start = corners[rng.permutation(len(corners))[:32], 0]
        moved = True
        xy, seen = tracker(frames, in_first_frame(start))
        way = np.minimum(np.linalg.norm(xy[-1] - start, axis=-1), GONE)
        height, width = frames.shape[1:3]
        inside = np.clip(xy[-1], 0, [width - 1, height - 1])
        returned, _ = tracker(np.ascontiguousarray(frames[::-1]), in_first_frame(inside))
        back = (np.linalg.norm(returned[-1] - start, axis=-1) < BACK) & seen[-1]
        weights, hits = weights + way.sum(), hits + (way * back).sum()
    if not moved:
        raise DataError(f'{folder}: no video in which anything moves')
    # A tracker that never moves a point brings none back.
    return float(100 * hits / max(weights, 1e-9))


def run_of_frames(file: Path, count: int) -> np.ndarray:
    """`count` frames, every second one, from the middle of a video, at most 640 px wide."""
    capture = cv2.VideoCapture(str(file.resolve()))
    first = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) // 2 - count)
    frames = []
    for i in range(first + 2 * count):
        if not capture.grab():
            break
        if i >= first and (i - first) % 2 == 0:
            frame = cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB)
            scale = min(1.0, 640 / max(frame.shape))
            frames.append(
                cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            )
    capture.release()
    return np.array(frames)
