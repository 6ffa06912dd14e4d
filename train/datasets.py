"""Readers of the tracking data sets, each in its published format; numpy and OpenCV only.

Every reader yields `Clip`s or raises DataError with one message that names the file and what is
wrong with it. Pixels have (0, 0) at the centre of the top-left pixel. Pickles are data of others:
they may name nothing but numpy's arrays, and anything else in them is refused, not run.
"""

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from cotracker_ros.skeleton import OKS_SIGMA


class DataError(ValueError):
    """A data set that cannot be read; the message says which file and why."""


@dataclass(frozen=True)
class Pose:
    """What errors of joints are measured against (PoseTrack); see metrics.pose."""

    head: np.ndarray  # (T, N) px, size of the person's head; 0 without annotation
    area: np.ndarray  # (T, N) px^2 of the person's box; 0 without annotation
    sigma: np.ndarray  # (N,) of the joint


@dataclass(frozen=True)
class Clip:
    """A video with points to track and where they truly are."""

    name: str
    video: np.ndarray  # (T, H, W, 3) uint8 RGB
    queries: np.ndarray  # (N, 3) float32: frame, x px, y px
    tracks: np.ndarray  # (T, N, 2) float32 px; anything where the truth is not known
    visible: np.ndarray  # (T, N) bool; False where the truth is not known
    known: np.ndarray | None = None  # (T, N) bool, where tracks is true; None: everywhere
    area: np.ndarray | None = None  # (T,) px of the object's mask, NaN without annotation (BADJA)
    pose: Pose | None = None  # of people's joints (PoseTrack)
    reach: float | None = None  # px within which a point is right (FastCapture)
    # (T, H, W) int8, 1 on the object, -1 beside it, 0 within 2 px of its edge (DAVIS: no tracks)
    side: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Raise DataError where the parts do not belong together."""
        frames, count = len(self.video), len(self.queries)
        if self.video.ndim != 4 or self.video.shape[3] != 3 or self.video.dtype != np.uint8:
            shape, kind = self.video.shape, self.video.dtype
            raise DataError(f'{self.name}: video is (T, H, W, 3) uint8, not {shape} {kind}')
        if len(self.tracks) != frames or len(self.visible) != frames:
            raise DataError(
                f'{self.name}: {frames} frames but tracks of {len(self.tracks)} '
                f'and visibility of {len(self.visible)}'
            )
        if self.tracks.shape != (frames, count, 2) or self.visible.shape != (frames, count):
            raise DataError(
                f'{self.name}: {count} queries but tracks {self.tracks.shape} '
                f'and visibility {self.visible.shape}'
            )
        if not (np.isfinite(self.tracks).all() and np.isfinite(self.queries).all()):
            raise DataError(f'{self.name}: tracks or queries hold NaN or infinity')
        if not count:
            raise DataError(f'{self.name}: no point to track')
        if ((self.queries[:, 0] < 0) | (self.queries[:, 0] >= frames)).any():
            raise DataError(f'{self.name}: a query lies beyond the {frames} frames of the clip')

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, px."""
        return self.video.shape[1], self.video.shape[2]


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
    images = _frame_files(root / 'JPEGImages' / name)
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
    asked = visible[0]
    tracks, visible, known = tracks[:, asked], visible[:, asked], known[:, asked]
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
        images = _frame_files(root / 'JPEGImages' / name)
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
    mask = _read_image(path).any(2).astype(np.uint8)
    return cv2.resize(mask, BADJA_SIZE[::-1], interpolation=cv2.INTER_NEAREST)


def _side(mask: np.ndarray) -> np.ndarray:
    """Return where a pixel lies, (H, W) int8: see Clip.side."""
    square = np.ones((5, 5), np.uint8)
    return cv2.erode(mask, square).astype(np.int8) + cv2.dilate(mask, square) - 1


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
        content = _unpickle(path)
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


def _tapvid_clip(name: str, entry: object, strided: bool) -> Clip | None:
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
    frames = [_decode(frame, name) if isinstance(frame, bytes) else frame for frame in frames]
    if len(frames) != points.shape[1]:
        raise DataError(f'{name}: {len(frames)} frames but tracks of {points.shape[1]}')
    video = np.stack(
        [cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames]
    )
    # TAP-Vid counts from the outer corner of the picture, where we count from a pixel's centre.
    tracks = (points * (width, height) - 0.5).astype(np.float32).transpose(1, 0, 2)
    return _with_queries(name, video, tracks, ~occluded.T, strided, hidden_known=False)


