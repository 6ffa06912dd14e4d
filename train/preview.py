"""Look at the training data: a contact sheet and a video with the true tracks drawn.

python train/preview.py --output build/preview --seed 1
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a script: the folder above holds both packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np

from cotracker_ros.visualise import contact_sheet, draw_tracks, write_video
from train.procedural import SceneConfig
from train.stream import ClipStream, StreamConfig


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--output', type=Path, default=Path('build/preview'))
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--clips', type=int, default=6)
    parser.add_argument('--frames', type=int, default=20)
    parser.add_argument(
        '--size', type=int, nargs=2, default=(192, 256), metavar=('HEIGHT', 'WIDTH')
    )
    args = parser.parse_args()

    scene = SceneConfig(size=tuple(args.size), frames=args.frames)
    batch = next(iter(ClipStream(scene, StreamConfig(clips=args.clips, points=48), args.seed)))
    drawn = [
        [draw(batch.video[b], batch.tracks[b], batch.visible[b], t) for t in range(args.frames)]
        for b in range(args.clips)
    ]
    args.output.mkdir(parents=True, exist_ok=True)
    chosen = np.linspace(0, args.frames - 1, 5).astype(int)
    sheet = contact_sheet([clip[t] for clip in drawn for t in chosen], columns=5)
    cv2.imwrite(str(args.output / 'preview.png'), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    write_video(args.output / 'preview.mp4', [frame for clip in drawn for frame in clip], fps=10)
    print(f'wrote {args.output}/preview.png and {args.output}/preview.mp4')


def draw(video, tracks, visible, t: int) -> np.ndarray:
    """Frame t of a clip with the tracks up to it."""
    return draw_tracks(
        video[t].numpy(),
        tracks[: t + 1].numpy(),
        visible[: t + 1].numpy(),
        np.arange(tracks.shape[1]),
    )


if __name__ == '__main__':
    main()
