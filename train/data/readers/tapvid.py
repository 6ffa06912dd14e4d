"""TAP-Vid (DAVIS, RGB-Stacking, Kinetics) and RoboTAP: one pickle format."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from train.data.clip import Clip, DataError, with_queries
from train.data.readers.files import decode, unpickle

TAPVID_SIZE = (256, 256)  # (H, W): the benchmark's resolution, for tracking and for measuring


def tapvid(root: str | Path, strided: bool = False) -> Iterator[Clip]:
    """Yield the clips of a TAP-Vid pickle, or of all pickles of a folder in order of their names.

    One format serves DAVIS, RGB-Stacking, Kinetics and RoboTAP: a list, or a dict by name, of
    {'video': (T, H, W, 3) uint8 or T encoded pictures, 'points': (N, T, 2) in [0, 1],
    'occluded': (N, T) bool}. Videos are resized to 256 x 256. Queries are the first visible frame
    of each point, or with `strided` every visible point of every fifth frame. Points in no query
    are left out, and clips without any with them.
    """
    root = Path(root)
    files = sorted(root.glob('*.pkl')) if root.is_dir() else [root]
    if not files:
        raise DataError(f'{root}: no *.pkl in it')
    for path in files:
        content = unpickle(path)
        if isinstance(content, dict):
            entries = list(content.items())
        elif isinstance(content, (list, tuple)):
            entries = [(f'{path.stem}_{i:04d}', entry) for i, entry in enumerate(content)]
        else:
            raise DataError(f'{path}: holds a {type(content).__name__}, not a list of clips')
        if not entries:
            raise DataError(f'{path}: no clip in it')
        for name, entry in entries:
            clip = _tapvid_clip(f'{path.name}: {name}', entry, strided)
            if clip is not None:
                yield clip


def _tapvid_clip(name: str, entry: Any, strided: bool) -> Clip | None:
    try:
        points, occluded = np.asarray(entry['points']), np.asarray(entry['occluded'], bool)
        frames = entry['video']
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"{name}: needs 'video', 'points' and 'occluded' ({error})") from error
    if points.ndim != 3 or points.shape[2] != 2 or occluded.shape != points.shape[:2]:
        raise DataError(
            f'{name}: points {points.shape} and occluded {occluded.shape} should be (N, T, 2) '
            'and (N, T)'
        )
    height, width = TAPVID_SIZE
    frames = [decode(frame, name) if isinstance(frame, bytes) else frame for frame in frames]
    if len(frames) != points.shape[1]:
        raise DataError(f'{name}: {len(frames)} frames but tracks of {points.shape[1]}')
    video = np.stack(
        [cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames]
    )
    # TAP-Vid counts from the outer corner of the picture, where we count from a pixel's centre.
    tracks = (points * (width, height) - 0.5).astype(np.float32).transpose(1, 0, 2)
    return with_queries(name, video, tracks, ~occluded.T, strided, hidden_known=False)
