"""PoseTrack 2017, 2018 and 21: the keypoints of people in video, in COCO's order.

The sets mark 15 joints in their own orders. Those that COCO has keep their meaning; the head's
bottom (2017: neck) and top have no place among COCO's 17 and are left out; eyes, which no set
marks, and ears, which hardly any file does, are never queried. So a person has up to 13 keypoints,
or 15 with ears.

2018 and 21 are a file a sequence in COCO's manner (`images`, `annotations`, `categories`), 2017
one of `annolist` (https://github.com/leonid-pishchulin/poseval). In 2017 a point can be marked and
hidden: its place is known; in the others a joint that is not visible has no place, but where a
file numbers visibility as COCO does: 2 is visible, 1 marked and hidden.
"""

import json
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cotracker_ros.geometry import rescale
from cotracker_ros.skeleton import KEYPOINTS, NUMBER
from train.data.clip import Clip, DataError, Pose
from train.data.readers.files import read_frames, read_image

COUNT = len(KEYPOINTS)
NOT_COCO = ('head_bottom', 'head_top', 'neck')
# of 2018 and 21, where a file's category does not say
ORDER = ('nose', 'head_bottom', 'head_top', *KEYPOINTS[3:])
_SIDED = ('ankle', 'knee', 'hip')
ORDER_2017 = (
    *(f'right_{name}' for name in _SIDED),
    *(f'left_{name}' for name in reversed(_SIDED)),
    'right_wrist', 'right_elbow', 'right_shoulder',
    'left_shoulder', 'left_elbow', 'left_wrist',
    'neck', 'nose', 'head_top',
)  # fmt: skip


class Mark(NamedTuple):
    """One person in one frame, in COCO's order: xy (17, 2) px; (17,) where the place is known,
    where it is visible, and where that is known; head px, 0 if it is unknown; box width and height
    px.
    """

    xy: np.ndarray
    known: np.ndarray
    visible: np.ndarray
    visibility_known: np.ndarray
    head: float
    box: tuple[float, float]


class Sequence(NamedTuple):
    """A file: the images' names in order of time, and each person's marks by frame."""

    images: list[str]
    people: dict[int, dict[int, Mark]]


def posetrack(
    root: str | Path,
    size: tuple[int, int] | None = None,
    max_frames: int | None = None,
    starts: str | Path | None = None,
) -> Iterator[Clip]:
    """Yield the sequences below root, one clip each, with Clip.pose.

    root holds annotations/**/*.json and the images that they name. A clip begins at the first
    frame that shows anybody and has at most max_frames; all people of the sequence are in it. Each
    keypoint is queried in the first frame that shows it. size: (H, W) px to resize to, as
    training wants; None leaves the frames as they are. Truth is known in the labelled frames
    alone; between them places are interpolated, so that nothing jumps, but are not known.

    starts: a JSON of start frames, {SEQUENCE: {PERSON: FRAME}} or {PERSON: [17 frames, null: first
    seen]}, SEQUENCE the file's name without .json, frames counted from 0: a keypoint is queried
    in the first frame that shows it from there on, and people without a start are left out.
    """
    root, files = Path(root), posetrack_files(root)
    given = None if starts is None else read_starts(starts)
    for path in files:
        sequence = read_sequence(path)
        begin = {person: np.zeros(COUNT, int) for person in sequence.people}
        if given is not None:
            own = given.get(path.stem, {})
            begin = {person: own[person] for person in sequence.people if person in own}
        clip = clip_of(root, path.stem, sequence, begin, size, max_frames)
        if clip is not None:
            yield clip


def posetrack_files(root: str | Path) -> list[Path]:
    """Return the annotations below root, by name."""
    files = sorted((Path(root) / 'annotations').rglob('*.json'))
    if not files:
        raise DataError(f'{root}: no annotations/**/*.json, so this is no PoseTrack folder')
    return files


def read_starts(path: str | Path) -> dict[str, dict[int, np.ndarray]]:
    """Read a JSON of start frames (see `posetrack`): by sequence and person, (17,) frames."""
    try:
        content = json.loads(Path(path).read_text())
        return {
            name: {
                int(person): np.broadcast_to(
                    np.array([0 if f is None else int(f) for f in frames])
                    if isinstance(frames, list)
                    else int(frames),
                    COUNT,
                )
                for person, frames in people.items()
            }
            for name, people in content.items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f'{path}: not a JSON of start frames ({error})') from error


