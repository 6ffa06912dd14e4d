"""PoseTrack: the joints of people in video."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cotracker_ros.skeleton import OKS_SIGMA
from train.data.clip import Clip, DataError, Pose, first_queries
from train.data.readers.files import read_frames

# By joint: nose, head bottom, head top, then COCO's from the left ear on. Head bottom and top,
# which COCO has not, stand in the places of its eyes and take their constants, as is usual.
POSETRACK_SIGMA = OKS_SIGMA


def posetrack(root: str | Path) -> Iterator[Clip]:
    """Yield the sequences of PoseTrack 2018 (or 2021), one JSON file each.

    root holds annotations/**/*.json and the images that they name. Queries are the joints of
    each person in the first frame that shows them. The labelled frames alone are known; frames
    before the first labelled one are left out.
    """
    root = Path(root)
    files = sorted((root / 'annotations').rglob('*.json'))
    if not files:
        raise DataError(f'{root}: no annotations/**/*.json, so this is no PoseTrack folder')
    for path in files:
        clip = _posetrack_clip(root, path)
        if clip is not None:
            yield clip


def _posetrack_clip(root: Path, path: Path) -> Clip | None:
    try:
        content = json.loads(path.read_text())
        images = sorted(content['images'], key=lambda image: image['file_name'])
        number = {image['id']: t for t, image in enumerate(images)}
        joints = len(POSETRACK_SIGMA)
        people: dict[int, list] = {}
        for note in content.get('annotations', []):
            box, head = note.get('bbox'), note.get('bbox_head')
            if box is None or head is None:
                continue
            row = np.array(note['keypoints'], np.float32).reshape(joints, 3)
            size = 0.6 * float(np.hypot(head[2], head[3]))
            entry = number[note['image_id']], row, size, float(box[2] * box[3])
            people.setdefault(note['track_id'], []).append(entry)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f'{path}: not a PoseTrack annotation ({error})') from error
    if not people:
        return None
    shape = len(images), len(people) * joints
    tracks = np.zeros((*shape, 2), np.float32)
    visible, head, area = np.zeros(shape, bool), np.zeros(shape), np.zeros(shape)
    for p, entries in enumerate(people.values()):
        at = slice(p * joints, (p + 1) * joints)
        for t, row, size, extent in entries:
            tracks[t, at], visible[t, at] = row[:, :2], row[:, 2] > 0
            head[t, at], area[t, at] = size, extent
    tracks[~visible] = 0
    first = int(visible.any(1).argmax())
    t, index = first_queries(visible[first:])
    if not len(index):
        return None
    video = read_frames([root / image['file_name'] for image in images[first:]])
    tracks, visible = tracks[first:, index], visible[first:, index]
    queries = np.concatenate([t[:, None], tracks[t, np.arange(len(t))]], 1).astype(np.float32)
    sigma = np.tile(POSETRACK_SIGMA, len(people))[index]
    scale = Pose(head[first:, index], area[first:, index], sigma)
    return Clip(path.stem, video, queries, tracks, visible, visible, pose=scale)
