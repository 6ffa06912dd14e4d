"""The procedural held-out set: rendered once, from photographs that training never sees."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from train.data.clip import Clip, DataError, inside
from train.data.readers.davis import BADJA_SIZE
from train.data.readers.files import decode

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
        video = np.stack([decode(part.tobytes(), f'{path}: {name}') for part in parts])
        queries, tracks, visible = (content[key][c] for key in ('queries', 'tracks', 'visible'))
        # Where a point went outside the picture is known, but nobody's to tell.
        known = inside(tracks, video.shape[1:3]) | visible
        yield Clip(name, video, queries, tracks, visible, known)


def _render_held_out(path: Path, clips: int, frames: int, points: int) -> None:
    try:
        import skimage.data

        from train.data.synthetic.procedural import ProceduralVideo, SceneConfig
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
