"""Look at the training data: a contact sheet and a video with the true tracks drawn.

python train/visualize_data.py --config config/train_realtime.yaml --output build/preview --seed 1
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

if not __package__:  # run as a script: the folder above holds both packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np
import yaml

from cotracker_ros.visualise import contact_sheet, draw_tracks, write_video
from train.config import read_config
from train.data.clip import DataError
from train.data.sources import mixture


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--config', type=Path, default=Path('config/train_realtime.yaml'))
    parser.add_argument('--output', type=Path, default=Path('build/preview'))
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--clips', type=int, default=6)
    args = parser.parse_args()

    try:
        config = read_config(yaml.safe_load(args.config.read_text()) or {})
        batch = dataclasses.replace(config.batch, clips=args.clips)
        source = mixture(dataclasses.replace(config, batch=batch), args.seed)
    except (OSError, ValueError, DataError) as error:
        parser.error(str(error))
    batch = source.batch(0)
    frames = batch.video.shape[1]
    drawn = [
        [draw(batch.video[b], batch.tracks[b], batch.visible[b], t) for t in range(frames)]
        for b in range(args.clips)
    ]
    args.output.mkdir(parents=True, exist_ok=True)
    chosen = np.linspace(0, frames - 1, 5).astype(int)
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