def read_sequence(path: Path) -> Sequence:
    """Read a file of either format. Raises DataError that names what is wrong in it."""
    try:
        content = json.loads(path.read_text())
        if 'annolist' in content:
            return _sequence_2017(path, content['annolist'])
        return _sequence_2018(path, content)
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise DataError(f'{path}: not a PoseTrack annotation ({error})') from error


def _sequence_2018(path: Path, content: Mapping) -> Sequence:
    images = sorted(content['images'], key=lambda image: image['file_name'])
    number = {image['id']: t for t, image in enumerate(images)}
    categories = [c for c in content.get('categories') or [] if c.get('keypoints')]
    places = _coco_numbers(path, tuple(categories[0]['keypoints']) if categories else ORDER)
    notes = content.get('annotations', [])
    rows = [_joints(path, n, note, number.keys(), len(places)) for n, note in enumerate(notes)]
    # The largest number of a joint that is not visible.
    hidden = 1 if any((row[:, 2] == 2).any() for row in rows) else 0
    visibility_known = np.isin(np.arange(COUNT), [coco for coco in places if coco is not None])
    people: dict[int, dict[int, Mark]] = {}
    for note, row in zip(notes, rows, strict=True):
        called = f'{path}: person {note["track_id"]} in image {note["image_id"]}'
        xy, known, seen = np.zeros((COUNT, 2), np.float32), *np.zeros((2, COUNT), bool)
        for k, coco in enumerate(places):
            if coco is not None:
                xy[coco], known[coco], seen[coco] = row[k, :2], row[k, 2] > 0, row[k, 2] > hidden
        _check_places(xy, known, called)
        head = _size(note.get('bbox_head'), f'{called}: bbox_head')
        box = _size(note.get('bbox'), f'{called}: bbox') or _extent(xy[known])
        mark = Mark(
            xy, known, seen, visibility_known, 0.6 * float(np.hypot(*head)) if head else 0.0, box
        )
        people.setdefault(int(note['track_id']), {})[number[note['image_id']]] = mark
    return Sequence([image['file_name'] for image in images], people)


def _joints(path: Path, n: int, note: Mapping, images: Set, count: int) -> np.ndarray:
    """Return x px, y px and visibility of an annotation's joints (count, 3)."""
    for key in ('image_id', 'track_id', 'keypoints'):
        if note.get(key) is None:
            raise DataError(f'{path}: annotation {n} has no {key}')
    called = f'{path}: person {note["track_id"]} in image {note["image_id"]}'
    if note['image_id'] not in images:
        raise DataError(f'{called}: no such image is listed')
    flat = np.array(note['keypoints'], np.float32)
    if flat.size != 3 * count:
        raise DataError(f'{called} has {flat.size / 3:g} joints, not {count}')
    return flat.reshape(count, 3)


def _check_places(xy: np.ndarray, known: np.ndarray, called: str) -> None:
    """Raise DataError where a joint of xy (17, 2) px that is known (17,) is nowhere."""
    nowhere = np.flatnonzero(known & ~np.isfinite(xy).all(1))
    if len(nowhere):
        at = xy[nowhere[0]].tolist()
        raise DataError(f'{called}: {KEYPOINTS[nowhere[0]]} is at {at}, which is no place')


def _sequence_2017(path: Path, annolist: list) -> Sequence:
    frames = sorted(annolist, key=lambda frame: frame['image'][0]['name'])
    places = _coco_numbers(path, ORDER_2017)
    people: dict[int, dict[int, Mark]] = {}
    for t, frame in enumerate(frames):
        for n, note in enumerate(frame.get('annorect') or []):
            points = (note.get('annopoints') or [{}])[0].get('point') or []
            if not points:
                continue
            called = f'{path}: person {n} of {frame["image"][0]["name"]}'
            if not note.get('track_id'):
                raise DataError(f'{called} has no track_id')
            person = int(note['track_id'][0])
            xy = np.zeros((COUNT, 2), np.float32)
            known, seen = np.zeros(COUNT, bool), np.zeros(COUNT, bool)
            for point in points:
                lacking = [key for key in ('id', 'x', 'y') if not point.get(key)]
                if lacking:
                    raise DataError(f'{called} has a joint without {lacking[0]}')
                joint = int(point['id'][0])
                if not 0 <= joint < len(places):
                    raise DataError(f'{path}: person {person} has joint {joint}, of {len(places)}')
                coco = places[joint]
                if coco is not None:
                    xy[coco] = point['x'][0], point['y'][0]
                    # Left out, or empty: visible.
                    known[coco], marked = True, point.get('is_visible') or [1]
                    seen[coco] = int(marked[0]) > 0
            _check_places(xy, known, called)
            corners = [float(note[key][0]) for key in ('x1', 'y1', 'x2', 'y2') if key in note]
            head = 0.0
            if len(corners) == 4:
                head = 0.6 * float(np.hypot(corners[2] - corners[0], corners[3] - corners[1]))
            extent = _extent(xy[known])
            people.setdefault(person, {})[t] = Mark(xy, known, seen, known, head, extent)
    return Sequence([frame['image'][0]['name'] for frame in frames], people)