def first_queries(visible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return frame (K,) and index (K,) of each point's first visible frame, by index."""
    index = np.flatnonzero(visible.any(0))
    return visible.argmax(0)[index], index


def strided_queries(visible: np.ndarray, stride: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Return frame (K,) and index (K,) of every visible point of every stride-th frame."""
    t, index = np.nonzero(visible[::stride])
    return t * stride, index


def _with_queries(
    name: str,
    video: np.ndarray,
    tracks: np.ndarray,
    visible: np.ndarray,
    strided: bool,
    hidden_known: bool,
) -> Clip | None:
    """Return the clip with one track for each query, or None where no point is ever visible."""
    t, index = (strided_queries if strided else first_queries)(visible)
    if not len(index):
        return None
    queries = np.concatenate([t[:, None], tracks[t, index]], 1).astype(np.float32)
    tracks, visible = tracks[:, index], visible[:, index]
    return Clip(name, video, queries, tracks, visible, None if hidden_known else visible)


def kubric(root: str | Path, strided: bool = False) -> Iterator[Clip]:
    """Yield the sequences of Kubric MOVi-F in the layout that CoTracker is trained from.

    A folder for each sequence, with its pictures in frames/ and NAME.npy: a dict of 'coords'
    (N, T, 2) px and 'visibility' (N, T), which despite its name is true where a point is
    **hidden**. The published CoTracker3_Kubric release has the same layout, one NAME.tar.gz for a
    sequence; these are read as they are, without unpacking. Coordinates are taken as they stand.
    """
    for path in kubric_sequences(root):
        clip = read_kubric(path, strided)
        if clip is not None:
            yield clip


def kubric_sequences(root: str | Path) -> list[Path]:
    """Return the sequences (folders or archives) below root in the order of their names."""
    root = Path(root)
    if not root.is_dir():
        raise DataError(f'{root}: no such folder')
    folders = (path for path in root.iterdir() if (path / f'{path.name}.npy').is_file())
    sequences = sorted([*folders, *root.glob('*.tar.gz')])
    if not sequences:
        raise DataError(f'{root}: no sequence (NAME/NAME.npy and NAME/frames, or NAME.tar.gz)')
    return sequences


def read_kubric(path: Path, strided: bool = False) -> Clip | None:
    """Read one sequence of `kubric_sequences`; None where no point is ever visible."""
    if path.is_dir():
        video = read_frames(_frame_files(path / 'frames'))
        note = _load_object(path / f'{path.name}.npy')
    else:
        video, note = _read_archive(path)
    try:
        coords = np.asarray(note['coords'], np.float32)
        visible = ~np.asarray(note['visibility'], bool)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: needs 'coords' and 'visibility' ({error})") from error
    if coords.ndim != 3 or coords.shape[2] != 2 or visible.shape != coords.shape[:2]:
        raise DataError(f'{path}: coords {coords.shape} and visibility {visible.shape}')
    if coords.shape[1] != len(video):
        raise DataError(f'{path}: {len(video)} frames but tracks of {coords.shape[1]}')
    tracks = coords.transpose(1, 0, 2)
    return _with_queries(path.name, video, tracks, visible.T, strided, hidden_known=True)


def _read_archive(path: Path) -> tuple[np.ndarray, object]:
    """Return the frames (T, H, W, 3) and the annotation of a CoTracker3_Kubric archive."""
    frames, note = {}, None
    try:
        with tarfile.open(path, 'r|gz') as archive:  # a stream: no name of it touches the disk
            for member in archive:
                name = Path(member.name)
                if not member.isfile():
                    continue
                if name.parent.name == 'frames' and name.suffix in ('.png', '.jpg'):
                    frames[name.name] = _decode(archive.extractfile(member).read(), str(path))
                elif name.suffix == '.npy' and name.stem == name.parent.name:
                    note = _load_object(path, archive.extractfile(member).read())
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f'{path}: cannot be read ({error})') from error
    if not frames or note is None:
        raise DataError(f'{path}: no frames/*.png or no NAME/NAME.npy in it')
    return np.stack([frames[name] for name in sorted(frames)]), note


class _Unpickler(pickle.Unpickler):
    """Takes numpy's arrays apart from everything else a pickle can call."""

    ALLOWED = frozenset(
        (f'numpy.{core}.{module}', name)
        for core in ('core', '_core')
        for module, name in (
            ('multiarray', '_reconstruct'),
            ('multiarray', 'scalar'),
            ('numeric', '_frombuffer'),
        )
    ) | {('numpy', 'ndarray'), ('numpy', 'dtype'), ('_codecs', 'encode')}

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f'it calls {module}.{name}: refused')
        return super().find_class(module.replace('numpy.core', 'numpy._core'), name)


def _unpickle(path: Path) -> object:
    try:
        with path.open('rb') as file:
            return _Unpickler(file).load()
    except OSError as error:
        raise DataError(f'{path}: cannot be read ({error.strerror})') from error
    except Exception as error:  # a broken pickle may raise nearly anything
        raise DataError(f'{path}: not a pickle of arrays ({error})') from error


def _load_object(path: Path, data: bytes | None = None) -> object:
    """Return the object of an .npy file that holds one pickled dict, from its bytes if given."""
    try:
        file = io.BytesIO(path.read_bytes() if data is None else data)
        version = np.lib.format.read_magic(file)
        form = np.lib.format
        header = form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0
        shape, _, dtype = header(file)
        if shape != () or not dtype.hasobject:
            raise ValueError(f'an array {shape} of {dtype}, not a dict')
        return _Unpickler(file).load().item()
    except OSError as error:
        raise DataError(f'{path}: cannot be read ({error.strerror})') from error
    except Exception as error:
        raise DataError(f'{path}: not an annotation of Kubric ({error})') from error


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
        visible &= inside(tracks, video.shape[1:3])
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


FASTCAPTURE_REACH = 3.0  # px


def fastcapture(root: str | Path) -> Iterator[Clip]:
    """Yield sequences laid out for the FastCapture protocol: right is within 3 px.

    The set (Rocco et al. 2023; multi-view captures of people, tracks from the fitted mesh) was
    never given out with a description of its files: that it holds people, projected vertices and
    their visibility is from memory. So this layout is ours, for whoever has it to convert to: a
    folder for each sequence with its pictures in frames/ and tracks.npz of xy (T, N, 2) px and
    visible (T, N). Queries are the first visible frame of each point.
    """
    root = Path(root)
    files = sorted(root.glob('*/tracks.npz'))
    if not files:
        raise DataError(f'{root}: no NAME/tracks.npz, so this is no FastCapture folder')
    for path in files:
        try:
            with np.load(path) as file:  # refuses pickled arrays
                tracks, visible = file['xy'].astype(np.float32), file['visible'].astype(bool)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: needs arrays 'xy' and 'visible' ({error})") from error
        if tracks.ndim != 3 or tracks.shape[2] != 2 or visible.shape != tracks.shape[:2]:
            raise DataError(f'{path}: xy {tracks.shape} and visible {visible.shape}')
        video = read_frames(_frame_files(path.parent / 'frames'))
        if len(video) != len(tracks):
            raise DataError(f'{path}: {len(video)} frames but tracks of {len(tracks)}')
        name = path.parent.name
        clip = _with_queries(name, video, tracks, visible, strided=False, hidden_known=False)
        if clip is not None:
            yield replace(clip, reach=FASTCAPTURE_REACH)


HELD_OUT_SEED = 7_700_001  # no training run may take it, nor the photographs below
HELD_OUT_PHOTOGRAPHS = (
    'astronaut', 'chelsea', 'coffee', 'rocket', 'immunohistochemistry', 'hubble_deep_field',
    'retina', 'grass', 'gravel', 'brick',
)  # fmt: skip


def held_out(
    path: str | Path, clips: int = 12, frames: int = 60, points: int = 64
) -> Iterator[Clip]:
    """Yield the procedural held-out set, rendered into the file `path` if there is none yet.

    320 x 512 px, textured with photographs of scikit-image, encoded as JPEG of quality 95 as a
    camera's would be. Each point is asked for in the frame that the renderer chose, half of the
    clips in the first. Rendering takes torch, scikit-image and some minutes; reading neither.
    """
    path = Path(path)
    if not path.is_file():
        _render_held_out(path, clips, frames, points)
    try:
        with np.load(path) as file:
            content = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f'{path}: not a held-out set ({error}): delete it') from error
    for c in range(len(content['queries'])):
        name = f'procedural_{c:02d}'
        parts = np.split(content[f'jpeg_{c}'], np.cumsum(content[f'bytes_{c}'])[:-1])
        video = np.stack([_decode(part.tobytes(), f'{path}: {name}') for part in parts])
        queries, tracks, visible = (content[key][c] for key in ('queries', 'tracks', 'visible'))
        # Where a point went outside the picture is known, but nobody's to tell.
        known = inside(tracks, video.shape[1:3]) | visible
        yield Clip(name, video, queries, tracks, visible, known)


