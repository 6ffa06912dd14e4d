"""The rendered held-out sets: rendered once, from photographs that training never sees."""

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from cotracker_ros.geometry import between_centres
from cotracker_ros.skeleton import KEYPOINTS
from train.data.clip import Clip, DataError, Pose
from train.data.readers.davis import BADJA_SIZE
from train.data.readers.files import decode

HELD_OUT_SEED, PEOPLE_SEED = 7_700_001, 7_700_002  # of no training run, nor the photographs below
HELD_OUT_PHOTOGRAPHS = (
    'astronaut', 'chelsea', 'coffee', 'rocket', 'immunohistochemistry', 'hubble_deep_field',
    'retina', 'grass', 'gravel', 'brick',
)  # fmt: skip


def held_out(
    path: str | Path, clips: int = 12, frames: int = 60, points: int = 64
) -> Iterator[Clip]:
    """Yield the procedural held-out set, rendered into the file `path` if there is none yet.

    320 x 512 px, textured with photographs of scikit-image, encoded as JPEG of quality 95 as a
    camera's would be. Each point is queried in the frame that the renderer chose, half of the
    clips in the first. Rendering takes torch, scikit-image and some minutes; reading neither.
    """

    def render(photographs: list[np.ndarray]) -> Iterator:
        from train.data.synthetic.procedural import ProceduralVideo, SceneConfig

        scene = SceneConfig(size=BADJA_SIZE, frames=frames, bodies=0.5)
        source = ProceduralVideo(scene, HELD_OUT_SEED, textures=photographs, bank=8)
        return (source.clips(1, points) for _ in range(clips))

    for clip, _, _ in _read(Path(path), render, 'procedural'):
        yield clip


def people(path: str | Path, clips: int = 12, frames: int = 48) -> Iterator[Clip]:
    """Yield the keypoints of rendered people, held out as `held_out`'s clips are, with Clip.pose.

    One to three people a clip; each keypoint is queried in the frame that first shows it.
    Hidden keypoints are known. A person's box is the extent of its keypoints, a tenth of its
    height more on all sides; the person's area is half of it. Sizes of heads are not known.
    """

    def render(photographs: list[np.ndarray]) -> Iterator:
        from train.data.synthetic.procedural import ProceduralVideo, SceneConfig

        scene = SceneConfig(size=BADJA_SIZE, frames=frames, people=1.0)
        source = ProceduralVideo(scene, PEOPLE_SEED, textures=photographs, bank=8)
        return (source.clips(1, 3 * len(KEYPOINTS)) for _ in range(clips))

    for clip, keypoint, instance in _read(Path(path), render, 'people'):
        named = keypoint >= 0
        pose = pose_of_tracks(clip.tracks[:, named], keypoint[named], instance[named])
        parts = clip.queries[named], clip.tracks[:, named], clip.visible[:, named]
        yield Clip(clip.name, clip.video, *parts, np.ones_like(parts[2]), pose=pose)


def pose_of_tracks(tracks: np.ndarray, keypoint: np.ndarray, instance: np.ndarray) -> Pose:
    """Return sizes of people from the places (T, N, 2) px of their keypoints, see `people`."""
    box, area = np.zeros(tracks.shape[:2]), np.zeros(tracks.shape[:2])
    for number in np.unique(instance):
        own = instance == number
        wide, high = np.moveaxis(np.ptp(tracks[:, own], axis=1), -1, 0)
        wide, high = wide + 0.2 * high, 1.2 * high
        box[:, own] = np.maximum(wide, high)[:, None]
        area[:, own] = (0.5 * wide * high)[:, None]
    return Pose(np.zeros_like(box), box, area, keypoint, instance)


def _read(
    path: Path, render: Callable[[list[np.ndarray]], Iterator], name: str
) -> Iterator[tuple[Clip, np.ndarray, np.ndarray]]:
    """Yield the clips of a file with the keypoint and instance (N,) of their points; a file that
    is not there is rendered first.
    """
    if not path.is_file():
        _render(path, render)
    try:
        with path.open('rb') as raw, np.load(raw) as file:
            content = {key: file[key] for key in file.files}
        for key in ('queries', 'tracks', 'visible'):
            content[key]
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f'{path}: not a held-out set ({error}): delete it') from error
    if name == 'people' and 'keypoint' not in content:
        raise DataError(f'{path}: a set without people: name another file')
    for c in range(len(content['queries'])):
        called = f'{name}_{c:02d}'
        parts = np.split(content[f'jpeg_{c}'], np.cumsum(content[f'bytes_{c}'])[:-1])
        video = np.stack([decode(part.tobytes(), f'{path}: {called}') for part in parts])
        queries, tracks, visible = (content[key][c] for key in ('queries', 'tracks', 'visible'))
        # Positions outside the picture are ground truth too, but no tracker is scored on them.
        known = between_centres(tracks, video.shape[1:3]) | visible
        plain = np.full((len(content['queries']), len(queries)), -1)
        bodies = (content.get(key, plain)[c] for key in ('keypoint', 'instance'))
        yield (Clip(called, video, queries, tracks, visible, known), *bodies)


def _render(path: Path, render: Callable[[list[np.ndarray]], Iterator]) -> None:
    try:
        import skimage.data
        import torch  # noqa: F401 (what rendering needs)
    except ImportError as error:
        raise DataError(f'{path} is not there, and rendering it needs {error.name}') from error
    photographs = []
    for name in HELD_OUT_PHOTOGRAPHS:
        image = getattr(skimage.data, name)()
        image = np.repeat(image[..., None], 3, 2) if image.ndim == 2 else image[..., :3]
        scale = 512 / min(image.shape[:2])
        size = [round(scale * n) for n in image.shape[1::-1]]
        photographs.append(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
    content, rows = {}, []
    for c, clip in enumerate(render(photographs)):
        encoded = [
            cv2.imencode('.jpg', frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].ravel()
            for frame in clip.video[0].numpy()
        ]
        content[f'jpeg_{c}'] = np.concatenate(encoded)
        content[f'bytes_{c}'] = np.array([len(data) for data in encoded])
        t, tracks = clip.query_frame[0].numpy(), clip.tracks[0].numpy().astype(np.float32)
        queries = np.concatenate([t[:, None], tracks[t, np.arange(len(t))]], 1)
        bodies = clip.keypoint[0].numpy(), clip.instance[0].numpy()
        rows.append((queries.astype(np.float32), tracks, clip.visible[0].numpy(), *bodies))
    names = ('queries', 'tracks', 'visible', 'keypoint', 'instance')
    for name, part in zip(names, zip(*rows, strict=True), strict=True):
        content[name] = np.stack(part)
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(path.name + '.part')
    with half.open('wb') as file:
        np.savez(file, **content)
    half.rename(path)  # an interrupted rendering leaves no half set behind
