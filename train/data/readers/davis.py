"""DAVIS videos: BADJA's joints of animals, and the masks of the others."""

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from train.data.clip import Clip, DataError
from train.data.readers.files import frame_files, read_frames, read_image

BADJA_SIZE = (320, 512)  # the protocol's resolution, (H, W)
BADJA_JOINTS = (8, 9, 10, 12, 13, 14, 15, 18, 19, 20, 22, 23, 24, 25, 28, 31, 32, 33, 35, 36)


def badja(root: str | Path) -> Iterator[Clip]:
    """Yield the annotated animals of BADJA at 320 x 512.

    root holds DAVIS' JPEGImages and Annotations, NAME/00000.jpg and .png each, and
    joint_annotations/NAME.json. A clip starts at the first annotated frame; the joints visible
    there are its queries. Joints are scaled by 512/1920 and 320/1080, frames by area averaging:
    linear sampling of frames moves Lucas-Kanade's score by three points.
    """
    root = Path(root)
    files = sorted((root / 'joint_annotations').glob('*.json'))
    if not files:
        raise DataError(f'{root}: no joint_annotations/*.json, so this is no BADJA folder')
    for path in files:
        yield _badja_clip(root, path)


def _badja_clip(root: Path, path: Path) -> Clip:
    name = path.stem
    try:
        entries = json.loads(path.read_text())
        marks = {
            int(Path(entry['image_path']).stem): (
                np.array(entry['joints'], np.float32)[list(BADJA_JOINTS)],
                np.array(entry['visibility'], bool)[list(BADJA_JOINTS)],
            )
            for entry in entries
        }
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f'{path}: not a list of BADJA annotations ({error})') from error
    if not marks:
        raise DataError(f'{path}: no annotated frame')
    images = frame_files(root / 'JPEGImages' / name)
    first, last = min(marks), max(marks)
    if last >= len(images):
        raise DataError(f'{path}: frame {last} is annotated but {name} has {len(images)} frames')
    video = read_frames(images[first:], BADJA_SIZE)
    height, width = BADJA_SIZE
    tracks = np.zeros((len(video), len(BADJA_JOINTS), 2), np.float32)
    visible = np.zeros(tracks.shape[:2], bool)
    known, area = visible.copy(), np.full(len(video), np.nan)
    for frame, (joints, seen) in marks.items():
        t = frame - first
        tracks[t] = joints[:, ::-1] * (width / 1920, height / 1080)
        visible[t], known[t] = seen, seen
        area[t] = _read_mask(root, images[frame]).sum()
    first = visible[0]
    tracks, visible, known = tracks[:, first], visible[:, first], known[:, first]
    queries = np.insert(tracks[0], 0, 0, axis=1)
    return Clip(name, video, queries, tracks, visible, known, area)


def davis_masks(root: str | Path, inside: int = 48, outside: int = 24) -> Iterator[Clip]:
    """Yield the videos of a DAVIS folder at 320 x 512 with their object's masks; tracks unknown.

    root as for `badja`; videos with joint_annotations are left out, so that what is chosen here
    can be measured there. Queries: random points of frame 0, `inside` on the object and
    `outside` beside it.
    """
    root = Path(root)
    joints = root / 'joint_annotations'
    folders = [path for path in (root / 'Annotations').glob('*') if path.is_dir()]
    names = sorted(path.name for path in folders if not (joints / f'{path.name}.json').exists())
    if not names:
        raise DataError(f'{root}: no Annotations/NAME folder of a video without joints')
    for name in names:
        images = frame_files(root / 'JPEGImages' / name)
        side = np.stack([_side(_read_mask(root, image)) for image in images])
        rng = np.random.default_rng(1)
        places = [(np.argwhere(side[0] == 1), inside), (np.argwhere(side[0] == -1), outside)]
        xy = [p[rng.integers(len(p), size=n), ::-1] for p, n in places if len(p)]
        xy = np.concatenate(xy).astype(np.float32)
        queries = np.insert(xy, 0, 0, axis=1)
        tracks = np.zeros((len(images), len(xy), 2), np.float32)
        unknown = np.zeros(tracks.shape[:2], bool)
        video = read_frames(images, BADJA_SIZE)
        yield Clip(name, video, queries, tracks, unknown, unknown, side=side)


def _read_mask(root: Path, image: Path) -> np.ndarray:
    """Return the mask of a DAVIS folder's picture at BADJA_SIZE, (H, W) 0 or 1."""
    path = root / 'Annotations' / image.parent.name / f'{image.stem}.png'
    mask = read_image(path).any(2).astype(np.uint8)
    return cv2.resize(mask, BADJA_SIZE[::-1], interpolation=cv2.INTER_NEAREST)


def _side(mask: np.ndarray) -> np.ndarray:
    """Return where a pixel lies, (H, W) int8: see Clip.side."""
    square = np.ones((5, 5), np.uint8)
    return cv2.erode(mask, square).astype(np.int8) + cv2.dilate(mask, square) - 1