def _render_held_out(path: Path, clips: int, frames: int, points: int) -> None:
    try:
        import skimage.data

        from train.procedural import ProceduralVideo, SceneConfig
    except ImportError as error:
        raise DataError(f'{path} is not there, and rendering it needs {error.name}') from error
    photographs = []
    for name in HELD_OUT_PHOTOGRAPHS:
        image = getattr(skimage.data, name)()
        image = np.repeat(image[..., None], 3, 2) if image.ndim == 2 else image[..., :3]
        scale = 512 / min(image.shape[:2])
        size = [round(scale * n) for n in image.shape[1::-1]]
        photographs.append(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
    scene = SceneConfig(size=BADJA_SIZE, frames=frames, bodies=0.5)
    source = ProceduralVideo(scene, HELD_OUT_SEED, textures=photographs, bank=8)
    content, notes = {}, []
    for c in range(clips):
        clip = source.clips(1, points)
        encoded = [
            cv2.imencode('.jpg', frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].ravel()
            for frame in clip.video[0].numpy()
        ]
        content[f'jpeg_{c}'] = np.concatenate(encoded)
        content[f'bytes_{c}'] = np.array([len(data) for data in encoded])
        t, tracks = clip.query_frame[0].numpy(), clip.tracks[0].numpy().astype(np.float32)
        queries = np.concatenate([t[:, None], tracks[t, np.arange(points)]], 1)
        notes.append((queries.astype(np.float32), tracks, clip.visible[0].numpy()))
    names = ('queries', 'tracks', 'visible')
    for name, part in zip(names, zip(*notes, strict=True), strict=True):
        content[name] = np.stack(part)
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(path.name + '.part')
    with half.open('wb') as file:
        np.savez(file, **content)
    half.rename(path)  # an interrupted rendering leaves no half set behind


def inside(xy: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return which positions (..., 2) px lie between the pixel centres of a picture (H, W)."""
    return ((xy >= 0) & (xy <= (size[1] - 1, size[0] - 1))).all(-1)


def there_and_back(clip: Clip) -> Clip:
    """Return the clip played forwards and then backwards, (2 T - 1) frames."""
    parts = {
        name: np.concatenate([part, part[-2::-1]])
        for name in ('video', 'tracks', 'visible', 'known')
        if (part := getattr(clip, name)) is not None
    }
    return replace(clip, **parts)


def with_occluder(clip: Clip, start: int, frames: int) -> Clip:
    """Return the clip behind a post that stands in the picture's middle third for some frames.

    The post shows the first frame upside down, so it looks like the rest; it comes in frame
    `start` and is gone `frames` later. Points behind it are not visible, their places known as
    before. Measures what a tracker makes of occlusions of one length.
    """
    video, visible = clip.video.copy(), clip.visible.copy()
    width = video.shape[2]
    left, right = width // 3, 2 * width // 3
    shown = slice(start, start + frames)
    video[shown, :, left:right] = clip.video[0, ::-1, left:right]
    x = clip.tracks[shown, :, 0]
    visible[shown] &= (x < left - 0.5) | (x > right - 0.5)
    t = clip.queries[:, 0].astype(int)
    kept = np.flatnonzero(visible[t, np.arange(len(t))])
    known = clip.visible if clip.known is None else clip.known
    parts = clip.queries[kept], clip.tracks[:, kept], visible[:, kept], known[:, kept]
    return Clip(f'{clip.name}, {frames} frames occluded', video, *parts)


def beginning(clip: Clip, frames: int, asked_before: int) -> Clip | None:
    """Return the first frames of a clip with the points asked for before a frame, if any."""
    early = clip.queries[:, 0] < asked_before
    if not early.any():
        return None
    known = None if clip.known is None else clip.known[:frames, early]
    tracks, visible = clip.tracks[:frames, early], clip.visible[:frames, early]
    return Clip(clip.name, clip.video[:frames], clip.queries[early], tracks, visible, known)


def read_frames(files: list[Path], size: tuple[int, int] | None = None) -> np.ndarray:
    """Read image files as (T, H, W, 3) uint8 RGB, shrunk by area averaging to size (H, W)."""
    frames = []
    for path in files:
        frame = _read_image(path)
        if size is not None and frame.shape[:2] != size:
            frame = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA)
        if frames and frame.shape != frames[0].shape:
            raise DataError(
                f'{path}: {frame.shape[1]} x {frame.shape[0]} px, but the first frame has '
                f'{frames[0].shape[1]} x {frames[0].shape[0]}'
            )
        frames.append(frame)
    return np.stack(frames)


def _frame_files(folder: Path) -> list[Path]:
    """Return the image files of a folder in the order of their names."""
    if not folder.is_dir():
        raise DataError(f'{folder}: no such folder of frames')
    kinds = ('.jpg', '.jpeg', '.png')
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in kinds)
    if not files:
        raise DataError(f'{folder}: no jpg or png frame in it')
    return files


def _read_image(path: Path) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f'{path}: cannot be read ({error.strerror})') from error
    return _decode(data, str(path))


def _decode(data: bytes, name: str) -> np.ndarray:
    """Return the picture (H, W, 3) uint8 RGB of an encoded one."""
    array = np.frombuffer(data, np.uint8)
    image = cv2.imdecode(array, cv2.IMREAD_COLOR) if len(array) else None
    if image is None:
        raise DataError(f'{name}: not a picture OpenCV can decode')
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
