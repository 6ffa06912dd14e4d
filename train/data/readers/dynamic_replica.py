"""Dynamic Replica: rendered rooms with people and animals."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cotracker_ros.geometry import between_centres
from train.data.clip import Clip, DataError
from train.data.readers.files import read_frames


def dynamic_replica(root: str | Path, points: int = 256) -> Iterator[Clip]:
    """Yield the sequences of a split of Dynamic Replica, left camera, queried in the first frame.

    root holds frame_annotations_SPLIT.jgz, or is that file: a gzipped JSON list of frames with
    sequence_name, camera_name, frame_number, image.path and trajectories.path, below the folder
    of the list. A trajectory file is a torch dict of one frame: traj_2d (N, 3), x and y px and
    depth, and verts_inds_vis (N,) bool, of the same N mesh vertices in every frame. Of the
    vertices visible in the first frame, `points` evenly chosen ones are tracked; hidden ones stay
    known, and those outside the picture are hidden. Needs torch to read them (weights only: no
    code of the file is run).
    """
    root = Path(root)
    files = [root] if root.suffix == '.jgz' else sorted(root.glob('frame_annotations_*.jgz'))
    if not files:
        raise DataError(f'{root}: no frame_annotations_*.jgz, so this is no Dynamic Replica split')
    if len(files) > 1:
        raise DataError(f'{root}: {len(files)} splits; give the path of one, such as {files[0]}')
    root = files[0].parent
    sequences: dict[str, list] = {}
    try:
        for note in json.loads(gzip.decompress(files[0].read_bytes())):
            if note.get('camera_name', 'left') == 'left' and note.get('trajectories'):
                row = (
                    note['frame_number'], root / note['image']['path'],
                    root / note['trajectories']['path'],
                )  # fmt: skip
                sequences.setdefault(note['sequence_name'], []).append(row)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise DataError(f'{files[0]}: not a list of frame annotations ({error})') from error
    if not sequences:
        raise DataError(f'{files[0]}: no frame of the left camera')
    for name, rows in sorted(sequences.items()):
        rows.sort()
        places, seen = zip(*(_trajectories(path) for _, _, path in rows), strict=True)
        if len({len(place) for place in places}) > 1:
            raise DataError(f'{root}: {name}: frames with different numbers of trajectories')
        video = read_frames([path for _, path, _ in rows])
        tracks, visible = np.stack(places), np.stack(seen)
        visible &= between_centres(tracks, video.shape[1:3])
        index = np.flatnonzero(visible[0])
        if not len(index):
            continue
        index = index[np.unique(np.linspace(0, len(index) - 1, points).round().astype(int))]
        tracks, visible = tracks[:, index], visible[:, index]
        queries = np.insert(tracks[0], 0, 0, axis=1)
        yield Clip(name, video, queries, tracks, visible, np.ones_like(visible))


def _trajectories(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return positions (N, 2) px and visibility (N,) of one frame."""
    try:
        import torch
    except ImportError as error:
        raise DataError('reading Dynamic Replica needs torch') from error
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
        places = content['traj_2d'].numpy()[:, :2].astype(np.float32)
        return places, content['verts_inds_vis'].numpy().astype(bool)
    except OSError as error:
        raise DataError(f'{path}: cannot be read ({error.strerror})') from error
    except Exception as error:  # torch raises nearly anything for a broken file
        reason = str(error).partition(chr(10))[0]
        raise DataError(f'{path}: not the trajectories of a frame ({reason})') from error