def _coco_numbers(path: Path, names: tuple[str, ...]) -> list[int | None]:
    """Return COCO's number of each joint, None for those it has not."""
    unknown = [name for name in names if name not in NUMBER and name not in NOT_COCO]
    if unknown:
        raise DataError(f'{path}: joint {unknown[0]!r} is of no skeleton known here')
    return [NUMBER.get(name) for name in names]


def _size(box: object, called: str) -> tuple[float, float] | None:
    """Return width and height of a box (x, y, width, height); None without one."""
    if box is None or box == []:
        return None
    sides = np.array(box, float)
    if sides.shape != (4,) or not np.isfinite(sides).all():
        raise DataError(f'{called} is {box}, not x, y, width and height')
    return float(sides[2]), float(sides[3])


def _extent(xy: np.ndarray) -> tuple[float, float]:
    """Return width and height of what joints (K, 2) span, 0 without any."""
    width, height = np.ptp(xy, axis=0) if len(xy) else (0, 0)
    return float(width), float(height)


def clip_of(
    root: Path,
    name: str,
    sequence: Sequence,
    starts: Mapping[int, np.ndarray],
    size: tuple[int, int] | None,
    max_frames: int | None,
) -> Clip | None:
    """Return the clip of those people of a sequence for whom `starts` has start frames (17,); None
    where no keypoint can be queried. Else as `posetrack`.
    """
    shape = len(sequence.images), len(starts) * COUNT
    xy = np.zeros((*shape, 2), np.float32)
    known, visible, visibility_known = (np.zeros(shape, bool) for _ in range(3))
    head, box, area = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    allowed = np.arange(shape[0])[:, None] >= np.concatenate([*starts.values(), []])
    for p, person in enumerate(starts):
        at = slice(p * COUNT, (p + 1) * COUNT)
        for t, mark in sequence.people[person].items():
            xy[t, at], visibility_known[t, at] = mark.xy, mark.visibility_known
            known[t, at], visible[t, at] = mark.known, mark.visible
            head[t, at], box[t, at] = mark.head, max(mark.box)
            area[t, at] = mark.box[0] * mark.box[1]
    if not (visible & allowed).any():
        return None
    first = int((visible & allowed).any(1).argmax())
    clip = slice(first, None if max_frames is None else first + max_frames)
    xy, known, visible, allowed = xy[clip], known[clip], visible[clip], allowed[clip]
    index = np.flatnonzero((visible & allowed).any(0))
    t = (visible & allowed).argmax(0)[index]
    xy, known, visible = xy[:, index], known[:, index], visible[:, index]
    visibility_known = visibility_known[clip, index]
    files = [root / image for image in sequence.images[clip]]
    given = read_image(files[0]).shape[:2]
    size = size or given
    video = read_frames(files, size)
    xy = rescale(xy, given, size).astype(np.float32)
    scale = np.divide(size, given)
    for n in range(len(index)):
        labelled = np.flatnonzero(known[:, n])
        for axis in (0, 1):
            xy[:, n, axis] = np.interp(np.arange(len(xy)), labelled, xy[labelled, n, axis])
    pose = Pose(
        head[clip, index] * scale.mean(),
        box[clip, index] * scale.mean(),
        area[clip, index] * scale.prod(),
        index % COUNT,
        index // COUNT,
    )
    queries = np.concatenate([t[:, None], xy[t, np.arange(len(t))]], 1).astype(np.float32)
    return Clip(
        name, video, queries, xy, visible, known, pose=pose, visibility_known=visibility_known
    )
