"""Look at the training data: a contact sheet and a video with tracks and skeletons drawn.

    python train/visualize_data.py --config config/train_realtime.yaml --seed 1
    python train/visualize_data.py --labels runs/labels --clips 20

The first shows a batch as a run gets it; the second pseudo-labels as they were written, with the
name of the teacher of each clip.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

if not __package__:  # run as a script: the folder above holds both packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np
import yaml

from cotracker_ros.visualise import contact_sheet, draw_tracks_and_poses, titled, write_video
from train.config import read_config
from train.data.clip import DataError
from train.data.readers.pseudo_labels import PseudoLabels
from train.data.sources import mixture

COLUMNS = 5  # frames of a clip in the contact sheet


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--config', type=Path, default=Path('config/train_realtime.yaml'))
    parser.add_argument('--output', type=Path, default=Path('build/preview'))
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--clips', type=int, default=6)
    parser.add_argument('--labels', help='folder or URL of pseudo-labels, instead of a config')
    args = parser.parse_args()

    args.output.mkdir(parents=True, exist_ok=True)
    sheet: list[np.ndarray] = []

    def film() -> Iterator[np.ndarray]:
        for clip in labelled(args) if args.labels else rendered(args):
            sheet.extend(spread(clip))
            yield from clip

    try:
        write_video(args.output / 'preview.mp4', film(), fps=10)
    except (OSError, ValueError, DataError, yaml.YAMLError) as error:
        parser.error(str(error))
    shown = cv2.cvtColor(contact_sheet(sheet, columns=COLUMNS), cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(args.output / 'preview.png'), shown)
    print(f'wrote {args.output}/preview.png and {args.output}/preview.mp4')


def rendered(args: argparse.Namespace) -> Iterator[list[np.ndarray]]:
    """The frames of a batch, clip by clip, with its tracks, where known, and skeletons."""
    config = read_config(yaml.safe_load(args.config.read_text()) or {})
    batch = dataclasses.replace(config.batch, clips=args.clips)
    clips = mixture(dataclasses.replace(config, batch=batch), args.seed).batch(0)
    names = ('video', 'tracks', 'visible', 'known', 'keypoint', 'instance')
    for video, tracks, visible, known, *body in zip(
        *(getattr(clips, name).numpy() for name in names), strict=True
    ):
        tracks = np.where(known[..., None], tracks, np.nan)
        yield [draw(video, tracks, visible, (body[0], body[1]), t) for t in range(len(video))]


def labelled(args: argparse.Namespace) -> Iterator[list[np.ndarray]]:
    """The frames of pseudo-labelled clips, drawn by chance, each of the first one's size; one
    clip at a time is in memory.
    """
    labels, shape = PseudoLabels(args.labels), None
    if missing := labels.missing():
        print(f'{args.labels}: {missing} clips are not labelled yet', file=sys.stderr)
    order = np.random.default_rng(args.seed).permutation(len(labels))[: args.clips]
    for clip in (labels[i] for i in sorted(order)):
        title = f'{clip.teacher}: {Path(clip.about["video"]).name}, {clip.about["first"]}'
        # What is not believed is not there.
        tracks = np.where((clip.weight > 0)[..., None], clip.tracks, np.nan)
        nobody = np.full(tracks.shape[1], -1), np.full(tracks.shape[1], -1)
        frames = [draw(clip.video, tracks, clip.visible, nobody, t) for t in range(len(tracks))]
        shape = shape or frames[0].shape
        yield [titled(fit(frame, shape), title) for frame in frames]


def fit(frame: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A frame in the middle of a dark one of another shape, shrunk where it is larger."""
    scale = min(1.0, shape[0] / frame.shape[0], shape[1] / frame.shape[1])
    height, width = (round(scale * n) for n in frame.shape[:2])
    canvas = np.full(shape, 24, np.uint8)
    y, x = (shape[0] - height) // 2, (shape[1] - width) // 2
    canvas[y : y + height, x : x + width] = cv2.resize(
        frame, (width, height), interpolation=cv2.INTER_AREA
    )
    return canvas


def spread(clip: list[np.ndarray]) -> list[np.ndarray]:
    """A few frames from the first to the last."""
    return [clip[t] for t in np.linspace(0, len(clip) - 1, COLUMNS).astype(int)]


def draw(
    video: np.ndarray,
    tracks: np.ndarray,
    visible: np.ndarray,
    body: tuple[np.ndarray, np.ndarray],
    t: int,
) -> np.ndarray:
    """Frame t of a clip (T, H, W, 3) with the tracks (T, N, 2), visible (T, N), up to it; body:
    keypoint and instance (N,).
    """
    past, ids = slice(0, t + 1), np.arange(tracks.shape[1])
    return draw_tracks_and_poses(video[t], tracks[past], visible[past], ids, body)


if __name__ == '__main__':
    main()
